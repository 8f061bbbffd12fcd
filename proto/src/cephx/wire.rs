//! The structures of cephx on the wire (`src/auth/cephx/CephxProtocol.h`, `src/auth/Auth.h`), for both sides.

use bytes::{BufMut, Bytes, BytesMut};

use super::crypto::{self, Usage};
use super::{Entity, Key, Ticket};
use crate::denc::{Decode, Encode, Put, Reader, Result, decode};
use crate::msgr::auth::AuthError;
use crate::types::{EntityType, UTime};

/// The first byte of an `AUTH_REQUEST`: a service's ticket follows (`AUTH_MODE_AUTHORIZER`). It is at the same time the
/// version of the structure that follows.
pub(super) const MODE_AUTHORIZER: u8 = 1;
/// The first byte of an `AUTH_REQUEST`: a login to a monitor (`AUTH_MODE_MON`).
pub(super) const MODE_MON: u8 = 10;

/// `CEPHX_GET_AUTH_SESSION_KEY`: give me an AUTH ticket.
pub(super) const GET_AUTH_TICKET: u16 = 0x0100;
/// `CEPHX_GET_PRINCIPAL_SESSION_KEY`: give me tickets for these services.
pub(super) const GET_SERVICE_TICKETS: u16 = 0x0200;

/// Keys and nonces of AES-GCM in both directions, and room.
pub(super) const CONNECTION_SECRET_BYTES: usize = 64;

/// Every structure here begins with a version byte. No decoder of Ceph's checks it, and so none can be told apart.
fn version(r: &mut Reader<'_>) -> Result<u8> {
    r.u8()
}

/// The login to a monitor: `AUTH_REQUEST` in [`MODE_MON`].
pub(super) struct MonRequest {
    pub(super) entity: Entity,
    /// 0 for a new client; otherwise the one it was given before.
    pub(super) global_id: u64,
}

impl Decode for MonRequest {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.skip(1)?; // the mode
        Ok(Self { entity: r.get()?, global_id: r.u64()? })
    }
}

impl Encode for MonRequest {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(MODE_MON);
        w.put_value(&self.entity);
        w.put_u64_le(self.global_id);
    }
}

/// `CephXServerChallenge`, and with the same layout `CephXAuthorizeChallenge`.
pub(super) struct Challenge(pub(super) u64);

impl Decode for Challenge {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        version(r)?;
        r.u64().map(Self)
    }
}

impl Encode for Challenge {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_u64_le(self.0);
    }
}

/// `CephXAuthenticate`: the answer to the monitor's challenge.
pub(super) struct Authenticate {
    pub(super) client_challenge: u64,
    pub(super) response: u64,
    /// The AUTH ticket that proves that our global id is ours; empty without.
    pub(super) old_ticket: TicketBlob,
    /// The services for which tickets are wanted at once, as bits.
    pub(super) services: u32,
}

impl Decode for Authenticate {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = version(r)?;
        Ok(Self {
            client_challenge: r.u64()?,
            response: r.u64()?,
            old_ticket: r.get()?,
            services: if version >= 2 { r.u32()? } else { 0 },
        })
    }
}

impl Encode for Authenticate {
    fn encode(&self, w: &mut BytesMut) {
        // Version 3 says that the old ticket is always there if there is one, so that nobody can take our global id.
        w.put_u8(3);
        w.put_u64_le(self.client_challenge);
        w.put_u64_le(self.response);
        w.put_value(&self.old_ticket);
        w.put_u32_le(self.services);
    }
}

/// `CephXResponseHeader`.
pub(super) struct ReplyHeader {
    pub(super) request: u16,
    pub(super) status: i32,
}

impl Decode for ReplyHeader {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { request: r.u16()?, status: r.i32()? })
    }
}

impl Encode for ReplyHeader {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u16_le(self.request);
        w.put_i32_le(self.status);
    }
}

/// `CephXTicketBlob`: what only the service can read, and which of its rotating secrets opens it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TicketBlob {
    pub(super) secret_id: u64,
    pub(super) sealed: Bytes,
}

impl Decode for TicketBlob {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        version(r)?;
        Ok(Self { secret_id: r.u64()?, sealed: Bytes::copy_from_slice(r.blob()?) })
    }
}

impl Encode for TicketBlob {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_u64_le(self.secret_id);
        w.put_blob(&self.sealed);
    }
}

/// `CephXServiceTicket`: a ticket's other half, for the client.
pub(super) struct ServiceTicket {
    pub(super) session_key: Key,
    pub(super) validity: UTime,
}

impl Decode for ServiceTicket {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        version(r)?;
        Ok(Self { session_key: r.get()?, validity: r.get()? })
    }
}

impl Encode for ServiceTicket {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_value(&self.session_key);
        w.put_value(&self.validity);
    }
}

/// `CephXServiceTicketInfo`: what a ticket's blob tells the service, with the fields of `AuthTicket`.
#[derive(Clone)]
pub(super) struct TicketInfo {
    pub(super) entity: Entity,
    pub(super) global_id: u64,
    pub(super) created: UTime,
    pub(super) expires: UTime,
    /// What the client may do there; `None` if its keyring entry says nothing about the service.
    pub(super) caps: Option<String>,
    pub(super) session_key: Key,
}

impl Decode for TicketInfo {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        version(r)?;
        let ticket_version = version(r)?;
        let (entity, global_id) = (r.get()?, r.u64()?);
        if ticket_version >= 2 {
            r.skip(8)?; // the auid of old
        }
        let (created, expires) = (r.get()?, r.get()?);
        version(r)?; // of AuthCapsInfo
        r.skip(1)?; // allow_all, which only `auth none` sets
        let caps = match r.blob()? {
            [] => None,
            caps => Some(decode(caps, "caps")?),
        };
        r.skip(4)?; // flags
        Ok(Self { entity, global_id, created, expires, caps, session_key: r.get()? })
    }
}

impl Encode for TicketInfo {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_u8(2);
        w.put_value(&self.entity);
        w.put_u64_le(self.global_id);
        w.put_u64_le(u64::MAX); // the auid of old
        w.put_value(&self.created);
        w.put_value(&self.expires);
        w.put_u8(1);
        w.put_u8(0);
        w.put_sized(|w| {
            if let Some(caps) = &self.caps {
                w.put_str(caps);
            }
        });
        w.put_u32_le(0);
        w.put_value(&self.session_key);
    }
}

/// The open part of an authorizer; [`Authorize`] follows it, sealed.
pub(super) struct AuthorizerHead {
    pub(super) global_id: u64,
    pub(super) service: u32,
    pub(super) ticket: TicketBlob,
}

impl Decode for AuthorizerHead {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.skip(1)?; // MODE_AUTHORIZER
        Ok(Self { global_id: r.u64()?, service: r.u32()?, ticket: r.get()? })
    }
}

impl Encode for AuthorizerHead {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(MODE_AUTHORIZER);
        w.put_u64_le(self.global_id);
        w.put_u32_le(self.service);
        w.put_value(&self.ticket);
    }
}

/// `CephXAuthorize`: shows that we can read the ticket's session key.
pub(super) struct Authorize {
    pub(super) nonce: u64,
    /// The service's challenge, plus one.
    pub(super) challenge_plus_one: Option<u64>,
}

impl Decode for Authorize {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = version(r)?;
        let nonce = r.u64()?;
        if version < 2 {
            return Ok(Self { nonce, challenge_plus_one: None });
        }
        let challenged = r.bool()?;
        let plus_one = r.u64()?;
        Ok(Self { nonce, challenge_plus_one: challenged.then_some(plus_one) })
    }
}

impl Encode for Authorize {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(2);
        w.put_u64_le(self.nonce);
        w.put_bool(self.challenge_plus_one.is_some());
        w.put_u64_le(self.challenge_plus_one.unwrap_or_default());
    }
}

/// `CephXAuthorizeReply`: shows that the service can read the ticket.
pub(super) struct AuthorizeReply {
    pub(super) nonce_plus_one: u64,
    /// Empty in crc mode.
    pub(super) connection_secret: Vec<u8>,
}

impl Decode for AuthorizeReply {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = version(r)?;
        let nonce_plus_one = r.u64()?;
        let connection_secret = if version >= 2 { r.blob()?.to_vec() } else { Vec::new() };
        Ok(Self { nonce_plus_one, connection_secret })
    }
}

impl Encode for AuthorizeReply {
    fn encode(&self, w: &mut BytesMut) {
        let secret = &self.connection_secret;
        w.put_u8(if secret.is_empty() { 1 } else { 2 });
        w.put_u64_le(self.nonce_plus_one);
        if !secret.is_empty() {
            w.put_blob(secret);
        }
    }
}

/// Reads the tickets of a reply. `key` is the key of whoever asked; `old` opens the blob of a renewed AUTH ticket,
/// which is sealed to whoever holds the one before.
pub(super) fn read_tickets(
    r: &mut Reader<'_>,
    key: &Key,
    old: Option<&Key>,
) -> std::result::Result<Vec<Ticket>, AuthError> {
    version(r)?;
    let count = r.count(10)?;
    (0..count).map(|_| read_ticket(r, key, old)).collect()
}

fn read_ticket(
    r: &mut Reader<'_>,
    key: &Key,
    old: Option<&Key>,
) -> std::result::Result<Ticket, AuthError> {
    let service = r.u32()?;
    let service = u8::try_from(service).map(EntityType).map_err(|_| {
        AuthError::Misbehaved(format!("the monitor sent a ticket for a service {service:#x}"))
    })?;
    version(r)?;
    let ours = crypto::open(key, Usage::TicketSessionKey, r.blob()?).map_err(|_| {
        AuthError::Misbehaved("the monitor's ticket is not sealed with our key".to_owned())
    })?;
    let ServiceTicket { session_key, validity } = decode(&ours, "CephXServiceTicket")?;
    let blob = if r.bool()? {
        let sealed = r.blob()?;
        let opened = old.and_then(|old| crypto::open(old, Usage::TicketBlob, sealed).ok());
        let opened = opened.ok_or_else(|| {
            AuthError::Misbehaved("the monitor sealed a ticket with a key we don't have".to_owned())
        })?;
        decode(Reader::new(&opened, "ticket").blob()?, "CephXTicketBlob")?
    } else {
        decode(r.blob()?, "CephXTicketBlob")?
    };
    Ok(Ticket { service, session_key, blob, validity: validity.into() })
}

//! What monitors and services answer in cephx, sealed with the right keys where it is sealed.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use proto::cephx::crypto::{Usage, seal};
use proto::cephx::{Entity, Key, KeyType, Keyring, Login, Tickets};
use proto::denc::{Encode, Put};
use proto::msgr::auth::{ClientAuth, ConnectionMode, method};
use proto::types::{EntityType, Entropy, Instant, UTime};

use super::Pieces;

/// What the first byte of an input says.
pub(crate) mod how {
    /// Our key is of the newer type.
    pub(crate) const AES256K: u8 = 1;
    /// So are the tickets' session keys.
    pub(crate) const TICKET_AES256K: u8 = 2;
    /// Secure mode.
    pub(crate) const SECURE: u8 = 4;
    /// Payloads are taken as they are, instead of sealing their parts.
    pub(crate) const RAW: u8 = 8;
    /// What stands in the input is a keyring.
    pub(crate) const KEYRING: u8 = 16;
}

const GET_AUTH_TICKET: u16 = 0x0100;
const GET_SERVICE_TICKETS: u16 = 0x0200;
const CONFOUNDER: [u8; 16] = [7; 16];

/// No randomness.
pub(super) struct Zeros;

impl Entropy for Zeros {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

/// The key that everything is sealed with.
pub(crate) fn key(is_new: bool) -> Key {
    let kind = if is_new { KeyType::Aes256k } else { KeyType::Aes };
    Key::generate(kind, UTime::default(), &mut Zeros)
}

pub(super) fn run(input: &[u8]) {
    let mut pieces = Pieces(input);
    let how = pieces.byte();
    let has = |flag: u8| how & flag != 0;
    if has(how::KEYRING) {
        if let Ok(keyring) = Keyring::parse(&String::from_utf8_lossy(pieces.0)) {
            let _ = keyring.key(&Entity::client("admin"));
        }
        return;
    }
    let exchange = Exchange {
        ours: key(has(how::AES256K)),
        session: key(has(how::TICKET_AES256K)),
        mode: if has(how::SECURE) { ConnectionMode::Secure } else { ConnectionMode::Crc },
        is_raw: has(how::RAW),
    };
    exchange.login(&mut pieces);
    let Some(mut tickets) = exchange.good_login() else { return };
    exchange.service(&tickets, &mut pieces);
    exchange.renewal(&mut tickets, &mut pieces);
}

struct Exchange {
    ours: Key,
    session: Key,
    mode: ConnectionMode,
    is_raw: bool,
}

impl Exchange {
    fn tickets(&self) -> Tickets {
        Tickets::new(Arc::new(Login {
            entity: Entity::client("admin"),
            key: Some(self.ours.clone()),
            methods: vec![method::CEPHX],
            modes: vec![self.mode],
            services: vec![EntityType::OSD, EntityType::MON],
        }))
    }

    /// A login with answers from the input.
    fn login(&self, pieces: &mut Pieces<'_>) {
        let mut tickets = self.tickets();
        let (mut auth, outcome) = tickets.mon_auth(&mut Zeros);
        auth.request().unwrap();
        if auth.reply_more(pieces.piece()).is_err() {
            // Go on as if it had been right.
            let challenge = [1; 9];
            let _ = auth.reply_more(&challenge);
        }
        let payload = if self.is_raw {
            pieces.piece().to_vec()
        } else {
            let parts: [&[u8]; 5] = std::array::from_fn(|_| pieces.piece());
            self.auth_done(parts)
        };
        let done = auth.done(4100, self.mode, &payload);
        assert_eq!(done.is_ok(), outcome.get().is_some());
        if let Some(outcome) = outcome.get() {
            tickets.logged_in(Instant::default(), outcome);
            let _ = tickets.renewal_due();
            let _ = tickets.authorizer(EntityType::OSD, vec![self.mode], &mut Zeros);
        }
    }

    /// `AUTH_DONE` of: the AUTH ticket for us, its blob, the connection's secret, the OSD ticket for us, its blob.
    fn auth_done(&self, [ours, blob, secret, service, service_blob]: [&[u8]; 5]) -> Vec<u8> {
        let mut w = BytesMut::new();
        w.put_u16_le(GET_AUTH_TICKET);
        w.put_i32_le(0);
        self.put_tickets(&mut w, &self.ours, EntityType::AUTH, ours, blob);
        w.put_sized(|w| {
            w.put_blob(&seal(&self.session, Usage::ConnectionSecret, &CONFOUNDER, |w| {
                w.put_slice(secret);
            }));
        });
        w.put_sized(|w| {
            self.put_tickets(w, &self.session, EntityType::OSD, service, service_blob);
        });
        w.to_vec()
    }

    /// A list of one ticket.
    fn put_tickets(
        &self,
        w: &mut BytesMut,
        key: &Key,
        service: EntityType,
        ours: &[u8],
        blob: &[u8],
    ) {
        w.put_u8(1);
        w.put_u32_le(1);
        w.put_u32_le(service.0.into());
        w.put_u8(1);
        w.put_blob(&seal(key, Usage::TicketSessionKey, &CONFOUNDER, |w| w.put_slice(ours)));
        w.put_u8(0);
        w.put_blob(blob);
    }

    /// A login with all the right answers.
    fn good_login(&self) -> Option<Tickets> {
        let mut tickets = self.tickets();
        let (mut auth, outcome) = tickets.mon_auth(&mut Zeros);
        auth.request().ok()?;
        auth.reply_more(&[1; 9]).ok()?;
        let mut ours = BytesMut::new();
        ours.put_u8(1);
        self.session.encode(&mut ours);
        UTime { sec: 3600, nsec: 0 }.encode(&mut ours);
        let blob = [1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 8, 9];
        let mut secret = BytesMut::new();
        secret.put_blob(&[5; 64]);
        auth.done(4100, self.mode, &self.auth_done([&ours, &blob, &secret, &ours, &blob])).unwrap();
        tickets.logged_in(Instant::default(), outcome.get()?);
        Some(tickets)
    }

    /// A connection to an OSD with a good ticket.
    fn service(&self, tickets: &Tickets, pieces: &mut Pieces<'_>) {
        let mut auth =
            tickets.authorizer(EntityType::OSD, vec![self.mode], &mut Zeros).expect("a ticket");
        auth.request().unwrap();
        let sealed = |usage, piece: &[u8]| match self.is_raw {
            true => piece.to_vec(),
            false => seal(&self.session, usage, &CONFOUNDER, |w| w.put_slice(piece)),
        };
        let _ = auth.reply_more(&sealed(Usage::AuthorizeChallenge, pieces.piece()));
        let mut payload = BytesMut::new();
        payload.put_blob(&sealed(Usage::AuthorizeReply, pieces.piece()));
        let _ = auth.done(4100, self.mode, &payload);
    }

    /// Renewals of both kinds.
    fn renewal(&self, tickets: &mut Tickets, pieces: &mut Pieces<'_>) {
        let now = Instant(Duration::from_secs(3000));
        let result = i32::from(pieces.byte() as i8);
        if self.is_raw {
            let _ = tickets.renewal_reply(now, result, pieces.0);
        } else {
            let mut w = BytesMut::new();
            w.put_u16_le(GET_SERVICE_TICKETS);
            w.put_i32_le(0);
            let (ours, blob) = (pieces.piece(), pieces.piece());
            self.put_tickets(&mut w, &self.session, EntityType::MON, ours, blob);
            let _ = tickets.renewal_reply(now, result, &w);
            let parts: [&[u8]; 5] = std::array::from_fn(|_| pieces.piece());
            let _ = tickets.renewal_reply(now, 0, &self.auth_done(parts));
        }
        let _ = tickets.renewal_due();
        let _ = tickets.renewal_request(now, &mut Zeros);
    }
}

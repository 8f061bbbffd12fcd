//! The handshake, from the banner to an identified peer. Each state is consumed by the frame it expects and gives the
//! next; anything else ends the connection.
//!
//! ```text
//!   client expects                                          server expects
//!   Banner     ---- banner --------------------------------->  Banner
//!              <--------------------------------- banner ----
//!   Hello      ---- HELLO (what I am, your address) --------->  Hello
//!              <---------------------------------- HELLO ----
//!   Auth       ---- AUTH_REQUEST --------------------------->  Auth
//!     |  ^     <------------------------ AUTH_BAD_METHOD ----    |   (client tries another method, or ends)
//!     |  |     <------------------------ AUTH_REPLY_MORE ----    |
//!     |  +--   ---- AUTH_REQUEST_MORE ---------------------->    |
//!     v        <------------------------------ AUTH_DONE ----    v
//!                from here on encrypted, if the server chose secure mode
//!   Signature  ---- AUTH_SIGNATURE ------------------------->  Signature
//!              <------------------------- AUTH_SIGNATURE ----
//!   Ident      ---- CLIENT_IDENT --------------------------->  Ident
//!              <----------------- IDENT_MISSING_FEATURES ----        (the end for a client)
//!              <--------------------------- SERVER_IDENT ----
//!   Ready                                                      Ready
//! ```
//!
//! Sessions here are lossy, as those of Ceph's clients with monitors and OSDs are: they end with their connection. So a
//! client never sends `SESSION_RECONNECT`; a server answers one with `SESSION_RESET`, upon which a client starts over
//! with `CLIENT_IDENT`.

mod client;
mod server;

use bytes::{Buf, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

pub(super) use client::Client;
pub use client::ClientConfig;
pub(super) use server::Server;
pub use server::ServerConfig;

use super::Error;
use super::auth::{AuthError, ConnectionMode, Established};
use super::control::{BANNER, BANNER_V1, Banner, REVISION_1};
use super::frame::{Decoder, Frame, Tag};
use super::secure::Gcm;
use super::transmit::Transmit;
use crate::denc::{Encode, Reader, decode};
use crate::limits;
use crate::types::{EntityAddr, EntityAddrs, EntityName};

/// Who is on the other side, and what was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The peer.
    pub peer: EntityName,
    /// Where the peer says it is. A client's address is what blocklists name.
    pub peer_addrs: EntityAddrs,
    /// Where this side is: as a client, its configured address or, if that has no socket address, with the one that
    /// the peer saw. All connections of one client must use the same.
    pub local: EntityAddr,
    /// The client's global id.
    pub global_id: u64,
    /// What both sides can do ([`features`](super::features)).
    pub features: u64,
    /// How frames are protected.
    pub mode: ConnectionMode,
    /// Whether the session ends with the connection.
    pub lossy: bool,
}

/// Both directions of the connection, for the handshake to use.
pub(super) struct Wire<'a> {
    pub(super) rx: &'a mut Decoder,
    pub(super) tx: &'a mut Transmit,
}

/// Either side's handshake.
pub(super) enum Handshake {
    Client(Client),
    Server(Server),
}

/// Where a frame has led.
pub(super) enum Step<S> {
    Next(S),
    Done(Box<Session>),
}

impl<S> Step<S> {
    fn map<T>(self, next: impl FnOnce(S) -> T) -> Step<T> {
        match self {
            Self::Next(state) => Step::Next(next(state)),
            Self::Done(session) => Step::Done(session),
        }
    }
}

impl Handshake {
    /// The peer's banner has come.
    pub(super) fn banner(self, wire: &mut Wire<'_>) -> Result<Self, Error> {
        match self {
            Self::Client(client) => client.banner(wire).map(Self::Client),
            Self::Server(server) => server.banner(wire).map(Self::Server),
        }
    }

    /// A frame has come.
    pub(super) fn frame(self, frame: &Frame, wire: &mut Wire<'_>) -> Result<Step<Self>, Error> {
        match self {
            Self::Client(client) => client.frame(frame, wire).map(|step| step.map(Self::Client)),
            Self::Server(server) => server.frame(frame, wire).map(|step| step.map(Self::Server)),
        }
    }
}

impl Wire<'_> {
    fn send(&mut self, tag: Tag, payload: &dyn Encode) -> Result<(), Error> {
        self.tx.control(tag, payload)
    }

    /// Authentication is done: signs what was received (`AUTH_SIGNATURE`), encrypted if the mode is secure. Returns
    /// what the peer has to sign.
    fn sign(
        &mut self,
        established: &Established,
        mode: ConnectionMode,
        role: Role,
    ) -> Result<Expected, Error> {
        let received = self.rx.transcript.take().unwrap_or_default();
        let sent = self.tx.transcript.take().unwrap_or_default();
        if mode == ConnectionMode::Secure {
            let (rx, tx) = Gcm::pair(&established.connection_secret)
                .map_err(|_| AuthError::Misbehaved("secure mode without keys for it".to_owned()))?;
            let (rx, tx) = match role {
                Role::Client => (rx, tx),
                Role::Server => (tx, rx),
            };
            self.rx.secure(rx);
            self.tx.secure(tx);
        }
        let signature = signature(&established.session_key, &received);
        self.send(Tag::AuthSignature, &Signature(signature))?;
        Ok(Expected { key: established.session_key.clone(), sent })
    }
}

#[derive(Clone, Copy)]
enum Role {
    Client,
    Server,
}

struct Signature([u8; 32]);

impl Encode for Signature {
    fn encode(&self, w: &mut BytesMut) {
        w.extend_from_slice(&self.0);
    }
}

fn signature(key: &[u8], bytes: &[u8]) -> [u8; 32] {
    match hmac(key) {
        Some(hmac) => hmac.chain_update(bytes).finalize().into_bytes().into(),
        None => [0; 32],
    }
}

/// The signature's function; none where the method of authentication gives no key.
fn hmac(key: &[u8]) -> Option<Hmac<Sha256>> {
    // A key of any length is taken.
    if key.is_empty() { None } else { Hmac::new_from_slice(key).ok() }
}

/// The signature that the peer owes.
pub(super) struct Expected {
    key: Vec<u8>,
    sent: Vec<u8>,
}

impl Expected {
    fn check(self, frame: &Frame) -> Result<(), Error> {
        let signed = frame.first();
        let right = match hmac(&self.key) {
            Some(hmac) => hmac.chain_update(&self.sent).verify_slice(signed).is_ok(),
            None => signed == [0; 32],
        };
        if right {
            return Ok(());
        }
        Err(Error::misbehaved("the signature is wrong: somebody may have changed the handshake"))
    }
}

/// Takes the peer's banner from `input`. `None`: more bytes are needed.
pub(super) fn take_banner(input: &mut BytesMut, rx: &mut Decoder) -> Result<Option<()>, Error> {
    let magic = input.get(..BANNER.len().min(input.len())).unwrap_or_default();
    if !BANNER.starts_with(magic) {
        return Err(if magic.len() == BANNER_V1.len() && magic == BANNER_V1 {
            Error::incompatible(
                "it speaks messenger v1 only; messenger v2 is on another port, by default 3300",
            )
        } else if BANNER_V1.starts_with(magic) {
            return Ok(None);
        } else {
            Error::incompatible("it is no Ceph messenger")
        });
    }
    let Some([.., low, high]) = input.first_chunk::<10>() else { return Ok(None) };
    let len = usize::from(u16::from_le_bytes([*low, *high]));
    if len > limits::BANNER_PAYLOAD_BYTES {
        return Err(Error::misbehaved(format!("a banner of {len} bytes")));
    }
    if input.len() < 10 + len {
        return Ok(None);
    }
    let mut bytes = input.split_to(10 + len);
    if let Some(transcript) = &mut rx.transcript {
        transcript.extend_from_slice(&bytes);
    }
    bytes.advance(10);
    let banner: Banner = decode(&bytes, "banner")?;
    if banner.supported & REVISION_1 == 0 {
        return Err(Error::incompatible(
            "it speaks messenger 2.0; 2.1 is needed (Ceph 14.2.11, 15.2.5 or later)",
        ));
    }
    match banner.required & !REVISION_1 {
        0 => Ok(Some(())),
        missing => Err(Error::incompatible(format!("it requires messenger features {missing:#x}"))),
    }
}

fn unexpected<T>(frame: &Frame, state: &str) -> Result<T, Error> {
    Err(Error::misbehaved(format!("{:?} instead of {state}", frame.tag)))
}

/// A reader for a control frame's payload.
fn payload(frame: &Frame) -> Reader<'_> {
    Reader::new(frame.first(), "control frame")
}

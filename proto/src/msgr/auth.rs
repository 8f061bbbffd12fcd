//! The seam between the messenger's handshake and an authentication protocol (cephx or none).
//!
//! The messenger moves opaque payloads and learns in the end which keys the connection has. Both sides are here: the
//! client's for us, the server's for devcluster and the simulator.

use bytes::Bytes;
use thiserror::Error;

use crate::denc::DecodeError;

/// `CEPH_AUTH_*`: how an entity proves who it is.
pub mod method {
    /// Anybody may.
    pub const NONE: u32 = 1;
    /// Shared keys and tickets.
    pub const CEPHX: u32 = 2;
}

/// How frames are protected once both sides know each other (`CEPH_CON_MODE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionMode {
    /// Checksums only.
    Crc,
    /// AES-128-GCM.
    Secure,
}

impl ConnectionMode {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        match self {
            Self::Crc => 1,
            Self::Secure => 2,
        }
    }

    /// From the number on the wire.
    pub fn from_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Crc),
            2 => Some(Self::Secure),
            _ => None,
        }
    }
}

/// The first word of a client: `AUTH_REQUEST`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthRequest {
    /// One of [`method`].
    pub method: u32,
    /// The modes the client accepts, preferred first.
    pub modes: Vec<ConnectionMode>,
    /// For the method to read.
    pub payload: Bytes,
}

/// What both sides hold when authentication is done.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Established {
    /// Signs the handshake (`AUTH_SIGNATURE`); empty where the method has no key.
    pub session_key: Vec<u8>,
    /// Keys and nonces of secure mode: 64 bytes, or empty in crc mode.
    pub connection_secret: Vec<u8>,
}

/// Why authentication failed. Says who has to act.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The peer refuses: a wrong key, an unknown entity, a disallowed key type.
    #[error("{0}")]
    Refused(String),
    /// No method, mode or key type that both sides would use.
    #[error("{0}")]
    Incompatible(String),
    /// The peer does not follow the protocol, or is not who it should be.
    #[error("{0}")]
    Misbehaved(String),
    /// A payload that cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The client's side of authentication on one connection.
pub trait ClientAuth: Send {
    /// The first request.
    fn request(&mut self) -> Result<AuthRequest, AuthError>;

    /// `AUTH_BAD_METHOD`: another request, or the end, told in words that name what the server would allow. `result` is
    /// a negative errno.
    fn bad_method(
        &mut self,
        result: i32,
        allowed_methods: &[u32],
        allowed_modes: &[u32],
    ) -> Result<AuthRequest, AuthError>;

    /// `AUTH_REPLY_MORE`: the payload of the `AUTH_REQUEST_MORE` that answers it.
    fn reply_more(&mut self, payload: &[u8]) -> Result<Bytes, AuthError>;

    /// `AUTH_DONE`. Tickets that came with it stay with the implementation, whose owner takes them from there.
    fn done(
        &mut self,
        global_id: u64,
        mode: ConnectionMode,
        payload: &[u8],
    ) -> Result<Established, AuthError>;
}

/// What a server answers to one authentication payload.
#[derive(Clone, PartialEq, Eq)]
pub enum ServerStep {
    /// `AUTH_REPLY_MORE` with this payload.
    More(Bytes),
    /// `AUTH_DONE`: the client is who it says.
    Done {
        /// The client's global id.
        global_id: u64,
        /// The mode that the server chose.
        mode: ConnectionMode,
        /// For the client's method to read.
        payload: Bytes,
        /// The connection's keys.
        established: Established,
    },
    /// `AUTH_BAD_METHOD`.
    BadMethod {
        /// A negative errno.
        result: i32,
        /// Methods that would be taken.
        methods: Vec<u32>,
        /// Modes that would be taken.
        modes: Vec<ConnectionMode>,
    },
}

/// The server's side of authentication on one connection.
pub trait ServerAuth: Send {
    /// `AUTH_REQUEST`.
    fn request(&mut self, request: &AuthRequest) -> Result<ServerStep, AuthError>;

    /// `AUTH_REQUEST_MORE`.
    fn request_more(&mut self, payload: &[u8]) -> Result<ServerStep, AuthError>;
}

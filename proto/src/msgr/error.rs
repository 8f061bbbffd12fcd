//! Why a connection ended, told so that it is clear who has to act.

use thiserror::Error;

use super::auth::AuthError;
use crate::denc::DecodeError;

/// The end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer does not follow the protocol, is not who it should be, or bytes were damaged on the way.
    #[error("the peer broke the messenger protocol: {0}")]
    Misbehaved(String),
    /// The peer and this side have no way of talking that both know.
    #[error("the peer is not compatible: {0}")]
    Incompatible(String),
    /// Authentication failed.
    #[error("authentication failed: {0}")]
    Refused(#[from] AuthError),
    /// The peer does not answer, or asks to be called again later.
    #[error("connection lost: {0}")]
    Lost(&'static str),
}

impl Error {
    pub(super) fn misbehaved(what: impl Into<String>) -> Self {
        Self::Misbehaved(what.into())
    }

    pub(super) fn incompatible(what: impl Into<String>) -> Self {
        Self::Incompatible(what.into())
    }

    /// Whether another attempt could end otherwise with nothing changed on either side.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Misbehaved(_) | Self::Lost(_) => true,
            Self::Incompatible(_) => false,
            Self::Refused(error) => {
                matches!(error, AuthError::Misbehaved(_) | AuthError::Decode(_))
            }
        }
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::Misbehaved(error.to_string())
    }
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// As much as is allowed is queued already; send again when some of it has been transmitted.
    #[error("the send queue is full")]
    Full,
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
}

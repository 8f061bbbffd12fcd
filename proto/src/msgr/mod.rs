//! Messenger v2 (`doc/dev/msgr2.rst`): framing, handshake and session of one TCP connection.

pub mod auth;
pub mod message;

pub use message::{Header, Message, Outgoing};

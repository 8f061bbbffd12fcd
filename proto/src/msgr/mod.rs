//! Messenger v2 (`doc/dev/msgr2.rst`): framing, handshake and session of one TCP connection.
//!
//! [`Connection`] is the whole of it for others. Inside: `frame` (and `secure`) know the wire, `control` the payloads
//! of control frames, `handshake` who says what when, `transmit` what is still to be sent.

pub mod auth;
mod connection;
mod control;
mod error;
pub mod features;
mod frame;
mod handshake;
pub mod message;
mod secure;
#[cfg(test)]
mod tests;
mod transmit;

pub use connection::{Connection, Event, Timing};
pub use error::{Error, SendError};
pub use handshake::{ClientConfig, ServerConfig, Session};
pub use message::{Header, Message, Outgoing};

//! cephx: proving who we are, and tickets that prove it to others (`doc/dev/cephx_protocol.rst`).
//!
//! A client shares a [`Key`] with the monitors. It logs in to one of them ([`MonAuth`]): each side shows that it
//! knows the key, and the client gets an AUTH ticket, whose session key stands in for its own key from then on, and
//! a ticket for each kind of service. A [`Ticket`] is a blob that only the service can read, with a session key that
//! the client can read too; with it an [`Authorizer`] logs in to an OSD, which never speaks to a monitor about it.
//! [`Tickets`] holds them and says when to renew them.
//!
//! Keys come in two types, and every ticket may be of another one: see [`KeyType`].

mod client;
pub mod crypto;
mod entity;
mod key;
pub mod keyring;
mod krb5;
mod none;
pub mod server;
mod tickets;
mod wire;

pub use client::{Authorizer, LoggedIn, Login, MonAuth};
pub use entity::Entity;
pub use key::{Key, KeyError, KeyType};
pub use keyring::Keyring;
pub use none::NoneAuthorizer;
pub use tickets::{Ticket, Tickets};

#[cfg(test)]
pub(crate) mod tests;

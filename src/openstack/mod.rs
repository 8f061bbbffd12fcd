//! OpenStack as a client sees it: Keystone, which gives tokens and says where services are, and Cinder, which keeps
//! volumes and who has them attached. Data goes straight to Ceph and never comes by here.
//!
//! A [`Cloud`] says where it is and who we are, as OpenStack's own programs are told. A [`Session`] has a token of one
//! project and sends requests with it; [`Cinder`] has the calls. Everything is bounded: in time, in the size of an
//! answer, in the number of pages. Secrets are [`Secret`]s, which nothing prints.

mod answer;
mod catalog;
pub mod cinder;
mod clouds;
mod http;
mod identity;
mod secret;
mod session;
#[cfg(test)]
mod tests;

/// Said of what is late, or cannot be reached, so that nobody takes it for the Ceph cluster.
const LATE: &str = "OpenStack does not answer, or not in time";

pub use self::cinder::Cinder;
pub use self::clouds::{Auth, Cloud, Interface, Named};
pub use self::secret::Secret;
pub use self::session::Session;

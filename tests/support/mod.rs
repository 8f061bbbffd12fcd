//! What the live tests and `benches/compare` stand on: real Ceph clusters, the programs that judge us, and our own.
//!
//! Nothing here is skipped where a program is missing: a test that cannot run fails, and says what to install.

mod ceph;
mod run;
mod serve;

pub(crate) use self::ceph::{Auth, Ceph, Mode, Options, Store};
pub(crate) use self::run::run;

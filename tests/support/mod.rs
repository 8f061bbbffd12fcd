//! What the live tests and `benches/compare` stand on: real Ceph clusters, the programs that judge us, and our own.
//!
//! Nothing here is skipped where a program is missing: a test that cannot run fails, and says what to install.
#![allow(unused_imports, dead_code, reason = "the tests need parts of it, the bench others")]

mod ceph;
mod guest;
mod ledger;
mod netns;
mod run;
mod serve;

pub(crate) use self::ceph::{Auth, Ceph, Mode, Options, Release, Store};
pub(crate) use self::guest::{Guest, Machine};
pub(crate) use self::ledger::{Ledger, Worked};
pub(crate) use self::netns::Netns;
pub(crate) use self::run::{Ran, run, run_in};
pub(crate) use self::serve::{Serve, program};

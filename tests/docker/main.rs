//! The Docker volume plugin with a real dockerd and a real cluster. Each test is a story of one or two "hosts": a
//! plugin with its own state folder, and a dockerd with its own data folder and socket.

#[path = "../support/mod.rs"]
mod support;

mod away;
mod calls;
mod churn;
mod compose;
mod copies;
mod faults;
mod host;
mod hosts;
mod managed;
mod package;
mod protocol;
mod restarts;
mod secrets;
mod swarm;
mod times;
mod tls;
mod volumes;
mod ways;

use std::sync::OnceLock;

use support::{Ceph, Options};

/// A cluster of one memstore OSD, shared by all tests that don't break it.
fn one_osd() -> &'static Ceph {
    static CLUSTER: OnceLock<Ceph> = OnceLock::new();
    CLUSTER.get_or_init(|| Ceph::start(Options::default()))
}

/// Whether the long runs were asked for (`tests/run --full`).
fn full() -> bool {
    std::env::var_os("CEPH_NATIVE_FULL").is_some()
}

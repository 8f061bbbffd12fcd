//! The plugin with Cinder behind it: real Keystone, real Cinder, real Ceph. `tests/install --full` installs them;
//! without
//! `tests/run --full` there is nothing here to run.

#[path = "../support/mod.rs"]
mod support;

mod cloud;
mod crashes;
mod dockerd;
mod faults;
#[allow(dead_code, reason = "the tests of the plugin itself need all of it")]
#[path = "../docker/host.rs"]
mod host;
mod hosts;
mod kolla;
mod places;
mod swarm;
mod versions;
mod volumes;
mod whom;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cloud::OpenStack;
use support::{Ceph, Options};

/// The cloud that all tests share, one after the other; none in the ordinary run.
fn openstack() -> Option<(&'static OpenStack, MutexGuard<'static, ()>)> {
    static CLOUD: OnceLock<OpenStack> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    std::env::var_os("CEPH_NATIVE_FULL")?;
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let cloud = CLOUD.get_or_init(|| {
        // Those of a cluster that is never dropped go with its reaper.
        let ceph = Box::leak(Box::new(Ceph::start(Options::default())));
        OpenStack::start(ceph)
    });
    Some((cloud, turn))
}

//! The steps of what is done with a volume, by name: where a test can have the plugin killed.

/// Names the step at which this process is to be killed, as if by `kill -9`.
const VARIABLE: &str = "CEPH_NATIVE_KILL_AT";

/// Every step with Cinder, in order: making a volume, mounting it, unmounting it, removing it.
pub const CINDER: &[&str] = &[
    "create: asked Cinder",
    "create: available",
    "create: noted",
    "create: attached",
    "create: described",
    "create: formatted",
    "create: detached",
    "mount: locked",
    "mount: noted",
    "mount: attached",
    "mount: mapped",
    "mount: mounted",
    "mount: completed",
    "unmount: cleaned",
    "unmount: detached",
    "unmount: unlocked",
    "remove: asked Cinder",
    "remove: gone",
];

/// A step was done.
pub(crate) fn done(step: &str) {
    debug_assert!(CINDER.contains(&step), "{step} is not listed");
    tracing::debug!(step, "done");
    if std::env::var(VARIABLE).is_ok_and(|at| at == step) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

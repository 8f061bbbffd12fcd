//! Sockets that systemd opened before this process was started (`sd_listen_fds(3)`).

use std::os::fd::{FromRawFd as _, OwnedFd};

/// The first of them.
const FIRST: i32 = 3;

/// Takes the sockets that were handed over to this process: once, since they are closed with what they become.
pub fn sockets() -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    // They may be meant for a process that ran this one.
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(16) as i32;
    let take = |fd| {
        #[allow(
            unsafe_code,
            reason = "systemd says that these are open, and nothing else owns them"
        )]
        // SAFETY: they are inherited, open, and owned by nobody: this is the only place that takes them.
        unsafe {
            OwnedFd::from_raw_fd(fd)
        }
    };
    (FIRST..FIRST + count).map(take).collect()
}

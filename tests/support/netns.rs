//! A network of its own for our program: one cable to this host, where the cluster is, and a firewall to break it.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use super::run::run;

/// The network. It goes when this is dropped, or when the next one is made after this process was killed.
pub(crate) struct Netns {
    name: String,
    /// This host's address on the cable.
    pub(crate) host: Ipv4Addr,
}

impl Netns {
    /// Takes root. The address is one of 10.91.0.0/16, of no other network of these tests.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        sweep();
        let pid = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let subnet = (pid.wrapping_mul(4) + number) % (64 * 256);
        let address = |last: u32| Ipv4Addr::from((10 << 24 | 91 << 16 | subnet << 2) + last);
        let name = format!("cn-{pid}-{number}");
        let netns = Self { name: name.clone(), host: address(1) };
        let (host, ours) = (format!("{}/30", address(1)), format!("{}/30", address(2)));
        // Interfaces have 15 characters.
        let cable = format!("cn{subnet}");
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "cable", "netns", &name]);
        ip(&["addr", "add", &host, "dev", &cable]);
        ip(&["link", "set", &cable, "up"]);
        netns.ip(&["addr", "add", &ours, "dev", "cable"]);
        netns.ip(&["link", "set", "cable", "up"]);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    /// What comes before a program to have it run in there.
    pub(crate) fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// `ip` in there.
    #[track_caller]
    pub(crate) fn ip(&self, args: &[&str]) {
        ip(&[&["-n", self.name.as_str()], args].concat());
    }

    /// A rule of the firewall in there, such as `-A INPUT -j DROP`.
    #[track_caller]
    pub(crate) fn iptables(&self, rule: &str) {
        let words: Vec<_> = rule.split(' ').collect();
        run("ip", &[&self.prefix()[1..], &["iptables", "-w"], &words].concat()).ok();
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.name]);
    }
}

/// Removes networks of processes that are gone.
fn sweep() {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix("cn-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}

#[track_caller]
fn ip(args: &[&str]) {
    run("ip", args).ok();
}

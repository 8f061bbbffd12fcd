//! How long Docker waits for the plugin: what `docs/performance.md` has, with bounds for machines that have else to do.

use std::time::{Duration, Instant};

use crate::host::Host;
use crate::{full, one_osd};

fn rounds() -> u32 {
    if full() { 8 } else { 2 }
}

/// The quickest of some: what is measured is the plugin, not what else this machine does.
fn quickest(mut act: impl FnMut(u32)) -> Duration {
    let timed = (0..rounds()).map(|round| {
        let begun = Instant::now();
        act(round);
        begun.elapsed()
    });
    timed.min().expect("some")
}

/// Run with `--nocapture`, it shows its figures.
#[test]
fn docker_does_not_wait_long_for_the_plugin() {
    let mut host = Host::start(one_osd(), "times", "");
    host.start_dockerd(&[]);
    for fstype in ["ext4", "xfs", "btrfs"] {
        let fstype = format!("fstype={fstype}");
        let created = quickest(|round| {
            host.create(&format!("time-{fstype}-{round}"), &["size=10", &fstype]);
        });
        println!("create of 10 GiB, {fstype}: {created:.2?}");
        assert!(created < Duration::from_millis(5 * 1500), "{fstype}: {created:?}");
    }
    host.docker(&["volume", "create", "time-local"]);
    let read = |volume: &str| {
        let mount = format!("type=volume,src={volume},dst=/v");
        let run = ["run", "--rm", "--network=none", "--mount", &mount, "bb", "cat", "/v/file"];
        assert_eq!(host.docker(&run), "there");
    };
    let volume = "time-fstype=ext4-0";
    for volume in ["time-local", volume] {
        let mount = format!("type=volume,src={volume},dst=/v");
        let line = "echo there > /v/file";
        host.docker(&["run", "--rm", "--network=none", "--mount", &mount, "bb", "sh", "-c", line]);
    }
    let (local, ours) = (quickest(|_| read("time-local")), quickest(|_| read(volume)));
    println!("docker run, read, end: {ours:.2?}; with a folder of Docker's own: {local:.2?}");
    let mounted = (0..rounds()).map(|_| {
        let begun = Instant::now();
        host.mount(volume, "x");
        let mounted = begun.elapsed();
        host.unmount(volume, "x");
        mounted
    });
    let mounted = mounted.min().expect("some");
    println!("VolumeDriver.Mount: {mounted:.2?}");
    assert!(mounted < Duration::from_millis(5 * 300), "{mounted:?}");
    for fstype in ["ext4", "xfs", "btrfs"] {
        for round in 0..rounds() {
            host.docker(&["volume", "rm", &format!("time-fstype={fstype}-{round}")]);
        }
    }
}

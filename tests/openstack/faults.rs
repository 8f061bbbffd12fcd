//! What Docker's users see when a part of the cloud is away, and after how many seconds: docs/openstack.md has a table.

use std::time::{Duration, Instant};

use crate::host::{DRIVER, Host, eventually, signal};
use crate::openstack;
use crate::support::Ran;
use crate::volumes::{ALICE, only, settings};

/// What the settings give a call.
const WORK: Duration = Duration::from_secs(30);

/// What a busy machine may add to that.
const SLACK: Duration = Duration::from_secs(30);

/// Does something, and says how long it took and what was said.
fn timed(fault: &str, what: &str, limit: Duration, done: impl FnOnce() -> Ran) -> Ran {
    let begun = Instant::now();
    let ran = done();
    let took = begun.elapsed();
    let said = ran.err.lines().next().unwrap_or_default().to_owned();
    println!("| {fault} | {what} | {:.1} s | {} {said} |", took.as_secs_f64(), ran.code);
    assert!(took < limit + SLACK, "{fault}: {what} took {took:?}: {ran}");
    ran
}

#[test]
fn a_part_of_the_cloud_that_is_away_is_told_in_bounded_time() {
    let Some((cloud, _turn)) = openstack() else { return };
    let settings = settings(cloud, "")
        .replace("work-seconds = 120", "work-seconds = 30")
        .replace("answer-ms = 10000", "answer-ms = 2000");
    let mut host = Host::start(cloud.ceph, "faults", &settings);
    host.start_dockerd(&[]);
    for name in ["idle", "used"] {
        host.create(name, &[]);
    }
    let mount = |volume: &str| format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
    let used = mount("used");
    let run = ["run", "-d", "--name", "user", "--network=none", "--mount", &used];
    host.docker(&[&run[..], &["bb", "sleep", "100000"]].concat());

    let osd = cloud.ceph.pid("osd.0");
    let quick = Duration::from_secs(5);
    for fault in ["Keystone down", "Cinder down", "Cinder hangs", "OSD hangs"] {
        match fault {
            "Keystone down" => cloud.kill_service("keystone"),
            "Cinder down" => cloud.kill_service("cinder"),
            "Cinder hangs" => cloud.signal_service("cinder", "STOP"),
            _ => signal("STOP", osd),
        }
        let name = fault.to_lowercase().replace(' ', "-");
        let create = ["volume", "create", "--driver", DRIVER, &name];
        let said = timed(fault, "volume create", WORK, || host.try_docker(&create)).refused();
        let words = match fault {
            "OSD hangs" => vec!["creating volume"],
            _ => vec!["Cinder", "Keystone"],
        };
        assert!(words.iter().any(|word| said.contains(word)), "{fault}: {said}");
        assert!(fault == "OSD hangs" || !said.contains("the cluster"), "{fault}: {said}");
        let line = "cat /v/file; echo x > /v/file";
        let said = timed(fault, "run, with a volume that is not mounted", WORK, || {
            host.try_in_container("idle", line)
        });
        assert!(said.code != 0, "{fault}: {said}");
        timed(fault, "volume ls", quick, || host.try_docker(&["volume", "ls"])).ok();
        timed(fault, "volume inspect", quick, || host.try_docker(&["volume", "inspect", "used"]))
            .ok();
        if fault != "OSD hangs" {
            let write = ["exec", "user", "sh", "-c", "echo x > /v/file; sync -d /v/file"];
            timed(fault, "a write in a container", quick, || host.try_docker(&write)).ok();
        }
        match fault {
            "Keystone down" => cloud.start_service("keystone"),
            "Cinder down" => cloud.start_service("cinder"),
            "Cinder hangs" => cloud.signal_service("cinder", "CONT"),
            _ => signal("CONT", osd),
        }
        // All is well again, and what was begun is taken over: there is one of it.
        eventually("it can be made", || host.try_docker(&create).code == 0);
        eventually("it is made", || only(cloud, ALICE, &name)["status"] == "available");
        host.in_container("idle", "echo x > /v/file");
        host.in_container(&name, "echo x > /v/file");
        host.docker(&["volume", "rm", &name]);
        assert!(cloud.volumes(ALICE, &name).is_empty(), "{name}");
    }
    host.docker(&["rm", "-f", "user"]);
    for name in ["idle", "used"] {
        eventually("it can be removed", || host.try_docker(&["volume", "rm", name]).code == 0);
    }
    assert_eq!(cloud.ceph.rbd(&["ls", "volumes"]).trim(), "");
}

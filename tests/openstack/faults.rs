//! What Docker's users see when a part of the cloud is away, and after how many seconds: docs/openstack.md has it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::cloud::OpenStack;
use crate::dockerd::nothing_is_left;
use crate::host::{DRIVER, Host, eventually, signal};
use crate::openstack;
use crate::support::Ran;
use crate::volumes::{ALICE, create, only, settings};

/// What a busy machine may add to a limit.
const SLACK: Duration = Duration::from_secs(20);

/// A part that is away.
struct Fault {
    name: &'static str,
    /// The service; Ceph's if it is none of OpenStack's.
    of: &'static str,
    how: How,
    /// After how many seconds at most making a volume fails, and which words it says one of.
    create: (u64, &'static [&'static str]),
    /// After how many seconds at most a container with a volume that is not mounted fails; none if it runs.
    run: Option<u64>,
}

#[derive(Clone, Copy, PartialEq)]
enum How {
    Down,
    Hangs,
}
use How::{Down, Hangs};

const KEYSTONE_DOWN: Fault = Fault {
    name: "Keystone down",
    of: "keystone",
    how: Down,
    create: (10, &["Keystone", "503"]),
    run: Some(20),
};

const OSD_HANGS: Fault = Fault {
    name: "OSD hangs",
    of: "osd",
    how: Hangs,
    create: (35, &["given up after 30 s (the cluster does not answer"]),
    run: Some(40),
};

/// With Cinder as one process.
const ONE_PROCESS: &[Fault] = &[
    KEYSTONE_DOWN,
    Fault { name: "Cinder down", of: "cinder", how: Down, create: (5, &["Cinder"]), run: Some(5) },
    Fault {
        name: "Cinder hangs",
        of: "cinder",
        how: Hangs,
        create: (25, &["Cinder: ", "no answer within 20s"]),
        run: Some(35),
    },
    OSD_HANGS,
];

/// With its daemons behind RabbitMQ.
const BEHIND_BROKER: &[Fault] = &[
    KEYSTONE_DOWN,
    Fault { name: "API down", of: "api", how: Down, create: (5, &["Cinder"]), run: Some(5) },
    Fault {
        name: "scheduler down",
        of: "scheduler",
        how: Down,
        create: (35, &["is still creating"]),
        run: None,
    },
    Fault {
        name: "volume service down",
        of: "volume",
        how: Down,
        create: (35, &["is still creating"]),
        run: Some(40),
    },
    Fault {
        name: "RabbitMQ down",
        of: "rabbitmq",
        how: Down,
        create: (35, &["no answer within 20s"]),
        run: Some(40),
    },
    OSD_HANGS,
];

impl Fault {
    fn begin<'a>(&'a self, cloud: &'a OpenStack) -> Away<'a> {
        match self.how {
            Hangs if self.of == "osd" => signal("STOP", cloud.ceph.pid("osd.0")),
            Hangs => cloud.signal_service(self.of, "STOP"),
            Down => cloud.kill_service(self.of),
        }
        Away { fault: self, cloud }
    }
}

/// What is away until this is dropped.
struct Away<'a> {
    fault: &'a Fault,
    cloud: &'a OpenStack,
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        let of = self.fault.of;
        match self.fault.how {
            Hangs if of == "osd" => signal("CONT", self.cloud.ceph.pid("osd.0")),
            Hangs => self.cloud.signal_service(of, "CONT"),
            Down => self.cloud.start_service(of),
        }
    }
}

/// Does something, and says how long it took and what was said.
#[track_caller]
fn timed(fault: &str, what: &str, limit: u64, done: impl FnOnce() -> Ran) -> Ran {
    let begun = Instant::now();
    let ran = done();
    let took = begun.elapsed();
    let said = ran.err.lines().next().unwrap_or_default().to_owned();
    println!("| {fault} | {what} | {:.1} s | {} {said} |", took.as_secs_f64(), ran.code);
    let limit = Duration::from_secs(limit) + SLACK;
    assert!(took < limit, "{fault}: {what} took {took:?}: {ran}");
    ran
}

fn are_told_in_bounded_time(cloud: &OpenStack, name: &str, faults: &[Fault]) {
    let settings = settings(cloud, "")
        .replace("work-seconds = 120", "work-seconds = 30")
        .replace("answer-ms = 10000", "answer-ms = 2000");
    let mut host = Host::start(cloud.ceph, name, &settings);
    host.start_dockerd(&[]);
    for name in ["idle", "used"] {
        host.create(name, &[]);
    }
    // Of which Cinder knows nothing.
    host.create("plain", &["backend=rbd"]);
    let mount = |volume: &str| format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
    let used = mount("used");
    let run = ["run", "-d", "--name", "user", "--network=none", "--mount", &used];
    host.docker(&[&run[..], &["bb", "sleep", "100000"]].concat());

    for fault in faults {
        let ceph = fault.of == "osd";
        let away = fault.begin(cloud);
        let name = fault.name.to_lowercase().replace(' ', "-");
        let create = ["volume", "create", "--driver", DRIVER, &name];
        let (limit, words) = fault.create;
        let said = timed(fault.name, "volume create", limit, || host.try_docker(&create)).refused();
        assert!(words.iter().any(|word| said.contains(word)), "{}: {said}", fault.name);
        assert!(ceph || !said.contains("the cluster"), "{}: {said}", fault.name);
        let line = "cat /v/file; echo x > /v/file";
        let limit = fault.run.unwrap_or(15);
        let ran = timed(fault.name, "run with a volume that is not mounted", limit, || {
            host.try_in_container("idle", line)
        });
        assert_eq!(ran.code == 0, fault.run.is_none(), "{}: {ran}", fault.name);
        timed(fault.name, "volume ls", 5, || host.try_docker(&["volume", "ls"])).ok();
        let inspect = ["volume", "inspect", "used"];
        timed(fault.name, "volume inspect", 5, || host.try_docker(&inspect)).ok();
        let write = || {
            let write = ["exec", "user", "sh", "-c", "echo x > /v/file; sync -d /v/file"];
            host.try_docker(&write)
        };
        if !ceph {
            let line = "echo x > /v/file";
            let run = || host.try_in_container("plain", line);
            timed(fault.name, "run with a volume that is not Cinder's", 10, run).ok();
        }
        if ceph {
            std::thread::scope(|scope| {
                let writing = scope.spawn(write);
                std::thread::sleep(Duration::from_secs(3));
                assert!(!writing.is_finished(), "{}: something is written", fault.name);
                drop(away);
                timed(fault.name, "a write, once it is back", 5, || writing.join().unwrap()).ok();
            });
        } else {
            timed(fault.name, "a write in a container", 5, write).ok();
            drop(away);
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
    for name in ["idle", "used", "plain"] {
        eventually("it can be removed", || host.try_docker(&["volume", "rm", name]).code == 0);
    }
    nothing_is_left(cloud);
}

#[test]
fn parts_of_a_cloud_that_are_away_are_told_in_bounded_time() {
    let Some((cloud, _turn)) = openstack() else { return };
    are_told_in_bounded_time(cloud, "faults", ONE_PROCESS);
}

#[test]
fn daemons_behind_a_broker_that_are_away_are_told_in_bounded_time() {
    let Some((cloud, _turn)) = openstack() else { return };
    let _daemons = cloud.behind_broker();
    are_told_in_bounded_time(cloud, "broker", BEHIND_BROKER);
}

#[test]
fn a_plugin_that_starts_while_cinder_hangs_serves_what_is_here() {
    let Some((cloud, _turn)) = openstack() else { return };
    let settings = settings(cloud, "").replace("answer-ms = 10000", "answer-ms = 2000");
    let mut host = Host::start(cloud.ceph, "starts", &settings);
    let plain = create("plain", &[("backend", "rbd")]);
    host.called("VolumeDriver.Create", &plain);
    let names = ["has-1", "has-2"];
    for name in names {
        host.called("VolumeDriver.Create", &create(name, &[]));
        host.mount(name, "1");
    }
    host.kill_plugin();
    let hangs = ONE_PROCESS.iter().find(|fault| fault.name == "Cinder hangs").unwrap();
    let away = hangs.begin(cloud);
    host.start_plugin();
    for name in ["plain", "has-1", "has-2"] {
        let begun = Instant::now();
        host.mount(name, "2");
        host.unmount(name, "2");
        // One look at Cinder of 5 s, on a busy machine; not what it gives a request, which is 20 s.
        assert!(begun.elapsed() < Duration::from_secs(15), "{name}: {:?}", begun.elapsed());
    }
    drop(away);
    for name in names {
        host.unmount(name, "1");
        eventually("Cinder is told", || only(cloud, ALICE, name)["status"] == "available");
    }
    for name in ["plain", "has-1", "has-2"] {
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
    nothing_is_left(cloud);
}

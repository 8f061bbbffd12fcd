//! The files under `deploy/docker`, as people use them: only images, networks and sizes are others here.

use std::fs;
use std::path::Path;

use crate::host::{DRIVER, Host, eventually};
use crate::one_osd;
use crate::support::{Ran, run, run_in};

/// One of the files with what must be otherwise here; its path.
fn adapted(host: &Host, name: &str, changes: &[(&str, &str)]) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docker");
    let mut text = fs::read_to_string(format!("{folder}/{name}")).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{name}: no {from:?} in there");
        text = text.replace(from, to);
    }
    let path = host.dir.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn the_compose_file_keeps_what_its_service_writes() {
    let mut host = Host::start(one_osd(), "compose", "");
    host.start_dockerd(&[]);
    // There is neither postgres here nor a network.
    // Not all that this machine has mounted: another test's cluster may be frozen.
    let log = "/var/lib/postgresql/data/log";
    let command = format!("echo up >> {log}; sync -d {log}; exec sleep 1000");
    let service = format!("bb\n    network_mode: none\n    command: [sh, -c, {command:?}]\n");
    let changes = [("postgres:16\n", service.as_str()), ("size: \"10\"", "size: 128M")];
    let file = adapted(&host, "compose.yaml", &changes);
    let compose = |args: &[&str]| -> Ran {
        let socket = format!("unix://{}/docker.sock", host.dir.display());
        let with = ["-H", &socket, "-p", "shop", "-f", &file];
        let password = [("POSTGRES_PASSWORD", Path::new("x"))];
        run_in("docker-compose", &[&with[..], args].concat(), &password, 240)
    };
    let log = host.dir.join("state/mounts/shop_data/log");
    let log = || fs::read_to_string(&log).unwrap_or_default();
    for times in 1..=2 {
        compose(&["up", "-d"]).ok();
        eventually("the service writes", || log() == "up\n".repeat(times));
        compose(&["down", "-t", "1"]).ok();
        eventually("nothing is mounted", || host.mounts().is_empty());
    }
    let volume = host.inspect("shop_data");
    assert_eq!(volume["Driver"], DRIVER);
    assert_eq!(volume["Status"]["size"], 128 << 20, "{volume}");
    compose(&["down", "--volumes"]).ok();
    assert!(!host.docker(&["volume", "ls", "-q"]).contains("shop_data"));
    assert!(!one_osd().rbd(&["ls"]).contains("shop_data"));
}

#[test]
fn the_stack_file_gives_each_task_a_volume() {
    let mut host = Host::start(one_osd(), "stack", "");
    host.start_dockerd(&[]);
    host.docker(&["volume", "ls"]);
    let init = ["swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0"];
    host.docker(&init);
    let changes = [
        ("busybox\n", "bb\n    stop_grace_period: 1s\n    networks: [host]\n"),
        ("\nvolumes:", "\nnetworks:\n  host:\n    external: true\n    name: host\nvolumes:"),
        ("size: \"10\"", "size: 128M"),
    ];
    let file = adapted(&host, "stack.yaml", &changes);
    host.docker(&["stack", "deploy", "-c", &file, "day"]);
    let tasks = |slot: u32| {
        let file = host.dir.join(format!("state/mounts/day_worker.{slot}/tasks"));
        fs::read_to_string(file).unwrap_or_default().lines().count()
    };
    eventually("three tasks run", || (1..=3).all(|slot| tasks(slot) == 1));
    let update = ["service", "update", "--detach", "--force", "--update-parallelism", "3"];
    host.docker(&[&update[..], &["day_worker"]].concat());
    eventually("successors have what they had", || (1..=3).all(|slot| tasks(slot) == 2));
    host.docker(&["stack", "rm", "day"]);
    eventually("none is left", || host.mounts().is_empty() && host.mappings().is_empty());
    for slot in 1..=3 {
        let name = format!("day_worker.{slot}");
        eventually("it can be removed", || host.try_docker(&["volume", "rm", &name]).code == 0);
    }
    // As the file says, they may be wanted back.
    let trash = one_osd().rbd(&["trash", "ls"]);
    assert_eq!(trash.matches("day_worker.").count(), 3, "{trash}");
}

#[test]
fn systemd_understands_the_units() {
    let units = ["ceph-native.service", "ceph-native.socket"].map(|unit| format!("systemd/{unit}"));
    let others = ["rbd-nbd-rs-attach.service", "rbdmap-rs.service"];
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    let others = others.map(str::to_owned);
    let paths = units.iter().chain(&others).map(|unit| format!("{deploy}/{unit}"));
    let mut args = vec!["verify".to_owned()];
    args.extend(paths);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = run("systemd-analyze", &args).err;
    // Programs are installed where units are, and not here; so it has read those.
    let missing = "is not executable: No such file or directory";
    assert!(said.contains("ceph-native.service: Command /usr/bin/ceph-native "), "{said}");
    let wrong: Vec<_> = said.lines().filter(|line| !line.ends_with(missing)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

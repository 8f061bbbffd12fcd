//! A cluster that fills up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use nbd::device::Errno;

use super::{export, wait_until};
use crate::support::{Ceph, Ledger, Options, Release, Serve};
use crate::{releases, run};

/// A cluster whose OSD takes so few bytes of its 4 GiB that one of two images fills it.
fn small(release: Release) -> Ceph {
    let ceph = Ceph::start(Options { release, ..Options::default() });
    for (ratio, value) in [("nearfull", "0.02"), ("backfillfull", "0.025"), ("full", "0.03")] {
        ceph.ceph(&["osd", &format!("set-{ratio}-ratio"), value]);
    }
    ceph.create_pool("ballast");
    for (image, size) in [("image", "32M"), ("ballast/image", "160M")] {
        ceph.rbd(&["create", "--size", size, "--image-feature", "layering", image]);
    }
    ceph
}

/// Even `rbd rm` finds no space on a full cluster.
fn make_room(ceph: &Ceph) {
    let sure = "--yes-i-really-really-mean-it";
    ceph.ceph(&["osd", "pool", "delete", "ballast", "ballast", sure]);
}

fn is_full(ceph: &Ceph) -> bool {
    let pools = ceph.run("ceph", &["osd", "pool", "ls", "detail", "--format", "json"]).json();
    let pools = pools.as_array().unwrap();
    pools.iter().any(|pool| pool["flags_names"].as_str().unwrap().split(',').any(|f| f == "full"))
}

fn fill(ceph: &Ceph) {
    let much = ["--io-type", "write", "--io-size", "4M", "--io-total", "160M"];
    ceph.rbd(&[&["bench"], &much[..], &["ballast/image"]].concat());
    wait_until("the cluster is full", || is_full(ceph));
}

#[track_caller]
fn qemu_io(serve: &Serve, what: &str) {
    run("qemu-io", &["-f", "raw", "-c", what, &serve.uri("rbd/image")]).ok();
}

#[test]
fn writes_wait_for_space_and_reads_do_not() {
    for &release in releases() {
        writes_wait(&small(release));
    }
}

fn writes_wait(ceph: &Ceph) {
    let serve = ceph.serve(&["rbd/image"]);
    qemu_io(&serve, "write -P 7 0 1M");
    fill(ceph);
    let over = AtomicBool::new(false);
    scope(|scope| {
        let writer = scope.spawn(|| {
            qemu_io(&serve, "write -P 8 1M 1M");
            over.store(true, Ordering::Relaxed);
        });
        sleep(Duration::from_secs(2));
        // Whether or not our map has it yet, nothing is acknowledged that the OSD did not take.
        qemu_io(&serve, "read -P 7 0 1M");
        sleep(Duration::from_secs(2));
        assert!(!over.load(Ordering::Relaxed), "it was written to a full cluster\n{}", serve.log());
        make_room(ceph);
        writer.join().unwrap();
    });
    qemu_io(&serve, "read -P 8 1M 1M");
    assert!(!is_full(ceph));
}

#[test]
fn writes_fail_for_want_of_space_where_that_is_wanted() {
    for &release in releases() {
        writes_fail(&small(release));
    }
}

fn writes_fail(ceph: &Ceph) {
    let serve = ceph.serve(&["rbd/image", "--abort-on-full"]);
    fill(ceph);
    let mut ledger = Ledger::new(32 << 20);
    let until = Instant::now() + Duration::from_secs(6);
    let worked = ledger.work(&serve.socket, "rbd/image", || Instant::now() > until);
    assert!(!worked.errors.is_empty(), "writes do not fail\n{}", serve.log());
    assert!(worked.errors.iter().all(|(_, errno)| *errno == Errno::ENOSPC));
    assert!(worked.done > 0, "reads go on");
    assert!(serve.log().contains("is full"), "{}", serve.log());
    make_room(ceph);
    wait_until("there is space", || !is_full(ceph));
    // The map that says so may take a moment to reach us.
    let until = Instant::now() + Duration::from_secs(6);
    let worked = ledger.work(&serve.socket, "rbd/image", || Instant::now() > until);
    let late = until - Duration::from_secs(3);
    assert!(worked.errors.iter().all(|(when, _)| *when < late), "{} errors", worked.errors.len());
    assert!(worked.done > 100);
    ledger.check(&mut export(ceph, "image").as_slice());
}

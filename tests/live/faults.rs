//! What dies comes back, and nothing that was acknowledged is lost. Each test has a cluster of its own to break.

mod fencing;
mod full;
mod killed;
mod memory;
mod network;
mod thrash;
mod upgrade;

use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::support::{Ceph, Options, Serve, Store};
use crate::{MIXED_SIZES, fio_report};

#[test]
fn an_osd_and_a_monitor_die_and_return_under_load() {
    let ceph =
        Ceph::start(Options { osds: 3, mons: 3, store: Store::Bluestore, ..Options::default() });
    under_load(&ceph, || {
        sleep(Duration::from_secs(3));
        ceph.kill_osd(1);
        sleep(Duration::from_secs(3));
        ceph.kill_mon(0);
        sleep(Duration::from_secs(4));
        ceph.start_osd(1);
        sleep(Duration::from_secs(2));
        ceph.start_mon(0);
    });
}

#[test]
fn io_waits_for_the_only_osd() {
    let ceph = Ceph::start(Options { store: Store::Bluestore, ..Options::default() });
    under_load(&ceph, || {
        sleep(Duration::from_secs(3));
        ceph.kill_osd(0);
        sleep(Duration::from_secs(5));
        ceph.start_osd(0);
    });
}

#[test]
fn one_monitor_after_the_other_goes() {
    let ceph = Ceph::start(Options { mons: 3, ..Options::default() });
    under_load(&ceph, || {
        for i in 0..3 {
            sleep(Duration::from_secs(2));
            ceph.kill_mon(i);
            sleep(Duration::from_secs(3));
            ceph.start_mon(i);
        }
    });
}

/// What librbd reads of an image.
#[track_caller]
fn export(ceph: &Ceph, image: &str) -> Vec<u8> {
    let ran = ceph.run("rbd", &["export", "--no-progress", image, "-"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran.out
}

/// Waits until something is so.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain: {what}");
        sleep(Duration::from_millis(50));
    }
}

/// Runs `faults` while fio writes through an export, then lets fio verify all it wrote, and librbd agree.
fn under_load(ceph: &Ceph, faults: impl FnOnce()) {
    ceph.rbd(&["create", "--size", "128M", "--image-feature", "layering", "image"]);
    let mut serve = ceph.serve(&["rbd/image"]);
    let uri = serve.uri("rbd/image");
    scope(|scope| {
        let fio = scope.spawn(|| fio(ceph, &serve));
        faults();
        fio.join().unwrap();
    });
    serve.assert_running();
    super::data::assert_same_for_librbd_and_nbd(ceph, "image", &uri);
}

/// Four jobs that write for about twenty seconds, then verify: longer than any of the faults.
#[track_caller]
fn fio(ceph: &Ceph, serve: &Serve) {
    let uri = format!("--uri={}", serve.uri("rbd/image"));
    let args =
        ["--name=faults", "--ioengine=nbd", &uri, "--rw=randwrite", MIXED_SIZES, "--iodepth=8"];
    let jobs =
        ["--numjobs=4", "--size=32M", "--offset_increment=32M", "--rate=1600k", "--end_fsync=1"];
    let verify = [
        "--verify=crc32c",
        "--verify_state_save=0",
        "--verify_fatal=1",
        "--do_verify=1",
        "--group_reporting=1",
    ];
    let ran = ceph.run("fio", &[&args[..], &jobs, &verify, &["--output-format=json"]].concat());
    let message = ran.to_string();
    let report = fio_report(&ran.ok());
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{message}");
    assert_eq!(
        job["write"]["total_ios"], job["read"]["total_ios"],
        "not all was verified: {message}"
    );
    // The load must have been there while things died.
    assert!(job["write"]["runtime"].as_u64() > Some(12_000), "{message}");
}

//! A cluster whose daemons go to the next release one at a time, with an image in use throughout.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use super::{export, wait_until};
use crate::full;
use crate::load::Over;
use crate::support::{Ceph, Ledger, Options, Release, Store};

/// So many monitors and OSDs. Where they only restart, few are enough.
fn size() -> (u32, u32) {
    if full() { (3, 3) } else { (1, 2) }
}

#[test]
fn an_image_is_used_while_every_daemon_goes_to_the_next_release() {
    // Without those at hand, every daemon is restarted as what it is.
    let releases: &[_] =
        if full() { &[Release::Reef, Release::Tentacle] } else { &[Release::Pacific] };
    let (mons, osds) = size();
    let ceph = Ceph::start(Options { osds, mons, store: Store::Bluestore, ..Options::default() });
    ceph.rbd(&["create", "--size", "32M", "--image-feature", "layering", "image"]);
    let mut serve = ceph.serve(&["rbd/image"]);
    let over = AtomicBool::new(false);
    let mut ledger = Ledger::new(32 << 20);
    let worked = scope(|scope| {
        let end = Over(&over);
        let worker = scope
            .spawn(|| ledger.work(&serve.socket, "rbd/image", || over.load(Ordering::Relaxed)));
        for release in releases {
            sleep(Duration::from_secs(2));
            upgrade(&ceph, *release);
        }
        sleep(Duration::from_secs(2));
        drop(end);
        worker.join().unwrap()
    });
    serve.assert_running();
    eprintln!(
        "16 → {releases:?}: {} requests, longest pause {:.1} s",
        worked.done,
        worked.longest_pause.as_secs_f64()
    );
    assert!(worked.end.is_none() && worked.errors.is_empty(), "{:?}", worked.errors.first());
    assert!(worked.done > 500, "only {} requests", worked.done);
    ledger.check(&mut export(&ceph, "image").as_slice());
    // The cluster is what it was to be.
    let map = ceph.run("ceph", &["osd", "dump", "--format", "json"]).json();
    assert_eq!(map["require_osd_release"], if full() { "tentacle" } else { "pacific" });
}

/// Monitors first, then OSDs, as Ceph's documentation has it.
fn upgrade(ceph: &Ceph, release: Release) {
    ceph.set_release(release);
    let quorum = || {
        let told = ceph.run_for("ceph", &["quorum_status", "--format", "json"], 30);
        let told: serde_json::Value = serde_json::from_slice(&told.out).unwrap_or_default();
        told["quorum_names"].as_array().map_or(0, Vec::len)
    };
    let (mons, osds) = size();
    for mon in 0..mons {
        ceph.kill_mon(mon);
        ceph.start_mon(mon);
        wait_until("all monitors agree", || quorum() == mons as usize);
    }
    for osd in 0..osds {
        let up_from = || {
            let map = ceph.run("ceph", &["osd", "dump", "--format", "json"]).json();
            let osd = &map["osds"][osd as usize];
            (osd["up"] == 1).then(|| osd["up_from"].as_u64().unwrap())
        };
        let before = up_from();
        ceph.kill_osd(osd);
        sleep(Duration::from_secs(1));
        ceph.start_osd(osd);
        wait_until("the OSD is up again", || up_from().is_some_and(|now| Some(now) != before));
        // Without a manager nobody knows when what it missed is recovered.
        sleep(Duration::from_secs(3));
    }
    if release > Release::Pacific {
        let name = if release == Release::Reef { "reef" } else { "tentacle" };
        ceph.ceph(&["osd", "require-osd-release", name]);
    }
}

//! Monitors that fail, move and change while a client is at work.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::under_load;
use crate::support::{Ceph, Options, Release, Serve, Store};
use crate::{releases, run};

#[track_caller]
fn wait_for(what: &str, serve: &Serve, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120), "{what}: {}", serve.log());
        sleep(Duration::from_millis(100));
    }
}

/// The number that the cluster knows a server by: its watch tells.
fn client_of(ceph: &Ceph, image: &str) -> String {
    let status = ceph.run("rbd", &["status", image, "--format", "json"]).json();
    let watchers =
        status["watchers"].as_array().or_else(|| status["watchers"]["watcher"].as_array());
    let client = watchers.and_then(|watchers| Some(watchers.first()?["client"].to_string()));
    client.unwrap_or_else(|| panic!("nobody watches {image}: {status}"))
}

#[test]
fn io_goes_on_without_a_quorum() {
    for &release in releases() {
        without_a_quorum(release);
    }
}

fn without_a_quorum(release: Release) {
    let store = Store::Bluestore;
    let ceph = Ceph::start(Options { release, osds: 3, mons: 3, store, ..Options::default() });
    ceph.rbd(&["create", "--size", "4M", "--image-feature", "layering", "other"]);
    under_load(&ceph, &["rbd/other"], |serve| {
        let before = client_of(&ceph, "other");
        ceph.kill_mon(0);
        ceph.kill_mon(2);
        // Only what needs a monitor waits, and not for ever. The one that is left has to notice first.
        wait_for("no answer", serve, || {
            let ran = ceph.ours(&["info", "rbd/other"]);
            ran.code == 110 && ran.err.contains("no monitor answers")
        });
        let uri = serve.uri("rbd/other");
        let io = ["-c", "write -P 7 0 4M", "-c", "flush", "-c", "read -P 7 0 4M"];
        run("qemu-io", &[&["-f", "raw", &uri][..], &io].concat()).ok();
        ceph.start_mon(0);
        ceph.start_mon(2);
        ceph.ours(&["info", "rbd/other"]).ok();
        // An OSD that comes back has us watch again, as the client that we were: the global id was claimed anew.
        ceph.kill_osd(0);
        ceph.start_osd(0);
        assert_eq!(client_of(&ceph, "other"), before);
    });
}

#[test]
fn monitors_are_added_removed_and_moved_under_load() {
    for &release in releases() {
        other_monitors(release);
    }
}

fn other_monitors(release: Release) {
    let store = Store::Bluestore;
    let ceph = Ceph::start(Options { release, osds: 3, store, ..Options::default() });
    let [_, b, c, moved_a, moved_b] = [0, 1, 2, 8, 9].map(|i| ceph.mon_addr(i));
    under_load(&ceph, &[], |serve| {
        let logged_in = |addr: &str| serve.log().contains(&format!("addr=v2:{addr}/0"));
        // Two more, then without the first, which is all that the client was told of when it began.
        ceph.add_mon(1, &b);
        ceph.add_mon(2, &c);
        ceph.name_mons(&[&b, &c]);
        ceph.remove_mon(0);
        wait_for("another monitor", serve, || logged_in(&b) || logged_in(&c));
        // Two of them at other addresses. There are always three before one goes, as two cannot agree to be one.
        ceph.add_mon(0, &moved_a);
        ceph.name_mons(&[&moved_a, &c]);
        ceph.remove_mon(1);
        ceph.add_mon(1, &moved_b);
        ceph.name_mons(&[&moved_a, &moved_b]);
        ceph.remove_mon(2);
        wait_for("moved monitors", serve, || logged_in(&moved_a) || logged_in(&moved_b));
        // They bring maps.
        ceph.kill_osd(1);
        ceph.start_osd(1);
    });
}

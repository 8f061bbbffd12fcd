//! An administrator, or the host that takes over, blocklists us.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use nbd::device::Errno;

use super::{export, wait_until};
use crate::load::Over;
use crate::releases;
use crate::support::{Ceph, Ledger, Options, Release, Store};

const SIZE: u64 = 16 << 20;

#[test]
fn after_fencing_everything_fails_at_once_and_nothing_is_applied() {
    for &release in releases() {
        fenced(release);
    }
}

fn fenced(release: Release) {
    let store = Store::Memstore;
    let ceph = Ceph::start(Options { release, osds: 3, store, ..Options::default() });
    ceph.rbd(&["create", "--size", "16M", "--image-feature", "layering", "image"]);
    let socket = ceph.dir().join("fenced.asok");
    let socket = socket.to_str().unwrap();
    let serve = ceph.serve(&["rbd/image", "--admin-socket", socket]);
    let status = || {
        let told = ceph.run("ceph", &["--admin-daemon", socket, "status"]).json();
        told["clusters"][0].clone()
    };
    let addr = status()["addr"].as_str().unwrap().to_owned();

    let (over, ledger) = (AtomicBool::new(false), Mutex::new(Ledger::new(SIZE)));
    let (worked, known) = scope(|scope| {
        let end = Over(&over);
        let worker = scope.spawn(|| {
            let mut ledger = ledger.lock().unwrap();
            ledger.work(&serve.socket, "rbd/image", || over.load(Ordering::Relaxed))
        });
        sleep(Duration::from_secs(2));
        ceph.ceph(&["osd", "blocklist", "add", &addr, "600"]);
        // From when on the process is known to know, a little late: asking takes a moment.
        wait_until("it knows that it is fenced", || status()["fenced"] == true);
        let known = Instant::now();
        sleep(Duration::from_secs(3));
        drop(end);
        (worker.join().unwrap(), known)
    });
    let log = serve.log();
    assert!(worked.done > 100, "there was hardly any load\n{log}");
    assert!(worked.end.is_none(), "{:?}\n{log}", worked.end);
    // In flight or later, all fail, and in time; nothing waits.
    assert!(worked.last_success < known + Duration::from_secs(1), "a write after fencing\n{log}");
    assert!(worked.errors.len() > 100, "{} errors\n{log}", worked.errors.len());
    assert!(worked.errors.iter().all(|(_, errno)| *errno == Errno::ESHUTDOWN), "{log}");
    let first = worked.errors[0].0;
    assert!(worked.last_success <= first, "one succeeded after another failed\n{log}");
    assert!(first < known + Duration::from_secs(1), "{log}");
    let last = worked.errors.last().unwrap().0;
    assert!(last > known + Duration::from_secs(2), "it stopped answering\n{log}");
    assert_eq!(status()["ops_in_flight"], 0);
    assert_eq!(status()["sessions"].as_array().unwrap().len(), 0, "connections are closed");

    // Who, and what to do.
    let said = log.lines().find(|line| line.contains("fenced this client off")).expect(&log);
    assert!(said.contains(&addr) && said.contains("ceph osd blocklist ls"), "{said}");
    let shouts = log.lines().filter(|line| line.contains("ERROR")).count();
    assert!(shouts < 10, "once is enough, not for each request\n{log}");

    // librbd finds what was acknowledged, or was in flight when the fence fell; and it stays so.
    let ledger = ledger.into_inner().unwrap();
    let image = export(&ceph, "image");
    ledger.check(&mut image.as_slice());
    sleep(Duration::from_secs(2));
    assert!(image == export(&ceph, "image"), "something was applied later");
    // A new instance is not fenced, and reads the same.
    let again = ceph.serve(&["rbd/image"]);
    super::super::data::assert_same_for_librbd_and_nbd(&ceph, "image", &again.uri("rbd/image"));
}

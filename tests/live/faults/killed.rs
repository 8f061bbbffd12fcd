//! Our own process dies at any moment: what it acknowledged is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use super::export;
use crate::support::{Ceph, Ledger, Options, Release, Store};
use crate::{full, releases};

#[test]
fn what_was_acknowledged_outlives_our_process_whenever_it_is_killed() {
    for &release in releases() {
        killed(release, "layering", if full() { 200 } else { 15 });
    }
}

/// The next one has to wait until the cluster misses the one before, and then replays what that has left.
#[test]
fn what_was_acknowledged_outlives_the_replay_of_a_journal() {
    for &release in releases() {
        killed(release, "exclusive-lock,object-map,journaling", if full() { 10 } else { 2 });
    }
}

fn killed(release: Release, features: &str, rounds: u64) {
    let store = Store::Memstore;
    let ceph = Ceph::start(Options { release, osds: 3, store, ..Options::default() });
    ceph.rbd(&["create", "--size", "8M", "--image-feature", features, "image"]);
    let progress = Arc::new(AtomicU64::new(0));
    let mut ledger = Ledger::new(8 << 20);
    ledger.progress = Arc::clone(&progress);
    let mut done = 0;
    for round in 0..rounds {
        let serve = ceph.serve(&["rbd/image"]);
        let socket = serve.socket.clone();
        // Odd, so that no moment of the work is met again and again.
        let moment = Duration::from_millis(50 + round * 7919 % 700);
        scope(|scope| {
            let (progress, before) = (Arc::clone(&progress), progress.load(Ordering::Relaxed));
            let worker = scope.spawn(|| ledger.work(&socket, "rbd/image", || false));
            while progress.load(Ordering::Relaxed) == before && !worker.is_finished() {
                sleep(Duration::from_millis(1));
            }
            sleep(moment);
            // It gets no chance to say anything: SIGKILL.
            drop(serve);
            let worked = worker.join().unwrap();
            assert!(worked.end.is_some() && worked.errors.is_empty(), "{:?}", worked.errors);
            done += worked.done;
        });
        ledger.check(&mut export(&ceph, "image").as_slice());
    }
    assert!(done > rounds * 20, "only {done} requests in {rounds} rounds");
}

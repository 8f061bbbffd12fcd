//! Networks that break in every way that packet filters know. Our program is in a network of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use super::export;
use crate::load::Over;
use crate::support::{Ceph, Ledger, Netns, Options, Release, Serve, Store};
use crate::{full, releases};

/// How long it may take to go on after a network is whole again: the keepalive's 10 s, and 5.
const RECOVERY: Duration = Duration::from_secs(15);

#[test]
fn io_goes_on_soon_after_the_network_does() {
    for &release in releases() {
        broken_networks(release);
    }
}

fn broken_networks(release: Release) {
    let netns = Netns::new();
    let ceph = Ceph::start(Options {
        release,
        osds: 2,
        store: Store::Memstore,
        ip: Some(netns.host),
        ..Options::default()
    });
    ceph.rbd(&["create", "--size", "16M", "--image-feature", "layering", "image"]);
    let mut serve = ceph.serve_in(&netns.prefix(), &["rbd/image"]);
    let (over, progress) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    let mut ledger = Ledger::new(16 << 20);
    ledger.progress = Arc::clone(&progress);
    let seconds = |short, long| Duration::from_secs(if full() { long } else { short });
    let worked = scope(|scope| {
        let end = Over(&over);
        let worker = scope
            .spawn(|| ledger.work(&serve.socket, "rbd/image", || over.load(Ordering::Relaxed)));
        let fault = |what: &str, time, begin: &dyn Fn(), end: &dyn Fn()| {
            await_progress(&progress, &serve);
            begin();
            sleep(time);
            end();
            let pause = await_progress(&progress, &serve);
            eprintln!("{what} for {} s, then {:.1} s", time.as_secs(), pause.as_secs_f64());
            assert!(pause < RECOVERY, "{what}: {pause:?} after its end\n{}", serve.log());
        };
        let rule = |rules: &'static [&'static str]| {
            move |netns: &Netns| rules.iter().for_each(|rule| netns.iptables(rule))
        };
        let clear = || netns.iptables("-F");
        let both = rule(&["-A INPUT -j DROP", "-A OUTPUT -j DROP"]);
        // Short: TCP's own timers have not run far. Long: we have given the connections up meanwhile.
        fault("half open", seconds(8, 15), &|| both(&netns), &clear);
        fault("half open", seconds(33, 90), &|| both(&netns), &clear);
        let deaf = rule(&["-A INPUT -j DROP"]);
        fault("deaf", seconds(7, 40), &|| deaf(&netns), &clear);
        let mute = rule(&["-A OUTPUT -j DROP"]);
        fault("mute", seconds(7, 40), &|| mute(&netns), &clear);
        let up = || {
            netns.ip(&["link", "set", "cable", "up"]);
        };
        fault("cut", seconds(6, 60), &|| netns.ip(&["link", "set", "cable", "down"]), &up);
        let reset = rule(&["-A OUTPUT -p tcp -j REJECT --reject-with tcp-reset"]);
        fault("reset", seconds(3, 20), &|| reset(&netns), &clear);
        // Nothing waits for the end of this one.
        let lossy = "-A INPUT -m statistic --mode random --probability 0.02 -j DROP";
        netns.iptables(lossy);
        let (begun, before) = (Instant::now(), progress.load(Ordering::Relaxed));
        sleep(seconds(5, 60));
        let rate =
            (progress.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
        eprintln!("2 % of all packets lost: {rate:.0} requests per second");
        assert!(rate > 5.0, "{rate} requests per second");
        clear();
        drop(end);
        worker.join().unwrap()
    });
    serve.assert_running();
    assert!(worked.end.is_none() && worked.errors.is_empty(), "{:?}", worked.errors.first());
    ledger.check(&mut export(&ceph, "image").as_slice());
}

/// How long it takes until ten more requests succeed.
#[track_caller]
fn await_progress(progress: &AtomicU64, serve: &Serve) -> Duration {
    let (begun, before) = (Instant::now(), progress.load(Ordering::Relaxed));
    while progress.load(Ordering::Relaxed) < before + 10 {
        assert!(begun.elapsed() < 4 * RECOVERY, "nothing goes on\n{}", serve.log());
        sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}

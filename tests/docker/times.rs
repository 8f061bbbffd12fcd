//! How long Docker waits for the plugin: what `docs/performance.md` has. The long run holds it to what is wanted, on a
//! machine that has nothing else to do; the short one to five times that, on whatever machine.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::{full, one_osd};

/// Of a volume of 10 GiB with a file system.
const CREATE: Duration = Duration::from_millis(1500);

/// The plugin's share of the time from `docker run` to what the container reads first.
const SHARE: Duration = Duration::from_millis(300);

fn rounds() -> usize {
    if full() { 20 } else { 3 }
}

fn bound(wanted: Duration) -> Duration {
    if full() { wanted } else { wanted * 5 }
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// How long the plugin has been at work on each call so far, by its own clock.
fn at_work(host: &Host) -> BTreeMap<String, Duration> {
    let metrics = host.http(&[], "metrics");
    let seconds = metrics.lines().filter_map(|line| {
        let (call, seconds) =
            line.strip_prefix("ceph_native_calls_seconds_total{call=\"")?.split_once("\"} ")?;
        Some((call.to_owned(), Duration::from_secs_f64(seconds.parse().ok()?)))
    });
    seconds.collect()
}

/// Run with `--nocapture`, it shows its figures.
#[test]
fn docker_does_not_wait_long_for_the_plugin() {
    let mut host = Host::start(one_osd(), "times", "");
    host.start_dockerd(&[]);
    let name = |fstype: &str, round: usize| format!("time-{fstype}-{round}");
    for fstype in ["ext4", "xfs", "btrfs"] {
        let option = format!("fstype={fstype}");
        let created = (0..rounds()).map(|round| {
            let begun = Instant::now();
            host.create(&name(fstype, round), &["size=10", &option]);
            begun.elapsed()
        });
        let created = median(created.collect());
        println!("create of 10 GiB, {fstype}: {created:.2?}");
        assert!(created < bound(CREATE), "{fstype}: {created:?}");
    }

    host.docker(&["volume", "create", "time-local"]);
    let ours = name("ext4", 0);
    for volume in ["time-local", &ours] {
        let mount = format!("type=volume,src={volume},dst=/v");
        let line = "echo there > /v/file";
        host.docker(&["run", "--rm", "--network=none", "--mount", &mount, "bb", "sh", "-c", line]);
    }
    // Until what it reads first comes back, and until all is over.
    let read = |volume: &str| {
        let (socket, mount) = (
            format!("unix://{}/docker.sock", host.dir.display()),
            format!("type=volume,src={volume},dst=/v"),
        );
        let run = ["-H", &socket, "run", "--rm", "--network=none", "--mount", &mount];
        let mut docker = Command::new("docker");
        docker.args(run).args(["bb", "cat", "/v/file"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut docker = docker.spawn().unwrap();
        let mut first = [0; 6];
        docker.stdout.as_mut().expect("a pipe").read_exact(&mut first).expect("what is there");
        let to_first = begun.elapsed();
        assert!(docker.wait().unwrap().success());
        assert_eq!(&first, b"there\n");
        (to_first, begun.elapsed())
    };
    // In pairs, so that whatever else this machine does meets both.
    let (mut with_ours, mut local) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    let mut shares: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let mut whole_shares = Vec::new();
    for round in 0..rounds() {
        let mut pair = ["time-local", &ours];
        if round % 2 == 1 {
            pair.reverse();
        }
        for volume in pair {
            let before = at_work(&host);
            let (first, end) = read(volume);
            let times = if volume == ours { &mut with_ours } else { &mut local };
            times.0.push(first);
            times.1.push(end);
            if volume != ours {
                continue;
            }
            let mut whole = Duration::ZERO;
            for (call, after) in at_work(&host) {
                let took = after - before.get(&call).copied().unwrap_or_default();
                // It comes after the container's end.
                if call != "/VolumeDriver.Unmount" && call != "VolumeDriver.Unmount" {
                    whole += took;
                }
                shares.entry(call).or_default().push(took);
            }
            whole_shares.push(whole);
        }
    }
    let difference = median(with_ours.0.clone()).saturating_sub(median(local.0.clone()));
    for (what, (first, end)) in [("a volume", with_ours), ("a folder of Docker's own", local)] {
        let (first, end) = (median(first), median(end));
        println!("docker run with {what}: {first:.2?} to the first read, {end:.2?} to its end");
    }
    for (call, took) in shares {
        println!("  of that in {call}: {:.2?}", median(took));
    }
    let share = median(whole_shares);
    println!(
        "the plugin's share before the first read: {share:.2?}; the difference: {difference:.2?}"
    );
    assert!(share < bound(SHARE), "{share:?}");
    assert!(difference < bound(SHARE), "{difference:?}");

    for fstype in ["ext4", "xfs", "btrfs"] {
        for round in 0..rounds() {
            host.docker(&["volume", "rm", &name(fstype, round)]);
        }
    }
}

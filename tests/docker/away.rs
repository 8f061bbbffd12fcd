//! The cluster is away: every monitor and OSD. Docker must not notice, but where it needs the cluster.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::host::{DRIVER, Host, eventually, signal};
use crate::support::{Ceph, Options, Store};

/// Daemons that say nothing, until this is dropped.
struct Frozen(Vec<u32>);

impl Frozen {
    fn all(ceph: &Ceph) -> Self {
        let frozen = Self(["mon.a", "osd.0"].map(|daemon| ceph.pid(daemon)).into());
        frozen.0.iter().for_each(|pid| signal("STOP", *pid));
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|pid| signal("CONT", *pid));
    }
}

/// What is done, and how long the quickest of some takes: what is to be seen is that nothing waits for the cluster, not
/// how busy this machine is.
fn quickest(act: impl Fn() -> String) -> (String, Duration) {
    let timed = (0..5).map(|_| {
        let begun = Instant::now();
        let said = act();
        (said, begun.elapsed())
    });
    timed.min_by_key(|(_, took)| *took).expect("some")
}

#[test]
fn docker_answers_as_fast_as_ever_and_what_needs_the_cluster_says_so_in_time() {
    let ceph: &'static Ceph = Box::leak(Box::new(Ceph::start(Options::default())));
    let mut host = Host::start(ceph, "away", "work-seconds = 8\n");
    host.start_dockerd(&[]);
    host.create("there", &["size=128M"]);
    host.create("mounted", &["size=128M"]);
    let mount = format!("type=volume,src=mounted,dst=/v,volume-driver={DRIVER}");
    let line = "while true; do echo x >> /v/log; sync -d /v/log; sleep 0.2; done";
    let args = ["run", "-d", "--network=none", "--mount", &mount, "bb", "sh", "-c", line];
    let writer = host.docker(&args);
    let root = host.dir.join("state/mounts/mounted");
    let written = || fs::read_to_string(root.join("log")).map_or(0, |log| log.len());
    eventually("it writes", || written() > 0);
    let run = || host.docker(&["run", "--rm", "--network=none", "bb", "sh", "-c", ""]);
    let (_, usual) = quickest(run);

    let frozen = Frozen::all(ceph);
    let second = Duration::from_secs(1);
    let (listed, took) = quickest(|| host.docker(&["volume", "ls", "-q"]));
    assert!(listed.contains("there") && listed.contains("mounted"), "{listed}");
    assert!(took < second, "volume ls took {took:?}");
    let (listed, took) = quickest(|| host.docker(&["ps", "-q", "--no-trunc"]));
    assert_eq!(listed, writer);
    assert!(took < second, "ps took {took:?}");
    let (_, took) = quickest(run);
    assert!(took < usual * 2 + second / 2, "run took {took:?}, before {usual:?}");
    let (inspected, took) = quickest(|| host.inspect("there").to_string());
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["Status"]["stale"], true, "{inspected}");
    assert_eq!(inspected["Status"]["size"], 128 << 20, "{inspected}");
    assert!(took < second, "inspect took {took:?}");
    let named = json!({ "Name": "mounted" });
    let (path, took) =
        quickest(|| host.called("VolumeDriver.Path", &named)["Mountpoint"].to_string());
    assert_eq!(path, json!(root).to_string());
    assert!(took < second, "Path took {took:?}");
    let (_, took) = quickest(|| host.called("VolumeDriver.Capabilities", &json!({})).to_string());
    assert!(took < second, "Capabilities took {took:?}");
    assert!(host.ours(&["volumes"]).err.contains("the cluster does not answer"));

    // One more use of what is mounted needs no cluster; all else fails in time, with the reason, and at once.
    host.mount("mounted", "y");
    host.unmount("mounted", "y");
    let begun = Instant::now();
    let refused = [
        ("VolumeDriver.Mount", json!({ "Name": "there", "ID": "x" })),
        ("VolumeDriver.Create", json!({ "Name": "new", "Opts": { "size": "128M" } })),
        ("VolumeDriver.Remove", json!({ "Name": "also-there" })),
        ("CephNative.Resize", json!({ "Name": "mounted", "Size": "1" })),
    ];
    std::thread::scope(|scope| {
        for (call, request) in &refused {
            let host = &host;
            scope.spawn(move || {
                let error = host.refused(call, request);
                assert!(error.contains("the cluster does not answer"), "{call}: {error}");
            });
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let error = host.refused("VolumeDriver.Get", &json!({ "Name": "nobody knows" }));
    assert!(error.contains("cannot be told now"), "{error}");
    let failed = host.try_in_container("there", "true").refused();
    assert!(failed.contains("mounting volume there"), "{failed}");

    // A plugin that starts now says the same.
    host.kill_plugin();
    host.start_plugin_alone();
    let (listed, took) = quickest(|| host.docker(&["volume", "ls", "-q"]));
    assert!(listed.contains("there") && listed.contains("mounted"), "{listed}");
    assert!(took < second, "volume ls took {took:?}");
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "there", "ID": "x" }));
    assert!(error.contains("no cluster: "), "{error}");

    // Everything goes on by itself.
    drop(frozen);
    // Not before: who reads notes when, in the journal, which waits like everything else.
    let before = written();
    eventually("the writer goes on", || written() > before + 4);
    assert_eq!(host.docker(&["inspect", "-f", "{{.State.Running}}", &writer]), "true");
    eventually("the plugin finds the cluster", || {
        host.inspect("there")["Status"].get("stale").is_none()
    });
    assert_eq!(host.in_container("there", "echo back > /v/f; cat /v/f"), "back");
    host.create("new", &["size=128M"]);
    host.docker(&["rm", "-f", &writer]);
    for name in ["there", "mounted", "new"] {
        host.docker(&["volume", "rm", name]);
    }
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0), "{}", host.log());
    assert_eq!(ceph.rbd(&["ls"]), "");
}

#[test]
fn a_cluster_that_was_stopped_is_gone_on_with_when_it_is_back() {
    let store = Store::Bluestore;
    let ceph: &'static Ceph =
        Box::leak(Box::new(Ceph::start(Options { store, ..Options::default() })));
    let mut host = Host::start(ceph, "stopped", "work-seconds = 8\n");
    host.start_dockerd(&[]);
    host.create("there", &["size=128M"]);
    host.create("mounted", &["size=128M"]);
    let mount = format!("type=volume,src=mounted,dst=/v,volume-driver={DRIVER}");
    let line = "i=0; while true; do i=$((i+1)); echo $i >> /v/log; sync -d /v/log; sleep 0.2; done";
    let args = ["run", "-d", "--network=none", "--mount", &mount, "bb", "sh", "-c", line];
    let writer = host.docker(&args);
    let root = host.dir.join("state/mounts/mounted");
    let written = || fs::read_to_string(root.join("log")).unwrap_or_default();
    eventually("it writes", || !written().is_empty());

    // Nobody listens any more: who dials is refused, where a frozen cluster lets them wait.
    ceph.kill_osd(0);
    ceph.kill_mon(0);
    let second = Duration::from_secs(1);
    let (listed, took) = quickest(|| host.docker(&["volume", "ls", "-q"]));
    assert!(listed.contains("there") && listed.contains("mounted"), "{listed}");
    assert!(took < second, "volume ls took {took:?}");
    let (listed, took) = quickest(|| host.docker(&["ps", "-q", "--no-trunc"]));
    assert_eq!(listed, writer);
    assert!(took < second, "ps took {took:?}");
    host.docker(&["run", "--rm", "--network=none", "bb", "sh", "-c", ""]);
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "there", "ID": "x" }));
    assert!(error.contains("cluster"), "{error}");

    ceph.start_mon(0);
    ceph.start_osd(0);
    // Not before: reading waits like everything else.
    let before = written().len();
    eventually("the writer goes on", || written().len() > before + 8);
    assert_eq!(host.docker(&["inspect", "-f", "{{.State.Running}}", &writer]), "true");
    eventually("the plugin finds the cluster", || {
        host.inspect("there")["Status"].get("stale").is_none()
    });
    assert_eq!(host.in_container("there", "echo back > /v/f; cat /v/f"), "back");
    // Line after line, all of them.
    host.docker(&["rm", "-f", &writer]);
    let log = host.in_container("mounted", "cat /v/log");
    for (line, number) in log.lines().zip(1..) {
        assert_eq!(line, number.to_string(), "{log}");
    }
    for name in ["there", "mounted"] {
        host.docker(&["volume", "rm", name]);
    }
    assert_eq!(ceph.rbd(&["ls"]), "");
}

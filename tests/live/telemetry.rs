//! What a process tells of itself, asked by Ceph's own tool, by ours, and as Prometheus asks.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::{Ceph, Options, Serve};
use crate::{fio_report, one_osd};

/// A server with an admin socket and metrics, and an image to serve: the socket, and the address of the metrics.
fn serve_telling(ceph: &Ceph, image: &str) -> (Serve, String, String) {
    ceph.rbd(&["create", "--size", "32M", "--image-feature", "layering", image]);
    let socket = ceph.dir().join(format!("{image}.asok")).to_str().unwrap().to_owned();
    let spec = format!("rbd/{image}");
    let serve = ceph.serve(&[&spec, "--admin-socket", &socket, "--metrics", "127.0.0.1:0"]);
    let log = serve.log();
    let addr = log.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    (serve, socket, addr.to_owned())
}

/// What a scraper gets from a path: status line and body.
pub(crate) fn scrape(addr: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The samples of a scrape, by name and labels. Each must belong to a metric that is described before it.
fn samples(body: &str) -> BTreeMap<String, f64> {
    let mut described = (String::new(), String::new());
    let mut samples = BTreeMap::new();
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            described.0 = help.split(' ').next().unwrap().to_owned();
            assert!(help.ends_with('.'), "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, described.0);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            described.1 = kind.to_owned();
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let bare = name.split('{').next().unwrap();
            let suffixes: &[&str] =
                if described.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(
                suffixes.iter().any(|suffix| bare == format!("{}{suffix}", described.0)),
                "{line} after {described:?}"
            );
            let before = samples.insert(name.to_owned(), value.parse().unwrap());
            assert!(before.is_none(), "twice: {line}");
        }
    }
    samples
}

/// The sum of all samples of this name whose labels contain all of these words.
fn sum(samples: &BTreeMap<String, f64>, name: &str, words: &[&str]) -> f64 {
    samples
        .iter()
        .filter(|(full, _)| full.split('{').next() == Some(name))
        .filter(|(full, _)| words.iter().all(|word| full.contains(word)))
        .map(|(_, value)| value)
        .sum()
}

#[test]
fn what_a_server_tells_adds_up_whoever_asks() {
    let ceph = one_osd();
    let (serve, socket, metrics) = serve_telling(ceph, "telling");
    let before = samples(&scrape(&metrics, "/metrics").1);
    let uri = format!("--uri={}", serve.uri("rbd/telling"));
    let fio = ["--name=t", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=4k", "--size=8M"];
    let ran = ceph.run("fio", &[&fio[..], &["--iodepth=8", "--output-format=json"]].concat());
    let report = fio_report(&ran.ok());
    let written = report["jobs"][0]["write"]["total_ios"].as_f64().unwrap();
    assert!(written > 1000.0);

    let after = samples(&scrape(&metrics, "/metrics").1);
    let grew = |name, words: &[&str]| sum(&after, name, words) - sum(&before, name, words);
    assert_eq!(grew("ceph_native_ops_total", &["op=\"write\"", "result=\"ok\""]), written);
    assert_eq!(grew("ceph_native_ops_total", &["result=\"error\""]), 0.0);
    assert_eq!(grew("ceph_native_op_bytes_total", &["op=\"write\""]), written * 4096.0);
    assert_eq!(grew("ceph_native_op_latency_seconds_count", &["op=\"write\""]), written);
    let all = ["op=\"write\"", "le=\"+Inf\""];
    assert_eq!(grew("ceph_native_op_latency_seconds_bucket", &all), written);
    assert!(grew("ceph_native_op_latency_seconds_sum", &["op=\"write\""]) > 0.0);
    assert_eq!(sum(&after, "ceph_native_osd_sessions", &["state=\"open\""]), 1.0);
    assert_eq!(sum(&after, "ceph_native_ops_in_flight", &[]), 0.0);
    assert_eq!(sum(&after, "ceph_native_fenced", &[]), 0.0);
    assert_eq!(sum(&after, "ceph_native_watches", &[]), 1.0);
    assert_eq!(sum(&after, "ceph_native_image_size_bytes", &["rbd/telling"]), f64::from(32 << 20));
    assert!(sum(&after, "process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(sum(&after, "ceph_native_image_lock_owned", &["rbd/telling"]), 0.0);
    assert_eq!(scrape(&metrics, "/").0, "HTTP/1.1 404 Not Found");

    // Ceph's tool learns what can be asked, and asks.
    let theirs = ceph.run("ceph", &["--admin-daemon", &socket, "status"]).json();
    let ours = ceph.ours(&["status", "--daemon", &socket, "--format", "json"]).json();
    for told in [&theirs, &ours] {
        let cluster = &told["clusters"][0];
        assert_eq!(cluster["writes"]["done"], written as u64, "{told:#}");
        assert_eq!(cluster["sessions"][0]["state"], "open");
        assert_eq!(cluster["watches"][0]["state"], "watching");
        assert_eq!(told["images"][0]["image"], "rbd/telling");
    }
    let fsid = ceph.ceph(&["fsid"]);
    assert_eq!(theirs["clusters"][0]["fsid"], fsid.trim());
    let help = ceph.run("ceph", &["--admin-daemon", &socket, "help"]).json();
    assert!(help["perf dump"].is_string(), "{help}");
    let perf = ceph.run("ceph", &["--admin-daemon", &socket, "perf", "dump"]).json();
    let counters = perf.as_object().unwrap().values().next().unwrap();
    assert_eq!(counters["op_w"], theirs["clusters"][0]["writes"]["latency"]["count"]);
    let plain = ceph.ours(&["status", "--daemon", &socket]).ok();
    assert!(plain.contains("image rbd/telling: 33554432 bytes"), "{plain}");

    // The socket is the owner's alone, and goes with the process.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(serve.terminate().0, 0);
    let gone = ceph.ours(&["status", "--daemon", &socket]).refused();
    assert!(gone.contains("admin socket"), "{gone}");
}

#[test]
fn who_has_the_lock_is_told() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "32M", "locking"]);
    let socket = ceph.dir().join("locking.asok").to_str().unwrap().to_owned();
    let serve = ceph.serve(&["rbd/locking", "--admin-socket", &socket]);
    let told = || {
        let told = ceph.run("ceph", &["--admin-daemon", &socket, "status"]).json();
        told["images"][0]["lock"].clone()
    };
    assert_eq!(told()["state"], "not owned");
    let write = |uri: &str| ceph.run("qemu-io", &["-f", "raw", "-c", "write 0 4k", uri]).ok();
    write(&serve.uri("rbd/locking"));
    let lock = told();
    assert_eq!(lock["state"], "owned", "{lock}");
    let (_, cookie) = ceph.lock_owner("locking").expect("a lock");
    assert_eq!(lock["cookie"], cookie.as_str());
    assert_eq!(lock["object_map_valid"], true);
    let plain = ceph.ours(&["status", "--daemon", &socket]).ok();
    assert!(plain.contains("rbd/locking: 33554432 bytes, lock owned"), "{plain}");
    // librbd takes it, and says so.
    ceph.rbd(&["bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4K", "locking"]);
    assert_eq!(told()["state"], "not owned");
}

#[test]
fn operations_in_flight_say_what_they_wait_for() {
    // Of its own, as a pause is for all.
    let ceph = Ceph::start(Options::default());
    let (serve, socket, _) = serve_telling(&ceph, "paused");
    ceph.ceph(&["osd", "set", "pause"]);
    let uri = serve.uri("rbd/paused");
    std::thread::scope(|scope| {
        let io = scope.spawn(|| ceph.run("qemu-io", &["-f", "raw", "-c", "write 0 4k", &uri]));
        let asked = std::time::Instant::now();
        let op = loop {
            let told = ceph.run("ceph", &["--admin-daemon", &socket, "objecter_requests"]).json();
            let waits = |op: &&Value| op["waits_for"].as_str().unwrap().contains("unpaused");
            if let Some(op) = told["ops"].as_array().unwrap().iter().find(waits) {
                break op.clone();
            }
            assert!(asked.elapsed().as_secs() < 60, "{told:#}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        };
        ceph.ceph(&["osd", "unset", "pause"]);
        assert!(op["object"].as_str().unwrap().starts_with("rbd_"), "{op}");
        assert!(op["pg"].as_str().unwrap().contains('.'), "{op}");
        io.join().unwrap().ok();
    });
}

//! Nobody answers, and writers that never give up: memory does not grow.

use std::fs;
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::support::{Ceph, Options, Store};
use crate::{fio_report, full};

/// What a process has in memory, in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_stays_flat_while_every_osd_is_gone() {
    let seconds = if full() { 3600 } else { 50 };
    let ceph = Ceph::start(Options { store: Store::Bluestore, ..Options::default() });
    ceph.rbd(&["create", "--size", "256M", "--image-feature", "layering", "image"]);
    let socket = ceph.dir().join("flat.asok");
    let socket = socket.to_str().unwrap();
    let mut serve = ceph.serve(&["rbd/image", "--admin-socket", socket]);
    let uri = format!("--uri={}", serve.uri("rbd/image"));
    let (megabyte, pid) = (1024, serve.pid());
    scope(|scope| {
        // 16 connections with 64 MiB in flight each, if they were let: a gigabyte.
        let fio = scope.spawn(|| {
            let load = ["--name=m", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=256k"];
            let jobs = ["--iodepth=256", "--numjobs=16", "--size=256M", "--group_reporting=1"];
            let limits = ["--io_size=72M", "--output-format=json"];
            let args = [&load[..], &jobs, &limits].concat();
            ceph.run_for("fio", &args, seconds as u32 + 300)
        });
        sleep(Duration::from_secs(1));
        ceph.kill_osd(0);
        sleep(Duration::from_secs(5));
        let (begun, first) = (Instant::now(), resident(pid));
        let mut most = first;
        while begun.elapsed() < Duration::from_secs(seconds) {
            sleep(Duration::from_secs(1));
            most = most.max(resident(pid));
        }
        let told = ceph.run("ceph", &["--admin-daemon", socket, "status"]).json();
        eprintln!("memory with every OSD gone: {first} KiB, at most {most} KiB in {seconds} s");
        assert!(most < first + 4 * megabyte, "it grew from {first} to {most} KiB");
        // The budget, the receive buffers of 16 connections, and what the program takes anyway.
        assert!(most < 150 * megabyte, "{most} KiB");
        let bytes = told["clusters"][0]["bytes_in_flight"].as_u64().unwrap();
        assert!((32 << 20..=100 << 20).contains(&bytes), "{bytes} bytes in flight");
        ceph.start_osd(0);
        let ran = fio.join().unwrap();
        let report = fio_report(&ran.ok());
        assert_eq!(report["jobs"][0]["error"], 0);
    });
    serve.assert_running();
    // Somebody was told, with all that is needed to look for the reason.
    let log = serve.log();
    let slow: Vec<_> = log.lines().filter(|line| line.contains("slow requests")).collect();
    assert!(!slow.is_empty(), "{log}");
    assert!(slow.len() < 12, "rarer the longer it lasts\n{log}");
    for word in ["object=", "pg=", "osd=", "seconds=", "the oldest waits for"] {
        assert!(slow[0].contains(word), "{word} in {}", slow[0]);
    }
}

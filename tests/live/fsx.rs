//! Ceph's own torture test of images, `ceph_test_librbd_fsx`: every read and write goes through a device that we map,
//! while librbd resizes, snapshots, clones and flattens the image behind our back; a file beside it says what must be
//! there.
//!
//! `CEPH_NATIVE_FULL=1 CEPH_NATIVE_OPS=50000 cargo test --test live fsx` does 50,000 operations of each kind, and
//! `CEPH_NATIVE_SEED=7` those of another seed.

use std::os::unix::fs::symlink;

use crate::full;
use crate::support::{Ceph, Options, Release, Store, program};

#[test]
fn fsx_reads_what_it_wrote() {
    // Of Debian's packages only Ceph 18's has it.
    if !full() {
        return;
    }
    let ops = std::env::var("CEPH_NATIVE_OPS").unwrap_or_else(|_| "20000".to_owned());
    let seed = std::env::var("CEPH_NATIVE_SEED").unwrap_or_else(|_| "1".to_owned());
    // Clones are kept until the end: 25 MiB for every hundred operations.
    let conf = "[osd.0]\nbluestore block size = 137438953472\n";
    let options = Options { store: Store::Bluestore, conf, ..Options::default() };
    let ceph = Ceph::start(Options { release: Release::Reef, ..options });
    ceph.create_pool("data");
    // All at once: fsx sleeps for a quarter of a second after whatever changes a size.
    std::thread::scope(|scope| {
        for kind in &KINDS {
            scope.spawn(|| torture(&ceph, kind, &seed, &ops));
        }
    });
}

fn torture(ceph: &Ceph, Kind { name, options, conf }: &Kind, seed: &str, ops: &str) {
    let dir = ceph.dir().join(name);
    std::fs::create_dir(&dir).unwrap();
    symlink(program(), dir.join("rbd-nbd")).unwrap();
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display());
    let configured = dir.join("ceph.conf");
    let all = std::fs::read_to_string(ceph.conf()).unwrap();
    std::fs::write(&configured, format!("{all}\n[client]\n{conf}\n")).unwrap();
    let configured = format!("CEPH_CONF={}", configured.display());
    let start = [&configured, &path, "ceph_test_librbd_fsx", "-M", "-d", "-W", "-R", "-p", "1000"];
    let sectors = ["-r", "512", "-w", "512", "-t", "512", "-h", "512", "-l", "50000000"];
    let run = ["-P", dir.to_str().unwrap(), "-S", seed, "-N", ops, "rbd", name];
    // On two cores that do other things, too, 50,000 take more than an hour.
    let limit = 600 + ops.parse::<u32>().unwrap() / 3;
    let ran = ceph.run_for("env", &[&start[..], &sectors, options, &run].concat(), limit);
    let said = String::from_utf8_lossy(&ran.out).into_owned();
    assert!(
        ran.code == 0 && said.contains("A-OK!"),
        "{name}, seed {seed}, exit code {}: {}\n{}",
        ran.code,
        ran.err,
        last(&said)
    );
}

/// What images are like that fsx makes, and what it does to them.
struct Kind {
    name: &'static str,
    options: &'static [&'static str],
    /// Lines for ceph.conf.
    conf: &'static str,
}

const KINDS: [Kind; 5] = [
    Kind { name: "striped", options: &[], conf: "" },
    Kind { name: "unstriped", options: &["-U"], conf: "" },
    Kind { name: "copied", options: &["-g"], conf: "" },
    Kind { name: "mapless", options: &[], conf: "rbd default features = 1" },
    Kind { name: "elsewhere", options: &[], conf: "rbd default data pool = data" },
];

/// What fsx says is wrong, and the operations before that.
fn last(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    let dump = lines.iter().position(|line| line.starts_with("LOG DUMP")).unwrap_or(lines.len());
    let wrong = &lines[dump.saturating_sub(40)..dump];
    let operations = &lines[lines.len().saturating_sub(60).max(dump)..];
    [wrong, operations].concat().join("\n")
}

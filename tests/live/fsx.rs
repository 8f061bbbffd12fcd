//! Ceph's own torture test of images, `ceph_test_librbd_fsx`: every read and write goes through a device that we map,
//! while librbd resizes, snapshots, clones and flattens the image behind our back; a file beside it says what must be
//! there.
//!
//! `CEPH_NATIVE_FULL=1 CEPH_NATIVE_OPS=50000 cargo test --test live fsx` does 50,000 operations from each of its seeds.

use std::os::unix::fs::symlink;

use crate::full;
use crate::support::{Ceph, Options, Release, program};

#[test]
fn fsx_reads_what_it_wrote() {
    // Of Debian's packages only Ceph 18's has it.
    if !full() {
        return;
    }
    let ops = std::env::var("CEPH_NATIVE_OPS").unwrap_or_else(|_| "20000".to_owned());
    let ceph = Ceph::start(Options { release: Release::Reef, ..Options::default() });
    let dir = ceph.dir().join("fsx");
    std::fs::create_dir(&dir).unwrap();
    symlink(program(), dir.join("rbd-nbd")).unwrap();
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display());
    // Random striping, none, and copies in place of clones.
    for (seed, more) in [("1", &[][..]), ("2", &["-U"]), ("3", &["-g"])] {
        let image = format!("fsx{seed}");
        let start = [path.as_str(), "ceph_test_librbd_fsx", "-M", "-d", "-W", "-R", "-p", "1000"];
        let sectors = ["-r", "512", "-w", "512", "-t", "512", "-h", "512", "-l", "50000000"];
        let run = ["-P", dir.to_str().unwrap(), "-S", seed, "-N", &ops, "rbd", &image];
        let ran = ceph.run_for("env", &[&start[..], &sectors, more, &run].concat(), 3600);
        let said = String::from_utf8_lossy(&ran.out).into_owned();
        assert!(
            ran.code == 0 && said.contains("A-OK!"),
            "seed {seed}: {}\n{}",
            ran.err,
            last(&said)
        );
    }
}

fn last(said: &str) -> String {
    let lines: Vec<_> = said.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

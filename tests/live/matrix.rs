//! Data, on every release: what one side writes the other reads, with replicas and erasure codes, with checksums and
//! encryption. Everything but our program is of the cluster's release: daemons, librbd, `rbd`, fio, qemu.
//!
//! `tests/matrix` runs all of it and prints the table. The ordinary test has the row of the host's own release.

use std::io::Write as _;
use std::time::Instant;

use crate::data::{librbd_reads_what_was_written_through_nbd, we_read_what_librbd_wrote};
use crate::releases;
use crate::support::{Ceph, Mode, Options, Release, Store};

/// Beside layering.
const WITH_MAP: &str = "exclusive-lock,object-map,fast-diff,deep-flatten";

#[test]
fn data_is_the_same_for_both_sides_on_every_release() {
    say("| Ceph | connections | replicated, 3 | erasure-coded, 2+1 |\n|---|---|---|---|");
    for release in releases() {
        for mode in [Mode::Crc, Mode::Secure] {
            row(*release, mode);
        }
    }
}

fn row(release: Release, mode: Mode) {
    let options = Options { release, osds: 3, store: Store::Bluestore, mode, ..Options::default() };
    let ceph = Ceph::start(options);
    ceph.create_coded_pool("coded");
    let version = ceph.ceph(&["--version"]);
    let version = version.split(' ').nth(2).unwrap();
    let cells = [
        ("replicated", &["--size", "16M"][..]),
        ("coded", &["--size", "16M", "--data-pool", "coded", "--image-feature", WITH_MAP]),
    ];
    let cells = cells.map(|(name, options)| {
        let begun = Instant::now();
        librbd_reads_what_was_written_through_nbd(&ceph, &format!("{name}-by-us"), options);
        we_read_what_librbd_wrote(&ceph, &format!("{name}-by-librbd"), options);
        format!("same, {} s", begun.elapsed().as_secs())
    });
    ceph.check_object_map("coded-by-us");
    ceph.check_object_map("coded-by-librbd");
    let mode = format!("{mode:?}").to_lowercase();
    say(&format!("| {version} | {mode} | {} |", cells.join(" | ")));
}

/// Prints even where the test program swallows what tests print.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").unwrap();
}

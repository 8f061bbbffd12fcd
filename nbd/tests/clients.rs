//! Real NBD clients against the server: libnbd's tools and Python module, qemu's, and fio.

mod support;

use std::time::Duration;

use nbd::Export;
use nbd::device::Geometry;
use nbd::memory::MemoryDevice;
use support::{Served, Wayward, random_file, run};

const GRACE: Duration = Duration::from_secs(10);

#[test]
fn nbdinfo_sees_every_property_of_every_export() {
    let small = Geometry {
        read_only: true,
        minimum_block: 512,
        preferred_block: 65536,
        maximum_transfer: 1 << 20,
        coherent_queues: false,
        rotational: true,
        ..Geometry::new(12345 * 512)
    };
    let mut second = Export::new("second one", MemoryDevice::new(small));
    second.description = "read-only".into();
    let first = Export::new("first", MemoryDevice::new(Geometry::new(1 << 40)));
    let served = Served::new(vec![first, second]);
    for uri in [
        format!("nbd+unix:///?socket={}", served.socket().display()),
        format!("nbd://{}", served.tcp),
    ] {
        let list = run("nbdinfo", "libnbd-bin", &["--list", &uri]);
        let (first, second) = list.split_once("export=\"second one\"").expect("both are listed");
        for line in [
            "protocol: newstyle-fixed without TLS, using structured packets",
            "export=\"first\"",
            "export-size: 1099511627776 (1T)",
            "base:allocation",
            "is_rotational: false",
            "is_read_only: false",
            "can_cache: true",
            "can_df: true",
            "can_fast_zero: true",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "block_size_minimum: 1\n",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(first.contains(line), "{line} in\n{first}");
        }
        for line in [
            "description: read-only",
            "export-size: 6320640",
            "is_rotational: true",
            "is_read_only: true",
            "can_multi_conn: false",
            "can_trim: false",
            "can_zero: false",
            "block_size_minimum: 512",
            "block_size_preferred: 65536",
            "block_size_maximum: 1048576",
        ] {
            assert!(second.contains(line), "{line} in\n{second}");
        }
    }
    let list = run("qemu-nbd", "qemu-utils", &["--list", "-k", served.socket().to_str().unwrap()]);
    assert!(list.contains("exports available: 2"), "{list}");
    assert!(list.contains("export: 'second one'"), "{list}");
    assert!(list.contains("description: read-only"), "{list}");
    assert!(served.stop(GRACE).unflushed.is_empty());
}

#[test]
fn nbdcopy_brings_back_what_it_took() {
    const SIZE: usize = 24 << 20;
    let served = Served::new(vec![Export::new("disk", Wayward::new(SIZE as u64))]);
    let (file, copy) = (served.folder.0.join("file"), served.folder.0.join("copy"));
    for uri in served.uris("disk") {
        random_file(&file, SIZE);
        // A hole in the middle: nbdcopy trims or zeroes, and asks for extents on the way back.
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[8 << 20..12 << 20].fill(0);
        std::fs::write(&file, &bytes).unwrap();
        run("nbdcopy", "libnbd-bin", &["--flush", file.to_str().unwrap(), &uri]);
        let map = run("nbdinfo", "libnbd-bin", &["--map", &uri]);
        assert!(
            map.lines().any(|line| line.split_whitespace().take(2).eq(["8388608", "4194304"])),
            "{map}"
        );
        for connections in ["--connections=1", "--connections=4"] {
            run("nbdcopy", "libnbd-bin", &[connections, &uri, copy.to_str().unwrap()]);
            assert!(bytes == std::fs::read(&copy).unwrap(), "{uri} {connections}");
            std::fs::remove_file(&copy).unwrap();
        }
    }
}

#[test]
fn qemu_reads_writes_zeroes_and_compares() {
    let served = Served::memory(64 << 20);
    for uri in served.uris("disk") {
        let commands = [
            "write -P 7 0 33M",
            "read -P 7 1 511",
            "read -P 7 0 33M",
            "write -z 4k 8k",
            "read -P 0 4k 8k",
            "write -z -u 1M 2M",
            "read -P 0 1M 2M",
            "discard 4M 1M",
            "write -f -P 9 10M 1M",
            "read -P 9 10M 1M",
            "read -P 0 60M 4M",
            "flush",
        ];
        let mut args = vec!["-f", "raw"];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(&uri);
        let printed = run("qemu-io", "qemu-utils", &args);
        assert!(!printed.contains("failed") && !printed.contains("error"), "{printed}");
    }
    let file = served.folder.0.join("file");
    random_file(&file, 64 << 20);
    let file = file.to_str().unwrap();
    let [unix, tcp] = served.uris("disk");
    run("qemu-img", "qemu-utils", &["convert", "-n", "-f", "raw", "-O", "raw", file, &unix]);
    let same = run("qemu-img", "qemu-utils", &["compare", "-f", "raw", "-F", "raw", file, &tcp]);
    assert!(same.contains("identical"), "{same}");
}

#[test]
fn fio_verifies_mixed_writes_over_four_connections_with_flushes() {
    let served = Served::new(vec![Export::new("disk", Wayward::new(64 << 20))]);
    for uri in served.uris("disk") {
        run(
            "fio",
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &format!("--uri={uri}"),
                "--rw=randrw",
                "--bsrange=512-1m",
                "--bs_unaligned=0",
                "--iodepth=16",
                "--numjobs=4",
                "--size=16m",
                "--offset_increment=16m",
                "--fsync=20",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--verify_state_save=0",
                "--group_reporting",
            ],
        );
    }
    let report = served.stop(GRACE);
    assert_eq!(report.abandoned, 0);
    assert!(report.connections >= 8, "{report}");
}

#[test]
fn illegal_requests_get_the_documents_errors() {
    let read_only = Geometry { read_only: true, ..Geometry::new(1 << 20) };
    let bare = Geometry {
        can_flush: false,
        can_be_durable: false,
        can_discard: false,
        can_write_zeroes: false,
        minimum_block: 512,
        ..Geometry::new(1 << 20)
    };
    let served = Served::new(vec![
        Export::new("disk", MemoryDevice::new(Geometry::new(1 << 26))),
        Export::new("read-only", MemoryDevice::new(read_only)),
        Export::new("bare", MemoryDevice::new(bare)),
    ]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/illegal.py");
    let [unix, tcp] = served.uris("");
    // Debian's own Python: libnbd's module belongs to it.
    for uri in [unix, tcp] {
        let printed = run("/usr/bin/python3", "python3-libnbd", &[script, &uri]);
        assert!(printed.ends_with("all as expected\n"), "{printed}");
    }
}

//! Reads are answered by replicas where that is asked for: of a served image, and of a mapped one.

use crate::support::{Ceph, Options, program, run_in};
use crate::watch::wait_for;
use crate::{fio_report, releases, run};

const OSDS: usize = 3;
const READS: u64 = 600;

#[test]
fn reads_go_where_they_are_told_to() {
    for &release in releases() {
        let ceph = Ceph::start(Options { release, osds: OSDS as u32, ..Options::default() });
        // One OSD in a host, so that there is one that is near.
        for osd in 0..OSDS {
            let (name, host) = (format!("osd.{osd}"), format!("host=near{osd}"));
            ceph.ceph(&["osd", "crush", "set", &name, "1.0", "root=default", &host]);
        }
        // A single placement group: all reads have the same primary. A replica answers reads of an object only once it
        // heard of a later write in the group (`PeeringState::can_serve_replica_read`): a watch is one.
        ceph.ceph(&["osd", "pool", "create", "one", "1"]);
        ceph.ceph(&["osd", "pool", "application", "enable", "one", "rbd"]);
        ceph.rbd(&["create", "--size", "4M", "--image-feature", "layering", "one/image"]);
        let data = ceph.dir().join("data");
        std::fs::write(&data, vec![7; 4 << 20]).unwrap();
        let image = ceph.serve(&["one/image"]);
        run("nbdcopy", &[data.to_str().unwrap(), &image.uri("one/image")]).ok();
        drop(image);

        let primary = answered(&ceph, &[]);
        assert_eq!(primary.iter().filter(|reads| **reads > READS / 2).count(), 1, "{primary:?}");
        let balanced = answered(&ceph, &["--rbd-read-from-replica-policy", "balance"]);
        assert!(balanced.iter().all(|reads| *reads > READS / 6), "{balanced:?}");
        for near in 0..OSDS {
            let location = format!("host=near{near}");
            let policy = ["--rbd-read-from-replica-policy", "localize"];
            let nearest =
                answered(&ceph, &[&policy[..], &["--crush-location", &location]].concat());
            // A few come too early for a replica, and then go to the primary.
            assert!(nearest[near] > READS * 5 / 6, "{near}: {nearest:?}");
            assert!(nearest.iter().sum::<u64>() < READS + READS / 6, "{near}: {nearest:?}");
        }

        // Of an image that is open, too, whoever says so: the image or the monitors.
        let image = ceph.serve(&["one/image"]);
        let uri = format!("--uri={}", image.uri("one/image"));
        let reads = || read_much(&ceph, &["--ioengine=nbd", &uri]);
        let is_balanced = || reads().iter().all(|reads| *reads > READS / 6);
        assert_eq!(reads().iter().filter(|reads| **reads > READS / 2).count(), 1);
        let policy = "rbd_read_from_replica_policy";
        ceph.rbd(&["config", "image", "set", "one/image", policy, "balance"]);
        assert!(is_balanced());
        ceph.ours(&["config", "image", "rm", "one/image", policy]).ok();
        assert!(!is_balanced());
        ceph.ceph(&["config", "set", "client", policy, "balance"]);
        wait_for("what the monitors say counts", 60, is_balanced);
        ceph.rbd(&["config", "image", "set", "one/image", policy, "default"]);
        assert!(!is_balanced(), "the image's own setting counts before theirs");
        ceph.rbd(&["config", "image", "rm", "one/image", policy]);
        ceph.ceph(&["config", "rm", "client", policy]);
        drop(image);

        let near = primary.iter().position(|reads| *reads < READS / 2).unwrap();
        let location = format!("host=near{near}");
        let policy = ["--rbd-read-from-replica-policy", "localize", "--crush-location", &location];
        let nearest = answered_to_a_device(&ceph, &policy);
        assert!(nearest[near] > READS * 5 / 6, "{near}: {nearest:?}");
    }
}

/// How many reads each OSD answers while a server with these options is asked for many.
#[track_caller]
fn answered(ceph: &Ceph, options: &[&str]) -> [u64; OSDS] {
    let serve = ceph.serve(&[&["one/image"], options].concat());
    let uri = format!("--uri={}", serve.uri("one/image"));
    read_much(ceph, &["--ioengine=nbd", &uri])
}

/// The same of a block device.
#[track_caller]
fn answered_to_a_device(ceph: &Ceph, options: &[&str]) -> [u64; OSDS] {
    let (state, conf) = (ceph.dir().join("state"), ceph.conf());
    let run_ours = |args: &[&str]| {
        let args = [args, &["-c", conf.to_str().unwrap()]].concat();
        run_in(&program(), &args, &[("RBD_NBD_RS_STATE", &state)], 120)
    };
    let map = ["map", "one/image", "--read-only", "--device-type", "fuse"];
    let device = run_ours(&[&map[..], options].concat()).ok();
    let pid = run_ours(&["list-mapped", "--format", "json"]).json()[0]["id"].as_u64().unwrap();
    ceph.reap(pid as u32);
    let file = format!("--filename={}", device.trim());
    let counts = read_much(ceph, &["--ioengine=libaio", "--direct=1", &file]);
    run_ours(&["unmap", "one/image"]).ok();
    counts
}

/// How many reads each OSD answers while fio reads.
#[track_caller]
fn read_much(ceph: &Ceph, from: &[&str]) -> [u64; OSDS] {
    let served = || {
        std::array::from_fn(|osd: usize| {
            let name = format!("osd.{osd}");
            let counters = ceph.run("ceph", &["tell", &name, "perf", "dump"]).json();
            counters["osd"]["op_r"].as_u64().unwrap()
        })
    };
    let before: [u64; OSDS] = served();
    let reads = READS.to_string();
    let load = ["--name=r", "--rw=randread", "--bs=4k", "--iodepth=4", "--size=4M"];
    let rest = ["--number_ios", &reads, "--output-format=json"];
    let report = fio_report(&run("fio", &[from, &load, &rest].concat()).ok());
    assert_eq!(report["jobs"][0]["read"]["total_ios"], READS);
    let after = served();
    std::array::from_fn(|osd| after[osd] - before[osd])
}

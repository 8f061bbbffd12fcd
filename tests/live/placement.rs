//! Where objects are, and that nobody who reads or writes them notices when that changes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::load::under_load;
use crate::support::{Ceph, Options, Release, Store};
use crate::{full, releases, with_client};

#[test]
fn osd_map_says_what_ceph_osd_map_says() {
    for release in releases() {
        let options =
            Options { release: *release, osds: 4, store: Store::Bluestore, ..Options::default() };
        let ceph = Ceph::start(options);
        ceph.create_coded_pool("coded");
        ceph.ceph(&["osd", "pool", "create", "odd", "12"]);
        ceph.ceph(&["osd", "primary-affinity", "osd.2", "0.3"]);
        told_alike(&ceph);
        ceph.kill_osd(1);
        ceph.ceph(&["osd", "down", "1"]);
        told_alike(&ceph);
        ceph.ceph(&["osd", "out", "1"]);
        told_alike(&ceph);
        let refused = ceph.ours(&["osd-map", "nopool", "object"]);
        let theirs = ceph.run("ceph", &["osd", "map", "nopool", "object"]);
        assert_eq!((refused.code, theirs.code), (2, 2), "{refused}\n{theirs}");
        assert!(refused.refused().contains("nopool"));
    }
}

/// With objects of each pool and of a namespace.
#[track_caller]
fn told_alike(ceph: &Ceph) {
    for pool in ["rbd", "coded", "odd"] {
        for number in 0..if full() { 12 } else { 3 } {
            let name = format!("object{number}");
            for namespace in [&[][..], &["space"]] {
                let args = [&[pool, &name][..], namespace].concat();
                told_alike_of(ceph, &args);
                if number == 0 {
                    told_alike_of(ceph, &[&args[..], &["--format", "json"]].concat());
                }
            }
        }
    }
}

/// The map may change between the two answers, which name its epoch: then they are asked again.
#[track_caller]
fn told_alike_of(ceph: &Ceph, args: &[&str]) {
    let ours = || ceph.ours(&[&["osd-map"], args].concat()).ok();
    for _ in 0..20 {
        let (before, theirs) = (ours(), ceph.ceph(&[&["osd", "map"], args].concat()));
        if before.trim() == theirs.trim() {
            return;
        }
        let after = ours();
        assert_ne!(before, after, "`ceph osd map` says {theirs}");
    }
    panic!("the map changes all the time");
}

#[test]
fn placement_groups_split_merge_and_move_under_load() {
    for release in releases() {
        let options =
            Options { release: *release, osds: 4, store: Store::Bluestore, ..Options::default() };
        let ceph = Ceph::start(options);
        // Few groups: they merge one by one.
        let few = if full() { 16 } else { 4 };
        ceph.ceph(&["osd", "pool", "delete", "rbd", "rbd", "--yes-i-really-really-mean-it"]);
        ceph.ceph(&["osd", "pool", "create", "rbd", &few.to_string()]);
        ceph.ceph(&["osd", "pool", "application", "enable", "rbd", "rbd"]);
        under_load(&ceph, &[], |_| {
            split(&ceph, 2 * few);
            move_by_upmap(&ceph, *release);
            move_by_stand_in(&ceph);
            move_by_weight(&ceph);
            merge(&ceph, few);
        });
    }
}

fn split(ceph: &Ceph, groups: u32) {
    ceph.ceph(&["osd", "pool", "set", "rbd", "pg_num", &groups.to_string()]);
    set_actual(ceph, "pg_num_actual", groups);
    set_actual(ceph, "pgp_num_actual", groups);
    assert_eq!(pool(ceph)["pg_num"], groups);
}

/// What the manager does when `pg_num` is lowered: placements first, then one group after the other, each when its OSDs
/// are ready for it.
fn merge(ceph: &Ceph, groups: u32) {
    ceph.ceph(&["osd", "pool", "set", "rbd", "pg_num", &groups.to_string()]);
    set_actual(ceph, "pgp_num_actual", groups);
    let from = pool(ceph)["pg_num"].as_u64().unwrap() as u32;
    for groups in (groups..from).rev() {
        let begun = Instant::now();
        // It is taken back where the group was not ready, and then has to be said again.
        while pool(ceph)["pg_num"] != groups {
            assert!(begun.elapsed() < Duration::from_secs(180), "no merge to {groups} groups");
            if pool(ceph)["pg_num_pending"] != groups {
                set_actual(ceph, "pg_num_actual", groups);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// `ceph` refuses these options, which are the manager's; the monitors don't.
fn set_actual(ceph: &Ceph, option: &str, value: u32) {
    let command = serde_json::json!({
        "prefix": "osd pool set", "pool": "rbd", "var": option, "val": value.to_string(),
    });
    with_client(ceph, async |cluster| {
        cluster.command(command.to_string()).await.unwrap();
        let nonsense = cluster.command(r#"{"prefix": "osd no such thing"}"#).await.unwrap_err();
        assert_eq!(nonsense.errno(), 22, "{nonsense}");
    });
}

/// The pool `rbd` in the newest map.
fn pool(ceph: &Ceph) -> Value {
    let dump = ceph.run("ceph", &["osd", "dump", "--format", "json"]).json();
    let pools = dump["pools"].as_array().unwrap();
    pools.iter().find(|pool| pool["pool_name"] == "rbd").unwrap().clone()
}

/// A placement group of the pool, the OSDs that have it, and one that doesn't.
fn group(ceph: &Ceph, seed: u32) -> (String, Vec<u64>, u64) {
    let pg = format!("{}.{seed:x}", pool(ceph)["pool"]);
    let map = ceph.run("ceph", &["pg", "map", &pg, "--format", "json"]).json();
    let up: Vec<_> = map["up"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    let other = (0..4).find(|osd| !up.contains(osd)).unwrap();
    (pg, up, other)
}

fn settle() {
    std::thread::sleep(Duration::from_secs(if full() { 5 } else { 2 }));
}

fn move_by_upmap(ceph: &Ceph, release: Release) {
    ceph.ceph(&["osd", "set-require-min-compat-client", "luminous"]);
    for seed in 0..4 {
        let (pg, up, other) = group(ceph, seed);
        let (from, to) = (up[0].to_string(), other.to_string());
        ceph.ceph(&["osd", "pg-upmap-items", &pg, &from, &to]);
    }
    settle();
    for seed in 0..4 {
        ceph.ceph(&["osd", "rm-pg-upmap-items", &group(ceph, seed).0]);
    }
    if release >= Release::Reef {
        // Ceph 16's client hangs on such groups.
        ceph.ceph(&["osd", "set-require-min-compat-client", "reef"]);
        settle();
        for seed in 0..4 {
            let (pg, up, _) = group(ceph, seed);
            ceph.ceph(&["osd", "pg-upmap-primary", &pg, &up[1].to_string()]);
        }
        settle();
        for seed in 0..4 {
            ceph.ceph(&["osd", "rm-pg-upmap-primary", &group(ceph, seed).0]);
        }
    }
}

/// Others serve a group in place of those whose it is.
fn move_by_stand_in(ceph: &Ceph) {
    for seed in 0..4 {
        let (pg, up, _) = group(ceph, seed);
        ceph.ceph(&["osd", "pg-temp", &pg, &up[1].to_string(), &up[0].to_string()]);
    }
    settle();
    for seed in 0..4 {
        ceph.ceph(&["osd", "pg-temp", &group(ceph, seed).0]);
    }
}

fn move_by_weight(ceph: &Ceph) {
    for [set, reset] in [
        [&["osd", "reweight", "0", "0.4"][..], &["osd", "reweight", "0", "1"]],
        [
            &["osd", "crush", "reweight", "osd.1", "0.2"],
            &["osd", "crush", "reweight", "osd.1", "1"],
        ],
        [&["osd", "out", "2"], &["osd", "in", "2"]],
    ] {
        ceph.ceph(set);
        settle();
        ceph.ceph(reset);
        settle();
    }
}

//! OSD maps of clusters that are put through what moves objects: what we read is what `ceph osd dump` and osdmaptool of
//! that release say, for every group, at every epoch.

#[path = "../../examples/osdmaptool/main.rs"]
mod ours;

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use ours::{Args, dump};
use proto::osdmap::{Incremental, OsdMap, hash_kind, pool_flag};
use proto::types::{Epoch, PoolId};
use serde_json::Value;

use crate::releases;
use crate::support::{Ceph, Options, Release};

/// Commands for all releases, one a line, for `ceph` to read. Some need what others have made.
const EXERCISE: &str = "
osd set-require-min-compat-client luminous
osd crush add-bucket rack0 rack
osd crush add-bucket rack1 rack
osd crush move rack0 root=default
osd crush move rack1 root=default
osd crush add-bucket h0 host
osd crush add-bucket h1 host
osd crush add-bucket h2 host
osd crush add-bucket h3 host
osd crush move h0 rack=rack0
osd crush move h1 rack=rack0
osd crush move h2 rack=rack1
osd crush move h3 rack=rack1
osd crush set osd.0 1.0 host=h0
osd crush set osd.1 1.5 host=h1
osd crush set osd.2 1.0 host=h2
osd crush set osd.3 0.7 host=h3
osd crush rm-device-class osd.0 osd.2
osd crush set-device-class ssd osd.0 osd.2
osd crush set-device-class hdd osd.1 osd.3
osd crush rule create-replicated fast default host ssd
osd crush rule create-simple racks default rack firstn
osd pool create odd 13 13 replicated
osd pool create legacy 24 24 replicated
osd pool set legacy hashpspool false --yes-i-really-mean-it
osd pool create wide 16 16 replicated
osd pool create fast 8 8 replicated fast
osd erasure-code-profile set p21 plugin=jerasure k=2 m=1 crush-failure-domain=osd
osd pool create ec21 16 16 erasure p21
osd pool set ec21 allow_ec_overwrites true
osd pool create cold 8 8 replicated
osd pool create hot 8 8 replicated
osd tier add cold hot
osd tier cache-mode hot writeback
osd tier set-overlay cold hot
osd pool set odd size 2
osd pool set odd crush_rule racks
osd pool set-quota odd max_bytes 123456789
osd pool set-quota odd max_objects 4321
osd pool application enable odd rbd
osd pool application set odd rbd some key
osd pool mksnap legacy first
osd pool mksnap legacy second
osd pool rmsnap legacy first
osd reweight 3 0.5
osd primary-affinity 1 0.3
osd primary-affinity 2 0
osd crush weight-set create-compat
osd crush weight-set reweight-compat osd.0 0.6
osd crush weight-set create ec21 flat
osd crush weight-set reweight ec21 osd.1 0.4
osd crush weight-set create odd positional
osd crush weight-set reweight odd osd.2 0.9 0.1
osd pool set wide pgp_num_actual 11
osd pg-upmap {wide}.0 0 1 2
osd pg-upmap {wide}.1 3 2 1
osd pg-upmap {wide}.2 1 2
osd pg-upmap-items {wide}.3 0 3
osd pg-upmap-items {wide}.4 1 3 2 0
osd pg-upmap-items {ec21}.1 0 3
osd pg-upmap {ec21}.2 3 1 0
osd pg-temp {wide}.5 3 2 1
osd pg-temp {wide}.6 1 0
osd pg-temp {ec21}.3 3 2 1
osd primary-temp {wide}.7 2
osd primary-temp {ec21}.4 1
osd blocklist add 10.0.0.1:0/1234 36000
osd blocklist add 10.0.0.2 36000
osd blocklist add [2001:db8::1]:0/77 36000
osd blocklist rm 10.0.0.2
osd set noout
osd pause
osd unpause
osd set-full-ratio 0.96
osd set-nearfull-ratio 0.8
osd set-group noup,noout h0 osd.3
osd pool rename fast faster
osd pool delete faster faster --yes-i-really-really-mean-it
osd out 0
osd in 0
osd rm-pg-upmap {wide}.1
osd rm-pg-upmap-items {wide}.4
osd setmaxosd 7
osd new 11111111-2222-4333-8444-555555555555
osd down 3
osd new 11111111-2222-4333-8444-555555555556
osd rm 5
";

/// What only later releases know.
const SINCE_REEF: &str = "
osd set-require-min-compat-client reef --yes-i-really-mean-it
osd pg-upmap-primary {legacy}.0 1
osd pg-upmap-primary {legacy}.1 2
osd pg-upmap-primary {legacy}.2 3
osd pg-upmap-primary {legacy}.3 0
osd pg-upmap-primary {legacy}.4 1
osd pg-upmap-primary {legacy}.5 2
osd blocklist range add 10.1.0.0/16 36000
osd blocklist range add 2001:db8:1::/48 36000
osd blocklist range rm 10.1.0.0/16
";

const SINCE_TENTACLE: &str = "
osd erasure-code-profile set pfast plugin=isa k=2 m=1 crush-failure-domain=osd
osd pool create fastec 16 16 erasure pfast
osd pool set fastec allow_ec_optimizations true
osd pg-temp {fastec}.0 3 2 1
osd pool stretch set odd 2 2 rack racks 2 1
";

#[test]
fn live_maps_read_as_their_own_tools_read_them() {
    for release in releases() {
        let options = Options {
            release: *release,
            osds: 4,
            conf: "mon debug no require bluestore for ec overwrites = true\n",
            ..Options::default()
        };
        let ceph = Ceph::start(options);
        exercise(&ceph, *release);
        let last = epoch(&ceph);
        for epoch in [last / 3, last * 2 / 3, last] {
            dump_agrees(&ceph, epoch, &full_map(&ceph, epoch));
        }
        tool_agrees(&ceph, &full_map(&ceph, last));
        other_hashes(&ceph, &full_map(&ceph, last));
        history(&ceph);
    }
}

/// Has one `ceph` read all commands. Their numbers of pools are those that the pools before them were given.
fn exercise(ceph: &Ceph, release: Release) {
    let mut commands = EXERCISE.to_owned();
    if release >= Release::Reef {
        commands += SINCE_REEF;
    }
    if release >= Release::Tentacle {
        commands += SINCE_TENTACLE;
    }
    // `rbd` is the first.
    let mut pools = 1;
    let mut names = Vec::new();
    for line in commands.lines() {
        if let Some(rest) = line.strip_prefix("osd pool create ") {
            pools += 1;
            names.push((format!("{{{}}}", rest.split(' ').next().unwrap()), pools.to_string()));
        }
    }
    for (name, id) in names {
        commands = commands.replace(&name, &id);
    }
    let mut child = ceph
        .command("ceph")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    println!("{said}");
    assert!(done.status.success(), "{said}");
}

fn epoch(ceph: &Ceph) -> u32 {
    let dump: Value = serde_json::from_str(&ceph.ceph(&["osd", "dump", "-f", "json"])).unwrap();
    dump["epoch"].as_u64().unwrap() as u32
}

/// The file of a full map, as the monitors have it.
fn full_map(ceph: &Ceph, epoch: u32) -> String {
    let file = ceph.dir().join(format!("osdmap.{epoch}")).to_str().unwrap().to_owned();
    if !fs::exists(&file).unwrap() {
        ceph.ceph(&["osd", "getmap", &epoch.to_string(), "-o", &file]);
    }
    file
}

fn read(file: &str) -> OsdMap {
    OsdMap::decode(&fs::read(file).unwrap()).unwrap()
}

/// What of Ceph's dump we don't keep: words for what is there as a number, addresses of before Nautilus, scores.
const NOT_KEPT: &[&str] = &[
    "flags",
    "flags_set",
    "min_compat_client",
    "pools.flags_names",
    "pools.cache_mode",
    "pools.hit_set_params",
    "pools.grade_table",
    "pools.options",
    "pools.read_balance",
    "pools.is_stretch_pool",
    "pools.nonprimary_shards",
    "pools.peering_crush_bucket_count",
    "pools.peering_crush_bucket_target",
    "pools.peering_crush_bucket_barrier",
    "pools.peering_crush_bucket_mandatory_member",
    "osds.public_addr",
    "osds.cluster_addr",
    "osds.heartbeat_back_addr",
    "osds.heartbeat_front_addr",
];

fn dump_agrees(ceph: &Ceph, epoch: u32, file: &str) {
    let command = ["osd", "dump", &epoch.to_string(), "-f", "json"];
    let theirs: Value = serde_json::from_str(&ceph.ceph(&command)).unwrap();
    let map = read(file);
    assert_eq!(map.epoch, Epoch(epoch));
    let ours = dump::dump(&map);
    let mut wrong = Vec::new();
    differences("", &ours, &theirs, &mut wrong);
    assert!(wrong.is_empty(), "epoch {epoch}:\n{}", wrong.join("\n"));
}

/// Where two dumps differ. Fields of one only count unless they are [`NOT_KEPT`]; what an older release does not know
/// is empty in ours.
fn differences(path: &str, ours: &Value, theirs: &Value, wrong: &mut Vec<String>) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, value) in ours {
                match theirs.get(name) {
                    Some(other) => differences(&below(name), value, other, wrong),
                    None if is_nothing(value) => {}
                    None => wrong.push(format!("{}: only ours: {value}", below(name))),
                }
            }
            for (name, value) in theirs.iter().filter(|(name, _)| !ours.contains_key(*name)) {
                if !NOT_KEPT.contains(&below(name).as_str()) {
                    wrong.push(format!("{}: only theirs: {value}", below(name)));
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (ours, theirs) in ours.iter().zip(theirs) {
                differences(path, ours, theirs, wrong);
            }
        }
        (ours, theirs) => {
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * b.abs();
            let close = match (ours.as_f64(), theirs.as_f64()) {
                (Some(ours), Some(theirs)) => near(ours, theirs),
                _ => false,
            };
            if ours != theirs && !close {
                wrong.push(format!("{path}: ours {ours}, theirs {theirs}"));
            }
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(truth) => !truth,
        _ => false,
    }
}

/// What the example prints of a map.
fn printed(map: &OsdMap, args: &Args) -> String {
    let mut out = String::new();
    ours::run(args, map, &mut out).unwrap();
    out
}

/// osdmaptool's groups and objects, line by line.
fn tool_agrees(ceph: &Ceph, file: &str) {
    let map = read(file);
    let theirs = ceph.run("osdmaptool", &[file, "--test-map-pgs-dump-all"]).ok();
    let ours = printed(&map, &Args { dump_all: true, ..Args::default() });
    for (ours, theirs) in ours.lines().zip(theirs.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours, theirs);
    for pool in map.pools.keys() {
        object_agrees(ceph, file, &map, *pool, "rbd_data.1f2e3d4c5b6a.0000000000000007");
    }
}

fn object_agrees(ceph: &Ceph, file: &str, map: &OsdMap, pool: PoolId, name: &str) {
    let id = pool.to_string();
    let theirs = ceph.run("osdmaptool", &[file, "--test-map-object", name, "--pool", &id]).ok();
    let object = Some(name.to_owned());
    assert_eq!(printed(map, &Args { object, pool: Some(pool), ..Args::default() }), theirs);
}

/// The other hash of names, which no command sets any more: a map with it, written by us, read by osdmaptool.
fn other_hashes(ceph: &Ceph, file: &str) {
    let mut map = read(file);
    let mut change = Incremental::after(&map);
    let mut pool = map.pool(PoolId(1)).unwrap().clone();
    pool.object_hash = hash_kind::LINUX;
    change.pools.insert(PoolId(1), pool);
    map.apply(&change).unwrap();
    let other = ceph.dir().join("other").to_str().unwrap().to_owned();
    // As the monitors of each release write it: pools of Tentacle have more to say.
    let is_new = map.pools.values().any(|pool| pool.has(pool_flag::EC_OPTIMIZATIONS));
    let features = if is_new { 0x3f07_ffff_fffd_ffff } else { 0x3f01_cfbf_fffd_ffff };
    fs::write(&other, map.encode(features)).unwrap();
    for name in
        ["a", "object", "rbd_data.1f2e3d4c5b6a.0000000000000007", "Größe", "0123456789abcdef"]
    {
        object_agrees(ceph, &other, &map, PoolId(1), name);
    }
}

/// Every incremental in the monitor's store gives the next full map there, field for field.
fn history(ceph: &Ceph) {
    let last = epoch(ceph);
    ceph.kill_mon(0);
    let store = ceph.dir().join("mon/a/store.db").to_str().unwrap().to_owned();
    let out = ceph.dir().join("value").to_str().unwrap().to_owned();
    let get = |key: &str| {
        ceph.run("ceph-kvstore-tool", &["rocksdb", &store, "get", "osdmap", key, "out", &out]).ok();
        fs::read(&out).unwrap()
    };
    let mut map = OsdMap::default();
    for epoch in 1..=last {
        map.apply(&Incremental::decode(&get(&epoch.to_string())).unwrap()).unwrap();
        let full = OsdMap::decode(&get(&format!("full_{epoch}"))).unwrap();
        assert!(map == full, "epoch {epoch}: {}", first_difference(&map, &full));
    }
    assert!(last > 60, "only {last} epochs");
}

fn first_difference(ours: &OsdMap, theirs: &OsdMap) -> String {
    let mut wrong = Vec::new();
    differences("", &dump::dump(ours), &dump::dump(theirs), &mut wrong);
    wrong.join("\n")
}

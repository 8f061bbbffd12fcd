//! Everything that needs a real cluster: our program against Ceph's own daemons, clients and tools, and QEMU's and
//! libnbd's. One test program, so that tests share clusters, which cost seconds.

#[path = "../support/mod.rs"]
mod support;

mod clones;
mod cluster;
mod connect;
mod data;
mod devices;
mod dns;
mod examples;
mod faults;
mod flatten;
mod fsx;
mod guest;
mod images;
mod journal;
mod keys;
mod layers;
mod load;
mod lock;
mod maintain;
mod map;
mod matrix;
mod monitors;
mod object_maps;
mod odd;
mod ops;
mod options;
mod osdmap;
mod placement;
mod qa;
mod qa_rbd;
mod replicas;
mod shared;
mod space;
mod steps;
mod streams;
mod telemetry;
mod tools;
mod trash;
mod twins;
mod ublk;
mod verbs;
mod watch;

use std::path::Path;
use std::sync::OnceLock;

use ceph_native::config::{Args, Process};
use ceph_native::{Cluster, Config};
use support::{Ceph, Options, Release, Store, run};

/// Lets a client of ours work on a runtime of its own, with which all that it began ends.
fn with_client<T>(ceph: &Ceph, work: impl AsyncFnOnce(Cluster) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let cluster = Cluster::connect(config_of(ceph, &[])).await.unwrap();
        work(cluster).await
    })
}

/// How a client of ours finds a cluster, with more options.
fn config_of(ceph: &Ceph, more: &[&str]) -> Config {
    let mut words = vec!["-c".to_owned(), ceph.conf().display().to_string()];
    words.extend(more.iter().map(|word| (*word).to_owned()));
    Config::load(&Args::take(&mut words).unwrap(), &Process).unwrap()
}

/// A cluster of one memstore OSD, shared by all tests that don't break it.
fn one_osd() -> &'static Ceph {
    one_osd_of(Release::Pacific)
}

fn one_osd_of(release: Release) -> &'static Ceph {
    static CLUSTERS: [OnceLock<Ceph>; ALL.len()] = [const { OnceLock::new() }; ALL.len()];
    let at = ALL.iter().position(|other| *other == release).unwrap();
    CLUSTERS[at].get_or_init(|| Ceph::start(Options { release, ..Options::default() }))
}

/// Runs a test on the shared cluster of one OSD of each of [`releases`].
fn on_each_release(test: impl Fn(&Ceph)) {
    releases().iter().for_each(|release| test(one_osd_of(*release)));
}

/// Runs a test on a cluster of one OSD of its own, of each of [`releases`].
fn on_new_clusters(test: impl Fn(&Ceph)) {
    on_new_clusters_with("", test);
}

/// The same, with more lines for the daemons' `ceph.conf`.
fn on_new_clusters_with(conf: &'static str, test: impl Fn(&Ceph)) {
    for release in releases() {
        test(&Ceph::start(Options { release: *release, conf, ..Options::default() }));
    }
}

/// A cluster of three bluestore OSDs with three replicas, shared by all tests that don't break it.
fn three_osds() -> &'static Ceph {
    static CLUSTER: OnceLock<Ceph> = OnceLock::new();
    let options = Options { osds: 3, store: Store::Bluestore, ..Options::default() };
    CLUSTER.get_or_init(|| Ceph::start(options))
}

/// For a cluster whose only OSD is stopped for a while: a placement group whose lease to read expired meanwhile (4 s as
/// these are) stays "laggy" at times, and lets all operations wait until it peers again
/// (https://github.com/ceph/ceph-container/issues/1682, https://tracker.ceph.com/issues/80404).
const LONG_LEASE: &str = "osd pool default read lease ratio = 100\n";

/// Whether the long runs were asked for (`tests/run --full`).
fn full() -> bool {
    std::env::var_os("CEPH_NATIVE_FULL").is_some()
}

static ALL: [Release; 3] = Release::ALL;

/// What a test runs on: Ceph 16, or every release if the long runs were asked for, or the one that
/// `CEPH_NATIVE_RELEASE` names.
fn releases() -> &'static [Release] {
    let named = std::env::var("CEPH_NATIVE_RELEASE").ok();
    match named.and_then(|named| ALL.iter().find(|release| release.to_string() == named)) {
        Some(release) => std::slice::from_ref(release),
        None if full() => &ALL,
        None => &ALL[..1],
    }
}

fn sha256(file: &Path) -> String {
    let out = run("sha256sum", &["-b", file.to_str().unwrap()]).ok();
    out.split(' ').next().unwrap().to_owned()
}

/// A file of random bytes.
fn random_file(path: &Path, bytes: u64) {
    use std::io::Read as _;
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut std::fs::File::create(path).unwrap()).unwrap();
}

/// Sizes of a busy disk: many small, some of a whole megabyte, and odd ones.
const MIXED_SIZES: &str = "--bssplit=512/20:1536/5:4k/25:16k/15:20k/5:64k/15:256k/10:1M/5";

/// Runs fio, which writes and verifies the checksum of every block, with four jobs on their own quarter each.
#[track_caller]
fn fio_verify(ceph: &Ceph, megabytes: u32, target: &[&str]) {
    let quarter = format!("{}M", megabytes / 4);
    let (size, offset) = (format!("--size={quarter}"), format!("--offset_increment={quarter}"));
    let loops = if full() { "--loops=5" } else { "--loops=1" };
    let mut args =
        vec!["--name=mixed", "--rw=randwrite", MIXED_SIZES, "--iodepth=16", "--numjobs=4", loops];
    args.extend([size.as_str(), offset.as_str()]);
    args.extend([
        "--verify=crc32c",
        "--verify_state_save=0",
        "--verify_fatal=1",
        "--do_verify=1",
        "--end_fsync=1",
    ]);
    args.extend(["--group_reporting=1", "--output-format=json"]);
    args.extend(target);
    let ran = ceph.run("fio", &args);
    let message = ran.to_string();
    let report = fio_report(&ran.ok());
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{message}");
    assert!(job["write"]["total_ios"].as_u64() > Some(0), "{message}");
    assert_eq!(
        job["write"]["total_ios"], job["read"]["total_ios"],
        "not all was verified: {message}"
    );
}

/// fio's JSON, which it prints after whatever warnings it has.
fn fio_report(out: &str) -> serde_json::Value {
    let start = out.find("\n{").map_or(0, |at| at + 1);
    serde_json::from_str(&out[start..]).unwrap_or_else(|e| panic!("{e} in {out}"))
}

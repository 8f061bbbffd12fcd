//! Ceph's own clients against a devcluster: `rados`, `rbd`, `ceph`, and fio's `rbd` engine of the installed release.
//!
//! A program that is missing fails the test: `tests/install` installs them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use devcluster::{ConnectionMode, Daemon, DevCluster, Options, PoolOptions};
use proto::types::OsdId;

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("devcluster-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a client and returns what it printed; `None` if it failed. One that hangs fails the test.
fn try_client(conf: &Path, program: &str, arguments: &[&str]) -> Option<Vec<u8>> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", program]).args(arguments);
    command.env("CEPH_CONF", conf).env("CEPH_ARGS", "--log-file=/dev/null").stdin(Stdio::null());
    let ran = command.output().unwrap_or_else(|error| panic!("timeout: {error}"));
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert_ne!(ran.status.code(), Some(124), "{program} {arguments:?} hangs: {errors}");
    assert_ne!(ran.status.code(), Some(127), "{program} is missing: run tests/install");
    if !ran.status.success() {
        eprintln!("{program} {arguments:?}: {errors}");
        return None;
    }
    Some(ran.stdout)
}

fn client(conf: &Path, program: &str, arguments: &[&str]) -> String {
    let out = try_client(conf, program, arguments);
    let out = out.unwrap_or_else(|| panic!("{program} {arguments:?} failed"));
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn rados_stores_objects() {
    let folder = Folder::new();
    let cluster = DevCluster::start(Options { osds: 3, ..Options::default() }).await.unwrap();
    let conf = cluster.write_conf(&folder.0).unwrap();
    let rados = |arguments: &[&str]| client(&conf, "rados", &[&["-p", "rbd"], arguments].concat());
    let content: Vec<u8> = (0..9_000_000u32).map(|i| (i / 7) as u8).collect();
    let file = folder.file("content", &content);
    rados(&["put", "object", &file]);
    let back = folder.file("back", b"");
    rados(&["get", "object", &back]);
    assert!(std::fs::read(back).unwrap() == content);
    assert!(rados(&["stat", "object"]).contains("size 9000000"));
    for i in 0..40 {
        rados(&["create", &format!("o{i}")]);
    }
    let mut names: Vec<String> = rados(&["ls"]).lines().map(str::to_owned).collect();
    names.sort();
    assert_eq!((names.len(), names[0].as_str()), (41, "o0"));
    rados(&["-N", "space", "create", "hidden"]);
    assert_eq!(rados(&["-N", "space", "ls"]), "hidden\n");
    assert!(rados(&["ls", "--all"]).contains("space\thidden"));
    rados(&["setomapval", "o1", "key", "value"]);
    rados(&["setomapheader", "o1", "header"]);
    let values = rados(&["listomapvals", "o1"]);
    assert!(values.contains("key") && values.contains("|value|"), "{values}");
    assert!(rados(&["getomapheader", "o1"]).contains("header (6 bytes)"));
    rados(&["rmomapkey", "o1", "key"]);
    assert_eq!(rados(&["listomapkeys", "o1"]), "");
    rados(&["setxattr", "o2", "name", "text"]);
    assert_eq!(rados(&["getxattr", "o2", "name"]), "text");
    assert_eq!(rados(&["listxattr", "o2"]), "name\n");
    rados(&["lock", "get", "o3", "lock", "--lock-cookie", "c"]);
    assert!(rados(&["lock", "info", "o3", "lock"]).contains("exclusive"));
    rados(&["rm", "object"]);
    assert!(try_client(&conf, "rados", &["-p", "rbd", "stat", "object"]).is_none());
    rados(&["bench", "2", "write", "-b", "65536", "--no-cleanup"]);
    rados(&["bench", "1", "seq"]);
    rados(&["cleanup"]);
    assert!(rados(&["df"]).contains("rbd"));

    assert!(client(&conf, "ceph", &["-s"]).contains("3 osds: 3 up, 3 in"));
    client(&conf, "ceph", &["osd", "pool", "create", "more", "4"]);
    assert_eq!(client(&conf, "ceph", &["osd", "pool", "ls"]), "rbd\nmore\n");
    assert!(try_client(&conf, "ceph", &["osd", "nonsense"]).is_none());
    cluster.stop().await;
}

/// An image of the default features, a clone of it, and data that all go on being what they were.
fn images(conf: &Path, folder: &Folder) {
    let rbd = |arguments: &[&str]| client(conf, "rbd", arguments);
    rbd(&["create", "--size", "64M", "image"]);
    let info = rbd(&["info", "image"]);
    for feature in ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"] {
        assert!(info.contains(feature), "{info}");
    }
    assert_eq!(rbd(&["ls"]), "image\n");
    rbd(&["bench", "--io-type", "write", "--io-size", "4K", "--io-total", "4M", "image"]);
    rbd(&["snap", "create", "--no-progress", "image@s"]);
    let before = sum(conf, "image");
    rbd(&[
        "bench",
        "--io-type",
        "write",
        "--io-pattern",
        "rand",
        "--io-size",
        "4K",
        "--io-total",
        "4M",
        "image",
    ]);
    assert_eq!(sum(conf, "image@s"), before);
    assert_ne!(sum(conf, "image"), before);
    rbd(&["snap", "rollback", "--no-progress", "image@s"]);
    assert_eq!(sum(conf, "image"), before);
    rbd(&["clone", "--rbd-default-clone-format", "2", "image@s", "clone"]);
    assert_eq!(rbd(&["children", "image@s"]), "rbd/clone\n");
    assert_eq!(sum(conf, "clone"), before);
    rbd(&["bench", "--io-type", "write", "--io-size", "4K", "--io-total", "1M", "clone"]);
    rbd(&["flatten", "--no-progress", "clone"]);
    rbd(&["snap", "rm", "--no-progress", "image@s"]);
    rbd(&["resize", "--no-progress", "--size", "80M", "clone"]);
    rbd(&["object-map", "check", "--no-progress", "clone"]);
    assert!(!rbd(&["info", "clone"]).contains("invalid"));
    let diff = rbd(&["du", "clone"]);
    assert!(diff.contains("80 MiB"), "{diff}");
    rbd(&["rename", "clone", "renamed"]);
    rbd(&["trash", "mv", "renamed"]);
    assert!(rbd(&["trash", "ls"]).contains("renamed"));
    rbd(&["trash", "purge", "--no-progress"]);
    rbd(&["namespace", "create", "rbd/space"]);
    rbd(&["create", "--size", "8M", "rbd/space/inner"]);
    assert_eq!(rbd(&["ls", "rbd/space"]), "inner\n");
    rbd(&[
        "create",
        "--size",
        "32M",
        "--data-pool",
        "data",
        "--stripe-unit",
        "64K",
        "--stripe-count",
        "4",
        "striped",
    ]);
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 3) as u8).collect();
    let file = folder.file("content", &content);
    rbd(&["import", "--no-progress", "--data-pool", "data", &file, "imported"]);
    let back = try_client(conf, "rbd", &["export", "--no-progress", "imported", "-"]).unwrap();
    assert!(back[..content.len()] == content && back[content.len()..].iter().all(|b| *b == 0));
    for image in ["image", "striped", "imported", "rbd/space/inner"] {
        rbd(&["rm", "--no-progress", image]);
    }
    assert_eq!(rbd(&["ls"]), "");
    // All that is left of data pools is a mark that images may be there.
    assert_eq!(client(conf, "rados", &["-p", "data", "ls"]), "rbd_info\n");
}

fn sum(conf: &Path, image: &str) -> Vec<u8> {
    let exported = try_client(conf, "rbd", &["export", "--no-progress", image, "-"]).unwrap();
    let mut sha =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sha.stdin.take().unwrap().write_all(&exported).unwrap();
    sha.wait_with_output().unwrap().stdout
}

#[tokio::test]
async fn rbd_keeps_images() {
    let modes = [
        (true, vec![ConnectionMode::Secure, ConnectionMode::Crc]),
        (true, vec![ConnectionMode::Secure]),
        (false, vec![ConnectionMode::Crc]),
    ];
    for (auth, modes) in modes {
        let folder = Folder::new();
        let pools = vec![PoolOptions::new("rbd"), PoolOptions::new("data")];
        let (mon_modes, osd_modes) = (modes.clone(), modes);
        let options = Options { pools, auth, mon_modes, osd_modes, ..Options::default() };
        let cluster = DevCluster::start(options).await.unwrap();
        let conf = cluster.write_conf(&folder.0).unwrap();
        images(&conf, &folder);
        cluster.stop().await;
    }
}

#[tokio::test]
async fn fio_verifies_while_osds_come_and_go() {
    let folder = Folder::new();
    let cluster = DevCluster::start(Options { osds: 3, ..Options::default() }).await.unwrap();
    let conf = cluster.write_conf(&folder.0).unwrap();
    client(&conf, "rbd", &["create", "--size", "64M", "image"]);
    let fio_conf = conf.clone();
    let state = folder.0.clone();
    let fio = tokio::task::spawn_blocking(move || {
        let aux = format!("--aux-path={}", state.display());
        client(
            &fio_conf,
            "fio",
            &[
                "--name=verify",
                "--ioengine=rbd",
                "--clientname=admin",
                "--pool=rbd",
                "--rbdname=image",
                "--rw=randwrite",
                "--bsrange=512-128k",
                "--iodepth=16",
                "--size=64M",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--loops=2",
                &aux,
            ],
        )
    });
    let started = Instant::now();
    let mut round = 0;
    while !fio.is_finished() && started.elapsed() < Duration::from_secs(8) {
        tokio::time::sleep(Duration::from_millis(150)).await;
        let osd = OsdId(round % 3);
        match round % 4 {
            0 => {
                cluster.stop_osd(osd, true).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                cluster.start_osd(osd).await.unwrap();
            }
            1 => drop(cluster.drop_connections(None).await),
            2 => {
                cluster.freeze(Daemon::Osd(osd), true).await;
                cluster.mark_down(osd).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                cluster.freeze(Daemon::Osd(osd), false).await;
                cluster.mark_up(osd).await;
            }
            _ => cluster.bump_map().await,
        }
        round += 1;
    }
    let report = fio.await.unwrap();
    assert!(report.contains("err= 0"), "{report}");
    assert!(round > 3, "fio was done before anything happened");
    cluster.stop().await;
}

/// The program, as somebody would run it.
struct Program(Child);

impl Program {
    fn start(folder: &Folder) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_devcluster"))
            .arg("--dir")
            .arg(folder.0.join("conf"))
            .arg("--data")
            .arg(folder.0.join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is up once it says how to use it.
        let said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.take(4).any(|line| line.contains("CEPH_CONF")));
        Self(child)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_killed_cluster_has_what_it_acknowledged() {
    let folder = Folder::new();
    let conf = folder.0.join("conf/ceph.conf");
    let file = folder.file("content", &[42; 100_000]);
    let program = Program::start(&folder);
    client(&conf, "rbd", &["create", "--size", "16M", "image"]);
    client(
        &conf,
        "rbd",
        &["bench", "--io-type", "write", "--io-size", "4K", "--io-total", "1M", "image"],
    );
    client(&conf, "rbd", &["snap", "create", "--no-progress", "image@s"]);
    let mut written = 0;
    let before = sum(&conf, "image");
    drop(program);
    for _ in 0..2 {
        let program = Program::start(&folder);
        assert_eq!(sum(&conf, "image"), before);
        assert!(client(&conf, "rbd", &["snap", "ls", "image"]).contains(" s "));
        let listed = client(&conf, "rados", &["-p", "rbd", "ls"]);
        let kept = listed.lines().filter(|name| name.starts_with("object")).count();
        assert_eq!(kept, written, "{listed}");
        for _ in 0..5 {
            client(&conf, "rados", &["-p", "rbd", "put", &format!("object{written}"), &file]);
            written += 1;
        }
        drop(program);
    }
}

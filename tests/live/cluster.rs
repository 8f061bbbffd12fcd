//! That the harness itself does what the other tests rely on.

use std::time::Duration;

use crate::full;
use crate::support::{Auth, Ceph, Mode, Options, Release, Store, run};

#[test]
fn clusters_of_every_kind_take_writes() {
    for (auth, mode) in
        [(Auth::Cephx, Mode::Crc), (Auth::None, Mode::Crc), (Auth::Cephx, Mode::Secure)]
    {
        let ceph = Ceph::start(Options { auth, mode, ..Options::default() });
        ceph.rbd(&["create", "--size", "1M", "image"]);
        assert_eq!(ceph.rbd(&["ls"]), "image\n", "{auth:?} {mode:?}");
    }
}

#[test]
fn clusters_of_every_release_take_writes() {
    if !full() {
        return;
    }
    let (reef, tentacle) = (Release::Reef, Release::Tentacle);
    for (release, auth, key) in [
        (reef, Auth::Cephx, "AQ"),
        (reef, Auth::None, "AQ"),
        (tentacle, Auth::Cephx, "Ag"),
        (tentacle, Auth::Mixed, "Ag"),
        (tentacle, Auth::Aes, "AQ"),
    ] {
        let ceph = Ceph::start(Options { release, auth, ..Options::default() });
        let version = ceph.ceph(&["version"]);
        assert!(version.contains(&format!("ceph version {release}.")), "{version}");
        ceph.rbd(&["create", "--size", "1M", "image"]);
        assert_eq!(ceph.rbd(&["ls"]), "image\n", "{release} {auth:?}");
        let keys = std::fs::read_to_string(ceph.keyring()).unwrap();
        assert!(keys.contains(&format!("key = {key}")), "{release} {auth:?}: {keys}");
    }
}

#[test]
fn what_was_written_outlives_an_osd_and_a_monitor() {
    let options = Options { osds: 3, mons: 3, store: Store::Bluestore, ..Options::default() };
    let ceph = Ceph::start(options);
    let conf = ceph.conf();
    ceph.rados(&["-p", "rbd", "put", "conf", conf.to_str().unwrap()]);
    ceph.kill_mon(0);
    ceph.kill_osd(1);
    ceph.start_osd(1);
    assert!(ceph.rados(&["-p", "rbd", "get", "conf", "-"]).contains("mon host"));
    ceph.start_mon(0);
    assert!(ceph.rados(&["-p", "rbd", "get", "conf", "-"]).contains("mon host"));
}

#[test]
fn a_cluster_ends_with_its_guard() {
    let ceph = Ceph::start(Options::default());
    let (dir, pid) = (ceph.dir().to_owned(), ceph.pid("osd.0").to_string());
    assert_eq!(run("kill", &["-0", &pid]).code, 0);
    drop(ceph);
    assert_ne!(run("kill", &["-0", &pid]).code, 0);
    std::thread::sleep(Duration::from_millis(10));
    assert!(!dir.exists());
}

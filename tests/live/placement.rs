//! Where objects are, and that nobody who reads or writes them notices when that changes.

use crate::full;
use crate::support::{Ceph, Options, Release, Store};

#[test]
fn osd_map_says_what_ceph_osd_map_says() {
    let releases = if full() { &Release::ALL[..] } else { &Release::ALL[..1] };
    for release in releases {
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

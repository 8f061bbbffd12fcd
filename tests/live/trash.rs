//! What is put into the trash in place of being removed, and what goes from there; and snapshots that go although
//! clones hang on them.

use crate::on_each_release;
use crate::support::{Ceph, Ran};
use crate::verbs::refused_alike;

type Program = fn(&Ceph, &[&str]) -> Ran;

fn ours(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.ours(args)
}

fn theirs(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.run("rbd", args)
}

const V2: [&str; 2] = ["--rbd-default-clone-format", "2"];

fn clone(ceph: &Ceph, snap: &str, clone: &str) {
    ceph.rbd(&[&["clone", snap, clone], &V2[..]].concat());
}

fn in_trash(ceph: &Ceph, pool: &str) -> Vec<String> {
    let images = ceph.run("rbd", &["trash", "ls", "-l", "--format", "json", pool]).json();
    let images = images.as_array().unwrap().iter();
    let mut all: Vec<_> =
        images.map(|image| format!("{} {}", image["name"], image["source"])).collect();
    all.sort();
    all
}

/// A clone of a clone, of snapshots that were removed: each parent goes with its last clone, by whichever program.
#[test]
fn parents_stay_in_the_trash_until_their_last_clone_is_gone() {
    on_each_release(|ceph| {
        let programs: [(&str, Program); 2] = [("ours", ours), ("theirs", theirs)];
        for (first, keep) in programs {
            for (second, remove) in programs {
                let pool = format!("parents-{first}-{second}");
                ceph.create_pool(&pool);
                let name = |image: &str| format!("{pool}/{image}");
                ceph.rbd(&["create", "--size", "8M", &name("base")]);
                ceph.rbd(&["snap", "create", "--no-progress", &name("base@s")]);
                clone(ceph, &name("base@s"), &name("middle"));
                ceph.rbd(&["snap", "rm", "--no-progress", &name("base@s")]);
                ceph.rbd(&["snap", "create", "--no-progress", &name("middle@s")]);
                clone(ceph, &name("middle@s"), &name("leaf"));
                clone(ceph, &name("middle@s"), &name("second"));
                ceph.rbd(&["snap", "rm", "--no-progress", &name("middle@s")]);
                // Without a manager nobody knows how full a pool is, and nothing is too full.
                ceph.ours(&["trash", "purge", "--threshold", "0", &pool]).ok();
                refused_alike(ceph, &["trash", "purge", "--threshold", "1.5", &pool]);
                // What keeps it: a snapshot, then only one that was removed.
                let refused = ["rm", "--no-progress", &name("base")];
                ceph.rbd(&["snap", "create", "--no-progress", &name("base@other")]);
                for why in [refused_alike(ceph, &refused), theirs(ceph, &refused).err] {
                    assert!(why.contains("image has snapshots"), "{why}");
                    assert!(!why.contains("linked clones"), "{why}");
                }
                ceph.rbd(&["snap", "rm", "--no-progress", &name("base@other")]);
                for why in [refused_alike(ceph, &refused), theirs(ceph, &refused).err] {
                    assert!(why.contains("image has snapshots with linked clones"), "{why}");
                }
                let rm = ["rm", "--no-progress", "--rbd-move-parent-to-trash-on-remove=true"];
                for image in ["base", "middle"] {
                    keep(ceph, &[&rm[..], &[&name(image)]].concat()).ok();
                }
                let kept = [r#""base" "USER_PARENT""#, r#""middle" "USER_PARENT""#];
                assert_eq!(in_trash(ceph, &pool), kept, "{pool}");
                // One that has another snapshot is not such a one.
                ceph.rbd(&["snap", "create", "--no-progress", &name("leaf@s")]);
                let refused = keep(ceph, &[&rm[..], &[&name("leaf")]].concat());
                assert_eq!(refused.code, 39, "{refused}");
                ceph.rbd(&["snap", "rm", "--no-progress", &name("leaf@s")]);
                remove(ceph, &["rm", "--no-progress", &name("leaf")]).ok();
                assert_eq!(in_trash(ceph, &pool), kept, "{pool}");
                remove(ceph, &["rm", "--no-progress", &name("second")]).ok();
                assert!(in_trash(ceph, &pool).is_empty(), "{pool}: {:?}", in_trash(ceph, &pool));
                let left = ceph.rados(&["-p", &pool, "ls"]);
                assert!(!left.contains("rbd_header") && !left.contains("rbd_data"), "{left}");
            }
        }
    });
}

/// Clones of both versions keep what they show.
#[test]
fn a_snapshot_with_clones_goes_by_force() {
    on_each_release(|ceph| {
        ceph.create_pool("forced");
        ceph.rbd(&["namespace", "create", "forced/ns"]);
        for (program, name) in [(ours as Program, "ours"), (theirs, "theirs")] {
            let base = format!("forced/{name}");
            let snap = format!("{base}@s");
            ceph.rbd(&["create", "--size", "8M", &base]);
            ceph.rbd(&["bench", &base, "--io-type", "write", "--io-total", "2M"]);
            ceph.rbd(&["snap", "create", "--no-progress", &snap]);
            ceph.rbd(&["snap", "protect", &snap]);
            let wanted = ceph.exported(&snap);
            let clones = [format!("{base}-1"), format!("{base}-2"), format!("forced/ns/{name}")];
            ceph.rbd(&["clone", "--rbd-default-clone-format", "1", &snap, &clones[0]]);
            for clone in &clones[1..] {
                self::clone(ceph, &snap, clone);
            }
            assert_eq!(program(ceph, &["snap", "rm", "--no-progress", &snap]).code, 16);
            // Of a clone that is not flattened deeply, snapshots go on to show the parent.
            let shallow = format!("{base}-shallow");
            let layering = ["--image-feature", "layering"];
            ceph.rbd(&[&["clone", &snap, &shallow], &V2[..], &layering].concat());
            ceph.rbd(&["snap", "create", "--no-progress", &format!("{shallow}@s")]);
            let refused = program(ceph, &["snap", "rm", "--force", "--no-progress", &snap]);
            assert_eq!(refused.code, 16, "{refused}");
            ceph.rbd(&["snap", "rm", "--no-progress", &format!("{shallow}@s")]);
            program(ceph, &["snap", "rm", "--force", "--no-progress", &snap]).ok();
            assert_eq!(ceph.rbd(&["snap", "ls", "--all", &base]), "");
            assert_eq!(ceph.rbd(&["children", "--all", &base]), "");
            for clone in clones.iter().chain([&shallow]) {
                assert_eq!(ceph.exported(clone), wanted, "{clone}");
                assert!(!ceph.rbd(&["info", clone]).contains("parent"), "{clone}");
            }
        }
    });
}

//! `export-diff` and `import-diff` with librbd at either end; and what else Ceph's own scripts call for
//! (`docs/images.md`), without these scripts.

use std::path::Path;

use crate::support::{Ceph, Ran};
use crate::verbs::{printed_alike, refused_alike};
use crate::{on_each_release, sha256};

/// One of the two programs.
type Program = fn(&Ceph, &[&str]) -> Ran;

fn ours(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.ours(args)
}

fn theirs(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.run("rbd", args)
}

/// What an image or snapshot holds, as librbd sees it.
fn content(ceph: &Ceph, spec: &str) -> String {
    let file = ceph.dir().join("streamed");
    let _ = std::fs::remove_file(&file);
    ceph.rbd(&["export", "--no-progress", spec, file.to_str().unwrap()]);
    sha256(&file)
}

#[test]
fn what_has_changed_goes_from_one_image_to_another() {
    on_each_release(|ceph| {
        let file = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
        let bench = |total| {
            let io = ["--io-type", "write", "--io-pattern", "rand", "--io-total", total];
            ceph.rbd(&[&["bench", "changing"], &io[..]].concat());
        };
        ceph.rbd(&["create", "changing", "--size", "64M", "--object-size", "1M"]);
        bench("2M");
        ceph.rbd(&["snap", "create", "--no-progress", "changing@one"]);
        bench("1M");
        // Some of it is no longer there, and all of it is longer.
        ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "32M", "changing"]);
        ceph.rbd(&["resize", "--no-progress", "--size", "70M", "changing"]);
        bench("64K");
        ceph.rbd(&["snap", "create", "--no-progress", "changing@two"]);
        let wanted = ["one", "two"].map(|snap| content(ceph, &format!("changing@{snap}")));
        assert_ne!(wanted[0], wanted[1]);
        let ways: [(&str, Program, Program); 3] =
            [("to-rbd", ours, theirs), ("from-rbd", theirs, ours), ("between", ours, ours)];
        for (name, export, import) in ways {
            let copy = format!("changed-{name}");
            let (first, second) = (file(&format!("{name}.1")), file(&format!("{name}.2")));
            export(ceph, &["export-diff", "--no-progress", "changing@one", &first]).ok();
            let since = ["--from-snap", "one", "--no-progress", "changing@two"];
            export(ceph, &[&["export-diff"], &since[..], &[&second]].concat()).ok();
            ceph.rbd(&["create", &copy, "--size", "1M"]);
            // What it begins at is not there.
            assert_eq!(refused_alike(ceph, &["import-diff", &second, &copy]).lines().count(), 1);
            import(ceph, &["import-diff", "--no-progress", &first, &copy]).ok();
            import(ceph, &["import-diff", "--no-progress", &second, &copy]).ok();
            let found = ["one", "two"].map(|snap| content(ceph, &format!("{copy}@{snap}")));
            assert_eq!(found, wanted, "{name}");
            assert_eq!(content(ceph, &copy), wanted[1], "{name}");
            ceph.check_object_map(&copy);
            // What it ends at is there.
            refused_alike(ceph, &["import-diff", &second, &copy]);
        }
        // What follows one another can be made one.
        let part = |which| file(&format!("between.{which}"));
        ceph.rbd(&["merge-diff", "--no-progress", &part("1"), &part("2"), &part("merged")]);
        ceph.rbd(&["create", "changed-merged", "--size", "1M"]);
        ceph.ours(&["import-diff", "--no-progress", &part("merged"), "changed-merged"]).ok();
        assert_eq!(content(ceph, "changed-merged@two"), wanted[1]);
        let backwards = ["--from-snap", "two", "changing@one"];
        let nowhere = file("nowhere");
        ceph.ours(&[&["export-diff"], &backwards[..], &[&nowhere]].concat()).refused();
        // Half a stream is none.
        assert!(!Path::new(&nowhere).exists());
        std::fs::write(&nowhere, "no stream at all").unwrap();
        refused_alike(ceph, &["import-diff", &nowhere, "changing"]);
        // Nor is one that ends within data.
        let whole = std::fs::read(part("1")).unwrap();
        std::fs::write(&nowhere, &whole[..whole.len() - 2]).unwrap();
        ceph.rbd(&["create", "changed-cut", "--size", "1M"]);
        refused_alike(ceph, &["import-diff", &nowhere, "changed-cut"]);
        assert_eq!(ceph.rbd(&["snap", "ls", "changed-cut"]), "");
        ceph.rbd(&["rm", "--no-progress", "changed-cut"]);
        for image in
            ["changing", "changed-to-rbd", "changed-from-rbd", "changed-between", "changed-merged"]
        {
            ceph.rbd(&["snap", "purge", "--no-progress", image]);
            ceph.rbd(&["rm", "--no-progress", image]);
        }
    });
}

#[test]
fn images_are_named_in_every_way_that_scripts_know() {
    let ceph = crate::one_osd();
    ceph.create_pool("named");
    let empty = ceph.dir().join("empty");
    std::fs::write(&empty, [0]).unwrap();
    let empty = empty.to_str().unwrap();
    for args in [
        &["--image", "n1", "-p", "named", "import", empty][..],
        &["--dest", "n2", "--dest-pool", "named", "import", empty],
        &["import", "--image", "named/n3", empty],
        &["import", empty, "-p", "named", "n4", "--image-format", "2"],
        &["-p", "named", "create", "--size", "1M", "--image-shared", "n5"],
    ] {
        ceph.ours(args).ok();
    }
    printed_alike(ceph, &["-p", "named", "ls"]);
    assert_eq!(ceph.rbd(&["ls", "named"]), "n1\nn2\nn3\nn4\nn5\n");
    assert!(!ceph.rbd(&["info", "named/n5"]).contains("exclusive-lock"));
    refused_alike(ceph, &["import", empty, "named/n6@snap"]);
    let first = ["create", "--size", "1M", "--image-format", "1", "named/n6"];
    let said = ceph.ours(&first).refused();
    assert!(said.contains("format 1 cannot be made"), "{said}");

    // Clones of clones, by ids of their snapshots and of an image in the trash.
    ceph.rbd(&["snap", "create", "--no-progress", "named/n1@s"]);
    let snap =
        ceph.run("rbd", &["snap", "ls", "--format", "json", "named/n1"]).json()[0]["id"].clone();
    let v2 = ["--rbd-default-clone-format", "2"];
    let by_id = ["clone", "--snap-id", &snap.to_string(), "named/n1", "named/c1"];
    ceph.ours(&[&by_id[..], &v2].concat()).ok();
    refused_alike(ceph, &["clone", "named/n1@absent", "named/c2"]);
    ceph.rbd(&["snap", "create", "--no-progress", "named/c1@s"]);
    ceph.rbd(&[&["clone", "named/c1@s", "named/c2"], &v2[..]].concat());
    printed_alike(ceph, &["children", "named/n1@s"]);
    let all = ceph.ours(&["children", "--descendants", "named/n1"]).ok();
    assert_eq!(all, "named/c1\nnamed/c2\n");
    let id = ceph.run("rbd", &["info", "--format", "json", "named/n1"]).json()["id"].clone();
    let id = id.as_str().unwrap();
    ceph.ours(&["rm", "named/n1", "--rbd-move-to-trash-on-remove", "true"]).ok();
    // So does the pool, whatever else is said.
    let on_remove = ["named", "rbd_move_to_trash_on_remove"];
    ceph.rbd(&[&["config", "pool", "set"], &on_remove[..], &["true"]].concat());
    ceph.ours(&["rm", "named/n2", "--rbd-move-to-trash-on-remove", "false"]).ok();
    ceph.rbd(&[&["config", "pool", "rm"], &on_remove[..]].concat());
    assert!(ceph.rbd(&["trash", "ls", "named"]).contains(" n2\n"));
    printed_alike(ceph, &["trash", "-p", "named", "ls"]);
    printed_alike(ceph, &["info", "-p", "named", "--image-id", id]);
    let children = ceph.ours(&["children", "-p", "named", "--image-id", id]).ok();
    assert_eq!(children, "named/c1\n");
    let of_id = ["-p", "named", "--image-id", id, "--snap", "s"];
    ceph.ours(&[&["snap", "protect"], &of_id[..]].concat()).ok();
    assert!(ceph.rbd(&["snap", "ls", "-p", "named", "--image-id", id]).contains("yes"));
}

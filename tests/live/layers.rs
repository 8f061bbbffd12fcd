//! Snapshots, clones and what else belongs to an image's life, looked at from both sides: what we make `rbd` shows and
//! reads, what `rbd` makes we do.

use crate::one_osd;
use crate::run;
use crate::support::{Ceph, Options};
use crate::verbs::{printed_alike, refused_alike};

#[test]
fn snapshots_namespaces_trash_and_notes_are_shown_as_rbd_shows_them() {
    let ceph = Ceph::start(Options::default());
    ceph.create_pool("other");
    for name in ["image", "hidden", "grouped"] {
        ceph.ours(&["create", name, "--size", "10M", "--image-feature", "layering"]).ok();
    }
    printed_alike(&ceph, &["snap", "ls", "image"]);
    ceph.ours(&["snap", "create", "image@first"]).ok();
    ceph.ours(&["snap", "protect", "image@first"]).ok();
    ceph.ours(&["resize", "image", "--size", "20M"]).ok();
    ceph.rbd(&["snap", "create", "--no-progress", "image@second"]);

    // One that clones of the second version hang on is hidden, and goes with the last of them.
    ceph.ours(&["snap", "create", "hidden@gone"]).ok();
    for (clone, format) in [("rbd/v2", "2"), ("other/v2", "2"), ("other/v1", "1")] {
        ceph.rbd(&["clone", "--rbd-default-clone-format", format, "image@first", clone]);
    }
    ceph.rbd(&["clone", "--rbd-default-clone-format", "2", "hidden@gone", "last"]);
    ceph.ours(&["snap", "rm", "hidden@gone"]).ok();

    ceph.rbd(&["group", "create", "group"]);
    ceph.rbd(&["group", "image", "add", "group", "grouped"]);
    ceph.rbd(&["group", "snap", "create", "group@all"]);

    for image in ["image", "hidden", "grouped"] {
        printed_alike(&ceph, &["snap", "ls", image]);
        printed_alike(&ceph, &["snap", "ls", "--all", image]);
        printed_alike(&ceph, &["info", image]);
    }
    for parent in ["image", "image@first", "image@second", "grouped"] {
        printed_alike(&ceph, &["children", parent]);
        printed_alike(&ceph, &["children", "--all", parent]);
    }
    let why = refused_alike(&ceph, &["snap", "unprotect", "image@first"]);
    assert!(why.contains("other"), "{why}");
    ceph.ours(&["rm", "last"]).ok();
    assert_eq!(ceph.rbd(&["snap", "ls", "--all", "hidden"]), "");

    printed_alike(&ceph, &["trash", "ls"]);
    printed_alike(&ceph, &["trash", "ls", "--long"]);
    ceph.ours(&["trash", "mv", "other/v2"]).ok();
    ceph.ours(&["trash", "mv", "other/v1", "--expires-at", "2 days"]).ok();
    for long in [&[][..], &["--long"], &["--long", "--all"]] {
        printed_alike(&ceph, &[&["trash", "ls", "other"], long].concat());
    }
    printed_alike(&ceph, &["children", "--all", "image"]);
    printed_alike(&ceph, &["children", "image"]);
    let trash = ceph.run("rbd", &["trash", "ls", "other", "--format", "json"]).json();
    let id = |name: &str| {
        let images = trash.as_array().unwrap();
        let found = images.iter().find(|image| image["name"] == name).unwrap();
        format!("other/{}", found["id"].as_str().unwrap())
    };
    refused_alike(&ceph, &["trash", "rm", &id("v1")]);
    ceph.ours(&["trash", "purge", "other"]).ok();
    printed_alike(&ceph, &["trash", "ls", "other"]);
    ceph.ours(&["trash", "restore", &id("v1"), "--image", "back"]).ok();
    printed_alike(&ceph, &["ls", "-l", "other"]);
    refused_alike(&ceph, &["trash", "restore", &id("v1")]);

    printed_alike(&ceph, &["namespace", "ls"]);
    ceph.ours(&["namespace", "create", "rbd/one"]).ok();
    ceph.ours(&["namespace", "create", "--namespace", "two"]).ok();
    printed_alike(&ceph, &["namespace", "ls"]);
    ceph.rbd(&["create", "rbd/one/image", "--size", "1M"]);
    refused_alike(&ceph, &["namespace", "rm", "rbd/one"]);
    ceph.ours(&["trash", "mv", "rbd/one/image"]).ok();
    refused_alike(&ceph, &["namespace", "rm", "rbd/one"]);
    ceph.rbd(&["create", "rbd/one/image", "--size", "1M"]);
    ceph.rbd(&["rm", "--no-progress", "rbd/one/image"]);
    ceph.ours(&["trash", "purge", "rbd/one"]).ok();
    ceph.ours(&["namespace", "rm", "rbd/one"]).ok();
    ceph.rbd(&["namespace", "rm", "rbd/two"]);
    printed_alike(&ceph, &["namespace", "ls"]);

    printed_alike(&ceph, &["image-meta", "ls", "image"]);
    for (key, value) in [("key", "value"), ("conf_rbd_cache", "false"), ("other", "")] {
        ceph.ours(&["image-meta", "set", "image", key, value]).ok();
        printed_alike(&ceph, &["image-meta", "ls", "image"]);
        assert_eq!(ceph.rbd(&["image-meta", "get", "image", key]).trim(), value);
    }
    assert_eq!(ceph.ours(&["image-meta", "get", "image", "key"]).ok(), "value\n");
    assert_eq!(ceph.rbd(&["config", "image", "get", "image", "rbd_cache"]).trim(), "false");
    ceph.ours(&["config", "pool", "set", "rbd", "rbd_cache", "true"]).ok();
    assert_eq!(ceph.rbd(&["config", "pool", "get", "rbd", "rbd_cache"]).trim(), "true");
    ceph.ours(&["image-meta", "rm", "image", "key"]).ok();
    // Columns of people's words `rbd` counts in bytes, and we in characters.
    ceph.ours(&["image-meta", "set", "image", "Schlüssel", "ü"]).ok();
    assert_eq!(ceph.rbd(&["image-meta", "get", "image", "Schlüssel"]).trim(), "ü");
    refused(&ceph);
}

fn refused(ceph: &Ceph) {
    for args in [
        &["snap", "create", "image"][..],
        &["snap", "create", "image@first"],
        &["snap", "create", "image@"],
        &["snap", "create", "nowhere@first"],
        &["snap", "rm", "image@nowhere"],
        &["snap", "rm", "image@first"],
        &["snap", "rm", "image"],
        &["snap", "protect", "image@first"],
        &["snap", "unprotect", "image@second"],
        &["snap", "rename", "image@second", "image@first"],
        &["snap", "rename", "image@second", "other@third"],
        &["snap", "rollback", "image@nowhere"],
        &["snap", "limit", "set", "image"],
        &["snap", "limit", "set", "image", "--limit", "1"],
        &["rm", "image"],
        &["rename", "image", "hidden"],
        &["rename", "nowhere", "image"],
        &["rename", "image", "other/image"],
        &["image-meta", "get", "image", "nothing"],
        &["image-meta", "rm", "image", "nothing"],
        &["image-meta", "get", "image"],
        &["namespace", "create", "rbd"],
        &["namespace", "rm", "rbd/nowhere"],
        &["trash", "mv", "nowhere"],
        &["trash", "rm", "nowhere"],
        &["trash", "restore", "nowhere"],
        &["children", "nowhere"],
        &["children", "image@nowhere"],
    ] {
        refused_alike(ceph, args);
    }
}

/// A snapshot is served by its name and by its id, and stays what it was while its image is written.
#[test]
fn snapshots_are_served_by_name_and_by_id() {
    let ceph = one_osd();
    ceph.ours(&["create", "snap-served", "--size", "8M", "--image-feature", "layering"]).ok();
    let head = ceph.serve(&["rbd/snap-served"]);
    let uri = head.uri("rbd/snap-served");
    let write = |pattern: &str| {
        let command = format!("write -P {pattern} 0 8M");
        run("qemu-io", &["-f", "raw", &uri, "-c", &command, "-c", "flush"]).ok();
    };
    write("1");
    ceph.ours(&["snap", "create", "snap-served@one"]).ok();
    write("2");
    let list = ceph.run("rbd", &["snap", "ls", "snap-served", "--format", "json"]).json();
    let id = list[0]["id"].to_string();
    for args in [&["rbd/snap-served@one"][..], &["rbd/snap-served", "--snap-id", &id]] {
        let snapshot = ceph.serve(args);
        let uri = snapshot.uri(&args[0].replace('@', "%40"));
        run("qemu-io", &["-r", "-f", "raw", &uri, "-c", "read -P 1 0 8M"]).ok();
    }
    run("qemu-io", &["-r", "-f", "raw", &uri, "-c", "read -P 2 0 8M"]).ok();
    drop(head);
    ceph.ours(&["snap", "rollback", "snap-served@one"]).ok();
    let exported = ceph.run("rbd", &["export", "--no-progress", "snap-served", "-"]).out;
    assert!(exported.iter().all(|byte| *byte == 1));
}

/// What goes through files and pipes comes back the same, in both directions, and zeros take no space.
#[test]
fn images_are_exported_and_imported() {
    let ceph = one_osd();
    let path = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
    let mut bytes = vec![0; (13 << 20) + 777];
    for (at, byte) in bytes.iter_mut().enumerate().skip(5 << 20).take(3 << 20) {
        *byte = (at / 4096 + at) as u8;
    }
    let (file, ours, theirs) = (path("file"), path("by-us"), path("by-them"));
    std::fs::write(&file, &bytes).unwrap();
    let layering = ["--image-feature", "layering"];
    let striped = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "3"];
    for (image, options) in
        [("imported", &layering[..]), ("striped", &[&layering[..], &striped].concat())]
    {
        ceph.ours(&[&["import", &file, image], options].concat()).ok();
        let exported = ceph.run("rbd", &["export", "--no-progress", image, "-"]).out;
        assert!(exported == bytes, "{image}");
        assert!(ceph.ours(&["export", image, "-"]).out == bytes, "{image}");
        ceph.ours(&["export", image, &ours]).ok();
        ceph.rbd(&["export", "--no-progress", image, &theirs]);
        for file in [&ours, &theirs] {
            assert!(std::fs::read(file).unwrap() == bytes, "{image}: {file}");
        }
        let blocks =
            |file: &str| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(file).unwrap());
        assert!(blocks(&ours) <= blocks(&theirs) && blocks(&ours) < 4 << 11, "not sparse");
        refused_alike(ceph, &["export", "--no-progress", image, &ours]);
        refused_alike(ceph, &[&["import", "--no-progress", &file, image], options].concat());
        std::fs::remove_file(&ours).unwrap();
        std::fs::remove_file(&theirs).unwrap();
    }
    refused_alike(ceph, &["import", "--no-progress", "/nowhere/at-all", "new"]);
    refused_alike(ceph, &["export", "--no-progress", "nowhere", &ours]);
    refused_alike(ceph, &["export", "--no-progress", "imported", "/nowhere/at-all"]);

    // Through pipes, into another image of its own size, and into a full one.
    let program = crate::support::program();
    let shell = format!(
        "{program} export striped - | {program} import {} - piped && {program} export piped - | cmp - {file}",
        layering.join(" ")
    );
    ceph.run("sh", &["-c", &shell]).ok();
    assert_eq!(used(ceph, "piped"), used(ceph, "imported"));
    printed_alike(ceph, &["info", "piped"]);
    let full = format!("{program} export striped - > /dev/full");
    assert_eq!(ceph.run("sh", &["-c", &full]).code, 28);
}

fn used(ceph: &Ceph, image: &str) -> u64 {
    let du = ceph.run("rbd", &["du", "--format", "json", image]).json();
    du["images"][0]["used_size"].as_u64().unwrap()
}

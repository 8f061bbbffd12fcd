//! The verbs of our program against `rbd`'s: the same output, the same images, the same exit codes.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Map, Value};

use crate::support::{Ceph, Options};

/// Creates an image with both programs and compares what `rbd info` says of them.
#[track_caller]
fn created_alike(ceph: &Ceph, options: &[&str]) {
    ceph.ours(&[&["create", "ours"], options].concat()).ok();
    ceph.rbd(&[&["create", "theirs"], options].concat());
    let (ours, theirs) = (info(ceph, "ours"), info(ceph, "theirs"));
    assert_eq!(ours, theirs, "{options:?}");
    // librbd writes and reads it; neither program leaves anything of the other's image.
    let io = ["--io-total", "2M", "--io-pattern", "rand"];
    ceph.rbd(&[&["bench", "ours", "--io-type", "write"], &io[..]].concat());
    ceph.rbd(&[&["bench", "ours", "--io-type", "read"], &io[..]].concat());
    ceph.ours(&["bench", "theirs", "--io-type", "readwrite", "--io-total", "2M"]).ok();
    ceph.rbd(&["rm", "--no-progress", "ours"]);
    ceph.ours(&["rm", "theirs"]).ok();
}

/// What `rbd info` says, but for what has to differ.
fn info(ceph: &Ceph, name: &str) -> Map<String, Value> {
    let info = ceph.run("rbd", &["info", name, "--format", "json"]).json();
    let Value::Object(mut info) = info else { panic!("{info}") };
    let id = info.remove("id").unwrap();
    let prefix = info.remove("block_name_prefix").unwrap();
    assert!(prefix.as_str().unwrap().ends_with(id.as_str().unwrap()), "{prefix} {id}");
    assert_eq!(info.remove("name").unwrap(), name);
    for time in ["create_timestamp", "access_timestamp", "modify_timestamp"] {
        assert!(info.remove(time).is_some());
    }
    info
}

/// Runs a verb with both programs. Whatever the format, output is the same to the byte.
#[track_caller]
pub(crate) fn printed_alike(ceph: &Ceph, args: &[&str]) {
    for format in [&[][..], &["--format", "json"], &["--format", "xml", "--pretty-format"]] {
        let args = [args, format].concat();
        assert_eq!(ceph.ours(&args).ok(), ceph.rbd(&args), "{args:?}");
    }
}

/// Runs a verb that must fail with both programs, with the same exit code. Returns what ours says.
#[track_caller]
pub(crate) fn refused_alike(ceph: &Ceph, args: &[&str]) -> String {
    let (ours, theirs) = (ceph.ours(args), ceph.run("rbd", args));
    assert_eq!(ours.code, theirs.code, "{ours}\n{theirs}");
    let message = ours.refused();
    assert!(message.lines().count() == 1 || message.contains("--help"), "{message}");
    message
}

#[test]
fn verbs_do_what_rbd_does() {
    let ceph = Ceph::start(Options::default());
    ceph.create_pool("data");
    ceph.ceph(&["osd", "pool", "create", "coded", "1", "1", "erasure"]);
    ceph.rbd(&["namespace", "create", "rbd/ns"]);
    creating(&ceph);
    showing(&ceph);
    resizing(&ceph);
    removing(&ceph);
    refusing(&ceph);
}

fn creating(ceph: &Ceph) {
    let size = ["--size", "20M", "--image-feature", "layering"];
    for options in [
        &[][..],
        &["--object-size", "1M"],
        &["--object-size", "5M"],
        &["--order", "23"],
        &["--stripe-unit", "64K", "--stripe-count", "4"],
        &["--stripe-unit", "64K", "--stripe-count", "1"],
        &["--stripe-unit", "4M", "--stripe-count", "1"],
        &["--stripe-unit", "512", "--stripe-count", "3", "--object-size", "4K"],
        &["--data-pool", "data"],
        &["--data-pool", "rbd"],
        &["--data-pool", "data", "--stripe-unit", "1M", "--stripe-count", "2"],
        &["--image-feature", "striping"],
        &["--image-feature", "deep-flatten,data-pool"],
        &["--image-feature", "exclusive-lock"],
        &["--image-feature", "exclusive-lock,object-map", "--object-size", "64K"],
        &["--image-feature", "exclusive-lock,object-map,fast-diff", "--data-pool", "data"],
    ] {
        created_alike(ceph, &[&size, options].concat());
    }
    created_alike(ceph, &["--size", "20", "--image-feature", "layering"]);
    created_alike(ceph, &["--size", "20971521B", "--rbd-default-features", "1"]);
    created_alike(ceph, &["--size", "20M"]);
    assert_eq!(ceph.rados(&["-p", "data", "ls"]).trim(), "rbd_info");
    // Its space is taken at once, to the last byte.
    ceph.ours(&["create", "--size", "9437185B", "--thick-provision", "thick"]).ok();
    let du = ceph.run("rbd", &["du", "--exact", "--format", "json", "thick"]).json();
    assert_eq!(du["images"][0]["used_size"], 9_437_185, "{du}");
    ceph.check_object_map("rbd/thick");
    ceph.rbd(&["rm", "--no-progress", "thick"]);
}

/// Images with everything that `ls` and `info` show.
fn showing(ceph: &Ceph) {
    printed_alike(ceph, &["ls"]);
    printed_alike(ceph, &["ls", "-l"]);
    for args in [
        &["plain", "--size", "1G", "--image-feature", "layering"][..],
        &["default", "--size", "1T"],
        &["odd", "--size", "1000000001B", "--stripe-unit", "64K", "--stripe-count", "3"],
        &["far", "--size", "1G", "--data-pool", "data"],
        &["empty", "--size", "0"],
        &["rbd/ns/inside", "--size", "1M"],
    ] {
        ceph.rbd(&[&["create"], args].concat());
    }
    ceph.rbd(&["snap", "create", "--no-progress", "default@one"]);
    ceph.rbd(&["snap", "protect", "default@one"]);
    ceph.rbd(&["resize", "--no-progress", "default", "--size", "2T"]);
    ceph.rbd(&["snap", "create", "--no-progress", "default@two"]);
    ceph.rbd(&["clone", "default@one", "clone"]);
    ceph.rbd(&["clone", "--rbd-default-clone-format", "2", "default@two", "rbd/ns/clone"]);
    ceph.rbd(&["lock", "add", "odd", "cookie"]);
    ceph.rbd(&["lock", "add", "far", "cookie", "--shared", "tag"]);

    for verb in [&["ls"][..], &["ls", "-l"]] {
        for pool in [&[][..], &["rbd"], &["rbd/ns"], &["-p", "rbd", "--namespace", "ns"], &["data"]]
        {
            printed_alike(ceph, &[verb, pool].concat());
        }
    }
    for image in [
        "plain",
        "default",
        "default@one",
        "rbd/default@two",
        "odd",
        "far",
        "empty",
        "clone",
        "rbd/ns/inside",
        "rbd/ns/clone",
    ] {
        printed_alike(ceph, &["info", image]);
    }
    printed_alike(ceph, &["info", "--image", "default", "--snap", "two", "--pool", "rbd"]);
    let id = ceph.run("rbd", &["info", "odd", "--format", "json"]).json();
    printed_alike(ceph, &["info", "--image-id", id["id"].as_str().unwrap()]);

    printed_alike(ceph, &["status", "plain"]);
    let watch = Watch::start(ceph, "plain");
    printed_alike(ceph, &["status", "plain"]);
    assert_eq!(ceph.ours(&["rm", "plain"]).code, 16);
    drop(watch);
}

/// `rbd watch`, as a client that has an image open. It ends when this is dropped.
struct Watch(Child);

impl Watch {
    fn start(ceph: &Ceph, image: &str) -> Self {
        let child = Command::new("rbd")
            .args(["-c", ceph.conf().to_str().unwrap(), "watch", image])
            // It ends when its standard input does.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        ceph.reap(child.id());
        let watch = Self(child);
        for _ in 0..100 {
            if ceph.rbd(&["status", image]).contains("watcher=") {
                return watch;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("rbd watch {image} does not watch");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resizing(ceph: &Ceph) {
    for (name, options) in [
        ("straight", &[][..]),
        ("striped", &["--stripe-unit", "64K", "--stripe-count", "3", "--object-size", "256K"]),
        ("mapped", &["--image-feature", "exclusive-lock,object-map", "--object-size", "256K"]),
    ] {
        let bytes: Vec<u8> = (0..2u32 << 20)
            .flat_map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(7).to_le_bytes())
            .collect();
        let file = ceph.dir().join("bytes");
        std::fs::write(&file, &bytes).unwrap();
        let import = ["import", "--no-progress", file.to_str().unwrap(), name];
        ceph.rbd(&[&import[..], &["--image-feature", "layering"], options].concat());
        ceph.rbd(&["snap", "create", "--no-progress", &format!("{name}@before")]);

        ceph.ours(&["resize", name, "--size", "3000000B", "--allow-shrink"]).ok();
        if name == "mapped" {
            ceph.check_object_map(name);
        }
        ceph.ours(&["resize", name, "--size", "8M"]).ok();
        if name == "mapped" {
            ceph.check_object_map(name);
        }
        let mut expected = bytes[..3_000_000].to_vec();
        expected.resize(8 << 20, 0);
        let exported = ceph.run("rbd", &["export", "--no-progress", name, "-"]).out;
        assert!(exported == expected, "{name}: not zeros behind the cut");
        let before = format!("{name}@before");
        let exported = ceph.run("rbd", &["export", "--no-progress", &before, "-"]).out;
        assert!(exported == bytes, "{name}: the snapshot has changed");
        ceph.rbd(&["snap", "purge", "--no-progress", name]);
        ceph.ours(&["rm", name]).ok();
    }
}

fn removing(ceph: &Ceph) {
    // Every feature that is on by default, and data in another pool.
    ceph.rbd(&["create", "full", "--size", "40M", "--data-pool", "data"]);
    ceph.rbd(&["bench", "full", "--io-type", "write", "--io-total", "40M", "--io-size", "1M"]);
    ceph.rbd(&["create", "rbd/ns/full", "--size", "40M"]);
    ceph.rbd(&["bench", "rbd/ns/full", "--io-type", "write", "--io-total", "8M"]);
    let id = ceph.run("rbd", &["info", "full", "--format", "json"]).json();
    let id = id["id"].as_str().unwrap().to_owned();
    assert!(ceph.rados(&["-p", "data", "ls"]).contains(&id));
    ceph.ours(&["rm", "full"]).ok();
    ceph.ours(&["rm", "rbd/ns/full"]).ok();
    assert!(!ceph.rados(&["-p", "data", "ls"]).contains(&id));
    let left = ceph.rados(&["-p", "rbd", "ls"]);
    assert!(!left.contains(&id) && !left.contains("full"), "{left}");
    assert!(!ceph.rados(&["-p", "rbd", "-N", "ns", "ls"]).contains("full"));

    // What a client leaves that dies while it makes or removes an image: removed by name all the same.
    for left_over in ["rbd_header.{id}", "rbd_id.half"] {
        ceph.rbd(&["create", "half", "--size", "1M"]);
        let id = ceph.run("rbd", &["info", "half", "--format", "json"]).json();
        let object = left_over.replace("{id}", id["id"].as_str().unwrap());
        ceph.rados(&["-p", "rbd", "rm", &object]);
        ceph.ours(&["rm", "half"]).ok();
        assert!(!ceph.rbd(&["ls"]).contains("half"));
        assert_eq!(ceph.ours(&["rm", "half"]).code, 2);
    }
}

fn refusing(ceph: &Ceph) {
    let layering = ["--size", "1G", "--image-feature", "layering"];
    for args in [
        &["create", "plain"][..],
        &["create", "new"],
        &["create", "new", "--size", "x"],
        &["create", "new", "--size", "16E"],
        &["create", "new", "--order", "26"],
        &["create", "new", "--object-size", "2K"],
        &["create", "new", "--object-size", "64M"],
        &["create", "new", "--stripe-unit", "64K"],
        &["create", "new", "--stripe-count", "2"],
        &["create", "new", "--stripe-unit", "3000", "--stripe-count", "2"],
        &["create", "new", "--stripe-unit", "256", "--stripe-count", "2"],
        &["create", "new", "--stripe-unit", "8M", "--stripe-count", "2"],
        &["create", "new", "--data-pool", "nowhere"],
        &["create", "nowhere/new"],
        &["create", "rbd/nowhere/new"],
        &["create", "a/b/c/d"],
        &["create", "new@snap"],
        &["create", "new", "--no-such-option"],
    ] {
        let sized = args.contains(&"--size") || args == ["create", "new"];
        refused_alike(ceph, &if sized { args.to_vec() } else { [args, &layering].concat() });
    }
    for args in [
        &["ls", "nowhere"][..],
        &["ls", "rbd/nowhere"],
        &["info"],
        &["info", "nowhere"],
        &["info", "nowhere/plain"],
        &["info", "rbd/nowhere/inside"],
        &["info", "default@nowhere"],
        &["info", "@snap"],
        &["info", "plain", "--format", "yaml"],
        &["info", "plain", "--pretty-format"],
        &["status", "nowhere"],
        &["status", "default@one"],
        &["resize", "plain"],
        &["resize", "plain", "--size", "1G"],
        &["resize", "plain", "--size", "1M"],
        &["resize", "nowhere", "--size", "1M"],
        &["resize", "default@one", "--size", "1M"],
        &["rm"],
        &["rm", "nowhere"],
        &["rm", "default"],
        &["rm", "default@one"],
        &["bench", "plain"],
        &["bench", "plain", "--io-type", "read", "--io-size", "0"],
        &["bench", "plain", "--io-type", "read", "--io-size", "2G"],
        &["bench", "plain", "--io-type", "read", "--io-threads", "0"],
        &["bench", "nowhere", "--io-type", "read"],
    ] {
        refused_alike(ceph, args);
    }
    refused_alike(ceph, &["create", "new", "--size", "1G", "--image-feature", "object-map"]);
    refused_alike(ceph, &["create", "new", "--size", "1G", "--image-feature", "journaling"]);
    let args = ["create", "new", "--data-pool", "coded", "--size", "1G"];
    // The pool has too few OSDs to serve, which `rbd` would wait for: it looks at objects, not at the map.
    let refused = ceph.ours(&args);
    assert_eq!(refused.code, 22);
    assert!(refused.refused().contains("allow_ec_overwrites"));
    // Where the whole pool has snapshots images can have none; whoever knows better says so.
    ceph.create_pool("snapped");
    ceph.ceph(&["osd", "pool", "mksnap", "snapped", "all"]);
    let args = ["create", "snapped/new", "--size", "1G"];
    let said = refused_alike(ceph, &args);
    assert!(said.contains("snapshots of its own"), "{said}");
    let unseen = ["create", "snapped/unseen", "--size", "1G", "--rbd-validate-pool", "false"];
    ceph.ours(&unseen).ok();
    let marker = ceph.dir().join("marker");
    std::fs::write(&marker, "overwrite validated").unwrap();
    ceph.rados(&["-p", "snapped", "put", "rbd_info", marker.to_str().unwrap()]);
    ceph.ours(&args).ok();
    ceph.ours(&["rm", "clone"]).ok();
    assert!(!ceph.rados(&["-p", "rbd", "ls"]).contains("new"));
}

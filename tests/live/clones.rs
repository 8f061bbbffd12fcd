//! Clones, from both sides: what we make of a snapshot librbd reads, and what librbd makes we read and write.

use crate::support::Ceph;
use crate::verbs::{printed_alike, refused_alike};
use crate::{data, fio_verify, on_each_release, random_file, run};

/// A parent with something in most of its objects, and its bytes.
fn parent(ceph: &Ceph, name: &str, options: &[&str]) -> Vec<u8> {
    let file = ceph.dir().join(format!("{name}.random"));
    random_file(&file, 16 << 20);
    let mut bytes = std::fs::read(&file).unwrap();
    // Whole objects that are not there, and holes in others.
    bytes[4 << 20..6 << 20].fill(0);
    bytes[9_000_000..9_100_000].fill(0);
    std::fs::write(&file, &bytes).unwrap();
    let import = ["import", "--no-progress", file.to_str().unwrap(), name];
    ceph.rbd(&[&import[..], &["--image-feature", "layering"], options].concat());
    ceph.ours(&["snap", "create", &format!("{name}@snap")]).ok();
    // What comes after the snapshot does not show.
    ceph.rbd(&["bench", name, "--io-type", "write", "--io-total", "4M", "--io-size", "1M"]);
    bytes
}

#[track_caller]
fn exported(ceph: &Ceph, spec: &str) -> Vec<u8> {
    let theirs = ceph.run("rbd", &["export", "--no-progress", spec, "-"]).out;
    let ours = ceph.ours(&["export", spec, "-"]).out;
    let different = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    assert!(ours == theirs, "{spec}: we read something else than librbd at {different:?}");
    ours
}

#[test]
fn clones_are_written_by_us_and_read_by_librbd() {
    on_each_release(|ceph| {
        let bytes = parent(ceph, "parent", &["--object-size", "1M"]);
        let striped = ["--stripe-unit", "64K", "--stripe-count", "3", "--object-size", "256K"];
        for (clone, format, options) in [
            ("clone-2", "2", &["--image-feature", "layering,deep-flatten"][..]),
            (
                "clone-default",
                "2",
                &["--image-feature", "layering,exclusive-lock,object-map,fast-diff"],
            ),
            ("clone-striped", "2", &striped),
        ] {
            let args = ["clone", "parent@snap", clone, "--rbd-default-clone-format", format];
            ceph.ours(&[&args[..], options].concat()).ok();
            assert!(exported(ceph, clone) == bytes, "{clone}");
            printed_alike(ceph, &["info", clone]);
            let serve = ceph.serve(&[&format!("rbd/{clone}")]);
            let uri = serve.uri(&format!("rbd/{clone}"));
            // Small writes and discards, beside which the parent must go on to show.
            let ops = [
                "write -P 7 100k 4k",
                "write -P 8 5M 512",
                "discard 2M 1M",
                "discard 7M 100k",
                "write -z -u 8500k 10k",
                "write -P 9 10M 3M",
                "flush",
            ];
            let ops: Vec<_> = ops.iter().flat_map(|op| ["-c", *op]).collect();
            run("qemu-io", &[&["-f", "raw", "-d", "unmap", &uri], &ops[..]].concat()).ok();
            let mut expected = bytes.clone();
            let mut fill =
                |offset: usize, length: usize, byte| expected[offset..][..length].fill(byte);
            fill(100 << 10, 4 << 10, 7);
            fill(5 << 20, 512, 8);
            fill(2 << 20, 1 << 20, 0);
            fill(8500 << 10, 10 << 10, 0);
            fill(10 << 20, 3 << 20, 9);
            // Of a discard only whole grains are gone.
            let now = run("nbdcopy", &[&uri, "-"]).out;
            let discarded = 7 << 20..(7 << 20) + (100 << 10);
            expected[discarded.clone()].copy_from_slice(&now[discarded.clone()]);
            assert!(now == expected, "{clone}");
            assert!(now[discarded.clone()].iter().filter(|byte| **byte == 0).count() >= 32 << 10);
            fio_verify(ceph, 16, &["--ioengine=nbd", &format!("--uri={uri}")]);
            data::assert_same_for_librbd_and_nbd(ceph, clone, &uri);
            drop(serve);
            if clone == "clone-default" {
                ceph.check_object_map(clone);
            }
            exported(ceph, clone);
        }
    });
}

/// A clone of a clone of a clone, through pools and namespaces, by both programs in turns.
#[test]
fn chains_are_sixteen_deep() {
    on_each_release(|ceph| {
        let mut bytes = parent(ceph, "deep-0", &[]);
        let mut last = "deep-0".to_owned();
        ceph.rbd(&["namespace", "create", "rbd/deep"]);
        for depth in 1..=16 {
            let namespace = if depth % 3 == 0 { "rbd/deep/" } else { "rbd/" };
            let name = format!("{namespace}deep-{depth}");
            let args = ["clone", "--rbd-default-clone-format", "2", "--image-feature", "layering"];
            let source = format!("{last}@snap");
            let args = [&args[..], &[&source, &name]].concat();
            match depth % 2 {
                0 => ceph.rbd(&args),
                _ => ceph.ours(&args).ok(),
            };
            // Every one has an own 64 KiB.
            let serve = ceph.serve(&[&name]);
            let write = format!("write -P {depth} {}k 64k", depth * 900);
            run("qemu-io", &["-f", "raw", &serve.uri(&name), "-c", &write, "-c", "flush"]).ok();
            // Whoever takes a snapshot asks all who watch the image to pause, and waits for those who died.
            serve.terminate();
            bytes[(depth * 900) << 10..][..64 << 10].fill(depth as u8);
            ceph.ours(&["snap", "create", &format!("{name}@snap")]).ok();
            last = name;
        }
        assert!(exported(ceph, &last) == bytes);
        // Data of every level is in the export's map, and holes of all are holes.
        let serve = ceph.serve(&["--read-only", &last]);
        let map = run("nbdinfo", &["--map", "--json", &serve.uri(&last)]).json();
        let data: u64 = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|extent| extent["type"] == 0)
            .map(|extent| extent["length"].as_u64().unwrap())
            .sum();
        assert!((12 << 20..=16 << 20).contains(&data), "{map}");
    });
}

/// Flattening, resizing and removing clones does what librbd's does, with and without snapshots.
#[test]
fn clones_are_flattened_shrunk_and_removed() {
    on_each_release(|ceph| {
        let bytes = parent(ceph, "base", &["--object-size", "1M"]);
        for (clone, features) in [
            ("flat", "layering"),
            ("deep", "layering,deep-flatten"),
            ("mapped", "layering,exclusive-lock,object-map,fast-diff,deep-flatten"),
        ] {
            ceph.rbd(&[
                "clone",
                "--rbd-default-clone-format",
                "2",
                "--image-feature",
                features,
                "base@snap",
                clone,
            ]);
            let snap = format!("{clone}@before");
            ceph.rbd(&["snap", "create", "--no-progress", &snap]);
            let serve = ceph.serve(&[&format!("rbd/{clone}")]);
            let uri = serve.uri(&format!("rbd/{clone}"));
            run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 5 3M 100k", "-c", "flush"]).ok();
            serve.terminate();
            let mut now = bytes.clone();
            now[3 << 20..][..100 << 10].fill(5);
            assert!(exported(ceph, clone) == now && exported(ceph, &snap) == bytes, "{clone}");
            // What only the snapshot shows of the parent stays, although the image shows less of it.
            ceph.ours(&["resize", clone, "--size", "9M", "--allow-shrink"]).ok();
            ceph.ours(&["resize", clone, "--size", "16M"]).ok();
            now[9 << 20..].fill(0);
            assert!(
                exported(ceph, clone) == now && exported(ceph, &snap) == bytes,
                "{clone}: shrunk"
            );
            ceph.ours(&["flatten", clone]).ok();
            printed_alike(ceph, &["info", clone]);
            assert!(exported(ceph, clone) == now, "{clone}: flattened");
            assert!(exported(ceph, &snap) == bytes, "{clone}: the snapshot of what is flattened");
            if clone == "mapped" {
                ceph.check_object_map(clone);
                ceph.check_object_map(&snap);
            }
            refused_alike(ceph, &["flatten", "--no-progress", clone]);
            printed_alike(ceph, &["children", "base"]);
            ceph.rbd(&["snap", "purge", "--no-progress", clone]);
            ceph.ours(&["rm", clone]).ok();
            assert_eq!(ceph.rbd(&["children", "base"]), "", "{clone}");
        }
        refused_alike(ceph, &["clone", "base", "other"]);
        refused_alike(ceph, &["clone", "base@nowhere", "other"]);
        refused_alike(ceph, &["clone", "base@snap", "base", "--rbd-default-clone-format", "2"]);
        refused_alike(ceph, &["clone", "base@snap", "other", "--rbd-default-clone-format", "1"]);
        let elsewhere = ["--image-feature", "striping"];
        refused_alike(
            ceph,
            &[&["clone", "base@snap", "other", "--rbd-default-clone-format", "2"], &elsewhere[..]]
                .concat(),
        );
        refused_alike(ceph, &["flatten", "--no-progress", "base"]);
        // The first version needs protection, which needs that there are no clones to end.
        ceph.ours(&["snap", "protect", "base@snap"]).ok();
        ceph.ours(&[
            "clone",
            "base@snap",
            "old",
            "--rbd-default-clone-format",
            "1",
            "--image-feature",
            "layering",
        ])
        .ok();
        printed_alike(ceph, &["info", "old"]);
        printed_alike(ceph, &["children", "base"]);
        refused_alike(ceph, &["snap", "unprotect", "base@snap"]);
        assert!(exported(ceph, "old") == bytes);
        ceph.ours(&["flatten", "old"]).ok();
        ceph.rbd(&["snap", "unprotect", "base@snap"]);
        assert!(exported(ceph, "old") == bytes);
    });
}

/// Who says nothing of a clone's layout gets its parent's, as from `rbd`.
#[test]
fn clones_are_laid_out_as_by_rbd() {
    on_each_release(|ceph| {
        let stripes: &[&str] = &["--stripe-unit", "64K", "--stripe-count", "3"];
        for (parent, options) in [("laid-plain", &[][..]), ("laid-striped", stripes)] {
            let create = ["create", "--size", "16M", "--object-size", "1M", parent];
            ceph.rbd(&[&create[..], options].concat());
            ceph.rbd(&["snap", "create", "--no-progress", &format!("{parent}@snap")]);
            for layout in [
                &[][..],
                &["--object-size", "4M"],
                &["--object-size", "32K"],
                &["--stripe-unit", "32K", "--stripe-count", "2"],
                &["--stripe-unit", "32K"],
                &["--stripe-count", "2"],
                &["--object-size", "32K", "--stripe-unit", "16K", "--stripe-count", "2"],
            ] {
                let clone = |name| {
                    let format = ["--rbd-default-clone-format", "2"];
                    let snap = format!("{parent}@snap");
                    [&["clone", &snap, name][..], &format, layout].concat().join(" ")
                };
                let [theirs, ours] = ["laid-theirs", "laid-ours"].map(|name| {
                    let line = clone(name);
                    let args: Vec<_> = line.split(' ').collect();
                    let ran = match name {
                        "laid-ours" => ceph.ours(&args),
                        _ => ceph.run("rbd", &args),
                    };
                    if ran.code != 0 {
                        return (ran.code, serde_json::Value::Null);
                    }
                    let mut info = ceph.run("rbd", &["info", name, "--format", "json"]).json();
                    let told = info.as_object_mut().unwrap();
                    for own in ["name", "id", "block_name_prefix"] {
                        told.remove(own);
                    }
                    told.retain(|key, _| !key.ends_with("timestamp"));
                    ceph.rbd(&["rm", "--no-progress", name]);
                    (ran.code, info)
                });
                // What `rbd` makes a stripe unit, or refuses for it, is plain with us.
                if parent == "laid-plain"
                    && *layout.first().unwrap_or(&"") == "--object-size"
                    && layout.len() == 2
                {
                    assert!(ours.0 == 0 && ours.1["stripe_unit"].is_null(), "{layout:?}: {ours:?}");
                    continue;
                }
                assert_eq!(ours, theirs, "{parent} {layout:?}");
            }
        }
    });
}

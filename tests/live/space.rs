//! Space given back: discard and write-zeroes do to an image what librbd's do, and the export's map says so.

use serde_json::Value;

use crate::support::{Ceph, Release};
use crate::verbs::printed_alike;
use crate::watch::io;
use crate::{on_each_release, one_osd, random_file, run, three_osds};

/// Whole objects, tails, heads and middles of 4 MiB objects.
const OPS: &[&str] = &[
    "discard 8M 16M",
    "discard 34M 2M",
    "discard 38M 1M",
    "discard 40M 5M",
    "write -z -u 48M 6M",
    "write -z -u 61M 1M",
    "flush",
];

/// What reads as zeros after [`OPS`], in MiB: offset and length.
const ZEROS: &[(u64, u64)] = &[(8, 16), (34, 2), (38, 1), (40, 5), (48, 6), (61, 1)];

#[test]
fn discard_and_zeroes_free_what_librbd_frees_memstore() {
    discard_and_zeroes_free_what_librbd_frees(one_osd());
}

#[test]
fn discard_and_zeroes_free_what_librbd_frees_bluestore() {
    discard_and_zeroes_free_what_librbd_frees(three_osds());
}

fn discard_and_zeroes_free_what_librbd_frees(ceph: &Ceph) {
    let file = ceph.dir().join("full.random");
    random_file(&file, 64 << 20);
    for image in ["freed-by-librbd", "freed-by-us"] {
        let args = [
            "import",
            "--no-progress",
            "--image-feature",
            "layering",
            file.to_str().unwrap(),
            image,
        ];
        ceph.rbd(&args);
    }
    let ops: Vec<_> = OPS.iter().flat_map(|op| ["-c", *op]).collect();
    let librbd = format!("rbd:rbd/freed-by-librbd:conf={}", ceph.conf().display());
    run("qemu-io", &[&["-f", "raw", "-d", "unmap", &librbd], &ops[..]].concat()).ok();
    let before = used(ceph, "freed-by-us");
    let serve = ceph.serve(&["rbd/freed-by-us"]);
    let uri = serve.uri("rbd/freed-by-us");
    run("qemu-io", &[&["-f", "raw", "-d", "unmap", &uri], &ops[..]].concat()).ok();

    assert_eq!(used(ceph, "freed-by-us"), used(ceph, "freed-by-librbd"), "rbd du");
    assert!(used(ceph, "freed-by-us") < before);
    assert_eq!(data(ceph, "freed-by-us"), data(ceph, "freed-by-librbd"), "rbd diff");
    // Zeros that must not become a hole (NBD's NO_HOLE) keep their space, which is what thick provisioning asks for.
    let kept = used(ceph, "freed-by-us");
    run("qemu-io", &["-f", "raw", &uri, "-c", "write -z 56M 4M", "-c", "flush"]).ok();
    assert_eq!(used(ceph, "freed-by-us"), kept);
    for (offset, length) in ZEROS.iter().chain(&[(56, 4)]) {
        run("qemu-io", &["-r", "-f", "raw", &uri, "-c", &format!("read -P 0 {offset}M {length}M")])
            .ok();
    }
    super::data::assert_same_for_librbd_and_nbd(ceph, "freed-by-us", &uri);
}

#[test]
fn the_map_agrees_with_rbd_diff_memstore() {
    the_map_agrees_with_rbd_diff(one_osd());
}

#[test]
fn the_map_agrees_with_rbd_diff_bluestore() {
    the_map_agrees_with_rbd_diff(three_osds());
}

fn the_map_agrees_with_rbd_diff(ceph: &Ceph) {
    ceph.rbd(&["create", "--size", "1G", "--image-feature", "layering", "mapped"]);
    let serve = ceph.serve(&["rbd/mapped"]);
    let uri = serve.uri("rbd/mapped");
    // `rbd diff` knows how long an object is, not what holes are in it: only such shapes can agree exactly.
    let ops = [
        "write 0 4M",
        "write 8M 1M",
        "write 100M 10M",
        "discard 104M 4M",
        "write 1020M 4M",
        "flush",
    ];
    let ops: Vec<_> = ops.iter().flat_map(|op| ["-c", *op]).collect();
    run("qemu-io", &[&["-f", "raw", "-d", "unmap", &uri], &ops[..]].concat()).ok();
    assert_eq!(map(&uri), data(ceph, "mapped"));

    // Elsewhere the map may be finer: what it calls data, `rbd diff` does too, and the rest reads as zeros.
    run(
        "qemu-io",
        &["-f", "raw", &uri, "-c", "write 201M 4k", "-c", "write -z 301M 64k", "-c", "flush"],
    )
    .ok();
    let diff = data(ceph, "mapped");
    for (start, end) in map(&uri) {
        assert!(
            diff.iter().any(|(from, to)| *from <= start && end <= *to),
            "{start}..{end} not in {diff:?}"
        );
    }
    super::data::assert_same_for_librbd_and_nbd(ceph, "mapped", &uri);
}

/// Of an object that is shorter than where it is cut, both leave the same.
#[test]
fn what_is_cut_is_as_long_as_librbd_leaves_it() {
    on_each_release(|ceph| {
        for (at, size) in [5_333_504, 8 << 20].into_iter().enumerate() {
            let file = ceph.dir().join("short");
            let mut content = vec![0; size];
            content[4 << 20..][..512].fill(b'x');
            std::fs::write(&file, content).unwrap();
            let cut = |image: &str, resize: &dyn Fn(&[&str]) -> String| {
                let image = format!("{image}-{at}");
                let import = ["import", "--no-progress", "--image-feature", "layering"];
                ceph.rbd(&[&import[..], &[file.to_str().unwrap(), &image]].concat());
                resize(&["resize", "--no-progress", "--allow-shrink", "--size", "5M", &image]);
                let info = ceph.run("rbd", &["info", "--format", "json", &image]).json();
                let prefix = info["block_name_prefix"].as_str().unwrap().to_owned();
                let stat =
                    ceph.rados(&["-p", "rbd", "stat", &format!("{prefix}.0000000000000001")]);
                ceph.rbd(&["rm", "--no-progress", &image]);
                stat.trim().rsplit(' ').next().unwrap().to_owned()
            };
            let ours = cut("cut-by-us", &|args| ceph.ours(args).ok());
            assert_eq!(ours, cut("cut-by-librbd", &|args| ceph.rbd(args)), "of {size} bytes");
        }
    });
}

/// After a rollback, librbd's check finds the object map right (as it does not after its own).
#[test]
fn what_is_brought_back_is_in_the_object_map() {
    on_each_release(|ceph| {
        let features = "layering,exclusive-lock,object-map,fast-diff";
        let like = ["--size", "4M", "--object-size", "1M", "--image-feature", features];
        ceph.rbd(&[&["create", "back"], &like[..]].concat());
        let write = |what: &[&str]| {
            let serve = ceph.serve(&["rbd/back"]);
            assert!(io(&serve.uri("rbd/back"), what));
            serve.terminate();
        };
        write(&["write 0 3M"]);
        ceph.rbd(&["snap", "create", "--no-progress", "back@one"]);
        write(&["write 0 128k"]);
        ceph.rbd(&["snap", "create", "--no-progress", "back@two"]);
        // One changes, one goes, one comes.
        write(&["write 512k 128k", "discard 1M 1M", "write 3M 1M"]);
        for snap in ["two", "one"] {
            ceph.ours(&["snap", "rollback", "--no-progress", &format!("back@{snap}")]).ok();
            ceph.check_object_map("back");
        }
        ceph.rbd(&["snap", "purge", "--no-progress", "back"]);
        ceph.rbd(&["rm", "--no-progress", "back"]);
    });
}

/// An object that comes, goes, comes again and is cut: what has changed between any two of its versions.
#[test]
fn what_has_changed_is_told_as_rbd_tells_it() {
    on_each_release(|ceph| {
        for (image, features) in [
            ("told-plain", "layering"),
            ("told-maps", "layering,exclusive-lock,object-map,fast-diff"),
        ] {
            let size = ["--size", "1M", "--object-size", "1M"];
            ceph.rbd(&[&["create", image, "--image-feature", features], &size[..]].concat());
            let mut snaps = Vec::new();
            for (snap, what) in [
                ("none", "flush"),
                ("small", "write 0 128k"),
                ("still", "flush"),
                ("large", "write 0 1M"),
                ("gone", "discard 0 1M"),
                ("again", "write 0 1M"),
                ("cut", "discard 256k 768k"),
            ] {
                let serve = ceph.serve(&[&format!("rbd/{image}")]);
                assert!(io(&serve.uri(&format!("rbd/{image}")), &[what]));
                serve.terminate();
                ceph.rbd(&["snap", "create", "--no-progress", &format!("{image}@{snap}")]);
                snaps.push(snap);
            }
            for (at, from) in std::iter::once(None).chain(snaps.iter().map(Some)).enumerate() {
                for to in &snaps[at.saturating_sub(1)..] {
                    for whole in [&[][..], &["--whole-object"]] {
                        let from = from.map(|from| ["--from-snap", *from]);
                        let to = format!("{image}@{to}");
                        let from = from.as_ref().map_or(&[][..], |from| &from[..]);
                        let args = [&["diff", &to], whole, from].concat();
                        if !pacific_errs(ceph, &to, from, whole) {
                            printed_alike(ceph, &args);
                        }
                    }
                }
            }
            ceph.rbd(&["snap", "rollback", "--no-progress", &format!("{image}@none")]);
            printed_alike(ceph, &["diff", image]);
            ceph.rbd(&["snap", "purge", "--no-progress", image]);
            ceph.rbd(&["rm", "--no-progress", image]);
        }
    });
}

/// Of an object that was cut, Ceph 16 tells as data what is behind its end since before it was as long; and in whole
/// objects without maps, what was cut off as zeros. Later releases do not.
fn pacific_errs(ceph: &Ceph, to: &str, from: &[&str], whole: &[&str]) -> bool {
    let was_long = matches!(from, [_, "large" | "again"]);
    let cut = ceph.release() == Release::Pacific && to.ends_with("@cut");
    let maps = to.starts_with("told-maps");
    cut && if whole.is_empty() { !was_long } else { was_long && !maps }
}

/// Bytes that `rbd du` says an image uses.
fn used(ceph: &Ceph, image: &str) -> u64 {
    let du = ceph.run("rbd", &["du", "--format", "json", image]).json();
    du["images"][0]["used_size"].as_u64().unwrap()
}

/// Ranges, joined where they touch, that `rbd diff` says exist.
fn data(ceph: &Ceph, image: &str) -> Vec<(u64, u64)> {
    let diff = ceph.run("rbd", &["diff", "--format", "json", image]).json();
    ranges(&diff, |extent| extent["exists"] == "true")
}

/// Ranges, joined where they touch, that the export says are data.
fn map(uri: &str) -> Vec<(u64, u64)> {
    ranges(&run("nbdinfo", &["--map", "--json", uri]).json(), |extent| extent["type"] == 0)
}

fn ranges(extents: &Value, wanted: impl Fn(&Value) -> bool) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for extent in extents.as_array().unwrap().iter().filter(|extent| wanted(extent)) {
        let start = extent["offset"].as_u64().unwrap();
        let end = start + extent["length"].as_u64().unwrap();
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    ranges
}

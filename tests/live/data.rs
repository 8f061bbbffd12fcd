//! What one side writes the other reads: through our NBD export, and through librbd.

use crate::support::Ceph;
use crate::{fio_verify, one_osd, random_file, run, sha256, three_osds};

#[test]
fn librbd_reads_what_was_written_through_nbd_memstore() {
    librbd_reads_what_was_written_through_nbd(one_osd(), "written-by-us", &["--size", "128M"]);
}

#[test]
fn librbd_reads_what_was_written_through_nbd_bluestore() {
    librbd_reads_what_was_written_through_nbd(three_osds(), "written-by-us", &["--size", "128M"]);
}

/// `options` are `rbd create`'s, the size first.
#[track_caller]
pub(crate) fn librbd_reads_what_was_written_through_nbd(
    ceph: &Ceph,
    image: &str,
    options: &[&str],
) {
    ceph.rbd(&[&["create", image, "--image-feature", "layering"], options].concat());
    let spec = format!("rbd/{image}");
    let serve = ceph.serve(&[&spec]);
    let uri = serve.uri(&spec);
    fio_verify(ceph, megabytes(options), &["--ioengine=nbd", &format!("--uri={uri}")]);
    assert_same_for_librbd_and_nbd(ceph, image, &uri);
    let (code, said) = serve.terminate();
    assert_eq!(code, 0, "{said}");
}

#[test]
fn we_read_what_librbd_wrote_memstore() {
    we_read_what_librbd_wrote(one_osd(), "written-by-librbd", &["--size", "128M"]);
}

#[test]
fn we_read_what_librbd_wrote_bluestore() {
    we_read_what_librbd_wrote(three_osds(), "written-by-librbd", &["--size", "128M"]);
}

#[track_caller]
pub(crate) fn we_read_what_librbd_wrote(ceph: &Ceph, image: &str, options: &[&str]) {
    ceph.rbd(&[&["create", image, "--image-feature", "layering"], options].concat());
    let spec = format!("rbd/{image}");
    // Open before anything is written: nothing may be remembered that librbd changes.
    let serve = ceph.serve(&[&spec]);
    let name = format!("--rbdname={image}");
    let librbd = ["--ioengine=rbd", "--clientname=admin", "--pool=rbd", &name];
    fio_verify(ceph, megabytes(options), &librbd);
    assert_same_for_librbd_and_nbd(ceph, image, &serve.uri(&spec));
}

fn megabytes(options: &[&str]) -> u32 {
    options[1].strip_suffix('M').unwrap().parse().unwrap()
}

/// Three judges: a checksum of `rbd export`, one of what `nbdcopy` reads, and `qemu-img compare` of both sides.
#[track_caller]
pub(crate) fn assert_same_for_librbd_and_nbd(ceph: &Ceph, image: &str, uri: &str) {
    let file = |side: &str| ceph.dir().join(format!("{image}.{side}"));
    let (theirs, ours) = (file("librbd"), file("nbd"));
    ceph.rbd(&["export", "--no-progress", image, theirs.to_str().unwrap()]);
    run("nbdcopy", &[uri, ours.to_str().unwrap()]).ok();
    assert_eq!(sha256(&theirs), sha256(&ours), "{image}: rbd export and nbdcopy");
    std::fs::remove_file(theirs).unwrap();
    std::fs::remove_file(ours).unwrap();
    let rbd = format!("rbd:rbd/{image}:conf={}", ceph.conf().display());
    let compared = ceph.run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &rbd, uri]).ok();
    assert!(compared.contains("identical"), "{image}: {compared}");
}

#[test]
fn what_was_flushed_outlives_the_server() {
    let ceph = three_osds();
    ceph.rbd(&["create", "--size", "16M", "--image-feature", "layering", "flushed"]);
    let file = ceph.dir().join("flushed.random");
    random_file(&file, 16 << 20);
    let serve = ceph.serve(&["rbd/flushed"]);
    run("nbdcopy", &["--flush", file.to_str().unwrap(), &serve.uri("rbd/flushed")]).ok();
    drop(serve); // SIGKILL
    let export = ceph.dir().join("flushed.export");
    ceph.rbd(&["export", "--no-progress", "flushed", export.to_str().unwrap()]);
    assert_eq!(sha256(&file), sha256(&export));
}

#[test]
fn several_images_are_exports_of_one_server() {
    let ceph = one_osd();
    ceph.create_pool("other");
    ceph.rbd(&["namespace", "create", "other/space"]);
    let specs = ["rbd/several", "other/several", "other/space/several"];
    for (spec, size) in specs.into_iter().zip(["1M", "2M", "3M"]) {
        ceph.rbd(&["create", "--size", size, "--image-feature", "layering", spec]);
    }
    let serve = ceph.serve(&specs);
    for (spec, size) in specs.into_iter().zip([1 << 20, 2 << 20, 3 << 20]) {
        assert_eq!(run("nbdinfo", &["--size", &serve.uri(spec)]).ok().trim(), size.to_string());
    }
}

#[test]
fn a_snapshot_keeps_what_it_had_and_takes_no_writes() {
    let ceph = three_osds();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "snapped"]);
    let rbd = format!("rbd:rbd/snapped:conf={}", ceph.conf().display());
    run("qemu-io", &["-f", "raw", &rbd, "-c", "write -P 1 0 8M", "-c", "flush"]).ok();
    ceph.rbd(&["snap", "create", "--no-progress", "snapped@before"]);
    // Writes after the snapshot must carry its snap context, or they would change the snapshot.
    let serve = ceph.serve(&["rbd/snapped", "rbd/snapped@before"]);
    let (head, snap) = (serve.uri("rbd/snapped"), serve.uri("rbd/snapped@before"));
    run(
        "qemu-io",
        &["-f", "raw", &head, "-c", "write -P 2 1M 4M", "-c", "discard 6M 2M", "-c", "flush"],
    )
    .ok();
    run("qemu-io", &["-r", "-f", "raw", &snap, "-c", "read -P 1 0 8M"]).ok();
    let export = ceph.dir().join("snapped.export");
    ceph.rbd(&["export", "--no-progress", "snapped@before", export.to_str().unwrap()]);
    let export = std::fs::read(export).unwrap();
    assert!(export.len() == 8 << 20 && export.iter().all(|byte| *byte == 1));
    assert_same_for_librbd_and_nbd(ceph, "snapped", &head);
    assert!(run("nbdinfo", &["--json", &snap]).json()["exports"][0]["is_read_only"] == true);
}

//! Images that we make, used by everybody; and images that we must not write to.

use crate::{fio_verify, one_osd, three_osds};

/// Ways to lay out an image.
const LAYOUTS: &[&[&str]] = &[
    &["--object-size", "64K"],
    &["--object-size", "32M"],
    &["--stripe-unit", "64K", "--stripe-count", "4"],
    &["--stripe-unit", "4K", "--stripe-count", "3", "--object-size", "64K"],
    &["--data-pool", "data"],
];

#[test]
fn librbd_and_nbd_use_the_images_we_create() {
    let ceph = three_osds();
    ceph.create_pool("data");
    for (number, layout) in LAYOUTS.iter().enumerate() {
        let image = format!("used{number}");
        let plain = ["create", "--size", "32M", "--image-feature", "layering"];
        ceph.ours(&[&plain[..], *layout, &[&format!("rbd/{image}")]].concat()).ok();
        let name = format!("--rbdname={image}");
        fio_verify(ceph, 32, &["--ioengine=rbd", "--clientname=admin", "--pool=rbd", &name]);
        let serve = ceph.serve(&[&format!("rbd/{image}")]);
        let uri = serve.uri(&format!("rbd/{image}"));
        super::data::assert_same_for_librbd_and_nbd(ceph, &image, &uri);
        fio_verify(ceph, 32, &["--ioengine=nbd", &format!("--uri={uri}"), "--randseed=7"]);
        super::data::assert_same_for_librbd_and_nbd(ceph, &image, &uri);
    }
}

#[test]
fn what_would_harm_an_image_is_refused() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "harmed-parent"]);
    ceph.rbd(&["snap", "create", "--no-progress", "harmed-parent@snap"]);
    let clone = [
        "--rbd-default-clone-format",
        "2",
        "--image-feature",
        "layering",
        "harmed-parent@snap",
        "harmed-child",
    ];
    ceph.rbd(&[&["clone"], &clone[..]].concat());
    // The snapshot that the clone stands on.
    let refused = ceph.ours(&["rm", "rbd/harmed-parent"]).refused();
    assert!(refused.contains("snapshot"), "{refused}");
}

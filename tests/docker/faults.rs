//! Making a volume that is cut short, and one that is damaged.

use std::fs;

use serde_json::json;

use crate::host::{Host, eventually};
use crate::one_osd;
use crate::support::{run, run_in};

#[test]
fn a_file_system_that_was_not_finished_is_and_one_that_is_there_is_not_made_again() {
    let ceph = one_osd();
    let host = Host::start(ceph, "cut", "");
    let create = json!({ "Name": "cut", "Opts": { "size": "128M" } });
    let named = json!({ "Name": "cut" });
    let key = "ceph-native.volume";
    let description = || ceph.rbd(&["image-meta", "get", "cut", key]).trim().to_owned();
    let set = |text: &str| {
        ceph.rbd(&["image-meta", "set", "cut", key, text]);
    };
    host.called("VolumeDriver.Create", &create);
    let made = description();
    assert!(made.contains("\"state\":\"new\""), "{made}");
    let formatting = made.replace("\"state\":\"new\"", "\"state\":\"formatting\"");

    // Killed between the last write and the note that it is done.
    fs::write(host.mount("cut", "x").join("file"), "kept").unwrap();
    host.unmount("cut", "x");
    set(&formatting);
    let root = host.mount("cut", "x");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept", "it was made again");
    host.unmount("cut", "x");

    // Killed in between: some of it is there, but no superblock.
    ceph.run(
        "rbd",
        &[
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "4K",
            "--io-total",
            "1M",
            "--io-pattern",
            "rand",
            "cut",
        ],
    )
    .ok();
    let zeros = host.dir.join("zeros");
    fs::write(&zeros, vec![0; 64 << 10]).unwrap();
    let info = ceph.run("rbd", &["info", "--format", "json", "cut"]).json();
    let first = format!("{}.0000000000000000", info["block_name_prefix"].as_str().unwrap());
    ceph.rados(&["-p", "rbd", "put", &first, zeros.to_str().unwrap()]);
    set(&formatting);
    host.called("VolumeDriver.Create", &create);
    assert!(description().contains("\"state\":\"new\""), "{}", description());
    let root = host.mount("cut", "x");
    assert!(fs::read_dir(&root).unwrap().next().is_none());
    host.unmount("cut", "x");
    host.ours(&["fsck", "cut"]).ok();
    host.called("VolumeDriver.Remove", &named);

    // Killed between name and image, as librbd's own creation would be.
    ceph.rbd(&["create", "-s", "64M", "half"]);
    let info = ceph.run("rbd", &["info", "--format", "json", "half"]).json();
    ceph.rados(&["-p", "rbd", "rm", &format!("rbd_header.{}", info["id"].as_str().unwrap())]);
    host.called("VolumeDriver.Create", &json!({ "Name": "half", "Opts": { "size": "128M" } }));
    host.mount("half", "x");
    host.unmount("half", "x");

    // And a removal that was cut short leaves no name: with the image's id behind it, or in the pool's list alone.
    for with_id in [true, false] {
        let info = ceph.run("rbd", &["info", "--format", "json", "half"]).json();
        let header = format!("rbd_header.{}", info["id"].as_str().unwrap());
        ceph.rados(&["-p", "rbd", "rm", &header]);
        if !with_id {
            ceph.rados(&["-p", "rbd", "rm", "rbd_id.half"]);
        }
        let listed = || ceph.rbd(&["ls"]).lines().any(|image| image == "half");
        assert!(listed());
        host.called("VolumeDriver.Remove", &json!({ "Name": "half" }));
        assert!(!listed(), "with its id: {with_id}");
        host.called("VolumeDriver.Create", &json!({ "Name": "half", "Opts": { "size": "64M" } }));
    }
    host.called("VolumeDriver.Remove", &json!({ "Name": "half" }));
}

#[test]
fn a_damaged_file_system_is_not_mounted() {
    let ceph = one_osd();
    let host = Host::start(ceph, "fsck", "");
    let create = json!({ "Name": "damaged", "Opts": { "size": "128M" } });
    host.called("VolumeDriver.Create", &create);
    let root = host.mount("damaged", "x");
    for i in 0..100 {
        fs::create_dir(root.join(format!("folder-{i}"))).unwrap();
    }
    host.unmount("damaged", "x");
    // Inode tables full of nonsense: nothing that can be repaired without asking.
    let noise: Vec<u8> =
        (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let file = host.dir.join("noise");
    let image = host.dir.join("image");
    fs::write(&file, &noise).unwrap();
    ceph.rbd(&["export", "--no-progress", "damaged", image.to_str().unwrap()]);
    let mut bytes = fs::read(&image).unwrap();
    bytes[200 << 10..(200 << 10) + noise.len()].copy_from_slice(&noise);
    let info = ceph.run("rbd", &["info", "--format", "json", "damaged"]).json();
    let first = format!("{}.0000000000000000", info["block_name_prefix"].as_str().unwrap());
    fs::write(&file, &bytes[..4 << 20]).unwrap();
    ceph.rados(&["-p", "rbd", "put", &first, file.to_str().unwrap()]);

    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "damaged", "ID": "x" }));
    assert!(error.contains("the file system is damaged"), "{error}");
    assert!(error.contains("ceph-native fsck"), "{error}");
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));
    host.called("VolumeDriver.Remove", &json!({ "Name": "damaged" }));
}

/// What `fsck -p` repairs is repaired, and nobody is asked.
#[test]
fn a_file_system_that_is_not_clean_is_repaired_before_it_is_mounted() {
    let ceph = one_osd();
    let host = Host::start(ceph, "dirty", "");
    host.called("VolumeDriver.Create", &json!({ "Name": "dirty", "Opts": { "size": "128M" } }));
    fs::write(host.mount("dirty", "x").join("file"), "kept").unwrap();
    host.unmount("dirty", "x");
    let on_device = |program: &str, args: &[&str]| on_device(&host, "dirty", program, args);
    // Errors that were met while it was mounted, and a count of free blocks that is wrong.
    let state = "set_super_value state 2";
    on_device(
        "sh",
        &[
            "-ec",
            &format!(
                "debugfs -w -R '{state}' $0; debugfs -w -R 'set_super_value free_blocks_count 5' $0"
            ),
        ],
    );
    assert!(on_device("dumpe2fs", &["-h"]).contains("clean with errors"), "it is not damaged");
    let root = host.mount("dirty", "x");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    host.unmount("dirty", "x");
    let state = on_device("dumpe2fs", &["-h"]);
    let state = state.lines().find(|line| line.starts_with("Filesystem state:")).unwrap();
    assert_eq!(state.split_whitespace().last(), Some("clean"), "{state}");
    host.called("VolumeDriver.Remove", &json!({ "Name": "dirty" }));
}

/// What is found to be damaged while it is used is written to no more, where ext4 by itself would go on.
#[test]
fn a_file_system_that_meets_an_error_is_read_only_from_then_on() {
    let host = Host::start(one_osd(), "errors", "");
    host.called("VolumeDriver.Create", &json!({ "Name": "errors", "Opts": { "size": "128M" } }));
    let root = host.mount("errors", "x");
    fs::create_dir(root.join("folder")).unwrap();
    fs::write(root.join("file"), "kept").unwrap();
    host.unmount("errors", "x");
    // A folder without an inode, in a file system that says that it is clean.
    on_device(&host, "errors", "debugfs", &["-w", "-R", "clri /folder"]);
    let root = host.mount("errors", "x");
    fs::write(root.join("early"), "x").unwrap();
    fs::metadata(root.join("folder")).unwrap_err();
    let late = || fs::write(root.join("late"), "x");
    eventually("it is read-only", || late().is_err_and(|error| error.raw_os_error() == Some(30)));
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    host.unmount("errors", "x");
    host.called("VolumeDriver.Remove", &json!({ "Name": "errors" }));
}

/// What a program says of a volume's device, as its last argument, while it is mounted nowhere.
fn on_device(host: &Host, volume: &str, program: &str, args: &[&str]) -> String {
    let mapper = std::env::var("RBD_NBD_RS");
    let mapper = mapper.unwrap_or_else(|_| env!("CARGO_BIN_EXE_rbd-nbd-rs").to_owned());
    let (conf, state) = (one_osd().conf(), host.dir.join(crate::host::MAPPINGS));
    let map = |args: &[&str]| {
        let with = ["--conf", conf.to_str().unwrap()];
        run_in(&mapper, &[args, &with].concat(), &[("RBD_NBD_RS_STATE", &state)], 60).ok()
    };
    let device = map(&["map", volume]).trim().to_owned();
    let ran = run(program, &[args, &[&device]].concat());
    map(&["unmap", volume]);
    ran.ok()
}

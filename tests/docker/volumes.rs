//! Volumes as people use them: `docker volume`, `docker run`, and what survives which end.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;

use crate::host::{DRIVER, Host};
use crate::one_osd;
use crate::support::run;

#[test]
fn what_one_container_writes_the_next_reads() {
    let mut host = Host::start(one_osd(), "v1", "");
    host.start_dockerd(&[]);
    host.create("story", &["size=1"]);
    assert_eq!(host.in_container("story", "echo first > /v/file; ls /v"), "file");
    assert_eq!(host.mounts().len() + host.mappings().len(), 0, "nobody uses it");
    let mount = format!("type=volume,src=story,dst=/v,volume-driver={DRIVER}");
    let wait = ["run", "-d", "--network=none", "--mount", &mount, "bb", "sleep", "1000"];
    let user = host.docker(&wait);
    let inspected = host.inspect("story");
    assert_eq!(inspected["Status"]["users"], 1, "{inspected}");
    assert_eq!(inspected["Status"]["mounted-by"]["host"], "v1", "{inspected}");
    assert_eq!(inspected["Status"]["image"], "rbd/story", "{inspected}");

    // Its data are carried by another process than the plugin.
    host.kill_plugin();
    let write = "echo second > /v/file; sync -d /v/file; cat /v/file";
    assert_eq!(host.docker(&["exec", &user, "sh", "-c", write]), "second");
    host.start_plugin();
    assert_eq!(host.in_container("story", "cat /v/file"), "second", "two at once");
    host.docker(&["rm", "-f", &user]);
    assert_eq!(host.mounts().len() + host.mappings().len(), 0, "nobody uses it");

    // Everything killed and torn down, as a reboot does.
    host.mount("story", "lost");
    host.kill_plugin();
    host.tear_down();
    host.start_plugin();
    assert_eq!(host.in_container("story", "cat /v/file"), "second");
    host.docker(&["volume", "rm", "story"]);
    let rbd = one_osd().rbd(&["ls"]);
    assert!(!rbd.lines().any(|image| image == "story"), "{rbd}");
}

#[test]
fn options_make_the_image_and_the_file_system_that_they_say() {
    let ceph = one_osd();
    ceph.create_pool("other");
    ceph.rbd(&["namespace", "create", "other/ns"]);
    let mut host = Host::start(ceph, "v2", "[volumes]\nsize = \"128M\"\n");
    host.start_dockerd(&[]);
    let stat = |name: &str, user: &str| {
        let root = host.mount(name, user);
        let meta = fs::metadata(&root).unwrap();
        let empty = fs::read_dir(&root).unwrap().next().is_none();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777, empty)
    };

    host.create("by-default", &[]);
    let info = ceph.run("rbd", &["info", "--format", "json", "by-default"]).json();
    assert_eq!((&info["size"], &info["order"]), (&json!(128 << 20), &json!(22)));
    assert_eq!(
        stat("by-default", "x"),
        (0, 0, 0o755, true),
        "nothing is in it, not even lost+found"
    );
    host.unmount("by-default", "x");

    host.create(
        "all",
        &[
            "size=256M",
            "pool=other",
            "namespace=ns",
            "data-pool=rbd",
            "object-size=1M",
            "stripe-unit=64K",
            "stripe-count=4",
            "features=layering,exclusive-lock",
            "mkfs-options=-m 0 -L label",
            "mount-options=noatime,nodev",
            "uid=1001",
            "gid=1002",
            "mode=2750",
        ],
    );
    let info = ceph.run("rbd", &["info", "--format", "json", "other/ns/all"]).json();
    assert_eq!((&info["order"], &info["stripe_unit"]), (&json!(20), &json!(65536)));
    assert_eq!((&info["stripe_count"], &info["data_pool"]), (&json!(4), &json!("rbd")));
    assert_eq!(stat("all", "x"), (1001, 1002, 0o2750, true));
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = host.mounts().into_iter().find(|point| point.ends_with("/all")).unwrap();
    let mounted = mountinfo.lines().find(|line| line.contains(&root)).unwrap();
    assert!(mounted.contains("nodev") && mounted.contains("noatime"), "{mounted}");
    assert!(mounted.contains("errors=remount-ro"), "{mounted}");
    host.unmount("all", "x");
    // What its users change stays.
    let root = host.mount("all", "y");
    std::os::unix::fs::chown(&root, Some(7), Some(7)).unwrap();
    host.unmount("all", "y");
    assert_eq!(stat("all", "z").0, 7);
    host.unmount("all", "z");

    for fstype in ["xfs", "btrfs"] {
        host.create(fstype, &["size=512M", &format!("fstype={fstype}"), "mode=0700"]);
        assert_eq!(stat(fstype, "x"), (0, 0, 0o700, true));
        host.unmount(fstype, "x");
        assert_eq!(host.in_container(fstype, "echo data > /v/f; cat /v/f"), "data");
        assert_eq!(host.in_container(fstype, "cat /v/f"), "data");
    }

    // Names that RBD cannot hold.
    let odd = json!({ "Name": "pool/odd@1 %", "Opts": { "size": "64M" } });
    host.called("VolumeDriver.Create", &odd);
    host.mount("pool/odd@1 %", "x");
    host.unmount("pool/odd@1 %", "x");
    let listed = host.called("VolumeDriver.List", &json!({}))["Volumes"].to_string();
    assert!(listed.contains("\"pool/odd@1 %\"") && listed.contains("other/ns/all"), "{listed}");
    assert!(ceph.rbd(&["ls"]).contains("pool%2Fodd%401%20%25"));

    for name in ["by-default", "all", "xfs", "btrfs"] {
        assert!(host.ours(&["fsck", name]).ok().len() > 1 || name != "by-default", "{name}");
        host.docker(&["volume", "rm", name]);
    }
    host.called("VolumeDriver.Remove", &json!({ "Name": "pool/odd@1 %" }));
    assert_eq!(ceph.rbd(&["ls", "other/ns"]), "");
}

#[test]
fn images_that_are_not_ours_are_left_alone_unless_adopted() {
    let ceph = one_osd();
    let host = Host::start(ceph, "v3", "");
    let create =
        |name: &str, image: &str| json!({ "Name": name, "Opts": { "image": image, "size": "1" } });
    ceph.rbd(&["create", "-s", "64M", "foreign"]);
    let listed = host.called("VolumeDriver.List", &json!({}))["Volumes"].to_string();
    assert!(!listed.contains("\"foreign\""), "{listed}");
    let error = host.refused("VolumeDriver.Create", &json!({ "Name": "foreign" }));
    assert!(error.contains("-o image=foreign"), "{error}");
    host.refused("VolumeDriver.Mount", &json!({ "Name": "foreign", "ID": "x" }));
    host.called("VolumeDriver.Remove", &json!({ "Name": "foreign" }));
    assert!(ceph.rbd(&["ls"]).contains("foreign"), "what is not ours is not removed");

    // An empty one is formatted; and stays when the volume goes.
    host.called("VolumeDriver.Create", &create("adopted", "foreign"));
    let root = host.mount("adopted", "x");
    fs::write(root.join("file"), "kept").unwrap();
    host.unmount("adopted", "x");
    let error = host.refused("VolumeDriver.Create", &create("again", "foreign"));
    assert!(error.contains("is volume adopted already"), "{error}");
    // As a host leaves it that dies while it reads.
    ceph.rbd(&["image-meta", "set", "foreign", "ceph-native.reader.dead", "{\"host\":\"dead\"}"]);
    host.called("VolumeDriver.Remove", &json!({ "Name": "adopted" }));
    assert_eq!(ceph.rbd(&["image-meta", "ls", "foreign"]).matches("ceph-native").count(), 0);
    // One with a file system is taken as it is.
    host.called("VolumeDriver.Create", &create("once-more", "foreign"));
    let root = host.mount("once-more", "x");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    host.unmount("once-more", "x");
    host.called("VolumeDriver.Remove", &json!({ "Name": "once-more" }));

    // And one with anything else is not touched.
    let file = host.dir.join("bytes");
    for (name, at, bytes, word) in [
        ("luks", 0, &b"LUKS\xba\xbe"[..], "holds LUKS"),
        ("partitions", 510, b"\x55\xaa", "a partition table"),
        ("bytes", 40000, b"something", "holds data"),
    ] {
        let mut content = vec![0; 8 << 20];
        content[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&file, &content).unwrap();
        ceph.rbd(&["import", "--no-progress", file.to_str().unwrap(), name]);
        let error = host.refused("VolumeDriver.Create", &create("not-this", name));
        assert!(error.contains(word), "{error}");
        let back = host.dir.join("back");
        ceph.rbd(&["export", "--no-progress", name, back.to_str().unwrap()]);
        assert!(fs::read(&back).unwrap() == content, "{name} was changed");
        fs::remove_file(back).unwrap();
    }

    // In use by somebody who knows nothing of us.
    let _serving = ceph.serve(&["foreign"]);
    host.called("VolumeDriver.Create", &create("in-use", "foreign"));
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "in-use", "ID": "x" }));
    assert!(error.contains("in use by client.") && error.contains("127."), "{error}");
    host.called("VolumeDriver.Unmount", &json!({ "Name": "in-use", "ID": "x" }));
}

#[test]
fn a_volume_grows_while_it_is_mounted_and_while_it_is_not() {
    let host = Host::start(one_osd(), "v4", "");
    for fstype in ["ext4", "xfs"] {
        let named = json!({ "Name": fstype });
        let create = json!({ "Name": fstype, "Opts": { "size": "512M", "fstype": fstype } });
        host.called("VolumeDriver.Create", &create);
        let size = |root: &std::path::Path| {
            let out = run("df", &["-B1", "--output=size", root.to_str().unwrap()]).ok();
            out.lines().last().unwrap().trim().parse::<u64>().unwrap()
        };
        let root = host.mount(fstype, "x");
        assert!(size(&root) < 512 << 20);
        let said = host.ours(&["resize", fstype, "1"]).ok();
        // ext4 insists on a capability for it, which containers rarely have.
        let may = fstype != "ext4" || has_sys_resource();
        assert_eq!(size(&root) > 900 << 20, may, "{} {said}", size(&root));
        assert_eq!(said.contains("with the next mount"), !may, "{said}");
        host.unmount(fstype, "x");
        assert!(size(&host.mount(fstype, "y")) > 900 << 20);
        assert!(host.ours(&["resize", fstype, "1"]).refused().contains("volumes only grow"));
        host.unmount(fstype, "y");
        host.ours(&["resize", fstype, "1.5"]).ok();
        let root = host.mount(fstype, "x");
        assert!(size(&root) > 1400 << 20, "{}", size(&root));
        assert!(host.ours(&["who", fstype]).ok().contains("mounted on host v4 (this one)"));
        assert!(host.ours(&["volumes"]).ok().contains("1.5 GiB"));
        host.unmount(fstype, "x");
        host.called("VolumeDriver.Remove", &named);
    }
}

#[test]
fn a_read_only_volume_is_never_written_and_can_be_everywhere() {
    let ceph = one_osd();
    let (a, b) = (Host::start(ceph, "r1", ""), Host::start(ceph, "r2", ""));
    ceph.rbd(&["create", "-s", "64M", "golden"]);
    let opts = |read_only: &str| json!({ "image": "golden", "read-only": read_only });
    a.called("VolumeDriver.Create", &json!({ "Name": "golden", "Opts": opts("false") }));
    fs::write(a.mount("golden", "x").join("file"), "gold").unwrap();
    a.unmount("golden", "x");
    a.called("VolumeDriver.Remove", &json!({ "Name": "golden" }));
    a.called("VolumeDriver.Create", &json!({ "Name": "golden", "Opts": opts("true") }));
    for host in [&a, &b] {
        let root = host.mount("golden", "x");
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "gold");
        assert_eq!(fs::write(root.join("file"), "x").unwrap_err().raw_os_error(), Some(30));
    }
    for host in [&a, &b] {
        host.unmount("golden", "x");
    }
}

fn has_sys_resource() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << 24 != 0
}

//! Snapshots, clones and the trash.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ceph_native::config::Args;
use ceph_native::docker::store::{Description, Found, Place, Store};
use ceph_native::error::Kind;
use ceph_native::image::{Image, OpenOptions};
use serde_json::json;

use crate::host::{Host, eventually};
use crate::support::run;
use crate::{full, one_osd};

#[test]
fn a_volume_is_cloned_while_it_is_mounted_and_brought_back_to_a_snapshot() {
    let ceph = one_osd();
    let host = Host::start(ceph, "copies", "");
    let create = |name: &str, options: &[(&str, &str)]| {
        let options: serde_json::Map<_, _> =
            options.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "Name": name, "Opts": options })
    };
    let remove = |name: &str| {
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    };
    let has = |name: &str, file: &str| {
        let text = fs::read_to_string(host.mount(name, "look").join(file)).ok();
        host.unmount(name, "look");
        text
    };
    let snapshots = |image: &str| {
        let listed = ceph.run("rbd", &["snap", "ls", "--all", "--format", "json", image]).json();
        listed.as_array().unwrap().len()
    };
    host.called("VolumeDriver.Create", &create("of", &[("size", "128M")]));
    let root = host.mount("of", "x");
    // Not synced: a snapshot has it nevertheless.
    fs::write(root.join("file"), "first").unwrap();
    host.ours(&["snapshot", "of", "one"]).ok();
    fs::write(root.join("file"), "second").unwrap();
    let error = host.ours(&["snapshot", "of", "one"]).refused();
    assert!(error.contains("there is a snapshot one already"), "{error}");
    let status = host.called("VolumeDriver.Get", &json!({ "Name": "of" }))["Volume"].clone();
    assert_eq!(status["Status"]["snapshots"], json!(["one"]), "{status}");

    // Of the present, of a snapshot, as an image, larger, and independent.
    host.ours(&["clone", "of", "now"]).ok();
    host.called("VolumeDriver.Create", &create("then", &[("from", "of@one")]));
    host.called("VolumeDriver.Create", &create("then", &[("from", "of@one")]));
    let larger = create("larger", &[("from", "rbd/of@one"), ("size", "256M")]);
    host.called("VolumeDriver.Create", &larger);
    let flat = create("flat", &[("from", "of"), ("flatten", "true")]);
    host.called("VolumeDriver.Create", &flat);
    for (name, text) in
        [("now", "second"), ("then", "first"), ("larger", "first"), ("flat", "second")]
    {
        assert_eq!(has(name, "file").as_deref(), Some(text), "{name}");
        let is_clone = || {
            let image = ceph.run("rbd", &["info", "--format", "json", name]).json();
            image.get("parent").is_some()
        };
        match name {
            "flat" => eventually("it is independent", || !is_clone()),
            _ => assert!(is_clone(), "{name}"),
        }
        let own = host.called("VolumeDriver.Get", &json!({ "Name": name }))["Volume"].clone();
        let size = if name == "larger" { 256 } else { 128 };
        assert_eq!(own["Status"]["size"], size << 20, "{own}");
        assert!(own["Status"].get("mounted-by").is_none(), "{own}");
    }
    let cases =
        [("nobody", "there is no volume nobody"), ("of@two", "two"), ("rbd/none", "rbd/none")];
    for (from, word) in cases {
        let error = host.refused("VolumeDriver.Create", &create("no", &[("from", from)]));
        assert!(error.contains(word), "{error}");
    }
    let small = create("no", &[("from", "of"), ("size", "64M")]);
    assert!(host.refused("VolumeDriver.Create", &small).contains("has 134217728 bytes"));
    host.refused("VolumeDriver.Get", &json!({ "Name": "no" }));

    // Back to what it was: not while it is mounted.
    let error = host.ours(&["restore", "of", "one"]).refused();
    assert!(error.contains("mounted on this host"), "{error}");
    host.unmount("of", "x");
    assert!(host.ours(&["restore", "of", "two"]).refused().contains("two"));
    host.ours(&["restore", "of", "one"]).ok();
    assert_eq!(has("of", "file").as_deref(), Some("first"));
    assert_eq!(has("now", "file").as_deref(), Some("second"), "a clone is what it was");
    // Cut short, it is nothing to mount.
    let key = "ceph-native.volume";
    let text = ceph.rbd(&["image-meta", "get", "of", key]).trim().to_owned();
    assert!(text.contains("\"state\":\"ready\""), "{text}");
    let cut = text.replace("\"state\":\"ready\"", "\"state\":\"restoring\"");
    ceph.rbd(&["image-meta", "set", "of", key, &cut]);
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "of", "ID": "x" }));
    assert!(error.contains("`ceph-native restore of SNAPSHOT`"), "{error}");
    host.ours(&["restore", "of", "one"]).ok();
    assert_eq!(has("of", "file").as_deref(), Some("first"));
    // One that was new before is new afterwards: its first mount gives its root folder what it is to have.
    host.called("VolumeDriver.Create", &create("new", &[("size", "64M"), ("mode", "0711")]));
    host.ours(&["snapshot", "new", "made"]).ok();
    let text = ceph.rbd(&["image-meta", "get", "new", key]).trim().to_owned();
    ceph.rbd(&[
        "image-meta",
        "set",
        "new",
        key,
        &text.replace("\"new\"", "\"restoringnew\"").replacen(
            "\"name\":\"restoringnew\"",
            "\"name\":\"new\"",
            1,
        ),
    ]);
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "new", "ID": "x" }));
    assert!(error.contains("`ceph-native restore new SNAPSHOT`"), "{error}");
    host.ours(&["restore", "new", "made"]).ok();
    let root = host.mount("new", "x");
    assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o711);
    host.unmount("new", "x");
    host.ours(&["snapshot", "new", "made", "--remove"]).ok();
    remove("new");

    // Whatever was taken for clones goes with them.
    for name in ["now", "then", "larger", "flat"] {
        remove(name);
    }
    assert_eq!(snapshots("of"), 1);
    host.ours(&["snapshot", "of", "one", "--remove"]).ok();
    assert_eq!(snapshots("of"), 0);
    remove("of");
}

#[test]
fn a_removed_volume_can_be_had_from_the_trash_until_its_time_is_over() {
    let ceph = one_osd();
    let host = Host::start(ceph, "trash", "lost-seconds = 1\n");
    let trash = |name: &str| {
        let listed = ceph.run("rbd", &["trash", "ls", "--format", "json"]).json();
        let all = listed.as_array().unwrap().clone();
        let found = all.iter().find(|image| image["name"] == name);
        found.map(|image| image["id"].as_str().unwrap().to_owned())
    };
    let create = |name: &str, option: &str, value: &str| {
        let create = json!({ "Name": name, "Opts": { "size": "64M", option: value } });
        host.called("VolumeDriver.Create", &create);
        let root = host.mount(name, "x");
        fs::write(root.join("file"), name).unwrap();
        host.unmount(name, "x");
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
        host.refused("VolumeDriver.Get", &json!({ "Name": name }));
    };
    // What somebody copied from a volume, and put in the trash by hand, is theirs: its description came along.
    let briefly = json!({ "Name": "copied", "Opts": { "size": "64M", "delete-delay": "1s" } });
    host.called("VolumeDriver.Create", &briefly);
    ceph.rbd(&["cp", "--no-progress", "copied", "copy"]);
    for image in ["copied", "copy"] {
        ceph.rbd(&["trash", "mv", image]);
    }
    create("kept", "trash", "true");
    create("kept-for-long", "delete-delay", "1h");
    create("kept-briefly", "delete-delay", "1s");
    // Nor do snapshots keep it there that were taken for a clone, once no call can be about to make that any more.
    let littered = json!({ "Name": "littered", "Opts": { "size": "64M", "delete-delay": "1s" } });
    host.called("VolumeDriver.Create", &littered);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let soon_stale = format!("littered@ceph-native-clone-of-a.{}.1", now - 3585);
    ceph.rbd(&["snap", "create", "--no-progress", &soon_stale]);
    host.called("VolumeDriver.Remove", &json!({ "Name": "littered" }));
    assert!(trash("littered").is_some());
    for name in ["kept-briefly", "littered"] {
        eventually("it is removed for good", || trash(name).is_none());
    }
    assert!(trash("copied").is_some() && trash("copy").is_some());
    // An image of the name can be made meanwhile, and the old one come back under its own afterwards.
    host.called("VolumeDriver.Create", &json!({ "Name": "kept", "Opts": { "size": "64M" } }));
    host.called("VolumeDriver.Remove", &json!({ "Name": "kept" }));
    for name in ["kept", "kept-for-long"] {
        let id = trash(name).expect("in the trash");
        ceph.rbd(&["trash", "restore", &id]);
        let root = host.mount(name, "x");
        assert_eq!(fs::read_to_string(root.join("file")).unwrap(), name);
        host.unmount(name, "x");
    }
}

#[test]
fn a_clone_fills_what_its_origin_did_not_yet() {
    let filled = |root: &Path| {
        let size = run("df", &["--output=size", "-B1", root.to_str().unwrap()]).ok();
        let size: u64 = size.lines().nth(1).and_then(|line| line.trim().parse().ok()).unwrap();
        assert!(size > 700 << 20, "{}: {size}", root.display());
    };
    let host = Host::start(one_osd(), "growing", "");
    for fstype in ["ext4", "xfs"] {
        let name = format!("grown-{fstype}");
        let options = json!({ "size": "512M", "fstype": fstype, "mode": "0711" });
        host.called("VolumeDriver.Create", &json!({ "Name": name, "Opts": options }));
        // Not mounted: the image grows, and its file system with the next mount.
        host.ours(&["resize", &name, "1"]).ok();
        let (clone, then) = (format!("{name}-clone"), format!("{name}-then"));
        host.ours(&["clone", &name, &clone]).ok();
        host.ours(&["snapshot", &name, "small"]).ok();
        // It is as new as it was.
        host.ours(&["restore", &name, "small"]).ok();
        let root = host.mount(&name, "x");
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o7777, 0o711);
        // By now it has grown; at the snapshot it had not.
        filled(&root);
        host.unmount(&name, "x");
        host.ours(&["restore", &name, "small"]).ok();
        host.ours(&["clone", &format!("{name}@small"), &then]).ok();
        for name in [&clone, &then, &name] {
            filled(&host.mount(name, "x"));
            host.unmount(name, "x");
        }
        for name in [&clone, &then] {
            host.called("VolumeDriver.Remove", &json!({ "Name": name }));
        }
        host.ours(&["snapshot", &name, "small", "--remove"]).ok();
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
}

#[test]
fn snapshots_of_clones_that_were_cut_short_are_in_nobodys_way() {
    let ceph = one_osd();
    let host = Host::start(ceph, "stale", "");
    host.called("VolumeDriver.Create", &json!({ "Name": "stale", "Opts": { "size": "128M" } }));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let (long_ago, just_now) = (
        format!("ceph-native-clone-of-a.b.{}.1", now - 4000),
        format!("ceph-native-clone-of-c.{now}.2"),
    );
    let taken = |snap: &str| {
        ceph.rbd(&["snap", "create", "--no-progress", &format!("stale@{snap}")]);
        // As clones of the first version have it.
        ceph.rbd(&["snap", "protect", &format!("stale@{snap}")]);
    };
    taken(&long_ago);
    taken(&just_now);
    ceph.rbd(&["snap", "create", "--no-progress", "stale@kept"]);
    host.ours(&["clone", "stale", "stale-clone"]).ok();
    let snaps = ceph.rbd(&["snap", "ls", "stale"]);
    assert!(!snaps.contains(&long_ago), "{snaps}");
    assert!(snaps.contains(&just_now) && snaps.contains("kept"), "{snaps}");
    host.called("VolumeDriver.Remove", &json!({ "Name": "stale-clone" }));

    // Nor do they keep their volume from being removed.
    ceph.rbd(&["snap", "unprotect", &format!("stale@{just_now}")]);
    ceph.rbd(&["snap", "rm", "--no-progress", &format!("stale@{just_now}")]);
    ceph.rbd(&["snap", "rm", "--no-progress", "stale@kept"]);
    taken(&long_ago);
    host.called("VolumeDriver.Remove", &json!({ "Name": "stale" }));
    assert!(!ceph.rbd(&["ls"]).contains("stale"));
}

/// Whoever copies a large clone does it beside all else.
#[test]
fn nobody_waits_for_a_clone_to_become_independent() {
    let ceph = one_osd();
    let mut a = Host::bare(ceph, "alpha", "work-seconds = 30\n");
    // One object after the other: some 1500.
    a.env.insert("CEPH_ARGS", "--rbd_concurrent_management_ops=1".to_owned());
    a.start_plugin();
    let mut b = Host::bare(ceph, "beta", "");
    b.env.clone_from(&a.env);
    b.start_plugin();
    let options = json!({ "size": "512M", "object-size": "64K" });
    a.called("VolumeDriver.Create", &json!({ "Name": "large", "Opts": options }));
    let fill = |root: &Path| {
        let to = format!("of={}", root.join("data").display());
        run("dd", &["if=/dev/urandom", &to, "bs=1M", "count=96", "conv=fsync", "status=none"]).ok();
    };
    fill(&a.mount("large", "x"));
    let sum = |root: &Path| {
        let sum = run("sha256sum", &[root.join("data").to_str().unwrap()]).ok();
        sum.split(' ').next().unwrap().to_owned()
    };
    let data = sum(&a.mount("large", "y"));
    a.unmount("large", "x");
    a.unmount("large", "y");
    let flattening = |host: &Host, name: &str| {
        let volume = host.called("VolumeDriver.Get", &json!({ "Name": name }))["Volume"].clone();
        volume["Status"]["flattening"].as_str().map(str::to_owned)
    };
    let is_clone = |image: &str| {
        ceph.run("rbd", &["info", "--format", "json", image]).json().get("parent").is_some()
    };
    let begun = |image: &str| {
        let info = ceph.run("rbd", &["info", "--format", "json", image]).json();
        let first = format!("{}.{:016x}", info["block_name_prefix"].as_str().unwrap(), 0);
        eventually("it gets on", || {
            ceph.run("rados", &["-p", "rbd", "stat", &first]).code == 0 || !is_clone(image)
        });
    };
    let create = |a: &Host, name: &str| {
        let options = json!({ "from": "large", "flatten": "true" });
        a.called("VolumeDriver.Create", &json!({ "Name": name, "Opts": options }));
        let told = flattening(a, name).expect("it goes on by itself");
        assert!(told.ends_with(" %, by host alpha"), "{told}");
    };
    create(&a, "removed");
    create(&a, "restored");
    // Asked for once more, it is there.
    create(&a, "restored");
    assert!(flattening(&b, "restored").is_some(), "everybody is told");
    begun("removed");
    // It makes room for whoever removes it, brings it back or mounts it, on whatever host.
    b.called("VolumeDriver.Remove", &json!({ "Name": "removed" }));
    a.ours(&["snapshot", "restored", "then"]).ok();
    b.ours(&["restore", "restored", "then"]).ok();
    eventually("it is independent", || flattening(&a, "restored").is_none());
    // Killed, it is taken up again; and at once the volume can be had.
    create(&a, "alone");
    create(&a, "killed");
    begun("killed");
    a.kill_plugin();
    assert!(is_clone("killed"), "too fast to see anything");
    a.start_plugin();
    assert_eq!(sum(&a.mount("killed", "x")), data);
    a.unmount("killed", "x");
    // Mounted, it is made independent by who carries its data.
    create(&a, "used");
    let root = b.mount("used", "x");
    assert!(is_clone("used"), "too fast to see anything");
    fs::write(root.join("more"), "more").unwrap();
    let all = ["restored", "alone", "killed", "used"];
    for name in all {
        eventually("it is independent", || flattening(&a, name).is_none());
        assert!(!is_clone(name), "{name}");
    }
    assert_eq!(fs::read_to_string(root.join("more")).unwrap(), "more");
    b.unmount("used", "x");
    for name in all {
        assert_eq!(sum(&a.mount(name, "x")), data);
        a.unmount(name, "x");
        a.ours(&["fsck", name]).ok();
    }
    a.ours(&["snapshot", "restored", "then", "--remove"]).ok();
    // A host that does not come back: another one goes on, when its lock and its watch are over.
    if full() {
        create(&a, "taken");
        begun("taken");
        a.kill_plugin();
        assert!(is_clone("taken"), "too fast to see anything");
        // As soon as the cluster has forgotten it, the volume can be had.
        assert_eq!(sum(&b.mount("taken", "x")), data);
        b.unmount("taken", "x");
        a.start_plugin();
        b.called("VolumeDriver.Remove", &json!({ "Name": "taken" }));

        create(&a, "left");
        b.called("VolumeDriver.List", &json!({}));
        begun("left");
        a.kill_plugin();
        assert!(is_clone("left"), "too fast to see anything");
        eventually("another host has done it", || flattening(&b, "left").is_none());
        assert_eq!(sum(&b.mount("left", "x")), data);
        b.unmount("left", "x");
        b.called("VolumeDriver.Remove", &json!({ "Name": "left" }));
    }
    eventually("what was taken for it is gone", || {
        let snaps = ceph.run("rbd", &["snap", "ls", "--all", "--format", "json", "large"]).json();
        snaps.as_array().unwrap().is_empty()
    });
    for name in [&all[..], &["large"]].concat() {
        b.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
}

/// A host that mounts a volume writes down whose writes are fenced when it dies: not who flattens it just then.
#[test]
fn whoever_makes_a_volume_independent_is_none_of_its_users_and_locks_only_what_is_there() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "8M", "locked"]);
    let id = ceph.run("rbd", &["info", "--format", "json", "locked"]).json()["id"].clone();
    let found = |image: &str, id: &str| Found {
        name: image.to_owned(),
        place: Place::new("rbd", "", image),
        id: id.to_owned(),
        description: Description::default(),
        flattening: None,
    };
    let (found, gone) = (found("locked", id.as_str().unwrap()), found("gone", "gone"));
    let conf = Some(ceph.conf().display().to_string());
    let store = Store::new(Args { conf, ..Args::default() });
    let asked = async {
        let image = async {
            let pool = store.pool(&found.place).await?;
            Image::open(&pool, "locked", &OpenOptions::default()).await
        };
        let seen = async || {
            let clients = store.clients(&found).await.unwrap();
            (clients.users.len(), clients.flattener)
        };
        assert!(store.lease_flattening(&found, "id", "alpha").await.unwrap());
        assert_eq!(seen().await, (0, None));
        let image = image.await.unwrap();
        assert_eq!(seen().await, (0, Some("alpha".to_owned())));
        store.end_flattening(&found, "id").await.unwrap();
        assert_eq!(seen().await, (1, None));
        image.close().await;
        // Of an image that was removed since it was found, a lock would make the header anew.
        let error = store.lease_flattening(&gone, "id", "alpha").await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        let error = store.lock(&gone, "id", "alpha").await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            () = store.stay_connected() => {}
            () = asked => {}
        }
    });
    assert_ne!(ceph.run("rados", &["-p", "rbd", "stat", "rbd_header.gone"]).code, 0);
    ceph.rbd(&["rm", "--no-progress", "locked"]);
}

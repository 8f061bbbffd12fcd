//! Two hosts that want one volume.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::host::{Host, eventually, signal};
use crate::one_osd;

#[test]
fn a_volume_is_handed_over_and_never_shared() {
    let (a, b) = (Host::start(one_osd(), "alpha", ""), Host::start(one_osd(), "beta", ""));
    let create = json!({ "Name": "handed", "Opts": { "size": "128M" } });
    a.called("VolumeDriver.Create", &create);
    fs::write(a.mount("handed", "x").join("from-a"), "a").unwrap();

    let begun = Instant::now();
    let mount = json!({ "Name": "handed", "ID": "y" });
    let error = b.refused("VolumeDriver.Mount", &mount);
    assert!(error.contains("it is mounted on host alpha (127."), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    b.called("VolumeDriver.Unmount", &mount);
    let error = b.refused("VolumeDriver.Remove", &json!({ "Name": "handed" }));
    assert!(error.contains("it is mounted on host alpha"), "{error}");
    let status = b.called("VolumeDriver.Get", &json!({ "Name": "handed" }))["Volume"].clone();
    assert_eq!(status["Status"]["mounted-by"]["host"], "alpha");
    assert!(status.get("Mountpoint").is_none(), "{status}");
    assert!(b.ours(&["who", "handed"]).ok().starts_with("mounted on host alpha\n"));

    a.unmount("handed", "x");
    let root = b.mount("handed", "y");
    assert_eq!(fs::read_to_string(root.join("from-a")).unwrap(), "a");
    b.unmount("handed", "y");

    // Both at once, again and again: one has it each time, and nothing is left in the end.
    for round in 0..5 {
        let user = format!("round {round}");
        let mount = json!({ "Name": "handed", "ID": user });
        let answers = std::thread::scope(|scope| {
            let racing = [&a, &b].map(|host| {
                let mount = &mount;
                scope.spawn(move || host.call("VolumeDriver.Mount", mount))
            });
            racing.map(|thread| thread.join().unwrap())
        });
        let mounted = answers.iter().filter(|answer| answer.contains("Mountpoint")).count();
        assert_eq!(mounted, 1, "{answers:?}");
        for host in [&a, &b] {
            host.unmount("handed", &user);
        }
    }
    for host in [&a, &b] {
        assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));
    }
    a.ours(&["fsck", "handed"]).ok();
}

#[test]
fn two_hosts_that_make_one_volume_at_once_make_one() {
    let (a, b) = (Host::start(one_osd(), "alpha", ""), Host::start(one_osd(), "beta", ""));
    for round in 0..5 {
        let name = format!("race-{round}");
        let create = json!({ "Name": name, "Opts": { "size": "128M", "mode": "0711" } });
        std::thread::scope(|scope| {
            for host in [&a, &b] {
                let create = &create;
                scope.spawn(move || host.called("VolumeDriver.Create", create));
            }
        });
        let uuid = |host: &Host| {
            host.mount(&name, "x");
            let device = host.called("VolumeDriver.Get", &create)["Volume"]["Status"]["device"]
                .as_str()
                .unwrap()
                .to_owned();
            let uuid = crate::support::run("blkid", &["-o", "value", "-s", "UUID", &device]).ok();
            host.unmount(&name, "x");
            uuid
        };
        let first = uuid(&a);
        assert_eq!(uuid(&b), first, "it was formatted once");
        a.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
}

/// Half a minute, which is how long the cluster believes in a client that says nothing.
#[test]
fn a_host_that_died_is_fenced_before_its_volume_is_taken() {
    let ceph = one_osd();
    let a = Host::start(ceph, "alpha", "");
    let b = Host::start(ceph, "beta", "");
    let manual = Host::start(ceph, "gamma", "fence = \"manual\"\n");
    let create = json!({ "Name": "fenced", "Opts": { "size": "128M" } });
    a.called("VolumeDriver.Create", &create);
    let root = a.mount("fenced", "x");
    fs::write(root.join("before"), "synced").unwrap();
    crate::support::run("sync", &["-f", root.to_str().unwrap()]).ok();
    // What is dirty when the host freezes, it may try to write when it thaws.
    fs::write(root.join("dirty"), "x".repeat(1 << 20)).unwrap();
    let frozen = a.mappings();
    assert_eq!(frozen.len(), 1);
    for pid in &frozen {
        signal("STOP", *pid);
    }
    let mount = json!({ "Name": "fenced", "ID": "y" });
    let error = b.refused("VolumeDriver.Mount", &mount);
    assert!(error.contains("mounted on host alpha"), "its watch is still there: {error}");
    eventually("its watch goes", || {
        let error = manual.refused("VolumeDriver.Mount", &mount);
        error.contains("host alpha had it mounted and has vanished")
            && error.contains("ceph-native fence fenced")
    });
    let root = b.mount("fenced", "y");
    assert_eq!(fs::read_to_string(root.join("before")).unwrap(), "synced");
    fs::write(root.join("after"), "of beta").unwrap();
    crate::support::run("sync", &["-f", root.to_str().unwrap()]).ok();
    assert!(ceph.ceph(&["osd", "blocklist", "ls"]).contains("127."), "fenced first");

    let image = |host: &Host| {
        let file = host.dir.join("image");
        let _ = fs::remove_file(&file);
        ceph.rbd(&["export", "--no-progress", "fenced", file.to_str().unwrap()]);
        fs::read(file).unwrap()
    };
    b.unmount("fenced", "y");
    let before = image(&b);
    for pid in &frozen {
        signal("CONT", *pid);
    }
    // The thawed one tries to write what is dirty, and finds out that it is fenced.
    let mut syncing = Command::new("sync").args(["-f", &a.mounts()[0]]).spawn().unwrap();
    let log = |host: &Host| {
        let folders = fs::read_dir(host.dir.join("mappings")).unwrap().flatten();
        folders.filter_map(|folder| fs::read_to_string(folder.path().join("log")).ok()).collect()
    };
    eventually("it notices", || {
        let said: String = log(&a);
        said.contains("fenced this client off")
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        !syncing.try_wait().unwrap().is_some_and(|status| status.success()),
        "nothing was lost?"
    );
    assert!(image(&b) == before, "the fenced host has written");
    a.tear_down();
    let _ = syncing.wait();
    b.mount("fenced", "z");
    b.unmount("fenced", "z");
}

//! Two hosts that want one volume.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::host::{DRIVER, Host, MAPPINGS, eventually, signal};
use crate::one_osd;
use crate::support::{Ran, run};

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
            let uuid = run("blkid", &["-o", "value", "-s", "UUID", &device]).ok();
            host.unmount(&name, "x");
            uuid
        };
        let first = uuid(&a);
        assert_eq!(uuid(&b), first, "it was formatted once");
        a.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
}

#[test]
fn what_is_only_read_elsewhere_is_neither_removed_nor_brought_back() {
    let (a, b) = (Host::start(one_osd(), "alpha", ""), Host::start(one_osd(), "beta", ""));
    let c = Host::start(one_osd(), "gamma", "");
    a.called("VolumeDriver.Create", &json!({ "Name": "origin", "Opts": { "size": "128M" } }));
    fs::write(a.mount("origin", "x").join("file"), "read").unwrap();
    a.unmount("origin", "x");
    let create = json!({ "Name": "read", "Opts": { "from": "origin", "read-only": "true" } });
    a.called("VolumeDriver.Create", &create);
    a.ours(&["snapshot", "read", "then"]).ok();
    // Any number of hosts, and each is told apart.
    assert_eq!(fs::read_to_string(b.mount("read", "x").join("file")).unwrap(), "read");
    let who = |host| format!("mounted for reading on host {host}, through 127.");
    let told = a.ours(&["who", "read"]).ok();
    assert!(told.contains(&who("beta")) && told.lines().count() == 1, "{told}");
    c.mount("read", "x");
    let told = a.ours(&["who", "read"]).ok();
    assert!(told.contains(&who("beta")) && told.contains(&who("gamma")), "{told}");
    c.unmount("read", "x");

    let remove = json!({ "Name": "read" });
    let used = "it is mounted for reading on host beta (127.";
    for _ in 0..2 {
        let refused = a.refused("VolumeDriver.Remove", &remove);
        assert!(refused.contains(used), "{refused}");
        let refused = a.ours(&["restore", "read", "then"]).refused();
        assert!(refused.contains(used), "{refused}");
        // Neither leaves anything that would keep anybody out.
        c.mount("read", "y");
        c.unmount("read", "y");
    }
    // Nor does it go to the trash, or out of a volume's hands, while it is read.
    let adopt = json!({ "Name": "adopted", "Opts": { "image": "adopt", "read-only": "true" } });
    let trash = json!({ "Name": "trash", "Opts": { "from": "origin", "trash": "true", "read-only": "true" } });
    one_osd().rbd(&["snap", "create", "--no-progress", "origin@s"]);
    one_osd().rbd(&["cp", "--no-progress", "origin@s", "adopt"]);
    one_osd().rbd(&["snap", "rm", "--no-progress", "origin@s"]);
    for create in [&adopt, &trash] {
        a.called("VolumeDriver.Create", create);
        b.mount(create["Name"].as_str().unwrap(), "x");
        let refused = a.refused("VolumeDriver.Remove", create);
        assert!(refused.contains("reading on host beta"), "{refused}");
        b.unmount(create["Name"].as_str().unwrap(), "x");
        a.called("VolumeDriver.Remove", create);
    }
    b.unmount("read", "x");
    assert_eq!(a.ours(&["who", "read"]).ok().trim(), "nobody");
    assert!(!one_osd().rbd(&["image-meta", "ls", "read"]).contains("reader"));
    a.ours(&["restore", "read", "then"]).ok();
    a.ours(&["snapshot", "read", "then", "--remove"]).ok();
    a.called("VolumeDriver.Remove", &remove);
}

/// Starts a container that writes to a volume, and stays.
fn start(host: &Host, volume: &str, line: &str) -> Ran {
    let mount = format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
    host.try_docker(&["run", "-d", "--network=none", "--mount", &mount, "bb", "sh", "-c", line])
}

/// Half a minute, which is how long the cluster believes in a client that says nothing.
#[test]
fn two_dockers_share_a_volume_by_turns_and_a_host_that_died_is_fenced_first() {
    let ceph = one_osd();
    let mut a = Host::start(ceph, "alpha", "");
    let mut b = Host::start(ceph, "beta", "");
    let manual = Host::start(ceph, "gamma", "fence = \"manual\"\n");
    a.start_dockerd(&[]);
    b.start_dockerd(&[]);
    a.create("fenced", &["size=128M"]);
    // By turns, and both at once: one has it each time.
    assert_eq!(a.in_container("fenced", "echo of alpha > /v/before; cat /v/before"), "of alpha");
    assert_eq!(b.in_container("fenced", "cat /v/before"), "of alpha");
    for round in 0..3 {
        let line = format!("echo {round} >> /v/rounds; exec sleep 1000");
        let started = std::thread::scope(|scope| {
            let racing = [&a, &b].map(|host| scope.spawn(|| start(host, "fenced", &line)));
            racing.map(|thread| thread.join().unwrap())
        });
        let [here, there] = started.each_ref().map(|ran| ran.code == 0);
        assert!(here != there, "{} {}", started[0], started[1]);
        for (host, ran) in [&a, &b].into_iter().zip(started) {
            match ran.code {
                0 => {
                    let file = Path::new(&host.mounts()[0]).join("rounds");
                    let written = || fs::read_to_string(&file).unwrap_or_default();
                    eventually("it writes", || written().contains(&round.to_string()));
                    host.docker(&["rm", "-f", ran.ok().trim()]);
                }
                _ => assert!(ran.refused().contains("it is mounted on host ")),
            }
        }
        // The container that was not to be is there all the same.
        for host in [&a, &b] {
            let all = host.docker(&["ps", "-aq"]);
            all.lines().for_each(|id| drop(host.docker(&["rm", "-f", id])));
            assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));
        }
    }
    assert_eq!(b.in_container("fenced", "cat /v/rounds"), "0\n1\n2");

    // What is dirty when the host freezes, it may try to write when it thaws.
    let line = "echo synced > /v/before; sync -d /v/before; echo > /v/ready; \
        while true; do echo dirty >> /v/dirty; usleep 100000; done";
    let writer = start(&a, "fenced", line).ok().trim().to_owned();
    let seen = |file: &str| fs::read_to_string(Path::new(&a.mounts()[0]).join(file));
    eventually("it writes", || seen("ready").is_ok() && seen("dirty").is_ok());
    let frozen = a.mappings();
    assert_eq!(frozen.len(), 1);
    for pid in &frozen {
        signal("STOP", *pid);
    }
    let refused = b.try_in_container("fenced", "true").refused();
    assert!(refused.contains("mounted on host alpha"), "its watch is still there: {refused}");
    let mount = json!({ "Name": "fenced", "ID": "y" });
    eventually("its watch goes", || {
        let error = manual.refused("VolumeDriver.Mount", &mount);
        error.contains("host alpha had it mounted and has vanished")
            && error.contains("ceph-native fence fenced")
    });
    let told = b.in_container("fenced", "cat /v/before; echo of beta > /v/after; sync -d /v/after");
    assert_eq!(told, "synced");
    assert!(ceph.ceph(&["osd", "blocklist", "ls"]).contains("127."), "fenced first");

    let image = |host: &Host| {
        let file = host.dir.join("exported");
        let _ = fs::remove_file(&file);
        ceph.rbd(&["export", "--no-progress", "fenced", file.to_str().unwrap()]);
        fs::read(file).unwrap()
    };
    let before = image(&b);
    for pid in &frozen {
        signal("CONT", *pid);
    }
    // The thawed one tries to write what is dirty, and finds out that it is fenced.
    let mut syncing = Command::new("sync").args(["-f", &a.mounts()[0]]).spawn().unwrap();
    let log = |host: &Host| {
        let folders = fs::read_dir(host.dir.join(MAPPINGS)).unwrap().flatten();
        folders.filter_map(|folder| fs::read_to_string(folder.path().join("log")).ok()).collect()
    };
    eventually("it notices", || {
        let said: String = log(&a);
        said.contains("fenced this client off")
    });
    let write = ["exec", &writer, "sh", "-c", "echo late > /v/late && sync -d /v/late"];
    a.try_docker(&write).refused();
    let _ = a.try_docker(&["rm", "-f", &writer]);
    assert!(!syncing.wait().unwrap().success(), "nothing was lost?");
    assert!(image(&b) == before, "the fenced host has written");
    // Its own is cleared away, and it may have the volume again as anybody may.
    eventually("nothing is left", || a.mounts().is_empty() && a.mappings().is_empty());
    assert_eq!(a.in_container("fenced", "cat /v/after; ls /v/late 2>/dev/null; true"), "of beta");
    a.docker(&["volume", "rm", "fenced"]);
}

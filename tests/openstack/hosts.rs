//! Several hosts at volumes of Cinder's: at once, after one another died, and beside virtual machines.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cloud::OpenStack;
use crate::host::{Host, eventually};
use crate::openstack;
use crate::support::run;
use crate::volumes::{ALICE, create, only, settings};

fn removed(host: &Host, name: &str) {
    host.called("VolumeDriver.Remove", &json!({ "Name": name }));
}

/// Has Cinder say of a volume that nothing of it has changed for long.
fn make_old(cloud: &OpenStack, name: &str) {
    let database = cloud.ceph.dir().join("openstack/cinder.db").display().to_string();
    let long_ago = format!(
        "update volumes set updated_at = datetime('now', '-12 minutes')
        where display_name = '{name}' and not deleted"
    );
    run("sqlite3", &["-cmd", ".timeout 30000", &database, &long_ago]).ok();
}

#[test]
fn hosts_that_make_one_volume_at_once_make_one() {
    let Some((cloud, _turn)) = openstack() else { return };
    let hosts = ["left", "right"].map(|name| Host::start(cloud.ceph, name, &settings(cloud, "")));
    for round in 0..3 {
        let name = format!("both-{round}");
        std::thread::scope(|scope| {
            for host in &hosts {
                let (name, host) = (&name, host);
                scope.spawn(move || host.called("VolumeDriver.Create", &create(name, &[])));
            }
        });
        let made = only(cloud, ALICE, &name);
        assert_eq!(made["status"], "available", "{made}");
        assert_eq!(cloud.ceph.rbd(&["ls", "volumes"]).lines().count(), 1);
        let root = hosts[round % 2].mount(&name, "1");
        assert!(root.is_dir());
        hosts[round % 2].unmount(&name, "1");
        removed(&hosts[0], &name);
    }
}

#[test]
fn a_host_that_died_while_it_made_a_volume_is_taken_over_from() {
    let Some((cloud, _turn)) = openstack() else { return };
    let mut dead = Host::start(cloud.ceph, "dead", &settings(cloud, ""));
    // It makes the volume, and does not come back.
    let mut dies_at = |step: &str| {
        dead.kill_plugin();
        dead.env.insert("CEPH_NATIVE_KILL_AT", step.to_owned());
        dead.start_plugin();
        assert_eq!(dead.call("VolumeDriver.Create", &create("v", &[])), "", "{step}");
    };
    let host = Host::start(cloud.ceph, "heir", &settings(cloud, ""));
    let brief = settings(cloud, "").replace("work-seconds = 120", "work-seconds = 12");
    let hurried = Host::start(cloud.ceph, "hurried", &brief);
    for step in ["create: attached", "create: described", "create: formatted"] {
        dies_at(step);
        let shown = only(cloud, ALICE, "v");
        assert_ne!(shown["status"], "available", "{step}: {shown}");
        if step == "create: attached" {
            // Who is at work and who is dead looks alike, for a while.
            let error = hurried.refused("VolumeDriver.Create", &create("v", &[]));
            assert!(error.contains("that is known after 660 s"), "{error}");
            make_old(cloud, "v");
        }
        host.called("VolumeDriver.Create", &create("v", &[]));
        let root = host.mount("v", "1");
        fs::write(root.join("file"), step).unwrap();
        let shown = only(cloud, ALICE, "v");
        assert_eq!(shown["attachments"].as_array().map(Vec::len), Some(1), "{step}: {shown}");
        host.unmount("v", "1");
        assert_eq!(only(cloud, ALICE, "v")["status"], "available", "{step}");
        removed(&host, "v");
    }
}

#[test]
fn what_another_host_has_mounted_for_long_is_left_to_it() {
    let Some((cloud, _turn)) = openstack() else { return };
    let has = Host::start(cloud.ceph, "has", &settings(cloud, ""));
    let wants = Host::start(cloud.ceph, "wants", &settings(cloud, ""));
    has.called("VolumeDriver.Create", &create("kept", &[]));
    let root = has.mount("kept", "1");
    let before = only(cloud, ALICE, "kept");
    // As for a host with another cluster, or with an older version: it does not find it.
    let image = format!("volumes/volume-{}", before["id"].as_str().unwrap());
    let meta = |words: &[&str], value: &[&str]| {
        cloud.ceph.rbd(&[words, &[image.as_str(), "ceph-native.volume"], value].concat())
    };
    let description = meta(&["image-meta", "get"], &[]);
    meta(&["image-meta", "set"], &["{\"state\": \"newer\"}"]);
    make_old(cloud, "kept");
    let error = wants.refused("VolumeDriver.Create", &create("kept", &[]));
    assert!(error.contains("is this one, but not free"), "{error}");
    let shown = only(cloud, ALICE, "kept");
    assert_eq!(shown["attachments"], before["attachments"], "{shown}");
    fs::write(root.join("file"), "written").unwrap();

    // Nor is it described anew once it is free.
    has.unmount("kept", "1");
    let error = wants.refused("VolumeDriver.Create", &create("kept", &[]));
    assert!(error.contains("its description as a volume makes no sense"), "{error}");
    assert!(meta(&["image-meta", "get"], &[]).contains("newer"));
    assert_eq!(only(cloud, ALICE, "kept")["status"], "available");
    meta(&["image-meta", "set"], &[description.trim()]);
    removed(&has, "kept");
}

#[test]
fn what_a_virtual_machine_has_is_told_and_left_to_it() {
    let Some((cloud, _turn)) = openstack() else { return };
    let host = Host::start(cloud.ceph, "beside", &settings(cloud, ""));
    // Tagged as ours, but a server has it.
    let metadata = json!({ "ceph-native.volume": "taken" });
    let volume = json!({ "volume": { "name": "taken", "size": 1, "metadata": metadata } });
    let made = cloud.ask(ALICE, "POST", "volumes", Some(volume))["volume"]["id"].clone();
    eventually("it is there", || only(cloud, ALICE, "taken")["status"] == "available");
    let path = format!("volumes/{}", made.as_str().unwrap());
    let act = |action: Value| cloud.ask(ALICE, "POST", &format!("{path}/action"), Some(action));
    act(json!({ "os-reserve": {} }));
    let server = "11111111-2222-3333-4444-555555555555";
    act(json!({ "os-attach": { "instance_uuid": server, "mountpoint": "/dev/vdb" } }));
    eventually("a server has it", || only(cloud, ALICE, "taken")["status"] == "in-use");
    let begun = Instant::now();
    let error = host.refused("VolumeDriver.Create", &create("taken", &[]));
    assert!(error.contains(&format!("attached to server {server} as /dev/vdb")), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let shown = only(cloud, ALICE, "taken");
    assert_eq!(shown["attachments"][0]["server_id"], server, "{shown}");
    act(json!({ "os-detach": {} }));
    eventually("it is free again", || only(cloud, ALICE, "taken")["status"] == "available");
    cloud.ask(ALICE, "DELETE", &path, None);
    eventually("it is gone", || cloud.volumes(ALICE, "taken").is_empty());
}

#[test]
fn a_type_for_several_hosts_is_read_only_unless_asked_otherwise() {
    let Some((cloud, _turn)) = openstack() else { return };
    let hosts = ["one", "two"].map(|name| Host::start(cloud.ceph, name, &settings(cloud, "")));
    hosts[0].called("VolumeDriver.Create", &create("many", &[("volume-type", "multi")]));
    let warned = hosts[0].log();
    assert!(warned.contains("read-only unless read-only=false is given"), "{warned}");
    for host in &hosts {
        let root = host.mount("many", "1");
        let error = fs::write(root.join("file"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(30), "{error}");
    }
    let shown = only(cloud, ALICE, "many");
    assert_eq!(shown["attachments"].as_array().map(Vec::len), Some(2), "{shown}");
    for host in &hosts {
        host.unmount("many", "1");
    }
    eventually("it is free", || only(cloud, ALICE, "many")["status"] == "available");
    removed(&hosts[0], "many");

    // Written by one host at a time, then: what Cinder allows, the lock in Ceph does not.
    let options = [("volume-type", "multi"), ("read-only", "false")];
    hosts[0].called("VolumeDriver.Create", &create("one", &options));
    let root = hosts[0].mount("one", "1");
    fs::write(root.join("file"), "x").unwrap();
    let error = hosts[1].refused("VolumeDriver.Mount", &json!({ "Name": "one", "ID": "1" }));
    assert!(error.contains("mounted on host one"), "{error}");
    assert_eq!(only(cloud, ALICE, "one")["attachments"].as_array().map(Vec::len), Some(1));
    hosts[0].unmount("one", "1");
    removed(&hosts[1], "one");
}

#[test]
fn what_cinder_gave_to_another_while_the_plugin_was_dead_is_not_mapped() {
    let Some((cloud, _turn)) = openstack() else { return };
    for api in ["attachments", "actions"] {
        let chosen = format!("[cinder]\nattach-api = \"{api}\"\n[cinder.auth]");
        let settings = settings(cloud, "").replace("[cinder.auth]", &chosen);
        let mut host = Host::start(cloud.ceph, api, &settings);
        host.called("VolumeDriver.Create", &create("given", &[]));
        let id = only(cloud, ALICE, "given")["id"].as_str().unwrap().to_owned();
        let act = |action: Value| {
            cloud.ask(ALICE, "POST", &format!("volumes/{id}/action"), Some(action));
        };
        let take_away = || {
            if api == "actions" {
                let in_use = only(cloud, ALICE, "given")["status"] == "in-use";
                let action = if in_use { "os-detach" } else { "os-unreserve" };
                act(json!({ action: {} }));
            } else {
                let path = format!("attachments/detail?volume_id={id}");
                let all = cloud.ask(ALICE, "GET", &path, None);
                for one in all["attachments"].as_array().unwrap() {
                    let path = format!("attachments/{}", one["id"].as_str().unwrap());
                    cloud.ask(ALICE, "DELETE", &path, None);
                }
            }
            eventually("it is free", || only(cloud, ALICE, "given")["status"] == "available");
        };
        let server = "11111111-2222-3333-4444-555555555555";
        let give_to_server = || {
            act(json!({ "os-reserve": {} }));
            act(json!({ "os-attach": { "instance_uuid": server, "mountpoint": "/dev/vdb" } }));
            eventually("a server has it", || only(cloud, ALICE, "given")["status"] == "in-use");
        };
        let user = "0123456789abcdef0123456789abcdef";
        let mount = json!({ "Name": "given", "ID": user });
        for step in ["mount: attached", "mount: mapped", "mount: mounted", "mount: completed"] {
            host.kill_plugin();
            host.env.insert("CEPH_NATIVE_KILL_AT", step.to_owned());
            host.start_plugin();
            assert_eq!(host.call("VolumeDriver.Mount", &mount), "", "{api} {step}");
            host.kill_plugin();
            host.env.remove("CEPH_NATIVE_KILL_AT");

            // Somebody takes the volume from it, and gives it to a virtual machine.
            take_away();
            give_to_server();

            host.start_plugin();
            let error = host.refused("VolumeDriver.Mount", &mount);
            assert!(
                error.contains(&format!("attached to server {server}")),
                "{api} {step}: {error}"
            );
            eventually(&format!("{api} {step}: nothing is mapped"), || {
                host.mounts().is_empty() && host.mappings().is_empty()
            });
            let shown = only(cloud, ALICE, "given");
            assert_eq!(shown["attachments"].as_array().map(Vec::len), Some(1), "{shown}");
            assert_eq!(shown["attachments"][0]["server_id"], server, "{api} {step}: {shown}");
            act(json!({ "os-detach": {} }));
            eventually("it is free again", || only(cloud, ALICE, "given")["status"] == "available");
            host.mount("given", user);
            assert_eq!(only(cloud, ALICE, "given")["status"], "in-use", "{api} {step}");
            host.unmount("given", user);
            assert_eq!(only(cloud, ALICE, "given")["status"], "available", "{api} {step}");
        }

        // What a container has is left to it, which is said once, and goes on when the other is gone.
        let root = host.mount("given", user);
        let at = host.dir.join("container").display().to_string();
        let line = format!("mkdir {at}; mount --bind {} {at}; exec sleep 1000", root.display());
        // Where nobody else gets a copy of it.
        let args = ["-m", "--propagation", "private", "sh", "-ec", &line];
        let mut container = Command::new("unshare").args(args).spawn().unwrap();
        cloud.ceph.reap(container.id());
        host.kill_plugin();
        take_away();
        give_to_server();
        host.start_plugin();
        let told = || host.log().matches("and a container here has it").count();
        eventually("it is told", || told() > 0);
        // It is looked at every 10 s.
        std::thread::sleep(Duration::from_secs(25));
        assert_eq!((told(), host.mounts().len(), host.mappings().len()), (1, 1, 1));
        assert_eq!(only(cloud, ALICE, "given")["attachments"][0]["server_id"], server);
        act(json!({ "os-detach": {} }));
        let device = format!("{api}:{}", root.display());
        eventually("it is this host's again", || {
            only(cloud, ALICE, "given")["attachments"][0]["device"] == device
        });
        container.kill().unwrap();
        container.wait().unwrap();
        host.unmount("given", user);

        // If it was only taken away, the record is made anew.
        let root = host.mount("given", user);
        host.kill_plugin();
        take_away();
        host.start_plugin();
        eventually("Cinder shows it as in use again", || {
            only(cloud, ALICE, "given")["attachments"][0]["device"] == device
        });
        fs::write(root.join("file"), "written").unwrap();
        host.unmount("given", user);
        assert_eq!(only(cloud, ALICE, "given")["status"], "available");
        removed(&host, "given");
    }
}

#[test]
fn a_host_that_was_fenced_takes_nothing_from_the_one_that_has_it_now() {
    let Some((cloud, _turn)) = openstack() else { return };
    for api in ["attachments", "actions"] {
        let chosen = format!("[cinder]\nattach-api = \"{api}\"\n[cinder.auth]");
        let settings = settings(cloud, "").replace("[cinder.auth]", &chosen);
        let mut fenced = Host::start(cloud.ceph, "fenced", &settings);
        let owner = Host::start(cloud.ceph, "owner", &settings);
        fenced.called("VolumeDriver.Create", &create("moved", &[]));
        fenced.mount("moved", "1");
        fenced.kill_plugin();
        owner.ours(&["fence", "moved"]).ok();
        let root = owner.mount("moved", "1");
        let before = only(cloud, ALICE, "moved")["attachments"].clone();
        assert_eq!(before.as_array().map(Vec::len), Some(1), "{api}: {before}");
        // What was mounted is there still, dead.
        assert_eq!(fenced.mounts().len(), 1);
        fenced.start_plugin();
        eventually("its own is cleared away", || {
            fenced.mounts().is_empty() && fenced.mappings().is_empty()
        });
        let mount = json!({ "Name": "moved", "ID": "2" });
        let error = fenced.refused("VolumeDriver.Mount", &mount);
        assert!(error.contains("mounted on host owner"), "{error}");
        assert_eq!(only(cloud, ALICE, "moved")["attachments"], before, "{api}");
        fs::write(root.join("file"), "written").unwrap();
        owner.unmount("moved", "1");
        assert_eq!(only(cloud, ALICE, "moved")["status"], "available", "{api}");
        removed(&fenced, "moved");
    }
}

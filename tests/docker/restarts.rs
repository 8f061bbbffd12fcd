//! Everything that can end beneath a container, ends: the plugin, dockerd, the host.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::host::{DRIVER, Host, eventually, program, signal};
use crate::one_osd;
use crate::support::run;

/// Writes a line and syncs it, for ever.
const WRITE: &str = "while true; do echo x >> /v/log; sync -d /v/log; sleep 0.1; done";

/// Starts a container that writes for ever; its id.
fn start_writer(host: &Host, volume: &str) -> String {
    let mount = format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
    host.docker(&["run", "-d", "--network=none", "--mount", &mount, "bb", "sh", "-c", WRITE])
}

/// How much has been written.
fn written(host: &Host, volume: &str) -> usize {
    let log = host.dir.join("state/mounts").join(volume).join("log");
    fs::read_to_string(log).map_or(0, |log| log.len())
}

#[test]
fn a_container_notices_no_end_of_the_plugin_nor_of_docker_with_live_restore() {
    let mut host = Host::start(one_osd(), "live", "");
    host.start_dockerd(&["--live-restore"]);
    host.create("live", &["size=256M"]);
    let writer = start_writer(&host, "live");
    let goes_on = |host: &Host, what: &str| {
        let before = written(host, "live");
        eventually(what, || written(host, "live") > before + 4);
        assert_eq!(host.docker(&["inspect", "-f", "{{.State.Running}}", &writer]), "true");
        assert!(host.in_container("live", "cat /v/log").starts_with('x'), "{what}");
    };
    goes_on(&host, "it writes");
    let busy = host.try_docker(&["volume", "rm", "live"]).refused();
    assert!(busy.contains("in use"), "{busy}");
    host.kill_plugin();
    host.start_plugin();
    goes_on(&host, "the plugin was killed");
    host.stop_plugin();
    host.start_plugin();
    goes_on(&host, "the plugin was stopped");
    for how in ["TERM", "KILL"] {
        host.stop_dockerd(how);
        let before = written(&host, "live");
        eventually("it writes without dockerd", || written(&host, "live") > before + 4);
        host.start_dockerd(&["--live-restore"]);
        goes_on(&host, "dockerd is back");
    }
    // Both at once, and dockerd first: it waits for the plugin.
    host.kill_plugin();
    host.stop_dockerd("KILL");
    host.start_plugin();
    host.start_dockerd(&["--live-restore"]);
    goes_on(&host, "both are back");
    host.docker(&["rm", "-f", &writer]);
    eventually("nobody uses it", || host.mounts().is_empty() && host.mappings().is_empty());
    host.docker(&["volume", "rm", "live"]);
}

#[test]
fn a_use_that_docker_has_forgotten_ends_by_itself() {
    let mut host = Host::start(one_osd(), "lost", "lost-seconds = 4\n");
    host.start_dockerd(&[]);
    for volume in ["lost", "kept"] {
        host.create(volume, &["size=128M"]);
    }
    let lost = start_writer(&host, "lost");
    let kept = start_writer(&host, "kept");
    eventually("both write", || written(&host, "lost") > 0 && written(&host, "kept") > 0);
    let pid = |container: &str| -> u32 {
        host.docker(&["inspect", "-f", "{{.State.Pid}}", container]).parse().unwrap()
    };
    let (lost_pid, _) = (pid(&lost), pid(&kept));
    host.stop_dockerd("KILL");
    signal("KILL", lost_pid);
    eventually("what nobody has is unmounted", || host.mounts().len() == 1);
    eventually("and unmapped", || host.mappings().len() == 1);
    let before = written(&host, "kept");
    eventually("what somebody has is not", || written(&host, "kept") > before + 40);
    assert_eq!(host.mounts().len(), 1);

    // It ends the containers that it finds without live-restore.
    host.start_dockerd(&[]);
    host.docker(&["rm", "-f", &lost, &kept]);
    eventually("nothing is left", || host.mounts().is_empty() && host.mappings().is_empty());
    assert!(host.in_container("lost", "cat /v/log").starts_with('x'));
    for volume in ["lost", "kept"] {
        host.docker(&["volume", "rm", volume]);
    }
}

#[test]
fn a_host_that_starts_anew_finds_everything() {
    let mut host = Host::start(one_osd(), "anew", "");
    host.start_dockerd(&[]);
    host.create("anew", &["size=128M"]);
    let writer = start_writer(&host, "anew");
    eventually("it writes", || written(&host, "anew") > 4);
    let before = host.docker(&["exec", &writer, "cat", "/v/log"]).len();
    // Everything is killed: dockerd, its containers, the plugin, the mappings; then what they leave is torn down.
    let containers = host.containers();
    assert!(!containers.is_empty());
    host.stop_dockerd("KILL");
    host.kill_plugin();
    containers.iter().for_each(|pid| signal("KILL", *pid));
    host.tear_down();
    host.start_plugin();
    host.start_dockerd(&[]);
    let log = host.in_container("anew", "cat /v/log");
    assert!(log.len() >= before, "{} of {before} bytes that were synced", log.len());
    // A container of before finds its volume, too.
    host.docker(&["start", &writer]);
    eventually("it writes again", || written(&host, "anew") > log.len() + 4);
    host.docker(&["rm", "-f", &writer]);
    eventually("nobody uses it", || host.mounts().is_empty() && host.mappings().is_empty());
    host.docker(&["volume", "rm", "anew"]);
}

/// Has the plugin map by a script that does these lines first, before it is started.
fn map_by(host: &Host, lines: &str) {
    let mapper = host.dir.join("mapper");
    let own = Path::new(&program()).with_file_name("rbd-nbd-rs");
    fs::write(&mapper, format!("#!/bin/sh\n{lines}\nexec {} \"$@\"\n", own.display())).unwrap();
    fs::set_permissions(&mapper, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = host.dir.join("settings.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("mapper = [{mapper:?}]\n{text}")).unwrap();
}

#[test]
fn a_volume_that_hangs_delays_no_other() {
    let mut host = Host::bare(one_osd(), "hangs", "work-seconds = 20\n");
    map_by(&host, "if [ $1 = map ] && [ $2 = rbd/hangs ]; then exec sleep 1000; fi");
    host.start_plugin();
    for name in ["hangs", "other"] {
        let create = json!({ "Name": name, "Opts": { "size": "64M" } });
        host.called("VolumeDriver.Create", &create);
    }
    let hanging = json!({ "Name": "hangs", "ID": "x" });
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| host.refused("VolumeDriver.Mount", &hanging));
        std::thread::sleep(Duration::from_millis(500));
        for _ in 0..2 {
            host.mount("other", "x");
            host.unmount("other", "x");
            let listed = host.called("VolumeDriver.List", &json!({})).to_string();
            assert!(listed.contains("hangs"), "{listed}");
            host.called("VolumeDriver.Get", &json!({ "Name": "hangs" }));
        }
        host.called("VolumeDriver.Remove", &json!({ "Name": "other" }));
        assert!(!hanging.is_finished(), "nothing hung meanwhile");
        let refused = hanging.join().unwrap();
        assert!(refused.contains("mounting volume hangs: "), "{refused}");
    });
    eventually("nothing is left of it", || host.mounts().is_empty() && host.mappings().is_empty());
    let removed = || host.call("VolumeDriver.Remove", &json!({ "Name": "hangs" }));
    eventually("it can be removed", || removed().contains(r#""Err":"""#));
}

#[test]
fn uses_of_before_a_reboot_are_over() {
    let (mut a, b) = (Host::start(one_osd(), "alpha", ""), Host::start(one_osd(), "beta", ""));
    let create = json!({ "Name": "rebooted", "Opts": { "size": "64M" } });
    a.called("VolumeDriver.Create", &create);
    fs::write(a.mount("rebooted", "never unmounted").join("file"), "kept").unwrap();
    run("sync", &["-f", &a.mounts()[0]]).ok();
    a.kill_plugin();
    a.tear_down();
    // The journal of another boot, of which nothing is left: no device, no mount.
    let journal = a.dir.join("state/attached/rebooted.json");
    let mut attached: serde_json::Value =
        serde_json::from_slice(&fs::read(&journal).unwrap()).unwrap();
    assert_eq!(attached["users"].as_object().map(|users| users.len()), Some(1), "{attached}");
    attached["boot"] = json!("00000000-0000-0000-0000-000000000000");
    fs::write(&journal, attached.to_string()).unwrap();
    // Nor is a file system that was being made, on a file of its own, of any use.
    let scratch = a.dir.join("state/scratch/left.img");
    fs::write(&scratch, "half").unwrap();
    a.start_plugin();
    assert!(!scratch.exists());
    eventually("it is forgotten", || !journal.exists());
    let status = a.called("VolumeDriver.Get", &create)["Volume"].clone();
    assert!(status.get("Mountpoint").is_none(), "{status}");
    // And another host can have it, though nobody has ever unmounted it.
    assert_eq!(fs::read_to_string(b.mount("rebooted", "x").join("file")).unwrap(), "kept");
    b.unmount("rebooted", "x");
    b.called("VolumeDriver.Remove", &create);
}

#[test]
fn what_somebody_unmounted_is_mounted_again_only_if_its_device_is_known_to_be_its_own() {
    let mut host = Host::bare(one_osd(), "again", "");
    let mute = host.dir.join("mute");
    let odd = format!(
        "if [ $1 = list-mapped ] && [ -e {} ]; then echo 'told nothing' >&2; exit 5; fi",
        mute.display()
    );
    map_by(&host, &odd);
    host.start_plugin();
    host.called("VolumeDriver.Create", &json!({ "Name": "again", "Opts": { "size": "128M" } }));
    let root = host.mount("again", "x");
    fs::write(root.join("file"), "kept").unwrap();

    // As a container has it.
    let elsewhere = host.dir.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let [from, to] = [&root, &elsewhere].map(|path| path.to_str().unwrap());
    run("mount", &["--bind", from, to]).ok();
    fs::write(&mute, "").unwrap();
    run("umount", &[from]).ok();
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "again", "ID": "y" }));
    assert!(error.contains("told nothing"), "{error}");
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 1), "{}", host.log());
    fs::remove_file(&mute).unwrap();
    host.mount("again", "y");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    run("umount", &[to]).ok();
    host.unmount("again", "x");
    // Mount namespaces that other tests made meanwhile keep a copy of what was bound: it is in use as long as they are.
    let last = json!({ "Name": "again", "ID": "y" });
    let unmounted = || host.call("VolumeDriver.Unmount", &last).contains(r#""Err":"""#);
    eventually("nobody has it any more", unmounted);
    host.called("VolumeDriver.Remove", &json!({ "Name": "again" }));
}

#[test]
fn a_name_is_the_same_volume_after_the_plugin_was_away() {
    let mut host = Host::start(one_osd(), "unique", "");
    host.start_dockerd(&[]);
    host.create("unique", &["size=128M"]);
    assert_eq!(host.in_container("unique", "echo kept > /v/f; cat /v/f"), "kept");
    host.kill_plugin();
    let run = ["run", "--rm", "--network=none", "-v", "unique:/v", "bb", "cat", "/v/f"];
    // Docker is not to take another volume of that name for it, nor to be told to.
    host.try_docker(&run).refused();
    host.try_docker(&["volume", "create", "--driver", DRIVER, "unique"]).refused();
    host.start_plugin();
    host.create("unique", &["size=128M"]);
    assert_eq!(host.docker(&run), "kept");
    let listed = host.docker(&["volume", "ls", "--format", "{{.Driver}} {{.Name}}"]);
    let named: Vec<_> = listed.lines().filter(|line| line.ends_with(" unique")).collect();
    assert_eq!(named, [format!("{DRIVER} unique")]);
    host.docker(&["volume", "rm", "unique"]);
}

#[test]
fn a_container_that_cannot_start_leaves_nothing_mounted() {
    let mut host = Host::start(one_osd(), "start", "");
    host.start_dockerd(&[]);
    host.create("start", &["size=128M"]);
    let mount = format!("type=volume,src=start,dst=/v,volume-driver={DRIVER}");
    let run = ["run", "--rm", "--network=none", "--mount", &mount, "bb", "no-such-program"];
    for _ in 0..2 {
        assert!(host.try_docker(&run).err.contains("no-such-program"));
        assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));
    }
    // Nor does it take away what another has.
    let writer = start_writer(&host, "start");
    eventually("it writes", || written(&host, "start") > 0);
    assert!(host.try_docker(&run).err.contains("no-such-program"));
    let before = written(&host, "start");
    eventually("it goes on", || written(&host, "start") > before + 4);
    host.docker(&["rm", "-f", &writer]);
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));
    host.docker(&["volume", "rm", "start"]);
}

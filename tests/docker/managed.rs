//! The plugin as Docker manages it: in a container of its own, which is made, set, enabled, disabled and upgraded while
//! another container writes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::host::{DRIVER, Host, MAPPINGS, eventually, mounts_below, program};
use crate::one_osd;
use crate::support::run;

/// Writes when it is, and syncs that, for ever.
const WRITE: &str = "while read -r now rest < /proc/uptime; do
    echo $now >> /v/log; sync -d /v/log; usleep 20000
done";

/// Longer than a write takes on a machine that has much else to do, and shorter than anything that waits for a plugin.
const PAUSE: f64 = 5.0;

/// A registry of Docker's on this machine, until it is dropped.
struct Registry(Child, String);

impl Registry {
    fn start(folder: &Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = folder.join("registry.yml");
        let store = folder.join("registry");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {free}\n",
            store.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry: tests/install");
        one_osd().reap(child.id());
        eventually("the registry comes up", || std::net::TcpStream::connect(free).is_ok());
        Self(child, free.to_string())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The folder that `docker plugin create` takes.
fn build(host: &Host) -> PathBuf {
    let programs = Path::new(&program()).parent().unwrap().to_owned();
    let folder = host.dir.join("managed");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/managed/build");
    run(script, &[programs.to_str().unwrap(), folder.to_str().unwrap()]).ok();
    if !may_exceed_limits() {
        let config = folder.join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(config, text.replace(", \"CAP_SYS_RESOURCE\"", "")).unwrap();
    }
    folder
}

/// Whether this machine has all capabilities: a test machine may be without this one, and then nobody can be given it.
fn may_exceed_limits() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let bounds = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("Linux");
    u64::from_str_radix(bounds.trim(), 16).unwrap() & 1 << 24 != 0
}

/// Docker's folder of the plugin, as the plugin has it as its own.
fn state(host: &Host) -> PathBuf {
    let id = host.docker(&["plugin", "inspect", "-f", "{{.Id}}", DRIVER]);
    host.dir.join("root/plugins").join(id).join("propagated-mount")
}

/// When something was written, in seconds since this machine was started.
fn written(log: &Path) -> Vec<f64> {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn longest_pause(times: &[f64]) -> f64 {
    times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
}

#[test]
fn no_write_waits_while_the_managed_plugin_is_disabled_and_upgraded() {
    let ceph = one_osd();
    let mut host = Host::bare(ceph, "managed", "");
    // Only this host has them where a plugin has them always.
    let line = format!(
        "mkdir -p /etc/ceph /run/rbd-nbd-rs {dir}/{MAPPINGS}
        mount --bind {ceph} /etc/ceph
        mount --bind {dir}/{MAPPINGS} /run/rbd-nbd-rs",
        dir = host.dir.display(),
        ceph = ceph.dir().display(),
    );
    host.shell(&line).ok();
    fs::write(ceph.dir().join("ceph-native.toml"), "lost-seconds = 4\nhost = \"managed\"\n")
        .unwrap();
    host.start_dockerd(&[]);
    let folder = build(&host);
    let registry = Registry::start(&host.dir);
    let newer = format!("{}/{DRIVER}:2", registry.1);
    host.docker(&["plugin", "create", DRIVER, folder.to_str().unwrap()]);
    fs::write(folder.join("rootfs/etc/version"), "2").unwrap();
    host.docker(&["plugin", "create", &newer, folder.to_str().unwrap()]);
    host.docker(&["plugin", "push", &newer]);
    host.docker(&["plugin", "rm", &newer]);

    let set =
        ["CEPH_ARGS=--keyring /etc/ceph/keyring", &format!("CEPH_NATIVE_HOST_PID={}", host.pid())];
    host.docker(&[&["plugin", "set", DRIVER], &set[..]].concat());
    host.docker(&["plugin", "enable", DRIVER]);
    // One mount may be seen through two of the host's.
    let mounts = || BTreeSet::from_iter(mounts_below(&state(&host).join("mounts"))).len();
    host.create("managed", &["size=128M"]);
    let mount = format!("type=volume,src=managed,dst=/v,volume-driver={DRIVER}");
    let start = ["run", "-d", "--network=none", "--mount", &mount, "bb", "sh", "-c", WRITE];
    let writer = host.docker(&start);
    // What it has written is seen through Docker, or through /proc while there is no plugin.
    let pid = host.docker(&["inspect", "-f", "{{.State.Pid}}", &writer]);
    let log = PathBuf::from(format!("/proc/{pid}/root/v/log"));
    let goes_on = |what: &str| {
        let before = written(&log).len();
        eventually(what, || written(&log).len() > before + 20);
    };
    goes_on("it writes");
    assert_eq!((mounts(), host.mappings().len()), (1, 1));
    for fstype in ["ext4", "xfs", "btrfs"] {
        host.create(fstype, &["size=512M", &format!("fstype={fstype}")]);
        assert_eq!(host.in_container(fstype, "echo there > /v/f; cat /v/f"), "there");
        host.docker(&["volume", "rm", fstype]);
    }

    let busy = host.try_docker(&["plugin", "disable", DRIVER]).refused();
    assert!(busy.contains("in use"), "{busy}");
    for upgrade in [false, true] {
        host.docker(&["plugin", "disable", "-f", DRIVER]);
        goes_on("it writes without a plugin");
        assert_eq!((mounts(), host.mappings().len()), (0, 1), "Docker unmounts what it can");
        if upgrade {
            let how = ["plugin", "upgrade", "--grant-all-permissions", "--skip-remote-check"];
            host.docker(&[&how[..], &[DRIVER, &newer]].concat());
            let root = state(&host).with_file_name("rootfs");
            assert_eq!(fs::read_to_string(root.join("etc/version")).unwrap(), "2");
        }
        host.docker(&["plugin", "enable", DRIVER]);
        eventually("it is mounted again", || mounts() == 1);
        goes_on("it writes with the plugin");
        let seen = host.in_container("managed", "cat /v/log");
        assert!(seen.lines().count() > 40, "{seen}");
        assert!(host.inspect("managed")["Status"]["device"].is_string());
    }
    assert_eq!(host.docker(&["inspect", "-f", "{{.State.Running}}", &writer]), "true");
    let pause = longest_pause(&written(&log));
    println!("longest pause of a container that writes and syncs: {pause:.2} s");
    assert!(pause < PAUSE, "{pause} s");

    // What ends while there is no plugin is found out when it is back.
    host.docker(&["plugin", "disable", "-f", DRIVER]);
    let _ = host.try_docker(&["rm", "-f", &writer]);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(host.mappings().len(), 1);
    host.docker(&["plugin", "enable", DRIVER]);
    eventually("nothing is left", || mounts() == 0 && host.mappings().is_empty());
    assert!(host.in_container("managed", "cat /v/log").lines().count() > 40);
    host.docker(&["volume", "rm", "managed"]);
    host.docker(&["plugin", "disable", DRIVER]);
    host.docker(&["plugin", "rm", DRIVER]);
}

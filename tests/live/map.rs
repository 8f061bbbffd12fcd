//! `map` on this host, whose kernel has FUSE and loop devices: a real block device with real file systems on it. What
//! takes the kernel's NBD client is tested in a guest (`tests/guest`).

use std::fs::{self, File};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::{Ceph, Options, Ran, program, run, run_in};
use crate::telemetry::scrape;
use crate::{LONG_LEASE, full, one_osd, sha256};

/// Of a block device: fails while that is mounted.
const O_EXCL: i32 = 0o200;

/// An image that is mapped over FUSE, and the state of this test's mappings. Nothing of it outlives this.
struct Mapped<'a> {
    ceph: &'a Ceph,
    state: PathBuf,
    device: String,
    mount: PathBuf,
}

impl<'a> Mapped<'a> {
    #[track_caller]
    fn new(ceph: &'a Ceph, image: &str, options: &[&str]) -> Self {
        let state = ceph.dir().join(format!("state-{}", image.replace(['/', '@'], "-")));
        let mount = state.with_extension("mnt");
        fs::create_dir_all(&mount).unwrap();
        let mut mapped = Self { ceph, state, device: String::new(), mount };
        let args = [&["map", image, "--device-type", "fuse"], options].concat();
        mapped.device = mapped.run(&args).ok().trim().to_owned();
        ceph.reap(mapped.pid());
        mapped
    }

    /// Runs our program with this test's state. The configuration is named on the command line, so that the reaper of
    /// the cluster knows the processes that stay in the background.
    fn run(&self, args: &[&str]) -> Ran {
        let conf = self.ceph.conf();
        let args = [args, &["-c", conf.to_str().unwrap()]].concat();
        run_in(&program(), &args, &[("RBD_NBD_RS_STATE", &self.state)], 120)
    }

    fn pid(&self) -> u32 {
        let list = self.run(&["list-mapped", "--format", "json"]).json();
        list[0]["id"].as_u64().unwrap_or_else(|| panic!("{list}")) as u32
    }

    fn size(&self) -> u64 {
        run("blockdev", &["--getsize64", &self.device]).ok().trim().parse().unwrap()
    }

    fn mount(&self) -> &Path {
        run("mount", &[&self.device, self.mount.to_str().unwrap()]).ok();
        &self.mount
    }

    fn umount(&self) {
        run("umount", &[self.mount.to_str().unwrap()]).ok();
        // Mount namespaces that other processes of this host have made meanwhile have it mounted still.
        eventually("nobody has it mounted", || {
            File::options().read(true).custom_flags(O_EXCL).open(&self.device).is_ok()
        });
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.mount.to_str().unwrap()]);
        let _ = self.run(&["unmap", "--force", &self.device]);
    }
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn create(ceph: &Ceph, image: &str, size: &str) {
    ceph.rbd(&["create", "--size", size, "--image-feature", "layering", image]);
}

/// The bytes that an image takes, as librbd counts them.
fn used(ceph: &Ceph, image: &str) -> u64 {
    let du = ceph.run("rbd", &["du", "--format", "json", image]).json();
    du["images"][0]["used_size"].as_u64().unwrap()
}

#[test]
fn a_file_system_lives_on_a_mapped_image() {
    let ceph = one_osd();
    let kinds = if full() { &["ext4", "xfs", "btrfs"][..] } else { &["ext4"] };
    for kind in kinds {
        let image = format!("rbd/on-{kind}");
        create(ceph, &image, "512M");
        let mapped = Mapped::new(ceph, &image, &[]);
        let force = if *kind == "ext4" { "-F" } else { "-f" };
        run(&format!("mkfs.{kind}"), &["-q", force, &mapped.device]).ok();
        let folder = mapped.mount();
        let directory = format!("--directory={}", folder.display());
        let fio = [
            "--name=verify",
            &directory,
            "--size=32M",
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--iodepth=16",
            "--ioengine=libaio",
            "--direct=1",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--numjobs=2",
            "--end_fsync=1",
        ];
        run("fio", &fio).ok();

        // In use, it is not ended, and whoever asks is told by whom it is.
        let refused = mapped.run(&["unmap", &image]);
        assert_eq!(refused.code, 16);
        assert!(refused.refused().contains(&format!("mounted on {}", folder.display())));

        // What is deleted is given back to the cluster.
        let before = used(ceph, &image);
        for job in 0..2 {
            fs::remove_file(folder.join(format!("verify.{job}.0"))).unwrap();
        }
        // Blocks are free when the journal says so.
        run("sync", &["-f", folder.to_str().unwrap()]).ok();
        run("fstrim", &[folder.to_str().unwrap()]).ok();
        let after = used(ceph, &image);
        assert!(after + (48 << 20) < before, "{kind}: fstrim left {after} of {before} bytes");

        // librbd reads the bytes that were written through the device.
        let file = folder.join("random");
        crate::random_file(&file, 8 << 20);
        run("sync", &["-f", file.to_str().unwrap()]).ok();
        let wrote = sha256(&file);
        mapped.umount();
        mapped.run(&["unmap", &image]).ok();
        let export = ceph.dir().join("export");
        ceph.rbd(&["export", "--no-progress", &image, export.to_str().unwrap()]);
        // And it is all there when it is mapped again.
        let mapped = Mapped::new(ceph, &image, &["--read-only"]);
        let device = sha256(Path::new(&mapped.device));
        assert_eq!(sha256(&export), device, "{kind}: what librbd reads");
        run("mount", &["-o", "ro", &mapped.device, mapped.mount.to_str().unwrap()]).ok();
        assert_eq!(sha256(&mapped.mount.join("random")), wrote, "{kind}: after mapping it again");
        mapped.umount();
        let write =
            run("dd", &["if=/dev/zero", &format!("of={}", mapped.device), "bs=4k", "count=1"]);
        assert_ne!(write.code, 0, "a read-only device takes writes");
    }
}

#[test]
fn a_mapping_tells_how_it_is() {
    let ceph = one_osd();
    create(ceph, "rbd/told", "32M");
    let socket = ceph.dir().join("told.asok");
    let socket = socket.to_str().unwrap();
    let options = ["--admin-socket", socket, "--metrics", "127.0.0.1:0"];
    let mapped = Mapped::new(ceph, "rbd/told", &options);
    let metrics = listens(mapped.pid());
    assert!(mapped.device.starts_with("/dev/loop") && !mapped.device.contains('\n'));
    let dd = [&format!("of={}", mapped.device), "if=/dev/zero", "bs=4k", "count=3", "oflag=direct"];
    run("dd", &dd.map(AsRef::as_ref)).ok();
    let status = mapped.run(&["status", "--daemon", socket, "--format", "json"]).json();
    assert_eq!(status["images"][0]["image"], "rbd/told");
    assert!(status["clusters"][0]["writes"]["done"].as_u64() >= Some(3), "{status}");
    let (head, body) = scrape(&metrics, "/metrics");
    assert_eq!(head, "HTTP/1.1 200 OK");
    assert!(body.contains("image=\"rbd/told\""), "{body}");
    // What cannot be had is said, and nothing is mapped.
    let again = mapped.run(&["map", "rbd/told", "--read-only", "--metrics", &metrics]);
    let said = again.refused();
    assert!(said.contains(&metrics), "{said}");
    assert_eq!(mapped.run(&["list-mapped"]).ok().lines().count(), 2);
}

/// Ceph's own test of `rbd-nbd` counts those of librbd by their name.
#[test]
fn a_mapping_has_as_many_threads_for_what_blocks_as_its_options_say() {
    let ceph = one_osd();
    create(ceph, "rbd/threads", "32M");
    let count = |mapped: &Mapped<'_>| {
        let tasks = fs::read_dir(format!("/proc/{}/task", mapped.pid())).unwrap();
        let names =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
        names.filter(|name| name == "io_context_pool\n").count()
    };
    let with = |options: &[&str]| count(&Mapped::new(ceph, "rbd/threads", options));
    assert_eq!(with(&["--rbd-op-threads", "7"]), 7);
    assert_eq!(with(&["--rbd-op-threads", "1", "--librados-thread-count", "3"]), 3);
    ceph.ceph(&["config", "set", "client.admin", "rbd_op_threads", "4"]);
    assert_eq!(with(&[]), 4);
    ceph.ceph(&["config", "rm", "client.admin", "rbd_op_threads"]);
    let mapped = Mapped::new(ceph, "rbd/threads", &[]);
    assert_eq!(count(&mapped), 2);
    // They stay, and are those that do what blocks: asking for 3 s who has it open.
    let _open = File::open(&mapped.device).unwrap();
    assert_eq!(mapped.run(&["unmap", "rbd/threads"]).code, 16);
    assert_eq!(count(&mapped), 2);
}

/// The only address that a process listens on for TCP.
#[track_caller]
fn listens(pid: u32) -> String {
    let inodes: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|file| {
            file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned)
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let mut ports = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_its = fields[3] == "0A" && inodes.iter().any(|inode| inode == fields[9]);
        is_its.then(|| u16::from_str_radix(fields[1].split_once(':').unwrap().1, 16).unwrap())
    });
    let port = ports.next().expect("a port");
    assert_eq!(ports.next(), None);
    format!("127.0.0.1:{port}")
}

/// What makes the device is what this kernel has. `modprobe` is ours here: what it would load is no matter.
#[test]
fn a_kernel_without_nbd_has_fuse_and_is_said_to_have_none() {
    if Path::new("/sys/module/nbd").exists() {
        // Then there is nothing to be seen of that: tests/live/guest.rs has the rest.
        return;
    }
    let ceph = one_osd();
    create(ceph, "rbd/chosen", "8M");
    let programs = ceph.dir().join("modprobe");
    fs::create_dir_all(&programs).unwrap();
    let (modprobe, asked) = (programs.join("modprobe"), programs.join("asked"));
    fs::write(&modprobe, format!("#!/bin/sh\necho \"$@\" >> {}; exit 1\n", asked.display()))
        .unwrap();
    fs::set_permissions(&modprobe, fs::Permissions::from_mode(0o755)).unwrap();
    let path = PathBuf::from(format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
    let state = programs.join("state");
    let conf = ceph.conf();
    let map = |options: &[&str]| {
        let args = [&["map", "rbd/chosen", "-c", conf.to_str().unwrap()], options].concat();
        run_in(&program(), &args, &[("RBD_NBD_RS_STATE", &state), ("PATH", &path)], 60)
    };
    for asks_for_nbd in
        [&["--device-type", "nbd"][..], &["--device-type", "ioctl"], &["--device", "/dev/nbd3"]]
    {
        let ran = map(asks_for_nbd);
        assert_eq!((ran.code, ran.out.len()), (95, 0), "{ran}");
        for said in ["this kernel has no nbd", "`modprobe nbd`", "--device-type fuse"] {
            assert!(ran.err.contains(said), "{ran}");
        }
    }
    assert_eq!(fs::read_to_string(&asked).unwrap(), "nbd\n".repeat(3));
    let device = map(&[]).ok();
    let unmapped =
        run_in(&program(), &["unmap", "rbd/chosen"], &[("RBD_NBD_RS_STATE", &state)], 60);
    assert!(device.starts_with("/dev/loop"), "{device}");
    unmapped.ok();
    assert_eq!(fs::read_to_string(&asked).unwrap(), "nbd\n".repeat(4));
}

/// Neither another user's process nor root without the capability: both are told.
#[test]
fn whoever_may_not_make_devices_is_told_so() {
    let ceph = one_osd();
    create(ceph, "rbd/may-not", "8M");
    let mapped = Mapped::new(ceph, "rbd/may-not", &["--read-only"]);
    let conf = ceph.conf();
    let (program, conf) = (program(), conf.to_str().unwrap());
    let map = ["map", "rbd/may-not", "--device-type", "fuse", "-c", conf];
    // In a user namespace of its own nobody is root, but may read what root may.
    let another = [&["--user", &program], &map[..]].concat();
    let without = ["--drop=cap_sys_admin", "--", "-c", "exec \"$@\"", "sh", &program];
    let without = [&without[..], &map].concat();
    for (how, args) in [("unshare", another), ("capsh", without)] {
        let ran = run_in(how, &args, &[("RBD_NBD_RS_STATE", &mapped.state)], 60);
        assert_eq!((ran.code, ran.out.len()), (1, 0), "{ran}");
        assert!(ran.err.contains("CAP_SYS_ADMIN") && ran.err.contains("as root"), "{ran}");
    }
    // Nor are others told that nothing is mapped, who may not see what is.
    let mode = fs::metadata(&mapped.state).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    chown(&mapped.state, Some(1), None).unwrap();
    let asked = ["list-mapped", "unmap rbd/may-not"].map(|verb| {
        let args = [&["--user", &program][..], &verb.split(' ').collect::<Vec<_>>()].concat();
        run_in("unshare", &args, &[("RBD_NBD_RS_STATE", &mapped.state)], 60)
    });
    chown(&mapped.state, Some(0), None).unwrap();
    for ran in asked {
        assert_eq!(ran.code, 1, "{ran}");
        assert!(ran.err.contains("root"), "{ran}");
    }
}

#[test]
fn a_device_that_is_open_is_not_ended() {
    let ceph = one_osd();
    create(ceph, "rbd/open", "8M");
    let mapped = Mapped::new(ceph, "rbd/open", &[]);
    let open = File::open(&mapped.device).unwrap();
    let ran = mapped.run(&["unmap", "rbd/open"]);
    assert_eq!(ran.code, 16, "{ran}");
    let by = format!("open in process {} (", std::process::id());
    assert!(ran.err.contains(&by), "{ran}");
    drop(open);
    mapped.run(&["unmap", "rbd/open"]).ok();
}

#[test]
fn a_device_is_as_large_as_its_image() {
    let ceph = one_osd();
    create(ceph, "rbd/grows", "64M");
    let mapped = Mapped::new(ceph, "rbd/grows", &["--block-size", "4096"]);
    assert_eq!(mapped.size(), 64 << 20);
    let block = run("blockdev", &["--getss", &mapped.device]).ok();
    assert_eq!(block.trim(), "4096");
    run("mkfs.ext4", &["-q", "-F", &mapped.device]).ok();
    mapped.mount();
    ceph.rbd(&["resize", "--no-progress", "grows", "--size", "256M"]);
    eventually("the device grows", || mapped.size() == 256 << 20);
    // Growing what is mounted takes a capability that containers rarely have.
    mapped.umount();
    run("fsck.ext4", &["-f", "-p", &mapped.device]).ok();
    run("resize2fs", &[&mapped.device]).ok();
    fs::write(mapped.mount().join("file"), vec![7; 100 << 20]).unwrap();
    mapped.umount();
    run("fsck.ext4", &["-f", "-n", &mapped.device]).ok();
    ceph.rbd(&["resize", "--no-progress", "grows", "--size", "32M", "--allow-shrink"]);
    eventually("the device shrinks", || mapped.size() == 32 << 20);
}

#[test]
fn what_is_mapped_is_listed_as_rbd_nbd_lists_it() {
    let ceph = one_osd();
    create(ceph, "rbd/listed", "64M");
    ceph.rbd(&["snap", "create", "--no-progress", "listed@s"]);
    let asok = ceph.dir().join("map.asok");
    let asok = asok.to_str().unwrap();
    let options = ["--cookie", "abc de", "--admin-socket", asok];
    let mapped = Mapped::new(ceph, "rbd/listed@s", &options);
    let status = mapped.run(&["status", "--daemon", asok]).ok();
    assert!(status.contains("image rbd/listed: 67108864 bytes, read-only"), "{status}");
    let (pid, device) = (mapped.pid(), &mapped.device);
    let list = |args: &[&str]| mapped.run(&[&["list-mapped"], args].concat()).ok();
    let id = "id".to_owned() + &" ".repeat(pid.to_string().len() - 2);
    assert_eq!(
        list(&[]),
        format!(
            "{id}  pool  namespace  image   snap  device{}  cookie\n{pid}  rbd              listed  s     {device}  \
             abc de\n",
            " ".repeat(device.len() - 6)
        )
    );
    assert_eq!(
        list(&["--format", "json"]),
        format!(
            "[{{\"id\":{pid},\"pool\":\"rbd\",\"namespace\":\"\",\"image\":\"listed\",\"snap\":\"s\",\
             \"device\":\"{device}\",\"cookie\":\"abc de\"}}]"
        )
    );
    assert_eq!(
        list(&["--format", "xml"]),
        format!(
            "<devices><device><id>{pid}</id><pool>rbd</pool><namespace></namespace><image>listed</image>\
             <snap>s</snap><device>{device}</device><cookie>abc de</cookie></device></devices>"
        )
    );
    // As `ps` shows it, and as `rbd` looks for it.
    let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.starts_with("rbd-nbd\0map\0rbd/listed@s\0"), "{command:?}");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "rbd-nbd\n");

    for (args, code) in [
        (&["map", "rbd/nothing"][..], 2),
        (&["map", "rbd/listed", "--cookie", "abc de"], 16),
        (&["map", "rbd/listed", "--device", "/dev/sda"], 22),
        (&["map", "rbd/listed", "--device", device.as_str()], 16),
        (&["map", "rbd/listed", "--encryption-format", "luks"], 95),
        (&["map", "rbd/listed@s", "--snap-id", "4"], 22),
        (&["unmap", "rbd/listed"], 22),
        (&["attach", "rbd/listed@s", "--cookie", "abc de"], 22),
        (&["detach", "rbd/listed@s"], 95),
    ] {
        let fuse = ["--device-type", "fuse"];
        let args = if args[0] == "map" { [args, &fuse].concat() } else { args.to_vec() };
        let ran = mapped.run(&args);
        assert_eq!(ran.code, code, "{ran}");
        assert_eq!(ran.out, b"", "{ran}");
        ran.refused();
    }
    mapped.run(&["unmap", "--cookie", "abc de"]).ok();
    assert_eq!((list(&[]), list(&["--format", "json"])), (String::new(), "[]".to_owned()));
    assert_eq!(list(&["--format", "xml"]), "<devices></devices>");
    let process = format!("/proc/{pid}");
    eventually("the process is gone", || !Path::new(&process).exists());
    assert_eq!(fs::read_dir(&mapped.state).unwrap().count(), 0, "state is left");
}

/// After a reboot nothing is left of a mapping but its state, if the folder is not in memory.
#[test]
fn what_was_mapped_before_a_reboot_is_not_mapped() {
    let ceph = one_osd();
    create(ceph, "rbd/before", "8M");
    let mapped = Mapped::new(ceph, "rbd/before", &["--cookie", "before"]);
    let path = mapped.state.join("before/mapping.json");
    let text = fs::read_to_string(&path).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    mapped.run(&["unmap", "rbd/before"]).ok();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(text.contains(boot.trim()));
    fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
    assert_eq!(mapped.run(&["list-mapped", "--all"]).ok(), "");
    assert_eq!(mapped.run(&["attach", "--all"]).ok(), "");
    // Its cookie is free.
    let again =
        mapped.run(&["map", "rbd/before", "--device-type", "fuse", "--cookie", "before"]).ok();
    ceph.reap(mapped.pid());
    assert_eq!(mapped.run(&["unmap", again.trim()]).ok(), "");
}

/// What FUSE does not allow is to go on: the kernel keeps nothing for a process that is gone.
#[test]
fn a_device_whose_process_is_killed_fails_and_is_cleared_away() {
    let ceph = one_osd();
    create(ceph, "rbd/dead", "64M");
    let mapped = Mapped::new(ceph, "rbd/dead", &[]);
    run("mkfs.ext4", &["-q", "-F", &mapped.device]).ok();
    let file = mapped.mount().join("file");
    fs::write(&file, "written").unwrap();
    run("sync", &["-f", file.to_str().unwrap()]).ok();
    run("kill", &["-KILL", &mapped.pid().to_string()]).ok();

    let direct =
        ["if=/dev/zero", &format!("of={}/new", mapped.mount.display()), "count=1", "oflag=direct"]
            .map(str::to_owned);
    let direct: Vec<_> = direct.iter().map(String::as_str).collect();
    assert_ne!(run("dd", &direct).code, 0, "writes to a dead device");
    // It closes its files one after the other: the device is dead a moment before the process counts as gone.
    eventually("nothing is mapped", || mapped.run(&["list-mapped"]).ok().is_empty());
    let all = mapped.run(&["list-mapped", "--all", "--format", "json"]).json();
    assert_eq!((&all[0]["id"], &all[0]["image"]), (&0.into(), &"dead".into()), "{all}");
    assert_eq!(mapped.run(&["unmap", "rbd/dead"]).code, 16);
    run("umount", &["-l", mapped.mount.to_str().unwrap()]).ok();
    mapped.run(&["unmap", "rbd/dead", "--force"]).ok();
    assert_eq!(mapped.run(&["list-mapped", "--all"]).ok(), "");

    let mapped = Mapped::new(ceph, "rbd/dead", &[]);
    mapped.mount();
    assert_eq!(fs::read_to_string(&file).unwrap(), "written");
    mapped.umount();
}

#[test]
fn many_maps_at_once_get_devices_of_their_own() {
    let ceph = one_osd();
    let names: Vec<_> = (0..10).map(|i| format!("rbd/many{i}")).collect();
    names.iter().for_each(|name| create(ceph, name, "8M"));
    let rounds = if full() { 10 } else { 1 };
    for _ in 0..rounds {
        let mapped = Mutex::new(Vec::new());
        let all = &mapped;
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(move || {
                    let one = Mapped::new(ceph, name, &[]);
                    all.lock().unwrap().push((one, name));
                });
            }
        });
        let mapped = mapped.into_inner().unwrap();
        let mut devices: Vec<_> = mapped.iter().map(|(mapped, _)| mapped.device.clone()).collect();
        devices.sort();
        devices.dedup();
        assert_eq!(devices.len(), 10, "{devices:?}");
        std::thread::scope(|scope| {
            for (mapped, name) in &mapped {
                scope.spawn(move || mapped.run(&["unmap", name]).ok());
            }
        });
        for name in &names {
            assert_eq!(
                ceph.rbd(&["status", name]),
                "Watchers: none\n",
                "a watch is left on {name}"
            );
        }
    }
}

#[test]
fn what_is_unmapped_while_the_cluster_is_slow_is_in_use_by_nobody() {
    let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
    ceph.rbd(&["create", "--size", "64M", "rbd/slow"]);
    let mapped = Mapped::new(&ceph, "rbd/slow", &[]);
    // For this it takes the exclusive lock.
    let to = format!("of={}", mapped.device);
    run("dd", &["if=/dev/urandom", &to, "bs=64k", "count=1", "oflag=direct"]).ok();
    let osd = ceph.pid("osd.0").to_string();
    run("kill", &["-STOP", &osd]).ok();
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| mapped.run(&["unmap", "rbd/slow"]).ok());
        // It is what comes after the device that waits for the OSD.
        eventually("the device is gone", || mapped.run(&["list-mapped", "--all"]).ok().is_empty());
        std::thread::sleep(Duration::from_secs(7));
        assert!(!unmap.is_finished(), "nothing waits for the cluster");
        run("kill", &["-CONT", &osd]).ok();
        unmap.join().unwrap();
    });
    let status = ceph.run("rbd", &["status", "--format", "json", "rbd/slow"]).json();
    assert_eq!(status["watchers"], serde_json::json!([]), "{status}");
    assert_eq!(ceph.rbd(&["lock", "ls", "rbd/slow"]), "");
    ceph.rbd(&["rm", "--no-progress", "rbd/slow"]);
}

#[test]
fn unmap_by_force_waits_for_nobody() {
    // A cluster that says nothing, and one that is gone.
    for signal in ["-STOP", "-KILL"] {
        let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
        create(&ceph, "rbd/frozen", "64M");
        let mapped = Mapped::new(&ceph, "rbd/frozen", &[]);
        run("mkfs.ext4", &["-q", "-F", &mapped.device]).ok();
        let folder = mapped.mount().to_owned();
        fs::write(folder.join("dirty"), vec![1; 4 << 20]).unwrap();
        let daemons = ["mon.a", "osd.0"].map(|name| ceph.pid(name).to_string());
        let send = |signal| daemons.iter().for_each(|pid| drop(run("kill", &[signal, pid]).ok()));
        send(signal);
        let syncing = std::thread::spawn(move || run("sync", &["-f", folder.to_str().unwrap()]));
        std::thread::sleep(Duration::from_secs(1));
        assert!(!syncing.is_finished(), "{signal}: nothing waits for the cluster");
        let began = Instant::now();
        mapped.run(&["unmap", "--force", "rbd/frozen"]).ok();
        let took = began.elapsed();
        // It is itself that has 10 s, not this machine's other load.
        let limit = Duration::from_secs(if full() { 10 } else { 30 });
        assert!(took < limit, "{signal}: {took:?}");
        // Whoever waited for the device has got an error instead.
        syncing.join().unwrap();
        if signal == "-STOP" {
            send("-CONT");
        }
        run("umount", &["-l", mapped.mount.to_str().unwrap()]).ok();
    }
}

/// Ends what a table has mapped, should its test not come so far.
struct Table<'a> {
    mount: PathBuf,
    images: [&'a str; 2],
    env: [(&'a str, &'a Path); 4],
}

impl Drop for Table<'_> {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.mount.to_str().unwrap()]);
        for image in self.images {
            let cookie = format!("rbdmap:{image}");
            let _ = run_in(&program(), &["unmap", "--force", "--cookie", &cookie], &self.env, 30);
        }
    }
}

/// Makes images, and a table of them for `deploy/rbdmap`.
fn table_of(ceph: &Ceph, images: [&str; 2]) -> PathBuf {
    images.iter().for_each(|image| create(ceph, image, "8M"));
    let (table, conf) = (ceph.dir().join("table"), ceph.conf());
    let line = |image| format!("{image} --device-type fuse -c {}\n", conf.display());
    fs::write(&table, images.map(line).concat()).unwrap();
    table
}

#[test]
fn a_table_of_images_is_mapped_and_unmapped_as_at_boot() {
    let ceph = one_osd();
    create(ceph, "rbd/first", "8M");
    create(ceph, "rbd/second", "8M");
    let (table, state) = (ceph.dir().join("table"), ceph.dir().join("table-state"));
    let (links, program, conf) = (ceph.dir().join("links"), PathBuf::from(program()), ceph.conf());
    let options = format!("--device-type fuse -c {}", conf.display());
    let text = format!("# Images\n\nrbd/first {options}\nrbd/second --read-only {options}\n");
    fs::write(&table, text).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbdmap");
    let (fstab, mount) = (ceph.dir().join("fstab"), ceph.dir().join("table-mount"));
    fs::create_dir_all(&mount).unwrap();
    let link = links.join("rbd/first");
    fs::write(&fstab, format!("{} {} ext4 noauto,_netdev 0 0\n", link.display(), mount.display()))
        .unwrap();
    let env: [(&str, &Path); 4] = [
        ("RBD_NBD_RS", &program),
        ("RBD_NBD_RS_STATE", &state),
        ("RBD_NBD_RS_LINKS", &links),
        ("LIBMOUNT_FSTAB", &fstab),
    ];
    let left = Table { mount: mount.clone(), images: ["rbd/first", "rbd/second"], env };
    // There is no file system on it yet.
    assert_eq!(run_in(script, &["map", table.to_str().unwrap()], &env, 120).code, 1);
    run("mkfs.ext4", &["-q", link.to_str().unwrap()]).ok();
    // It mounts what is mapped already, and maps nothing twice.
    let list = || run_in(program.to_str().unwrap(), &["list-mapped", "--all"], &env, 30).ok();
    let mapped = list();
    run_in(script, &["map", table.to_str().unwrap()], &env, 120).ok();
    assert!(mount.join("lost+found").exists());
    assert_eq!(list(), mapped);
    // Where a link names another image's device, that is left alone.
    let device = fs::read_link(&link).unwrap();
    std::os::unix::fs::symlink(&device, links.join("rbd/stale")).unwrap();
    let stale = ceph.dir().join("table-stale");
    fs::write(&stale, format!("rbd/stale {options}\n")).unwrap();
    run_in(script, &["unmap", stale.to_str().unwrap()], &env, 120).ok();
    assert!(mount.join("lost+found").exists() && !links.join("rbd/stale").exists());
    // What is in use stays as it is, its link, too; the other one is unmapped.
    let open = File::open(mount.join("lost+found")).unwrap();
    assert_eq!(run_in(script, &["unmap", table.to_str().unwrap()], &env, 120).code, 1);
    drop(open);
    assert!(link.exists() && !links.join("rbd/second").exists());
    run_in(script, &["map", table.to_str().unwrap()], &env, 120).ok();
    let size = |name: &str| {
        let link = links.join("rbd").join(name);
        run("blockdev", &["--getsize64", link.to_str().unwrap()]).ok()
    };
    assert_eq!((size("first").trim(), size("second").trim()), ("8388608", "8388608"));
    // See `umount` above.
    eventually("all is unmapped", || {
        run_in(script, &["unmap", table.to_str().unwrap()], &env, 120).code == 0
    });
    assert_eq!(list(), "");
    assert_eq!(fs::read_dir(links.join("rbd")).unwrap().count(), 0);
    assert!(!mount.join("lost+found").exists());
    drop(left);
}

#[test]
fn a_boot_waits_so_long_for_a_cluster_and_no_longer() {
    let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
    let images = ["rbd/early", "rbd/late"];
    let table = table_of(&ceph, images);
    let (state, links) = (ceph.dir().join("table-state"), ceph.dir().join("links"));
    let (program, limit) = (PathBuf::from(program()), Path::new("8"));
    let env: [(&str, &Path); 4] = [
        ("RBD_NBD_RS", &program),
        ("RBD_NBD_RS_STATE", &state),
        ("RBD_NBD_RS_LINKS", &links),
        ("RBD_NBD_RS_LIMIT", limit),
    ];
    let left = Table { mount: ceph.dir().join("nowhere"), images, env };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbdmap");
    let osd = ceph.pid("osd.0").to_string();
    run("kill", &["-STOP", &osd]).ok();
    let began = Instant::now();
    // Processes that stay would keep a pipe open.
    let (say, said) = ("exec \"$0\" map \"$1\" 2> \"$2\"", ceph.dir().join("table-said"));
    let args = ["-c", say, script, table.to_str().unwrap(), said.to_str().unwrap()];
    let gone = run_in("sh", &args, &env, 120);
    let (took, said) = (began.elapsed(), fs::read_to_string(said).unwrap());
    assert_eq!((gone.code, said.matches("is not to be had within 8 s").count()), (1, 2), "{said}");
    // The second begins a moment after the first.
    assert!(took < Duration::from_secs(15), "{took:?}");
    // Whoever was started for them goes as well: they would be in the way of those who try again.
    let cookies = images.map(|image| format!("[r]bdmap:{image}"));
    let is_left = |cookie: &String| run("pgrep", &["-f", cookie]).code == 0;
    eventually("nobody waits for the images", || !cookies.iter().any(is_left));
    run("kill", &["-CONT", &osd]).ok();
    // Once it is back, the same succeeds.
    let limit = Path::new("60");
    let env =
        env.map(|(name, value)| (name, if name == "RBD_NBD_RS_LIMIT" { limit } else { value }));
    let run_script = |verb| run_in(script, &[verb, table.to_str().unwrap()], &env, 120).ok();
    run_script("map");
    assert!(images.iter().all(|image| links.join(image).exists()));
    run_script("unmap");
    drop(left);
}

/// A mount that waits for the cluster cannot be killed. It is left to itself, and nothing is mounted below it
/// meanwhile.
#[test]
fn a_boot_does_not_wait_for_a_mount_that_hangs() {
    let ceph = Ceph::start(Options { conf: LONG_LEASE, ..Options::default() });
    let images = ["rbd/outer", "rbd/inner"];
    let table = table_of(&ceph, images);
    let path = |name: &str| ceph.dir().join(name);
    let (state, links) = (path("table-state"), path("links"));
    let (fstab, mount) = (path("fstab"), path("table-mount"));
    fs::create_dir_all(mount.join("inner")).unwrap();
    fs::write(&fstab, "").unwrap();
    let program = PathBuf::from(program());
    let env: [(&str, &Path); 4] = [
        ("RBD_NBD_RS", &program),
        ("RBD_NBD_RS_STATE", &state),
        ("RBD_NBD_RS_LINKS", &links),
        ("LIBMOUNT_FSTAB", &fstab),
    ];
    let left = Table { mount: mount.clone(), images, env };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbdmap");
    let run_script = |verb| run_in(script, &[verb, table.to_str().unwrap()], &env, 120);
    run_script("map").ok();
    let line = |image: &str, mount: &Path| {
        run("mkfs.ext4", &["-q", links.join(image).to_str().unwrap()]).ok();
        format!("{} {} ext4 noauto,_netdev 0 0\n", links.join(image).display(), mount.display())
    };
    let lines = line("rbd/outer", &mount) + &line("rbd/inner", &mount.join("inner"));
    // With a label in it, findmnt reads what a device is called by.
    fs::write(&fstab, format!("LABEL=nowhere / ext4 defaults 0 0\n{lines}")).unwrap();
    let osd = ceph.pid("osd.0").to_string();
    run("kill", &["-STOP", &osd]).ok();
    let began = Instant::now();
    let said = path("table-said");
    let say = "RBD_NBD_RS_LIMIT=4 exec \"$0\" map \"$1\" > \"$2\" 2>&1";
    let args = ["-c", say, script, table.to_str().unwrap(), said.to_str().unwrap()];
    let gone = run_in("sh", &args, &env, 120);
    let (took, said) = (began.elapsed(), fs::read_to_string(said).unwrap());
    let is_mounted = |path: &Path| run("mountpoint", &["-q", path.to_str().unwrap()]).code == 0;
    let was_mounted = is_mounted(&mount) || is_mounted(&mount.join("inner"));
    run("kill", &["-CONT", &osd]).ok();
    assert_eq!((gone.code, was_mounted), (1, false), "{said}");
    assert!(said.contains("what is on rbd/outer is not mounted within 4 s"), "{said}");
    assert!(said.contains("rbd/inner is not mounted on"), "{said}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    // Once the cluster is back, it goes on, and the same mounts the other.
    eventually("it is mounted", || is_mounted(&mount));
    fs::create_dir(mount.join("inner")).unwrap();
    run_script("map").ok();
    assert!(is_mounted(&mount.join("inner")));
    eventually("all is unmapped", || run_script("unmap").code == 0);
    drop(left);
}

/// In the order that a program in our place is asked in.
#[test]
fn a_table_is_mapped_in_order_until_one_takes_long() {
    let dir = std::env::temp_dir().join(format!("rbdmap-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name);
    let (program, table, said) = (path("program"), path("table"), path("said"));
    let text = "#!/bin/sh\n\
        [ $1 = map ] || exit 0\n\
        echo begins $2 >> \"$SAID\"\n\
        case $2 in stuck*) exec sleep 60 ;; esac\n\
        sleep 0.3; echo ends $2 >> \"$SAID\"; echo /dev/null\n";
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let (links, limit, fstab) = (path("links"), Path::new("8"), path("fstab"));
    fs::write(&fstab, "").unwrap();
    let env: [(&str, &Path); 5] = [
        ("RBD_NBD_RS", &program),
        ("SAID", &said),
        ("RBD_NBD_RS_LINKS", &links),
        ("RBD_NBD_RS_LIMIT", limit),
        ("LIBMOUNT_FSTAB", &fstab),
    ];
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/rbdmap");
    let map = |lines: &str| {
        let _ = fs::remove_file(&said);
        fs::write(&table, lines).unwrap();
        let began = Instant::now();
        let ran = run_in(script, &["map", table.to_str().unwrap()], &env, 60);
        (ran, began.elapsed(), fs::read_to_string(&said).unwrap())
    };
    // What wants a certain device is first to get one, and what is named twice is mapped once.
    let in_order = "p/a --device-type nbd\np/b --id x\np/a\np/c\t--device /dev/nbd0\n";
    let (_, _, said) = map(in_order);
    let wanted = ["c", "a", "b"].map(|image| format!("begins p/{image}\nends p/{image}\n"));
    assert_eq!(said, wanted.concat());
    // What is stuck keeps the others for a moment, however many are.
    let stuck = "stuck1 --device=/dev/nbd0\nstuck2\nstuck3\nstuck4\nstuck5\nstuck2\np/a\n";
    let (ran, took, said) = map(stuck);
    assert_eq!((ran.code, ran.err.matches("is not to be had within 8 s").count()), (1, 5), "{ran}");
    assert!(said.ends_with("ends p/a\n") && took < Duration::from_secs(17), "{took:?} {said}");
    fs::remove_dir_all(&dir).unwrap();
}

//! A real Ceph cluster on a loopback address of its own, up in a second, gone with its process. Its release is this
//! host's 16, or one of those that `tests/install --full` installs: then everything that is run against it with
//! [`Ceph::run`] is of that release, too (`tests/in-release`).
//!
//! Two things make it fast: everything that can be is put into the monitors' first store by offline tools (keys, OSDs
//! in the CRUSH map), so that no command waits for a Paxos round; and the monitors don't wait before they propose. The
//! loss of a daemon is noticed in seconds. There is no manager unless a test starts one: no client needs one. librbd's
//! cache is off, because it acknowledges writes before they are committed, and we don't.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::run::{Ran, TIMED_OUT, run_in};
use super::serve::program;

/// How a cluster is to be. `Options::default()` is one memstore OSD, one monitor, cephx, and Ceph's default modes.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) release: Release,
    pub(crate) osds: u32,
    pub(crate) mons: u32,
    pub(crate) store: Store,
    pub(crate) auth: Auth,
    pub(crate) mode: Mode,
    /// More lines for the `[global]` section of `ceph.conf`.
    pub(crate) conf: &'static str,
    /// An address of this host for the daemons, in place of a loopback address.
    pub(crate) ip: Option<Ipv4Addr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            release: Release::Pacific,
            osds: 1,
            mons: 1,
            store: Store::Memstore,
            auth: Auth::Cephx,
            mode: Mode::Default,
            conf: "",
            ip: None,
        }
    }
}

/// A release of Ceph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Release {
    /// 16.2, this host's own.
    Pacific = 16,
    /// 18.2.
    Reef = 18,
    /// 20.2.
    Tentacle = 20,
}

impl Release {
    /// All there are. Only the first needs no `tests/install --full`.
    pub(crate) const ALL: [Self; 3] = [Self::Pacific, Self::Reef, Self::Tentacle];
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", *self as u32)
    }
}

/// Where OSDs keep objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// In memory: the fastest, and gone when the OSD ends.
    Memstore,
    /// In a file, as in production.
    Bluestore,
}

/// Whether anybody has to prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Auth {
    /// As a new cluster of its release has it: with `aes` keys before Tentacle, which allows `aes256k` only.
    Cephx,
    /// Tentacle as it is after an upgrade: `aes` keys only, and tickets of that type.
    Aes,
    /// Tentacle with `aes256k` keys, which allows `aes` keys, too: `create_client` takes `--key_type=aes`.
    Mixed,
    None,
}

/// Connection modes of messenger v2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As Ceph comes: secure to monitors, crc to OSDs.
    Default,
    Crc,
    Secure,
}

/// A running cluster. It ends when this is dropped, and also when this process ends in any other way.
pub(crate) struct Ceph {
    dir: PathBuf,
    ip: Ipv4Addr,
    options: Options,
    /// That of programs and daemons from now on.
    release: Mutex<Release>,
    daemons: Mutex<BTreeMap<String, Child>>,
    reaper: Mutex<Option<(Child, ChildStdin)>>,
    /// Holding the UDP port keeps other test processes from taking the same address.
    _address: UdpSocket,
}

/// Waits for its standard input to end, which it does however the test process ends, then ends the processes whose ids
/// it was told, unmounts what is mounted in the folder and removes it. An id counts only while its command line names
/// the folder: ids get reused.
const REAPER: &str = r#"
trap '' INT TERM HUP
mine() { for p in $pids; do grep -aqsF -- "$1/" /proc/$p/cmdline && echo $p; done; }
pids=
while read -r p; do pids="$pids $p"; done
for i in 1 2 3 4 5 6 7 8 9 10; do
    left=$(mine "$1")
    [ -n "$left" ] || break
    kill -KILL $left 2>/dev/null
    sleep 0.1
done
while read -r _ _ _ _ point _; do
    case $point in "$1"/*) umount -l "$point" ;; esac
done < /proc/self/mountinfo
rm -rf -- "$1"
"#;

impl Ceph {
    /// Starts a cluster with a pool `rbd` and returns when the pool takes writes.
    pub(crate) fn start(options: Options) -> Self {
        let ceph = Self::empty(options);
        for sub in ["run", "log", "mon", "osd"] {
            fs::create_dir_all(ceph.dir.join(sub)).unwrap();
        }
        ceph.make();
        for i in 0..ceph.options.mons {
            ceph.start_mon(i);
        }
        for i in 0..ceph.options.osds {
            ceph.start_osd(i);
        }
        ceph.create_pool("rbd");
        ceph.rados(&["-p", "rbd", "create", "probe"]);
        ceph.rados(&["-p", "rbd", "rm", "probe"]);
        ceph
    }

    /// Starts our `devcluster` in place of Ceph's daemons: one process, one OSD, objects in memory.
    pub(crate) fn devcluster() -> Self {
        let ceph = Self::empty(Options::default());
        fs::create_dir_all(ceph.dir.join("log")).unwrap();
        let program = Path::new(&program()).with_file_name("devcluster");
        ceph.spawn(program.to_str().unwrap(), "devcluster", &["--dir", ceph.dir.to_str().unwrap()]);
        let begun = Instant::now();
        while run_in("rados", &["-p", "rbd", "ls"], &[("CEPH_CONF", &ceph.conf())], 10).code != 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "devcluster doesn't come up");
        }
        let mut conf = File::options().append(true).open(ceph.conf()).unwrap();
        conf.write_all(b"\n[client]\nrbd cache = false\n").unwrap();
        ceph
    }

    /// The folder, the address and the reaper of a cluster.
    fn empty(options: Options) -> Self {
        let (ip, address) = free_address();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ceph-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self {
            reaper: Mutex::new(Some(reaper(&dir))),
            dir,
            ip: options.ip.unwrap_or(ip),
            release: Mutex::new(options.release),
            options,
            daemons: Mutex::default(),
            _address: address,
        }
    }

    /// The cluster's `ceph.conf`.
    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.join("ceph.conf")
    }

    /// The keyring that `ceph.conf` names: it has every key of the cluster, `client.admin`'s among them.
    pub(crate) fn keyring(&self) -> PathBuf {
        self.dir.join("keyring")
    }

    /// A folder for a test's own files. It goes with the cluster.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Address and port of monitor `i`.
    pub(crate) fn mon_addr(&self, i: u32) -> String {
        format!("{}:{}", self.ip, 3300 + i)
    }

    /// Runs a client program against this cluster.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Ran {
        self.run_for(program, args, 180)
    }

    /// The same, for at most so many seconds.
    pub(crate) fn run_for(&self, program: &str, args: &[&str], limit_seconds: u32) -> Ran {
        let (program, first) = self.invocation(program);
        let first: Vec<_> = first.iter().map(String::as_str).collect();
        let args = [&first[..], args].concat();
        run_in(&program, &args, &[("CEPH_CONF", &self.conf())], limit_seconds)
    }

    /// The same for a program that is to run beside the test: of the cluster's release, configured for it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let (program, first) = self.invocation(program);
        let mut command = Command::new(program);
        command.args(first).env("CEPH_CONF", self.conf());
        command
    }

    /// How to run a program of the cluster's release.
    fn invocation(&self, program: &str) -> (String, Vec<String>) {
        match *self.release.lock().unwrap() {
            Release::Pacific => (program.to_owned(), Vec::new()),
            release => {
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/in-release");
                (script.to_owned(), vec![release.to_string(), program.to_owned()])
            }
        }
    }

    /// `rbd`, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn rbd(&self, args: &[&str]) -> String {
        let ran = self.run("rbd", args);
        if ran.code == TIMED_OUT {
            // Whether librbd waits for its cluster, and for what, tells whose fault it is.
            panic!("{ran}\n{}", self.condition());
        }
        ran.ok()
    }

    /// `rados`, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn rados(&self, args: &[&str]) -> String {
        self.run("rados", args).ok()
    }

    /// `ceph`, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn ceph(&self, args: &[&str]) -> String {
        self.run("ceph", args).ok()
    }

    /// A replicated pool, ready for RBD.
    #[track_caller]
    pub(crate) fn create_pool(&self, name: &str) {
        self.ceph(&["osd", "pool", "create", name, "32"]);
        self.ceph(&["osd", "pool", "application", "enable", name, "rbd"]);
    }

    /// An erasure-coded pool (2+1) for the data of images. It takes three OSDs.
    #[track_caller]
    pub(crate) fn create_coded_pool(&self, name: &str) {
        let profile = ["k=2", "m=1", "plugin=jerasure", "crush-failure-domain=osd"];
        self.ceph(&[&["osd", "erasure-code-profile", "set", "two-one"], &profile[..]].concat());
        self.ceph(&["osd", "pool", "create", name, "32", "32", "erasure", "two-one"]);
        self.ceph(&["osd", "pool", "set", name, "allow_ec_overwrites", "true"]);
        self.ceph(&["osd", "pool", "application", "enable", name, "rbd"]);
    }

    /// A new client with its own key; the keyring file that holds nothing else.
    #[track_caller]
    pub(crate) fn create_client(&self, name: &str, caps: &[&str]) -> PathBuf {
        let keyring = self.dir.join(format!("{name}.keyring"));
        let path = keyring.to_str().unwrap();
        self.ceph(&[&["auth", "get-or-create", name], caps, &["-o", path]].concat());
        keyring
    }

    /// The release that programs are of, and daemons that are started.
    pub(crate) fn release(&self) -> Release {
        *self.release.lock().unwrap()
    }

    /// From now on programs are of this release, and daemons that are started.
    pub(crate) fn set_release(&self, release: Release) {
        *self.release.lock().unwrap() = release;
        // The file ends with the OSDs' section.
        let mut conf = File::options().append(true).open(self.conf()).unwrap();
        conf.write_all(later_osds(release).as_bytes()).unwrap();
    }

    pub(crate) fn start_mon(&self, i: u32) {
        self.start_daemon("ceph-mon", &format!("mon.{}", mon_name(i)));
    }

    pub(crate) fn kill_mon(&self, i: u32) {
        self.kill(&format!("mon.{}", mon_name(i)));
    }

    /// Makes one more monitor, which joins the others.
    #[track_caller]
    pub(crate) fn add_mon(&self, i: u32, addr: &str) {
        let name = mon_name(i);
        let path = |name: &str| self.dir.join(name).to_str().unwrap().to_owned();
        let (conf, monmap, keyring) = (path("ceph.conf"), path("monmap"), path("keyring"));
        self.ceph(&["mon", "getmap", "-o", &monmap]);
        let _ = fs::remove_dir_all(self.dir.join("mon").join(name));
        fs::create_dir_all(self.dir.join("mon").join(name)).unwrap();
        let what = ["--mkfs", "--monmap", &monmap, "--keyring", &keyring];
        self.run("ceph-mon", &[&["-c", &conf, "-i", name][..], &what].concat()).ok();
        let addr = format!("[v2:{addr}]");
        let args = ["-f", "-i", name, "-c", &conf, "--public-addrv", &addr];
        self.spawn("ceph-mon", &format!("mon.{name}"), &args);
        self.wait_for_quorum(|quorum| quorum.contains(&name));
    }

    /// Takes a monitor out of the map, then kills it. Others must have been named before.
    #[track_caller]
    pub(crate) fn remove_mon(&self, i: u32) {
        let name = mon_name(i);
        self.ceph(&["mon", "remove", name]);
        self.wait_for_quorum(|quorum| !quorum.contains(&name));
        self.kill_mon(i);
    }

    /// How the cluster is, for whoever has to find out why a test on it failed: its groups, and what its OSDs are at.
    pub(crate) fn condition(&self) -> String {
        let ask = |args: &[&str]| self.run_for("ceph", args, 20).to_string();
        let mut all =
            vec![ask(&["status"]), ask(&["osd", "dump"]), ask(&["pg", "dump", "pgs_brief"])];
        for i in 0..self.options.osds {
            let name = format!("osd.{i}");
            all.push(ask(&["daemon", &name, "status"]));
            all.push(ask(&["daemon", &name, "dump_ops_in_flight"]));
            let log =
                fs::read_to_string(self.dir.join(format!("log/{name}.log"))).unwrap_or_default();
            let lines = log.lines().rev().filter(|line| !line.contains("set_statfs"));
            let mut last: Vec<_> = lines.take(60).collect();
            last.reverse();
            all.push(format!("--- the last of {name}'s log\n{}", last.join("\n")));
        }
        all.join("\n")
    }

    /// Has programs that start from now on find the monitors here.
    pub(crate) fn name_mons(&self, addrs: &[&str]) {
        let addrs: Vec<_> = addrs.iter().map(|addr| format!("[v2:{addr}]")).collect();
        let text = fs::read_to_string(self.conf()).unwrap();
        let lines = text.lines().map(|line| match line.starts_with("mon host = ") {
            true => format!("mon host = {}\n", addrs.join(",")),
            false => format!("{line}\n"),
        });
        fs::write(self.conf(), lines.collect::<String>()).unwrap();
    }

    #[track_caller]
    fn wait_for_quorum(&self, is_right: impl Fn(&[&str]) -> bool) {
        let begun = Instant::now();
        loop {
            // The monitor that is asked may be the one that goes.
            let ran = self.run_for("ceph", &["quorum_status", "--format", "json"], 20);
            let message = ran.to_string();
            let status = if ran.code == 0 { ran.json() } else { serde_json::Value::Null };
            let names = status["quorum_names"].as_array();
            let names = names.map(|names| names.iter().filter_map(|name| name.as_str()).collect());
            if names.is_some_and(|names: Vec<_>| is_right(&names)) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{message}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// A manager, for what asks one, and waits until it answers. Clusters have none otherwise: no client needs one.
    #[track_caller]
    pub(crate) fn start_mgr(&self) {
        let data = self.dir.join("mgr");
        fs::create_dir_all(&data).unwrap();
        let all = ["mon", "allow profile mgr", "osd", "allow *"];
        let keyring = self.create_client("mgr.x", &all);
        let (data, keyring) = (data.to_str().unwrap(), keyring.to_str().unwrap());
        let conf = self.conf();
        let who = ["-f", "-i", "x", "-c", conf.to_str().unwrap()];
        let with = ["--mgr-data", data, "--keyring", keyring];
        self.spawn("ceph-mgr", "mgr.x", &[&who[..], &with].concat());
        let begun = Instant::now();
        while self.run_for("ceph", &["osd", "perf", "--format", "json"], 10).code != 0 {
            assert!(begun.elapsed() < Duration::from_secs(120), "{}", self.condition());
        }
    }

    pub(crate) fn start_osd(&self, i: u32) {
        self.start_daemon("ceph-osd", &format!("osd.{i}"));
    }

    /// Kills an OSD as a power cut would. With memstore its objects are gone.
    pub(crate) fn kill_osd(&self, i: u32) {
        self.kill(&format!("osd.{i}"));
    }

    /// The process id of a daemon, for instance `osd.0`.
    pub(crate) fn pid(&self, daemon: &str) -> u32 {
        self.daemons.lock().unwrap()[daemon].id()
    }

    /// Has the reaper end that process, too, should this one not come to it. Its command line must name [`Ceph::dir`].
    pub(crate) fn reap(&self, pid: u32) {
        if let Some((_, stdin)) = self.reaper.lock().unwrap().as_mut() {
            writeln!(stdin, "{pid}").expect("the reaper reads");
        }
    }

    /// Writes configuration and keys, and makes the stores of all daemons.
    fn make(&self) {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        fs::write(self.conf(), self.conf_text(uuid.trim())).unwrap();

        let all = ["mon", "osd", "mgr"];
        self.add_key("mon.", &[("mon", "allow *")]);
        self.add_key("client.admin", &all.map(|daemon| (daemon, "allow *")));
        for i in 0..self.options.osds {
            let caps =
                [("mon", "allow profile osd"), ("mgr", "allow profile osd"), ("osd", "allow *")];
            self.add_key(&format!("osd.{i}"), &caps);
        }

        let path = |name: &str| self.dir.join(name).to_str().unwrap().to_owned();
        let (monmap, osdmap) = (path("monmap"), path("osdmap"));
        let mut args = vec!["--create".to_owned(), "--fsid".to_owned(), uuid.trim().to_owned()];
        for i in 0..self.options.mons {
            args.extend([
                "--addv".to_owned(),
                mon_name(i).to_owned(),
                format!("[v2:{}]", self.mon_addr(i)),
            ]);
        }
        if self.options.release > Release::Pacific {
            args.push("--enable-all-features".to_owned());
        }
        let ciphers: &[_] = match self.options.auth {
            Auth::Aes => &[
                ("allowed-ciphers", "aes"),
                ("service-cipher", "aes"),
                ("preferred-cipher", "aes"),
            ],
            Auth::Mixed => &[("allowed-ciphers", "aes,aes256k")],
            Auth::Cephx | Auth::None => &[],
        };
        for (rule, ciphers) in ciphers {
            args.extend([format!("--auth-{rule}"), (*ciphers).to_owned()]);
        }
        args.push(monmap.clone());
        self.run("monmaptool", &args.iter().map(String::as_str).collect::<Vec<_>>()).ok();
        let osds = self.options.osds.to_string();
        self.run("osdmaptool", &["--createsimple", &osds, &osdmap]).ok();

        let (conf, keyring) = (path("ceph.conf"), path("keyring"));
        let maps = ["--monmap", &monmap, "--osdmap", &osdmap, "--keyring", &keyring];
        for i in 0..self.options.mons {
            fs::create_dir_all(self.dir.join("mon").join(mon_name(i))).unwrap();
            let who = ["-c", &conf, "-i", mon_name(i), "--mkfs"];
            self.run("ceph-mon", &[&who[..], &maps].concat()).ok();
        }
        // The slow part with bluestore, so all at once. Without --no-mon-config an OSD asks the monitors first.
        std::thread::scope(|scope| {
            for i in 0..self.options.osds {
                let (conf, keyring) = (&conf, &keyring);
                scope.spawn(move || {
                    let id = i.to_string();
                    fs::create_dir_all(self.dir.join("osd").join(&id)).unwrap();
                    let who =
                        ["-c", conf, "-i", &id, "--mkfs", "--no-mon-config", "--keyring", keyring];
                    self.run("ceph-osd", &who).ok();
                });
            }
        });
    }

    /// Adds a new key to the keyring.
    fn add_key(&self, name: &str, caps: &[(&str, &str)]) {
        let keyring = self.keyring();
        let mut args = vec![keyring.to_str().unwrap(), "--gen-key", "-n", name];
        if !keyring.exists() {
            args.push("--create-keyring");
        }
        if self.options.auth == Auth::Aes {
            args.push("--key-type=aes");
        }
        for (service, cap) in caps {
            args.extend(["--cap", service, cap]);
        }
        self.run("ceph-authtool", &args).ok();
    }

    fn conf_text(&self, fsid: &str) -> String {
        let Options { release, osds, mons, store, auth, mode, conf, ip: _ } = &self.options;
        let hosts: Vec<_> = (0..*mons).map(|i| format!("[v2:{}]", self.mon_addr(i))).collect();
        let names: Vec<_> = (0..*mons).map(mon_name).collect();
        let (auth, insecure_keys) = match auth {
            Auth::Cephx => ("cephx", ""),
            Auth::Aes | Auth::Mixed => ("cephx", "mon auth allow insecure key = true\n"),
            Auth::None => ("none", ""),
        };
        // Memstore counts its bytes without a lock (MemStore.cc, `used_bytes`). Once it has lost some, and nearly all
        // is removed, it has less than none: fuller than any OSD may be, which then answers no request that changes
        // anything. So its groups are counted instead.
        let (store, statfs) = match store {
            Store::Memstore => ("memstore", "fake statfs for testing = 4294967296\n"),
            Store::Bluestore => ("bluestore", ""),
        };
        let mut modes = String::new();
        for option in ["cluster", "service", "client", "mon_cluster", "mon_service", "mon_client"] {
            match mode {
                Mode::Default => {}
                Mode::Crc => writeln!(modes, "ms_{option}_mode = crc").unwrap(),
                Mode::Secure => writeln!(modes, "ms_{option}_mode = secure").unwrap(),
            }
        }
        let classes = later_osds(*release);
        format!(
            "[global]
fsid = {fsid}
mon host = {hosts}
mon initial members = {names}
auth cluster required = {auth}
auth service required = {auth}
auth client required = {auth}
{modes}keyring = {dir}/keyring
run dir = {dir}/run
admin socket = {dir}/run/$name.asok
log file = {dir}/log/$name.log
crash dir = {dir}/log
public addr = {ip}
cluster addr = {ip}
ms bind msgr1 = false
osd pool default size = {size}
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon allow pool delete = true
mon max pg per osd = 1000
{conf}[client]
admin socket =
log file =
rbd cache = false
[mon]
mon data = {dir}/mon/$id
mon data avail crit = 0
mon debug no require bluestore for ec overwrites = true
{insecure_keys}auth allow insecure global id reclaim = false
paxos propose interval = 0.05
paxos min wait = 0.01
mon lease = 1
mon election timeout = 1
[osd]
osd data = {dir}/osd/$id
osd objectstore = {store}
memstore device bytes = 4294967296
{statfs}bluestore block size = 10737418240
bluestore block create = true
bluestore fsck on mkfs = false
bluestore cache autotune = false
bluestore cache size = 134217728
osd class load list = *
osd class default list = *
osd crush update on start = false
osd memory target = 1073741824
osd op queue = wpq
osd heartbeat interval = 1
osd heartbeat grace = 5
{classes}",
            hosts = hosts.join(","),
            names = names.join(","),
            dir = self.dir.display(),
            ip = self.ip,
            size = (*osds).min(3),
        )
    }

    fn start_daemon(&self, program: &str, name: &str) {
        let id = name.split_once('.').unwrap().1;
        self.spawn(program, name, &["-f", "-i", id, "-c", self.conf().to_str().unwrap()]);
    }

    fn spawn(&self, program: &str, name: &str, args: &[&str]) {
        let log = File::create(self.dir.join("log").join(format!("{name}.out"))).unwrap();
        let child = self
            .command(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}; tests/install installs it"));
        self.reap(child.id());
        let before = self.daemons.lock().unwrap().insert(name.to_owned(), child);
        assert!(before.is_none(), "{name} is running");
    }

    fn kill(&self, name: &str) {
        let child = self.daemons.lock().unwrap().remove(name);
        let mut child = child.unwrap_or_else(|| panic!("{name} is not running"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        for child in self.daemons.get_mut().unwrap_or_else(|e| e.into_inner()).values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some((mut reaper, stdin)) = self.reaper.get_mut().ok().and_then(Option::take) {
            drop(stdin);
            let _ = reaper.wait();
        }
    }
}

/// What OSDs of later releases need to be told. Debian's builds look for object classes below the working directory.
fn later_osds(release: Release) -> String {
    match release {
        Release::Pacific => String::new(),
        _ => format!(
            "osd class dir = /usr/lib/{}-linux-gnu/rados-classes\nosd mclock skip benchmark = true\n",
            std::env::consts::ARCH
        ),
    }
}

fn mon_name(i: u32) -> &'static str {
    ["a", "b", "c", "d", "e"][i as usize]
}

/// A loopback address that no other cluster of these tests has, so that all can use Ceph's own ports.
fn free_address() -> (Ipv4Addr, UdpSocket) {
    let start = std::process::id();
    for n in 0..1000 {
        let [.., b, c] = (start.wrapping_mul(64) + n).to_be_bytes();
        let ip = Ipv4Addr::new(127, 91, b, c.max(1));
        if let Ok(socket) = UdpSocket::bind((ip, 3300)) {
            return (ip, socket);
        }
    }
    panic!("no loopback address is free");
}

fn reaper(dir: &Path) -> (Child, ChildStdin) {
    let mut child = Command::new("setsid")
        .args(["sh", "-c", REAPER, "reaper", dir.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("util-linux' setsid");
    // So that it has its traps before anybody interrupts this process group.
    std::thread::sleep(Duration::from_millis(20));
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

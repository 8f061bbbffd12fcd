//! One host: a plugin, and a dockerd where a test needs one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Ceph, Ran, run, run_in};

/// Longer than anything takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Where the mappings of a host are. Short: the path of a socket below it may have 107 bytes.
pub(crate) const MAPPINGS: &str = "m";

/// The plugin's name, as Docker knows it.
pub(crate) const DRIVER: &str = "ceph-native";

/// Gives a host a mount namespace of its own, until this ends. Docker looks for plugins in one folder, whatever its own
/// folders are, and asks all that it finds there, so that each needs its own; what is mounted in the host's folder, on
/// the other hand, is seen by all.
const NAMESPACE: &str = r#"
mkdir -p "$1/plugins" /run/docker/plugins && mkfifo "$1/never" || exit
mount --bind "$1" "$1" && mount --make-shared "$1" || exit
exec unshare -m --propagation unchanged sh -c '
    mount --make-private /run 2>/dev/null || mount --make-private /
    mount --bind "$1/plugins" /run/docker/plugins && echo ready && exec cat "$1/never"' - "$1"
"#;

/// A host. Everything of it goes when it is dropped.
pub(crate) struct Host {
    pub(crate) dir: PathBuf,
    /// What the plugin has in its environment when it is started next.
    pub(crate) env: BTreeMap<&'static str, String>,
    namespace: Child,
    ceph: &'static Ceph,
    plugin: Option<Child>,
    dockerd: Option<Child>,
}

impl Host {
    /// A host with a plugin, and these lines in its settings.
    pub(crate) fn start(ceph: &'static Ceph, name: &str, settings: &str) -> Self {
        let mut host = Self::bare(ceph, name, settings);
        host.start_plugin();
        host
    }

    /// The same, before its plugin is started.
    pub(crate) fn bare(ceph: &'static Ceph, name: &str, settings: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = ceph.dir().join(format!("host-{number}-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let namespace = namespace(&dir);
        ceph.reap(namespace.id());
        let text = format!(
            "listen = [{:?}]\nstate = {:?}\nhost = {name:?}\n{settings}\n[ceph]\nconf = {:?}\n",
            socket(&dir),
            dir.join("state"),
            ceph.conf(),
        );
        fs::write(dir.join("settings.toml"), text).unwrap();
        let env = BTreeMap::new();
        Self { dir, env, namespace, ceph, plugin: None, dockerd: None }
    }

    /// Runs a shell line in this host's mount namespace.
    pub(crate) fn shell(&self, line: &str) -> Ran {
        run("nsenter", &["-m", "-t", &self.pid(), "sh", "-ec", line])
    }

    /// A process of this host, as the first one of a machine of its own would be.
    pub(crate) fn pid(&self) -> String {
        self.namespace.id().to_string()
    }

    /// Starts the plugin, and returns when it has found the cluster.
    pub(crate) fn start_plugin(&mut self) {
        self.start_plugin_alone();
        // The cluster is asked in the background.
        eventually("the plugin finds the cluster", || {
            !self.call("VolumeDriver.Get", &json!({ "Name": "none" })).contains("cannot be told")
        });
    }

    /// Starts the plugin, and returns when it takes calls.
    pub(crate) fn start_plugin_alone(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = self
            .own_command()
            .arg("plugin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.ceph.reap(child.id());
        self.plugin = Some(child);
        eventually("the plugin comes up", || UnixStream::connect(socket(&self.dir)).is_ok());
    }

    fn own_command(&self) -> Command {
        let mut command = Command::new(program());
        command.arg("--settings").arg(self.dir.join("settings.toml"));
        command.env("RBD_NBD_RS_STATE", self.dir.join(MAPPINGS));
        command.envs(&self.env);
        command
    }

    /// Ends the plugin as a power cut would.
    pub(crate) fn kill_plugin(&mut self) {
        let mut child = self.plugin.take().expect("a plugin that runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Ends the plugin as systemd does.
    pub(crate) fn stop_plugin(&mut self) {
        let mut child = self.plugin.take().expect("a plugin that runs");
        signal("TERM", child.id());
        eventually("the plugin ends", || child.try_wait().unwrap().is_some());
    }

    /// Starts dockerd, with an image `bb` that has busybox.
    pub(crate) fn start_dockerd(&mut self, args: &[&str]) {
        let dir = self.dir.display().to_string();
        // One that was killed has left its own.
        let _ = fs::remove_file(self.dir.join("pid"));
        let log = File::options().create(true).append(true).open(self.dir.join("dockerd.log"));
        let log = log.unwrap();
        let child = Command::new("nsenter")
            .args(["-m", "-t", &self.namespace.id().to_string(), "dockerd"])
            .args(["--data-root", &format!("{dir}/root"), "--exec-root", &format!("{dir}/exec")])
            .args(["-H", &format!("unix://{dir}/docker.sock"), "--pidfile", &format!("{dir}/pid")])
            .args(["--iptables=false", "--bridge=none"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd: tests/install");
        self.ceph.reap(child.id());
        self.dockerd = Some(child);
        eventually("dockerd comes up", || self.try_docker(&["version"]).code == 0);
        if self.docker(&["images", "-q", "bb"]).is_empty() {
            let root = self.dir.join("image");
            fs::create_dir_all(root.join("bin")).unwrap();
            fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
            for tool in ["sh", "cat", "sync", "sleep", "ls", "sha256sum", "usleep"] {
                let _ = std::os::unix::fs::symlink("busybox", root.join("bin").join(tool));
            }
            let import = format!(
                "tar -C {} -c . | docker -H unix://{dir}/docker.sock import - bb",
                root.display()
            );
            run("bash", &["-c", &import]).ok();
        }
    }

    /// Ends dockerd: by `KILL` as a power cut would, or by `TERM` as systemd does.
    pub(crate) fn stop_dockerd(&mut self, how: &str) {
        let mut child = self.dockerd.take().expect("a dockerd that runs");
        signal(how, child.id());
        eventually("dockerd ends", || child.try_wait().unwrap().is_some());
        // A new one would take a containerd that is just ending for its own.
        let pid = fs::read_to_string(self.dir.join("exec/containerd/containerd.pid"));
        let pid = pid.unwrap_or_default();
        eventually("containerd ends", || {
            pid.is_empty() || !Path::new("/proc").join(pid.trim()).exists()
        });
    }

    /// `docker` on this host, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn docker(&self, args: &[&str]) -> String {
        self.try_docker(args).ok().trim().to_owned()
    }

    /// `docker` on this host.
    pub(crate) fn try_docker(&self, args: &[&str]) -> Ran {
        let socket = format!("unix://{}/docker.sock", self.dir.display());
        run("docker", &[&["-H", &socket], args].concat())
    }

    /// Runs a shell line in a new container that has the volume at /v; what it prints.
    #[track_caller]
    pub(crate) fn in_container(&self, volume: &str, line: &str) -> String {
        self.try_in_container(volume, line).ok().trim().to_owned()
    }

    pub(crate) fn try_in_container(&self, volume: &str, line: &str) -> Ran {
        let mount = format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
        let args = ["run", "--rm", "--network=none", "--mount", &mount, "bb", "sh", "-c", line];
        self.try_docker(&args)
    }

    /// `docker volume create` with options.
    #[track_caller]
    pub(crate) fn create(&self, name: &str, options: &[&str]) {
        let options = options.iter().flat_map(|option| ["-o", *option]);
        let mut args = vec!["volume", "create", "--driver", DRIVER];
        args.extend(options);
        args.push(name);
        self.docker(&args);
    }

    /// What `docker volume inspect` shows.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> Value {
        let shown = self.docker(&["volume", "inspect", name]);
        serde_json::from_str::<Value>(&shown).unwrap()[0].clone()
    }

    /// Our own program.
    pub(crate) fn ours(&self, args: &[&str]) -> Ran {
        let settings = self.dir.join("settings.toml");
        let args = [&["--settings", settings.to_str().unwrap()], args].concat();
        let mappings = self.dir.join(MAPPINGS);
        let own = self.env.iter().map(|(name, value)| (*name, Path::new(value)));
        let env: Vec<_> = own.chain([("RBD_NBD_RS_STATE", mappings.as_path())]).collect();
        run_in(&program(), &args, &env, 120)
    }

    /// A call of the plugin's protocol: the whole answer, as text.
    pub(crate) fn call(&self, call: &str, request: &Value) -> String {
        self.http(&["-X", "POST", "-d", &request.to_string()], call)
    }

    /// A call that must succeed: its answer.
    #[track_caller]
    pub(crate) fn called(&self, call: &str, request: &Value) -> Value {
        let text = self.call(call, request);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let error = answer["Err"].as_str().unwrap_or_default();
        assert!(error.is_empty(), "{call} {request}: {text}\n{}", self.log());
        answer
    }

    /// A call that must fail: what it says.
    #[track_caller]
    pub(crate) fn refused(&self, call: &str, request: &Value) -> String {
        let text = self.call(call, request);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let error = answer["Err"].as_str().unwrap_or_default().to_owned();
        assert!(!error.is_empty(), "{call} {request} was not refused: {text}");
        error
    }

    /// Any request to the plugin.
    pub(crate) fn http(&self, args: &[&str], path: &str) -> String {
        let socket = socket(&self.dir);
        let url = format!("http://plugin/{path}");
        let args = [&["-s", "-m", "115", "--unix-socket", socket.to_str().unwrap()], args].concat();
        let ran = run("curl", &[&args[..], &[&url]].concat());
        String::from_utf8_lossy(&ran.out).into_owned()
    }

    /// Mounts a volume for a user.
    #[track_caller]
    pub(crate) fn mount(&self, name: &str, user: &str) -> PathBuf {
        let answer = self.called("VolumeDriver.Mount", &json!({ "Name": name, "ID": user }));
        answer["Mountpoint"].as_str().expect("a mountpoint").into()
    }

    #[track_caller]
    pub(crate) fn unmount(&self, name: &str, user: &str) {
        self.called("VolumeDriver.Unmount", &json!({ "Name": name, "ID": user }));
    }

    /// Process ids of this host's mappings.
    pub(crate) fn mappings(&self) -> Vec<u32> {
        let state = self.dir.join(MAPPINGS);
        let mut pids = Vec::new();
        for entry in fs::read_dir(state).into_iter().flatten().flatten() {
            if let Ok(text) = fs::read_to_string(entry.path().join("mapping.json")) {
                let mapping: Value = serde_json::from_str(&text).unwrap_or_default();
                pids.extend(mapping["pid"].as_u64().map(|pid| pid as u32));
            }
        }
        pids
    }

    /// What is mounted below this host's state folder.
    pub(crate) fn mounts(&self) -> Vec<String> {
        mounts_below(&self.dir.join("state/mounts"))
    }

    /// Process ids of everything that runs in this host's containers, and of what watches over them.
    pub(crate) fn containers(&self) -> Vec<u32> {
        let exec = self.dir.join("exec").display().to_string();
        let shims = run("pgrep", &["-f", &format!("[c]ontainerd-shim.*{exec}")]);
        let shims = String::from_utf8_lossy(&shims.out).into_owned();
        let shims: Vec<u32> = shims.lines().filter_map(|pid| pid.parse().ok()).collect();
        let children = |shim: &u32| {
            let text = format!("/proc/{shim}/task/{shim}/children");
            let text = fs::read_to_string(text).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        };
        shims.iter().flat_map(|shim| [vec![*shim], children(shim)].concat()).collect()
    }

    /// Tears down what a reboot would: containers, mounts, mappings. The plugin must have ended.
    pub(crate) fn tear_down(&self) {
        for pid in self.mappings() {
            signal("KILL", pid);
        }
        for point in self.mounts() {
            run("umount", &["-l", &point]);
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("plugin.log")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the plugin on {} said\n{}", self.dir.display(), self.log());
            let dockerd = fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default();
            let lines: Vec<_> = dockerd.lines().collect();
            eprintln!("--- dockerd said\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
        if let Some(mut child) = self.dockerd.take() {
            signal("TERM", child.id());
            let begun = Instant::now();
            while child.try_wait().is_ok_and(|ended| ended.is_none()) {
                if begun.elapsed() > Duration::from_secs(30) {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if let Some(mut child) = self.plugin.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Of a test that failed while there was no dockerd.
        self.containers().iter().for_each(|pid| signal("KILL", *pid));
        for point in mounts_below(&self.dir).iter().filter(|point| Path::new(point) != self.dir) {
            run("umount", &["-l", point]);
        }
        for device in self.devices() {
            let mapper = Path::new(&program()).with_file_name("rbd-nbd-rs");
            let state = self.dir.join(MAPPINGS);
            let args = ["unmap", "--force", &device];
            run_in(mapper.to_str().unwrap(), &args, &[("RBD_NBD_RS_STATE", &state)], 60);
        }
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
        run("umount", &["-l", self.dir.to_str().unwrap()]);
    }
}

impl Host {
    fn devices(&self) -> Vec<String> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(self.dir.join(MAPPINGS)).into_iter().flatten().flatten() {
            if let Ok(text) = fs::read_to_string(entry.path().join("mapping.json")) {
                let mapping: Value = serde_json::from_str(&text).unwrap_or_default();
                devices.extend(mapping["device"].as_str().map(str::to_owned));
            }
        }
        devices
    }
}

/// What is mounted below a folder, what was mounted last first.
pub(crate) fn mounts_below(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().rev().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect()
}

/// The host's mount namespace, as a process that keeps it.
fn namespace(dir: &Path) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", NAMESPACE, "-", dir.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let out = child.stdout.as_mut().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said).unwrap();
    assert_eq!(said, "ready\n", "a mount namespace for {}", dir.display());
    child
}

/// Where this host's Docker finds the plugin.
pub(crate) fn socket(dir: &Path) -> PathBuf {
    dir.join("plugins").join(DRIVER).with_extension("sock")
}

/// Our program: the one that `CEPH_NATIVE` names (`tests/run` names the release build), or the one cargo built.
pub(crate) fn program() -> String {
    let built = env!("CARGO_BIN_EXE_ceph-native").to_owned();
    std::env::var("CEPH_NATIVE").unwrap_or(built)
}

pub(crate) fn signal(name: &str, pid: u32) {
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
}

/// Waits for something that has to come true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < LIMIT, "not within {} s: {what}", LIMIT.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

//! `rbd-nbd-rs serve` as a guarded child process.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::ceph::Ceph;
use super::run::{Ran, code, run_in};

/// Longer than any start takes, so that a server that doesn't come up is a failure and not a hang.
const START: Duration = Duration::from_secs(30);

/// Our program: the one that `RBD_NBD_RS` names (`tests/run` names the release build), or the one cargo built for this
/// test.
pub(crate) fn program() -> String {
    let built = option_env!("CARGO_BIN_EXE_rbd-nbd-rs").map(str::to_owned);
    std::env::var("RBD_NBD_RS").ok().or(built).expect("RBD_NBD_RS names the program to test")
}

/// A running server on a Unix socket. It is killed when this is dropped.
pub(crate) struct Serve {
    pub(crate) socket: PathBuf,
    log: PathBuf,
    child: Child,
}

impl Ceph {
    /// Runs our program against this cluster.
    pub(crate) fn ours(&self, args: &[&str]) -> Ran {
        run_in(&program(), args, &[("CEPH_CONF", &self.conf())], 120)
    }

    /// Serves images on a socket of their own and returns when it takes connections.
    #[track_caller]
    pub(crate) fn serve(&self, args: &[&str]) -> Serve {
        self.serve_telling(args, None)
    }

    /// The same, by way of another program, which must not stay.
    #[track_caller]
    pub(crate) fn serve_in(&self, prefix: &[&str], args: &[&str]) -> Serve {
        self.start_serving(prefix, args, None)
    }

    /// The same, with a filter (`RUST_LOG`) for what it says.
    #[track_caller]
    pub(crate) fn serve_telling(&self, args: &[&str], filter: Option<&str>) -> Serve {
        self.start_serving(&[], args, filter)
    }

    #[track_caller]
    fn start_serving(&self, prefix: &[&str], args: &[&str], filter: Option<&str>) -> Serve {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket = self.dir().join(format!("nbd{number}.sock"));
        let log = self.dir().join(format!("nbd{number}.log"));
        let output = File::create(&log).unwrap();
        let program = program();
        let words = [prefix, &[program.as_str(), "serve"], args].concat();
        let child = Command::new(words[0])
            .args(&words[1..])
            .arg("--socket")
            .arg(&socket)
            .env("CEPH_CONF", self.conf())
            .envs(filter.map(|filter| ("RUST_LOG", filter)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        self.reap(child.id());
        let mut serve = Serve { socket, log, child };
        let begun = Instant::now();
        while UnixStream::connect(&serve.socket).is_err() {
            let ended = serve.child.try_wait().unwrap();
            assert!(ended.is_none(), "serve {args:?} ended: {ended:?}\n{}", serve.log());
            assert!(begun.elapsed() < START, "serve {args:?} doesn't come up\n{}", serve.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        serve
    }
}

impl Serve {
    /// The NBD URI of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it is still there: no test may end it by what it sends.
    #[track_caller]
    pub(crate) fn assert_running(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the server ended: {ended:?}\n{}", self.log());
    }

    /// SIGTERM, then its exit code and all that it said.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> (i32, String) {
        let status = Command::new("kill").arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (code(status), self.log());
            }
            assert!(begun.elapsed() < START, "SIGTERM doesn't end it\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} said\n{}", Path::new(&program()).display(), self.log());
        }
    }
}

//! Holding still what is on a device while somebody takes a snapshot of its image.
//!
//! A process of its own does that, for as long as the one that serves the device keeps its standard input open. So what
//! is held still goes on however that one ends.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::{Pauses, Pausing};
use nbd::freeze::FileSystem;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin};
use tokio::signal::unix::{SignalKind, signal};

use super::state::failed;
use super::users;

/// The verb of that process.
pub(super) const VERB: &str = "hold-still";

/// What it says when everything is still.
const STILL: &str = "still";

/// The shell runs what is no program and names none.
const ENOEXEC: i32 = 8;

/// Holds still what is on a device until its standard input ends: by a hook, or by freezing what is mounted.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct HoldStill {
    device: PathBuf,
    /// Called with the device and `quiesce`, later `unquiesce`.
    #[arg(long)]
    hook: Option<PathBuf>,
}

/// Answers those who want the image to pause, until it is closed.
pub(super) async fn serve(mut pauses: Pauses, device: PathBuf, hook: Option<PathBuf>) {
    let mut still = None;
    while let Some(pausing) = pauses.next().await {
        match pausing {
            Pausing::Pause(done) => {
                let started = Still::start(&device, hook.as_deref()).await;
                let answer = started.map(|started| still = Some(started));
                tracing::info!(device = %device.display(), ?answer, "held still for a snapshot");
                let _ = done.send(answer);
            }
            Pausing::GoOn(done) => {
                if let Some(still) = still.take() {
                    still.end().await;
                }
                let _ = done.send(());
            }
        }
    }
}

/// The process that holds still.
struct Still {
    child: Child,
    /// It goes on when this is closed.
    stdin: ChildStdin,
}

impl Still {
    async fn start(device: &Path, hook: Option<&Path>) -> Result<Self> {
        let failed = |error| failed("the process that holds file systems still", error);
        let mut command = std::process::Command::new("/proc/self/exe");
        command.arg0("rbd-nbd-rs").arg(VERB).arg(device);
        if let Some(hook) = hook {
            command.arg("--hook").arg(hook);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(command).spawn().map_err(failed)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let mut said = String::new();
        let mut stdout = BufReader::new(stdout);
        stdout.read_line(&mut said).await.map_err(failed)?;
        if said.trim() == STILL {
            return Ok(Self { child, stdin });
        }
        // It has nothing more to say, and ends.
        stdout.read_to_string(&mut said).await.map_err(failed)?;
        let status = child.wait().await.map_err(failed)?;
        let kind = status.code().map_or(Kind::Os(5), Kind::from_errno);
        Err(Error::new(kind, said.trim()))
    }

    async fn end(mut self) {
        drop(self.stdin);
        match self.child.wait().await {
            Ok(status) if status.success() => {}
            status => tracing::error!(?status, "the process that held file systems still"),
        }
    }
}

impl HoldStill {
    pub(super) fn run(&self) -> Result<()> {
        // Not in the group of whoever is at a terminal.
        let _ = rustix::process::setsid();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed("cannot start", error))?;
        let _guard = runtime.enter();
        // These are not for it: it ends when what it holds still may go on.
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let _signals: Vec<_> = kinds.into_iter().map(signal).collect();
        let done = match &self.hook {
            Some(hook) => self.by_hook(hook),
            None => self.by_freezing(),
        };
        if let Err(error) = &done {
            // For the process that waits for it.
            let _ = writeln!(io::stdout(), "{error}");
        }
        done
    }

    fn by_hook(&self, hook: &Path) -> Result<()> {
        call(hook, &self.device, "quiesce")?;
        wait();
        call(hook, &self.device, "unquiesce")
    }

    fn by_freezing(&self) -> Result<()> {
        let mut all = Vec::new();
        for mount in users::file_systems(&self.device) {
            let folder = &mount.seen;
            if mount.is_covered() {
                let what =
                    format!("{} cannot be frozen: another mount covers it", folder.display());
                return Err(Error::new(Kind::Busy, what));
            }
            let (open, folder) = (FileSystem::open(folder), folder.clone());
            all.push((open.map_err(|error| failed(folder.display().to_string(), error))?, folder));
        }
        for (frozen, (file_system, folder)) in all.iter().enumerate() {
            if let Err(error) = file_system.freeze() {
                thaw(&all[..frozen]);
                let what = format!("{} cannot be frozen", folder.display());
                return Err(failed(what, error));
            }
        }
        wait();
        thaw(&all);
        Ok(())
    }
}

/// Says that everything is still, and waits until it may go on.
fn wait() {
    let mut out = io::stdout();
    let _ = writeln!(out, "{STILL}").and_then(|()| out.flush());
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

fn thaw(all: &[(FileSystem, PathBuf)]) {
    for (file_system, folder) in all {
        if let Err(error) = file_system.thaw() {
            tracing::error!(folder = %folder.display(), %error, "thawing");
        }
    }
}

fn call(hook: &Path, device: &Path, what: &str) -> Result<()> {
    let words = [device.as_os_str(), what.as_ref()];
    // What it says goes where our errors go: what is said to our standard output is for the process that waits.
    let output = || Stdio::from(io::stderr());
    let run = |command: &mut std::process::Command| {
        command.args(words).stdin(Stdio::null()).stdout(output()).status()
    };
    let ran = match run(&mut std::process::Command::new(hook)) {
        Err(error) if error.raw_os_error() == Some(ENOEXEC) => {
            run(std::process::Command::new("/bin/sh").arg(hook))
        }
        ran => ran,
    };
    let shown = hook.display();
    let status = ran.map_err(|error| failed(format!("the hook {shown}"), error))?;
    if status.success() {
        return Ok(());
    }
    let kind = status.code().map_or(Kind::Os(5), Kind::from_errno);
    Err(Error::new(kind, format!("the hook {shown} {} {what}: {status}", device.display())))
}

//! Runs a program with a time limit and says plainly what it did when that was not what was wanted.

use std::path::Path;
use std::process::{Command, Stdio};

/// No program that a test runs takes longer, unless it says so itself: a hang is a failure with a name.
const LIMIT_SECONDS: u32 = 120;

/// `timeout`'s exit code for "it took too long".
pub(crate) const TIMED_OUT: i32 = 124;

/// What a program did.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The command line, for messages.
    pub(crate) command: String,
    /// Exit code, 128 + signal if it was killed.
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Ran {
    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// Standard output, as JSON, of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"))
    }

    /// Standard error of a command that must have failed by itself: neither success, nor a signal, nor a hang.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(self.code != 0 && self.code != TIMED_OUT && self.code < 126, "not refused: {self}");
        self.err
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, out, err } = self;
        let note = if *code == TIMED_OUT { " (time limit)" } else { "" };
        let out = String::from_utf8_lossy(out);
        write!(f, "`{command}` exited with {code}{note}\n--- stdout\n{out}\n--- stderr\n{err}")
    }
}

/// Runs `program` to its end.
pub(crate) fn run(program: &str, args: &[&str]) -> Ran {
    run_in(program, args, &[], LIMIT_SECONDS)
}

/// Runs `program` to its end with more in its environment, for at most `limit_seconds`.
pub(crate) fn run_in(
    program: &str,
    args: &[&str],
    env: &[(&str, &Path)],
    limit_seconds: u32,
) -> Ran {
    let mut command = Command::new("timeout");
    // On SIGABRT, Ceph's programs tell what they did last.
    command.args(["-s", "ABRT", "-k", "5", &limit_seconds.to_string(), program]).args(args);
    for (name, value) in env {
        command.env(name, value);
    }
    let output = command.stdin(Stdio::null()).output().expect("coreutils' timeout");
    Ran {
        command: format!("{program} {}", args.join(" ")),
        code: code(output.status),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The exit code as a shell gives it.
pub(crate) fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

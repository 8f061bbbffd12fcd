//! Other programs: run to their end, or for as long as they may take.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::error::{Error, Kind, Result};

/// What a program printed, and with which code it ended.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    /// Its exit code; -1 if a signal ended it.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl Ran {
    /// What it said last: the reason, if it failed.
    pub(crate) fn reason(&self) -> String {
        let mut lines = self.out.lines().chain(self.err.lines()).map(str::trim);
        let last = lines.rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
        format!("{last} (exit code {})", self.code)
    }
}

/// Runs a program to its end. One that takes too long is killed, which does not help while it waits for a device; it is
/// not waited for.
///
/// # Errors
/// [`Kind::NotFound`] if it is not installed; [`Kind::TimedOut`].
pub(crate) async fn run(words: &[&str], limit: Duration) -> Result<Ran> {
    let (program, args) = words.split_first().unwrap_or((&"", &[]));
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
            Error::new(kind, format!("running {program}")).with_source(error)
        })?;
    match tokio::time::timeout(limit, child.wait_with_output()).await {
        Ok(Ok(output)) => Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
        Ok(Err(error)) => {
            Err(Error::new(Kind::Os(5), format!("running {program}")).with_source(error))
        }
        Err(_) => {
            let what = format!("{program} has not ended within {} s", limit.as_secs());
            Err(Error::new(Kind::TimedOut, what))
        }
    }
}

/// The same for a program that has to succeed; its standard output.
///
/// # Errors
/// As [`run`], and what the program says when it fails.
pub(crate) async fn must(words: &[&str], limit: Duration) -> Result<String> {
    let ran = run(words, limit).await?;
    match ran.code {
        0 => Ok(ran.out),
        code => {
            let program = words.first().copied().unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or(program);
            Err(Error::new(Kind::from_errno(code), format!("{name}: {}", ran.reason())))
        }
    }
}

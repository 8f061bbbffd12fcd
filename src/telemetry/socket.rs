//! The admin socket, in the protocol of Ceph's (`src/common/admin_socket.cc`), so that `ceph daemon` can ask as well: a
//! line of JSON, or just a command, ended by a zero byte or a newline; the answer is its length, four bytes big-endian,
//! and JSON.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::serve::serve;
use super::{Listening, Telemetry};
use crate::error::{Error, Kind, Result};

/// How long [`ask`] waits.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest answer that [`ask`] takes, in bytes: far beyond what a process with thousands of sessions tells.
const ANSWER: usize = 64 << 20;

/// What can be asked, and what for.
const COMMANDS: [(&str, &str); 5] = [
    ("status", "everything: clusters, sessions, operations in flight, watches, counters, images"),
    ("objecter_requests", "operations in flight, oldest first, with what they wait for"),
    ("perf dump", "counters and latency histograms"),
    ("version", "the version of this program"),
    ("help", "what can be asked"),
];

pub(super) fn listen(telemetry: Telemetry, path: &Path) -> Result<Listening> {
    let failed = |error: std::io::Error| {
        let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
        Error::new(kind, format!("admin socket {}", path.display())).with_source(error)
    };
    if UnixStream::connect(path).is_ok() {
        let what = format!("admin socket {}: another process listens there", path.display());
        return Err(Error::new(Kind::Exists, what));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let ends = |question: &[u8]| question.contains(&0) || question.contains(&b'\n');
    let answer = move |question: &[u8]| framed(&answer(&telemetry, question));
    let task = tokio::spawn(serve(listener, ends, answer));
    Ok(Listening { task, path: Some(path.to_owned()) })
}

fn framed(answer: &Value) -> Vec<u8> {
    let text = format!("{answer:#}\n");
    let mut framed = (text.len() as u32).to_be_bytes().to_vec();
    framed.extend_from_slice(text.as_bytes());
    framed
}

fn answer(telemetry: &Telemetry, question: &[u8]) -> Value {
    let end = question.iter().position(|byte| matches!(byte, 0 | b'\n'));
    let question = String::from_utf8_lossy(&question[..end.unwrap_or(question.len())]);
    let parsed: Option<Value> = serde_json::from_str(&question).ok();
    let command = match &parsed {
        Some(parsed) => parsed["prefix"].as_str().unwrap_or_default(),
        None => question.trim(),
    };
    match command {
        "status" => telemetry.status(),
        "objecter_requests" => telemetry.ops(),
        "perf dump" => telemetry.counters(),
        "version" => json!({ "version": env!("CARGO_PKG_VERSION"), "program": "ceph-native" }),
        "help" => COMMANDS.iter().map(|(name, help)| (*name, json!(help))).collect(),
        // `ceph daemon` asks for this first.
        "get_command_descriptions" => {
            let commands = COMMANDS.iter().enumerate().map(|(i, (name, help))| {
                let sig: Vec<_> = name.split(' ').collect();
                (format!("cmd{i:03}"), json!({ "sig": sig, "help": help }))
            });
            commands.collect()
        }
        other => json!({ "error": format!("unknown command {other:?}; \"help\" lists all") }),
    }
}

/// Asks the process that listens on an admin socket.
///
/// # Errors
/// Nobody listens there, or not in this protocol.
pub fn ask(path: &Path, command: &str) -> Result<Value> {
    let failed = |error: std::io::Error| {
        let what = format!("admin socket {}", path.display());
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::ConnectionRefused => Kind::Unreachable,
            _ => Kind::from_errno(error.raw_os_error().unwrap_or(5)),
        };
        Error::new(kind, what).with_source(error)
    };
    let mut stream = UnixStream::connect(path).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let question = format!("{}\0", json!({ "prefix": command }));
    stream.write_all(question.as_bytes()).map_err(failed)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(failed)?;
    let length = u32::from_be_bytes(length) as usize;
    let mut text = Vec::new();
    stream.take(length.min(ANSWER) as u64).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| {
        let what = format!("admin socket {}: the answer is not JSON", path.display());
        Error::new(Kind::Corrupt, what).with_source(error)
    })
}

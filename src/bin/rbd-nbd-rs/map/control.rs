//! How other processes talk to one that serves a mapping: a line of JSON each way over its socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ceph_native::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

/// The longest line, in bytes.
const LINE_BYTES: u64 = 4096;

/// How long whoever connects may take to say something.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be asked of who serves a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// End it: in good order, unless the device is in use.
    Unmap,
    /// End it at once, whatever is in flight.
    Force,
    /// Leave the device to somebody else.
    Detach,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Reply {
    /// Zero, or the errno of what went wrong.
    errno: i32,
    message: String,
}

/// A command, and where its result goes.
pub(crate) type Asked = (Command, oneshot::Sender<Result<()>>);

/// Takes commands on a socket and passes them on, on a task of its own.
pub(crate) fn serve(path: &Path) -> io::Result<mpsc::Receiver<Asked>> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Err(error) = answer(stream, sender).await {
                    tracing::debug!(%error, "a command");
                }
            });
        }
    });
    Ok(receiver)
}

async fn answer(mut stream: tokio::net::UnixStream, to: mpsc::Sender<Asked>) -> io::Result<()> {
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    let mut reader = tokio::io::BufReader::new(reader.take(LINE_BYTES));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let command = serde_json::from_str(&line)?;
    let (sender, result) = oneshot::channel();
    let asked = to.send((command, sender)).await;
    let reply = match (asked, result.await) {
        (Ok(()), Ok(Ok(()))) => Reply::default(),
        (Ok(()), Ok(Err(error))) => Reply { errno: error.errno(), message: error.to_string() },
        // It ended without a word.
        _ => return Ok(()),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

/// Asks whoever serves a mapping to do something, and waits for its answer for at most `limit`.
pub(crate) fn ask(socket: &Path, command: Command, limit: Duration) -> Result<()> {
    let failed = |error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Kind::TimedOut,
            _ => Kind::Unreachable,
        };
        Error::new(kind, "the process that serves the device does not answer").with_source(error)
    };
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let mut line = serde_json::to_vec(&command)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(failed)?;
    let reply: Reply = serde_json::from_str(&answer).map_err(|error| failed(error.into()))?;
    match reply.errno {
        0 => Ok(()),
        errno => Err(Error::new(Kind::from_errno(errno), reply.message)),
    }
}

//! How other processes talk to one that serves a mapping: a line of JSON each way over its socket.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ceph_native::error::{Error, Kind, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::CONNECTIONS_MOST;

/// The longest line, in bytes.
const LINE_BYTES: u64 = 4096;

/// How long whoever connects may take to say something.
const PATIENCE: Duration = Duration::from_secs(5);

/// Room for the descriptors of a device's connections.
const ANCILLARY_BYTES: usize = rustix::cmsg_space!(ScmRights(CONNECTIONS_MOST));

/// What can be asked of who serves a mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// End it: in good order, unless the device is in use.
    Unmap,
    /// End it at once, whatever is in flight.
    Force,
    /// Leave the device to somebody else.
    Detach,
    /// Give the kernel's connections to who asks.
    HandOver {
        /// The address by which the cluster knows who asks.
        client: Option<String>,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Reply {
    /// Zero, or the errno of what went wrong.
    errno: i32,
    message: String,
    /// How many bytes were read already of each connection that is handed over. These follow the line.
    #[serde(default)]
    read: Vec<usize>,
}

/// A connection of the kernel's, and what was read of it already.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) socket: OwnedFd,
    pub(crate) read: Vec<u8>,
}

/// A command, and where its result goes: connections, if it is for these.
pub(crate) type Asked = (Command, oneshot::Sender<Result<Vec<Handed>>>);

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
    let (reply, handed) = match (asked, result.await) {
        (Ok(()), Ok(Ok(handed))) => {
            let read = handed.iter().map(|handed| handed.read.len()).collect();
            (Reply { read, ..Reply::default() }, handed)
        }
        (Ok(()), Ok(Err(error))) => {
            let (errno, message) = (error.errno(), error.to_string());
            (Reply { errno, message, ..Reply::default() }, Vec::new())
        }
        // It ended without a word.
        _ => return Ok(()),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    // Descriptors come with the first byte.
    let sent = send_with(writer.as_ref(), &line, &handed)?;
    writer.write_all(&line[sent..]).await?;
    for handed in &handed {
        writer.write_all(&handed.read).await?;
    }
    Ok(())
}

fn send_with(to: impl AsFd, line: &[u8], handed: &[Handed]) -> io::Result<usize> {
    let sockets: Vec<_> = handed.iter().map(|handed| handed.socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sendmsg(to, &[IoSlice::new(line)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Asks whoever serves a mapping to do something, and waits for its answer for at most `limit`.
pub(crate) fn ask(socket: &Path, command: Command, limit: Duration) -> Result<()> {
    let exchange = || -> io::Result<Reply> {
        let stream = begin(socket, &command, limit)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(serde_json::from_str(&answer)?)
    };
    exchange().map_err(silent)?.done()
}

/// Asks whoever serves a mapping for the kernel's connections.
pub(crate) fn ask_to_hand_over(
    socket: &Path,
    client: Option<String>,
    limit: Duration,
) -> Result<Vec<Handed>> {
    let exchange = || -> io::Result<(Reply, Vec<OwnedFd>, Vec<u8>)> {
        let mut stream = begin(socket, &Command::HandOver { client }, limit)?;
        let mut answer = vec![0; LINE_BYTES as usize];
        let mut space = [MaybeUninit::uninit(); ANCILLARY_BYTES];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let buffer = &mut [IoSliceMut::new(&mut answer)];
        let received = recvmsg(&stream, buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        answer.truncate(received.bytes);
        let sockets = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.collect(),
            _ => Vec::new(),
        });
        let sockets = sockets.collect();
        stream.read_to_end(&mut answer)?;
        let end = answer.iter().position(|byte| *byte == b'\n').unwrap_or(answer.len());
        let reply = serde_json::from_slice(&answer[..end])?;
        Ok((reply, sockets, answer.split_off(answer.len().min(end + 1))))
    };
    let (reply, sockets, mut read) = exchange().map_err(silent)?;
    let lengths = reply.read.clone();
    reply.done()?;
    if lengths.len() != sockets.len() || lengths.iter().sum::<usize>() != read.len() {
        return Err(silent(io::ErrorKind::InvalidData.into()));
    }
    let handed = sockets.into_iter().zip(lengths).map(|(socket, length)| {
        let rest = read.split_off(length);
        Handed { socket, read: std::mem::replace(&mut read, rest) }
    });
    Ok(handed.collect())
}

fn begin(socket: &Path, command: &Command, limit: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(stream)
}

fn silent(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Kind::TimedOut,
        _ => Kind::Unreachable,
    };
    Error::new(kind, "the process that serves the device does not answer").with_source(error)
}

impl Reply {
    fn done(self) -> Result<()> {
        match self.errno {
            0 => Ok(()),
            errno => Err(Error::new(Kind::from_errno(errno), self.message)),
        }
    }
}

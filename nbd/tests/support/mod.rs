//! A server in a thread of its own, devices that misbehave on purpose, and real clients as subprocesses.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use nbd::device::{Completion, Device, Geometry, Op, Queue, Request};
use nbd::memory::MemoryDevice;
use nbd::{Export, Exports, Report, Server};
use tokio::sync::oneshot;

/// A folder that is removed in the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nbd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server on a current-thread runtime, listening on a Unix socket and on TCP.
pub(crate) struct Served {
    pub(crate) folder: Folder,
    pub(crate) tcp: SocketAddr,
    stop: oneshot::Sender<Duration>,
    thread: JoinHandle<Report>,
}

impl Served {
    pub(crate) fn new(exports: Vec<Export>) -> Self {
        let folder = Folder::new();
        let socket = folder.0.join("socket");
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let server = Server::new(Exports::new(exports).unwrap());
                server.listen_unix(&socket, 0o600).unwrap();
                ready.send(server.listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
                server.shutdown(stopped.await.unwrap()).await
            })
        });
        let tcp = listening.recv().unwrap();
        Self { folder, tcp, stop, thread }
    }

    /// One export `disk` of a memory device.
    pub(crate) fn memory(size: u64) -> Self {
        Self::new(vec![Export::new("disk", MemoryDevice::new(Geometry::new(size)))])
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.0.join("socket")
    }

    /// Where clients find an export: over the Unix socket, and over TCP.
    pub(crate) fn uris(&self, export: &str) -> [String; 2] {
        let socket = self.socket();
        [
            format!("nbd+unix:///{export}?socket={}", socket.display()),
            format!("nbd://{}/{export}", self.tcp),
        ]
    }

    pub(crate) fn stop(self, grace: Duration) -> Report {
        self.stopping(grace).join().unwrap()
    }

    /// Begins to stop.
    pub(crate) fn stopping(self, grace: Duration) -> JoinHandle<Report> {
        self.stop.send(grace).unwrap();
        self.thread
    }
}

/// Runs a client; it has to succeed. Gives what it printed.
pub(crate) fn run(tool: &str, package: &str, args: &[&str]) -> String {
    let output = match Command::new(tool).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{tool} is missing: apt-get install {package} (or run tests/install)")
        }
        Err(error) => panic!("{tool}: {error}"),
    };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {}\n{printed}{errors}", output.status);
    printed
}

/// Writes bytes that look random, the same every time.
pub(crate) fn random_file(path: &Path, len: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le()
    });
    let bytes: Vec<u8> = words.take(len / 8).flat_map(u64::to_ne_bytes).collect();
    std::fs::write(path, bytes).unwrap();
}

/// A client that speaks the protocol by hand.
pub(crate) struct Raw(pub(crate) UnixStream);

impl Raw {
    /// Connects in the oldest way: no options, simple replies.
    pub(crate) fn connect(socket: &Path) -> Self {
        let mut raw = Self::dial(socket);
        raw.0.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        raw.read::<10>();
        raw
    }

    /// Connects, and reads the greeting.
    pub(crate) fn dial(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut raw = Self(stream);
        assert_eq!(&raw.read(), b"NBDMAGICIHAVEOPT\0\x03");
        raw
    }

    pub(crate) fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Error and cookie of a simple reply.
    pub(crate) fn reply(&mut self) -> (u32, u64) {
        let head: [u8; 16] = self.read();
        assert_eq!(&head[..4], b"\x67\x44\x66\x98");
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        (error, u64::from_be_bytes(head[8..].try_into().unwrap()))
    }

    /// Whether the server has closed the connection.
    pub(crate) fn is_over(&mut self) -> bool {
        matches!(self.0.read(&mut [0]), Ok(0))
            || self.0.take_error().is_ok_and(|error| error.is_some())
    }
}

/// A request without payload, or the head of a write.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = b"\x25\x60\x95\x13\0\0".to_vec();
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// How a [`Wayward`] device behaves, and what it saw.
#[derive(Default)]
pub(crate) struct Manner {
    /// Nothing is completed while this is set.
    pub(crate) held: bool,
    /// It has room for so many requests, of all its queues; for any number if this is 0.
    pub(crate) room: u64,
    wakers: Vec<Waker>,
}

/// A memory device that completes in the opposite order, a few at a time, or not at all until it is let go.
#[derive(Clone)]
pub(crate) struct Wayward {
    pub(crate) memory: MemoryDevice,
    pub(crate) manner: Arc<Mutex<Manner>>,
    /// Requests submitted and not completed, and payload bytes of these.
    pub(crate) in_flight: Arc<AtomicU64>,
    pub(crate) bytes: Arc<AtomicU64>,
}

impl Wayward {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            memory: MemoryDevice::new(Geometry::new(size)),
            manner: Arc::default(),
            in_flight: Arc::default(),
            bytes: Arc::default(),
        }
    }

    pub(crate) fn hold(&self) {
        self.manner.lock().unwrap().held = true;
    }

    pub(crate) fn let_go(&self) {
        let mut manner = self.manner.lock().unwrap();
        manner.held = false;
        manner.wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits until so many requests are in flight.
    pub(crate) fn wait_for(&self, requests: u64) {
        for _ in 0..1000 {
            if self.in_flight.load(Ordering::SeqCst) >= requests {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{requests} requests should be in flight");
    }
}

impl Device for Wayward {
    fn geometry(&self) -> Geometry {
        self.memory.geometry()
    }

    fn queue(&self) -> Box<dyn Queue> {
        let done = VecDeque::new();
        Box::new(WaywardQueue { device: self.clone(), inner: self.memory.queue(), done, turn: 0 })
    }
}

struct WaywardQueue {
    device: Wayward,
    inner: Box<dyn Queue>,
    done: VecDeque<Completion>,
    turn: usize,
}

impl Queue for WaywardQueue {
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut manner = self.device.manner.lock().unwrap();
        let full = manner.room > 0 && self.device.in_flight.load(Ordering::SeqCst) >= manner.room;
        if full {
            manner.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn submit(&mut self, request: Request) {
        let len = match &request.op {
            Op::Read { len, .. } => u64::from(*len),
            Op::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        self.device.in_flight.fetch_add(1, Ordering::SeqCst);
        self.device.bytes.fetch_add(len, Ordering::SeqCst);
        self.inner.submit(request);
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn poll_completions(&mut self, cx: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()> {
        let mut fresh = Vec::new();
        let inner = self.inner.poll_completions(cx, &mut fresh);
        fresh.into_iter().for_each(|completion| self.done.push_front(completion));
        let mut manner = self.device.manner.lock().unwrap();
        if manner.held {
            manner.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        if self.done.is_empty() {
            return inner;
        }
        self.turn += 1;
        let few = 1 + self.turn % 3;
        for completion in self.done.drain(..few.min(self.done.len())) {
            self.device.in_flight.fetch_sub(1, Ordering::SeqCst);
            out.push(completion);
        }
        if manner.room > 0 {
            manner.wakers.drain(..).for_each(Waker::wake);
        }
        Poll::Ready(())
    }
}

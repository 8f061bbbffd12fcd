//! A writer that remembers what was acknowledged to it: whatever happens to the cluster, the network or our program,
//! every block must read as a version that was acknowledged last, or as one that was submitted since.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use nbd::client::{Client, ClientError};
use nbd::device::{Completion, Errno, Op, Outcome, ReadData, Request};
use tokio::net::UnixStream;

const BLOCK: usize = 4096;

/// Requests in flight.
const DEPTH: usize = 16;

/// Requests per second, so that several tests leave each other some of the machine.
const RATE: u32 = 800;

/// How long the end of what is in flight is waited for after the work is over.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is known of each block.
pub(crate) struct Ledger {
    blocks: Vec<Versions>,
    random: u64,
    /// Requests that succeeded so far, for whoever looks on.
    pub(crate) progress: Arc<AtomicU64>,
}

/// Versions of a block. 0 is what it was before anything was written: zeros.
#[derive(Clone, Copy, Default)]
struct Versions {
    acknowledged: u32,
    submitted: u32,
}

/// How it went.
pub(crate) struct Worked {
    /// Requests that succeeded.
    pub(crate) done: u64,
    /// The longest time that nothing succeeded in, while something was in flight.
    pub(crate) longest_pause: Duration,
    /// When which request failed, and how.
    pub(crate) errors: Vec<(Instant, Errno)>,
    /// When the last one succeeded.
    pub(crate) last_success: Instant,
    /// Why the connection ended, if it did.
    pub(crate) end: Option<ClientError>,
}

/// A request in flight.
struct Doing {
    block: usize,
    /// The version that is written, or those that a read may bring.
    write: Option<u32>,
    may_read: (u32, u32),
}

impl Ledger {
    /// Of an image that has nothing but zeros.
    pub(crate) fn new(bytes: u64) -> Self {
        let random = std::process::id().into();
        let blocks = vec![Versions::default(); bytes as usize / BLOCK];
        Self { blocks, random, progress: Arc::default() }
    }

    /// Reads and writes random blocks through an export until `over` says so, and then waits for what is in flight.
    pub(crate) fn work(&mut self, socket: &Path, export: &str, over: impl Fn() -> bool) -> Worked {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.expect("the server listens");
            let client = Client::connect(stream, export).await.expect("the export is there");
            Work::new(self, client).run(over).await
        })
    }

    /// Holds an image's content, all of it, against what is known.
    #[track_caller]
    pub(crate) fn check(&self, content: &mut impl Read) {
        let mut bytes = vec![0; BLOCK];
        for (block, versions) in self.blocks.iter().enumerate() {
            content.read_exact(&mut bytes).unwrap();
            let (least, most) = (versions.acknowledged, versions.submitted);
            check_block(block, &bytes, (least, most)).unwrap_or_else(|wrong| panic!("{wrong}"));
        }
        assert_eq!(content.read(&mut bytes).unwrap(), 0, "it is longer than it should be");
    }

    fn random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) as usize % below
    }
}

/// The content of a version: its block and number, then bytes that depend on both.
fn content(block: usize, version: u32) -> Bytes {
    let mut bytes = BytesMut::with_capacity(BLOCK);
    if version == 0 {
        bytes.put_bytes(0, BLOCK);
        return bytes.freeze();
    }
    bytes.put_u64(block as u64);
    bytes.put_u64(version.into());
    let mut state = (block as u64) << 32 | u64::from(version);
    while bytes.len() < BLOCK {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.put_u64(state);
    }
    bytes.freeze()
}

fn check_block(block: usize, bytes: &[u8], (least, most): (u32, u32)) -> Result<(), String> {
    let number = u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as u32;
    if content(block, number) != bytes {
        return Err(format!("block {block} holds nothing that was ever written to it ({number}?)"));
    }
    match (least..=most).contains(&number) {
        true => Ok(()),
        false => Err(format!(
            "block {block} holds version {number}; {least} was acknowledged, {most} submitted last"
        )),
    }
}

struct Work<'a> {
    ledger: &'a mut Ledger,
    client: Client<UnixStream>,
    doing: BTreeMap<u64, Doing>,
    next: u64,
    worked: Worked,
    /// Since when nothing has succeeded.
    quiet_since: Instant,
}

impl<'a> Work<'a> {
    fn new(ledger: &'a mut Ledger, client: Client<UnixStream>) -> Self {
        let now = Instant::now();
        let worked = Worked {
            done: 0,
            longest_pause: Duration::ZERO,
            errors: Vec::new(),
            last_success: now,
            end: None,
        };
        Self { ledger, client, doing: BTreeMap::new(), next: 0, worked, quiet_since: now }
    }

    async fn run(mut self, over: impl Fn() -> bool) -> Worked {
        let begun = Instant::now();
        let mut over_since = None;
        let mut done = Vec::new();
        loop {
            if over() {
                let since = *over_since.get_or_insert_with(Instant::now);
                assert!(since.elapsed() < PATIENCE, "{} requests do not end", self.doing.len());
                if self.doing.is_empty() {
                    return self.worked;
                }
            } else {
                let may = (begun.elapsed().as_secs_f64() * f64::from(RATE)) as u64;
                while self.doing.len() < DEPTH && self.next < may {
                    self.begin();
                }
            }
            if self.doing.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
                self.quiet_since = Instant::now();
                continue;
            }
            let tick = Duration::from_millis(20);
            if let Ok(Err(end)) =
                tokio::time::timeout(tick, self.client.completions(&mut done)).await
            {
                self.worked.end = Some(end);
                return self.worked;
            }
            for completion in done.drain(..) {
                self.finish(completion);
            }
        }
    }

    fn begin(&mut self) {
        let block = loop {
            let block = self.ledger.random(self.ledger.blocks.len());
            if !self.doing.values().any(|doing| doing.block == block) {
                break block;
            }
        };
        let reads = self.ledger.random(4) == 0;
        let versions = &mut self.ledger.blocks[block];
        let may_read = (versions.acknowledged, versions.submitted);
        let offset = (block * BLOCK) as u64;
        let (op, write) = match reads {
            true => (Op::Read { offset, len: BLOCK as u32 }, None),
            false => {
                versions.submitted += 1;
                let data = content(block, versions.submitted);
                (Op::Write { offset, data, durable: false }, Some(versions.submitted))
            }
        };
        self.next += 1;
        self.doing.insert(self.next, Doing { block, write, may_read });
        self.client.submit(Request { token: self.next, op });
    }

    fn finish(&mut self, Completion { token, result }: Completion) {
        let now = Instant::now();
        let doing = self.doing.remove(&token).expect("it was submitted");
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(errno) => return self.worked.errors.push((now, errno)),
        };
        self.worked.longest_pause = self.worked.longest_pause.max(now - self.quiet_since);
        (self.quiet_since, self.worked.last_success) = (now, now);
        self.worked.done += 1;
        self.ledger.progress.fetch_add(1, Ordering::Relaxed);
        match (doing.write, outcome) {
            (Some(version), Outcome::Done) => {
                self.ledger.blocks[doing.block].acknowledged = version;
            }
            // Simple replies bring it in one piece.
            (None, Outcome::Read(ReadData::Whole(bytes))) => {
                check_block(doing.block, &bytes, doing.may_read)
                    .unwrap_or_else(|wrong| panic!("while it was used: {wrong}"));
            }
            (_, outcome) => panic!("{outcome:?} is no answer"),
        }
    }
}

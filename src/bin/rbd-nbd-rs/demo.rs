//! `demo`: everything at once on a machine that has nothing. A cluster in this process, an image on it, an export of
//! the image, and a client that fills and verifies it.

use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::attach::ImageDevice;
use ceph_native::cluster::Cluster;
use ceph_native::config::{Args, Config, Environment, Process};
use ceph_native::error::{Context as _, Error, Kind, Result};
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::{Image, OpenOptions};
use devcluster::{DevCluster, Options};
use nbd::client::{Client, ClientError};
use nbd::device::{Completion, Op, Outcome, Request};
use nbd::{Export, Exports, Server};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::output::print;
use crate::progress::Progress;
use crate::size::{self, Bytes as Size};

const POOL: &str = "rbd";
const IMAGE: &str = "demo";

/// More than one, so that the image is spread over several.
const OSDS: u32 = 3;

/// What is written and verified at a time, in bytes, and how many of these are in flight.
const CHUNK: u64 = 256 << 10;
const CHUNKS_IN_FLIGHT: usize = 16;

/// What is read at random, in bytes, how many of these are in flight, and for how long.
const BLOCK: u64 = 4 << 10;
const BLOCKS_IN_FLIGHT: usize = 32;
const RANDOM_READS: Duration = Duration::from_secs(1);

/// How long what is in flight may take at the end.
const GRACE: Duration = Duration::from_secs(5);

/// Tries everything out on this machine alone, with nothing installed: starts a small cluster in this process, creates
/// an image on it, exports it over NBD, fills and verifies it through the export, and says how fast that was. Cluster
/// and export then stay until Ctrl-C, to be played with.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Demo {
    /// Size of the image, which is written in full and kept in memory (in M/G/T; M if there is no unit).
    #[arg(short, long, value_parser = size::image, default_value = "256M")]
    size: u64,
    /// End after the verification.
    #[arg(long)]
    once: bool,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        if self.size == 0 || !self.size.is_multiple_of(CHUNK) {
            let what = format!("--size should be a multiple of {}", Size(CHUNK));
            return Err(Error::new(Kind::Invalid, what));
        }
        let folder = Folder::new()?;
        runtime()?.block_on(async {
            let mut told_to_end = pin!(told_to_end()?);
            let stage = tokio::select! {
                stage = self.show(&folder.0) => stage?,
                () = &mut told_to_end => {
                    return Err(Error::new(Kind::Os(4), "ended before everything was verified"));
                }
            };
            if !self.once {
                stage.invite()?;
                told_to_end.await;
            }
            stage.end().await;
            print("ended     and nothing is left of it\n")
        })
    }

    /// Sets everything up, and has it used.
    async fn show(&self, folder: &Path) -> Result<Stage> {
        let options = Options { osds: OSDS, ..Options::default() };
        let cluster = DevCluster::start(options).await;
        let cluster = cluster.map_err(|error| failed("cannot start a cluster", error))?;
        let conf = cluster.write_conf(folder).map_err(|error| failed(folder.display(), error))?;
        print(&format!(
            "cluster   in this process: a monitor at {}, {OSDS} OSDs, pool {POOL}, all in memory\n",
            cluster.monitor(),
        ))?;

        let socket = folder.join("nbd.sock");
        let serving = Serving::start(&conf, &socket, self.size).await?;
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        print(&format!("image     {POOL}/{IMAGE}, {}, exported as {uri}\n", Size(self.size)))?;

        let stream = UnixStream::connect(&socket).await;
        let stream = stream.map_err(|error| failed(socket.display(), error))?;
        let mut client = Client::connect(stream, IMAGE).await.map_err(nbd_error)?;
        self.fill(&mut client).await?;
        self.verify(&mut client).await?;
        self.read_at_random(&mut client, &serving).await?;
        client.disconnect().await.map_err(|error| nbd_error(error.into()))?;
        Ok(Stage { serving, cluster, conf, uri })
    }

    async fn fill(&self, client: &mut Client<UnixStream>) -> Result<()> {
        let write = |offset| Op::Write { offset, data: content(offset, CHUNK), durable: false };
        let (progress, begun) = (Progress::new("writing", true), Instant::now());
        let mut written = 0;
        run(client, self.chunks(), CHUNKS_IN_FLIGHT, write, |_, outcome| {
            written += CHUNK;
            progress.set(written, self.size);
            outcome == Outcome::Done
        })
        .await?;
        let flushed = |_, outcome| outcome == Outcome::Done;
        run(client, [0].into_iter(), 1, |_| Op::Flush, flushed).await?;
        progress.finish();
        print(&format!("written   {}\n", speed(self.size, begun.elapsed())))
    }

    async fn verify(&self, client: &mut Client<UnixStream>) -> Result<()> {
        let read = |offset| Op::Read { offset, len: CHUNK as u32 };
        let (progress, begun) = (Progress::new("verifying", true), Instant::now());
        let mut verified = 0;
        run(client, self.chunks(), CHUNKS_IN_FLIGHT, read, |offset, outcome| {
            verified += CHUNK;
            progress.set(verified, self.size);
            outcome == content(offset, CHUNK).into()
        })
        .await?;
        progress.finish();
        let speed = speed(self.size, begun.elapsed());
        print(&format!("verified  {speed}, every byte as it was written\n"))
    }

    async fn read_at_random(
        &self,
        client: &mut Client<UnixStream>,
        serving: &Serving,
    ) -> Result<()> {
        let (begun, cpu) = (Instant::now(), serving.cpu());
        let blocks = (1..).map(|i| scatter(i) % (self.size / BLOCK) * BLOCK);
        let blocks = blocks.take_while(|_| begun.elapsed() < RANDOM_READS);
        let read = |offset| Op::Read { offset, len: BLOCK as u32 };
        let mut reads = 0u32;
        run(client, blocks, BLOCKS_IN_FLIGHT, read, |offset, outcome| {
            reads += 1;
            outcome == content(offset, BLOCK).into()
        })
        .await?;
        let rate = f64::from(reads) / begun.elapsed().as_secs_f64();
        let mut out =
            format!("random    {rate:.0} reads of 4 KiB per second, {BLOCKS_IN_FLIGHT} in flight");
        if let (Some(before), Some(after)) = (cpu, serving.cpu()) {
            let each = (after.saturating_sub(before) / reads.max(1)).as_secs_f64() * 1e6;
            out += &format!("; each costs the server {each:.1} µs of CPU");
        }
        print(&(out + "\n"))
    }

    fn chunks(&self) -> impl Iterator<Item = u64> {
        (0..self.size / CHUNK).map(|i| i * CHUNK)
    }
}

/// What stays, to be played with. The export ends before the cluster.
struct Stage {
    serving: Serving,
    cluster: DevCluster,
    conf: PathBuf,
    uri: String,
}

impl Stage {
    fn invite(&self) -> Result<()> {
        let (conf, uri) = (self.conf.display(), &self.uri);
        print(&format!(
            "\nTry it, from another terminal; Ctrl-C here ends it:\n\n  \
             rbd --conf {conf} info {POOL}/{IMAGE}\n  \
             rados --conf {conf} --pool {POOL} ls\n  \
             nbdinfo '{uri}'\n\n"
        ))
    }

    async fn end(self) {
        drop(self.serving);
        self.cluster.stop().await;
    }
}

/// The export, in a thread of its own, which ends when this is dropped.
struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// The thread's file of scheduler statistics, where the kernel keeps any.
    statistics: Option<PathBuf>,
}

impl Serving {
    /// Creates the image, and exports it on a Unix socket.
    async fn start(conf: &Path, socket: &Path, size: u64) -> Result<Self> {
        let (ready, started) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (conf, socket) = (conf.to_owned(), socket.to_owned());
        let work = move || {
            let served = runtime().map(|runtime| {
                runtime.block_on(async {
                    let server = match export(&conf, &socket, size).await {
                        Ok(server) => server,
                        Err(error) => return drop(ready.send(Err(error))),
                    };
                    let thread = std::fs::read_link("/proc/thread-self").ok();
                    let file =
                        thread.map(|thread| Path::new("/proc").join(thread).join("schedstat"));
                    let _ = ready.send(Ok(file));
                    let _ = stopped.await;
                    server.shutdown(GRACE).await;
                });
            });
            if let Err(error) = served {
                tracing::error!(%error, "the export cannot start");
            }
        };
        let thread = std::thread::Builder::new().name("export".to_owned()).spawn(work);
        let thread = thread.map_err(|error| failed("cannot start a thread", error))?;
        let died = |_| Error::new(Kind::Closed, "the export's thread has ended");
        let statistics = started.await.map_err(died)??;
        Ok(Self { stop: Some(stop), thread: Some(thread), statistics })
    }

    /// How long the thread has been on a processor. Exact while it waits.
    fn cpu(&self) -> Option<Duration> {
        let statistics = std::fs::read_to_string(self.statistics.as_ref()?).ok()?;
        let nanoseconds = statistics.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn export(conf: &Path, socket: &Path, size: u64) -> Result<Server> {
    let args = Args { conf: Some(conf.display().to_string()), ..Args::default() };
    let config = Config::load(&args, &Alone);
    let config = config.map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
    let cluster = Cluster::connect(config).await?;
    let pool = cluster.pool(POOL).await?;
    admin::create(&pool, IMAGE, &CreateOptions::new(size)).await.context("creating the image")?;
    let image = Image::open(&pool, IMAGE, &OpenOptions::default()).await?;
    let exports = Exports::new(vec![Export::new(IMAGE, ImageDevice::new(image))]);
    let exports = exports.map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
    let server = Server::new(exports);
    server.listen_unix(socket, 0o600).map_err(|error| failed(socket.display(), error))?;
    Ok(server)
}

/// This machine without what it knows of other clusters.
struct Alone;

impl Environment for Alone {
    fn var(&self, _name: &str) -> Option<String> {
        None
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Process.read(path)
    }

    fn hostname(&self) -> String {
        Process.hostname()
    }

    fn pid(&self) -> u32 {
        Process.pid()
    }
}

/// Has a request carried out for each of these offsets, so many at a time, and every outcome accepted.
async fn run(
    client: &mut Client<UnixStream>,
    mut offsets: impl Iterator<Item = u64>,
    in_flight: usize,
    request: impl Fn(u64) -> Op,
    mut accept: impl FnMut(u64, Outcome) -> bool,
) -> Result<()> {
    let mut done = Vec::new();
    loop {
        let free = in_flight - client.in_flight();
        for offset in offsets.by_ref().take(free) {
            client.submit(Request { token: offset, op: request(offset) });
        }
        if client.in_flight() == 0 {
            return Ok(());
        }
        client.completions(&mut done).await.map_err(nbd_error)?;
        for Completion { token: offset, result } in done.drain(..) {
            let outcome = result.map_err(|errno| {
                let what = format!("the export failed at byte {offset}");
                Error::from_errno(errno.number() as i32, what)
            })?;
            if !accept(offset, outcome) {
                let what = format!("what the export says of byte {offset} is not what was written");
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
    }
}

/// What belongs at an offset: bytes that look random and are different everywhere.
fn content(offset: u64, len: u64) -> Bytes {
    let words = offset / 8..(offset + len) / 8;
    words.flat_map(|word| scatter(word).to_le_bytes()).collect::<Vec<u8>>().into()
}

/// A number that looks random for each number (SplitMix64).
fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn speed(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    format!("{} in {seconds:.2} s, {:.0} MB/s", Size(bytes), bytes as f64 / 1e6 / seconds)
}

/// A folder for configuration and socket that only we may look into. Removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("rbd-nbd-rs-demo-{}", std::process::id()));
        let created = std::fs::DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|error| failed(path.display(), error))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "left behind");
        }
    }
}

fn runtime() -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| failed("cannot start", error))
}

/// Ready when somebody wants an end. From the call on, signals do nothing else.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let catch = |kind| signal(kind).map_err(|error| failed("signals", error));
    let (mut interrupt, mut terminate) =
        (catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn failed(what: impl std::fmt::Display, error: io::Error) -> Error {
    let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
    Error::new(kind, what.to_string()).with_source(error)
}

fn nbd_error(error: ClientError) -> Error {
    Error::new(Kind::Os(5), "the export").with_source(error)
}

//! What one operation costs through the whole client: image, objecter, messenger, socket. The cluster is devcluster, in
//! a thread of its own; ours is the thread that is measured.
//!
//! `cargo bench --bench client`; with `-- --test` everything is run once, to see that it works. `elapsed` is time per
//! operation, `cpu` what our thread used of it: the figure that does not depend on what else the machine does. The
//! image has a lock, which we hold, and an object map; what they add to a write is measured at last: it must be little.

mod support;

use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::config::{Args, Config, Environment};
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::{Image, Io, OpenOptions, Queue};
use criterion::{BenchmarkGroup, Criterion, Throughput};
use devcluster::{ConnectionMode, DevCluster, Options};
use proto::rbd::Features;
use support::{CpuTime, thread_cpu};
use tokio::runtime::Runtime;

const IMAGE_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;

/// How many times as much CPU a write may take with lock and object map as without.
const LOCK_AND_OBJECT_MAP: f64 = 1.1;

fn main() {
    let mut c = support::criterion();
    client(&mut c);
    c.final_summary();
    lock_and_object_map();
}

fn client(c: &mut Criterion<CpuTime>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (mode, depths) in [(ConnectionMode::Crc, &[1, 32][..]), (ConnectionMode::Secure, &[32])] {
        let options = Options { osd_modes: vec![mode], ..Options::default() };
        let cluster = runtime.block_on(DevCluster::start(options)).unwrap();
        let image = runtime.block_on(async {
            let client = connect(&cluster).await;
            written_image(&client, "bench", CreateOptions::new(IMAGE_BYTES)).await
        });
        for &depth in depths {
            let name = format!("4 KiB, {mode:?}, depth {depth}").to_lowercase();
            let mut group = c.benchmark_group(name);
            let mut run = Run { queue: image.queue(), depth, state: 1 };
            bench(&mut group, "read", &runtime, &mut run, |offset| Io::Read {
                offset,
                length: BLOCK,
            });
            let data = Bytes::from(vec![0x5a; BLOCK as usize]);
            bench(&mut group, "write", &runtime, &mut run, |offset| Io::Write {
                offset,
                data: data.clone(),
            });
        }
        drop(image);
        runtime.block_on(cluster.stop());
    }
}

fn bench(
    group: &mut BenchmarkGroup<'_, CpuTime>,
    name: &str,
    runtime: &Runtime,
    run: &mut Run,
    io: impl Fn(u64) -> Io,
) {
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("{name}, elapsed"), |b| {
        b.iter_custom(|n| {
            let begun = Instant::now();
            runtime.block_on(run.go(n, &io));
            begun.elapsed()
        });
    });
    group.bench_function(format!("{name}, cpu"), |b| {
        b.iter_custom(|n| {
            let begun = thread_cpu();
            runtime.block_on(run.go(n, &io));
            thread_cpu() - begun
        });
    });
}

/// Operations at random places, so many at a time.
struct Run {
    queue: Queue,
    depth: u64,
    state: u64,
}

impl Run {
    async fn go(&mut self, n: u64, io: impl Fn(u64) -> Io) {
        let (mut submitted, mut completed) = (0, 0);
        let mut done = Vec::new();
        while completed < n {
            while submitted < n && submitted - completed < self.depth {
                let io = io(self.place());
                self.queue.submit(submitted, io);
                submitted += 1;
            }
            self.queue.kick();
            poll_fn(|cx| self.queue.poll_completions(cx, &mut done)).await;
            completed += done.len() as u64;
            for completion in done.drain(..) {
                completion.result.unwrap();
            }
        }
    }

    /// A block of the image (xorshift).
    fn place(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % (IMAGE_BYTES / BLOCK) * BLOCK
    }
}

/// The same writes to an image with a lock and an object map, and to one with neither, in turns.
fn lock_and_object_map() {
    let quick = std::env::args().any(|arg| arg == "--test");
    let (rounds, writes) = if quick { (1, 32) } else { (31, 3200) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cluster = runtime.block_on(DevCluster::start(Options::default())).unwrap();
    let images = runtime.block_on(async {
        let client = connect(&cluster).await;
        let with = CreateOptions::new(IMAGE_BYTES);
        assert!(with.features.contains(Features::EXCLUSIVE_LOCK | Features::OBJECT_MAP));
        let without = CreateOptions { features: Features::LAYERING, ..with.clone() };
        [
            written_image(&client, "plain", without).await,
            written_image(&client, "mapped", with).await,
        ]
    });
    let data = Bytes::from(vec![0x5a; BLOCK as usize]);
    for depth in [1, 32] {
        let mut runs = images.each_ref().map(|image| Run { queue: image.queue(), depth, state: 1 });
        let mut took = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (run, took) in runs.iter_mut().zip(&mut took) {
                let begun = thread_cpu();
                runtime.block_on(run.go(writes, |offset| Io::Write { offset, data: data.clone() }));
                took.push((thread_cpu() - begun).as_secs_f64() * 1e6 / writes as f64);
            }
        }
        let [plain, mapped] = took.map(|mut took| {
            took.sort_by(f64::total_cmp);
            took[took.len() / 2]
        });
        println!(
            "4 KiB write, depth {depth}, cpu: plain {plain:.2} µs, with lock and object map \
             {mapped:.2} µs: {:.3} times",
            mapped / plain
        );
        assert!(quick || mapped < LOCK_AND_OBJECT_MAP * plain, "that is too much");
    }
    runtime.block_on(cluster.stop());
}

async fn connect(cluster: &DevCluster) -> Cluster {
    let args = Args { conf: Some("ceph.conf".to_owned()), ..Args::default() };
    Cluster::connect(Config::load(&args, &Files(cluster)).unwrap()).await.unwrap()
}

/// An image that is written in full.
async fn written_image(client: &Cluster, name: &str, options: CreateOptions) -> Image {
    let pool = client.pool("rbd").await.unwrap();
    admin::create(&pool, name, &options).await.unwrap();
    let image = Image::open(&pool, name, &OpenOptions::default()).await.unwrap();
    let mut queue = image.queue();
    let data = Bytes::from(vec![1; 1 << 20]);
    for offset in (0..IMAGE_BYTES).step_by(1 << 20) {
        queue.submit(offset, Io::Write { offset, data: data.clone() });
        queue.kick();
        let mut done = Vec::new();
        poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
        done.pop().unwrap().result.unwrap();
    }
    image
}

/// A machine with nothing on it but the cluster's configuration.
struct Files<'a>(&'a DevCluster);

impl Environment for Files<'_> {
    fn var(&self, _name: &str) -> Option<String> {
        None
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("ceph.conf") => Ok(self.0.conf(Path::new("keyring")).into_bytes()),
            Some("keyring") => Ok(self.0.keyring().into_bytes()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "localhost".to_owned()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }
}

//! `bench`: how fast an image is read and written.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::{Image, Io, OpenOptions, Queue};
use clap::ValueEnum;

use crate::output::{Format, Tree, print};
use crate::size::{self, Bytes as Size};
use crate::spec::ImageArgs;

/// Benchmarks an image. Writing overwrites what is there.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Bench {
    #[command(flatten)]
    image: ImageArgs,
    /// What to do.
    #[arg(long, value_name = "TYPE")]
    io_type: IoType,
    /// Size of each request.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, default_value = "4K")]
    io_size: u64,
    /// Requests in flight.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    io_threads: u32,
    /// Bytes to read and write in all.
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, default_value = "1G")]
    io_total: u64,
    /// In which order.
    #[arg(long, value_name = "PATTERN", default_value = "seq")]
    io_pattern: Pattern,
    /// How many of a hundred requests of readwrite are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    rw_mix_read: u8,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum IoType {
    Read,
    Write,
    #[value(name = "readwrite", alias = "rw")]
    ReadWrite,
}

impl IoType {
    fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::ReadWrite => "readwrite",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pattern {
    /// Anywhere.
    Rand,
    /// Each of the requests in flight goes through a part of its own.
    Seq,
    /// All go through the image together.
    FullSeq,
}

impl Pattern {
    fn name(self) -> &'static str {
        match self {
            Self::Rand => "random",
            Self::Seq => "sequential",
            Self::FullSeq => "full sequential",
        }
    }
}

impl Bench {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let invalid = |what: String| Err(Error::new(Kind::Invalid, what));
        if self.io_size == 0 || self.io_size > u64::from(u32::MAX) {
            return invalid("--io-size should be greater than zero and less than 4G".to_owned());
        }
        if self.io_threads == 0 {
            return invalid("--io-threads should be greater than zero".to_owned());
        }
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let read_only = self.io_type == IoType::Read;
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let image = Image::open(&pool, &spec.image, &options).await?;
        if self.io_size > image.size() {
            let (size, image_size) = (Size(self.io_size), Size(image.size()));
            image.close().await;
            return invalid(format!("io-size {size} larger than image size {image_size}"));
        }
        if self.format.is_plain() {
            print(&self.heading())?;
        }
        let done = Run::new(&self, image.size()).go(&mut image.queue()).await;
        image.close().await;
        let done = done?;
        self.format.print("bench", || self.tree(&done), || self.plain(&done))
    }

    fn heading(&self) -> String {
        let mix = match self.io_type {
            IoType::ReadWrite => {
                format!(" read:write={}:{}", self.rw_mix_read, 100 - self.rw_mix_read)
            }
            _ => String::new(),
        };
        format!(
            "bench  type {}{mix} io_size {} io_threads {} bytes {} pattern {}\n  \
             SEC       OPS   OPS/SEC   BYTES/SEC\n",
            self.io_type.name(),
            self.io_size,
            self.io_threads,
            self.io_total,
            self.io_pattern.name(),
        )
    }

    fn plain(&self, done: &Done) -> String {
        let rate = |ops| done.rate(ops);
        let bytes = |ops| Size(done.rate(ops * self.io_size) as u64);
        let ops = done.reads + done.writes;
        let mut out = format!(
            "elapsed: {}   ops: {ops}   ops/sec: {}   bytes/sec: {}/s\n",
            done.elapsed.as_secs(),
            six_digits(rate(ops)),
            bytes(ops)
        );
        if self.io_type == IoType::ReadWrite {
            for (name, ops) in [("read", done.reads), ("write", done.writes)] {
                out += &format!(
                    "{name}_ops: {ops}   {name}_ops/sec: {}   {name}_bytes/sec: {}/s\n",
                    six_digits(rate(ops)),
                    bytes(ops)
                );
            }
        }
        out
    }

    fn tree(&self, done: &Done) -> Tree {
        let rate = |ops| done.rate(ops) as u64;
        let ops = done.reads + done.writes;
        let mut fields = vec![
            ("type", self.io_type.name().into()),
            ("io_size", self.io_size.into()),
            ("io_threads", u64::from(self.io_threads).into()),
            ("bytes", self.io_total.into()),
            ("pattern", self.io_pattern.name().into()),
            ("elapsed_us", (done.elapsed.as_micros() as u64).into()),
            ("ops", ops.into()),
            ("ops_per_sec", rate(ops).into()),
            ("bytes_per_sec", rate(ops * self.io_size).into()),
        ];
        if self.io_type == IoType::ReadWrite {
            fields.extend([
                ("read_ops", done.reads.into()),
                ("read_ops_per_sec", rate(done.reads).into()),
                ("write_ops", done.writes.into()),
                ("write_ops_per_sec", rate(done.writes).into()),
            ]);
        }
        Tree::Object(fields)
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    elapsed: Duration,
    reads: u64,
    writes: u64,
}

impl Done {
    fn rate(&self, count: u64) -> f64 {
        match self.elapsed.is_zero() {
            true => 0.0,
            false => count as f64 / self.elapsed.as_secs_f64(),
        }
    }
}

/// A benchmark while it runs.
struct Run<'a> {
    bench: &'a Bench,
    offsets: Offsets,
    data: Bytes,
    total: u64,
    begun: u64,
    done: Done,
}

impl<'a> Run<'a> {
    fn new(bench: &'a Bench, image_size: u64) -> Self {
        Self {
            bench,
            offsets: Offsets::new(bench, image_size),
            data: vec![0xa5; bench.io_size as usize].into(),
            total: bench.io_total / bench.io_size,
            begun: 0,
            done: Done::default(),
        }
    }

    async fn go(mut self, queue: &mut Queue) -> Result<Done> {
        let start = Instant::now();
        for thread in 0..u64::from(self.bench.io_threads).min(self.total) {
            self.submit(queue, thread);
        }
        queue.kick();
        let mut completions = Vec::new();
        // Operations done at the end of each second, of which the last few tell the current speed.
        let mut seconds = vec![0];
        while self.done.reads + self.done.writes < self.total {
            poll_fn(|cx| queue.poll_completions(cx, &mut completions)).await;
            for completion in completions.drain(..) {
                completion.result?;
                let (thread, reads) = (completion.token >> 1, completion.token & 1 == 1);
                let count = if reads { &mut self.done.reads } else { &mut self.done.writes };
                *count += 1;
                if self.begun < self.total {
                    self.submit(queue, thread);
                }
            }
            queue.kick();
            if self.bench.format.is_plain() && start.elapsed().as_secs() >= seconds.len() as u64 {
                seconds.push(self.done.reads + self.done.writes);
                print(&self.second(&seconds))?;
            }
        }
        self.done.elapsed = start.elapsed();
        Ok(self.done)
    }

    fn submit(&mut self, queue: &mut Queue, thread: u64) {
        let offset = self.offsets.next(thread);
        let reads = match self.bench.io_type {
            IoType::Read => true,
            IoType::Write => false,
            IoType::ReadWrite => self.offsets.random() % 100 < u64::from(self.bench.rw_mix_read),
        };
        let io = match reads {
            true => Io::Read { offset, length: self.bench.io_size },
            false => Io::Write { offset, data: self.data.clone() },
        };
        queue.submit(thread << 1 | u64::from(reads), io);
        self.begun += 1;
    }

    fn second(&self, seconds: &[u64]) -> String {
        const WINDOW: usize = 5;

        let now = seconds.len() - 1;
        let from = now.saturating_sub(WINDOW);
        let count = |second: usize| seconds.get(second).copied().unwrap_or(0);
        let rate = (count(now) - count(from)) as f64 / (now - from).max(1) as f64;
        let bytes = Size((rate * self.bench.io_size as f64) as u64);
        format!("{now:>5}{:>10}{:>10}{bytes:>10}/s\n", count(now), six_digits(rate))
    }
}

/// Where the next request goes.
struct Offsets {
    pattern: Pattern,
    io_size: u64,
    /// Requests that fit into the image.
    slots: u64,
    /// Of each request in flight, the slot that it takes next.
    next: Vec<u64>,
    random: u64,
}

impl Offsets {
    fn new(bench: &Bench, image_size: u64) -> Self {
        let (slots, threads) = (image_size / bench.io_size, u64::from(bench.io_threads));
        let mut seed = [0; 8];
        // Without random bytes the benchmark is as good with the same numbers every time.
        let _ = getrandom::fill(&mut seed);
        Self {
            pattern: bench.io_pattern,
            io_size: bench.io_size,
            slots,
            next: (0..threads)
                .map(|thread| match bench.io_pattern {
                    Pattern::FullSeq => thread,
                    _ => (slots / threads).max(1) * thread % slots,
                })
                .collect(),
            random: u64::from_le_bytes(seed) | 1,
        }
    }

    fn next(&mut self, thread: u64) -> u64 {
        let threads = self.next.len() as u64;
        let slot = match self.pattern {
            Pattern::Rand => self.random() % self.slots,
            pattern => {
                let step = if pattern == Pattern::FullSeq { threads } else { 1 };
                match self.next.get_mut(thread as usize) {
                    Some(next) => std::mem::replace(next, (*next + step) % self.slots),
                    None => 0,
                }
            }
        };
        slot % self.slots * self.io_size
    }

    /// Marsaglia's xorshift64: any good mixture will do.
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// A number in six digits, without zeros at the end: 30117.6, 8000.
fn six_digits(value: f64) -> String {
    let digits = value.max(1.0).log10().floor() as usize + 1;
    let text = format!("{value:.*}", 6usize.saturating_sub(digits));
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_rbd_prints_them() {
        for (value, text) in
            [(30117.6471, "30117.6"), (8000.0, "8000"), (0.0, "0"), (544.1176, "544.118")]
        {
            assert_eq!(six_digits(value), text);
        }
    }

    #[test]
    fn requests_stay_within_the_image() {
        for pattern in [Pattern::Rand, Pattern::Seq, Pattern::FullSeq] {
            let mut offsets =
                Offsets { pattern, io_size: 4096, slots: 10, next: vec![0, 2, 9], random: 7 };
            let all: Vec<_> = (0..300).map(|i| offsets.next(i % 3)).collect();
            assert!(all.iter().all(|offset| *offset <= 9 * 4096 && offset % 4096 == 0));
            assert!(all.iter().collect::<std::collections::BTreeSet<_>>().len() > 5);
        }
    }
}

//! Opening an image, its first write, which takes the lock, and closing it: ours and librbd's, in turns, on one
//! memstore OSD of Ceph 16. `cargo bench --bench open`; with `-- --test` once each.

#[path = "../tests/support/mod.rs"]
mod support;

use std::future::poll_fn;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::config::{Args, Config, Process};
use ceph_native::image::{Image, Io, OpenOptions};
use ceph_native::pool::Pool;
use support::{Ceph, Options};

/// The same by librbd, each time it is asked to by a line. Its cache is off, as we have none: a write is done when it
/// is on disk.
const LIBRBD: &str = "
import rados, rbd, sys, time
cluster = rados.Rados(conffile=sys.argv[1])
cluster.conf_set('rbd_cache', 'false')
cluster.connect()
pool = cluster.open_ioctx('rbd')
for line in sys.stdin:
    times = [time.perf_counter()]
    image = rbd.Image(pool, 'bench')
    times.append(time.perf_counter())
    image.write(bytes(4096), 0)
    times.append(time.perf_counter())
    image.close()
    times.append(time.perf_counter())
    print(*(after - before for before, after in zip(times, times[1:])), flush=True)
";

fn main() {
    let rounds = if std::env::args().any(|arg| arg == "--test") { 1 } else { 31 };
    let ceph = Ceph::start(Options::default());
    ceph.rbd(&["create", "bench", "--size", "10G"]);
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", LIBRBD, ceph.conf().to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, answers) = (python.stdin.take().unwrap(), python.stdout.take().unwrap());
    let mut answers = BufReader::new(answers).lines();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let pool = runtime.block_on(async {
        let conf = Some(ceph.conf().display().to_string());
        let config = Config::load(&Args { conf, ..Args::default() }, &Process).unwrap();
        Cluster::connect(config).await.unwrap().pool("rbd").await.unwrap()
    });
    let mut steps = [const { [const { Vec::new() }; 2] }; 3];
    for _ in 0..rounds {
        let ours = runtime.block_on(once(&pool));
        writeln!(ask).unwrap();
        let line = answers.next().expect("python3-rbd").unwrap();
        let theirs: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        for (step, [by_us, by_librbd]) in steps.iter_mut().enumerate() {
            by_us.push(ours[step].as_secs_f64());
            by_librbd.push(theirs[step]);
        }
    }
    drop(ask);
    python.wait().unwrap();
    println!("| median of {rounds}, in turns | ours | librbd |\n|---|--:|--:|");
    for (what, step) in ["open", "first write: lock, object map", "close"].iter().zip(steps) {
        let [ours, theirs] = step.map(|mut took| {
            took.sort_by(f64::total_cmp);
            took[took.len() / 2] * 1e3
        });
        println!("| {what} | {ours:.2} ms | {theirs:.2} ms |");
    }
}

async fn once(pool: &Pool) -> [Duration; 3] {
    let begun = Instant::now();
    let image = Image::open(pool, "bench", &OpenOptions::default()).await.unwrap();
    let opened = Instant::now();
    let mut queue = image.queue();
    queue.submit(0, Io::Write { offset: 0, data: Bytes::from(vec![0; 4096]) });
    queue.kick();
    let mut done = Vec::new();
    poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
    done.pop().unwrap().result.unwrap();
    let written = Instant::now();
    drop(queue);
    image.close().await;
    [opened - begun, written - opened, written.elapsed()]
}

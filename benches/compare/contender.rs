//! Who is measured, and how: fio drives each of them with the same workload.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::IMAGE_MEGABYTES;
use crate::support::{Ceph, Serve};

/// The image that all of them serve. None keeps anything in memory, so none sees what another wrote too late.
const IMAGE: &str = "compare";

/// A random workload of fio.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    pub(crate) size: &'static str,
    pub(crate) depth: u32,
}

/// What one contender did in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) iops: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// User and system time, per operation, of the process that speaks to the cluster.
    pub(crate) cpu_us: f64,
    /// The same of fio, where it is but the NBD client.
    pub(crate) client_cpu_us: Option<f64>,
}

impl Sample {
    /// The median of each figure on its own.
    pub(crate) fn median(samples: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<_> = samples.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            iops: of(|s| s.iops),
            p50_us: of(|s| s.p50_us),
            p99_us: of(|s| s.p99_us),
            cpu_us: of(|s| s.cpu_us),
            client_cpu_us: samples[0].client_cpu_us.map(|_| of(|s| s.client_cpu_us.unwrap_or(0.0))),
        }
    }
}

/// Something that gives fio an image.
pub(crate) enum Contender {
    /// `rbd-nbd-rs serve`.
    Ours(Serve),
    /// `qemu-nbd` with its rbd driver, which is librbd.
    QemuNbd { child: Child, socket: PathBuf },
    /// fio's rbd engine: librbd and nothing else.
    Librbd,
}

/// Makes the image and starts all that serve it.
pub(crate) fn start(ceph: &Ceph) -> Vec<Contender> {
    let size = format!("{IMAGE_MEGABYTES}M");
    ceph.rbd(&["create", "--size", &size, "--image-feature", "layering", IMAGE]);
    let fill = ["--io-type", "write", "--io-size", "4M", "--io-total", &size, IMAGE];
    ceph.rbd(&[&["bench"], &fill[..]].concat());

    let socket = ceph.dir().join("qemu-nbd.sock");
    let child = Command::new("qemu-nbd")
        .args(["--persistent", "--shared=8", "--format=raw", "--cache=none", "--discard=unmap"])
        .args(["--export-name", IMAGE, "--socket", socket.to_str().unwrap()])
        .arg(format!("rbd:rbd/{IMAGE}:conf={}:rbd_cache=false", ceph.conf().display()))
        .stdin(Stdio::null())
        .stderr(File::create(ceph.dir().join("qemu-nbd.log")).unwrap())
        .spawn()
        .expect("qemu-nbd: tests/install installs it");
    ceph.reap(child.id());
    while UnixStream::connect(&socket).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ours = Contender::Ours(ceph.serve(&[&format!("rbd/{IMAGE}")]));
    vec![ours, Contender::Librbd, Contender::QemuNbd { child, socket }]
}

impl Contender {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "rbd-nbd-rs",
            Self::QemuNbd { .. } => "qemu-nbd",
            Self::Librbd => "librbd (fio)",
        }
    }

    /// Runs a workload once.
    pub(crate) fn measure(&self, ceph: &Ceph, workload: &Workload, seconds: u32) -> Sample {
        let (target, server) = match self {
            Self::Ours(serve) => {
                (vec![nbd(&serve.uri(&format!("rbd/{IMAGE}")))], Some(serve.pid()))
            }
            Self::QemuNbd { child, socket } => (
                vec![nbd(&format!("nbd+unix:///{IMAGE}?socket={}", socket.display()))],
                Some(child.id()),
            ),
            Self::Librbd => (vec!["--ioengine=rbd --clientname=admin --pool=rbd".to_owned()], None),
        };
        let mut target: Vec<_> = target.iter().flat_map(|options| options.split(' ')).collect();
        let name = format!("--rbdname={IMAGE}");
        if server.is_none() {
            target.push(&name);
        }
        let rw = format!("--rw={}", if workload.write { "randwrite" } else { "randread" });
        let (bs, depth) =
            (format!("--bs={}", workload.size), format!("--iodepth={}", workload.depth));
        let (size, runtime) =
            (format!("--size={IMAGE_MEGABYTES}M"), format!("--runtime={seconds}"));
        let args = ["--name=compare", &rw, &bs, &depth, &size, "--norandommap=1"];
        let more = ["--randrepeat=0", "--output-format=json"];
        let timed = ["--time_based=1", &runtime];

        // What fio costs before and after its first operation is not the operations' cost.
        let idle = fio_cpu_us();
        ceph.run("fio", &[&args[..], &more, &target, &["--number_ios=1"]].concat()).ok();
        let before = (server.map(cpu_us), fio_cpu_us());
        let report = ceph.run("fio", &[&args[..], &more, &target, &timed].concat()).ok();
        let server_us = server.map(cpu_us).zip(before.0).map(|(after, before)| after - before);
        let fio_us = fio_cpu_us() - before.1 - (before.1 - idle);

        let report = report.find("\n{").map_or(report.as_str(), |at| &report[at..]);
        let report: serde_json::Value = serde_json::from_str(report).expect("fio's JSON");
        let job = &report["jobs"][0];
        let done = &job[if workload.write { "write" } else { "read" }];
        let number = |value: &serde_json::Value| {
            value.as_f64().unwrap_or_else(|| panic!("no figure: {report}"))
        };
        let ops = number(&done["total_ios"]);
        let percentiles = &done["clat_ns"]["percentile"];
        Sample {
            iops: number(&done["iops"]),
            p50_us: number(&percentiles["50.000000"]) / 1000.0,
            p99_us: number(&percentiles["99.000000"]) / 1000.0,
            cpu_us: server_us.unwrap_or(fio_us) / ops,
            client_cpu_us: server.map(|_| fio_us / ops),
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Self::QemuNbd { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn nbd(uri: &str) -> String {
    format!("--ioengine=nbd --uri={uri}")
}

/// User and system time of all threads that a process has or had.
fn cpu_us(pid: u32) -> f64 {
    stat_us(&pid.to_string(), 14)
}

/// The same of all processes that were run to their end here, and of theirs: each fio adds its own to it.
fn fio_cpu_us() -> f64 {
    stat_us("self", 16)
}

/// A sum of user and system time, of which `field` of proc(5)'s stat is the first. It counts hundredths of a second
/// (`USER_HZ`, which is 100 on every architecture we run on), so only sums over seconds mean something.
fn stat_us(process: &str, field: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the server runs");
    // The name, which is field 2, may contain spaces and ends in the last parenthesis.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 =
        fields[field - 3..field - 1].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 * 10_000.0
}

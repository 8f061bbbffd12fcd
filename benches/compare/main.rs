//! Us against librbd and qemu-nbd: operations per second, latency, and the CPU time of whatever serves the image, in
//! one run against one cluster. `benches/compare/run` runs it and says more.
//!
//! Absolute figures of one machine move by a factor of two from hour to hour. So all contenders take turns within each
//! round, what is reported is the median of the rounds, and ratios are within one run.

#[path = "../../tests/support/mod.rs"]
mod support;

mod contender;
mod plot;
mod report;

use contender::{Contender, Sample, Workload};
use support::{Ceph, Options};

/// What is measured. Random, over an image that is written in full.
const WORKLOADS: &[Workload] = &[
    Workload { name: "4K read, depth 1", write: false, size: "4k", depth: 1 },
    Workload { name: "4K write, depth 1", write: true, size: "4k", depth: 1 },
    Workload { name: "4K read, depth 32", write: false, size: "4k", depth: 32 },
    Workload { name: "4K write, depth 32", write: true, size: "4k", depth: 32 },
    Workload { name: "64K read, depth 16", write: false, size: "64k", depth: 16 },
    Workload { name: "64K write, depth 16", write: true, size: "64k", depth: 16 },
];

/// Size of the image. An OSD in memory has to hold it.
const IMAGE_MEGABYTES: u32 = 512;

/// The results on one kind of cluster: for each workload, of each contender, the median.
struct Results {
    cluster: &'static str,
    rows: Vec<(&'static Workload, Vec<(&'static str, Sample)>)>,
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (rounds, seconds) = if quick { (1, 1) } else { (3, 4) };
    // One after the other, so that neither takes cores from the other.
    let start: [(_, fn() -> Ceph); 2] = [
        ("Ceph 16, one memstore OSD", || Ceph::start(Options::default())),
        ("devcluster, one OSD", Ceph::devcluster),
    ];
    let results = start.map(|(cluster, start)| measure(cluster, &start(), rounds, seconds));
    for results in &results {
        print!("{}", report::table(results));
    }
    if !quick {
        report::write(&results);
    }
}

fn measure(cluster: &'static str, ceph: &Ceph, rounds: u32, seconds: u32) -> Results {
    let contenders = contender::start(ceph);
    let mut samples = vec![vec![Vec::new(); contenders.len()]; WORKLOADS.len()];
    for round in 1..=rounds {
        for (workload, samples) in WORKLOADS.iter().zip(&mut samples) {
            eprintln!("{cluster}: {}, round {round} of {rounds}", workload.name);
            for (contender, samples) in contenders.iter().zip(samples) {
                samples.push(contender.measure(ceph, workload, seconds));
            }
        }
    }
    let medians = |samples: &[Vec<Sample>]| {
        contenders
            .iter()
            .map(Contender::name)
            .zip(samples.iter().map(|s| Sample::median(s)))
            .collect()
    };
    Results { cluster, rows: WORKLOADS.iter().zip(samples.iter().map(|s| medians(s))).collect() }
}

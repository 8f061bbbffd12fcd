//! Block devices by us (by NBD and by ublk), by Ceph's `rbd-nbd` and by the kernel's own client, in one guest on one
//! cluster: operations per second, CPU time of the whole guest and of the process that serves the device, its memory,
//! and how long mapping takes. `benches/map/run` runs it and says more.

#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt::Write as _;

use support::{Ceph, Guest, Machine, Options, run};

/// What fio does: its name, `--rw`, `--bs` and `--iodepth`.
const WORKLOADS: &[(&str, &str, u32, u32)] = &[
    ("4K random read, depth 1", "randread", 4 << 10, 1),
    ("4K random write, depth 1", "randwrite", 4 << 10, 1),
    ("4K random read, depth 16", "randread", 4 << 10, 16),
    ("4K random write, depth 16", "randwrite", 4 << 10, 16),
    ("128K sequential read, depth 4", "read", 128 << 10, 4),
    ("128K sequential write, depth 4", "write", 128 << 10, 4),
];

/// Of the image, in MiB. It is written in full.
const IMAGE_MEGABYTES: u32 = 128;

/// The kernel counts CPU time in these, in microseconds.
const TICK: f64 = 10_000.0;

/// Who makes a device: a name, scripts that map (and print the device) and unmap it.
struct Contender {
    name: &'static str,
    map: String,
    unmap: &'static str,
}

/// How often the contenders take their turns: what the host does meanwhile is then the same for all, as far as it can
/// be. At depth 1 it matters even here, as the cluster answers in real time, and an answer that comes later costs more.
const ROUNDS: u32 = 3;

/// One run of fio.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    iops: f64,
    /// In microseconds per operation: of the guest, and of the process that serves.
    guest: f64,
    process: f64,
}

/// Of one contender.
#[derive(Debug, Default)]
struct Results {
    /// Of each workload one per round.
    samples: [Vec<Sample>; WORKLOADS.len()],
    /// In seconds, one after the other.
    maps: Vec<f64>,
    /// Of the process, in MiB: mapped, and after all that was done.
    memory: Option<(f64, f64)>,
    threads: Option<String>,
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let (seconds, rounds) = if quick { (1, 1) } else { (4, ROUNDS) };
    let ceph = Ceph::start(Options::default());
    let file = ceph.dir().join("random");
    let random = format!("head -c {IMAGE_MEGABYTES}M /dev/urandom > {}", file.display());
    run("sh", &["-c", &random]).ok();
    let features = "layering,exclusive-lock,object-map,fast-diff";
    let import = ["import", "--no-progress", "--image-feature", features];
    ceph.rbd(&[&import[..], &[file.to_str().unwrap(), "perf"]].concat());
    let guest =
        Guest::boot_on(Machine { debian: true, counted: true, ..Machine::default() }, &ceph);
    let contenders = contenders(&ceph);
    guest.ok("modprobe nbd; modprobe ublk_drv; modprobe rbd");
    let mut results: Vec<_> = contenders.iter().map(|_| Results::default()).collect();
    for round in 0..rounds {
        for (contender, results) in contenders.iter().zip(&mut results) {
            eprintln!("{}, round {}", contender.name, round + 1);
            measure(&guest, contender, seconds, results);
        }
    }
    let table = table(&contenders, &results);
    print!("{table}");
    if !quick {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/performance/map.md");
        std::fs::write(path, table).unwrap();
        let [nbd, ublk, peer, _] = &results[..] else { panic!("{} contenders", results.len()) };
        judge(nbd, ublk, peer);
    }
}

/// What `docs/performance.md` claims: by ublk half of what the peer takes, and a tenth of that for what the host does
/// meanwhile.
fn judge(nbd: &Results, ublk: &Results, peer: &Results) {
    for (at, (workload, ..)) in WORKLOADS.iter().enumerate() {
        let ratio = ublk.guest(at) / peer.guest(at);
        assert!(ratio < 0.55, "{workload}: {ratio:.2} of the peer's CPU");
    }
    for ours in [nbd, ublk] {
        let (map, theirs) = (median(ours.maps.clone()), median(peer.maps.clone()));
        assert!(map < theirs, "mapping took {map} s, the peer {theirs} s");
        let memory = ours.memory.map_or(0.0, |(mapped, after)| mapped.max(after));
        assert!(memory < 16.0, "{memory} MiB");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Results {
    /// CPU of the guest per operation of a workload, in microseconds.
    fn guest(&self, workload: usize) -> f64 {
        median(self.samples[workload].iter().map(|sample| sample.guest).collect())
    }
}

fn contenders(ceph: &Ceph) -> Vec<Contender> {
    let keyring = ceph.keyring();
    let key = ["-p", "-n", "client.admin", keyring.to_str().unwrap()];
    let key = ceph.run("ceph-authtool", &key).ok();
    let options = format!("name=admin,secret={},ms_mode=prefer-crc", key.trim());
    let krbd = format!(
        "echo '{} {options} rbd perf -' > /sys/bus/rbd/add_single_major; echo /dev/rbd0",
        ceph.mon_addr(0)
    );
    vec![
        Contender {
            name: "ceph-native",
            map: "rbd-nbd-rs map rbd/perf".into(),
            unmap: "rbd-nbd-rs unmap rbd/perf",
        },
        Contender {
            name: "… by ublk",
            map: "rbd-nbd-rs map rbd/perf --device-type ublk".into(),
            unmap: "rbd-nbd-rs unmap rbd/perf",
        },
        Contender {
            name: "rbd-nbd 18",
            map: "chroot /debian /usr/bin/rbd-nbd map rbd/perf".into(),
            unmap: "chroot /debian /usr/bin/rbd-nbd unmap rbd/perf",
        },
        Contender { name: "krbd", map: krbd, unmap: "echo 0 > /sys/bus/rbd/remove_single_major" },
    ]
}

fn measure(guest: &Guest, contender: &Contender, seconds: u32, results: &mut Results) {
    let Contender { map, unmap, .. } = contender;
    let times = |line: &str| -> Vec<f64> {
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    // The first one also reads its program.
    for first in [true, false, false] {
        let out = guest.ok(&format!(
            "sync; cut -d' ' -f1 /proc/uptime; {map} > /tmp/device; cut -d' ' -f1 /proc/uptime; {unmap}; sleep 1"
        ));
        let [before, after] = times(&out)[..] else { panic!("{out}") };
        if !first {
            results.maps.push(after - before);
        }
    }
    guest.ok(&format!("{map} > /tmp/device"));
    let memory = || {
        let out = guest.ok("PID=$(pidof rbd-nbd || true); [ -n \"$PID\" ] || exit 0
             grep -E 'VmRSS|Threads' /proc/$PID/status");
        let mut words = out.split_whitespace();
        let kilobytes = words.nth(1).and_then(|word| word.parse::<f64>().ok());
        (kilobytes.map(|kilobytes| kilobytes / 1024.0), words.next_back().map(str::to_owned))
    };
    let (mapped, threads) = memory();
    for ((_, rw, size, depth), samples) in WORKLOADS.iter().zip(&mut results.samples) {
        // Looked at while fio is at work: what it takes to start it is not counted.
        let out = guest.ok(&format!(
            "DEV=$(cat /tmp/device); PID=$(pidof rbd-nbd || true)
             fio --name=x --filename=$DEV --size={IMAGE_MEGABYTES}M --direct=1 --ioengine=libaio --output=/tmp/fio \
                 --rw={rw} --bs={size} --iodepth={depth} --norandommap --time_based --runtime={} & FIO=$!
             look() {{
                 read -r UPTIME REST < /proc/uptime; read -r NAME CPU < /proc/stat
                 read -r STAT < /sys/block/${{DEV#/dev/}}/stat; PROCESS=
                 [ -z \"$PID\" ] || read -r PROCESS < /proc/$PID/stat
                 printf '%s\\n' $UPTIME \"$CPU\" \"$STAT\" \"${{PROCESS#*) }}\"
             }}
             sleep 1; look; sleep {seconds}; look; wait $FIO",
            seconds + 2
        ));
        let lines: Vec<_> = out.split('\n').map(times).collect();
        assert_eq!(lines.len(), 9, "{out}");
        let [uptime, cpu, disk, process] = [0, 1, 2, 3].map(|line| {
            let (before, after) = (&lines[line], &lines[line + 4]);
            move |at: usize| after.get(at).unwrap_or(&0.0) - before.get(at).unwrap_or(&0.0)
        });
        // Sectors read and written.
        let operations = (disk(2) + disk(6)) * 512.0 / f64::from(*size);
        // The kernel measures when its one processor is idle or waits for I/O; the rest it takes samples of.
        let busy = uptime(0) * 1e6 - (cpu(3) + cpu(4)) * TICK;
        samples.push(Sample {
            iops: operations / uptime(0),
            guest: busy / operations,
            // In user space and in the kernel. (The state, which comes first, is no number.)
            process: (process(10) + process(11)) * TICK / operations,
        });
    }
    results.memory = mapped.zip(memory().0);
    results.threads = threads;
    guest.ok(&format!("{unmap}; sleep 1"));
}

fn table(contenders: &[Contender], results: &[Results]) -> String {
    let mut text = String::from(
        "# Block devices: ceph-native, rbd-nbd and krbd\n\n\
         Made by `benches/map/run`. One guest (Linux 6.12, software-emulated, one processor of which every\n\
         instruction takes 2 ns; a network card that segments and checks sums), one cluster (Ceph 16, one memstore\n\
         OSD, outside the guest and in real time), an image with an exclusive lock and an object map, fio with\n\
         `--direct=1`.\n\
         CPU is of the whole guest per operation, fio's included; in brackets, of the process that serves the device.\n\
         Medians of three rounds, in which each had its turn.\n\n|",
    );
    for contender in contenders {
        let _ = write!(text, " | {}", contender.name);
    }
    text += " |\n|---|";
    text += &"--:|".repeat(contenders.len());
    for (at, (workload, ..)) in WORKLOADS.iter().enumerate() {
        let _ = write!(text, "\n| {workload}: IOPS");
        for results in results {
            let iops = results.samples[at].iter().map(|sample| sample.iops).collect();
            let _ = write!(text, " | {:.0}", median(iops));
        }
        let _ = write!(text, " |\n| … CPU, µs");
        for results in results {
            let samples = &results.samples[at];
            let guest = results.guest(at);
            let process = median(samples.iter().map(|sample| sample.process).collect());
            match results.memory {
                Some(_) => drop(write!(text, " | {guest:.0} ({process:.0})")),
                None => drop(write!(text, " | {guest:.0}")),
            }
        }
        text += " |";
    }
    text += "\n| `map`, s";
    for results in results {
        let _ = write!(text, " | {:.2}", median(results.maps.clone()));
    }
    text += " |\n| memory when mapped, and after all this, MiB";
    for results in results {
        match results.memory {
            Some((mapped, after)) => drop(write!(text, " | {mapped:.1}, {after:.1}")),
            None => text += " | –",
        }
    }
    text += " |\n| threads";
    for results in results {
        let _ = write!(text, " | {}", results.threads.as_deref().unwrap_or("–"));
    }
    text += " |\n";
    text
}

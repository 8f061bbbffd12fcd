//! Results as Markdown, and the files under `docs/performance`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::contender::Sample;
use crate::support::run;
use crate::{Results, plot};

/// Writes the page and its plots.
pub(crate) fn write(results: &[Results]) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/performance");
    fs::create_dir_all(&folder).unwrap();
    let mut page = format!("# Compared with librbd and qemu-nbd\n\n{}\n", preamble());
    for (number, results) in results.iter().enumerate() {
        let plot = format!("compare-{}.svg", ["ceph", "devcluster"][number]);
        fs::write(folder.join(&plot), plot::svg(results)).unwrap();
        write!(
            page,
            "\n## {0}\n\n![CPU per operation and throughput on {0}]({plot})\n",
            results.cluster
        )
        .unwrap();
        write!(page, "{}", table(results)).unwrap();
    }
    fs::write(folder.join("compare.md"), page).unwrap();
    println!("\nwritten to docs/performance/compare.md");
}

/// One table of a cluster: a row for each workload and contender.
pub(crate) fn table(results: &Results) -> String {
    let mut table =
        "\n| workload | server | IOPS | × librbd | p50 µs | p99 µs | CPU µs/op | × librbd | \
                     client CPU µs/op |\n\
                     |---|---|--:|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for (workload, samples) in &results.rows {
        let librbd = librbd(samples);
        for (index, (name, s)) in samples.iter().enumerate() {
            let workload = if index == 0 { workload.name } else { "" };
            let client = s.client_cpu_us.map_or_else(|| "–".to_owned(), |us| format!("{us:.1}"));
            writeln!(
                table,
                "| {workload} | {name} | {:.0} | {:.2} | {:.0} | {:.0} | {:.1} | {:.2} | {client} |",
                s.iops,
                s.iops / librbd.iops,
                s.p50_us,
                s.p99_us,
                s.cpu_us,
                s.cpu_us / librbd.cpu_us,
            )
            .unwrap();
        }
    }
    table
}

/// What everybody is compared with.
pub(crate) fn librbd(samples: &[(&'static str, Sample)]) -> Sample {
    samples.iter().find(|(name, _)| name.starts_with("librbd")).expect("librbd is a contender").1
}

/// How, when, and on what it was measured.
fn preamble() -> String {
    let first_line = |program: &str, args: &[&str]| {
        let out = run(program, args).ok();
        out.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    format!(
        "Made by `benches/compare/run` on {date}, at {commit}.\n\n\
         Random I/O by fio to an image that was written in full, one job, medians of three rounds in which all take\n\
         turns. CPU is user and system time of the process that speaks to the cluster, per operation: our server's,\n\
         qemu-nbd's, and for librbd that of fio itself with its rbd engine, which needs no NBD. librbd's cache is\n\
         off. Everything shares the cores, the cluster too.\n\n\
         {cores} cores of {model}; Linux {kernel}; {ceph}; {fio}; {qemu}.",
        date = first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        commit = first_line(
            "git",
            &["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty"]
        ),
        model = model.trim_start_matches([' ', '\t', ':']),
        kernel = first_line("uname", &["-r"]),
        ceph = first_line("ceph", &["--version"]),
        fio = first_line("fio", &["--version"]),
        qemu = first_line("qemu-nbd", &["--version"]),
    )
}

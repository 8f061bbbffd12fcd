//! Mappings per second of our CRUSH beside those of Ceph's `crushtool`: both print every mapping, to nowhere.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use proto::crush::CrushMap;
use proto::denc::Encode;

use crate::maps;
use crate::ours::Options;
use crate::support::thread_cpu;

/// Prints how many mappings to three OSDs each does in a second of CPU time. `CRUSHTOOL` names another crushtool.
///
/// # Panics
/// If ours does fewer, but not if `is_test`, when only few are mapped.
pub(crate) fn beside(is_test: bool) {
    let inputs = if is_test { 1000 } else { 300_000 };
    let tool = std::env::var("CRUSHTOOL").unwrap_or_else(|_| "crushtool".into());
    if Command::new(&tool).arg("--version").output().is_err() {
        println!("{tool} is not installed: nothing to compare with");
        return;
    }
    let file = std::env::temp_dir().join(format!("crush-{}", std::process::id()));
    for (name, map) in
        [("12 OSDs, 2 levels", maps::small()), ("10,000 OSDs, 5 levels", maps::large())]
    {
        fs::write(&file, map.to_bytes()).expect("a temporary file");
        // In turns, three of each: the best counts, as whatever else runs here only slows them down.
        let took = || (ours_takes(&map, inputs), theirs_takes(&tool, &file, inputs));
        let rounds = [took(), took(), took()];
        let rate = |took: Option<Duration>| {
            f64::from(inputs) / took.unwrap_or_default().as_secs_f64().max(1e-3)
        };
        let ours = rate(rounds.iter().map(|(ours, _)| *ours).min());
        let theirs = rate(rounds.iter().map(|(_, theirs)| *theirs).min());
        println!("{name}: {ours:.0} mappings/s, crushtool {theirs:.0}, ratio {:.2}", ours / theirs);
        assert!(is_test || ours >= theirs, "ours is slower, which it must not be");
    }
    let _ = fs::remove_file(&file);
}

fn arguments(inputs: u32) -> String {
    format!("--test --show-mappings --rule 0 --num-rep 3 --min-x 0 --max-x {}", inputs - 1)
}

/// What our example takes, once the map is read.
fn ours_takes(map: &CrushMap, inputs: u32) -> Duration {
    let options =
        Options::parse(arguments(inputs).split(' ').map(str::to_owned)).expect("known options");
    let mut out = BufWriter::new(File::create("/dev/null").expect("it is always there"));
    let begun = thread_cpu();
    options.print(map, &mut out).and_then(|()| out.flush()).expect("it takes everything");
    thread_cpu() - begun
}

/// What crushtool takes, without what it takes for a single input: starting, and reading the map.
fn theirs_takes(tool: &str, file: &Path, inputs: u32) -> Duration {
    let run = |inputs| {
        let begun = children_cpu();
        let status = Command::new(tool)
            .arg("-i")
            .arg(file)
            .args(arguments(inputs).split(' '))
            .stdout(Stdio::null())
            .status()
            .expect("it ran before");
        assert!(status.success(), "{tool}: {status}");
        children_cpu() - begun
    };
    run(inputs).saturating_sub(run(1))
}

/// What all ended children of this process took, in user space and in the kernel, to 10 ms (proc(5): cutime, cstime).
fn children_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("proc is mounted");
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks =
        after_name.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse::<u64>().ok());
    Duration::from_millis(10 * ticks.sum::<u64>())
}

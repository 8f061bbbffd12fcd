//! Compares our CRUSH with Ceph's `crushtool`, mapping by mapping, on maps drawn at random.
//!
//! `corpus` replays the results that were kept, on any machine. `crushtool` draws new maps where that tool is
//! installed, and says from which seed: always the same 10, or for `tests/run --full` 300 others each time for that of
//! Ceph 16 and as many for that of 20. These variables change what it does:
//! - `CRUSHTOOL`: the command, `crushtool` if not set. One of Ceph 19 or later is given multi-step-retry rules, too.
//! - `CRUSH_SEED`, `CRUSH_MAPS`, `CRUSH_INPUTS`: where to start, how many maps to draw (10, or 300), how many inputs
//!   to map by each rule (128, or 1024).
//! - `CRUSH_KEEP`: the files to append maps and results to, without `.maps` and `.txt`, for `fixtures/crush`.

mod generate;
#[path = "../../examples/crushtool.rs"]
mod ours;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use generate::{Case, Rng};
use ours::Options;
use proto::crush::CrushMap;
use proto::denc::Encode;

/// How many replicas each rule is asked for.
const REPLICAS: std::ops::RangeInclusive<i32> = 1..=6;

#[test]
fn corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for stem in ["fixtures/crush/drawn-16.2.15", "fixtures/crush/drawn-20.2.4"] {
        let maps = fs::read(root.join(format!("{stem}.maps"))).unwrap();
        let lines = fs::read_to_string(root.join(format!("{stem}.txt"))).unwrap();
        let mut rest = maps.as_slice();
        for line in lines.lines() {
            let (what, hashes) = line.split_once(" = ").unwrap();
            let [seed, len, options] = what.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                panic!("{stem}: {line}");
            };
            let (bytes, others) = rest.split_at(len.parse().unwrap());
            rest = others;
            let map = CrushMap::from_bytes(bytes).unwrap();
            assert_eq!(map.to_bytes(), bytes, "{stem}: {seed} is not encoded as it was");
            let hashes: Vec<&str> = hashes.split(' ').collect();
            assert_eq!(hashes.len(), REPLICAS.count());
            for (replicas, hash) in REPLICAS.zip(hashes) {
                let printed = mappings(&map, options, replicas);
                assert_eq!(hash, fnv(printed.as_bytes()), "{stem}: {what} --num-rep {replicas}");
            }
        }
        assert!(lines.lines().count() >= 50 && rest.is_empty(), "{stem} is not whole");
    }
}

#[test]
fn crushtool() {
    let is_full = std::env::var_os("CEPH_NATIVE_FULL").is_some();
    match variable("CRUSHTOOL") {
        Some(tool) => compare(&tool, is_full),
        None => compare("crushtool", is_full),
    }
    if is_full && variable("CRUSHTOOL").is_none() {
        let in_release = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/in-release");
        compare(&format!("{} 20 crushtool", in_release.display()), is_full);
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str, default: u64) -> u64 {
    variable(name).map_or(default, |text| text.parse().unwrap())
}

/// Draws maps and compares what a crushtool makes of them with what we do.
fn compare(tool: &str, is_full: bool) {
    let Ok(help) = command(tool).arg("--help").output() else {
        eprintln!("no {tool} here: nothing compared");
        return;
    };
    let knows_msr =
        String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("--min-rep");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("CRUSH_SEED", if is_full { now } else { 1 });
    let maps = number("CRUSH_MAPS", if is_full { 300 } else { 10 });
    let inputs = number("CRUSH_INPUTS", if is_full { 1024 } else { 128 });
    let scratch = Scratch::new();
    let (mut compared, mut holes) = (0, 0);
    for seed in seed..seed + maps {
        println!("{tool}: CRUSH_SEED={seed}");
        let mut rng = Rng(seed);
        let msr = knows_msr && rng.chance(60);
        let case = generate::case(&mut rng, msr);
        let bytes = case.map.to_bytes();
        let file = scratch.0.join("map");
        fs::write(&file, &bytes).unwrap();
        let map = CrushMap::from_bytes(&bytes).unwrap();
        assert_eq!(map, case.map, "seed {seed}");
        let options = options(&case, inputs);
        let mut hashes = String::new();
        for replicas in REPLICAS {
            let theirs = theirs(tool, &scratch.0, &options, replicas)
                .unwrap_or_else(|error| panic!("CRUSH_SEED={seed} --num-rep {replicas}: {error}"));
            let ours = mappings(&map, &options, replicas);
            if let Some((ours, theirs)) = ours.lines().zip(theirs.lines()).find(|(a, b)| a != b) {
                panic!(
                    "CRUSH_SEED={seed} {options} --num-rep {replicas}: {ours}, crushtool: {theirs}"
                );
            }
            assert_eq!(
                ours.len(),
                theirs.len(),
                "CRUSH_SEED={seed} {options} --num-rep {replicas}"
            );
            compared += ours.lines().count();
            holes += ours.matches("2147483647").count();
            write!(hashes, " {}", fnv(theirs.as_bytes())).unwrap();
        }
        if let Some(stem) = variable("CRUSH_KEEP") {
            let line = format!("{seed} {} {options} ={hashes}\n", bytes.len());
            append(&format!("{stem}.maps"), &bytes);
            append(&format!("{stem}.txt"), line.as_bytes());
        }
    }
    assert!(compared > 0);
    println!(
        "{tool}: CRUSH_SEED={seed}: {maps} maps, {compared} mappings, {holes} holes: no difference"
    );
}

/// A program, perhaps with its first arguments.
fn command(words: &str) -> Command {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

/// The options that go with a map, as crushtool takes them.
fn options(case: &Case, inputs: u64) -> String {
    let mut options = format!("--test --show-mappings --min-x 0 --max-x {}", inputs - 1);
    if let Some(pool) = case.pool {
        write!(options, " --pool-id {pool}").unwrap();
    }
    for (osd, weight) in &case.weights {
        write!(options, " --weight {osd} {}", f64::from(*weight) / 65536.0).unwrap();
    }
    options
}

/// What we print.
fn mappings(map: &CrushMap, options: &str, replicas: i32) -> String {
    let mut options = Options::parse(options.split(' ').map(str::to_owned)).unwrap();
    options.replicas = Some((replicas, replicas));
    let mut out = Vec::new();
    options.print(map, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// What crushtool prints. It writes to a file, as that of Ceph 20 loses lines when it writes to a pipe.
fn theirs(tool: &str, folder: &Path, options: &str, replicas: i32) -> Result<String, String> {
    let (out, err) = (folder.join("out"), folder.join("err"));
    let status = command(tool)
        .arg("-i")
        .arg(folder.join("map"))
        .args(options.split(' '))
        .args(["--num-rep", &replicas.to_string()])
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .status()
        .unwrap();
    let printed = fs::read_to_string(out).unwrap();
    if status.success() { Ok(printed) } else { Err(fs::read_to_string(err).unwrap()) }
}

fn append(file: &str, bytes: &[u8]) {
    let file = fs::OpenOptions::new().create(true).append(true).open(file);
    file.unwrap().write_all(bytes).unwrap();
}

/// FNV-1a, 64 bits, in hexadecimal: tells results apart well enough to keep them.
fn fnv(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A folder that goes away at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let folder =
            std::env::temp_dir().join(format!("crush-differential-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

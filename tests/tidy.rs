//! House rules as tests: which layer may know which, how large a file may grow, what may be depended on, and that
//! fixtures and decisions are written down. A rule that has to give way is changed here, in the open.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules of `proto`, and what of the crate's root each may name besides itself. Not listed is not allowed.
const PROTO: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("crc", &[]),
    ("denc", &["limits"]),
    ("types", &["denc", "limits"]),
    ("crush", &["denc", "limits", "types"]),
    ("msgr", &["crc", "denc", "limits", "types"]),
    // Of the messenger it knows only the seam it implements: `msgr::auth`.
    ("cephx", &["denc", "limits", "msgr", "types"]),
    // A monitor map names the ciphers that cephx may use.
    ("monmap", &["cephx", "denc", "limits", "types"]),
    ("msg", &["crc", "denc", "limits", "monmap", "msgr", "types"]),
    // Of messages it knows only `msg::object`: what names an object.
    ("osdmap", &["crc", "crush", "denc", "limits", "msg", "types"]),
    ("mon", &["cephx", "denc", "limits", "monmap", "msg", "msgr", "types"]),
    // It says what to send to which OSD, never how.
    ("objecter", &["denc", "limits", "msg", "osdmap", "types"]),
    ("rbd", &["crc", "denc", "limits", "msg", "types"]),
];

/// Modules of the library in `src`, rising: each may name those before it. Programs (`src/bin`) may name all.
const LAYERS: &[&str] = &[
    "error",
    "config",
    "net",
    "cluster",
    "pool",
    "image",
    "attach",
    "telemetry",
    "openstack",
    "docker",
];

/// Files that may contain `unsafe`.
const UNSAFE: &[&str] = &[
    // Structures that ioctls take by address, and the signals of a thread that is in one.
    "nbd/src/ioctl.rs",
    // Waiting for a descriptor that is not tokio's own.
    "nbd/src/fuse/session.rs",
    // Reading into memory that is not initialised.
    "nbd/src/socket.rs",
    // Commands by io_uring, and memory shared with the kernel.
    "nbd/src/ublk/ring.rs",
    // Descriptors that systemd hands over.
    "src/docker/activation.rs",
    // An allocator that counts.
    "tests/fuzz/memory.rs",
];

/// Dependencies that were settled before the first line was written. All others have an entry in docs/decisions.md.
const SETTLED: &[&str] = &[
    "aes",
    "aes-gcm",
    "bytes",
    "cbc",
    "clap",
    "getrandom",
    "hmac",
    "proptest",
    "serde",
    "serde_json",
    "sha2",
    "slab",
    "thiserror",
    "tokio",
    "tracing",
    "tracing-subscriber",
];

/// Lines of a file and, as a median, of all: what one can read in one go.
const MAX_LINES: usize = 900;
const MEDIAN_LINES: usize = 350;

/// Characters of a line. Code is kept to 100 by rustfmt; comments and tables may use the rest.
const MAX_COLUMNS: usize = 120;

#[test]
fn proto_modules_know_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for file in rust_files("proto/src") {
        let module = module(&file, "proto/src");
        let Some((_, allowed)) = PROTO.iter().find(|(name, _)| *name == module) else {
            assert!(module == "lib", "{}: not listed in PROTO", file.display());
            continue;
        };
        // Tests may bring together what must not know each other.
        for (line, name) in crate_names(&file).into_iter().filter(|_| !is_test(&file)) {
            if name != module && !allowed.contains(&name.as_str()) && is_module("proto/src", &name)
            {
                wrong.push(format!("{}:{line}: {module} may not know {name}", file.display()));
            }
        }
    }
    report(wrong);
}

#[test]
fn layers_know_only_those_below_them() {
    let mut wrong = Vec::new();
    for file in rust_files("src") {
        let module = module(&file, "src");
        if module == "lib" || module == "bin" {
            continue;
        }
        let Some(own) = LAYERS.iter().position(|name| *name == module) else {
            panic!("{}: not listed in LAYERS", file.display());
        };
        for (line, name) in crate_names(&file) {
            if LAYERS.iter().position(|layer| *layer == name).is_some_and(|other| other > own) {
                wrong.push(format!("{}:{line}: {module} may not know {name}", file.display()));
            }
        }
    }
    report(wrong);
}

#[test]
fn crates_know_only_those_below_them() {
    for (manifest, forbidden) in [
        ("proto/Cargo.toml", &["nbd", "devcluster", "ceph-native", "tokio", "getrandom"][..]),
        ("nbd/Cargo.toml", &["proto", "devcluster", "ceph-native"]),
        ("devcluster/Cargo.toml", &["nbd"]),
    ] {
        for (name, section) in dependencies(manifest) {
            // What is only for tests may point anywhere.
            let known = section != "dev-dependencies" && forbidden.contains(&name.as_str());
            assert!(!known, "{manifest}: may not depend on {name}");
        }
    }
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut wrong = Vec::new();
    let mut lengths = Vec::new();
    for file in sources() {
        let text = read(&file);
        let lines = text.lines().count();
        lengths.push(lines);
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines", file.display()));
        }
        if !text.starts_with("//! ") && !text.starts_with("#![doc = include_str!(") {
            wrong.push(format!("{}: doesn't open with what it is for (//!)", file.display()));
        }
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > MAX_COLUMNS {
                wrong.push(format!("{}:{}: {columns} columns", file.display(), number + 1));
            }
        }
    }
    lengths.sort_unstable();
    if let Some(median) = lengths.get(lengths.len() / 2).filter(|median| **median > MEDIAN_LINES) {
        wrong.push(format!("half of all files have more than {median} lines"));
    }
    report(wrong);
}

#[test]
fn unsafe_is_in_named_files_only() {
    let words = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    for file in sources().iter().filter(|file| !file.ends_with("tests/tidy.rs")) {
        let name = file.strip_prefix(root()).unwrap().to_str().unwrap();
        let found = code(&read(file)).any(|(_, line)| words.iter().any(|word| line.contains(word)));
        assert!(!found || UNSAFE.contains(&name), "{name}: unsafe, and not listed in UNSAFE");
    }
}

/// A simulation takes the same course each time only if nothing but its seed decides.
#[test]
fn what_is_simulated_leaves_nothing_to_chance() {
    let mut wrong = Vec::new();
    for file in rust_files("src").iter().filter(|file| !file.starts_with(root().join("src/bin"))) {
        let text = read(file);
        for (at, _) in text.match_indices("select! {") {
            let mut words = text[at..].lines().skip(1).map(str::trim);
            if words.find(|line| !line.starts_with("//")) != Some("biased;") {
                wrong.push(format!("{}: select! without biased", file.display()));
            }
        }
        for word in ["std::time::Instant::now", "SystemTime::now", "getrandom::fill"] {
            let name = file.strip_prefix(root()).unwrap().to_str().unwrap();
            // DNS is asked only where nothing names the monitors, which a simulation does.
            let known = [
                ("src/net.rs", "getrandom::fill"),
                ("src/cluster/mod.rs", "SystemTime::now"),
                ("src/config/dns.rs", "getrandom::fill"),
            ];
            if text.contains(word) && !known.contains(&(name, word)) {
                wrong.push(format!("{}: {word}", file.display()));
            }
        }
    }
    report(wrong);
}

#[test]
fn lints_are_switched_off_with_a_reason() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|file| !file.ends_with("tests/tidy.rs")) {
        let text = read(file);
        for (at, _) in text.match_indices("[allow(").chain(text.match_indices("[expect(")) {
            let attribute = text[at..].split(")]").next().unwrap();
            if !attribute.contains("reason =") {
                wrong.push(format!("{}: {attribute})]", file.display()));
            }
        }
    }
    report(wrong);
    let deny = "#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]";
    assert!(read(&root().join("proto/src/lib.rs")).contains(deny), "bytes of a peer may not panic");
}

#[test]
fn fixtures_are_described_and_used() {
    let readme = read(&root().join("fixtures/README.md"));
    let code: String = sources().iter().map(|file| read(file)).collect();
    let mut wrong = Vec::new();
    for file in files(&root().join("fixtures")) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let folder = file.parent().unwrap().file_name().unwrap().to_str().unwrap();
        if name == "README.md" {
            continue;
        }
        // Files that belong together differ in their extension only, and those of a folder in `fuzz` in nothing.
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let known = [name, stem, &format!("fuzz/{folder}")];
        if !known.iter().any(|known| readme.contains(&format!("`{known}`"))) {
            wrong.push(format!(
                "{}: fixtures/README.md doesn't say where it is from",
                file.display()
            ));
        }
        // A folder of many files of one kind may be replayed as a whole.
        let is_replayed = file.starts_with(root().join("fixtures/fuzz"))
            || code.contains(&format!("fixtures/{folder}/"));
        if !code.contains(name) && !is_replayed {
            wrong.push(format!("{}: no test uses it", file.display()));
        }
    }
    report(wrong);
}

#[test]
fn dependencies_are_decided_permissive_and_free_of_c() {
    let decisions = read(&root().join("docs/decisions.md"));
    let mut wrong = Vec::new();
    for manifest in ["Cargo.toml", "proto/Cargo.toml", "nbd/Cargo.toml", "devcluster/Cargo.toml"] {
        for (name, _) in dependencies(manifest) {
            let ours = ["proto", "nbd", "devcluster", "ceph-native"].contains(&name.as_str());
            if !ours
                && !SETTLED.contains(&name.as_str())
                && !decisions.contains(&format!("`{name}`"))
            {
                wrong.push(format!("{manifest}: docs/decisions.md has no entry on `{name}`"));
            }
        }
    }
    // What other platforms would need is not here to be looked at.
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc").stdout;
    let rustc = String::from_utf8(rustc).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host");
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host])
        .current_dir(root())
        .output()
        .expect("cargo");
    let metadata: serde_json::Value =
        serde_json::from_slice(&metadata.stdout).expect("cargo metadata");
    // Of these, what is built: `metadata` has optional dependencies that are switched on for other platforms only.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--edges", "all", "--prefix", "none", "--format", "{p}"])
        .args(["--offline", "--target", host])
        .current_dir(root())
        .output()
        .expect("cargo");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let built: BTreeSet<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains("tokio"), "cargo tree says nothing");
    let deny = read(&root().join("deny.toml"));
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().unwrap();
        if !built.contains(name) {
            continue;
        }
        let licence = package["license"].as_str().unwrap_or("none");
        if !permissive(licence, &deny) {
            wrong.push(format!("{name}: licence {licence}"));
        }
        let binds =
            name.ends_with("-sys") && !["windows-sys", "linux-raw-sys", "wasi-sys"].contains(&name);
        if binds || deny.contains(&format!("{{ crate = \"{name}\" }}")) {
            wrong.push(format!("{name}: brings C"));
        }
    }
    report(wrong);
}

/// `tests/run` names the release builds; without them it is this program, built the same way, that is looked at.
#[test]
fn programs_need_no_shared_library() {
    let named = ["RBD_NBD_RS", "CEPH_NATIVE"].iter().filter_map(std::env::var_os);
    let mut programs: Vec<_> = named.map(PathBuf::from).collect();
    if programs.is_empty() {
        programs.push(std::env::current_exe().unwrap());
    }
    for program in programs {
        let elf = fs::read(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let word = |at: usize, size: usize| {
            elf[at..at + size].iter().rev().fold(0, |n, byte| n << 8 | usize::from(*byte))
        };
        // 64-bit ELF: the program headers are at the offset in byte 32, of 56 bytes each, their number in byte 56. Type
        // 3 is PT_INTERP, the path of the dynamic loader.
        let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
        let dynamic = (0..count).any(|i| word(table + i * size, 4) == 3);
        assert!(!dynamic, "{} is not statically linked: see .cargo/config.toml", program.display());
    }
}

/// The plugin is to be below 12 MB. `tests/run` names the release build; a debug build has no size to speak of.
#[test]
fn the_plugin_is_small() {
    if let Some(program) = std::env::var_os("CEPH_NATIVE") {
        let size = fs::metadata(&program).unwrap().len();
        assert!(size < 12_000_000, "{} has {size} bytes", program.display());
    }
}

/// Whether an SPDX expression leaves a choice that consists of allowed licences alone. Parentheses only ever group
/// alternatives in what we depend on.
fn permissive(licence: &str, deny: &str) -> bool {
    let allowed =
        |id: &str| deny.contains(&format!("    \"{}\",", id.trim_matches(['(', ')', ' '])));
    let licence = licence.replace('/', " OR ");
    licence.split(" AND ").all(|part| part.split(" OR ").any(allowed))
}

/// Names of the crate's root that a file uses in `crate::NAME`, with line numbers.
fn crate_names(file: &Path) -> Vec<(usize, String)> {
    let text = read(file);
    let mut names = Vec::new();
    for (number, line) in code(&text) {
        let tests = file.iter().any(|part| part == "tests" || part == "tests.rs");
        assert!(
            tests || !line.contains("super::super::"),
            "{}:{number}: say crate::",
            file.display()
        );
        for rest in line.split("crate::").skip(1) {
            assert!(!rest.starts_with('{'), "{}:{number}: one use line per module", file.display());
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            names.push((number, rest[..end].to_owned()));
        }
    }
    names
}

fn is_test(file: &Path) -> bool {
    file.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// Numbered lines that aren't comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The module at the crate's root that a file belongs to.
fn module(file: &Path, source: &str) -> String {
    let first = file.strip_prefix(root().join(source)).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

fn is_module(source: &str, name: &str) -> bool {
    let path = root().join(source).join(name);
    path.is_dir() || path.with_extension("rs").is_file()
}

/// Names in the `[dependencies]` tables of a manifest, with the table's kind.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut section = String::new();
    for line in read(&root().join(manifest)).lines() {
        if let Some(name) = line.strip_prefix('[') {
            let name = name.trim_end_matches(']');
            section = if name == "workspace.dependencies" {
                ""
            } else {
                name.rsplit('.').next().unwrap()
            }
            .to_owned();
        } else if section.ends_with("dependencies") && line.contains('=') {
            found.push((line.split(['.', ' ', '=']).next().unwrap().to_owned(), section.clone()));
        }
    }
    found
}

/// All Rust files of the repository.
fn sources() -> Vec<PathBuf> {
    let folders = ["src", "proto", "nbd", "devcluster", "tests", "benches"];
    folders.into_iter().flat_map(rust_files).collect()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = files(&root().join(folder));
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.is_file() {
                found.insert(path);
            }
        }
    }
    found.into_iter().collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn tests_that_are_named_as_proof_are_there() {
    let mut wrong = Vec::new();
    let text = fs::read_to_string(root().join("docs/peers.md")).unwrap();
    let named: Vec<_> = text.split('`').filter(|quoted| quoted.contains("::")).collect();
    assert!(named.len() > 20, "docs/peers.md names few tests: {named:?}");
    for test in named {
        let path = test.split_once(' ').and_then(|(suite, rest)| {
            let (module, name) = rest.split_once("::")?;
            Some((root().join(format!("tests/{suite}/{module}.rs")), format!("fn {name}(")))
        });
        let is_there = path.is_some_and(|(path, name)| {
            fs::read_to_string(path).is_ok_and(|text| text.contains(&name))
        });
        if !is_there {
            wrong.push(test.to_owned());
        }
    }
    report(wrong);
}

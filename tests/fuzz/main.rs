//! Runs every fuzz target on what is in `fixtures`: bytes of real clusters, and in `fixtures/fuzz` what fuzzing has
//! reached and found. `tests/fuzz/run` is what fuzzes; it needs a C++ compiler, and no other part of the tests does.

mod memory;
mod seeds;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use targets::{TARGETS, Target, frames, handshake};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// The files of a target's folder.
fn corpus(target: &Target) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/fuzz").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let target = Target::named(name);
    target.check(&[]); // what is made once
    for (name, input) in seeds::of(target.name) {
        println!("{name}");
        target.check(&input);
    }
    let files = corpus(target);
    assert!(files.len() > 5, "the corpus of {name} is gone");
    for file in files {
        println!("{}", file.display());
        target.check(&fs::read(&file).unwrap());
    }
}

#[test]
fn frames() {
    replay("frames");
}

#[test]
fn handshake() {
    replay("handshake");
}

#[test]
fn cephx() {
    replay("cephx");
}

#[test]
fn monmap() {
    replay("monmap");
}

#[test]
fn osdmap() {
    replay("osdmap");
}

#[test]
fn crush() {
    replay("crush");
}

#[test]
fn messages() {
    replay("messages");
}

#[test]
fn classes() {
    replay("classes");
}

/// Writes the inputs to start from to `$FUZZ_SEEDS/TARGET/`, for `tests/fuzz/run`.
#[test]
fn seeds() {
    let to = std::env::var_os("FUZZ_SEEDS").map(PathBuf::from);
    for target in TARGETS {
        let inputs = seeds::of(target.name);
        assert!(!inputs.is_empty(), "{} starts from nothing", target.name);
        let Some(folder) = to.as_ref().map(|to| to.join(target.name)) else { continue };
        fs::create_dir_all(&folder).unwrap();
        for (name, input) in inputs {
            fs::write(folder.join(name), input).unwrap();
        }
    }
}

/// Real bytes get as far as they should: a target that lets nothing in finds nothing.
#[test]
fn good_bytes_get_in() {
    for (name, input) in seeds::of("frames") {
        assert!(frames::received(&input) > 0, "{name}");
    }
    for (name, input) in seeds::of("handshake") {
        // cephx stops where the captured side asks for nothing.
        assert!(
            handshake::received(&input) > 1
                || name.ends_with("-cephx")
                || name.ends_with("-aes256k"),
            "{name}"
        );
    }
}

/// A check of the check: what takes too much memory is found out.
#[test]
#[should_panic(expected = "bytes for an input of 3")]
fn waste_is_noticed() {
    targets::WASTEFUL.check(&[1, 2, 3]);
}

//! `rbd-nbd-rs demo`, as the README has it first: on a machine with nothing but the program.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than it ever takes, in a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A folder for temporary files, which has to be empty again in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("demo-{}-{test}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    #[track_caller]
    fn assert_empty(self) {
        let left: Vec<_> = std::fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Our program, with nothing in its environment that could help, and a cluster that it must not touch.
fn program(folder: &Folder) -> Command {
    let built = env!("CARGO_BIN_EXE_rbd-nbd-rs").to_owned();
    let mut command = Command::new(std::env::var("RBD_NBD_RS").unwrap_or(built));
    command.env_clear().env("TMPDIR", &folder.0).env("CEPH_CONF", "/nowhere/ceph.conf");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end, which has to come.
fn ended(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            let _ = child.kill();
            panic!("it does not end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn it_shows_everything_and_ends() {
    let folder = Folder::new("once");
    let child = program(&folder).args(["demo", "--once", "--size", "16M"]).spawn().unwrap();
    let output = ended(child);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert_eq!(err, "", "no progress where there is no terminal");
    let words: Vec<_> = out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(words, ["cluster", "image", "written", "verified", "random", "ended"], "{out}");
    assert!(out.contains("verified  16 MiB in"), "{out}");
    folder.assert_empty();
}

#[test]
fn it_stays_until_it_is_told_to_end() {
    let folder = Folder::new("stays");
    let mut child = program(&folder).args(["demo", "--size", "4M"]).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("\n  nbdinfo ") {
        if out.read_line(&mut said).unwrap() == 0 {
            panic!("it ended: {said}{:?}", ended(child));
        }
    }
    let conf = said.split_whitespace().find(|word| word.ends_with("/ceph.conf")).unwrap();
    assert!(Path::new(conf).starts_with(&folder.0), "{said}");
    let list = ended(program(&folder).args(["ls", "-l", "--conf", conf]).spawn().unwrap());
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.lines().any(|line| line.starts_with("demo") && line.contains("4 MiB")), "{list}");

    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let output = ended(child);
    out.read_to_string(&mut said).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{output:?}");
    assert!(said.ends_with("nothing is left of it\n"), "{said}");
    folder.assert_empty();
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    let folder = Folder::new("size");
    for size in ["0", "100K", "x"] {
        let output = ended(program(&folder).args(["demo", "--size", size]).spawn().unwrap());
        assert!(!output.status.success(), "{size}: {output:?}");
        assert!(!output.stderr.is_empty(), "{size}");
    }
    folder.assert_empty();
}

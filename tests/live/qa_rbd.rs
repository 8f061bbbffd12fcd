//! Ceph's own scripts for the `rbd` command, `qa/workunits/rbd`, with our program in its place. They are Ceph's and not
//! kept here: `tests/qa FOLDER [WORD]` takes them and runs this. `docs/images.md` lists what passes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::releases;
use crate::support::{Ceph, Options, Ran, Release, Store, program, run, run_in};

/// What goes to the real `rbd`: what is not built here, and pools and managers, which are no images.
const THEIRS: [&str; 9] = [
    r#"*"pool init"*"#,
    r#"*"image-format 1"*"#,
    "group*",
    r#""deep "*"#,
    "sparsify*",
    "merge-diff*",
    r#""config global"*"#,
    "perf*",
    r#""trash purge schedule"*"#,
];

/// What passes, all else being right. `docs/images.md` says why the rest does not; it runs if a word names it.
const PASS: [&str; 18] = [
    "cli_generic.sh test_pool_image_args",
    "cli_generic.sh test_others",
    "cli_generic.sh test_locking",
    "cli_generic.sh test_clone",
    "cli_generic.sh test_clone_v2",
    "cli_generic.sh test_deep_copy_clone",
    "cli_generic.sh test_namespace",
    "cli_generic.sh test_thick_provision",
    "cli_generic.sh test_trash",
    "cli_generic.sh test_trash_purge_schedule",
    "cli_generic.sh test_purge",
    "diff.sh",
    "huge-tickets.sh",
    "import_export.sh",
    "permissions.sh",
    "rbd_groups.sh",
    "test_lock_fence.sh",
    "verify_pool.sh",
];

/// What passes, too, of later scripts than those of 16.
const LATER: [&str; 5] = [
    "cli_generic.sh test_perf_image_iostat",
    "cli_generic.sh test_perf_image_iostat_recovery",
    "cli_generic.sh test_tasks_recovery",
    "cli_generic.sh test_tasks_removed_pool",
    "cli_generic.sh test_trash_purge_schedule_recovery",
];

/// What of that fails with another release's `rbd` and cluster, and what has to come before it does: with nothing,
/// all of it may fail. The manager of Debian's 18 cannot load what knows of images ("PyO3 modules do not yet support
/// subinterpreters").
const FAIL: [(Release, &str, &str); 8] = [
    (Release::Tentacle, "cli_generic.sh test_clone_v2", ""),
    (Release::Reef, "cli_generic.sh test_perf_image_iostat", ""),
    (Release::Reef, "cli_generic.sh test_perf_image_iostat_recovery", ""),
    (Release::Reef, "cli_generic.sh test_tasks_recovery", ""),
    (Release::Reef, "cli_generic.sh test_tasks_removed_pool", ""),
    (Release::Reef, "cli_generic.sh test_trash_purge_schedule", ""),
    (Release::Reef, "cli_generic.sh test_trash_purge_schedule_recovery", ""),
    (Release::Reef, "permissions.sh", "test_rbd_support"),
];

/// Whether a script fails where it is known to: bash tells of each command before it runs it.
fn is_known(release: Release, name: &str, told: &str) -> bool {
    FAIL.iter().any(|(of, script, after)| {
        let reached =
            || told.lines().any(|line| line.trim_start_matches('+') == format!(" {after}"));
        (*of, *script) == (release, name) && (after.is_empty() || reached())
    })
}

#[test]
fn a_script_that_fails_before_its_known_failure_is_broken() {
    let known = |told| is_known(Release::Reef, "permissions.sh", told);
    assert!(known("+ test_images_access\n+ rbd ls\n+ test_rbd_support\n+ false\n"));
    assert!(!known("+ test_images_access\n+ false\n"));
    assert!(!is_known(Release::Tentacle, "permissions.sh", "+ test_rbd_support\n"));
    assert!(is_known(Release::Reef, "cli_generic.sh test_perf_image_iostat", ""));
}

#[test]
fn cephs_scripts_for_rbd() {
    let Some(folder) = std::env::var_os("CEPH_NATIVE_QA_RBD") else { return };
    let only = std::env::var("CEPH_NATIVE_QA_ONLY").unwrap_or_default();
    let mut scripts: Vec<_> = fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    scripts.sort();
    let (mut ran, mut broken) = (BTreeSet::new(), Vec::new());
    for section in scripts.iter().flat_map(|script| sections(script)) {
        let name = &*section.name;
        let passes = PASS.contains(&name) || LATER.contains(&name);
        let asked = match only.is_empty() {
            true => passes,
            false => only.split_whitespace().all(|word| name.contains(word)),
        };
        for release in releases().iter().filter(|_| asked) {
            // Some write more than fits into memory.
            let store = Store::Bluestore;
            let ceph = Ceph::start(Options { release: *release, store, ..Options::default() });
            ceph.ceph(&["config", "set", "mon", "mon_allow_pool_delete", "true"]);
            ceph.start_mgr();
            let done = run_section(&ceph, Path::new(&folder), &section);
            println!("{} {release} {name}", if done.code == 0 { "pass" } else { "fail" });
            if done.code != 0 {
                let lines: Vec<_> = done.err.lines().collect();
                println!("    {}", lines[lines.len().saturating_sub(12)..].join("\n    "));
            }
            if done.code != 0 && passes && !is_known(*release, name, &done.err) {
                broken.push(format!("{release} {name}"));
            }
            ran.insert(name.to_owned());
        }
    }
    // What did not run did not pass.
    assert!(!ran.is_empty(), "no script of this name: {only:?}");
    let absent: Vec<_> = PASS.iter().filter(|name| !ran.contains(**name)).collect();
    assert!(!only.is_empty() || absent.is_empty(), "not there: {absent:?}");
    assert!(broken.is_empty(), "{broken:?}");
}

/// A script, or a part of one that can run alone.
struct Section {
    name: String,
    script: PathBuf,
    /// What stands in the script's place.
    text: Option<String>,
}

/// A script, or each of its functions with the text that runs it alone, if all it does is to call these.
fn sections(script: &Path) -> Vec<Section> {
    let name = script.file_name().unwrap().to_str().unwrap().to_owned();
    if name != "cli_generic.sh" {
        return vec![Section { name, script: script.to_owned(), text: None }];
    }
    let text = fs::read_to_string(script).unwrap();
    let (mut before, mut all) = (String::new(), Vec::new());
    for line in text.lines() {
        if line.starts_with("test_") && !line.contains([' ', '(']) {
            let (name, text) = (format!("{name} {line}"), Some(format!("{before}{line}\n")));
            all.push(Section { name, script: script.to_owned(), text });
        } else {
            before += &format!("{line}\n");
        }
    }
    all
}

/// Runs a script among copies of what it may depend on, with our program in the place of `rbd`.
fn run_section(ceph: &Ceph, folder: &Path, section: &Section) -> Ran {
    let sources = ceph.dir().join("sources");
    for part in ["qa/workunits/rbd", "qa/standalone", "src/test/librbd"] {
        let from = folder.join("../../..").join(part);
        if from.exists() {
            let (from, to) = (from.join("."), sources.join(part));
            fs::create_dir_all(&to).unwrap();
            run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]).ok();
        }
    }
    let script = sources.join("qa/workunits/rbd").join(section.script.file_name().unwrap());
    if let Some(text) = &section.text {
        fs::write(&script, text).unwrap();
    }
    // As Ceph has it where nobody says otherwise, which is what scripts expect to be told.
    let conf = ceph.dir().join("qa.conf");
    let text = fs::read_to_string(ceph.conf()).unwrap();
    fs::write(&conf, text.replace("rbd cache = false\n", "")).unwrap();
    wrap(ceph);
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", ceph.dir().join("bin").display());
    let in_folder = format!("cd {}; exec {}", ceph.dir().display(), script.display());
    let env = [("CEPH_CONF", &*conf), ("PATH", Path::new(&path))];
    run_in("/bin/bash", &["-c", &in_folder], &env, 1800)
}

/// Puts our program in the place of `rbd`, and programs of the cluster's release in that of others.
fn wrap(ceph: &Ceph) {
    let bin = ceph.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let theirs = |program: &str| {
        let command = ceph.command(program);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
        format!("exec {} \"$@\"", words.join(" "))
    };
    let rbd = format!(
        "case \"$*\" in {}) {} ;; esac\nexec {} \"$@\"",
        THEIRS.join("|"),
        theirs("/usr/bin/rbd"),
        program()
    );
    let mut programs = vec![("rbd", rbd)];
    for name in ["ceph", "rados", "ceph-authtool", "rbd-fuse", "python3"] {
        programs.push((name, theirs(&format!("/usr/bin/{name}"))));
    }
    // Scripts are for machines where a user runs them.
    programs.push(("python", theirs("/usr/bin/python3")));
    programs.push(("sudo", "exec \"$@\"".to_owned()));
    for (name, text) in programs {
        let program = bin.join(name);
        fs::write(&program, format!("#!/bin/bash\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

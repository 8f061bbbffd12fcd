//! Ceph's own scripts for the `rbd` command, `qa/workunits/rbd`, with our program in its place. They are Ceph's and not
//! kept here: `tests/qa FOLDER [SCRIPT ...]` takes them and runs this. `docs/images.md` lists what passes.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::{Ceph, Options, Ran, program, run_in};

/// What goes to the real `rbd`: what is not built here, and pools, which are no images.
const THEIRS: &str = r#"*"pool init"*|*"image-format 1"*|group*|"deep "*|sparsify*"#;

/// What passes, all else being right. `docs/images.md` says why the rest does not.
const PASS: [&str; 10] = [
    "cli_generic.sh test_pool_image_args",
    "cli_generic.sh test_others",
    "cli_generic.sh test_locking",
    "cli_generic.sh test_clone",
    "cli_generic.sh test_trash",
    "cli_generic.sh test_purge",
    "diff.sh",
    "huge-tickets.sh",
    "import_export.sh",
    "test_lock_fence.sh",
];

#[test]
fn cephs_scripts_for_rbd() {
    let Some(folder) = std::env::var_os("CEPH_NATIVE_QA_RBD") else { return };
    let only = std::env::var("CEPH_NATIVE_QA_ONLY").unwrap_or_default();
    let mut scripts: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    scripts.sort();
    let (mut ran, mut broken) = (BTreeSet::new(), Vec::new());
    for (name, text, script) in scripts.iter().flat_map(|script| sections(script)) {
        if !only.split_whitespace().all(|word| name.contains(word)) {
            continue;
        }
        let ceph = Ceph::start(Options::default());
        ceph.ceph(&["config", "set", "mon", "mon_allow_pool_delete", "true"]);
        wrap(&ceph);
        let done = run_script(&ceph, &script, text.as_deref());
        println!("{} {name}", if done.code == 0 { "pass" } else { "fail" });
        if done.code != 0 {
            let lines: Vec<_> = done.err.lines().collect();
            println!("    {}", lines[lines.len().saturating_sub(12)..].join("\n    "));
        }
        if done.code != 0 && PASS.contains(&name.as_str()) {
            broken.push(name.clone());
        }
        ran.insert(name);
    }
    // What did not run did not pass.
    assert!(!ran.is_empty(), "no script of this name: {only:?}");
    let absent: Vec<_> = PASS.iter().filter(|name| !ran.contains(**name)).collect();
    assert!(!only.is_empty() || absent.is_empty(), "not there: {absent:?}");
    assert!(broken.is_empty(), "{broken:?}");
}

/// Puts our program in the place of `rbd`.
fn wrap(ceph: &Ceph) {
    let rbd = ceph.dir().join("bin/rbd");
    fs::create_dir(rbd.parent().unwrap()).unwrap();
    let ours = program();
    let text = format!(
        "#!/bin/bash\ncase \"$*\" in {THEIRS}) exec /usr/bin/rbd \"$@\" ;; esac\nexec {ours} \"$@\"\n"
    );
    fs::write(&rbd, text).unwrap();
    fs::set_permissions(&rbd, fs::Permissions::from_mode(0o755)).unwrap();
    // Scripts are for machines where a user runs them.
    for (name, text) in [("python", "exec /usr/bin/python3 \"$@\""), ("sudo", "exec \"$@\"")] {
        let script = rbd.with_file_name(name);
        fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A script, or each of its functions with the text that runs it alone, if all it does is to call these.
fn sections(script: &Path) -> Vec<(String, Option<String>, PathBuf)> {
    let name = script.file_name().unwrap().to_str().unwrap().to_owned();
    if name != "cli_generic.sh" {
        return vec![(name, None, script.to_owned())];
    }
    let text = fs::read_to_string(script).unwrap();
    let is_call = |line: &&str| line.starts_with("test_") && !line.contains([' ', '(']);
    let rest: Vec<_> = text.lines().filter(|line| !is_call(line)).collect();
    let rest = rest.join("\n");
    let part =
        |call| (format!("{name} {call}"), Some(format!("{rest}\n{call}\n")), script.to_owned());
    text.lines().filter(is_call).map(part).collect()
}

/// Runs a script where it is, which it may depend on, or another text in its place.
fn run_script(ceph: &Ceph, script: &Path, text: Option<&str>) -> Ran {
    let script = match text {
        None => script.to_owned(),
        Some(text) => {
            let part = ceph.dir().join("part.sh");
            fs::write(&part, text).unwrap();
            fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
            part
        }
    };
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", ceph.dir().join("bin").display());
    let in_folder = format!("cd {}; exec {}", ceph.dir().display(), script.display());
    let env = [("CEPH_CONF", &*ceph.conf()), ("PATH", Path::new(&path))];
    run_in("/bin/bash", &["-c", &in_folder], &env, 900)
}

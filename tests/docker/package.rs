//! What is installed: a Debian package by one command, and programs that need nothing beside them.

use std::fs;
use std::path::Path;

use crate::host::program;
use crate::support::run;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

#[test]
fn one_command_makes_a_package_with_all_that_a_host_needs() {
    let folder = std::env::temp_dir().join("package");
    fs::create_dir_all(&folder).unwrap();
    // To strip and pack our own takes a minute, of a debug build.
    for name in ["ceph-native", "rbd-nbd-rs"] {
        fs::copy("/bin/busybox", folder.join(name)).expect("busybox-static");
    }
    let build = format!("{DEPLOY}/build-deb");
    let here = folder.to_str().unwrap();
    // Not where somebody's own package may lie.
    let package = run(&build, &[here, here]).ok().trim().to_owned();
    assert!(Path::new(&package).starts_with(&folder), "{package}");
    let listed = run("dpkg-deb", &["--contents", &package]).ok();
    let mut files: Vec<_> = listed
        .lines()
        .filter(|line| !line.starts_with('d'))
        .map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words[5].trim_start_matches('.').to_owned(), words[0].to_owned(), words[1].to_owned())
        })
        .collect();
    files.sort();
    let names: Vec<_> = files.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "/etc/ceph-native/ceph-native.toml",
            "/lib/systemd/system/ceph-native.service",
            "/lib/systemd/system/ceph-native.socket",
            "/lib/systemd/system/rbd-nbd-rs-attach.service",
            "/lib/systemd/system/rbdmap-rs.service",
            "/usr/bin/ceph-native",
            "/usr/bin/rbd-nbd-rs",
            "/usr/lib/ceph-native/rbdmap",
            "/usr/share/doc/ceph-native/README.md",
        ]
    );
    for (name, mode, owner) in &files {
        let is_program = name.starts_with("/usr/bin") || name.ends_with("/rbdmap");
        let wanted = if is_program { "-rwxr-xr-x" } else { "-rw-r--r--" };
        assert_eq!((mode.as_str(), owner.as_str()), (wanted, "root/root"), "{name}");
    }
    let about = run("dpkg-deb", &["--info", &package]).ok();
    assert!(about.contains("Depends: e2fsprogs\n"), "no library: {about}");
    // Whatever is started with the package ends with it.
    let control = folder.join("control");
    run("dpkg-deb", &["--control", &package, control.to_str().unwrap()]).ok();
    let prerm = control.join("prerm");
    run("sh", &["-n", prerm.to_str().unwrap()]).ok();
    let prerm = fs::read_to_string(prerm).unwrap();
    for unit in names.iter().filter_map(|name| name.strip_prefix("/lib/systemd/system/")) {
        assert!(prerm.contains(&format!(" {unit}")), "{unit}: {prerm}");
    }
    // Installed into a folder, it is a host whose settings are understood.
    let root = folder.join("root");
    run("dpkg-deb", &["-x", &package, root.to_str().unwrap()]).ok();
    let settings = root.join("etc/ceph-native/ceph-native.toml");
    let checked = run(&program(), &["--settings", settings.to_str().unwrap(), "check"]);
    let said = String::from_utf8_lossy(&checked.out).into_owned();
    assert!(said.contains("settings"), "{checked}");
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn programs_are_one_file_each() {
    let mapper = Path::new(&program()).with_file_name("rbd-nbd-rs").display().to_string();
    for program in [program(), mapper] {
        let needs = run("ldd", &[&program]);
        let said = format!("{}{}", String::from_utf8_lossy(&needs.out), needs.err);
        assert!(
            said.contains("not a dynamic executable") || said.contains("statically linked"),
            "{program}: {said}"
        );
    }
}

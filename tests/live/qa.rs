//! Others' tests with our program in the place of theirs, in a guest with Ceph 18's programs, unmodified: Ceph's own
//! script for `rbd-nbd`, `qa/workunits/rbd/rbd-nbd.sh`, and the nbd group of blktests. They are not kept here:
//! `tests/guest/qa PATH` and `tests/guest/blktests PATH` take them, and run this.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Ceph, Guest, Machine, Options, run};

/// It takes seven minutes on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(3600);

#[test]
fn cephs_script_for_rbd_nbd() {
    let Some(script) = std::env::var_os("CEPH_NATIVE_QA") else { return };
    let script = Path::new(&script);
    let ceph = Ceph::start(Options::default());
    let guest = Guest::boot_on(Machine { debian: true, ..Machine::default() }, &ceph);
    let helpers = script.with_file_name("../../standalone/ceph-helpers.sh");
    let files = [(script, "workunits/rbd/rbd-nbd.sh"), (&helpers, "standalone/ceph-helpers.sh")];
    for (from, to) in files {
        let text = fs::read_to_string(from).unwrap_or_else(|error| panic!("{error}: {from:?}"));
        guest.ok(&format!(
            "cd /debian; mkdir -p $(dirname qa/{to}); cat > qa/{to} <<'END OF QA'\n{text}\nEND OF QA\nchmod +x qa/{to}"
        ));
    }
    // The script asks `ps`, which that Debian does without.
    let libraries = run("ldd", &["/usr/bin/ps"]).ok();
    let library =
        libraries.split_whitespace().find(|word| word.starts_with('/') && word.contains("libproc"));
    for file in ["/usr/bin/ps", library.expect("ps has a library")] {
        let text = run("base64", &[file]).ok();
        let to = format!(
            "/debian/usr/{}",
            if file.ends_with("ps") { "bin" } else { "lib/x86_64-linux-gnu" }
        );
        guest.ok(&format!(
            "base64 -d > {to}/$(basename {file}) <<'END'\n{text}END\nchmod +x {to}/$(basename {file})"
        ));
    }
    guest.ok("modprobe nbd; mount --bind /debian/brought/rbd-nbd-rs /debian/usr/bin/rbd-nbd
         cat > /debian/qa/run <<'END'
         cd /tmp; export HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb
         /qa/workunits/rbd/rbd-nbd.sh; echo \"exit $?\" > /qa/exit\nEND
         (chroot /debian /bin/bash /qa/run > /debian/qa/log 2>&1 &)");
    let began = Instant::now();
    while guest.run("[ -e /debian/qa/exit ]").code != 0 {
        assert!(began.elapsed() < LIMIT, "{}", guest.ok("tail -n 100 /debian/qa/log"));
        std::thread::sleep(Duration::from_secs(5));
    }
    let log = guest.ok("cat /debian/qa/log");
    if let Some(file) = std::env::var_os("CEPH_NATIVE_QA_LOG") {
        fs::write(file, &log).unwrap();
    }
    let exit = guest.ok("cat /debian/qa/exit");
    println!("{} s; {exit}", began.elapsed().as_secs());
    let last: Vec<_> = log.lines().skip(log.lines().count().saturating_sub(60)).collect();
    let is_whole = log.lines().any(|line| line == "OK");
    assert!(exit == "exit 0\n" && is_whole, "{exit}{}", last.join("\n"));
}

#[test]
fn blktests_nbd_group() {
    let Some(archive) = std::env::var_os("CEPH_NATIVE_BLKTESTS") else { return };
    let ceph = Ceph::start(Options::default());
    let guest = Guest::boot_on(Machine { debian: true, ..Machine::default() }, &ceph);
    let archive = run("base64", &[archive.to_str().unwrap()]).ok();
    // Its udevd is to think that it is the host's.
    guest.ok(&format!(
        "base64 -d > /debian/archive <<'END'\n{archive}END
         cat > /debian/in <<'END'
export SYSTEMD_IGNORE_CHROOT=1 HOME=/root TERM=dumb PATH=/roles/$1:/usr/sbin:/usr/bin:/sbin:/bin
cd /blktests; \"${{@:2}}\"
END
         chroot /debian /usr/bin/tar -C / --keep-directory-symlink --no-same-owner -xzf /archive
         cp -r /lib/modules /debian/usr/lib/; cp /brought/rbd-nbd-rs /debian/usr/bin/
         mount -t debugfs debugfs /debian/sys/kernel/debug
         echo > /proc/sys/kernel/modprobe; modprobe nbd
         chroot /debian /bin/bash /in - /usr/lib/systemd/systemd-udevd --daemon
         chroot /debian /bin/bash /in - udevadm settle"
    ));
    let (mut log, mut failed) = (String::new(), Vec::new());
    for (role, number) in ["serve", "map"].iter().flat_map(|role| (1..=4).map(move |i| (role, i))) {
        let test = format!("nbd/00{number}");
        guest.ok(&format!(
            "rm -f /debian/exit
             (CODE=0; chroot /debian /bin/bash /in {role} ./check {test} > /debian/log 2>&1 || CODE=$?
              echo $CODE > /debian/exit) > /dev/null 2>&1 &"
        ));
        let began = Instant::now();
        while guest.run("[ -e /debian/exit ]").code != 0 && began.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_secs(2));
        }
        let said = guest.run(&format!(
            "cat /debian/log; cd /debian/blktests/results/nodev; tail -n 50 {test}*; grep -q passed /debian/log"
        ));
        println!(
            "{role}, {:.0} s: {}",
            began.elapsed().as_secs_f64(),
            guest.ok("tail -n 2 /debian/log")
        );
        if said.code != 0 {
            failed.push(format!("{role} {test}"));
        }
        log += &format!("=== {role} {test}\n{said}\n");
    }
    if let Some(file) = std::env::var_os("CEPH_NATIVE_QA_LOG") {
        fs::write(file, &log).unwrap();
    }
    assert!(failed.is_empty(), "{failed:?} failed\n{log}");
}

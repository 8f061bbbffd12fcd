//! Getting in, and being told plainly why not.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::support::{Auth, Ceph, Mode, Options, run};
use crate::{one_osd, random_file, sha256};

#[test]
fn every_mode_and_authentication_carries_data() {
    for (auth, mode) in
        [(Auth::Cephx, Mode::Crc), (Auth::None, Mode::Crc), (Auth::Cephx, Mode::Secure)]
    {
        let ceph = Ceph::start(Options { auth, mode, ..Options::default() });
        carries_data(&ceph, &[]);
        // A client that must not do what the cluster does.
        let ours = if mode == Mode::Crc { "secure" } else { "crc" };
        if auth == Auth::Cephx {
            let option = format!("--ms_mon_client_mode={ours}");
            refused(&ceph, &[&option, "rbd/any"], &["crc", "secure", "ms_mon_client_mode"]);
            let client = format!("--ms_client_mode={ours}");
            let limit = "--rados_osd_op_timeout=5";
            let ran = ceph.ours(&["info", "rbd/any", &client, limit]);
            assert!(ran.err.contains("the osds allow connections in"), "{ran}");
            ran.refused();
        }
    }
}

#[test]
fn monitors_of_messenger_v1_alone_are_called_that() {
    let ceph = one_osd();
    for hosts in ["v1:127.0.0.1:6789", "[v1:127.0.0.1:6789/0]", "127.0.0.1:6789"] {
        refused(ceph, &["--mon-host", hosts, "rbd/any"], &["messenger v2", "enable-msgr2"]);
    }
}

#[test]
fn the_client_may_ask_for_a_mode() {
    for mode in ["crc", "secure"] {
        let (all, mons) =
            (format!("--ms_client_mode={mode}"), format!("--ms_mon_client_mode={mode}"));
        carries_data(one_osd(), &[&all, &mons]);
    }
}

fn carries_data(ceph: &Ceph, options: &[&str]) {
    let image = format!("carried{}", options.concat().replace('=', "-"));
    ceph.rbd(&["create", "--size", "16M", "--image-feature", "layering", &image]);
    let spec = format!("rbd/{image}");
    let serve = ceph.serve(&[options, &[&spec]].concat());
    let file = ceph.dir().join(format!("{image}.random"));
    random_file(&file, 16 << 20);
    run("nbdcopy", &["--flush", file.to_str().unwrap(), &serve.uri(&spec)]).ok();
    let (back, export) = (file.with_extension("back"), file.with_extension("export"));
    run("nbdcopy", &[&serve.uri(&spec), back.to_str().unwrap()]).ok();
    ceph.rbd(&["export", "--no-progress", &image, export.to_str().unwrap()]);
    assert_eq!(sha256(&file), sha256(&back));
    assert_eq!(sha256(&file), sha256(&export));
}

/// Runs `info` with `options`, which must fail with one line that has all of `words`.
#[track_caller]
fn refused(ceph: &Ceph, options: &[&str], words: &[&str]) {
    let begun = Instant::now();
    let ran = ceph.ours(&[&["info"], options].concat());
    let message = ran.to_string();
    assert!(ran.out.is_empty(), "{message}");
    let said = ran.refused();
    assert_eq!(said.lines().count(), 1, "one clear line: {message}");
    for word in words {
        assert!(said.contains(word), "doesn't say {word}: {message}");
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}: {message}", begun.elapsed());
}

#[test]
fn what_is_not_there_is_named() {
    let ceph = one_osd();
    refused(ceph, &["nopool/image"], &["nopool"]);
    refused(ceph, &["rbd/noimage"], &["noimage"]);
    refused(ceph, &["rbd/nospace/noimage"], &["nospace"]);
    ceph.rbd(&["create", "--size", "1M", "there"]);
    refused(ceph, &["rbd/there@nosnap"], &["nosnap"]);
    refused(ceph, &["--conf", "/nonexistent/ceph.conf", "rbd/there"], &["/nonexistent/ceph.conf"]);
}

#[test]
fn a_wrong_key_is_called_one() {
    let ceph = one_osd();
    let wrong = ceph.dir().join("wrong.keyring");
    let args = ["--create-keyring", "--gen-key", "-n", "client.admin", wrong.to_str().unwrap()];
    run("ceph-authtool", &args).ok();
    refused(ceph, &["--keyring", wrong.to_str().unwrap(), "rbd/any"], &["client.admin"]);
}

#[test]
fn an_unknown_client_is_named() {
    let ceph = one_osd();
    let nobody = ceph.dir().join("nobody.keyring");
    let args = ["--create-keyring", "--gen-key", "-n", "client.nobody", nobody.to_str().unwrap()];
    run("ceph-authtool", &args).ok();
    let options = ["--id", "nobody", "--keyring", nobody.to_str().unwrap(), "rbd/any"];
    refused(ceph, &options, &["client.nobody"]);
}

#[test]
fn a_missing_keyring_is_named() {
    let ceph = one_osd();
    refused(ceph, &["--keyring", "/nonexistent/keyring", "rbd/any"], &["/nonexistent/keyring"]);
    // A keyring that has other clients' keys only.
    refused(ceph, &["--id", "absent", "rbd/any"], &["client.absent"]);
}

#[test]
fn a_pool_without_permission_is_named() {
    let ceph = one_osd();
    ceph.create_pool("forbidden");
    ceph.rbd(&["create", "--size", "1M", "forbidden/image"]);
    ceph.rbd(&["create", "--size", "1M", "--image-feature", "layering", "permitted"]);
    let caps = ["mon", "profile rbd", "osd", "profile rbd pool=rbd"];
    let keyring = ceph.create_client("client.limited", &caps);
    let who = ["--id", "limited", "--keyring", keyring.to_str().unwrap()];
    ceph.ours(&[&["info", "rbd/permitted"], &who[..]].concat()).ok();
    refused(ceph, &[&["forbidden/image"], &who[..]].concat(), &["forbidden", "client.limited"]);
}

#[test]
fn monitors_that_do_not_answer_are_listed_within_seconds() {
    let ceph = one_osd();
    // One that takes connections and says nothing, and one where nobody listens.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hosts = format!("[v2:{silent}],[v2:{closed}]");
    let (silent, closed) = (silent.to_string(), closed.to_string());
    refused(ceph, &["--mon-host", &hosts, "rbd/any"], &[&silent, &closed]);
}

#[test]
fn the_next_monitor_is_tried() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "1M", "hunted"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hosts = format!("[v2:{closed}],[v2:{}]", ceph.mon_addr(0));
    ceph.ours(&["--mon-host", &hosts, "info", "rbd/hunted"]).ok();
}

#[test]
fn configuration_and_keys_are_found_as_ceph_finds_them() {
    let ceph = one_osd();
    ceph.rbd(&["create", "--size", "1M", "found"]);
    // Spaces or underscores, a section for the client alone, metavariables, plain addresses, a key in a file.
    let text = std::fs::read_to_string(ceph.keyring()).unwrap();
    let admin = text.split("[client.admin]").nth(1).unwrap();
    let key = admin.lines().find_map(|line| line.trim().strip_prefix("key = ")).unwrap();
    let dir = ceph.dir();
    std::fs::write(dir.join("admin.secret"), key).unwrap();
    // `$cluster` is the name of the file that was read.
    let keyring = dir.join("a.client.admin.keyring");
    std::fs::write(&keyring, format!("[client.admin]\n\tkey = {key}\n")).unwrap();
    let path = |name: &str, text: String| -> PathBuf {
        std::fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let mon = ceph.mon_addr(0);
    let dir = dir.display();
    let confs = [
        path(
            "a.conf",
            format!("[global]\nmon_host = v2:{mon}\nkeyring={dir}/$cluster.$name.keyring\n"),
        ),
        path(
            "b.conf",
            format!(
                "[client.admin]\n mon host = [v2:{mon}/0] ; comment\nkeyfile = {dir}/admin.secret\n"
            ),
        ),
        path(
            "c.conf",
            format!("[client]\nmon host = {mon}\n[client.$id]\n[global]\nkey = {key}\n"),
        ),
    ];
    for conf in confs {
        let conf = conf.to_str().unwrap();
        let theirs = run("rbd", &["--conf", conf, "info", "found", "--format", "json"]).json();
        let ours = run(
            &crate::support::program(),
            &["--conf", conf, "info", "rbd/found", "--format", "json"],
        );
        assert_eq!(ours.json(), theirs, "{conf}");
    }
}

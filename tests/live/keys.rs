//! Keys, tickets and ciphers that change while a client is at work, which must not notice more than it has to.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::load::under_load;
use crate::support::{Auth, Ceph, Options, Release, Serve, Store};
use crate::{full, releases};

/// Tickets for services are good for seconds, the monitors' own for some more; everybody looks after theirs often.
const SHORT_LIVED: &str = "auth service ticket ttl = 6
auth mon ticket ttl = 12
mon client ping interval = 1
";

const WRITER: &[&str] = &["mon", "profile rbd", "osd", "profile rbd"];

fn cluster(release: Release, auth: Auth) -> Ceph {
    Ceph::start(Options {
        release,
        auth,
        osds: 3,
        store: Store::Bluestore,
        conf: SHORT_LIVED,
        ..Options::default()
    })
}

/// The options of a client with a key in a file of its own.
fn as_writer(keyring: &Path) -> [&str; 4] {
    ["--id", "writer", "--keyring", keyring.to_str().unwrap()]
}

#[track_caller]
fn wait_for(what: &str, serve: &Serve, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(90), "{what}: {}", serve.log());
        sleep(Duration::from_millis(100));
    }
}

fn count(serve: &Serve, line: &str) -> usize {
    serve.log().matches(line).count()
}

const FRESH: &str = "fresh tickets";
const LOGGED_IN: &str = "logged in";

#[test]
fn tickets_are_renewed_while_nobody_waits() {
    for release in releases() {
        let ceph = cluster(*release, Auth::Cephx);
        let keyring = ceph.create_client("client.writer", WRITER);
        let log = under_load(&ceph, &as_writer(&keyring), |serve| {
            // Every ticket that it began with has ended twice over.
            wait_for("renewals", serve, || count(serve, FRESH) >= 6);
            assert!(!serve.log().contains("lost"), "no connection ends for it: {}", serve.log());
            // A new connection takes a ticket that is good.
            ceph.kill_osd(1);
            ceph.start_osd(1);
        });
        assert!(!log.contains("the key of") && !log.contains("cannot be used"), "{log}");
    }
}

#[test]
fn keys_and_ciphers_change_under_load() {
    if !full() {
        return;
    }
    for auth in [Auth::Aes, Auth::Mixed, Auth::Cephx] {
        let ceph = cluster(Release::Tentacle, auth);
        let aes = if auth == Auth::Mixed { &["--key_type=aes"][..] } else { &[] };
        let keyring = ceph.create_client("client.writer", &[WRITER, aes].concat());
        let log = under_load(&ceph, &as_writer(&keyring), |serve| {
            change_the_key(&ceph, serve, &keyring, aes);
            wipe_rotating_keys(&ceph, serve);
            switch_ciphers(&ceph, serve, auth, &keyring);
        });
        assert!(log.contains("has a new one"), "{log}");
    }
}

#[test]
fn the_key_changes_under_load() {
    let releases = if full() { &Release::ALL[..2] } else { &Release::ALL[..1] };
    for release in releases {
        let ceph = cluster(*release, Auth::Cephx);
        let keyring = ceph.create_client("client.writer", WRITER);
        // `ceph auth rotate` came with 20; before, an administrator imports a keyring.
        let new = ceph.dir().join("new.keyring");
        let path = new.to_str().unwrap();
        let caps = ["--cap", "mon", "profile rbd", "--cap", "osd", "profile rbd"];
        let make = [&["-C", path, "--gen-key", "-n", "client.writer"][..], &caps].concat();
        ceph.run("ceph-authtool", &make).ok();
        under_load(&ceph, &as_writer(&keyring), |serve| {
            ceph.ceph(&["auth", "import", "-i", path]);
            renewed_key(&ceph, serve, &keyring, &fs::read_to_string(&new).unwrap());
        });
    }
}

fn change_the_key(ceph: &Ceph, serve: &Serve, keyring: &Path, key_type: &[&str]) {
    let new = ceph.ceph(&[&["auth", "rotate", "client.writer"], key_type].concat());
    renewed_key(ceph, serve, keyring, &new);
}

/// The monitors refuse the old key; an administrator brings the new one to this host somewhat later.
fn renewed_key(ceph: &Ceph, serve: &Serve, keyring: &Path, text: &str) {
    let logins = count(serve, LOGGED_IN);
    // Whoever is connected stays so; a new monitor asks for the key.
    ceph.kill_mon(0);
    ceph.start_mon(0);
    wait_for("the key is refused", serve, || serve.log().contains("no other one yet"));
    fs::write(keyring, text).unwrap();
    wait_for("a login with the new key", serve, || count(serve, LOGGED_IN) > logins);
    assert!(serve.log().contains(&format!("{} has a new one", keyring.display())));
}

/// All tickets for services become worthless at once.
fn wipe_rotating_keys(ceph: &Ceph, serve: &Serve) {
    let renewals = count(serve, FRESH);
    ceph.ceph(&["auth", "wipe-rotating-service-keys"]);
    wait_for("tickets after the wipe", serve, || count(serve, FRESH) > renewals);
    ceph.kill_osd(2);
    ceph.start_osd(2);
}

/// To the other type and back, for tickets, new keys and our own.
fn switch_ciphers(ceph: &Ceph, serve: &Serve, auth: Auth, keyring: &Path) {
    let (other, own) = if auth == Auth::Aes { ("aes256k", "aes") } else { ("aes", "aes256k") };
    let both = "aes,aes256k";
    ceph.ceph(&["mon", "set", "auth_allowed_ciphers", both]);
    ceph.ceph(&["config", "set", "mon", "mon_auth_allow_insecure_key", "true"]);
    for kind in [other, own] {
        ceph.ceph(&["mon", "set", "auth_service_cipher", kind]);
        ceph.ceph(&["mon", "set", "auth_preferred_cipher", kind]);
        let renewals = count(serve, FRESH);
        change_the_key(ceph, serve, keyring, &[&format!("--key_type={kind}")]);
        wait_for("tickets of the other type", serve, || count(serve, FRESH) > renewals + 2);
        ceph.kill_osd(0);
        ceph.start_osd(0);
    }
}

#[test]
fn a_key_of_a_type_that_is_not_allowed_is_called_that() {
    if !full() {
        return;
    }
    let options = Options { release: Release::Tentacle, auth: Auth::Mixed, ..Options::default() };
    let ceph = Ceph::start(options);
    let keyring = ceph.create_client("client.writer", &[WRITER, &["--key_type=aes"]].concat());
    ceph.rbd(&["create", "--size", "1M", "--image-feature", "layering", "image"]);
    let info = [&["info", "rbd/image"][..], &as_writer(&keyring)].concat();
    ceph.ours(&info).ok();
    let serve = ceph.serve(&[&as_writer(&keyring)[..], &["rbd/image"]].concat());
    ceph.ceph(&["mon", "set", "auth_allowed_ciphers", "aes256k"]);
    // A stranger is not told what is wrong; whoever was in is.
    let said = ceph.ours(&info).refused();
    assert!(said.contains("the cluster does not allow aes keys"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    ceph.kill_mon(0);
    ceph.start_mon(0);
    wait_for("the reason", &serve, || {
        serve.log().contains("the cluster does not allow aes keys any more, only aes256k")
    });
}

#[test]
fn huge_tickets_are_carried() {
    let ceph = Ceph::start(Options::default());
    let caps: Vec<_> =
        (0..3000).map(|i| format!("allow rwx pool=rbd object_prefix some_{i}")).collect();
    let caps = format!("{}, profile rbd", caps.join(", "));
    assert!(caps.len() > 100_000);
    let keyring = ceph.create_client("client.writer", &["mon", "profile rbd", "osd", &caps]);
    ceph.rbd(&["create", "--size", "1M", "--image-feature", "layering", "image"]);
    let serve = ceph.serve(&[&as_writer(&keyring)[..], &["rbd/image"]].concat());
    let uri = serve.uri("rbd/image");
    crate::run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M"])
        .ok();
}

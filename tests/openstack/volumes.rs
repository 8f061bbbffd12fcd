//! What Docker users see of volumes that Cinder makes, and what Cinder shows of them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cloud::OpenStack;
use crate::dockerd::nothing_is_left;
use crate::host::{Host, eventually};
use crate::openstack;

/// A container's id.
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

pub(crate) const ALICE: [&str; 2] = ["alice", "alpha"];
pub(crate) const BOB: [&str; 2] = ["bob", "beta"];

/// Settings that allow for a machine that is busy.
pub(crate) fn settings(cloud: &OpenStack, more: &str) -> String {
    let own = cloud.settings("alice", "alpha");
    format!(
        "answer-ms = 10000\nwork-seconds = 120\n{more}\n[volumes]\nbackend = \"cinder\"\nsize = \"1\"\n{own}"
    )
}

pub(crate) fn create(name: &str, options: &[(&str, &str)]) -> Value {
    let options: serde_json::Map<_, _> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    json!({ "Name": name, "Opts": options })
}

fn status(host: &Host, name: &str) -> Value {
    host.called("VolumeDriver.Get", &json!({ "Name": name }))["Volume"]["Status"].clone()
}

pub(crate) fn only(cloud: &OpenStack, as_whom: [&str; 2], name: &str) -> Value {
    let mut found = cloud.volumes(as_whom, name);
    assert_eq!(found.len(), 1, "volumes of the name {name}: {found:?}");
    found.remove(0)
}

#[test]
fn a_volume_of_cinders_is_used_grown_moved_and_removed() {
    let Some((cloud, _turn)) = openstack() else { return };
    let host = Host::start(cloud.ceph, "one", &settings(cloud, ""));
    let project = cloud.project("alpha");
    let said = host.ours(&["check"]);
    let said = String::from_utf8_lossy(&said.out).into_owned();
    let told = format!(
        "ok     cloud: project alpha ({project}), Cinder 3.54; the project has 0 of 100 volumes"
    );
    assert!(said.contains(&told), "{said}");
    // ext4 grows only where the plugin has a capability that containers rarely have.
    let options = [("project-id", project), ("fstype", "xfs")];
    host.called("VolumeDriver.Create", &create("pg", &options));
    let made = only(cloud, ALICE, "pg");
    assert_eq!((&made["status"], &made["size"]), (&json!("available"), &json!(1)), "{made}");
    assert_eq!(made["attachments"], json!([]), "nothing stays attached that isn't mounted");
    host.called("VolumeDriver.Create", &create("pg", &[("size", "1"), ("project-id", project)]));
    only(cloud, ALICE, "pg");
    let refused = host.refused("VolumeDriver.Create", &create("pg", &[("backend", "rbd")]));
    assert!(refused.contains("back end is cinder"), "{refused}");

    // Mounted, and shown so.
    let root = host.mount("pg", ID);
    fs::write(root.join("file"), "kept").unwrap();
    let shown = only(cloud, ALICE, "pg");
    assert_eq!(shown["status"], "in-use", "{shown}");
    let device = format!("one:{}", root.display());
    assert_eq!(shown["attachments"][0]["device"], device.as_str(), "{shown}");
    let told = status(&host, "pg");
    assert_eq!(told["cinder-status"], "in-use", "{told}");
    assert_eq!(told["project"], project, "{told}");
    assert_eq!(told["cinder-volume"], shown["id"], "{told}");
    assert_eq!(told["cinder-attachment"], shown["attachments"][0]["attachment_id"], "{told}");

    // Nowhere else.
    let other = Host::start(cloud.ceph, "two", &settings(cloud, ""));
    let refused = other.refused("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "x" }));
    assert!(refused.contains("mounted on host one"), "{refused}");
    let refused = other.refused("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(refused.contains("mounted on host one"), "{refused}");

    // Grown while in use.
    let said = host.ours(&["resize", "pg", "2"]).ok();
    assert!(said.contains("file system have 2147483648 bytes"), "{said}");
    assert_eq!(only(cloud, ALICE, "pg")["size"], 2);

    // A snapshot is Cinder's, and keeps the volume.
    let body = json!({ "snapshot": { "volume_id": shown["id"], "name": "s1", "force": true } });
    let snapshot = cloud.ask(ALICE, "POST", "snapshots", Some(body))["snapshot"]["id"].clone();
    let snapshot = format!("snapshots/{}", snapshot.as_str().unwrap());
    eventually("the snapshot is there", || {
        cloud.ask(ALICE, "GET", &snapshot, None)["snapshot"]["status"] == "available"
    });
    host.unmount("pg", ID);
    let shown = only(cloud, ALICE, "pg");
    assert_eq!((&shown["status"], &shown["attachments"]), (&json!("available"), &json!([])));
    let refused = host.refused("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(refused.contains("snapshots in Cinder: s1"), "{refused}");
    cloud.ask(ALICE, "DELETE", &snapshot, None);
    eventually("the snapshot is gone", || {
        cloud.ask(ALICE, "GET", &snapshot, None)["snapshot"].is_null()
    });

    // On the other host, with its data.
    let root = other.mount("pg", "y");
    assert_eq!(fs::read_to_string(root.join("file")).unwrap(), "kept");
    let device = only(cloud, ALICE, "pg")["attachments"][0]["device"].clone();
    assert!(device.as_str().unwrap().starts_with("two:/"), "{device}");
    other.unmount("pg", "y");

    // What a virtual machine has is not taken from it.
    let id = shown["id"].as_str().unwrap();
    let reserve = Some(json!({ "os-reserve": {} }));
    cloud.ask(ALICE, "POST", &format!("volumes/{id}/action"), reserve);
    let attach = json!({ "os-attach": {
        "instance_uuid": "11111111-2222-3333-4444-555555555555",
        "mountpoint": "/dev/vdb",
    }});
    cloud.ask(ALICE, "POST", &format!("volumes/{id}/action"), Some(attach));
    let refused = host.refused("VolumeDriver.Mount", &json!({ "Name": "pg", "ID": "x" }));
    assert!(refused.contains("attached to server 11111111-2222"), "{refused}");
    cloud.ask(ALICE, "POST", &format!("volumes/{id}/action"), Some(json!({ "os-detach": {} })));
    eventually("it is free again", || only(cloud, ALICE, "pg")["status"] == "available");

    host.called("VolumeDriver.Remove", &json!({ "Name": "pg" }));
    assert!(cloud.volumes(ALICE, "pg").is_empty());
    assert_eq!(cloud.ceph.rbd(&["ls", "volumes"]).trim(), "");
}

#[test]
fn projects_quotas_roles_and_types_are_told_apart() {
    let Some((cloud, _turn)) = openstack() else { return };
    let clouds = cloud.ceph.dir().join("clouds.yaml");
    let entry = |user: &str, project: &str, auth_url: &str| {
        let project = cloud.project(project);
        format!(
            "  {user}:\n    auth: {{auth_url: '{auth_url}', username: {user}, password: {user}pw, \
             project_id: {project}}}\n"
        )
    };
    let text = format!(
        "clouds:\n{}{}{}",
        entry("bob", "beta", &cloud.keystone),
        entry("rita", "alpha", &cloud.keystone),
        entry("alice", "alpha", &cloud.hasty)
    );
    fs::write(&clouds, text).unwrap();
    let mut host = Host::start(cloud.ceph, "projects", &settings(cloud, ""));
    host.kill_plugin();
    host.env.insert("OS_CLIENT_CONFIG_FILE", clouds.display().to_string());
    host.start_plugin();

    // Two projects, two users, one plugin.
    host.called("VolumeDriver.Create", &create("a", &[]));
    host.called("VolumeDriver.Create", &create("b", &[("cloud", "bob")]));
    only(cloud, ALICE, "a");
    only(cloud, BOB, "b");
    assert!(cloud.volumes(ALICE, "b").is_empty() && cloud.volumes(BOB, "a").is_empty());
    let root = host.mount("b", "1");
    assert!(root.is_dir());
    assert_eq!(only(cloud, BOB, "b")["status"], "in-use");

    // A quota, with its numbers.
    let quota = format!("os-quota-sets/{}", cloud.project("beta"));
    let admin = ["admin", "admin"];
    cloud.ask(admin, "PUT", &quota, Some(json!({ "quota_set": { "volumes": 1 } })));
    let refused = host.refused("VolumeDriver.Create", &create("b2", &[("cloud", "bob")]));
    assert!(refused.contains("1 of 1 volumes"), "{refused}");
    cloud.ask(admin, "PUT", &quota, Some(json!({ "quota_set": { "volumes": 100 } })));

    // What is not allowed, or not there.
    for (options, words) in [
        (vec![("project-id", cloud.project("beta"))], "user, password, project"),
        (vec![("cloud", "rita")], "403"),
        (vec![("cloud", "nowhere")], "there is no cloud nowhere"),
        (vec![("volume-type", "none")], "none could not be found"),
        (vec![("volume-type", "nowhere")], "weighted backend"),
        (vec![("availability-zone", "mars")], "'mars' is invalid"),
        (vec![("pool", "rbd")], "option pool is for backend=rbd"),
    ] {
        let refused = host.refused("VolumeDriver.Create", &create("no", &options));
        assert!(refused.contains(words), "{options:?}: {refused}");
        assert!(!refused.contains("alicepw") && !refused.contains("ritapw"), "{refused}");
        eventually("nothing is left of it", || cloud.volumes(ALICE, "no").is_empty());
    }

    // Tokens that live for five seconds.
    host.called("VolumeDriver.Create", &create("hasty", &[("cloud", "alice")]));
    std::thread::sleep(Duration::from_secs(7));
    host.mount("hasty", "1");
    std::thread::sleep(Duration::from_secs(7));
    host.unmount("hasty", "1");
    assert_eq!(only(cloud, ALICE, "hasty")["status"], "available");
    host.unmount("b", "1");
    for name in ["a", "b", "hasty"] {
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
    assert!(!host.log().contains("alicepw") && !host.log().contains("bobpw"));
}

#[test]
fn a_revoked_credential_and_a_cloud_that_is_away_keep_nobody_from_what_needs_neither() {
    let Some((cloud, _turn)) = openstack() else { return };
    let user = cloud.ids["users"]["alice"].as_str().unwrap();
    let path = format!("keystone/users/{user}/application_credentials");
    let body = json!({ "application_credential": { "name": "plugin", "secret": "notforlogs" } });
    let credential =
        cloud.ask(ALICE, "POST", &path, Some(body))["application_credential"]["id"].clone();
    let credential = credential.as_str().unwrap();
    let settings = format!(
        "answer-ms = 10000\nwork-seconds = 60\n[cinder.auth]\nauth-url = {:?}\n\
         application-credential-id = {credential:?}\n\
         application-credential-secret = \"notforlogs\"\n[volumes]\nsize = \"1\"\n",
        cloud.keystone
    );
    let mut host = Host::start(cloud.ceph, "away", &settings);
    host.called("VolumeDriver.Create", &create("plain", &[]));
    host.called("VolumeDriver.Create", &create("c", &[("backend", "cinder")]));
    host.called("VolumeDriver.Create", &create("d", &[("backend", "cinder")]));
    let root = host.mount("c", "1");
    let wrong = host.refused(
        "VolumeDriver.Create",
        &create("e", &[("backend", "cinder"), ("project-id", cloud.project("beta"))]),
    );
    assert!(wrong.contains("the application credential is for project"), "{wrong}");

    cloud.kill_service("cinder");
    let begun = Instant::now();
    fs::write(root.join("file"), "x").unwrap();
    host.mount("c", "2");
    host.mount("plain", "1");
    host.unmount("plain", "1");
    host.called("VolumeDriver.Remove", &json!({ "Name": "plain" }));
    let told = status(&host, "c");
    assert!(told["cinder-status"].as_str().unwrap().starts_with("unknown"), "{told}");
    let refused = host.refused("VolumeDriver.Mount", &json!({ "Name": "d", "ID": "1" }));
    assert!(refused.contains("Cinder"), "{refused}");
    // Unmounted here, and told to Cinder later.
    host.unmount("c", "1");
    host.unmount("c", "2");
    assert!(host.mounts().is_empty() && host.mappings().is_empty());
    assert!(begun.elapsed() < Duration::from_secs(240), "{:?}", begun.elapsed());
    // It is remembered by the next plugin, too.
    host.kill_plugin();
    cloud.start_service("cinder");
    assert_eq!(only(cloud, ALICE, "c")["status"], "in-use");
    host.start_plugin();
    eventually("Cinder is told", || only(cloud, ALICE, "c")["status"] == "available");
    host.mount("d", "1");
    host.unmount("d", "1");

    cloud.kill_service("keystone");
    let refused = host.refused("VolumeDriver.Create", &create("f", &[("backend", "cinder")]));
    assert!(refused.contains("Cinder") || refused.contains("Keystone"), "{refused}");
    cloud.start_service("keystone");

    for name in ["c", "d"] {
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
    cloud.ask(ALICE, "DELETE", &format!("{path}/{credential}"), None);
    let refused = host.refused("VolumeDriver.Create", &create("g", &[("backend", "cinder")]));
    assert!(refused.contains("the application credential was removed"), "{refused}");
    assert!(!host.log().contains("notforlogs"));
}

#[test]
fn the_older_actions_attach_as_well() {
    let Some((cloud, _turn)) = openstack() else { return };
    let own = cloud
        .settings("alice", "alpha")
        .replace("[cinder.auth]", "[cinder]\nattach-api = \"actions\"\n[cinder.auth]");
    let settings = format!(
        "answer-ms = 10000\nwork-seconds = 120\n[volumes]\nbackend = \"cinder\"\nsize = \"1\"\n{own}"
    );
    let mut host = Host::start(cloud.ceph, "actions", &settings);
    host.called("VolumeDriver.Create", &create("old", &[]));
    assert_eq!(only(cloud, ALICE, "old")["status"], "available");
    let root = host.mount("old", ID);
    let shown = only(cloud, ALICE, "old");
    assert_eq!(shown["status"], "in-use", "{shown}");
    let attachment = &shown["attachments"][0];
    assert_eq!(attachment["server_id"], "01234567-89ab-cdef-0123-456789abcdef", "{shown}");
    assert_eq!(attachment["device"], format!("actions:{}", root.display()), "{shown}");
    host.unmount("old", ID);
    let shown = only(cloud, ALICE, "old");
    assert_eq!(
        (&shown["status"], &shown["attachments"]),
        (&json!("available"), &json!([])),
        "{shown}"
    );

    // One volume has one of both for as long as it lives, whatever the settings say meanwhile.
    let server = |name: &str| only(cloud, ALICE, name)["attachments"][0]["server_id"].clone();
    change_settings(&mut host, "attach-api = \"actions\"\n", "");
    host.called("VolumeDriver.Create", &create("new", &[]));
    for (name, by_server) in [("old", true), ("new", false)] {
        host.mount(name, ID);
        assert_eq!(server(name).is_string(), by_server, "{name}");
        host.unmount(name, ID);
    }
    change_settings(&mut host, "[cinder]\n", "[cinder]\nattach-api = \"actions\"\n");
    for (name, by_server) in [("old", true), ("new", false)] {
        host.mount(name, ID);
        assert_eq!(server(name).is_string(), by_server, "{name}");
        host.unmount(name, ID);
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
        assert!(cloud.volumes(ALICE, name).is_empty(), "{name}");
    }
}

/// Starts the plugin anew with other settings.
pub(crate) fn change_settings(host: &mut Host, from: &str, to: &str) {
    host.kill_plugin();
    let file = host.dir.join("settings.toml");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(file, text.replace(from, to)).unwrap();
    host.start_plugin();
}

#[test]
fn another_project_a_type_and_a_zone_are_had_for_the_asking() {
    let Some((cloud, _turn)) = openstack() else { return };
    let host = Host::start(cloud.ceph, "asking", &settings(cloud, ""));
    // For as long as this takes, one user has a role in both projects.
    let admin = ["admin", "admin"];
    let roles = cloud.ask(admin, "GET", "keystone/roles?name=member", None);
    let (alice, beta) = (cloud.ids["users"]["alice"].as_str().unwrap(), cloud.project("beta"));
    let role = roles["roles"][0]["id"].as_str().unwrap();
    let role = format!("keystone/projects/{beta}/users/{alice}/roles/{role}");
    cloud.ask(admin, "PUT", &role, None);
    let options = [("project-id", beta), ("volume-type", "ceph"), ("availability-zone", "nova")];
    host.called("VolumeDriver.Create", &create("theirs", &options));
    let shown = only(cloud, BOB, "theirs");
    assert_eq!(shown["volume_type"], "ceph", "{shown}");
    assert_eq!(shown["availability_zone"], "nova", "{shown}");
    assert!(cloud.volumes(ALICE, "theirs").is_empty());
    // The plugin knows by itself where it is.
    host.mount("theirs", "1");
    assert_eq!(only(cloud, BOB, "theirs")["status"], "in-use");
    assert_eq!(status(&host, "theirs")["project"], beta);
    host.unmount("theirs", "1");
    host.called("VolumeDriver.Remove", &json!({ "Name": "theirs" }));
    assert!(cloud.volumes(BOB, "theirs").is_empty());
    cloud.ask(admin, "DELETE", &role, None);
    let refused = host.refused("VolumeDriver.Create", &create("no", &options));
    assert!(refused.contains("no role there"), "{refused}");
}

#[test]
fn a_key_that_this_host_has_not_is_told_by_its_file() {
    let Some((cloud, _turn)) = openstack() else { return };
    let host = Host::start(cloud.ceph, "has-key", &settings(cloud, ""));
    host.called("VolumeDriver.Create", &create("locked", &[]));
    // All else is as it should be.
    let conf = fs::read_to_string(cloud.ceph.conf()).unwrap();
    let (before, after) = conf.split_once("[client.cinder]").unwrap();
    let missing = cloud.ceph.dir().join("not-there.keyring");
    let own = format!("{before}[client.cinder]\nkeyring = {}\n", missing.display());
    assert!(after.contains("keyring"), "{conf}");
    let other = cloud.ceph.dir().join("without-key.conf");
    fs::write(&other, own).unwrap();
    let mut keyless = Host::bare(cloud.ceph, "no-key", &settings(cloud, ""));
    let file = keyless.dir.join("settings.toml");
    let text = fs::read_to_string(&file).unwrap();
    let text =
        text.replace(&format!("conf = {:?}", cloud.ceph.conf()), &format!("conf = {other:?}"));
    assert!(text.contains("without-key"), "{text}");
    fs::write(file, text).unwrap();
    keyless.start_plugin();
    let refused = keyless.refused("VolumeDriver.Mount", &json!({ "Name": "locked", "ID": "1" }));
    assert!(refused.contains(&missing.display().to_string()), "{refused}");
    assert!(refused.contains("client.cinder"), "{refused}");
    assert!(keyless.mounts().is_empty() && keyless.mappings().is_empty());
    eventually("it is free", || only(cloud, ALICE, "locked")["status"] == "available");
    host.mount("locked", "1");
    host.unmount("locked", "1");
    host.called("VolumeDriver.Remove", &json!({ "Name": "locked" }));
}

/// A server that answers nothing that makes sense, in a way of its own each time.
fn nonsense() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { continue };
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 65536]);
                let head = "HTTP/1.1 201 Created\r\nX-Subject-Token: x\r\nConnection: close\r\n";
                let _ = match n % 6 {
                    0 => write!(stream, "{head}\r\n<html>come in</html>"),
                    1 => write!(stream, "{head}Content-Length: 1000\r\n\r\n{{\"token\": {{"),
                    2 => write!(stream, "\u{1}\u{2}\u{3}"),
                    // A body without end.
                    3 => {
                        let _ = write!(stream, "{head}\r\n");
                        while stream.write_all(&[b'['; 65536]).is_ok() {}
                        Ok(())
                    }
                    // One that comes byte by byte.
                    4 => {
                        let _ = write!(stream, "{head}Content-Length: 1000\r\n\r\n");
                        while stream.write_all(b" ").is_ok() {
                            std::thread::sleep(Duration::from_millis(200));
                        }
                        Ok(())
                    }
                    // Not a word.
                    _ => {
                        std::thread::sleep(Duration::from_secs(100));
                        Ok(())
                    }
                };
            });
        }
    });
    address
}

#[test]
fn a_cloud_that_answers_nonsense_keeps_nobody_from_what_needs_none() {
    let Some((cloud, _turn)) = openstack() else { return };
    let brief = settings(cloud, "")
        .replace("work-seconds = 120", "work-seconds = 30")
        .replace("answer-ms = 10000", "answer-ms = 2000")
        .replace("[cinder.auth]", "[cinder]\napi-timeout = 5\n[cinder.auth]");
    let mut host = Host::start(cloud.ceph, "nonsense", &brief);
    host.called("VolumeDriver.Create", &create("plain", &[("backend", "rbd")]));
    for name in ["has", "wants"] {
        host.called("VolumeDriver.Create", &create(name, &[]));
    }
    let root = host.mount("has", "1");
    let (real, other) = (cloud.keystone.clone(), nonsense());
    change_settings(&mut host, &real, &other);
    let within = |seconds: u64, what: &str, done: &dyn Fn()| {
        let begun = Instant::now();
        done();
        // The machine may be busy.
        let limit = Duration::from_secs(seconds + 10);
        assert!(begun.elapsed() < limit, "{what} took {:?}", begun.elapsed());
    };
    for user in 0..6 {
        let user = format!("user {user}");
        within(3, "what is not Cinder's", &|| {
            host.mount("plain", &user);
            host.unmount("plain", &user);
        });
        within(5, "one more user of what is mounted", &|| {
            host.mount("has", &user);
        });
        fs::write(root.join("file"), &user).unwrap();
        within(2, "telling", &|| {
            let told = status(&host, "has");
            assert!(told["cinder-status"].as_str().unwrap().starts_with("unknown"), "{told}");
        });
        within(2, "listing", &|| {
            let all = host.called("VolumeDriver.List", &json!({})).to_string();
            for name in ["plain", "has", "wants"] {
                assert!(all.contains(&format!("\"Name\":\"{name}\"")), "{all}");
            }
        });
        within(30, "what needs Cinder", &|| {
            let refused =
                host.refused("VolumeDriver.Mount", &json!({ "Name": "wants", "ID": "1" }));
            assert!(refused.contains("Keystone"), "{refused}");
            let refused = host.refused("VolumeDriver.Create", &create("no", &[]));
            assert!(refused.contains("Keystone") && !refused.contains("alicepw"), "{refused}");
        });
        within(10, "unmounting", &|| host.unmount("has", &user));
    }
    within(10, "unmounting", &|| host.unmount("has", "1"));
    assert!(host.mounts().is_empty() && host.mappings().is_empty());
    change_settings(&mut host, &other, &real);
    eventually("Cinder is told", || only(cloud, ALICE, "has")["status"] == "available");
    for name in ["plain", "has", "wants"] {
        host.called("VolumeDriver.Remove", &json!({ "Name": name }));
    }
    nothing_is_left(cloud);
}

//! Docker itself over volumes that Cinder makes: what its users see, and what Cinder shows of it.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cloud::OpenStack;
use crate::host::{DRIVER, Host, eventually};
use crate::openstack;
use crate::volumes::{ALICE, BOB, only, settings};

/// `docker volume create`, which must fail: what it says.
#[track_caller]
fn refused(host: &Host, name: &str, options: &[&str]) -> String {
    let options = options.iter().flat_map(|option| ["-o", *option]);
    let mut args = vec!["volume", "create", "--driver", DRIVER];
    args.extend(options);
    args.push(name);
    host.try_docker(&args).refused()
}

/// Runs a container `name` with a volume at /v, until it is removed.
#[track_caller]
fn run_with(host: &Host, name: &str, volume: &str) {
    let mount = format!("type=volume,src={volume},dst=/v,volume-driver={DRIVER}");
    let how = ["run", "-d", "--name", name, "--network=none", "--mount", &mount];
    host.docker(&[&how[..], &["bb", "sleep", "100000"]].concat());
}

/// Removes a volume, and sees that Cinder has it no more.
#[track_caller]
fn remove(cloud: &OpenStack, host: &Host, as_whom: [&str; 2], name: &str) {
    host.docker(&["volume", "rm", name]);
    assert!(cloud.volumes(as_whom, name).is_empty(), "{name}");
}

/// Ceph has no image of any volume. What copies were made of, Cinder keeps under another name when it is removed, and
/// this one forgets there: that goes here.
#[track_caller]
pub(crate) fn nothing_is_left(cloud: &OpenStack) {
    for image in cloud.ceph.rbd(&["ls", "volumes"]).lines() {
        assert!(image.ends_with(".deleted"), "{image} is left");
        let image = format!("volumes/{image}");
        let snapshots = cloud.ceph.run("rbd", &["snap", "ls", "--format", "json", &image]).json();
        for snapshot in snapshots.as_array().unwrap() {
            let snapshot = format!("{image}@{}", snapshot["name"].as_str().unwrap());
            assert!(snapshot.ends_with(".clone_snap"), "{snapshot}");
            cloud.ceph.rbd(&["snap", "unprotect", &snapshot]);
            cloud.ceph.rbd(&["snap", "rm", "--no-progress", &snapshot]);
        }
        cloud.ceph.rbd(&["rm", "--no-progress", &image]);
    }
}

#[test]
fn a_volume_of_cinders_is_run_with_grown_copied_and_brought_back() {
    let Some((cloud, _turn)) = openstack() else { return };
    let mut host = Host::start(cloud.ceph, "dock", &settings(cloud, ""));
    host.start_dockerd(&[]);
    let project = format!("project-id={}", cloud.project("alpha"));
    // ext4 grows only where the plugin has a capability that containers rarely have.
    host.create("of", &["size=1", "fstype=xfs", &project]);
    run_with(&host, "user", "of");
    let exec = |line: &str| host.docker(&["exec", "user", "sh", "-c", line]);
    exec("echo first > /v/file");

    // Who has it, as `openstack volume show` tells.
    let shown = only(cloud, ALICE, "of");
    assert_eq!(shown["status"], "in-use", "{shown}");
    let root = host.dir.join("state/mounts/of");
    assert_eq!(shown["attachments"][0]["device"], format!("dock:{}", root.display()), "{shown}");
    let told = cloud.cli(ALICE, &["volume", "show", "of"]);
    assert_eq!(told["status"], "in-use", "{told}");
    assert_eq!(told["attachments"][0]["device"], format!("dock:{}", root.display()), "{told}");
    let status = host.inspect("of")["Status"].clone();
    assert_eq!(status["cinder-volume"], shown["id"], "{status}");
    assert_eq!(status["cinder-attachment"], shown["attachments"][0]["attachment_id"], "{status}");
    assert_eq!(status["cinder-status"], "in-use", "{status}");

    // Snapshots while it is in use: what was not synced is in them as well.
    host.ours(&["snapshot", "of", "one"]).ok();
    let error = host.ours(&["snapshot", "of", "one"]).refused();
    assert!(error.contains("there is a snapshot one already"), "{error}");
    exec("echo second > /v/file");
    assert_eq!(host.inspect("of")["Status"]["snapshots"], json!(["one"]));

    // Grown while it is in use, as the container sees.
    let said = host.ours(&["resize", "of", "2"]).ok();
    assert!(said.contains("file system have 2147483648 bytes"), "{said}");
    let line = exec("busybox df -m /v | busybox tail -n 1");
    let megabytes = line.split_whitespace().nth(1).and_then(|size| size.parse::<u32>().ok());
    assert!(megabytes.is_some_and(|size| size > 1900), "{line}");
    assert_eq!(only(cloud, ALICE, "of")["size"], 2);

    // Copies of the present and of a snapshot, made by Cinder: also one that is larger.
    host.create("now", &["from=of"]);
    host.create("then", &["from=of@one"]);
    host.create("then", &["from=of@one"]);
    host.ours(&["clone", "of@one", "too"]).ok();
    host.create("larger", &["from=of@one", "size=3"]);
    for (name, text, gib) in
        [("now", "second", 2), ("then", "first", 1), ("too", "first", 1), ("larger", "first", 3)]
    {
        assert_eq!(host.in_container(name, "cat /v/file"), text, "{name}");
        let copy = only(cloud, ALICE, name);
        assert_eq!(copy["size"], gib, "{copy}");
        assert_eq!(copy["snapshot_id"].is_null(), name == "now", "{copy}");
        assert_eq!(copy["source_volid"].is_null(), name != "now", "{copy}");
        let status = host.inspect(name)["Status"].clone();
        assert!(status.get("mounted-by").is_none(), "{status}");
    }
    let line = host.in_container("larger", "busybox df -m /v | busybox tail -n 1");
    let megabytes = line.split_whitespace().nth(1).and_then(|size| size.parse::<u32>().ok());
    assert!(megabytes.is_some_and(|size| size > 2900), "{line}");
    for (options, words) in [
        (vec!["from=of", "backend=rbd"], "what is made of it"),
        (vec!["from=nothing", "backend=cinder"], "no volume of Cinder's"),
        (vec!["from=of@none"], "there is no snapshot none"),
        (vec!["from=of", "size=1"], "of has 2 GiB"),
        (vec!["from=of", "project-id=1234"], "a copy belongs to the same project"),
        (vec!["from=of", "pool=rbd"], "option pool is for backend=rbd"),
        (vec!["from=of", "flatten=true"], "rbd_flatten_volume_from_snapshot"),
    ] {
        let error = refused(&host, "no", &options);
        assert!(error.contains(words), "{options:?}: {error}");
        assert!(cloud.volumes(ALICE, "no").is_empty(), "{options:?}");
    }

    // Brought back: not while it is used, nor to what was smaller, nor past a newer snapshot.
    let error = host.ours(&["restore", "of", "one"]).refused();
    assert!(error.contains("mounted on this host"), "{error}");
    host.docker(&["rm", "-f", "user"]);
    eventually("it is detached", || only(cloud, ALICE, "of")["status"] == "available");
    let error = host.ours(&["restore", "of", "one"]).refused();
    assert!(error.contains("had 1 then") && error.contains("-o from=of@one"), "{error}");
    host.ours(&["snapshot", "of", "two"]).ok();
    let error = host.ours(&["restore", "of", "one"]).refused();
    assert!(error.contains("two is newer"), "{error}");
    host.in_container("of", "echo third > /v/file");
    host.ours(&["restore", "of", "two"]).ok();
    assert_eq!(host.in_container("of", "cat /v/file"), "second");

    // Removed in order.
    let error = host.try_docker(&["volume", "rm", "of"]).refused();
    assert!(error.contains("snapshots in Cinder: "), "{error}");
    for snap in ["one", "two"] {
        host.ours(&["snapshot", "of", snap, "--remove"]).ok();
    }
    let error = host.ours(&["snapshot", "of", "one", "--remove"]).refused();
    assert!(error.contains("there is no snapshot one"), "{error}");
    // What copies were made of stays out of sight until the last of them goes.
    remove(cloud, &host, ALICE, "of");
    assert_eq!(host.in_container("now", "cat /v/file"), "second");
    assert_eq!(host.in_container("then", "cat /v/file"), "first");
    for name in ["now", "then", "too", "larger"] {
        remove(cloud, &host, ALICE, name);
    }
    nothing_is_left(cloud);
}

#[test]
fn docker_is_told_what_projects_quotas_roles_and_proofs_refuse() {
    let Some((cloud, _turn)) = openstack() else { return };
    let user = cloud.ids["users"]["alice"].as_str().unwrap();
    let credentials = format!("keystone/users/{user}/application_credentials");
    let body = json!({ "application_credential": { "name": "docker", "secret": "notforlogs" } });
    let credential = cloud.ask(ALICE, "POST", &credentials, Some(body));
    let credential = credential["application_credential"]["id"].as_str().unwrap();
    let brief = cloud.token_of(&cloud.hasty, "alice", "alpha");
    let with_password = |user: &str, project: &str| {
        let project = cloud.project(project);
        format!("username: {user}, password: {user}pw, project_id: {project}")
    };
    let entry = |name: &str, auth_url: &str, auth: &str| {
        format!("  {name}:\n    auth: {{auth_url: '{auth_url}', {auth}}}\n")
    };
    let text = [
        "clouds:\n".to_owned(),
        entry("bob", &cloud.keystone, &with_password("bob", "beta")),
        entry("rita", &cloud.keystone, &with_password("rita", "alpha")),
        entry("hasty", &cloud.hasty, &with_password("alice", "alpha")),
        entry("brief", &cloud.hasty, &format!("token: {brief}")),
        entry(
            "revoked",
            &cloud.keystone,
            &format!(
                "application_credential_id: {credential}, application_credential_secret: notforlogs"
            ),
        ),
    ];
    let clouds = cloud.ceph.dir().join("docker-clouds.yaml");
    fs::write(&clouds, text.concat()).unwrap();
    let mut host = Host::start(cloud.ceph, "told", &settings(cloud, ""));
    host.kill_plugin();
    host.env.insert("OS_CLIENT_CONFIG_FILE", clouds.display().to_string());
    host.start_plugin();
    host.start_dockerd(&[]);

    // Two users, in a project each, at the same time.
    for (name, as_whom, other, options) in
        [("hers", ALICE, BOB, vec![]), ("his", BOB, ALICE, vec!["cloud=bob"])]
    {
        host.create(name, &options);
        run_with(&host, name, name);
        host.docker(&["exec", name, "sh", "-c", &format!("echo {name} > /v/file")]);
        assert!(cloud.volumes(other, name).is_empty(), "{name}");
        let status = host.inspect(name)["Status"].clone();
        assert_eq!(status["project"], cloud.project(as_whom[1]), "{status}");
    }
    for (name, as_whom) in [("hers", ALICE), ("his", BOB)] {
        assert_eq!(only(cloud, as_whom, name)["status"], "in-use");
        host.docker(&["rm", "-f", name]);
        eventually("it is detached", || only(cloud, as_whom, name)["status"] == "available");
        assert_eq!(host.in_container(name, "cat /v/file"), name);
    }

    // Quotas, with their numbers: of volumes, of GiB, of snapshots.
    let path = format!("os-quota-sets/{}", cloud.project("beta"));
    let quota = |set: Value| {
        cloud.ask(["admin", "admin"], "PUT", &path, Some(json!({ "quota_set": set })));
    };
    quota(json!({ "volumes": 1 }));
    let error = refused(&host, "no", &["cloud=bob"]);
    assert!(error.contains("1 of 1 volumes"), "{error}");
    let error = refused(&host, "no", &["from=his"]);
    assert!(error.contains("1 of 1 volumes"), "{error}");
    quota(json!({ "volumes": 100, "gigabytes": 1, "snapshots": 0 }));
    let error = host.ours(&["resize", "his", "2"]).refused();
    assert!(error.contains("1 of 1 GiB"), "{error}");
    let error = host.ours(&["snapshot", "his", "s"]).refused();
    assert!(error.contains("0 of 0 snapshots"), "{error}");
    quota(json!({ "gigabytes": 1000, "snapshots": 100 }));

    // Projects, roles and proofs.
    let of_beta = format!("project-id={}", cloud.project("beta"));
    let error = refused(&host, "no", &[&of_beta]);
    assert!(error.contains("user, password, project"), "{error}");
    let error = refused(&host, "no", &["cloud=bob", "from=hers"]);
    assert!(error.contains("a copy belongs to the same project"), "{error}");
    let error = refused(&host, "no", &["cloud=rita"]);
    assert!(error.contains("403"), "{error}");
    std::thread::sleep(Duration::from_secs(6));
    let error = refused(&host, "no", &["cloud=brief"]);
    assert!(error.contains("the token has expired or was revoked"), "{error}");

    // Tokens that are renewed when they end, and a credential that is taken away.
    host.create("hasty", &["cloud=hasty"]);
    run_with(&host, "hasty", "hasty");
    host.create("revoked", &["cloud=revoked"]);
    run_with(&host, "revoked", "revoked");
    cloud.ask(ALICE, "DELETE", &format!("{credentials}/{credential}"), None);
    std::thread::sleep(Duration::from_secs(6));
    host.docker(&["rm", "-f", "hasty"]);
    eventually("it is detached", || only(cloud, ALICE, "hasty")["status"] == "available");
    let error = refused(&host, "no", &["cloud=revoked"]);
    assert!(error.contains("the application credential was removed"), "{error}");
    // The container runs on, and ends; only Cinder is not told.
    host.docker(&["exec", "revoked", "sh", "-c", "echo x > /v/file; sync -d /v/file"]);
    host.docker(&["rm", "-f", "revoked"]);
    eventually("it is unmounted", || host.mounts().is_empty() && host.mappings().is_empty());
    assert_eq!(only(cloud, ALICE, "revoked")["status"], "in-use");
    // Once the cloud's entry has a proof again, it is.
    host.kill_plugin();
    let entry = entry("revoked", &cloud.keystone, &with_password("alice", "alpha"));
    fs::write(&clouds, text[..5].concat() + &entry).unwrap();
    host.start_plugin();
    eventually("Cinder is told", || only(cloud, ALICE, "revoked")["status"] == "available");

    for (name, as_whom) in [("hers", ALICE), ("his", BOB), ("hasty", ALICE), ("revoked", ALICE)] {
        remove(cloud, &host, as_whom, name);
    }
    nothing_is_left(cloud);
    for secret in ["alicepw", "bobpw", "ritapw", "notforlogs", brief.as_str()] {
        assert!(!host.log().contains(secret), "the log has a secret");
    }
}

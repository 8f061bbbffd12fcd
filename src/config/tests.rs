//! Whole configurations, from made-up environments, and the same ones as Ceph's own tool reads them.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use proto::msgr::auth::{ConnectionMode, method};
use proto::rbd::features::Features;

use super::*;

#[derive(Default)]
struct Host {
    vars: HashMap<&'static str, &'static str>,
    files: HashMap<&'static str, &'static str>,
}

impl Environment for Host {
    fn var(&self, name: &str) -> Option<String> {
        self.vars.get(name).map(|value| (*value).to_owned())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match self.files.get(path.to_str().unwrap()) {
            Some(&"denied") => Err(io::ErrorKind::PermissionDenied.into()),
            Some(text) => Ok(text.as_bytes().to_vec()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn hostname(&self) -> String {
        "node1".to_owned()
    }

    fn pid(&self) -> u32 {
        42
    }
}

impl Host {
    fn new(vars: &[(&'static str, &'static str)], files: &[(&'static str, &'static str)]) -> Self {
        Self { vars: vars.iter().copied().collect(), files: files.iter().copied().collect() }
    }

    fn load(&self, line: &str) -> Result<Config, ConfigError> {
        let mut words = line.split_ascii_whitespace().map(str::to_owned).collect();
        Config::load(&Args::take(&mut words)?, self)
    }

    fn error(&self, line: &str) -> String {
        match self.load(line) {
            Ok(_) => panic!("{line} loads"),
            Err(error) => error.to_string(),
        }
    }
}

fn monitors(config: &Config) -> String {
    config.monitors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

const CONF: &str = "\
[global]
    fsid = 457eb676-0000-4000-8000-000000000001
    mon host = [v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0], 10.0.0.2
    keyring = /keys/$cluster.$name.$type.$id.${host}
[client]
    rados osd op timeout = 30
    an option that is unknown = yes
[client.foo]
    mon_host = 10.0.0.9:3301 # of another cluster
    rados osd op timeout = 2m
";

#[test]
fn the_most_special_section_counts() {
    let host = Host::new(
        &[],
        &[("/etc/ceph/ceph.conf", CONF), ("/keys/ceph.client.foo.client.foo.node1", "text")],
    );
    let admin = host.load("").unwrap();
    assert_eq!((admin.name.as_str(), admin.cluster.as_str()), ("client.admin", "ceph"));
    assert_eq!(monitors(&admin), "v2:10.0.0.1:3300 v2:10.0.0.2:3300");
    assert_eq!(admin.osd_op_timeout, Some(Duration::from_secs(30)));
    let KeySource::Nothing { tried } = admin.key else { panic!("there is a keyring") };
    assert_eq!(tried[0].0, Path::new("/keys/ceph.client.admin.client.admin.node1"));

    let foo = host.load("--id foo").unwrap();
    assert_eq!(monitors(&foo), "v2:10.0.0.9:3301");
    assert_eq!(foo.osd_op_timeout, Some(Duration::from_secs(120)));
    let path = Path::new("/keys/ceph.client.foo.client.foo.node1").to_owned();
    assert!(foo.key == KeySource::Keyring { path, text: "text".to_owned() });
}

#[test]
fn the_monitors_count_before_defaults_alone() {
    let host = Host::new(&[("CEPH_ARGS", "--rbd-default-order 21")], &[("c.conf", CONF)]);
    let config = host.load("-c c.conf --rbd_default_stripe_count 3").unwrap();
    let told = |options: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        config.with_monitors_options(options.iter().map(owned).collect())
    };
    let all = told(&[
        ("rados_osd_op_timeout", "5"),
        ("rados_mon_op_timeout", "6"),
        ("rbd_default_order", "23"),
        ("rbd_default_stripe_count", "4"),
        ("rbd_op_threads", "5"),
        ("rbd_default_features", "layering"),
        ("rbd_default_data_pool", "data-of-$id"),
        ("admin_socket", "/run/$name.$pid"),
        ("ms_client_mode", "secure"),
        ("mon_host", "10.9.9.9"),
        ("key", "theirs"),
        ("unknown", "x"),
    ]);
    assert_eq!(all.osd_op_timeout, Some(Duration::from_secs(30)), "the file says so");
    assert_eq!(all.mon_op_timeout, Some(Duration::from_secs(6)));
    assert_eq!(all.threads, 5);
    assert_eq!((all.rbd.order, all.rbd.stripe_count), (21, 3), "environment, command line");
    assert_eq!(all.rbd.features, Features::LAYERING);
    assert_eq!(all.rbd.data_pool.as_deref(), Some("data-of-admin"));
    let path = "/run/client.admin.42".into();
    assert_eq!(all.admin_socket, Some(AdminSocket { path, asked: false }));
    assert_eq!(all.client_modes, [ConnectionMode::Secure]);
    assert_eq!(monitors(&all), monitors(&config), "how to log in is not theirs to say");
    assert!(all.key == config.key);

    // One that makes no sense leaves the others.
    let some = told(&[("rbd_default_stripe_unit", "much"), ("rados_mon_op_timeout", "6")]);
    assert_eq!(some.rbd.stripe_unit, 0);
    assert_eq!(some.mon_op_timeout, Some(Duration::from_secs(6)));
    assert_eq!(some.values.told.len(), 2, "it is not warned of again when the same is told");

    let again = all.with_monitors_options(BTreeMap::new());
    assert_eq!((again.mon_op_timeout, again.rbd.data_pool), (None, None));
}

#[test]
fn the_monitors_options_can_be_done_without() {
    let wants = |line: &str| Host::default().load(line).unwrap().wants_monitors_options;
    assert!(wants("-m x"));
    assert!(!wants("-m x --no-mon-config"));
    assert!(wants("-m x --no-mon-config --mon-config"));
}

#[test]
fn defaults() {
    let config = Host::default().load("-m 10.0.0.1").unwrap();
    assert_eq!(config.path, None);
    assert_eq!(config.auth_methods, [method::CEPHX, method::NONE]);
    assert_eq!(config.client_modes, [ConnectionMode::Crc, ConnectionMode::Secure]);
    assert_eq!(config.mon_modes, [ConnectionMode::Secure, ConnectionMode::Crc]);
    assert_eq!(config.mount_timeout, Duration::from_secs(10), "sooner than Ceph's 300 s");
    assert_eq!((config.osd_op_timeout, config.mon_op_timeout), (None, None));
    assert_eq!((config.inflight_ops, config.inflight_bytes), (1024, 100 << 20));
    let rbd = RbdDefaults {
        clone_format: "auto".to_owned(),
        pool: "rbd".to_owned(),
        features: Features::DEFAULT,
        features_set: false,
        order: 22,
        stripe_unit: 0,
        stripe_count: 0,
        data_pool: None,
        trash: false,
        trash_expires: Duration::ZERO,
        trash_parents: false,
        concurrent_management_ops: 10,
        validate_pool: true,
    };
    assert_eq!(config.rbd, rbd);
}

#[test]
fn files_are_searched_in_order() {
    let one = |path| Host::new(&[("HOME", "/root")], &[(path, "[global]\nmon host = 1.1.1.1\n")]);
    for (path, line) in [
        ("/etc/ceph/ceph.conf", ""),
        ("/root/.ceph/ceph.conf", ""),
        ("ceph.conf", ""),
        ("/etc/ceph/other.conf", "--cluster other"),
        ("b.conf", "-c a.conf,b.conf"),
    ] {
        let config = one(path).load(line).unwrap();
        assert_eq!(config.path.as_deref(), Some(Path::new(path)));
    }
    let host = Host::new(
        &[("CEPH_CONF", "/env.conf")],
        &[
            ("/env.conf", "[global]\nmon host = 1.1.1.1"),
            ("/x.conf", "[global]\nmon host = 2.2.2.2"),
        ],
    );
    assert_eq!(monitors(&host.load("").unwrap()), "v2:1.1.1.1:3300");
    assert_eq!(host.load("").unwrap().cluster, "ceph");
    let asked = host.load("-c /x.conf").unwrap();
    assert_eq!((monitors(&asked), asked.cluster), ("v2:2.2.2.2:3300".to_owned(), "x".to_owned()));
}

#[test]
fn command_line_before_environment_before_file() {
    let file = ("/etc/ceph/ceph.conf", "[global]\nmon host = 1.1.1.1\nkeyring = /file\n");
    let keys = [("/file", "file"), ("/var", "var"), ("/args", "args"), ("/line", "line")];
    let files = [&[file][..], &keys].concat();
    let text = |host: &Host, line| match host.load(line).unwrap().key {
        KeySource::Keyring { text, .. } => text,
        _ => panic!("no keyring"),
    };
    assert_eq!(text(&Host::new(&[], &files), ""), "file");
    let host = Host::new(&[("CEPH_KEYRING", "/var")], &files);
    assert_eq!(text(&host, ""), "var");
    let vars = [
        ("CEPH_KEYRING", "/var"),
        ("CEPH_ARGS", "--keyring /args  --mon-host 2.2.2.2 --id x --y z"),
    ];
    let host = Host::new(&vars, &files);
    assert_eq!(text(&host, ""), "args");
    assert_eq!(text(&host, "-k /line"), "line");
    let config = host.load("").unwrap();
    assert_eq!((monitors(&config), config.name.as_str()), ("v2:2.2.2.2:3300".into(), "client.x"));
    let config = host.load("-m 3.3.3.3 -n client.y").unwrap();
    assert_eq!((monitors(&config), config.name.as_str()), ("v2:3.3.3.3:3300".into(), "client.y"));
}

#[test]
fn a_key_comes_before_a_keyfile_before_keyrings() {
    let host = Host::new(&[], &[("/f", "AQ==\n"), ("/etc/ceph/keyring", "ring"), ("/r", "denied")]);
    let key = |line: &str| host.load(&format!("-m 1.1.1.1 {line}")).unwrap().key;
    let ring = KeySource::Keyring { path: "/etc/ceph/keyring".into(), text: "ring".into() };
    assert!(key("") == ring);
    assert!(key("-K /f") == KeySource::Keyfile { path: "/f".into(), text: "AQ==\n".into() });
    let inline = KeySource::Key { text: "AQ".into(), origin: Origin::CommandLine };
    assert!(key("-K /f --key AQ") == inline);
    let KeySource::Nothing { tried } = key("-k /r,/s") else { panic!("there is a key") };
    assert_eq!(tried.len(), 2);
    assert_eq!(tried[0], ("/r".into(), "permission denied".to_owned()));
}

#[test]
fn errors_say_where() {
    let text = "[global]\nmon host = 1.1.1.1\n[client]\nms client mode = plain\n";
    let host = Host::new(&[("CEPH_ARGS", "--rbd-default-order 40")], &[("c.conf", text)]);
    assert_eq!(
        host.error("-c c.conf"),
        "ms_client_mode = \"plain\" (set in c.conf:4 [client]): expected crc, secure, or both"
    );
    assert_eq!(
        host.error("-c c.conf --ms-client-mode secure"),
        "rbd_default_order = \"40\" (set in $CEPH_ARGS): expected a power of two between 12 and 25"
    );
    assert_eq!(
        host.error("-m 1.2.3.4:x --mon-host [1"),
        "mon_host = \"[1\" (set in the command line): expected addresses of monitors, but \"[1\" is no monitor address"
    );
    assert_eq!(
        Host::default().error("-c /a.conf,/b.conf"),
        "no configuration file: /a.conf, /b.conf not found"
    );
    assert_eq!(
        Host::default().error("-n admin"),
        "\"admin\" is no name: expected TYPE.ID, such as client.admin"
    );
    let host = Host::new(&[], &[("c.conf", "denied"), ("d.conf", "[global]\nwhat\n")]);
    assert_eq!(host.error("-c c.conf"), "cannot read c.conf: permission denied");
    assert_eq!(host.error("-c d.conf"), "d.conf:2: expected name = value");
    assert_eq!(
        host.error("-m v1:10.0.0.1:6789"),
        "mon_host = \"v1:10.0.0.1:6789\" (set in the command line) has only messenger v1 addresses; messenger v2 \
         (usually port 3300) is needed: enable it with \"ceph mon enable-msgr2\" and add its address"
    );
}

#[test]
fn options_expand_into_each_other_but_not_for_ever() {
    let text = "[global]\nmon host = 1.1.1.1\nkeyring = $run_dir/a$$b/${pid}x$keyring$nope\nrun dir = /r$cluster\n";
    let host = Host::new(&[], &[("c.conf", text)]);
    let KeySource::Nothing { tried } = host.load("-c c.conf").unwrap().key else { panic!() };
    assert_eq!(tried[0].0, Path::new("/rc/a$$b/42x$keyring$nope"));
}

#[test]
fn options_may_be_set_in_many_ways() {
    let set = |line: &str| Host::default().load(&format!("-m 1.1.1.1 {line}")).unwrap();
    assert_eq!(set("--auth-client-required none").auth_methods, [method::NONE]);
    assert_eq!(set("--auth-supported=cephx").auth_methods, [method::CEPHX]);
    assert_eq!(set("--ms_client_mode=secure,crc").client_modes.len(), 2);
    assert_eq!(set("--ms-client-mode crc").read_from, ReadFrom::Primary);
    assert_eq!(set("--rbd-read-from-replica-policy balance").read_from, ReadFrom::Balance);
    assert_eq!(set("--rbd-read-from-replica-policy localize").read_from, ReadFrom::Localize);
    let near = [("host".to_owned(), "a".to_owned()), ("rack".to_owned(), "b".to_owned())];
    assert_eq!(set("--crush-location host=a,rack=b").crush_location, near);
    assert_eq!(set("--crush-location host:a|rack:b").crush_location, near);
    assert!(!set("--ms-client-mode crc").abort_on_full && set("--abort-on-full").abort_on_full);
    let socket = |line| set(line).admin_socket.map(|AdminSocket { path, asked }| (path, asked));
    let usual = "/var/run/ceph/ceph-client.admin.42.asok".into();
    assert_eq!(socket("--ms-client-mode crc"), Some((usual, false)));
    let asked = socket("--admin-socket /run/$name.asok");
    assert_eq!(asked, Some(("/run/client.admin.asok".into(), true)));
    assert_eq!(socket("--admin-socket="), None);
    assert_eq!(set("--objecter-inflight-op-bytes 2M").inflight_bytes, 2 << 20);
    assert_eq!(set("--objecter-inflight-ops 2K").inflight_ops, 2000);
    assert_eq!(set("--rbd-default-order 22").threads, 2);
    assert_eq!(set("--rbd-op-threads 7").threads, 7);
    assert_eq!(set("--rbd-op-threads 7 --librados-thread-count 9").threads, 9);
    assert_eq!(set("--rbd-default-features layering,striping").rbd.features, Features(3));
    assert!(set("--rbd-default-features 1").rbd.features_set);
    assert_eq!(set("--rbd-default-data-pool ec").rbd.data_pool.as_deref(), Some("ec"));
}

/// Where Ceph's tools are installed, they read the same files to the same values.
#[test]
fn ceph_conf_agrees() {
    use std::process::Command;

    if Command::new("ceph-conf").arg("--version").output().is_err() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("ceph-native-conf-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("lab.conf");
    let text = format!("{CONF}ms client mode = secure\n[mon]\nmon host = 9.9.9.9\n");
    std::fs::write(&path, text).unwrap();
    for (name, args) in [
        ("client.admin", ""),
        ("client.foo", ""),
        ("client.bar", "--rados-osd-op-timeout 7 --ms_client_mode=crc"),
        ("client.foo", "--rbd_default_order 20 --cluster hey"),
    ] {
        let args: Vec<_> = args.split_ascii_whitespace().map(str::to_owned).collect();
        let theirs = |option: &str| {
            let output = Command::new("ceph-conf")
                .env_remove("CEPH_ARGS")
                .arg("-c")
                .arg(&path)
                .args(["-n", name])
                .args(&args)
                .args(["--show-config-value", option])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let mut taken = args.clone();
        taken.extend(["-c".to_owned(), path.to_str().unwrap().to_owned()]);
        taken.extend(["-n".to_owned(), name.to_owned()]);
        let args = Args::take(&mut taken).unwrap();
        let mut values = Values::new(args.clone(), Args::default(), name, &Process);
        values.cluster = args.cluster.clone().unwrap_or_else(|| "lab".to_owned());
        values.read_file(path.to_str().unwrap(), &Process).unwrap();
        for option in [
            "mon_host",
            "keyring",
            "rados_osd_op_timeout",
            "client_mount_timeout",
            "librados_thread_count",
            "rbd_op_threads",
            "objecter_inflight_ops",
            "objecter_inflight_op_bytes",
            "ms_client_mode",
            "ms_mon_client_mode",
            "auth_client_required",
            "rbd_default_pool",
            "rbd_default_order",
            "rbd_default_features",
            "rbd_concurrent_management_ops",
            "rbd_read_from_replica_policy",
        ] {
            let value = values.get(option);
            let ours = match option {
                "rados_osd_op_timeout" => value.duration().unwrap().as_secs().to_string(),
                _ => value.text,
            };
            assert_eq!(ours, theirs(option), "{option} of {name} with {args:?}");
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn dns_is_asked_where_nothing_names_the_monitors() {
    let place = "one of /etc/ceph/ceph.conf, /.ceph/ceph.conf, ceph.conf";
    for (line, service) in [
        ("", "_ceph-mon._tcp"),
        ("--mon-dns-srv-name other", "_other._tcp"),
        ("--mon-dns-srv-name ceph-mon_example.com", "_ceph-mon._tcp.example.com"),
    ] {
        let config = Host::default().load(line).unwrap();
        let service = MonHost::Service { name: service.to_owned(), place: place.to_owned() };
        assert_eq!(config.monitors, [service], "{line}");
    }
}

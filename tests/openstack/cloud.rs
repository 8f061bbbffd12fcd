//! A real Keystone and Cinder on loopback over a real Ceph cluster: Debian's own, in the folder that `tests/install
//! --full` makes. Cinder is one process, so that there need be no message broker, or its own three behind RabbitMQ
//! where a test asks for them; Keystone is two, of which the tokens of the second live for five seconds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::host::eventually;
use crate::support::{Ceph, Ran, run, run_in};

/// Making databases on a busy machine.
const SETUP_SECONDS: u32 = 600;

pub(crate) struct OpenStack {
    pub(crate) ceph: &'static Ceph,
    pub(crate) keystone: String,
    /// The Keystone whose tokens live for five seconds.
    pub(crate) hasty: String,
    cinder: String,
    /// Both behind TLS, once that service runs; its authority is `openstack/ca.pem` in the cluster's folder.
    pub(crate) tls: String,
    pub(crate) tls_cinder: String,
    /// Ids of projects and users, by name.
    pub(crate) ids: Value,
    services: BTreeMap<&'static str, Service>,
    running: Mutex<BTreeMap<&'static str, Child>>,
}

/// A process of the cloud.
struct Service {
    command: Vec<String>,
    /// Where it answers when it is up: `http…`, or an address that takes connections. Some do nowhere.
    answers_at: Option<String>,
}

/// Cinder's three daemons and what carries their messages, in the order in which they are started.
const DAEMONS: [&str; 5] = ["epmd", "rabbitmq", "scheduler", "volume", "api"];

/// Cinder as daemons behind RabbitMQ, until this is dropped.
pub(crate) struct BehindBroker<'a>(&'a OpenStack);

impl Drop for BehindBroker<'_> {
    fn drop(&mut self) {
        for name in DAEMONS.into_iter().rev() {
            if self.0.runs(name) {
                self.0.kill_service(name);
            }
        }
        self.0.start_service("cinder");
    }
}

impl OpenStack {
    pub(crate) fn start(ceph: &'static Ceph) -> Self {
        let dir = ceph.dir().join("openstack");
        fs::create_dir_all(dir.join("lock")).unwrap();
        ceph.create_pool("volumes");
        let caps = ["mon", "profile rbd", "osd", "profile rbd pool=volumes"];
        let keyring = ceph.create_client("client.cinder", &caps);
        let conf = format!(
            "[global]\nmon host = {}\n[client.cinder]\nkeyring = {}\n",
            ceph.mon_addr(0),
            keyring.display()
        );
        fs::write(dir.join("ceph.conf"), conf).unwrap();
        // This host's own key for the user that Cinder says.
        let own = format!("\n[client.cinder]\nkeyring = {}\n", keyring.display());
        let mut conf = File::options().append(true).open(ceph.conf()).unwrap();
        conf.write_all(own.as_bytes()).unwrap();
        let [keystone, hasty, cinder, tls, tls_cinder, epmd, rabbitmq] = free_ports();
        let url = |port: u16| format!("http://127.0.0.1:{port}/v3");
        for (name, seconds) in [("keystone", 3600), ("hasty", 5)] {
            let text = keystone_conf(&dir, seconds);
            fs::write(dir.join(name).with_extension("conf"), text).unwrap();
        }
        let broker = format!("rabbit://guest:guest@127.0.0.1:{rabbitmq}/");
        for (name, transport) in [("cinder", "fake://"), ("daemons", &broker)] {
            let text = cinder_conf(&dir, cinder, &url(keystone), transport);
            fs::write(dir.join(name).with_extension("conf"), text).unwrap();
        }
        let (keystone_url, path) = (url(keystone), dir.display());
        let setup = format!(
            "cinder-manage --config-file {path}/cinder.conf db sync & p=$!
            km() {{ keystone-manage --config-file {path}/keystone.conf \"$@\"; }}
            km db_sync
            km fernet_setup --keystone-user root --keystone-group root
            km credential_setup --keystone-user root --keystone-group root
            km bootstrap --bootstrap-password adminpw --bootstrap-region-id RegionOne \
                --bootstrap-public-url {keystone_url} --bootstrap-internal-url {keystone_url}
            wait $p
            # Else whoever reads keeps all others from writing.
            python3 -c 'import sqlite3, sys
for path in sys.argv[1:]: sqlite3.connect(path).execute(\"pragma journal_mode=wal\")' \
                {path}/keystone.db {path}/cinder.db"
        );
        in_openstack(&["bash", "-euc", &setup]);
        let script = |name: &str| format!("{}/tests/openstack/{name}", env!("CARGO_MANIFEST_DIR"));
        let file = |name: &str| dir.join(name).display().to_string();
        let service = |answers_at: Option<String>, command: &[&str]| Service {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            answers_at,
        };
        let python = |port: u16, name: &str, args: &[&str]| {
            service(Some(url(port)), &[&["python3", &script(name)], args].concat())
        };
        let daemon = |port: Option<u16>, name: &str| {
            let command = ["python3", &script("run-daemon.py"), name];
            service(
                port.map(url),
                &[&command[..], &["--config-file", &file("daemons.conf")]].concat(),
            )
        };
        let broker = |port: u16, what: &str| {
            let (epmd, rabbitmq) = (epmd.to_string(), rabbitmq.to_string());
            let folder = file("rabbitmq");
            let command = ["sh", &script("run-rabbitmq"), what, &folder, &epmd, &rabbitmq];
            service(Some(format!("127.0.0.1:{port}")), &command)
        };
        let through = [(tls, keystone), (tls_cinder, cinder)].map(|(a, b)| format!("{a}:{b}"));
        let folder = dir.display().to_string();
        let tls_service = python(tls, "run-tls.py", &[&folder, &through[0], &through[1]]);
        let services = BTreeMap::from([
            (
                "keystone",
                python(
                    keystone,
                    "run-keystone.py",
                    &[&keystone.to_string(), &file("keystone.conf")],
                ),
            ),
            ("hasty", python(hasty, "run-keystone.py", &[&hasty.to_string(), &file("hasty.conf")])),
            ("cinder", python(cinder, "run-cinder.py", &["--config-file", &file("cinder.conf")])),
            (
                "tls",
                Service { answers_at: Some(url(tls).replace("http:", "https:")), ..tls_service },
            ),
            ("epmd", broker(epmd, "epmd")),
            ("rabbitmq", broker(rabbitmq, "rabbitmq")),
            ("api", daemon(Some(cinder), "api")),
            ("scheduler", daemon(None, "scheduler")),
            ("volume", daemon(None, "volume")),
        ]);
        let mut cloud = Self {
            ceph,
            keystone: url(keystone),
            hasty: url(hasty),
            cinder: url(cinder),
            tls: url(tls).replace("http:", "https:"),
            tls_cinder: url(tls_cinder).replace("http:", "https:"),
            ids: Value::Null,
            services,
            running: Mutex::default(),
        };
        for name in ["keystone", "hasty", "cinder"] {
            cloud.start_service(name);
        }
        let args = [script("seed.py"), cloud.keystone.clone(), cloud.cinder.clone()];
        let args = args.each_ref().map(String::as_str);
        cloud.ids = run_in("python3", &args, &[], SETUP_SECONDS).json();
        cloud
    }

    /// Has Cinder be its own daemons behind a message broker, in place of one process; with the same database.
    pub(crate) fn behind_broker(&self) -> BehindBroker<'_> {
        self.kill_service("cinder");
        let restored = BehindBroker(self);
        for name in DAEMONS {
            self.start_service(name);
        }
        self.wait_for_pools();
        restored
    }

    /// Waits until the scheduler knows of the volume service's pool.
    pub(crate) fn wait_for_pools(&self) {
        eventually("the scheduler knows of the back end", || {
            let path = "scheduler-stats/get_pools";
            let known = self.ask(["admin", "admin"], "GET", path, None);
            known["pools"].as_array().is_some_and(|pools| !pools.is_empty())
        });
    }

    /// Starts a service, and returns when it answers.
    pub(crate) fn start_service(&self, name: &'static str) {
        let log = self.ceph.dir().join("openstack").join(name).with_extension("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let service = &self.services[name];
        let child = Command::new(in_release())
            .arg("openstack")
            .args(&service.command)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // With the processes that it has others for, which would go on for a while.
            .process_group(0)
            .spawn()
            .unwrap();
        self.ceph.reap(child.id());
        self.running.lock().unwrap().insert(name, child);
        let Some(at) = &service.answers_at else { return };
        let answers = || {
            if !at.starts_with("http") {
                return TcpStream::connect(at).is_ok();
            }
            let ran =
                run("curl", &["-s", "-k", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", at]);
            ["200", "300", "401"].contains(&String::from_utf8_lossy(&ran.out).trim())
        };
        // On a busy machine, importing all of Cinder takes longer than anything else.
        for _ in 0..4 {
            if std::panic::catch_unwind(|| eventually("a service comes up", answers)).is_ok() {
                return;
            }
        }
        panic!("{name} does not come up: {}", self.log(name));
    }

    /// Ends a service at once.
    pub(crate) fn kill_service(&self, name: &str) {
        self.signal_service(name, "KILL");
        self.running.lock().unwrap().remove(name).expect("it runs").wait().unwrap();
    }

    fn runs(&self, name: &str) -> bool {
        self.running.lock().unwrap().contains_key(name)
    }

    /// Has a service stop, or go on.
    pub(crate) fn signal_service(&self, name: &str, signal: &str) {
        let group = format!("-{}", self.running.lock().unwrap()[name].id());
        run("kill", &["-s", signal, "--", &group]).ok();
    }

    fn log(&self, name: &str) -> String {
        let log = self.ceph.dir().join("openstack").join(name).with_extension("log");
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub(crate) fn project(&self, name: &str) -> &str {
        self.ids["projects"][name].as_str().unwrap()
    }

    /// A cloud for the settings of a plugin: `[cinder]`.
    pub(crate) fn settings(&self, user: &str, project: &str) -> String {
        format!("[cinder.auth]\nauth-url = {:?}\n{}", self.keystone, self.proof(user, project))
    }

    fn proof(&self, user: &str, project: &str) -> String {
        let project = self.project(project);
        format!("username = {user:?}\npassword = \"{user}pw\"\nproject-id = {project:?}\n")
    }

    /// A token, by curl.
    pub(crate) fn token(&self, user: &str, project: &str) -> String {
        self.token_of(&self.keystone, user, project)
    }

    /// A token of one of both Keystones.
    pub(crate) fn token_of(&self, keystone: &str, user: &str, project: &str) -> String {
        let body = json!({ "auth": {
            "identity": { "methods": ["password"], "password": { "user": {
                "name": user, "domain": { "id": "default" }, "password": format!("{user}pw") } } },
            "scope": { "project": { "id": self.project(project) } },
        }});
        let url = format!("{keystone}/auth/tokens");
        let args = [
            "-s",
            "-m",
            "60",
            "-i",
            "-H",
            "Content-Type: application/json",
            "-d",
            &body.to_string(),
            &url,
        ];
        let head = run("curl", &args).ok();
        let line = head.lines().find(|line| line.to_lowercase().starts_with("x-subject-token:"));
        let token = line.unwrap_or_else(|| panic!("no token: {head}\n{}", self.log("keystone")));
        token.split_once(':').unwrap().1.trim().to_owned()
    }

    /// A request to Cinder or Keystone, by curl, as a user of a project; what it answers.
    pub(crate) fn ask(
        &self,
        as_whom: [&str; 2],
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Value {
        let [user, project] = as_whom;
        let url = match path.strip_prefix("keystone/") {
            Some(path) => format!("{}/{path}", self.keystone),
            None => format!("{}/{}/{path}", self.cinder, self.project(project)),
        };
        let token = format!("X-Auth-Token: {}", self.token(user, project));
        let mut args = vec![
            "-s",
            "-m",
            "60",
            "-X",
            method,
            "-H",
            &token,
            "-H",
            "Content-Type: application/json",
        ];
        args.extend(["-H", "OpenStack-API-Version: volume 3.44"]);
        let body = body.map(|body| body.to_string());
        if let Some(body) = &body {
            args.extend(["-d", body]);
        }
        args.push(&url);
        let text = run("curl", &args).ok();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// All volumes of a project that have this name, by curl.
    pub(crate) fn volumes(&self, as_whom: [&str; 2], name: &str) -> Vec<Value> {
        let mut all = self.all_volumes(as_whom);
        all.retain(|volume| volume["name"] == name);
        all
    }

    /// All volumes of a project, by curl, page by page.
    pub(crate) fn all_volumes(&self, as_whom: [&str; 2]) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let path = match all.last() {
                Some(last) => format!("volumes/detail?marker={}", last["id"].as_str().unwrap()),
                None => "volumes/detail".to_owned(),
            };
            let page = self.ask(as_whom, "GET", &path, None);
            let page = page["volumes"].as_array().unwrap_or_else(|| panic!("{page}"));
            if page.is_empty() {
                return all;
            }
            all.extend(page.iter().cloned());
        }
    }

    /// OpenStack's own program, as a user of a project: what it prints as JSON.
    pub(crate) fn cli(&self, as_whom: [&str; 2], args: &[&str]) -> Value {
        let [user, project] = as_whom;
        let whom = [
            format!("OS_AUTH_URL={}", self.keystone),
            format!("OS_USERNAME={user}"),
            format!("OS_PASSWORD={user}pw"),
            format!("OS_PROJECT_ID={}", self.project(project)),
        ];
        let mut words = vec!["env", "OS_IDENTITY_API_VERSION=3", "OS_USER_DOMAIN_ID=default"];
        words.extend(whom.iter().map(String::as_str));
        words.push("openstack");
        words.extend(args);
        words.extend(["-f", "json"]);
        in_openstack(&words).json()
    }
}

fn in_release() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/in-release")
}

fn in_openstack(args: &[&str]) -> Ran {
    let ran = run_in(
        in_release().to_str().unwrap(),
        &[&["openstack"], args].concat(),
        &[],
        SETUP_SECONDS,
    );
    assert!(ran.code == 0, "{ran}");
    ran
}

fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn keystone_conf(dir: &Path, seconds: u32) -> String {
    let dir = dir.display();
    // Without a cache, a token takes a second to check; with one, a token that has ended is good for a while.
    let cache = seconds > 60;
    format!(
        "[DEFAULT]\nuse_stderr = true
[database]\nconnection = sqlite:///{dir}/keystone.db?timeout=30
[token]\nprovider = fernet\nexpiration = {seconds}
[fernet_tokens]\nkey_repository = {dir}/fernet-keys
[credential]\nkey_repository = {dir}/credential-keys
[identity]\npassword_hash_rounds = 4
[cache]\nenabled = {cache}\nbackend = oslo_cache.dict\n"
    )
}

fn cinder_conf(dir: &Path, port: u16, keystone: &str, transport: &str) -> String {
    let dir = dir.display();
    format!(
        "[DEFAULT]
host = cinder
my_ip = 127.0.0.1
use_stderr = true
state_path = {dir}
transport_url = {transport}
auth_strategy = keystone
api_paste_config = /etc/cinder/api-paste.ini
resource_query_filters_file = /etc/cinder/resource_filters.json
rootwrap_config = /etc/cinder/rootwrap.conf
osapi_volume_listen = 127.0.0.1
osapi_volume_listen_port = {port}
osapi_volume_workers = 1
osapi_max_limit = 2
enabled_backends = ceph
default_volume_type = ceph
storage_availability_zone = nova
allow_availability_zone_fallback = false
periodic_fuzzy_delay = 0
backend_stats_polling_interval = 10
quota_volumes = 100
[ceph]
volume_driver = cinder.volume.drivers.rbd.RBDDriver
volume_backend_name = ceph
rbd_pool = volumes
rbd_user = cinder
rbd_ceph_conf = {dir}/ceph.conf
rbd_secret_uuid = 457eb676-33da-42ec-9a8c-9293d545c337
rbd_exclusive_cinder_pool = true
[database]
connection = sqlite:///{dir}/cinder.db?timeout=30
[oslo_policy]
enforce_new_defaults = true
enforce_scope = true
[oslo_concurrency]
lock_path = {dir}/lock
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = cinder
password = cinderpw
project_name = service
user_domain_id = default
project_domain_id = default
service_token_roles = service
service_token_roles_required = true
token_cache_time = -1
"
    )
}

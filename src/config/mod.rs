//! Where the cluster is and who we are: what `ceph.conf`, the environment and the command line say, as Ceph's own
//! clients read them.
//!
//! Of an option's settings the first that there is counts: command line, `CEPH_ARGS` (or `CEPH_KEYRING`), the file's
//! `[client.NAME]`, `[client]` and `[global]`, the monitors (`ceph config`), default. Options that nothing here reads
//! are ignored.
//!
//! What the monitors have is known once we are logged in, before the first image can be opened: it cannot say how to
//! log in. Later changes are followed, too; what a process does only when it begins (its admin socket) stays as it is.

mod args;
mod dns;
mod file;
mod mon_host;
mod values;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::mon::Candidate;
use proto::msgr::auth::{ConnectionMode, method};
use proto::rbd::features::Features;
use proto::types::EntityAddr;
use thiserror::Error;

pub use args::{Args, HELP};
pub use mon_host::MonHost;
pub use values::Origin;
pub(crate) use values::{count, truth};

use mon_host::PORT_V1;
use values::{Value, Values};

/// What the configuration is read from: the process's environment and the file system, or a test's own.
pub trait Environment {
    /// An environment variable.
    fn var(&self, name: &str) -> Option<String>;
    /// A whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// This host's name, up to the first dot.
    fn hostname(&self) -> String;
    /// This process.
    fn pid(&self) -> u32;
}

/// The environment of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

impl Environment for Process {
    fn var(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn hostname(&self) -> String {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        name.trim().split('.').next().unwrap_or_default().to_owned()
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }
}

/// Why there is no configuration to work with.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// None of the files that were asked for exists.
    #[error("no configuration file: {} not found", list(.searched))]
    NoFile {
        /// The files.
        searched: Vec<PathBuf>,
    },
    /// A file that is there cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that means nothing.
    #[error("{}:{line}: expected {expected}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What might stand there.
        expected: &'static str,
    },
    /// An option that is set to what it cannot be.
    #[error("{option} = {value:?} (set in {origin}): expected {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value, expanded.
        value: String,
        /// Where it is set.
        origin: Origin,
        /// What it might be.
        expected: String,
    },
    /// An option without the value that it takes.
    #[error("option {option} needs a value")]
    NoValue {
        /// As it was given.
        option: String,
    },
    /// `-n` with something that is no name.
    #[error("{0:?} is no name: expected TYPE.ID, such as client.admin")]
    Name(String),
    /// Nothing says where the monitors are.
    #[error(
        "no monitors: set \"mon host\" in {place}, or give -m, or have DNS know {service} ({source})"
    )]
    NoMonitors {
        /// Where it could be set.
        place: String,
        /// The service that DNS was asked for.
        service: String,
        /// Why that is not known.
        source: io::Error,
    },
    /// A service whose hosts do not speak messenger v2.
    #[error(
        "DNS knows {0} with ports of messenger v1 only; messenger v2 (usually port 3300) is needed: enable it with \
         \"ceph mon enable-msgr2\" and add its port"
    )]
    OnlyV1Service(String),
    /// Monitors that do not speak messenger v2.
    #[error(
        "mon_host = {value:?} (set in {origin}) has only messenger v1 addresses; messenger v2 (usually port 3300) is \
         needed: enable it with \"ceph mon enable-msgr2\" and add its address"
    )]
    OnlyV1 {
        /// The value.
        value: String,
        /// Where it is set.
        origin: Origin,
    },
    /// Names of monitors that cannot be looked up.
    #[error("cannot look up the monitors {names}: {source}")]
    Lookup {
        /// The names.
        names: String,
        /// Why not the last of them.
        source: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Where our key comes from. Read, not yet understood.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `key = …`: base64.
    Key {
        /// The text.
        text: String,
        /// Where it is set.
        origin: Origin,
    },
    /// `keyfile = …`: a file with nothing but base64.
    Keyfile {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// The first of the `keyring` files that can be read.
    Keyring {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// Nothing. That is enough where the cluster asks for no key.
    Nothing {
        /// What was tried, and why each is none.
        tried: Vec<(PathBuf, String)>,
    },
}

/// How to reach a cluster, and as whom.
///
/// A program that wants to set an option puts it into [`Args::options`]. Fields that it sets by hand are overwritten as
/// soon as the monitors have options for it.
#[derive(Clone)]
pub struct Config {
    /// The cluster's name, which is `ceph` unless several are administered from one host.
    pub cluster: String,
    /// Who we are: `client.admin`.
    pub name: String,
    /// The file that was read, if there is one.
    pub path: Option<PathBuf>,
    /// Where the monitors are.
    pub monitors: Vec<MonHost>,
    /// How we may authenticate ([`method`]), preferred first.
    pub auth_methods: Vec<u32>,
    /// Our key.
    pub key: KeySource,
    /// How connections to OSDs may be protected, preferred first.
    pub client_modes: Vec<ConnectionMode>,
    /// How connections to monitors may be protected, preferred first.
    pub mon_modes: Vec<ConnectionMode>,
    /// How long to wait for the monitors before the first map.
    pub mount_timeout: Duration,
    /// How long an operation may take before it fails; `None` waits for ever.
    pub osd_op_timeout: Option<Duration>,
    /// How long a monitor command may take before it fails; `None` waits for ever.
    pub mon_op_timeout: Option<Duration>,
    /// Operations in flight, at most.
    pub inflight_ops: u64,
    /// Bytes in flight, at most.
    pub inflight_bytes: u64,
    /// Fail writes to full pools instead of waiting for space (`abort_on_full`, as of the kernel's client).
    pub abort_on_full: bool,
    /// Who answers reads of images (`rbd_read_from_replica_policy`).
    pub read_from: ReadFrom,
    /// Where this client is in the CRUSH hierarchy: types and names of buckets (`crush_location`).
    pub crush_location: Vec<(String, String)>,
    /// Where this process can be asked what it does, if it runs for long (`admin_socket`).
    pub admin_socket: Option<AdminSocket>,
    /// Threads of a process that serves an image (`librados_thread_count`, `rbd_op_threads`; the larger counts).
    pub threads: u64,
    /// What new images are like.
    pub rbd: RbdDefaults,
    /// Whether options of the monitors count, which is so but for `--no-mon-config`.
    pub wants_monitors_options: bool,
    /// Everything that the rest is from.
    values: Values,
}

/// Where an admin socket is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSocket {
    /// The socket.
    pub path: PathBuf,
    /// Whether somebody asked for it: otherwise it is nice to have.
    pub asked: bool,
}

/// Which of an object's replicas answer reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// The primary.
    #[default]
    Primary,
    /// All of them, in turns.
    Balance,
    /// The nearest, by `crush_location`.
    Localize,
}

impl ReadFrom {
    /// From a value of `rbd_read_from_replica_policy`.
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "default" | "no" => Some(Self::Primary),
            "balance" => Some(Self::Balance),
            "localize" => Some(Self::Localize),
            _ => None,
        }
    }
}

/// Options whose names begin with `rbd_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbdDefaults {
    /// The pool of an image that is named without one.
    pub pool: String,
    /// Features of a new image.
    pub features: Features,
    /// Whether somebody set them: only then may one that is not supported be an error.
    pub features_set: bool,
    /// How parents know new clones: `1`, `2` or `auto`.
    pub clone_format: String,
    /// Object size of a new image, as a power of two.
    pub order: u8,
    /// Stripe unit of a new image in bytes, or 0.
    pub stripe_unit: u64,
    /// Stripe count of a new image, or 0.
    pub stripe_count: u64,
    /// The pool for a new image's data, if it is another one.
    pub data_pool: Option<String>,
    /// Whether an image is put into the trash in place of being removed.
    pub trash: bool,
    /// For how long it stays there at least.
    pub trash_expires: Duration,
    /// Whether an image whose clones hang on snapshots that were removed is put into the trash, until they are gone.
    pub trash_parents: bool,
    /// Objects that are worked on at a time when an image is removed or resized.
    pub concurrent_management_ops: u64,
    /// Whether a pool is looked at before an image is made in it.
    pub validate_pool: bool,
}

/// How long to wait for the monitors where nobody says otherwise. Ceph's default of 300 s is for a host that boots
/// together with its cluster; a person who mistyped an address wants to know sooner.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(10);

const USUAL_FILES: &str = "/etc/ceph/$cluster.conf,$home/.ceph/$cluster.conf,$cluster.conf";

impl Config {
    /// Reads the configuration. `args` are the Ceph options of the command line.
    pub fn load(args: &Args, environment: &dyn Environment) -> Result<Self, ConfigError> {
        let env_args = Args::from_env(&environment.var("CEPH_ARGS").unwrap_or_default())?;
        let cluster = args.cluster.clone().or_else(|| env_args.cluster.clone());
        let asked = args.conf.as_deref().or(env_args.conf.as_deref());
        let name = args.name.as_deref().or(env_args.name.as_deref()).unwrap_or("client.admin");
        let kinds = ["auth", "mon", "osd", "mds", "mgr", "client"];
        if !name.split_once('.').is_some_and(|(kind, id)| kinds.contains(&kind) && !id.is_empty()) {
            return Err(ConfigError::Name(name.to_owned()));
        }

        let mut values = Values::new(args.clone(), env_args.clone(), name, environment);
        values.cluster = cluster.clone().unwrap_or_else(|| "ceph".to_owned());
        let variable = environment.var("CEPH_CONF");
        let files = asked.or(variable.as_deref());
        let searched = values.read_file(files.unwrap_or(USUAL_FILES), environment)?;
        if let (None, Some(_)) = (&values.path, files) {
            return Err(ConfigError::NoFile { searched });
        }
        // Without a name given, a file that is asked for names the cluster: x.conf is that of x.
        if let (None, Some(_), Some(path)) = (cluster, asked, &values.path) {
            let file_name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some((stem, _)) = file_name.split_once(".conf") {
                values.cluster = stem.to_owned();
            }
        }
        let monitors = monitors(&values, &searched)?;
        let key = key_source(&values, environment)?;
        Self::from_values(values, monitors, key)
    }

    /// The same client, now that the monitors have told which options they have for it. One that cannot be understood
    /// counts as not set, as with librados: all clients would fail together.
    pub(crate) fn with_monitors_options(&self, options: BTreeMap<String, String>) -> Self {
        if self.values.told == options {
            return self.clone();
        }
        let mut values = Values { told: options.clone(), monitors: options, ..self.values.clone() };
        loop {
            let (monitors, key) = (self.monitors.clone(), self.key.clone());
            match Self::from_values(values.clone(), monitors, key) {
                Ok(config) => return config,
                Err(ConfigError::Value { option, value, expected, .. })
                    if values.monitors.remove(option).is_some() =>
                {
                    tracing::warn!(
                        "{option} = {value:?}, which the monitors' configuration says, is ignored: expected {expected}"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "the monitors' configuration is ignored");
                    let values = Values { told: values.told, ..self.values.clone() };
                    return Self { values, ..self.clone() };
                }
            }
        }
    }

    fn from_values(
        values: Values,
        monitors: Vec<MonHost>,
        key: KeySource,
    ) -> Result<Self, ConfigError> {
        let timeout = |option| {
            let limit = values.get(option).duration()?;
            Ok::<_, ConfigError>(Some(limit).filter(|limit| !limit.is_zero()))
        };
        Ok(Self {
            cluster: values.cluster.clone(),
            name: values.name.clone(),
            monitors,
            auth_methods: auth_methods(&values)?,
            key,
            client_modes: modes(&values.get("ms_client_mode"))?,
            mon_modes: modes(&values.get("ms_mon_client_mode"))?,
            mount_timeout: mount_timeout(&values)?,
            osd_op_timeout: timeout("rados_osd_op_timeout")?,
            mon_op_timeout: timeout("rados_mon_op_timeout")?,
            inflight_ops: values.get("objecter_inflight_ops").count()?,
            inflight_bytes: values.get("objecter_inflight_op_bytes").bytes()?,
            abort_on_full: values.get("abort_on_full").bool()?,
            read_from: read_from(&values.get("rbd_read_from_replica_policy"))?,
            crush_location: crush_location(&values.get("crush_location"))?,
            admin_socket: admin_socket(&values.get("admin_socket")),
            threads: values
                .get("librados_thread_count")
                .count()?
                .max(values.get("rbd_op_threads").count()?),
            rbd: rbd_defaults(&values)?,
            wants_monitors_options: !values.get("no_mon_config").bool()?,
            path: values.path.clone(),
            values,
        })
    }

    /// The monitors, with names looked up. A name that is unknown is an error only if no other is known.
    pub async fn monitors(&self) -> Result<Vec<Candidate>, ConfigError> {
        let mut found = Vec::new();
        let mut failed = Vec::new();
        let mut last = None;
        for (monitor, priority, weight) in &self.named_monitors().await? {
            let candidate = |addr| Candidate {
                addr: EntityAddr::msgr2(addr, 0),
                priority: *priority,
                weight: *weight,
            };
            match monitor {
                MonHost::Service { .. } => {}
                MonHost::Addr(addr) => found.push(candidate(*addr)),
                MonHost::Name(name, port) => {
                    match tokio::net::lookup_host((name.as_str(), *port)).await {
                        Ok(addrs) => found.extend(addrs.map(candidate)),
                        Err(error) => {
                            failed.push(name.clone());
                            last = Some(error);
                        }
                    }
                }
            }
        }
        match last {
            Some(source) if found.is_empty() => {
                Err(ConfigError::Lookup { names: failed.join(", "), source })
            }
            _ => Ok(found),
        }
    }
}

impl Config {
    /// The monitors by address or name, each with its priority and weight, after DNS was asked where nothing else names
    /// them.
    async fn named_monitors(&self) -> Result<Vec<(MonHost, u16, u16)>, ConfigError> {
        let [MonHost::Service { name, place }] = self.monitors.as_slice() else {
            return Ok(self.monitors.iter().map(|monitor| (monitor.clone(), 0, 0)).collect());
        };
        let hosts = dns::hosts(name).await.map_err(|source| ConfigError::NoMonitors {
            place: place.clone(),
            service: name.clone(),
            source,
        })?;
        let v2 = hosts.into_iter().filter(|host| host.port != PORT_V1);
        let named =
            |host: dns::Host| (MonHost::Name(host.name, host.port), host.priority, host.weight);
        let v2: Vec<_> = v2.map(named).collect();
        if v2.is_empty() { Err(ConfigError::OnlyV1Service(name.clone())) } else { Ok(v2) }
    }
}

fn monitors(values: &Values, searched: &[PathBuf]) -> Result<Vec<MonHost>, ConfigError> {
    let value = values.get("mon_host");
    let hosts = mon_host::parse(&value.text)
        .map_err(|wrong| value.wrong(format!("addresses of monitors, but {wrong}")))?;
    match (&values.path, hosts.v2.is_empty(), hosts.v1_only.is_empty()) {
        (_, false, _) => Ok(hosts.v2),
        (_, true, false) => Err(ConfigError::OnlyV1 { value: value.text, origin: value.origin }),
        (Some(path), true, true) => Ok(vec![service(values, path.display().to_string())]),
        (None, true, true) => Ok(vec![service(values, format!("one of {}", list(searched)))]),
    }
}

/// The service that DNS is asked for: `mon_dns_srv_name`, which may have a domain behind an underscore.
fn service(values: &Values, place: String) -> MonHost {
    let value = values.get("mon_dns_srv_name").text;
    let name = match value.split_once('_') {
        Some((service, domain)) => format!("_{service}._tcp.{domain}"),
        None => format!("_{value}._tcp"),
    };
    MonHost::Service { name, place }
}

fn mount_timeout(values: &Values) -> Result<Duration, ConfigError> {
    let value = values.get("client_mount_timeout");
    match value.origin {
        Origin::Default => Ok(MOUNT_TIMEOUT),
        _ => value.duration(),
    }
}

fn auth_methods(values: &Values) -> Result<Vec<u32>, ConfigError> {
    // The older name of one option for clients and servers overrides the newer, if it is set.
    let older = values.get("auth_supported");
    let value = if older.text.is_empty() { values.get("auth_client_required") } else { older };
    let known = value.words().filter_map(|word| match word {
        "cephx" => Some(method::CEPHX),
        "none" => Some(method::NONE),
        _ => None,
    });
    let methods: Vec<u32> = known.collect();
    if methods.is_empty() { Err(value.wrong("cephx or none")) } else { Ok(methods) }
}

fn modes(value: &Value) -> Result<Vec<ConnectionMode>, ConfigError> {
    let modes = value.words().map(|word| match word {
        "crc" => Ok(ConnectionMode::Crc),
        "secure" => Ok(ConnectionMode::Secure),
        _ => Err(value.wrong("crc, secure, or both")),
    });
    let modes = modes.collect::<Result<Vec<_>, _>>()?;
    if modes.is_empty() { Err(value.wrong("crc, secure, or both")) } else { Ok(modes) }
}

fn read_from(value: &Value) -> Result<ReadFrom, ConfigError> {
    ReadFrom::parse(&value.text).ok_or_else(|| value.wrong("default, balance or localize"))
}

/// None only if somebody set it to nothing. What the monitors have is for all hosts, of which some may have no such
/// place.
fn admin_socket(value: &Value) -> Option<AdminSocket> {
    let asked = !matches!(value.origin, Origin::Default | Origin::Monitors);
    (!value.text.is_empty()).then(|| AdminSocket { path: PathBuf::from(&value.text), asked })
}

/// `host=a rack=b`, as Ceph has it, or `host:a|rack:b`, as the kernel's client has it.
fn crush_location(value: &Value) -> Result<Vec<(String, String)>, ConfigError> {
    let words = value.text.split([' ', ',', ';', '|', '\t']).filter(|word| !word.is_empty());
    words
        .map(|word| match word.split_once(['=', ':']) {
            Some((kind, name)) if !kind.is_empty() && !name.is_empty() => {
                Ok((kind.to_owned(), name.to_owned()))
            }
            _ => Err(value.wrong("types and names of CRUSH buckets, such as host=a rack=b")),
        })
        .collect()
}

/// What counts is, first, a key itself, then a file with one, then keyrings (`KeyRing::from_ceph_context`).
fn key_source(values: &Values, environment: &dyn Environment) -> Result<KeySource, ConfigError> {
    let read = |path: &Path| {
        let bytes = environment.read(path)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let Value { text, origin, .. } = values.get("key");
    if !text.is_empty() {
        return Ok(KeySource::Key { text, origin });
    }
    let keyfile = values.get("keyfile").text;
    if !keyfile.is_empty() {
        let path = PathBuf::from(keyfile);
        return match read(&path) {
            Ok(text) => Ok(KeySource::Keyfile { path, text }),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        };
    }
    let mut tried = Vec::new();
    for path in values.get("keyring").words() {
        let path = PathBuf::from(path);
        match read(&path) {
            Ok(text) => return Ok(KeySource::Keyring { path, text }),
            Err(error) => tried.push((path, error.to_string())),
        }
    }
    Ok(KeySource::Nothing { tried })
}

fn rbd_defaults(values: &Values) -> Result<RbdDefaults, ConfigError> {
    let features = values.get("rbd_default_features");
    let order = values.get("rbd_default_order");
    let data_pool = values.get("rbd_default_data_pool").text;
    Ok(RbdDefaults {
        pool: values.get("rbd_default_pool").text,
        clone_format: values.get("rbd_default_clone_format").text,
        features: features.text.parse().map_err(|_| {
            features.wrong("a number, or names of features, such as layering,exclusive-lock")
        })?,
        features_set: features.origin != Origin::Default,
        order: match u8::try_from(order.count()?) {
            Ok(bits @ 12..=25) => bits,
            _ => return Err(order.wrong("a power of two between 12 and 25")),
        },
        stripe_unit: values.get("rbd_default_stripe_unit").bytes()?,
        stripe_count: values.get("rbd_default_stripe_count").count()?,
        data_pool: Some(data_pool).filter(|pool| !pool.is_empty()),
        trash: values.get("rbd_move_to_trash_on_remove").bool()?,
        trash_expires: Duration::from_secs(
            values.get("rbd_move_to_trash_on_remove_expire_seconds").count()?,
        ),
        trash_parents: values.get("rbd_move_parent_to_trash_on_remove").bool()?,
        concurrent_management_ops: values.get("rbd_concurrent_management_ops").count()?.max(1),
        validate_pool: values.get("rbd_validate_pool").bool()?,
    })
}

#[cfg(test)]
mod tests;

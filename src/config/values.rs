//! From layers of settings to one value of an option: command line before environment before file before monitors
//! before default (`CONF_CMDLINE` to `CONF_DEFAULT` in `src/common/config_values.h`), with `$metavariables` expanded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use std::{fmt, io};

use super::args::Args;
use super::file::{ConfFile, SyntaxError};
use super::{ConfigError, Environment};

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    CommandLine,
    /// In this environment variable.
    Environment(&'static str),
    /// In this section of this file, on this line.
    File {
        /// The file.
        path: PathBuf,
        /// The section.
        section: String,
        /// The line, counted from 1.
        line: usize,
    },
    /// With the monitors (`ceph config set`).
    Monitors,
    /// Nowhere.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Environment(variable) => write!(f, "${variable}"),
            Self::File { path, section, line } => {
                write!(f, "{}:{line} [{section}]", path.display())
            }
            Self::Monitors => f.write_str("the monitors' configuration"),
            Self::Default => f.write_str("the defaults"),
        }
    }
}

/// What Ceph assumes of the options that are read here (`src/common/options` of release 16).
fn default(name: &str) -> &'static str {
    match name {
        // As of Ceph's daemons; its clients have none unless it is asked for.
        "admin_socket" => "$run_dir/$cluster-$name.$pid.asok",
        "auth_client_required" => "cephx, none",
        "client_mount_timeout" => "300",
        "keyring" => {
            "/etc/ceph/$cluster.$name.keyring,/etc/ceph/$cluster.keyring,/etc/ceph/keyring,/etc/ceph/keyring.bin,"
        }
        "librados_thread_count" => "2",
        "mon_dns_srv_name" => "ceph-mon",
        "ms_client_mode" => "crc secure",
        "ms_mon_client_mode" => "secure crc",
        "objecter_inflight_op_bytes" => "104857600",
        "objecter_inflight_ops" => "1024",
        "rados_mon_op_timeout" | "rados_osd_op_timeout" => "0",
        "rbd_move_to_trash_on_remove_expire_seconds" => "0",
        "rbd_concurrent_management_ops" => "10",
        "rbd_default_clone_format" => "auto",
        "rbd_default_features" => "61",
        "rbd_default_order" => "22",
        "rbd_default_pool" => "rbd",
        "rbd_default_stripe_count" | "rbd_default_stripe_unit" => "0",
        "rbd_op_threads" => "1",
        "rbd_read_from_replica_policy" => "default",
        "rbd_validate_pool" => "true",
        "run_dir" => "/var/run/ceph",
        _ => "",
    }
}

/// Every layer of settings, for one client.
#[derive(Clone)]
pub(super) struct Values {
    pub(super) command_line: Args,
    /// `CEPH_ARGS`.
    pub(super) env_args: Args,
    /// `CEPH_KEYRING`.
    pub(super) env_keyring: Option<String>,
    pub(super) file: ConfFile,
    /// The file's place, once it is read.
    pub(super) path: Option<PathBuf>,
    /// What the monitors have for this client, once they have told.
    pub(super) told: BTreeMap<String, String>,
    /// The same, without what makes no sense.
    pub(super) monitors: BTreeMap<String, String>,
    pub(super) cluster: String,
    /// `client.admin`.
    pub(super) name: String,
    /// `$host`.
    pub(super) host: String,
    /// `$pid`.
    pub(super) pid: u32,
    /// `$home`.
    pub(super) home: String,
}

/// A value that is set or assumed, expanded, with its place for errors.
pub(super) struct Value {
    pub(super) option: &'static str,
    pub(super) text: String,
    pub(super) origin: Origin,
}

impl Values {
    /// Those of command line and environment.
    pub(super) fn new(
        command_line: Args,
        env_args: Args,
        name: &str,
        environment: &dyn Environment,
    ) -> Self {
        Self {
            command_line,
            env_args,
            env_keyring: environment.var("CEPH_KEYRING"),
            file: ConfFile::default(),
            path: None,
            told: BTreeMap::new(),
            monitors: BTreeMap::new(),
            cluster: "ceph".to_owned(),
            name: name.to_owned(),
            host: environment.hostname(),
            pid: environment.pid(),
            home: environment.var("HOME").unwrap_or_default(),
        }
    }

    /// Reads the first file of a list that exists, or none.
    pub(super) fn read_file(
        &mut self,
        list: &str,
        environment: &dyn Environment,
    ) -> Result<Vec<PathBuf>, ConfigError> {
        let mut missing = Vec::new();
        for path in list.split([',', ';', ' ', '\t']).filter(|path| !path.is_empty()) {
            let path = PathBuf::from(self.expand(path, &mut Vec::new()));
            let bytes = match environment.read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing.push(path);
                    continue;
                }
                Err(source) => return Err(ConfigError::Unreadable { path, source }),
            };
            let syntax = |SyntaxError { line, expected }| ConfigError::Syntax {
                path: path.clone(),
                line,
                expected,
            };
            self.file = ConfFile::parse(&String::from_utf8_lossy(&bytes)).map_err(syntax)?;
            self.path = Some(path);
            break;
        }
        Ok(missing)
    }

    /// The value of an option; the empty text if it has neither setting nor default.
    pub(super) fn get(&self, option: &'static str) -> Value {
        let (text, origin) = self.raw(option);
        let text = self.expand(text, &mut vec![option.to_owned()]);
        Value { option, text, origin }
    }

    fn raw(&self, option: &str) -> (&str, Origin) {
        if let Some(value) = self.command_line.option(option) {
            return (value, Origin::CommandLine);
        }
        if let Some(value) = self.env_args.option(option) {
            return (value, Origin::Environment("CEPH_ARGS"));
        }
        if let (Some(value), "keyring") = (&self.env_keyring, option) {
            return (value, Origin::Environment("CEPH_KEYRING"));
        }
        let kind = self.name.split('.').next().unwrap_or_default();
        let in_file = self.file.get(&[&self.name, kind, "global"], option);
        if let (Some((section, setting)), Some(path)) = (in_file, &self.path) {
            let (path, section) = (path.clone(), section.to_owned());
            return (&setting.value, Origin::File { path, section, line: setting.line });
        }
        match self.monitors.get(option) {
            Some(value) => (value, Origin::Monitors),
            None => (default(option), Origin::Default),
        }
    }

    /// Replaces `$name` and `${name}`. What is unknown stays as it is, and so does an option that stands, through
    /// others, in its own value.
    pub(super) fn expand(&self, text: &str, within: &mut Vec<String>) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let (braced, word) = match after.strip_prefix('{') {
                Some(inner) => (true, inner),
                None => (false, after),
            };
            let end =
                word.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(word.len());
            let (variable, tail) = word.split_at(end);
            let tail = if braced { tail.strip_prefix('}') } else { Some(tail) };
            match tail.and_then(|tail| Some((self.metavariable(variable, within)?, tail))) {
                Some((value, tail)) => {
                    out.push_str(&value);
                    rest = tail;
                }
                None => {
                    out.push('$');
                    rest = after;
                }
            }
        }
        out.push_str(rest);
        out
    }

    fn metavariable(&self, variable: &str, within: &mut Vec<String>) -> Option<String> {
        let (kind, id) = self.name.split_once('.').unwrap_or((&self.name, ""));
        Some(match variable {
            "" => return None,
            "cluster" => self.cluster.clone(),
            "name" => self.name.clone(),
            "type" => kind.to_owned(),
            "id" | "num" => id.to_owned(),
            "host" => self.host.clone(),
            "pid" => self.pid.to_string(),
            // Tells several clients of one process apart in the names of admin sockets, which there are none of here.
            "cctid" => "0".to_owned(),
            "home" => self.home.clone(),
            option if within.iter().any(|outer| outer == option) => return None,
            option => {
                let (text, origin) = self.raw(option);
                if origin == Origin::Default && text.is_empty() {
                    return None;
                }
                within.push(option.to_owned());
                let value = self.expand(text, within);
                within.pop();
                value
            }
        })
    }
}

impl Value {
    /// The error that this value is none that the option takes.
    pub(super) fn wrong(&self, expected: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            option: self.option,
            value: self.text.clone(),
            origin: self.origin.clone(),
            expected: expected.into(),
        }
    }

    /// What stands between separators.
    pub(super) fn words(&self) -> impl Iterator<Item = &str> {
        self.text.split([';', ',', '=', ' ', '\t', '\n']).filter(|word| !word.is_empty())
    }

    /// Yes or no; not set is no.
    pub(super) fn bool(&self) -> Result<bool, ConfigError> {
        truth(&self.text).ok_or_else(|| self.wrong("true or false"))
    }

    /// A count, `K`, `M`, … meaning powers of 1000.
    pub(super) fn count(&self) -> Result<u64, ConfigError> {
        count(&self.text).ok_or_else(|| self.wrong("a number, such as 64 or 2K"))
    }

    /// A size in bytes, `K`, `M`, … meaning powers of 1024.
    pub(super) fn bytes(&self) -> Result<u64, ConfigError> {
        scaled(&self.text, 1024).ok_or_else(|| self.wrong("a size, such as 4096 or 100M"))
    }

    /// A time in seconds, or with a unit.
    pub(super) fn duration(&self) -> Result<Duration, ConfigError> {
        let wrong = || self.wrong("a time, such as 30 or 5m");
        let text = self.text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let seconds = match unit.trim() {
            "" | "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            _ => return Err(wrong()),
        };
        number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
    }
}

/// Yes or no; nothing is no.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "" | "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// A count, `K`, `M`, … meaning powers of 1000.
pub(crate) fn count(text: &str) -> Option<u64> {
    scaled(text, 1000)
}

/// A number with an optional suffix, a power of `base`.
fn scaled(text: &str, base: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.strip_suffix('i').unwrap_or(unit).strip_suffix('B').unwrap_or(unit) {
        "" => 0,
        "K" | "Ki" => 1,
        "M" | "Mi" => 2,
        "G" | "Gi" => 3,
        "T" | "Ti" => 4,
        "P" | "Pi" => 5,
        "E" | "Ei" => 6,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(base.checked_pow(power)?)
}

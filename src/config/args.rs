//! The options that every Ceph program takes, on the command line and in `CEPH_ARGS`.
//!
//! They may stand anywhere, mixed with a program's own options, so they are taken out of the arguments before the
//! program parses the rest, as Ceph's programs do.

use super::ConfigError;
use super::file::normal_name;
use super::values::truth;

/// What to print for `--help` about the options that [`Args::take`] understands.
pub const HELP: &str = "\
Ceph options (anywhere on the line, and in $CEPH_ARGS):
  -c, --conf FILE        Configuration file [default: $CEPH_CONF, or the usual places]
      --cluster NAME     Cluster name [default: ceph]
  -n, --name TYPE.ID     Who to be [default: client.admin]
      --id, --user ID    Short for --name client.ID
  -m, --mon-host ADDRS   Monitors
  -k, --keyring FILE     Keyring
  -K, --keyfile FILE     File with nothing but the base64 key
      --no-mon-config    Do without the options that the monitors have (`ceph config`)
      --OPTION VALUE     Any option of ceph.conf, such as --ms-client-mode secure";

/// Ceph's options, as given. Later ones win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `-c`, `--conf`: files to try in turn, separated by commas.
    pub conf: Option<String>,
    /// `--cluster`.
    pub cluster: Option<String>,
    /// `-n`, `--name`, or `client.` and what `--id` or `--user` say.
    pub name: Option<String>,
    /// Options of `ceph.conf` by their normal name (underscores), in order.
    pub options: Vec<(String, String)>,
}

/// What follows a flag and is its value, as Ceph has it: all else may be what it is given with `=`.
const WORDS: [&str; 4] = ["true", "false", "1", "0"];

/// Options that need no value, beside those given as `--no-…`.
const FLAGS: &[&str] = &[
    "abort_on_full",
    "rbd_cache",
    "rbd_cache_writethrough_until_flush",
    "log_to_stderr",
    "log_to_syslog",
    "log_to_file",
    "log_to_journald",
    "err_to_stderr",
    "err_to_syslog",
    "ms_bind_ipv4",
    "ms_bind_ipv6",
    "ms_bind_msgr1",
    "ms_bind_msgr2",
    "ms_crc_data",
    "ms_crc_header",
    "ms_tcp_nodelay",
];

/// How names of `ceph.conf` options that may be given to a client begin. No option of our own begins so.
const FAMILIES: &[&str] = &[
    "admin_socket",
    "auth_",
    "client_mount_timeout",
    "crush_location",
    "debug_",
    "err_",
    "fsid",
    "key",
    "librados_",
    "log_",
    "mon_",
    "ms_",
    "objecter_",
    "osd_",
    "rados_",
    "rbd_",
    "run_dir",
];

impl Args {
    /// Takes Ceph's options out of `arguments` and leaves the rest, in order. Nothing after `--` is looked at.
    pub fn take(arguments: &mut Vec<String>) -> Result<Self, ConfigError> {
        let mut args = Self::default();
        let mut rest = Vec::with_capacity(arguments.len());
        let mut words = std::mem::take(arguments).into_iter().peekable();
        while let Some(word) = words.next() {
            if word == "--" {
                rest.push(word);
                rest.extend(words);
                break;
            }
            let Some((name, given)) = option_name(&word) else {
                rest.push(word);
                continue;
            };
            match name.as_str() {
                "no_mon_config" => {
                    args.options.push((name, given.unwrap_or_else(|| "true".to_owned())));
                    continue;
                }
                "mon_config" => {
                    args.options.push(("no_mon_config".to_owned(), opposite(given)));
                    continue;
                }
                flag if FLAGS.contains(&flag) => {
                    let given = given.or_else(|| words.next_if(|word| WORDS.contains(&&**word)));
                    args.options.push((name, given.unwrap_or_else(|| "true".to_owned())));
                    continue;
                }
                _ => {}
            }
            if let Some(flag) = name.strip_prefix("no_").filter(|name| FLAGS.contains(name)) {
                args.options.push((flag.to_owned(), opposite(given)));
                continue;
            }
            let ours = ["conf", "cluster", "name", "id", "user"].contains(&name.as_str());
            if !ours && !FAMILIES.iter().any(|family| name.starts_with(family)) {
                rest.push(word);
                continue;
            }
            let Some(value) = given.or_else(|| words.next()) else {
                return Err(ConfigError::NoValue { option: word });
            };
            match name.as_str() {
                "conf" => args.conf = Some(value),
                "cluster" => args.cluster = Some(value),
                "name" => args.name = Some(value),
                "id" | "user" => args.name = Some(format!("client.{value}")),
                _ => args.options.push((name, value)),
            }
        }
        *arguments = rest;
        Ok(args)
    }

    /// What `CEPH_ARGS` says; words in it that are no Ceph options are for other programs.
    pub(super) fn from_env(variable: &str) -> Result<Self, ConfigError> {
        Self::take(&mut variable.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// The value of an option, by its normal name.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }
}

/// What `--no-FLAG` says of the flag, which may have a value, too. One that makes no sense is kept, to be told.
fn opposite(given: Option<String>) -> String {
    let given = given.unwrap_or_else(|| "true".to_owned());
    truth(&given).map_or(given, |yes| (!yes).to_string())
}

/// The normal name of an option, and the value if it is part of the word.
fn option_name(word: &str) -> Option<(String, Option<String>)> {
    if let Some(long) = word.strip_prefix("--") {
        return Some(match long.split_once('=') {
            Some((name, value)) => (normal_name(name), Some(value.to_owned())),
            None => (normal_name(long), None),
        });
    }
    let name = match word {
        "-c" => "conf",
        "-n" => "name",
        "-m" => "mon_host",
        "-k" => "keyring",
        "-K" => "keyfile",
        _ => return None,
    };
    Some((name.to_owned(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(line: &str) -> (Args, String) {
        let mut words = line.split(' ').map(str::to_owned).collect();
        let args = Args::take(&mut words).unwrap();
        (args, words.join(" "))
    }

    #[test]
    fn takes_what_is_cephs_wherever_it_stands() {
        let (args, rest) = take(
            "ls -c a.conf -l --id=foo --pool p --mon-host v2:1.2.3.4:5 --rbd_default_order 20 \
             --debug-ms=1 --no-rbd-cache --log-to-stderr x -- -c kept",
        );
        assert_eq!(rest, "ls -l --pool p x -- -c kept");
        assert_eq!(args.conf.as_deref(), Some("a.conf"));
        assert_eq!(args.name.as_deref(), Some("client.foo"));
        assert_eq!(args.option("mon_host"), Some("v2:1.2.3.4:5"));
        assert_eq!(args.option("rbd_default_order"), Some("20"));
        assert_eq!(args.option("debug_ms"), Some("1"));
        assert_eq!(args.option("rbd_cache"), Some("false"));
        assert_eq!(args.option("log_to_stderr"), Some("true"));
    }

    #[test]
    fn flags_may_have_a_value() {
        let (args, rest) = take("--no-mon-config=false x --rbd-cache=no --no-log-to-file=false y");
        assert_eq!(rest, "x y");
        assert_eq!(args.option("no_mon_config"), Some("false"));
        assert_eq!(args.option("rbd_cache"), Some("no"));
        assert_eq!(args.option("log_to_file"), Some("true"));
        // In a word of its own, only what can hardly be anything else.
        let (args, rest) =
            take("--rbd-cache false x --log-to-file 1 --err-to-stderr y --no-mon-config 0");
        assert_eq!(rest, "x y 0");
        assert_eq!(args.option("rbd_cache"), Some("false"));
        assert_eq!(args.option("log_to_file"), Some("1"));
        assert_eq!(args.option("err_to_stderr"), Some("true"));
        assert_eq!(args.option("no_mon_config"), Some("true"));
        let (args, _) = take("--mon-config=false --no-rbd-cache=perhaps");
        assert_eq!(args.option("no_mon_config"), Some("true"));
        assert_eq!(args.option("rbd_cache"), Some("perhaps"));
    }

    #[test]
    fn the_last_one_wins() {
        let (args, _) = take("-n client.a -m x --id b -m y -k k --cluster one --cluster two");
        assert_eq!(args.name.as_deref(), Some("client.b"));
        assert_eq!(args.option("mon_host"), Some("y"));
        assert_eq!(args.option("keyring"), Some("k"));
        assert_eq!(args.cluster.as_deref(), Some("two"));
    }

    #[test]
    fn a_value_that_is_not_there_is_named() {
        let mut words = vec!["ls".to_owned(), "--keyring".to_owned()];
        let error = Args::take(&mut words).unwrap_err();
        assert_eq!(error.to_string(), "option --keyring needs a value");
    }
}

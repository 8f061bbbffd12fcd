//! The settings of the plugin: one TOML file, of which `deploy/ceph-native.toml` is a commented example.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::on_host;
use super::options::{self, VolumeOptions};
use super::tls;
use crate::config::{Args, Environment as _, Process};
use crate::error::{Context as _, Error, Kind, Result};
use crate::openstack::Cloud;
use crate::openstack::cinder::Api;

/// What has to be remembered is there when nobody says otherwise; a managed plugin has nothing else that stays.
const STATE: &str = "/var/lib/ceph-native";

/// Where the file is when nobody says otherwise.
pub const FILE: &str = "/etc/ceph-native/ceph-native.toml";

/// When a host that died may be fenced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// When its watch on the image is gone, which takes 30 seconds.
    #[default]
    Auto,
    /// When somebody says so: `ceph-native fence VOLUME`.
    Manual,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    listen: Option<Vec<String>>,
    state: Option<PathBuf>,
    mounts: Option<PathBuf>,
    host: Option<String>,
    mapper: Option<Vec<String>>,
    fence: Fence,
    answer_ms: Option<u64>,
    work_seconds: Option<u64>,
    lost_seconds: Option<u64>,
    ceph: BTreeMap<String, String>,
    volumes: BTreeMap<String, toml::Value>,
    cinder: Cinder,
    tls: tls::Files,
}

/// Where Cinder is: a cloud's name, or its settings as `clouds.yaml` has them.
#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Cinder {
    cloud: Option<String>,
    attach_api: Option<Api>,
    #[serde(flatten)]
    own: serde_json::Map<String, serde_json::Value>,
}

impl std::fmt::Debug for Cinder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cinder").field("cloud", &self.cloud).finish_non_exhaustive()
    }
}

/// How the plugin is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Docker finds it: paths of Unix sockets, or `tcp://ADDRESS:PORT`.
    pub listen: Vec<String>,
    /// With which certificates over TCP.
    pub tls: tls::Files,
    /// The folder for what it has to remember.
    pub state: PathBuf,
    /// The folder that volumes are mounted below.
    pub mounts: PathBuf,
    /// What other hosts call this one in messages.
    pub host: String,
    /// The program that maps images, and its first words.
    pub mapper: Vec<String>,
    /// When a host that died may be fenced.
    pub fence: Fence,
    /// How long the cluster may take to tell what the journal knows as well.
    pub answer: Duration,
    /// How long anything may take.
    pub work: Duration,
    /// After what time a use that no container has is over without a word of Docker's.
    pub lost: Duration,
    /// Options for Ceph: where the cluster is, and who we are.
    pub ceph: Args,
    /// What volumes are like if nothing else is said.
    pub volumes: VolumeOptions,
    /// The cloud that is meant if a volume names none.
    pub cloud: Option<String>,
    /// The same, where these settings describe it themselves.
    pub own_cloud: Option<Cloud>,
    /// How volumes of Cinder's are attached, if it is not to be what Cinder can.
    pub attach_api: Option<Api>,
}

impl Settings {
    /// Reads the file. One that nobody asked for need not be there.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Invalid`], with the line.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let path = file.unwrap_or_else(|| Path::new(FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if file.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                String::new()
            }
            Err(error) => return Err(super::files::failed(path, error)),
        };
        Self::parse(&text).context(path.display())
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with the line.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_in(text, std::env::var_os(on_host::HOST).is_some())
    }

    fn parse_in(text: &str, managed: bool) -> Result<Self> {
        let file: File = toml::from_str(text)
            .map_err(|error| Error::new(Kind::Invalid, error.to_string().trim_end().to_owned()))?;
        let state = file.state.unwrap_or_else(|| STATE.into());
        let mounts = file.mounts.unwrap_or_else(|| state.join("mounts"));
        for (name, path) in [("state", &state), ("mounts", &mounts)] {
            if managed && !path.starts_with(STATE) {
                let what = format!("{name}: {} ends with the plugin's container", path.display());
                let hint = format!("a managed plugin's is in {STATE}");
                return Err(Error::new(Kind::Invalid, what).with_hint(hint));
            }
        }
        let text = |(name, value): (&String, &toml::Value)| match value {
            toml::Value::String(text) => Ok((name.clone(), text.clone())),
            toml::Value::Integer(number) => Ok((name.clone(), number.to_string())),
            toml::Value::Boolean(yes) => Ok((name.clone(), yes.to_string())),
            _ => Err(Error::new(Kind::Invalid, format!("{name}: expected a text or a number"))),
        };
        let volumes: Result<_> = file.volumes.iter().map(text).collect();
        let volumes =
            volumes.and_then(|volumes| options::from_map(&volumes)).context("[volumes]")?;
        if volumes.image.is_some() || volumes.from.is_some() {
            let what = "[volumes]: image and from are for one volume only";
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(Self {
            listen: file
                .listen
                .unwrap_or_else(|| vec!["/run/docker/plugins/ceph-native.sock".to_owned()]),
            tls: file.tls,
            mounts,
            state,
            host: file.host.unwrap_or_else(|| Process.hostname()),
            mapper: mapper(file.mapper.unwrap_or_default(), managed),
            fence: file.fence,
            answer: Duration::from_millis(file.answer_ms.unwrap_or(700).clamp(50, 10_000)),
            work: Duration::from_secs(file.work_seconds.unwrap_or(60).clamp(1, 600)),
            lost: Duration::from_secs(file.lost_seconds.unwrap_or(600).max(1)),
            ceph: ceph_args(file.ceph)?,
            volumes,
            own_cloud: match file.cinder.own.is_empty() {
                true => None,
                false => Some(own_cloud(file.cinder.own)?),
            },
            cloud: file.cinder.cloud,
            attach_api: file.cinder.attach_api,
        })
    }
}

/// A cloud as the settings describe it. In `clouds.yaml`, what is not known here may be other programs'; not in these.
fn own_cloud(own: serde_json::Map<String, serde_json::Value>) -> Result<Cloud> {
    let (words, auth_words) = Cloud::words();
    let auth = own.get("auth").and_then(|auth| auth.as_object());
    let auth = auth.into_iter().flat_map(|auth| auth.keys()).map(|word| ("[cinder.auth]", word));
    for (table, word) in own.keys().map(|word| ("[cinder]", word)).chain(auth) {
        let known: Vec<_> = match table {
            // Some write those of `auth` beside it.
            "[cinder]" => ["cloud", "attach-api", "auth"]
                .into_iter()
                .chain(words.iter().chain(auth_words).copied())
                .collect(),
            _ => auth_words.to_vec(),
        };
        let known: Vec<_> = known.iter().map(|word| word.replace('_', "-")).collect();
        if !known.contains(&word.replace('_', "-")) {
            let known: Vec<_> = known.iter().map(String::as_str).collect();
            let error = Error::new(Kind::Invalid, format!("{table}: there is no setting {word}"));
            return Err(options::meant(error, word, &known));
        }
    }
    Cloud::parse("[cinder]", &own.into())
}

/// What was named, or `rbd-nbd-rs` beside this program, or in the search path; a managed plugin has it run outside of
/// its container, whatever it is.
fn mapper(mut words: Vec<String>, managed: bool) -> Vec<String> {
    const NAME: &str = "rbd-nbd-rs";

    let own = std::env::current_exe().ok();
    if words.is_empty() {
        let beside = own.as_ref().map(|own| own.with_file_name(NAME)).filter(|path| path.exists());
        words.push(beside.map_or_else(|| NAME.to_owned(), |path| path.display().to_string()));
    }
    if let Some(own) = own.filter(|_| managed) {
        words.splice(..0, [own.display().to_string(), on_host::VERB.to_owned()]);
    }
    words
}

/// The options as Ceph's programs take them on their command line.
fn ceph_args(table: BTreeMap<String, String>) -> Result<Args> {
    let mut words: Vec<String> =
        table.into_iter().map(|(name, value)| format!("--{name}={value}")).collect();
    let args = Args::take(&mut words)
        .map_err(|error| Error::new(Kind::Invalid, format!("[ceph]: {error}")))?;
    if args.options.iter().any(|(name, _)| name == "key") {
        let what = "[ceph]: key would be seen in the list of processes";
        return Err(Error::new(Kind::Invalid, what).with_hint("name a keyring or a keyfile"));
    }
    match words.first() {
        None => Ok(args),
        Some(word) => {
            let name = word.trim_start_matches('-').split('=').next().unwrap_or_default();
            let what = format!("[ceph]: {name} is no option of Ceph's");
            Err(Error::new(Kind::Invalid, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_what_is_done_without_it() {
        let example = include_str!("../../deploy/ceph-native.toml");
        let (shown, default) = (Settings::parse(example).unwrap(), Settings::parse("").unwrap());
        assert_eq!(format!("{shown:?}"), format!("{default:?}"));

        // Each setting that is commented out is one.
        let all: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)
            })
            .map(|line| line.to_owned() + "\n")
            .collect();
        let settings = Settings::parse(&all).unwrap();
        assert_eq!(settings.fence, Fence::Manual);
        assert_eq!(settings.volumes.mode, Some(0o750));
        assert_eq!(settings.attach_api, Some(Api::Actions));
        let cloud = settings.own_cloud.as_ref().expect("a cloud");
        assert_eq!(cloud.auth_url, "https://keystone.example:5000/v3");
        assert!(!format!("{settings:?}").contains("not told"));
        assert_eq!(settings.ceph.name.as_deref(), Some("client.docker"));
    }

    #[test]
    fn what_a_managed_plugin_maps_and_remembers_outlives_it() {
        let own = std::env::current_exe().unwrap().display().to_string();
        let mapper = |text: &str| Settings::parse_in(text, true).unwrap().mapper;
        assert_eq!(mapper("")[..2], [own.as_str(), "on-host"]);
        assert_eq!(mapper("mapper = ['/m', 'x']"), [own.as_str(), "on-host", "/m", "x"]);
        for text in ["state = '/elsewhere'", "mounts = '/var/lib/ceph-natives'"] {
            let error = Settings::parse_in(text, true).unwrap_err().to_string();
            assert!(error.contains("is in /var/lib/ceph-native"), "{error}");
            assert!(Settings::parse_in(text, false).is_ok());
        }
    }

    #[test]
    fn flags_of_cephs_have_a_value_as_all_settings() {
        let text = "[ceph]\nno_mon_config = 'true'\nrbd_cache = 'false'\nmon-host = 'a b'";
        let ceph = Settings::parse(text).unwrap().ceph;
        let said = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let options = [("mon_host", "a b"), ("no_mon_config", "true"), ("rbd_cache", "false")];
        assert_eq!(ceph.options, options.iter().map(said).collect::<Vec<_>>());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("fense = 'auto'", "unknown field `fense`"),
            ("fence = 'never'", "unknown variant `never`"),
            ("[volumes]\nsise = 1", "did you mean size?"),
            ("[volumes]\nimage = 'x'", "for one volume only"),
            ("[ceph]\ncolour = 'red'", "colour is no option of Ceph's"),
            ("[cinder]\nregion-name = 'R'", "cloud [cinder]: auth_url is missing"),
            ("[cinder]\nregion-nam = 'R'", "no setting region-nam (did you mean region-name?)"),
            ("[cinder]\ncolour-of-sky = 'R'", "known are cloud, attach-api, auth, auth-type"),
            ("[cinder.auth]\nuser-name = 'R'", "[cinder.auth]: there is no setting user-name"),
            ("[cinder.auth]\nuser_name = 'R'", "did you mean username?"),
            ("[cinder]\nattach-api = 'nova'", "attachments"),
            ("[tls]\nca = 'x'", "unknown field `ca`"),
            ("x", "line 1"),
        ] {
            let error = Settings::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let missing = Settings::load(Some(Path::new("/nowhere.toml"))).unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
    }
}

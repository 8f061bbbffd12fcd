//! Where a cloud is and who we are: `clouds.yaml` and `secure.yaml`, `OS_*` variables, or a table of settings that has
//! the words of `clouds.yaml`.
//!
//! A cloud that is named is looked for in the files alone. If none is named, `OS_CLOUD` may name one; else the
//! variables say it all, or the files have just one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::secret::Secret;
use crate::config::Environment;
use crate::error::{Error, Kind, Result};

/// How long a request may take if nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The largest `clouds.yaml` that is read.
const MAX_FILE: usize = 1 << 20;

/// How OpenStack's programs call what is configured by variables alone.
const BY_VARIABLES: &str = "envvars";

/// A cloud, and who we are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Its name in the files.
    pub name: String,
    /// Keystone, up to and with `/v3`.
    pub auth_url: String,
    /// How we prove who we are.
    pub auth: Auth,
    /// The project that is worked in; the user's default one, or the application credential's, if not given.
    pub project: Option<Named>,
    /// The region; the only one there is, if not given.
    pub region: Option<String>,
    /// Which of a service's addresses is taken.
    pub interface: Interface,
    /// Certificates to trust in place of the system's.
    pub cacert: Option<PathBuf>,
    /// Whether certificates are looked at.
    pub verify: bool,
    /// Cinder's address in place of the catalogue's.
    pub cinder: Option<String>,
    /// How long a request may take.
    pub timeout: Duration,
}

/// Something by its id, or by its name and its domain's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The id, which is enough.
    pub id: Option<String>,
    /// The name, unique in its domain.
    pub name: Option<String>,
    /// The domain's id.
    pub domain_id: Option<String>,
    /// The domain's name.
    pub domain_name: Option<String>,
}

/// How we prove who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// A user and a password.
    Password(Named, Secret),
    /// An application credential, which is for one project: by its id, or by its name and its user.
    ApplicationCredential {
        /// Its id.
        id: Option<String>,
        /// Its name, with whose it is.
        name: Option<(String, Named)>,
        /// Its secret.
        secret: Secret,
    },
    /// A token that somebody else got.
    Token(Secret),
}

/// Which of a service's addresses is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interface {
    /// The one for everybody.
    #[default]
    Public,
    /// The one inside the cloud.
    Internal,
    /// The administrators'.
    Admin,
}

impl Interface {
    /// Its name in the catalogue.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Admin => "admin",
        }
    }
}

/// Variables and files.
struct Sources<'a> {
    environment: &'a dyn Environment,
}

impl Sources<'_> {
    fn cloud(&self, name: Option<&str>) -> Result<Cloud> {
        let chosen = name.map(str::to_owned).or_else(|| self.var("OS_CLOUD"));
        if chosen.is_none() && self.var("OS_AUTH_URL").is_some() {
            return Cloud::parse(BY_VARIABLES, &self.variables());
        }
        let (found, path) = self.file("clouds", "OS_CLIENT_CONFIG_FILE")?;
        let (secrets, _) = self.file("secure", "OS_CLIENT_SECURE_FILE")?;
        let clouds = found["clouds"].as_object().cloned().unwrap_or_default();
        let names: Vec<_> = clouds.keys().map(String::as_str).collect();
        let name = match (&chosen, names.as_slice()) {
            (Some(name), _) => name.as_str(),
            (None, [only]) => only,
            (None, []) => {
                let what = "no cloud is configured: there is no clouds.yaml and no OS_AUTH_URL";
                let hint = format!("looked for {}", shown(&self.candidates("clouds")));
                return Err(Error::new(Kind::NotFound, what).with_hint(hint));
            }
            (None, several) => {
                let what = format!("which cloud is meant? {path} has {}", several.join(", "));
                return Err(Error::new(Kind::Invalid, what).with_hint("name one, or set OS_CLOUD"));
            }
        };
        let Some(cloud) = clouds.get(name) else {
            let what = format!("there is no cloud {name}");
            let hint = match path.as_str() {
                "" => format!("looked for {}", shown(&self.candidates("clouds"))),
                path => format!("{path} has {}", names.join(", ")),
            };
            return Err(Error::new(Kind::NotFound, what).with_hint(hint));
        };
        let mut cloud = self.with_profile(cloud)?;
        merge(&mut cloud, &secrets["clouds"][name]);
        Cloud::parse(name, &cloud)
    }

    /// What a cloud takes from a vendor's profile, below its own words.
    fn with_profile(&self, cloud: &Value) -> Result<Value> {
        let Some(profile) = cloud["profile"].as_str() else { return Ok(cloud.clone()) };
        let (public, _) = self.file("clouds-public", "OS_CLIENT_VENDOR_FILE")?;
        let mut merged = public["public-clouds"][profile].clone();
        if merged.is_null() {
            let what = format!("clouds-public.yaml has no profile {profile}");
            return Err(Error::new(Kind::NotFound, what));
        }
        merge(&mut merged, cloud);
        Ok(merged)
    }

    /// The first of the files that there is, and its path.
    fn file(&self, stem: &str, variable: &str) -> Result<(Value, String)> {
        let named = self.var(variable).map(PathBuf::from);
        let must = named.is_some();
        for path in named.map_or_else(|| self.candidates(stem), |path| vec![path]) {
            let shown = path.display();
            let text = match self.environment.read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound && !must => continue,
                Err(error) => {
                    let kind = Kind::from_errno(error.raw_os_error().unwrap_or(2));
                    return Err(Error::new(kind, shown.to_string()).with_source(error));
                }
            };
            let wrong = |why: &str| Error::new(Kind::Invalid, format!("{shown}: {why}"));
            if text.len() > MAX_FILE {
                return Err(wrong("too large"));
            }
            let text = std::str::from_utf8(&text).map_err(|_| wrong("not text"))?;
            // What the parser says may quote the line, and that may hold a password: only where it is wrong is told.
            let value: Value =
                serde_saphyr::from_str(text).map_err(|error| match error.location() {
                    Some(at) => wrong(&format!("no valid YAML at line {}", at.line())),
                    None => wrong("no valid YAML"),
                })?;
            return Ok((value, shown.to_string()));
        }
        Ok((Value::Null, String::new()))
    }

    fn candidates(&self, stem: &str) -> Vec<PathBuf> {
        let home = self.var("HOME").map(|home| Path::new(&home).join(".config/openstack"));
        let folders = [Some(PathBuf::from(".")), home, Some(PathBuf::from("/etc/openstack"))];
        let folders = folders.into_iter().flatten();
        folders
            .flat_map(|folder| ["yaml", "yml"].map(|end| folder.join(format!("{stem}.{end}"))))
            .collect()
    }

    /// `OS_*` variables as a cloud of `clouds.yaml`.
    fn variables(&self) -> Value {
        let mut auth = Map::new();
        for name in AUTH_WORDS {
            if let Some(value) = self.var(&format!("OS_{}", name.to_uppercase())) {
                auth.insert((*name).to_owned(), value.into());
            }
        }
        let mut cloud = Map::from_iter([("auth".to_owned(), auth.into())]);
        for name in CLOUD_WORDS {
            if let Some(value) = self.var(&format!("OS_{}", name.to_uppercase())) {
                cloud.insert((*name).to_owned(), value.into());
            }
        }
        cloud.into()
    }

    fn var(&self, name: &str) -> Option<String> {
        self.environment.var(name).filter(|value| !value.is_empty())
    }
}

/// What is read below `auth`.
const AUTH_WORDS: &[&str] = &[
    "auth_url",
    "username",
    "user_id",
    "user_domain_id",
    "user_domain_name",
    "password",
    "token",
    "project_id",
    "project_name",
    "project_domain_id",
    "project_domain_name",
    "domain_id",
    "domain_name",
    "default_domain",
    "tenant_id",
    "tenant_name",
    "application_credential_id",
    "application_credential_name",
    "application_credential_secret",
];

/// What is read of a cloud beside `auth`.
const CLOUD_WORDS: &[&str] = &[
    "auth_type",
    "region_name",
    "interface",
    "endpoint_type",
    "cacert",
    "verify",
    "insecure",
    "api_timeout",
    "block_storage_endpoint_override",
    "volume_endpoint_override",
];

impl Cloud {
    /// The cloud of that name, or the one that is meant if none is named.
    ///
    /// # Errors
    /// [`Kind::NotFound`] with the files that were looked at; [`Kind::Invalid`] with what is wrong in them.
    pub fn find(environment: &dyn Environment, name: Option<&str>) -> Result<Self> {
        Sources { environment }.cloud(name)
    }

    /// Every word that is read of a cloud: beside `auth`, and below it.
    pub fn words() -> (&'static [&'static str], &'static [&'static str]) {
        (CLOUD_WORDS, AUTH_WORDS)
    }

    /// Reads a cloud as `clouds.yaml` has it; `-` in a word is as good as `_`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with what is missing or makes no sense, never with a secret.
    pub fn parse(name: &str, cloud: &Value) -> Result<Self> {
        let words = Words { cloud: &underscored(cloud), name };
        let auth_url = words.auth("auth_url").ok_or_else(|| words.missing("auth_url"))?;
        if !auth_url.starts_with("https://") && !auth_url.starts_with("http://") {
            return Err(words.wrong("auth_url is no http or https address"));
        }
        let interface = words.text("interface").or_else(|| words.text("endpoint_type"));
        let interface = match interface.as_deref().map(|text| text.trim_end_matches("URL")) {
            None | Some("public") => Interface::Public,
            Some("internal") => Interface::Internal,
            Some("admin") => Interface::Admin,
            Some(_) => return Err(words.wrong("interface is public, internal or admin")),
        };
        let seconds = match words.text("api_timeout").map(|text| text.parse::<f64>()) {
            None => TIMEOUT,
            Some(Ok(seconds)) if (0.1..=600.0).contains(&seconds) => {
                Duration::from_secs_f64(seconds)
            }
            Some(_) => return Err(words.wrong("api_timeout is a number of seconds")),
        };
        let yes = |text: String| matches!(text.to_lowercase().as_str(), "true" | "yes" | "1");
        let verify =
            words.text("verify").is_none_or(yes) && !words.text("insecure").is_some_and(yes);
        Ok(Self {
            name: name.to_owned(),
            auth_url: versioned(&auth_url),
            auth: words.proof()?,
            project: words.project(),
            region: words.text("region_name"),
            interface,
            cacert: words.text("cacert").map(PathBuf::from),
            verify,
            cinder: ["block_storage", "volume"]
                .iter()
                .find_map(|service| words.text(&format!("{service}_endpoint_override"))),
            timeout: seconds,
        })
    }
}

/// The words of one cloud.
struct Words<'a> {
    cloud: &'a Value,
    name: &'a str,
}

impl Words<'_> {
    fn text(&self, word: &str) -> Option<String> {
        text(&self.cloud[word])
    }

    /// A word below `auth`, where some write them beside it.
    fn auth(&self, word: &str) -> Option<String> {
        text(&self.cloud["auth"][word]).or_else(|| self.text(word))
    }

    fn proof(&self) -> Result<Auth> {
        let secret = |word: &str| self.auth(word).map(Secret::new);
        let kind = self.text("auth_type").unwrap_or_default();
        match kind.trim_start_matches("v3") {
            "applicationcredential" => self.application_credential(),
            "token" => secret("token").map(Auth::Token).ok_or_else(|| self.missing("token")),
            "" if self.auth("application_credential_secret").is_some() => {
                self.application_credential()
            }
            "" | "password" => match (secret("password"), secret("token")) {
                (Some(password), _) => Ok(Auth::Password(self.user()?, password)),
                (None, Some(token)) if kind.is_empty() => Ok(Auth::Token(token)),
                _ => Err(self.missing("password")),
            },
            _ => {
                let what = "auth_type is password, v3applicationcredential or token";
                Err(self.wrong(what))
            }
        }
    }

    fn application_credential(&self) -> Result<Auth> {
        let secret = self.auth("application_credential_secret").map(Secret::new);
        let secret = secret.ok_or_else(|| self.missing("application_credential_secret"))?;
        let id = self.auth("application_credential_id");
        let name = match (&id, self.auth("application_credential_name")) {
            (None, Some(name)) => Some((name, self.user()?)),
            (None, None) => return Err(self.missing("application_credential_id")),
            _ => None,
        };
        Ok(Auth::ApplicationCredential { id, name, secret })
    }

    fn user(&self) -> Result<Named> {
        let user = self.named("user_id", "username", "user");
        user.ok_or_else(|| self.missing("username"))
    }

    fn project(&self) -> Option<Named> {
        let project = self.named("project_id", "project_name", "project");
        project.or_else(|| self.named("tenant_id", "tenant_name", "project"))
    }

    fn named(&self, id: &str, name: &str, of: &str) -> Option<Named> {
        let (id, name) = (self.auth(id), self.auth(name));
        if id.is_none() && name.is_none() {
            return None;
        }
        let own = |what: &str| self.auth(&format!("{of}_domain_{what}"));
        let domain_id = own("id").or_else(|| self.auth("domain_id"));
        let domain_name = own("name").or_else(|| self.auth("domain_name"));
        // As OpenStack's programs have it where nothing is said.
        let domain_id = match &domain_name {
            None => domain_id
                .or_else(|| self.auth("default_domain"))
                .or_else(|| Some("default".to_owned())),
            Some(_) => domain_id,
        };
        Some(Named { id, name, domain_id, domain_name })
    }

    fn missing(&self, word: &str) -> Error {
        self.wrong(&format!("{word} is missing"))
    }

    fn wrong(&self, what: &str) -> Error {
        Error::new(Kind::Invalid, format!("cloud {}: {what}", self.name))
    }
}

/// A text, or what YAML took for something else: a project whose name is a number.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        _ => None,
    }
}

/// Keystone's address with its version, which many leave out.
fn versioned(url: &str) -> String {
    let url = url.trim_end_matches('/');
    let url = url.strip_suffix("/v2.0").unwrap_or(url);
    match url.ends_with("/v3") {
        true => url.to_owned(),
        false => format!("{url}/v3"),
    }
}

/// The same with `_` for `-` in every word.
fn underscored(value: &Value) -> Value {
    match value {
        Value::Object(table) => {
            let words = table.iter().map(|(word, value)| (word.replace('-', "_"), value));
            words.map(|(word, value)| (word, underscored(value))).collect::<Map<_, _>>().into()
        }
        other => other.clone(),
    }
}

/// Lays words over others, table by table.
fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (_, Value::Null) => {}
        (Value::Object(below), Value::Object(above)) => {
            for (word, value) in above {
                merge(below.entry(word.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
    }
}

fn shown(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

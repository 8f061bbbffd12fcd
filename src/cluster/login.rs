//! From the configuration to what the monitor client needs to log in.

use std::path::PathBuf;

use proto::cephx::{Entity, Key, Keyring, Login};
use proto::mon;
use proto::msgr::auth::method;
use proto::types::EntityType;

use crate::config::{Config, KeySource};
use crate::error::{Error, Kind, Result};

/// Looks up the monitors and reads the key.
pub(super) async fn mon_config(config: &Config) -> Result<mon::Config> {
    let invalid = |error| Error::new(Kind::Invalid, "configuration").with_source(error);
    let candidates = config.monitors().await.map_err(invalid)?;
    let entity = entity(config)?;
    let key = key(&config.key, config, &entity)?;
    Ok(mon::Config {
        candidates,
        login: Login {
            entity,
            key,
            methods: config.auth_methods.clone(),
            modes: config.mon_modes.clone(),
            services: vec![EntityType::MON, EntityType::OSD],
        },
        service_modes: config.client_modes.clone(),
        hostname: hostname(),
        wants_options: config.wants_monitors_options,
        connect_timeout: config.mount_timeout,
    })
}

fn entity(config: &Config) -> Result<Entity> {
    config.name.parse().map_err(|error| {
        Error::new(Kind::Invalid, format!("the name {}", config.name)).with_source(error)
    })
}

/// Our key. None is enough where the cluster may ask for none.
fn key(source: &KeySource, config: &Config, entity: &Entity) -> Result<Option<Key>> {
    let unreadable = |file: String, error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(Kind::Invalid, file).with_source(error)
    };
    match source {
        KeySource::Key { text, origin } => {
            let key = text.trim().parse::<Key>();
            key.map(Some).map_err(|error| unreadable(format!("key of {origin}"), error.into()))
        }
        KeySource::Keyfile { path, text } => {
            let key = text.trim().parse::<Key>();
            key.map(Some).map_err(|error| unreadable(path.display().to_string(), error.into()))
        }
        KeySource::Keyring { path, text } => {
            let keyring = Keyring::parse(text)
                .map_err(|error| unreadable(path.display().to_string(), error.into()))?;
            let key = keyring.key(entity).cloned();
            match key {
                Some(key) => Ok(Some(key)),
                None if config.auth_methods.contains(&method::NONE) => Ok(None),
                None => Err(Error::new(
                    Kind::NotFound,
                    format!("keyring {} has no key for {entity}", path.display()),
                )
                .with_hint("name another client with --id, or another file with --keyring")),
            }
        }
        KeySource::Nothing { .. } if config.auth_methods.contains(&method::NONE) => Ok(None),
        KeySource::Nothing { tried } => {
            let tried: Vec<_> =
                tried.iter().map(|(path, why)| format!("{} ({why})", path.display())).collect();
            Err(Error::new(
                Kind::NotFound,
                format!("no keyring for {entity}: tried {}", tried.join(", ")),
            )
            .with_hint("name one with --keyring, or a file with just the key with --keyfile"))
        }
    }
}

/// The key as it is now in the file that it came from, and that file; `None` if it came from none.
pub(super) fn reread_key(config: &Config) -> Result<Option<(Key, PathBuf)>> {
    let (path, source): (_, fn(PathBuf, String) -> KeySource) = match &config.key {
        KeySource::Keyfile { path, .. } => (path, |path, text| KeySource::Keyfile { path, text }),
        KeySource::Keyring { path, .. } => (path, |path, text| KeySource::Keyring { path, text }),
        KeySource::Key { .. } | KeySource::Nothing { .. } => return Ok(None),
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::new(Kind::Invalid, path.display().to_string()).with_source(error)
    })?;
    let key = key(&source(path.clone(), text), config, &entity(config)?)?;
    Ok(key.map(|key| (key, path.clone())))
}

/// This host's name, for the monitors' logs.
fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

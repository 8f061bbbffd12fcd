//! Keyring files: what `ceph auth get` prints and `/etc/ceph/ceph.client.admin.keyring` holds.
//!
//! ```text
//! [client.admin]
//!         key = AQ…==
//!         caps mon = "allow *"
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use thiserror::Error;

use super::entity::{BadEntity, Entity};
use super::key::{Key, KeyError};

/// The keys of a keyring file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Who is in it.
    pub entries: BTreeMap<Entity, Entry>,
}

/// What a keyring says about one entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// What it may do, by kind of service: `mon` → `allow r`. Of interest to the monitors only.
    pub caps: BTreeMap<String, String>,
}

/// A file that is not a keyring. `line` counts from 1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// A line that is neither a section, nor a setting, nor a comment.
    #[error("line {line}: expected [ENTITY], key = … or caps SERVICE = …")]
    Syntax {
        /// Where.
        line: usize,
    },
    /// A section whose name is no entity's.
    #[error("line {line}: {source}")]
    Entity {
        /// Where.
        line: usize,
        /// Why.
        source: BadEntity,
    },
    /// A key that is none.
    #[error("line {line}: {source}")]
    Key {
        /// Where.
        line: usize,
        /// Why.
        source: KeyError,
    },
    /// A section without a key.
    #[error("{0} has no key")]
    NoKey(Entity),
}

impl Keyring {
    /// Reads a keyring file.
    pub fn parse(text: &str) -> Result<Self, KeyringError> {
        let mut keyring = Self::default();
        let mut open: Option<(Entity, Section)> = None;
        for (line, content) in (1..).zip(text.lines()) {
            let content = content.trim();
            if content.is_empty() || content.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = content.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                let entity =
                    name.trim().parse().map_err(|source| KeyringError::Entity { line, source })?;
                keyring.close(open.replace((entity, Section::default())))?;
                continue;
            }
            let (Some((_, section)), Some((name, value))) = (&mut open, content.split_once('='))
            else {
                return Err(KeyringError::Syntax { line });
            };
            let words: Vec<&str> = name.split([' ', '\t', '_']).filter(|w| !w.is_empty()).collect();
            let value = unquoted(value.trim());
            match words.as_slice() {
                ["key"] => {
                    let key = value.parse().map_err(|source| KeyringError::Key { line, source })?;
                    section.key = Some(key);
                }
                ["caps", service] => {
                    section.caps.insert((*service).to_owned(), value);
                }
                // `auid` of old files, and what newer releases may add.
                _ => {}
            }
        }
        keyring.close(open)?;
        Ok(keyring)
    }

    fn close(&mut self, section: Option<(Entity, Section)>) -> Result<(), KeyringError> {
        let Some((entity, Section { key, caps })) = section else { return Ok(()) };
        let Some(key) = key else { return Err(KeyringError::NoKey(entity)) };
        self.entries.insert(entity, Entry { key, caps });
        Ok(())
    }

    /// The key of an entity.
    pub fn key(&self, entity: &Entity) -> Option<&Key> {
        self.entries.get(entity).map(|entry| &entry.key)
    }
}

#[derive(Default)]
struct Section {
    key: Option<Key>,
    caps: BTreeMap<String, String>,
}

/// Takes quotes off, and the backslashes that quotes inside need.
fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        text.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    text
}

impl fmt::Display for Keyring {
    /// The file's text, secrets included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (entity, Entry { key, caps }) in &self.entries {
            writeln!(f, "[{entity}]\n\tkey = {}", key.to_base64())?;
            for (service, caps) in caps {
                write!(f, "\tcaps {service} = \"")?;
                for c in caps.chars() {
                    if matches!(c, '"' | '\\') {
                        f.write_char('\\')?;
                    }
                    f.write_char(c)?;
                }
                f.write_str("\"\n")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by `ceph-authtool -C FILE --gen-key -n NAME --cap …` of Ceph 16.2.15.
    const REAL: &str = concat!(
        "[osd.3]\n",
        "\tkey = AQDkWgRrPsAWCRAAqYU0DPMriXiMsMDfYQ58Qw==\n",
        "\tcaps mon = \"allow profile osd\"\n",
        "[client.admin]\n",
        "\tkey = AQDkWgRrMk11BxAA2r5g3vuuCaDogPLrzPuc/g==\n",
        "\tcaps mon = \"allow *\"\n",
        "\tcaps osd = \"allow rwx pool=rbd, allow r\"\n",
    );

    #[test]
    fn a_real_keyring_is_read_and_written_back() {
        let keyring = Keyring::parse(REAL).unwrap();
        assert_eq!(keyring.entries.len(), 2);
        let admin = &keyring.entries[&Entity::client("admin")];
        assert_eq!(admin.caps["osd"], "allow rwx pool=rbd, allow r");
        assert_eq!(keyring.to_string(), REAL);
    }

    #[test]
    fn people_write_them_in_many_ways() {
        let key = Keyring::parse(REAL).unwrap().entries[&Entity::client("admin")].key.to_base64();
        let text = format!(
            "# a comment\n\n[ client.a ]\r\nkey={key}\r\n  caps_osd = allow \"x\"\n auid = 18446744073709551615\n\
             [client.b]\n\tcaps mon = \"allow command \\\"osd dump\\\"\"\n\tkey = \"{key}\"\n; done"
        );
        let keyring = Keyring::parse(&text).unwrap();
        assert_eq!(keyring.entries[&Entity::client("a")].caps["osd"], "allow \"x\"");
        assert_eq!(keyring.entries[&Entity::client("b")].caps["mon"], "allow command \"osd dump\"");
        assert_eq!(Keyring::parse(&keyring.to_string()), Ok(keyring));
    }

    #[test]
    fn errors_say_where() {
        let error = |text: &str| Keyring::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("[client.a]\nkey = AQ==\n"),
            "line 2: the key is damaged: key: 2 bytes needed, 1 left"
        );
        assert_eq!(error("[client.a]\nkey = secret!\n"), "line 2: the key is not valid base64");
        assert_eq!(error("[client.a]\n"), "client.a has no key");
        assert!(error("[admin]\n").starts_with("line 1: \"admin\" is not a Ceph entity"));
        assert!(error("key = x\n").starts_with("line 1: expected [ENTITY]"));
        assert!(error("\u{1}binary").starts_with("line 1: expected"));
    }
}

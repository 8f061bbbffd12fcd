//! Cinder's calls: volumes, snapshots, and who has a volume attached.
//!
//! Cinder takes most requests at once and carries them out later; [`Cinder::until`] waits for the outcome, and finds
//! out why it was none. A create whose answer was lost is found again by its tag ([`Cinder::find_tagged`]).

mod attach;
mod model;
mod version;
mod wait;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use reqwest::Method;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use self::attach::{Api, Connector};
pub use self::model::{AttachedTo, Attachment, Connection, Limits, Snapshot, Volume};
pub use self::version::{OLDEST, Version};
use super::answer::Answer;
use super::session::Session;
use crate::error::{Error, Kind, Result};

/// How many pages a list may have: with 1,000 entries each, more than a project ever has.
const MAX_PAGES: usize = 1000;

/// Block storage, as a project sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cinder {
    session: Session,
    version: Arc<OnceLock<Version>>,
    newest: Version,
}

/// What a volume is to be.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// What people read about it.
    pub description: String,
    /// Its size in GiB.
    pub size: u64,
    /// Its type; Cinder's default one if not given.
    pub volume_type: Option<String>,
    /// Where it is to be.
    pub availability_zone: Option<String>,
    /// What is written down about it.
    pub metadata: BTreeMap<String, String>,
    /// The snapshot it is made from.
    pub snapshot: Option<String>,
    /// The volume it is a copy of.
    pub source: Option<String>,
}

impl Cinder {
    /// Calls in a session. Nothing is asked yet.
    pub fn new(session: Session) -> Self {
        Self { session, version: Arc::default(), newest: version::NEWEST }
    }

    /// The same, as a client that knows nothing newer than this.
    #[must_use]
    pub fn up_to(mut self, newest: Version) -> Self {
        self.newest = newest;
        self.version = Arc::default();
        self
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The version that is spoken.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] if there is none in common; whatever keeps Cinder from being asked.
    pub async fn version(&self) -> Result<Version> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let mut answer = self.session.versions().await?;
        if answer.status == 300 {
            // How it answers without a version in the address.
            answer.status = 200;
        }
        let version = version::negotiate(&answer.read()?)?.min(self.newest);
        Ok(*self.version.get_or_init(|| version))
    }

    /// Begins to make a volume.
    ///
    /// # Errors
    /// [`Kind::Full`] with the numbers if a quota is used up; a type or zone that is not there; what is not allowed.
    pub async fn create(&self, new: &NewVolume) -> Result<Volume> {
        let mut volume = Map::from_iter([
            ("name".to_owned(), new.name.as_str().into()),
            ("description".to_owned(), new.description.as_str().into()),
            ("size".to_owned(), new.size.into()),
            ("metadata".to_owned(), json!(new.metadata)),
        ]);
        for (word, value) in [
            ("volume_type", &new.volume_type),
            ("availability_zone", &new.availability_zone),
            ("snapshot_id", &new.snapshot),
            ("source_volid", &new.source),
        ] {
            if let Some(value) = value {
                volume.insert(word.to_owned(), value.as_str().into());
            }
        }
        let answer = self.ask(Method::POST, "volumes", Some(json!({ "volume": volume }))).await?;
        self.within_quota(&answer).await?;
        Ok(answer.read::<model::OneVolume>()?.volume)
    }

    /// A volume.
    ///
    /// # Errors
    /// [`Kind::NotFound`], also for one of another project.
    pub async fn volume(&self, id: &str) -> Result<Volume> {
        Ok(self.get::<model::OneVolume>(&format!("volumes/{id}")).await?.volume)
    }

    /// All volumes that have this name. Nothing keeps that from being several.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn find(&self, name: &str) -> Result<Vec<Volume>> {
        let mut found = self.volumes(&[("name", name)]).await?;
        found.retain(|volume| volume.name.as_deref() == Some(name));
        Ok(found)
    }

    /// All volumes whose metadata have this, the oldest first.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn find_tagged(&self, key: &str, value: &str) -> Result<Vec<Volume>> {
        // Cinder reads this as Python does.
        let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
        let filter = format!("{{{}: {}}}", quoted(key), quoted(value));
        let mut found = self.volumes(&[("metadata", &filter)]).await?;
        found.retain(|volume| volume.metadata.get(key).is_some_and(|has| has == value));
        found.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(found)
    }

    /// All volumes that are so.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn volumes(&self, filter: &[(&str, &str)]) -> Result<Vec<Volume>> {
        let path = format!("volumes/detail{}", query(filter));
        self.pages(&path, |page: model::Volumes| (page.volumes, page.volumes_links)).await
    }

    /// Makes a volume larger, also one in use where Cinder can.
    ///
    /// # Errors
    /// [`Kind::Full`] with the numbers if a quota is used up; [`Kind::Invalid`] if it would not grow, or not now.
    pub async fn extend(&self, id: &str, size: u64) -> Result<()> {
        let answer = self.act(id, json!({ "os-extend": { "new_size": size } })).await?;
        self.within_quota(&answer).await?;
        match answer.fine() {
            Err(error)
                if error.kind() == Kind::Invalid
                    && self.version().await? < version::EXTEND_IN_USE =>
            {
                Err(error.with_hint("this Cinder cannot extend a volume that is in use"))
            }
            done => done,
        }
    }

    /// Begins to delete a volume. One that is not there is success.
    ///
    /// # Errors
    /// [`Kind::Invalid`] while it is attached, has snapshots, or is being worked on.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let answer = self.ask(Method::DELETE, &format!("volumes/{id}"), None).await?;
        if answer.status == 404 { Ok(()) } else { answer.fine() }
    }

    /// Writes something down about a volume, beside what else there is.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; what is not allowed.
    pub async fn note(&self, id: &str, notes: &[(&str, &str)]) -> Result<()> {
        let notes: BTreeMap<_, _> = notes.iter().copied().collect();
        let body = json!({ "metadata": notes });
        self.ask(Method::POST, &format!("volumes/{id}/metadata"), Some(body)).await?.fine()
    }

    /// Takes a snapshot, also of a volume in use.
    ///
    /// # Errors
    /// [`Kind::Full`] with the numbers if a quota is used up; whatever keeps it from being taken.
    pub async fn create_snapshot(&self, volume: &str, name: &str) -> Result<Snapshot> {
        let snapshot = json!({ "volume_id": volume, "name": name, "force": true });
        let body = json!({ "snapshot": snapshot });
        let answer = self.ask(Method::POST, "snapshots", Some(body)).await?;
        self.within_quota(&answer).await?;
        Ok(answer.read::<model::OneSnapshot>()?.snapshot)
    }

    /// A snapshot.
    ///
    /// # Errors
    /// [`Kind::NotFound`].
    pub async fn snapshot(&self, id: &str) -> Result<Snapshot> {
        Ok(self.get::<model::OneSnapshot>(&format!("snapshots/{id}")).await?.snapshot)
    }

    /// A volume's snapshots.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn snapshots(&self, volume: &str) -> Result<Vec<Snapshot>> {
        let path = format!("snapshots/detail{}", query(&[("volume_id", volume)]));
        self.pages(&path, |page: model::Snapshots| (page.snapshots, page.snapshots_links)).await
    }

    /// Begins to delete a snapshot. One that is not there is success.
    ///
    /// # Errors
    /// [`Kind::Invalid`] while it is being worked on.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let answer = self.ask(Method::DELETE, &format!("snapshots/{id}"), None).await?;
        if answer.status == 404 { Ok(()) } else { answer.fine() }
    }

    /// Begins to bring a volume back to a snapshot, which must be its newest.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] by a Cinder that is too old; [`Kind::Invalid`] if it is not the newest, or the volume has
    /// grown since; [`Kind::Busy`] while either is being worked on.
    pub async fn revert(&self, id: &str, snapshot: &str) -> Result<()> {
        if self.version().await? < version::REVERT {
            let what = format!("this Cinder cannot go back to snapshots: {} can", version::REVERT);
            return Err(Error::new(Kind::Unsupported, what));
        }
        let answer = self.act(id, json!({ "revert": { "snapshot_id": snapshot } })).await?;
        answer.fine().map_err(|error| match error.kind() {
            Kind::Exists => Error::new(Kind::Busy, error.to_string()),
            _ => error,
        })
    }

    /// What the project may have and has.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn limits(&self) -> Result<Limits> {
        Ok(self.get::<model::Absolute>("limits").await?.limits.absolute)
    }

    /// A refusal for a quota, with how much there is and how much is used.
    async fn within_quota(&self, answer: &Answer) -> Result<()> {
        if !answer.is_quota() {
            return Ok(());
        }
        let refusal = answer.refusal();
        Err(match self.limits().await {
            Ok(limits) => refusal.with_hint(limits.to_string()),
            Err(_) => refusal,
        })
    }

    /// Lists page by page.
    async fn pages<P: DeserializeOwned, T>(
        &self,
        first: &str,
        read: impl Fn(P) -> (Vec<T>, Vec<model::Link>),
    ) -> Result<Vec<T>> {
        let version = self.version().await?.to_string();
        let mut answer = self.session.cinder(Method::GET, first, Some(&version), None).await?;
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let (page, links) = read(answer.read()?);
            let empty = page.is_empty();
            found.extend(page);
            let next = links.into_iter().find(|link| link.rel == "next");
            let Some(next) = next.filter(|_| !empty) else { return Ok(found) };
            answer = self.session.follow(&next.href, Some(&version)).await?;
        }
        let what = format!("{first}: a list without end: {MAX_PAGES} pages and more");
        Err(Error::new(Kind::Corrupt, what))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, None).await?.read()
    }

    async fn act(&self, volume: &str, action: Value) -> Result<Answer> {
        self.ask(Method::POST, &format!("volumes/{volume}/action"), Some(action)).await
    }

    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer> {
        let version = self.version().await?.to_string();
        self.session.cinder(method, path, Some(&version), body.as_ref()).await
    }
}

/// Words of a query, escaped.
fn query(words: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in words {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(name);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'_' | b'.' | b'~' => {
                    text.push(byte.into());
                }
                _ => text.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    text
}

/// Whether the body of an answer is read, or its status only. For replaying.
#[cfg(test)]
pub(super) fn reads(method: &str, url: &str) -> bool {
    let path = url.split('?').next().unwrap_or_default();
    let known = ["volumes", "attachments", "snapshots", "messages", "limits", "tokens"];
    !(path.ends_with("/action") || path.contains("/metadata") || method == "DELETE")
        && known.iter().any(|known| path.contains(&format!("/{known}")))
}

/// Reads an answer to a request as the calls here do.
#[cfg(test)]
pub(super) fn replay(method: &str, path: &str, answer: &Answer) -> Result<()> {
    let parts: Vec<_> = path.split('/').collect();
    match (method, parts.as_slice()) {
        ("GET", ["volumes"] | ["volumes", "detail"]) => answer.read::<model::Volumes>().map(drop),
        ("GET" | "PUT", ["volumes", _]) | ("POST", ["volumes"]) => {
            answer.read::<model::OneVolume>().map(drop)
        }
        ("GET", ["attachments"] | ["attachments", "detail"]) => {
            answer.read::<model::Attachments>().map(drop)
        }
        ("GET" | "PUT", ["attachments", _]) | ("POST", ["attachments"]) => {
            let info = answer.read::<model::OneAttachment>()?.attachment.connection_info;
            // One that is only reserved has none.
            match info.as_object().is_some_and(Map::is_empty) {
                true => Ok(()),
                false => attach::connection(&info).map(drop),
            }
        }
        ("GET", ["snapshots", "detail"]) => answer.read::<model::Snapshots>().map(drop),
        ("GET" | "PUT", ["snapshots", _]) | ("POST", ["snapshots"]) => {
            answer.read::<model::OneSnapshot>().map(drop)
        }
        ("GET", ["messages"]) => answer.read::<model::Messages>().map(drop),
        ("GET", ["limits"]) => answer.read::<model::Absolute>().map(drop),
        ("POST", ["volumes", _, "action"]) if answer.status == 200 => {
            let info = answer.read::<model::Initialized>()?.connection_info;
            attach::connection(&info).map(drop)
        }
        _ => answer.fine(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query(&[]), "");
        let escaped = query(&[("metadata", "{'a': 'ö&'}"), ("limit", "2")]);
        assert_eq!(escaped, "?metadata=%7B%27a%27%3A%20%27%C3%B6%26%27%7D&limit=2");
    }
}

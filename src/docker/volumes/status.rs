//! What is told about volumes: by the cluster if it answers in time, by the journal otherwise.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::Volumes;
use crate::docker::filesystem as fs;
use crate::docker::journal::Attached;
use crate::docker::store::{Flattening, Found, State};
use crate::error::{Error, Kind, Result};
use crate::image::admin::{Details, address_text};
use crate::image::header::Header;

/// What is told about a volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where it is mounted on this host.
    pub mountpoint: Option<PathBuf>,
    /// When it was made.
    pub created: String,
    /// Everything else.
    pub status: Map<String, Value>,
}

/// How a volume that is mounted on this host is used.
#[derive(Clone, Debug)]
pub struct Usage {
    /// The volume.
    pub volume: String,
    /// For how many it is mounted.
    pub users: u64,
    /// The size of its file system in bytes.
    pub size: u64,
    /// What of it is used.
    pub used: u64,
}

impl Volumes {
    /// All volumes, with where they are mounted here; whether the cluster said so, or the journal.
    pub async fn list(self: &Arc<Self>) -> (Vec<Volume>, bool) {
        let this = Arc::clone(self);
        let asked = self.ask("", async move {
            let found = this.store.list().await?;
            this.journal.learn_all(&found)?;
            Ok(found)
        });
        let fresh = match asked.await {
            Some(Ok(found)) => Some(found),
            Some(Err(error)) => {
                tracing::warn!(%error, "volumes cannot be listed: answered from the journal");
                None
            }
            None => None,
        };
        let stale = fresh.is_none();
        let found = fresh.unwrap_or_else(|| self.journal.all_known());
        (found.iter().map(|found| self.brief(found, stale)).collect(), stale)
    }

    /// Where a volume is mounted on this host.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let attached = self.journal.attached(name).filter(|attached| self.is_live(attached));
        attached.map(|attached| attached.mountpoint)
    }

    /// Everything about a volume.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::TimedOut`] if neither the cluster nor the journal knows.
    pub async fn get(self: &Arc<Self>, name: &str) -> Result<Volume> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        let asked = self.ask(name, async move {
            match this.find(&owned).await? {
                Some(found) => this.describe(&found).await.map(Some),
                None => Ok(None),
            }
        });
        match asked.await {
            Some(Ok(Some(volume))) => return Ok(volume),
            Some(Ok(None)) => {
                return Err(Error::new(Kind::NotFound, format!("there is no volume {name}")));
            }
            Some(Err(error)) => tracing::warn!(volume = name, %error, "the cluster says little"),
            None => {}
        }
        match self.journal.known(name) {
            Some(found) => Ok(self.brief(&found, true)),
            None => {
                let what = format!("whether there is a volume {name} cannot be told now");
                Err(Error::new(Kind::TimedOut, what).with_hint(self.state_of_cluster()))
            }
        }
    }

    /// Asks the cluster for as long as an answer may take. The question goes on then, so that the journal knows next
    /// time, and nobody asks the same meanwhile: however often Docker does, a cluster that is away has one to answer.
    async fn ask<T: Send + 'static>(
        &self,
        about: &str,
        question: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Option<Result<T>> {
        let asked = async {
            let alone = self.asking.of(about).lock_owned().await;
            let asked = tokio::spawn(async move {
                let _alone = alone;
                question.await
            });
            asked.await.ok()
        };
        timeout(self.settings.answer, asked).await.ok().flatten()
    }

    /// What is mounted here.
    pub fn usage(&self) -> Vec<Usage> {
        let live = |attached: &Attached| self.is_live(attached);
        let attached = self.journal.all_attached().into_iter().filter(live);
        attached
            .map(|attached| {
                let (size, used) = fs::usage(&attached.mountpoint).unwrap_or_default();
                Usage { volume: attached.name, users: attached.users.len() as u64, size, used }
            })
            .collect()
    }

    /// What this host knows about a volume by itself.
    fn brief(&self, found: &Found, stale: bool) -> Volume {
        let description = &found.description;
        let mut status = Map::new();
        let mut say = |name: &str, value: Value| status.insert(name.to_owned(), value);
        say("image", found.place.spec().into());
        if let Some(cinder) = &description.cinder {
            say("project", cinder.project.clone().into());
            say("cinder-volume", cinder.volume.clone().into());
            if let Some(cloud) = &cinder.cloud {
                say("cloud", cloud.clone().into());
            }
            let held = self.journal.attached(&found.name).and_then(|attached| attached.cinder);
            if let Some(attachment) = held.and_then(|held| held.attachment) {
                say("cinder-attachment", attachment.into());
            }
        }
        say("fstype", description.fstype.name().into());
        if description.size > 0 {
            say("size", description.size.into());
        }
        if let Some(flattening) = &found.flattening {
            let Flattening { host, percent, .. } = flattening;
            say("flattening", format!("{percent} %, by host {host}").into());
        }
        if stale {
            say("stale", true.into());
            say("cluster", self.state_of_cluster().into());
        }
        let attached = self.journal.attached(&found.name).filter(|attached| self.is_live(attached));
        if let Some(Attached { device, mountpoint, users, .. }) = &attached {
            say("device", device.clone().into());
            say("users", users.len().into());
            if !stale && let Some((_, used)) = fs::usage(mountpoint) {
                say("used", used.into());
            }
        }
        Volume {
            name: found.name.clone(),
            mountpoint: attached.map(|attached| attached.mountpoint),
            created: description.created.clone(),
            status,
        }
    }

    /// The same, and what the cluster knows.
    async fn describe(&self, found: &Found) -> Result<Volume> {
        let pool = self.store.pool(&found.place).await?;
        let header = Header::read(&pool, &found.id).await?;
        let watchers = self.store.watchers(found).await?;
        let holder = self.store.holder(found).await?;
        let snapshots = Details::read(&pool, &found.id).await?.snapshots(&pool).await?;
        let mut volume = self.brief(found, false);
        let mut say = |name: &str, value: Value| volume.status.insert(name.to_owned(), value);
        say("size", header.size.into());
        say("features", header.features.to_string().into());
        let watchers: Vec<_> = watchers.iter().map(|watcher| address_text(&watcher.addr)).collect();
        say("watchers", watchers.into());
        let snapshots: Vec<_> = snapshots.into_iter().map(|snapshot| snapshot.info.name).collect();
        say("snapshots", snapshots.into());
        if let (Some(from), Some(_)) = (&found.description.options.from, &header.parent) {
            say("clone-of", from.clone().into());
        }
        if let Some(holder) = &holder {
            let owner = json!({ "host": holder.host, "addresses": holder.addresses });
            say("mounted-by", owner);
        }
        let health = match (found.description.state, self.journal.attached(&found.name)) {
            (State::Formatting, _) => "its file system is not made yet",
            (State::Restoring | State::RestoringNew, _) => "not fully brought back to a snapshot",
            (_, Some(attached)) if !attached.users.is_empty() && !self.is_live(&attached) => {
                "in use, but not mounted any more"
            }
            _ => "ok",
        };
        say("health", health.into());
        if let Some(cinder) = &found.description.cinder {
            self.say_of_cinder(cinder, &mut volume.status).await;
        }
        Ok(volume)
    }
}

//! Making clones independent of their parents (`-o flatten`), which takes as long as they are large: so nobody waits
//! for it, and it goes on after a restart.
//!
//! One plugin does it, whoever has a lock that ends by itself ([`Store::lease_flattening`]). It makes room at once for
//! whoever takes the volume's own lock: an image that is mounted is made independent by who has it open, on request.
//!
//! [`Store::lease_flattening`]: crate::docker::store::Store::lease_flattening

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::Volumes;
use crate::docker::store::{Flattening, Found, State};
use crate::error::{Error, Kind, Result};
use crate::image::{Image, Maintenance};

/// How often is looked whether somebody else wants the volume: whoever mounts it waits for three seconds.
const LOOK: Duration = Duration::from_millis(500);

/// How often is written down how far it is.
const NOTE: Duration = Duration::from_secs(5);

/// How many are made independent at a time: each is many requests at a time already.
const AT_ONCE: usize = 2;

/// What is being made independent here.
#[derive(Debug)]
pub(super) struct Flatteners {
    volumes: Mutex<BTreeSet<String>>,
    turns: Semaphore,
    stopping: watch::Sender<bool>,
}

impl Default for Flatteners {
    fn default() -> Self {
        let (volumes, stopping) = (Mutex::default(), watch::Sender::default());
        Self { volumes, turns: Semaphore::new(AT_ONCE), stopping }
    }
}

/// That a volume is being made independent, until this is dropped.
struct Begun<'a>(&'a Flatteners, &'a str);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.volumes().remove(self.1);
    }
}

impl Flatteners {
    fn volumes(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all of them end, and close their images: a watch that stayed would seem to be a user.
    pub(super) async fn stop(&self) {
        self.stopping.send_replace(true);
        while !self.volumes().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What came of an attempt.
enum Outcome {
    Done,
    /// The volume is somebody else's now, or about to be.
    Interrupted,
    /// Another plugin is at it.
    Elsewhere,
}

impl Volumes {
    /// Begins to make independent what is to be, and goes on with what an earlier life of this plugin, or of another
    /// host's, has begun.
    pub(super) fn flatten_unasked(self: &Arc<Self>) {
        for found in self.journal.all_known() {
            let wanted = found.flattening.is_some() && !*self.flatteners.stopping.borrow();
            if !wanted || !self.flatteners.volumes().insert(found.name.clone()) {
                continue;
            }
            let this = Arc::clone(self);
            tokio::spawn(async move {
                let _begun = Begun(&this.flatteners, &found.name);
                let mut stopping = this.flatteners.stopping.subscribe();
                let flattened = this.flatten(&found.name, &mut stopping).await;
                if let Err(error) = flattened {
                    tracing::warn!(volume = found.name, %error, "making it independent: tried again");
                }
            });
        }
    }

    /// Returns when it is done, when another plugin does it, when this one is to stop, and when it fails. What is not
    /// done is taken up again.
    async fn flatten(&self, name: &str, stopping: &mut watch::Receiver<bool>) -> Result<()> {
        loop {
            let Ok(turn) = self.flatteners.turns.acquire().await else { return Ok(()) };
            if *stopping.borrow_and_update() {
                return Ok(());
            }
            // A volume that is gone is none any more; one that is only half made is its maker's.
            let Some(found) = self.find(name).await? else { return Ok(()) };
            if found.flattening.is_none() || found.description.state == State::Formatting {
                return Ok(());
            }
            match self.flatten_for_a_while(&found, stopping).await? {
                Outcome::Done => tracing::info!(volume = name, "independent of its origin now"),
                Outcome::Interrupted => {
                    drop(turn);
                    tokio::time::sleep(LOOK).await;
                }
                Outcome::Elsewhere => return Ok(()),
            }
        }
    }

    async fn flatten_for_a_while(
        &self,
        found: &Found,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<Outcome> {
        let before = self.user_of(found).await?;
        // Who has only just taken the lock mounts, removes or restores it.
        if before.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Outcome::Interrupted);
        }
        self.store.end_earlier_flattening(found, &self.host_id).await?;
        if !self.store.lease_flattening(found, &self.host_id, &self.settings.host).await? {
            return Ok(Outcome::Elsewhere);
        }
        let image = self.open_image(found).await?;
        let flattened = tokio::select! {
            biased;
            _ = stopping.changed() => Ok(Outcome::Interrupted),
            interrupted = self.wanted_by_others(found, before) => interrupted,
            flattened = self.flatten_image(found, &image) => flattened.map(|()| Outcome::Done),
        };
        image.close().await;
        // Nobody else has it meanwhile; and what is left of it ends by itself.
        if let Err(error) = self.store.end_flattening(found, &self.host_id).await {
            tracing::debug!(volume = found.name, %error, "the lock for making it independent");
        }
        flattened
    }

    /// Who has the volume's lock: the addresses of the clients that carry its data, once there are any.
    async fn user_of(&self, found: &Found) -> Result<Option<Vec<String>>> {
        Ok(self.store.holder(found).await?.map(|holder| holder.addresses))
    }

    /// Returns when somebody takes the volume's lock or gives it back.
    async fn wanted_by_others(
        &self,
        found: &Found,
        before: Option<Vec<String>>,
    ) -> Result<Outcome> {
        loop {
            // At once: somebody may have looked, and seen nobody, before the image was open.
            if self.user_of(found).await? != before {
                return Ok(Outcome::Interrupted);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn flatten_image(&self, found: &Found, image: &Image) -> Result<()> {
        let percent = AtomicU64::new(0);
        let link = image.header().parent.clone();
        if link.is_some() {
            let mut progress = |done: u64, total: u64| {
                percent.store((done * 100).checked_div(total).unwrap_or(0), Ordering::Relaxed);
            };
            let flattened = tokio::select! {
                biased;
                flattened = image.maintain(&Maintenance::Flatten, &mut progress) => flattened,
                failed = self.keep_noting(found, &percent) => failed,
            };
            if let Err(error) = flattened {
                image.refresh().await?;
                // Whoever was asked before may have done it.
                if image.header().parent.is_some() {
                    return Err(error);
                }
            }
        }
        if let Some(link) = &link {
            self.forget_parent(found, link).await?;
        }
        let host = self.settings.host.clone();
        let done = Flattening { wanted: false, host, percent: 100 };
        self.store.note_flattening(found, &done).await?;
        self.journal.learn(&Found { flattening: None, ..found.clone() })
    }

    /// Writes down how far it is, and keeps the lock for it, until that fails.
    async fn keep_noting(&self, found: &Found, percent: &AtomicU64) -> Result<()> {
        loop {
            let begun = Instant::now();
            let host = self.settings.host.clone();
            let percent = percent.load(Ordering::Relaxed);
            let flattening = Flattening { wanted: true, host, percent };
            self.store.note_flattening(found, &flattening).await?;
            tokio::time::sleep_until(begun + NOTE).await;
            if !self.store.lease_flattening(found, &self.host_id, &self.settings.host).await? {
                return Err(Error::new(Kind::Busy, "another host is at it"));
            }
        }
    }
}

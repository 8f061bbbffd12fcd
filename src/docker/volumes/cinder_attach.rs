//! Cinder's record of who has a volume, for what is mounted here: made, kept true, and taken away.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::Volumes;
use super::attach::TIDY;
use crate::docker::cinder::{Held, InCinder, is_ours};
use crate::docker::filesystem as fs;
use crate::docker::journal::Attached;
use crate::docker::steps;
use crate::error::{Context as _, Error, Kind, Result};
use crate::openstack::Cinder;
use crate::openstack::cinder::{Api, AttachedTo, Connection};

impl Volumes {
    /// Has Cinder note that this host is about to have a volume that is to be mounted, whose lock it has.
    pub(super) async fn attach_for_mount(
        &self,
        of: &InCinder,
        user: &str,
        entry: &mut Attached,
    ) -> Result<Connection> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        // Of a mount that is no more.
        self.let_go(entry).await?;
        let root = entry.mountpoint.display().to_string();
        let held = Held::new(of.clone(), &self.settings.host, &root, user, entry.read_only);
        entry.cinder = Some(held.clone());
        self.journal.attach(entry)?;
        steps::done("mount: noted");
        // Whoever died with it had the lock, which is ours now.
        if !entry.read_only {
            clear(&cinder, &held, "").await?;
        }
        let connection = self.attach(&cinder, held, entry).await?;
        steps::done("mount: attached");
        Ok(connection)
    }

    pub(super) async fn attach(
        &self,
        cinder: &Cinder,
        held: Held,
        entry: &mut Attached,
    ) -> Result<Connection> {
        let by = held.connector();
        let (attachment, connection) = cinder
            .attach(held.of.api, &held.of.volume, &by)
            .await
            .context(format!("attaching volume {} in Cinder", held.of.volume))?;
        entry.cinder = Some(Held { attachment, ..held });
        self.journal.attach(entry)?;
        Ok(connection)
    }

    /// Has Cinder show the volume as in use. An attachment that somebody took away is made once more.
    ///
    /// # Errors
    /// [`Kind::Busy`] if the volume was given to another since; whatever keeps Cinder from being asked.
    pub(super) async fn complete(&self, entry: &mut Attached) -> Result<()> {
        let Some(mut held) = entry.cinder.clone().filter(|held| !held.complete) else {
            return Ok(());
        };
        let cinder = self.clouds.cinder(held.of.cloud.as_deref(), Some(&held.of.project))?;
        let (api, volume, by) = (held.of.api, held.of.volume.clone(), held.connector());
        let completed = match (api, held.attachment.as_deref()) {
            (Api::Attachments, None) => None,
            (_, attachment) => match cinder.complete(api, &volume, attachment, &by).await {
                Ok(id) => Some(id),
                Err(error) if error.kind() == Kind::NotFound => None,
                Err(error) => return Err(error),
            },
        };
        let id = match completed {
            Some(id) => id,
            None => {
                held.attachment = None;
                entry.cinder = Some(held.clone());
                self.journal.attach(entry)?;
                // What is left of an attempt at this, and nothing of another's.
                clear(&cinder, &held, &held.host).await?;
                self.attach(&cinder, held.clone(), entry).await?;
                held = entry.cinder.clone().unwrap_or(held);
                cinder.complete(api, &volume, held.attachment.as_deref(), &by).await?
            }
        };
        entry.cinder = Some(Held { attachment: Some(id), complete: true, ..held });
        self.journal.attach(entry)?;
        self.settled().insert(entry.name.clone());
        steps::done("mount: completed");
        Ok(())
    }

    /// Brings Cinder's record of what is mounted together with that, once in this process' life: what an earlier one
    /// did not come to, and what somebody took away meanwhile.
    ///
    /// # Errors
    /// As [`Volumes::complete`].
    pub(super) async fn settle(&self, entry: &mut Attached) -> Result<()> {
        if !self.is_unsettled(entry) {
            return Ok(());
        }
        if let Some(held) = entry.cinder.clone().filter(|held| held.complete) {
            let cinder = self.clouds.cinder(held.of.cloud.as_deref(), Some(&held.of.project))?;
            let shown = cinder.volume(&held.of.volume).await?.attachments;
            let own = |one: &AttachedTo| Some(&one.attachment_id) == held.attachment.as_ref();
            if shown.iter().any(own) {
                self.settled().insert(entry.name.clone());
                return Ok(());
            }
            tracing::warn!(
                volume = entry.name,
                "Cinder does not show it as attached here any more"
            );
            entry.cinder = Some(Held { complete: false, ..held });
            self.journal.attach(entry)?;
        }
        // Of a host that was fenced the mount is there still, and Cinder's record is rightly another's.
        if !entry.read_only {
            self.must_be_held(&entry.name).await?;
        }
        self.complete(entry).await
    }

    fn is_unsettled(&self, entry: &Attached) -> bool {
        let held = entry.cinder.as_ref();
        held.is_some_and(|held| !held.complete || !self.settled().contains(&entry.name))
    }

    fn settled(&self) -> MutexGuard<'_, HashSet<String>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unmounts and unmaps what Cinder has given to another, unless a container has it: nothing that is being written
    /// is taken away. Somebody did that to Cinder's record by hand, and is told.
    pub(super) async fn give_up(&self, entry: &Attached, why: &Error) -> Result<()> {
        let (volume, points) = (&entry.name, vec![entry.mountpoint.clone()]);
        let seen = tokio::task::spawn_blocking(move || fs::seen_elsewhere(&points)).await;
        match seen.as_deref() {
            Ok([false]) => {
                tracing::warn!(volume, %why, "it is another's now: unmounting");
                self.tear_down(entry).await
            }
            _ => {
                if self.lost().insert(volume.clone()) {
                    tracing::error!(volume, %why, "it is another's now, and a container here has it");
                }
                Ok(())
            }
        }
    }

    fn lost(&self) -> MutexGuard<'_, HashSet<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles what is mounted with Cinder; what is another's already, only where it is the turn of those.
    pub(super) async fn settle_all(self: &Arc<Self>, lost_too: bool) {
        let mut entries = self.journal.all_attached();
        entries.retain(|entry| self.is_live(entry) && self.is_unsettled(entry));
        self.lost().retain(|name| entries.iter().any(|entry| entry.name == *name));
        let mut silent = HashSet::new();
        for entry in entries {
            let Some(InCinder { cloud, project, volume, .. }) =
                entry.cinder.as_ref().map(|held| held.of.clone())
            else {
                continue;
            };
            if silent.contains(&cloud) || !lost_too && self.lost().contains(&entry.name) {
                continue;
            }
            // Before anything is locked: whoever wants the volume need not wait for a Cinder that does not answer.
            let asked = async {
                let cinder = self.clouds.cinder(cloud.as_deref(), Some(&project))?;
                cinder.volume(&volume).await.map(drop)
            };
            let answered = match tokio::time::timeout(TIDY, asked).await {
                Ok(answered) => answered,
                Err(_) => Err(Error::new(Kind::TimedOut, "Cinder does not answer")),
            };
            if let Err(error) = answered
                && is_silence(&error)
            {
                tracing::warn!(volume = entry.name, %error, "not settled with Cinder yet");
                silent.insert(cloud);
                continue;
            }
            let (this, name) = (Arc::clone(self), entry.name.clone());
            let settled = async move {
                match this.journal.attached(&name) {
                    Some(mut entry) if this.is_live(&entry) => {
                        match this.settle(&mut entry).await {
                            Err(error) if error.kind() == Kind::Busy => {
                                this.give_up(&entry, &error).await
                            }
                            done => done,
                        }
                    }
                    _ => Ok(()),
                }
            };
            let settled = self.work(&entry.name, "settling with Cinder", settled).await;
            if settled.is_err_and(|error| is_silence(&error)) {
                silent.insert(cloud);
            }
        }
    }

    /// Takes this host's attachment away, if there is one.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being told: then the journal has it still.
    pub(super) async fn let_go(&self, entry: &mut Attached) -> Result<()> {
        let Some(held) = entry.cinder.clone() else { return Ok(()) };
        let cinder = self.clouds.cinder(held.of.cloud.as_deref(), Some(&held.of.project))?;
        let gone = match &held.attachment {
            Some(attachment) => {
                let by = held.connector();
                cinder.detach(held.of.api, &held.of.volume, Some(attachment), &by).await
            }
            // What became of the request is not known.
            None => clear(&cinder, &held, &held.host).await,
        };
        gone.context(format!("detaching volume {} in Cinder", held.of.volume))?;
        entry.cinder = None;
        self.journal.attach(entry)
    }
}

/// Whether there is no use in asking the next thing.
fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), Kind::TimedOut | Kind::Unreachable)
}

/// Takes attachments away that no living plugin has: those of plugins, whose device names this host (or any, if none is
/// given), and those that have come to nothing yet.
pub(super) async fn clear(cinder: &Cinder, held: &Held, host: &str) -> Result<()> {
    let id = &held.of.volume;
    let volume = match cinder.volume(id).await {
        Ok(volume) => volume,
        Err(error) if error.kind() == Kind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if volume.status == "available" {
        return Ok(());
    }
    let ours = |device: Option<&str>| {
        is_ours(device)
            && (host.is_empty() || device.is_some_and(|one| one.starts_with(&format!("{host}:"))))
    };
    let by = held.connector();
    match held.of.api {
        Api::Attachments => {
            for one in cinder.attachments(id).await? {
                let shown = volume.attachments.iter().find(|shown| shown.attachment_id == one.id);
                let gone = match shown {
                    Some(shown) => ours(shown.device.as_deref()),
                    None => one.status != "attached",
                };
                if one.instance.is_none() && gone {
                    tracing::warn!(
                        volume = id,
                        attachment = one.id,
                        "an attachment is left: it goes"
                    );
                    cinder.detach(Api::Attachments, id, Some(&one.id), &by).await?;
                }
            }
            Ok(())
        }
        Api::Actions => {
            let mine = volume.attachments.iter().find(|one| ours(one.device.as_deref()));
            if mine.is_some() || volume.attachments.is_empty() {
                let attachment = mine.map(|one| one.attachment_id.as_str());
                return cinder.detach(Api::Actions, id, attachment, &by).await;
            }
            Ok(())
        }
    }
}

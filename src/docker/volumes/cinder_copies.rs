//! Snapshots and copies of volumes that Cinder keeps: Cinder makes them all, so that it knows of them. What was written
//! on this host is on its way before they are taken.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use super::Volumes;
use super::cinder::GIB;
use super::copies::{RESTORE, must_be_whole};
use crate::docker::cinder::InCinder;
use crate::docker::filesystem as fs;
use crate::docker::options::{Backend, VolumeOptions};
use crate::docker::store::Found;
use crate::error::{Context as _, Error, Kind, Result};
use crate::openstack::Cinder;
use crate::openstack::cinder::Snapshot;

/// What a new volume in Cinder is made of.
#[derive(Debug)]
pub(super) struct Origin {
    /// How it was named.
    from: String,
    /// The volume.
    volume: String,
    /// The snapshot of it, if one was named.
    snapshot: Option<String>,
    /// Its size in GiB.
    gib: u64,
    /// The size of the file system in it, in bytes; 0 if that is not known.
    pub(super) content: u64,
    /// Where the volume is mounted on this host.
    mountpoint: Option<PathBuf>,
}

impl Origin {
    /// The ids of snapshot and volume, as Cinder takes them: one of both.
    pub(super) fn ids(&self) -> (Option<&str>, Option<&str>) {
        match &self.snapshot {
            Some(snapshot) => (Some(snapshot), None),
            None => (None, Some(&self.volume)),
        }
    }

    /// The size of what is made of it, in GiB.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is asked to be smaller.
    pub(super) fn size(&self, options: &VolumeOptions) -> Result<u64> {
        match options.size.map(|size| size.div_ceil(GIB)) {
            Some(size) if size < self.gib => {
                let what = format!("option size: {} has {} GiB", self.from, self.gib);
                Err(Error::new(Kind::Invalid, what))
            }
            size => Ok(size.unwrap_or(self.gib)),
        }
    }

    /// Has what is in this host's memory written, if that is to be in the copy.
    ///
    /// # Errors
    /// Whatever keeps it from being written.
    pub(super) async fn sync(&self, limit: Duration) -> Result<()> {
        match (&self.mountpoint, &self.snapshot) {
            (Some(mountpoint), None) => fs::sync_apart(mountpoint, limit).await,
            _ => Ok(()),
        }
    }
}

impl Volumes {
    /// What a clone is made of, if that is Cinder's; then it is to be there as well, in the same project. It is of the
    /// other back end otherwise.
    pub(super) async fn origin_in_cinder(
        &self,
        given: &VolumeOptions,
        options: &mut VolumeOptions,
    ) -> Result<Option<Origin>> {
        let from = given.from.as_deref().unwrap_or_default();
        let found = match given.backend {
            Some(Backend::Rbd) => None,
            _ => self.volume_in_cinder(from).await?,
        };
        let Some((found, of, snap)) = found else {
            if given.backend == Some(Backend::Cinder) {
                let what = format!("option from={from}: that is no volume of Cinder's");
                return Err(Error::new(Kind::Invalid, what));
            }
            options.backend = Some(Backend::Rbd);
            given.fit(Backend::Rbd)?;
            return Ok(None);
        };
        given.fit(Backend::Cinder)?;
        if given.cloud.is_some() && given.cloud != of.cloud
            || given.project_id.as_ref().is_some_and(|id| *id != of.project)
        {
            let what = format!("option from={from}: it is in project {}", of.project);
            let hint = "a copy belongs to the same project";
            return Err(Error::new(Kind::Invalid, what).with_hint(hint));
        }
        must_be_whole(&found).context(format!("option from={from}"))?;
        options.backend = Some(Backend::Cinder);
        (options.cloud, options.project_id) = (of.cloud.clone(), Some(of.project.clone()));
        // Of the type and in the zone of what it is made of, whatever new ones are like.
        options.volume_type.clone_from(&given.volume_type);
        options.availability_zone.clone_from(&given.availability_zone);
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        let (gib, snapshot) = match &snap {
            Some(snap) => {
                let snapshot = only(&cinder, &of, snap).await?;
                (snapshot.size, Some(snapshot.id))
            }
            None => (cinder.volume(&of.volume).await?.size, None),
        };
        Ok(Some(Origin {
            from: from.to_owned(),
            volume: of.volume,
            snapshot,
            gib,
            content: match snap {
                // Its file system may not have filled it then.
                Some(_) => 0,
                None => found.description.size.min(gib * GIB),
            },
            mountpoint: self.path(&found.name),
        }))
    }

    /// The volume that is named as `VOLUME` or `VOLUME@SNAPSHOT`, if there is one and it is Cinder's.
    async fn volume_in_cinder(
        &self,
        from: &str,
    ) -> Result<Option<(Found, InCinder, Option<String>)>> {
        let split = from.rsplit_once('@').map(|(base, snap)| (base, Some(snap.to_owned())));
        for (base, snap) in [Some((from, None)), split].into_iter().flatten() {
            if let Some(found) = self.find(base).await? {
                let of = found.description.cinder.clone();
                return Ok(of.map(|of| (found, of, snap)));
            }
        }
        Ok(None)
    }

    /// Has Cinder take a snapshot, of what is in memory here, too.
    pub(super) async fn snapshot_in_cinder(
        &self,
        name: &str,
        of: &InCinder,
        snap: &str,
    ) -> Result<()> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        if !named(&cinder, of, snap).await?.is_empty() {
            // Not the kind that says that a volume is there.
            let what = format!("there is a snapshot {snap} already");
            return Err(Error::new(Kind::Invalid, what));
        }
        if let Some(mountpoint) = self.path(name) {
            fs::sync_apart(&mountpoint, self.settings.work).await?;
        }
        let id = cinder.create_snapshot(&of.volume, snap).await?.id;
        match cinder.until_taken(&id, self.deadline()).await {
            // It will never be one, and counts against the quota.
            Err(error) if error.kind() == Kind::Os(5) => {
                if let Err(error) = cinder.delete_snapshot(&id).await {
                    tracing::warn!(volume = name, id, %error, "left behind in Cinder");
                }
                Err(error)
            }
            done => done,
        }
    }

    /// Has Cinder remove a snapshot.
    pub(super) async fn remove_snapshot_in_cinder(&self, of: &InCinder, snap: &str) -> Result<()> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        let id = only(&cinder, of, snap).await?.id;
        cinder.delete_snapshot(&id).await?;
        cinder.until_snapshot_gone(&id, self.deadline()).await
    }

    /// Has Cinder bring a volume back to a snapshot. The lock is ours, and nobody has it open.
    pub(super) async fn restore_in_cinder(
        &self,
        found: &mut Found,
        of: &InCinder,
        snap: &str,
    ) -> Result<()> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        let deadline = Instant::now() + RESTORE;
        self.clear_all(&cinder, found, of).await?;
        // Of an attempt that was cut short.
        let volume = cinder.until(&of.volume, &["available", "in-use"], deadline).await?;
        let snapshot = only(&cinder, of, snap).await?;
        let others = cinder.snapshots(&of.volume).await?;
        if let Some(newer) = others.iter().find(|one| one.created_at > snapshot.created_at) {
            let newer = newer.name.as_deref().unwrap_or(&newer.id);
            let what =
                format!("Cinder goes back to the newest snapshot only, and {newer} is newer");
            let hint = format!("`-o from={}@{snap}` makes a volume of it", found.name);
            return Err(Error::new(Kind::Invalid, what).with_hint(hint));
        }
        if volume.size != snapshot.size {
            let (now, then) = (volume.size, snapshot.size);
            let what = format!("it has {now} GiB, and had {then} then: Cinder does not go back so");
            let hint = format!("`-o from={}@{snap}` makes a volume of it", found.name);
            return Err(Error::new(Kind::Invalid, what).with_hint(hint));
        }
        let before = found.description.state;
        // Half of it would be a file system of two times.
        found.description.state = before.restoring();
        self.store.describe(found).await?;
        if let Err(error) = cinder.revert(&of.volume, &snapshot.id).await {
            if is_refusal(error.kind()) {
                // Nothing was begun.
                found.description.state = before;
                self.store.describe(found).await?;
            }
            return Err(error);
        }
        cinder.until(&of.volume, &["available"], deadline).await?;
        found.restored();
        self.store.describe(found).await
    }
}

/// Whether an error is Cinder's own, so that nothing has come of what it was asked. What stands between may give up
/// sooner than Cinder does.
fn is_refusal(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Invalid
            | Kind::Busy
            | Kind::NotFound
            | Kind::PermissionDenied
            | Kind::Unsupported
            | Kind::Full
    )
}

/// A volume's snapshots of that name. Nothing in Cinder keeps that from being several.
async fn named(cinder: &Cinder, of: &InCinder, snap: &str) -> Result<Vec<Snapshot>> {
    let mut found = cinder.snapshots(&of.volume).await?;
    found.retain(|one| one.name.as_deref() == Some(snap) || one.id == snap);
    Ok(found)
}

/// A volume's only snapshot of that name, or with that id.
async fn only(cinder: &Cinder, of: &InCinder, snap: &str) -> Result<Snapshot> {
    let mut found = named(cinder, of, snap).await?;
    match (found.pop(), found.as_slice()) {
        (Some(one), []) => Ok(one),
        (None, _) => Err(Error::new(Kind::NotFound, format!("there is no snapshot {snap}"))),
        (Some(one), others) => {
            let ids: Vec<_> = others.iter().chain([&one]).map(|one| one.id.as_str()).collect();
            let what = format!("Cinder has several snapshots {snap}: {}", ids.join(", "));
            Err(Error::new(Kind::Invalid, what).with_hint("say the id in place of the name"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cinder_itself_says_that_nothing_was_begun() {
        assert!(is_refusal(Kind::Invalid) && is_refusal(Kind::Busy));
        // A gateway's, too.
        for kind in [Kind::Unreachable, Kind::TimedOut, Kind::Closed, Kind::Corrupt, Kind::Os(5)] {
            assert!(!is_refusal(kind), "{kind:?}");
        }
    }
}

//! Volumes that Cinder makes: it keeps them, and who has them attached; their data and their locks are in Ceph like
//! those of others.
//!
//! What keeps two hosts from writing is the lock in Ceph. The attachment is Cinder's record of it: it is made while
//! this host has the lock, and taken away before the lock is given back. So whoever has the lock may clear away what a
//! host that died has left there. If Cinder is away when it is to be told, the journal keeps it, and it is told later.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, sleep, timeout};

use super::Volumes;
use super::cinder_attach::clear;
use super::cinder_copies::Origin;
use crate::docker::cinder::{Held, InCinder, TAG};
use crate::docker::format;
use crate::docker::journal::Attached;
use crate::docker::names::image_name;
use crate::docker::options::VolumeOptions;
use crate::docker::probe::Content;
use crate::docker::steps;
use crate::docker::store::{Description, Found, Place};
use crate::error::{Error, Kind, Result};
use crate::image::{Image, OpenOptions};
use crate::openstack::Cinder;
use crate::openstack::cinder::{Api, NewVolume, Volume};

/// Cinder counts in these.
pub(super) const GIB: u64 = 1 << 30;

/// The size of a volume if nothing says what it should be.
const DEFAULT_SIZE: u64 = 10 * GIB;

/// How often another host's attempt at the same volume is looked at.
const PAUSE: Duration = Duration::from_millis(300);

/// What is kept back of a call's time for cleaning up.
const RESERVE: Duration = Duration::from_secs(5);

/// After what time a volume that is attached and has no description has been given up by whoever was to write it: calls
/// take ten minutes at most.
const ABANDONED: Duration = Duration::from_secs(660);

/// For how long volumes may count as made at the same time: a second, and the difference of the cloud's clocks.
const SAME_TIME: Duration = Duration::from_secs(3);

impl Volumes {
    /// Makes a volume in Cinder, or takes over what an earlier attempt has made. `None` if another host is about to.
    pub(super) async fn create_in_cinder(
        &self,
        name: &str,
        options: &VolumeOptions,
        origin: Option<&Origin>,
        deadline: Instant,
    ) -> Result<Option<Found>> {
        let cinder = self.clouds.cinder(options.cloud.as_deref(), options.project_id.as_deref())?;
        let (volume, fresh) = self.made(&cinder, name, options, origin).await?;
        let id = volume.id.clone();
        let volume = match cinder
            .until(&id, &["available", "in-use", "reserved", "attaching"], deadline)
            .await
        {
            Ok(volume) => volume,
            Err(error) if error.kind() == Kind::TimedOut => {
                let hint = "it is found again by the next attempt";
                return Err(error.context("Cinder is not done").with_hint(hint));
            }
            // It will never be one, and counts against the quota. What was there before is not ours to judge.
            Err(error) if fresh => {
                if let Err(error) = cinder.delete(&id).await {
                    tracing::warn!(volume = name, id, %error, "left behind in Cinder");
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        steps::done("create: available");
        let of = InCinder {
            cloud: options.cloud.clone(),
            project: cinder.session().project().await?.0,
            volume: id,
            image: String::new(),
            api: match self.settings.attach_api {
                Some(api) => api,
                None => cinder.api().await?,
            },
        };
        let (mut entry, held) = self.begin(name, of.clone()).await?;
        steps::done("create: noted");
        let made = self.attach(&cinder, held, &mut entry).await;
        let made = match made {
            Ok(connection) => {
                steps::done("create: attached");
                let of = InCinder { image: connection.image, ..of.clone() };
                self.describe_in_cinder(name, options, &volume, origin, of, &connection.pool).await
            }
            Err(error) => Err(error),
        };
        let found = match made {
            Ok(found) => found,
            Err(error) if error.kind() == Kind::Busy => {
                self.journal.detach(name)?;
                self.wait_for_other(&cinder, name, of, error, deadline).await?;
                return Ok(None);
            }
            Err(error) => {
                // What is not known to be so may be well later; what is would only count against the quota.
                let gone = async {
                    self.let_go(&mut entry).await?;
                    self.journal.detach(name)?;
                    match error.kind() {
                        Kind::TimedOut | Kind::Unreachable | Kind::Closed => Ok(()),
                        _ if fresh => cinder.delete(&volume.id).await,
                        _ => Ok(()),
                    }
                };
                if let Err(error) = gone.await {
                    tracing::warn!(volume = name, id = volume.id, %error, "left behind in Cinder");
                }
                return Err(error);
            }
        };
        steps::done("create: described");
        let formatted = self.finish_image(found.clone()).await;
        if formatted.is_ok() {
            steps::done("create: formatted");
        }
        self.let_go(&mut entry).await?;
        self.journal.detach(name)?;
        steps::done("create: detached");
        match formatted {
            Ok(found) => Ok(Some(found)),
            Err(error) if fresh => {
                let gone = async {
                    self.take(&found).await?;
                    self.remove_in_cinder(&found).await
                };
                if let Err(error) = gone.await {
                    tracing::warn!(volume = name, %error, "left behind without a file system");
                }
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for another host that makes the same volume at this moment, or takes its place if that was long ago.
    ///
    /// # Errors
    /// Why it cannot be attached, if that is another reason, or time is over.
    async fn wait_for_other(
        &self,
        cinder: &Cinder,
        name: &str,
        of: InCinder,
        refusal: Error,
        deadline: Instant,
    ) -> Result<()> {
        // What is seen before a volume that nobody has touched for long is as old.
        let reserved = match of.api {
            Api::Attachments => cinder.attachments(&of.volume).await?,
            Api::Actions => Vec::new(),
        };
        let volume = match cinder.volume(&of.volume).await {
            Ok(volume) => volume,
            // Whoever was making it has given up.
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        // No creation completes its attachment: whoever is shown to have it uses it, however long it has been so. If
        // that is another host, which was faster, it has described it before.
        let used = !volume.attachments.is_empty();
        if used || reserved.iter().any(|one| one.instance.is_some()) {
            if used && self.find(name).await?.is_some() {
                return Ok(());
            }
            let what = format!("volume {} in Cinder is this one, but not free", of.volume);
            return Err(refusal.context(what));
        }
        if is_old(volume.updated_at.as_deref()) {
            tracing::warn!(volume = of.volume, "a host that was making it has vanished");
            let by = Held::new(of.clone(), &self.settings.host, "", "", false).connector();
            // These alone: another host may be about to take its place as well.
            let left = reserved.iter().map(|one| Some(one.id.as_str()));
            for attachment in left.chain((of.api == Api::Actions).then_some(None)) {
                cinder.detach(of.api, &of.volume, attachment, &by).await?;
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            let hint = format!(
                "another host is making it; if it is dead, that is known after {} s",
                ABANDONED.as_secs()
            );
            return Err(refusal.with_hint(hint));
        }
        sleep(PAUSE).await;
        Ok(())
    }

    /// The volume in Cinder that has the name: one that an earlier attempt has made, or a new one; whether it is new.
    async fn made(
        &self,
        cinder: &Cinder,
        name: &str,
        options: &VolumeOptions,
        origin: Option<&Origin>,
    ) -> Result<(Volume, bool)> {
        let size = match origin {
            Some(origin) => origin.size(options)?,
            None => options.size.unwrap_or(DEFAULT_SIZE).div_ceil(GIB),
        };
        let there = |volume: &Volume| !volume.status.contains("deleting");
        let before = cinder.find_tagged(TAG, name).await?;
        if let Some(volume) = before.into_iter().find(there) {
            if volume.size != size {
                let what =
                    format!("Cinder has its volume {} already, of {} GiB", volume.id, volume.size);
                return Err(Error::new(Kind::Exists, what));
            }
            let origins = origin.map(Origin::ids).unwrap_or_default();
            if (volume.snapshot_id.as_deref(), volume.source_volid.as_deref()) != origins {
                let what =
                    format!("Cinder has its volume {} already, made of something else", volume.id);
                return Err(Error::new(Kind::Exists, what));
            }
            return Ok((volume, false));
        }
        if let Some(origin) = origin {
            origin.sync(self.settings.work).await?;
        }
        let (snapshot, source) = origin.map(Origin::ids).unwrap_or_default();
        let host = &self.settings.host;
        let new = NewVolume {
            name: name.to_owned(),
            description: format!("Docker volume, made on {host}"),
            size,
            volume_type: options.volume_type.clone(),
            availability_zone: options.availability_zone.clone(),
            metadata: BTreeMap::from([
                (TAG.to_owned(), name.to_owned()),
                ("ceph-native.host".to_owned(), host.clone()),
            ]),
            snapshot: snapshot.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let own = cinder.create(&new).await?;
        steps::done("create: asked Cinder");
        // Two hosts may have come here at once: the first counts. Times of creation have whole seconds, of the clock of
        // whichever node of the cloud answered: once those have passed, both hosts see both volumes in the same order.
        sleep(SAME_TIME).await;
        let all = cinder.find_tagged(TAG, name).await?;
        let first = all.into_iter().find(there).filter(|first| first.id != own.id);
        let Some(first) = first else { return Ok((own, true)) };
        tracing::info!(volume = name, "another host was first to make it in Cinder");
        let settled = cinder.until(&own.id, &["available"], self.deadline()).await;
        if let Err(error) = &settled {
            tracing::warn!(volume = name, id = own.id, %error, "one too many");
        }
        cinder.delete(&own.id).await?;
        Ok((first, false))
    }

    /// Writes into a new volume's image what it is.
    ///
    /// # Errors
    /// [`Kind::Exists`] if it holds what no creation has put there; [`Kind::Corrupt`] if it says already what it is, in
    /// words that make no sense here.
    async fn describe_in_cinder(
        &self,
        name: &str,
        options: &VolumeOptions,
        volume: &Volume,
        origin: Option<&Origin>,
        of: InCinder,
        pool: &str,
    ) -> Result<Found> {
        let place = Place::new(pool, "", &of.image);
        let id = {
            let pool = self.store.pool(&place).await?;
            crate::image::header::image_id(&pool, &place.image).await?
        };
        // An earlier attempt has come further than this.
        if let Some(found) = self.store.find_at(&place).await? {
            return Ok(found);
        }
        // An attempt of ours that left anything in it has described it before.
        let pool = self.store.pool(&place).await?;
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = Image::open(&pool, &place.image, &read_only).await?;
        let content = format::look(&image).await;
        image.close().await;
        match content? {
            Content::Data | Content::Other(_) => {
                let what = format!("volume {} in Cinder holds data", volume.id);
                return Err(Error::new(Kind::Exists, what).with_hint("it is left as it is"));
            }
            Content::Blank if origin.is_some() => {
                let what = format!("volume {} in Cinder was to be a copy, and is blank", volume.id);
                return Err(Error::new(Kind::Corrupt, what));
            }
            Content::Blank | Content::FileSystem(_) => {}
        }
        let mut options = options.clone();
        if volume.multiattach {
            let why =
                "its type lets several hosts attach it, and a file system is for one at a time";
            tracing::warn!(volume = name, why, "read-only unless read-only=false is given");
            options.read_only.get_or_insert(true);
        }
        let size = volume.size * GIB;
        let mut description =
            Description { cinder: Some(of), ..self.unfinished(name, size, options) };
        if let Some(origin) = origin {
            // Its file system is as large as it was there.
            description.size = origin.content.min(size);
        }
        let found = Found { name: name.to_owned(), place, id, description, flattening: None };
        match origin {
            Some(_) => self.store.describe_copy(&found).await?,
            None => self.store.describe(&found).await?,
        }
        Ok(found)
    }

    /// Makes the file system of a volume of Cinder's whose creation was cut short.
    pub(super) async fn finish_in_cinder(&self, found: Found, of: InCinder) -> Result<Found> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        // Whoever was at it had the lock, or is about to wait for it.
        match self.take(&found).await {
            Ok(()) => {
                let cleared = self.clear_all(&cinder, &found, &of).await;
                self.give_back(&found).await;
                cleared?;
            }
            // It is being made: that is waited for.
            Err(error) if error.kind() == Kind::Busy => {
                let found = self.finish_image(found).await?;
                return Ok(found);
            }
            Err(error) => return Err(error),
        }
        let (mut entry, held) = self.begin(&found.name, of).await?;
        let finished = match self.attach(&cinder, held, &mut entry).await {
            Ok(_) => self.finish_image(found).await,
            Err(error) => Err(error),
        };
        self.let_go(&mut entry).await?;
        self.journal.detach(&entry.name)?;
        finished
    }

    /// An entry of the journal for an attachment that is not for mounting. One that an earlier life of this process has
    /// left is cleared away.
    async fn begin(&self, name: &str, of: InCinder) -> Result<(Attached, Held)> {
        if let Some(left) = self.journal.attached(name).filter(|left| left.cinder.is_some()) {
            self.tear_down(&left).await?;
        }
        let mountpoint = self.settings.mounts.join(image_name(name)?);
        let root = mountpoint.display().to_string();
        let held = Held::new(of, &self.settings.host, &root, "", false);
        let entry = Attached {
            name: name.to_owned(),
            image: String::new(),
            boot: self.boot.clone(),
            device: None,
            mountpoint,
            read_only: false,
            users: BTreeMap::new(),
            cinder: Some(held.clone()),
        };
        self.journal.attach(&entry)?;
        Ok((entry, held))
    }

    /// Removes a volume that nobody has. The lock is ours.
    pub(super) async fn remove_in_cinder(&self, found: &Found) -> Result<()> {
        let Some(of) = &found.description.cinder else { return Ok(()) };
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        self.clear_all(&cinder, found, of).await?;
        if let Err(error) = cinder.delete(&of.volume).await {
            let snapshots = cinder.snapshots(&of.volume).await.unwrap_or_default();
            return Err(match snapshots.as_slice() {
                [] => error,
                some => {
                    let names: Vec<_> =
                        some.iter().map(|one| one.name.as_deref().unwrap_or(&one.id)).collect();
                    let what = format!("it has snapshots in Cinder: {}", names.join(", "));
                    Error::new(Kind::Busy, what).with_hint("remove those first")
                }
            });
        }
        steps::done("remove: asked Cinder");
        cinder.until_gone(&of.volume, self.deadline()).await?;
        steps::done("remove: gone");
        Ok(())
    }

    /// Takes away what nobody has of a volume whose lock is ours.
    pub(super) async fn clear_all(
        &self,
        cinder: &Cinder,
        found: &Found,
        of: &InCinder,
    ) -> Result<()> {
        let root = self.settings.mounts.join(image_name(&found.name)?).display().to_string();
        // Who has it read-only needs no lock: Cinder alone knows of those.
        let read_only = found.description.options.read_only == Some(true);
        let host = if read_only { self.settings.host.as_str() } else { "" };
        let held = Held::new(of.clone(), &self.settings.host, &root, "", read_only);
        clear(cinder, &held, host).await
    }

    /// Makes a volume larger in Cinder, which makes its image larger.
    pub(super) async fn extend_in_cinder(&self, of: &InCinder, size: u64) -> Result<u64> {
        let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
        let gib = size.div_ceil(GIB);
        cinder.extend(&of.volume, gib).await?;
        let volume = cinder.until(&of.volume, &["available", "in-use"], self.deadline()).await?;
        match volume.size >= gib {
            true => Ok(volume.size * GIB),
            false => Err(Error::new(Kind::Os(5), format!("Cinder left it at {} GiB", volume.size))),
        }
    }

    /// What there is to say of a volume that is in Cinder, which may be away.
    pub(super) async fn say_of_cinder(&self, of: &InCinder, status: &mut Map<String, Value>) {
        let asked = async {
            let cinder = self.clouds.cinder(of.cloud.as_deref(), Some(&of.project))?;
            tokio::try_join!(cinder.volume(&of.volume), cinder.snapshots(&of.volume))
        };
        let said = match timeout(self.settings.answer * 2 / 3, asked).await {
            Ok(Ok((volume, snapshots))) => {
                let names = snapshots.into_iter().map(|one| one.name.unwrap_or(one.id));
                status.insert("snapshots".to_owned(), names.collect::<Vec<_>>().into());
                let devices = volume.attachments.iter().filter_map(|one| one.device.as_deref());
                status.insert("cinder-attached".to_owned(), devices.collect::<Vec<_>>().into());
                volume.status
            }
            Ok(Err(error)) => format!("unknown: {error}"),
            Err(_) => "unknown: no answer in time".to_owned(),
        };
        status.insert("cinder-status".to_owned(), said.into());
    }

    pub(super) fn deadline(&self) -> Instant {
        let limit = self.settings.work;
        Instant::now() + limit.saturating_sub(RESERVE.min(limit / 5))
    }
}

/// Whether a time of Cinder's is longer ago than anything takes that is at work on a volume.
fn is_old(time: Option<&str>) -> bool {
    // They are in UTC, without saying so.
    let time = time.and_then(|time| format!("{time}Z").parse::<jiff::Timestamp>().ok());
    time.is_some_and(|time| {
        (jiff::Timestamp::now() - time)
            .total(jiff::Unit::Second)
            .is_ok_and(|ago| ago > ABANDONED.as_secs_f64())
    })
}

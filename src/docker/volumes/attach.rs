//! Mounting and unmounting: lock, map, check, mount, and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::msg::watch::Watcher;

use super::{Volumes, now};
use crate::docker::filesystem as fs;
use crate::docker::format;
use crate::docker::journal::Attached;
use crate::docker::names::image_name;
use crate::docker::options::FsType;
use crate::docker::probe;
use crate::docker::settings::Fence;
use crate::docker::steps;
use crate::docker::store::{Found, Holder, State};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::admin::address_text;
use crate::image::{Image, OpenOptions};

/// How long a lock may have no address to it before its host counts as dead: what lies between is a start of the
/// mapper.
const GRACE: Duration = Duration::from_secs(10);

/// How often it is looked for.
const PAUSE: Duration = Duration::from_millis(250);

/// How long an image may be open elsewhere for a look at it.
const LOOKING: Duration = Duration::from_secs(3);

/// How long what is only tidiness may take when the cluster is away.
pub(super) const TIDY: Duration = Duration::from_secs(5);

impl Volumes {
    pub(super) async fn mount_now(&self, name: &str, user: &str) -> Result<PathBuf> {
        let mut left = None;
        if let Some(mut attached) = self.journal.attached(name) {
            let is_there = match self.is_live(&attached) {
                true => self.is_mapped(&attached).await,
                false => self.mount_again(&attached).await?,
            };
            if is_there {
                // Of a plugin that ended before it could. A Cinder that is away keeps nobody from what is here.
                if let Ok(Err(error)) = tokio::time::timeout(TIDY, self.settle(&mut attached)).await
                {
                    if error.kind() == Kind::Busy {
                        self.give_up(&attached, &error).await?;
                        return Err(error);
                    }
                    tracing::warn!(volume = name, %error, "Cinder does not show it as in use yet");
                }
                attached.users.insert(user.to_owned(), now());
                self.journal.attach(&attached)?;
                return Ok(attached.mountpoint);
            }
            tracing::warn!(volume = name, "what was mounted is gone: mounting anew");
            self.clean(&attached).await?;
            left = attached.cinder;
        }
        let found = self.find_existing(name).await?;
        let found = self.finish(found).await?;
        if found.description.state.is_restoring() {
            let what = "it was being brought back to a snapshot, which was cut short";
            let hint = format!("`ceph-native restore {name} SNAPSHOT` once more");
            return Err(Error::new(Kind::Corrupt, what).with_hint(hint));
        }
        let read_only = found.description.options.read_only == Some(true);
        let mut attached = Attached {
            name: name.to_owned(),
            image: found.place.spec(),
            boot: self.boot.clone(),
            device: None,
            mountpoint: self.settings.mounts.join(image_name(name)?),
            read_only,
            users: BTreeMap::from([(user.to_owned(), now())]),
            cinder: left,
        };
        // From here on whatever is begun is found again, should this process end.
        self.journal.attach(&attached)?;
        match self.bring_up(found, &mut attached, user).await {
            Ok(()) => Ok(attached.mountpoint),
            Err(error) => {
                if let Err(error) = self.tear_down(&attached).await {
                    tracing::warn!(volume = name, %error, "left behind by a mount that failed");
                }
                Err(error)
            }
        }
    }

    async fn bring_up(&self, mut found: Found, attached: &mut Attached, user: &str) -> Result<()> {
        let before = match attached.read_only {
            true => {
                // Who holds the lock is about to change it, or died over that.
                if self.held_elsewhere(&found).await?.is_some() {
                    self.take(&found).await?;
                    self.give_back(&found).await;
                }
                self.store.watchers(&found).await?
            }
            false => {
                self.take(&found).await?;
                self.must_be_unused(&found).await?;
                Vec::new()
            }
        };
        let in_cinder = found.description.cinder.clone();
        let connection = match &in_cinder {
            Some(of) => {
                steps::done("mount: locked");
                Some(self.attach_for_mount(of, user, attached).await?)
            }
            None => None,
        };
        let device = self.mapper.map(&found.place, attached.read_only, connection.as_ref()).await?;
        attached.device = Some(device.clone());
        self.journal.attach(attached)?;
        if in_cinder.is_some() {
            steps::done("mount: mapped");
        }
        if attached.read_only {
            self.show_reader(&found, &before).await;
            // From here on whoever takes the lock sees that it is in use; it may just have been taken.
            if let Some(holder) = self.held_elsewhere(&found).await? {
                return Err(mounted_elsewhere(&holder));
            }
        } else {
            // Only then can another host fence what writes here; so nothing is written before.
            let clients = self.store.clients(&found).await?.users;
            self.store.note_mount(&found, &self.host_id, &clients).await?;
            fs::check(found.description.fstype, &device, self.settings.work).await?;
            // A file system that is too small for its image is still what it was.
            if let Err(error) = self.fill_unmounted(&mut found, &device).await {
                tracing::warn!(volume = found.name, %error, "its file system cannot grow");
            }
        }
        let (fstype, limit) = (found.description.fstype, self.settings.work);
        let options = fs::mount_options(fstype, &found.description.options);
        let mountpoint = attached.mountpoint.clone();
        // What its users make of the root folder stays.
        let root = match found.description.state {
            State::New => fs::Root::of(&found.description.options),
            _ => fs::Root::default(),
        };
        fs::mount_apart(&device, &mountpoint, fstype, &options, &root, limit).await?;
        if in_cinder.is_some() {
            steps::done("mount: mounted");
            self.complete(attached).await?;
        }
        if attached.read_only {
            return Ok(());
        }
        if found.description.state == State::New {
            found.description.state = State::Ready;
            self.store.describe(&found).await?;
        }
        if let Err(error) = self.fill_device(&mut found, &device, &mountpoint).await {
            tracing::warn!(volume = found.name, %error, "its file system cannot grow");
        }
        Ok(())
    }

    /// Which other host holds a volume's lock.
    async fn held_elsewhere(&self, found: &Found) -> Result<Option<Holder>> {
        let holder = self.store.holder(found).await?;
        Ok(holder.filter(|holder| holder.host_id != self.host_id))
    }

    /// Refuses what this host had mounted for writing and was fenced from since.
    pub(super) async fn must_be_held(&self, name: &str) -> Result<()> {
        let found = self.find_existing(name).await?;
        match self.store.holder(&found).await? {
            Some(holder) if holder.host_id == self.host_id => Ok(()),
            Some(holder) => Err(mounted_elsewhere(&holder)),
            None => Err(Error::new(Kind::Busy, "its lock was taken from this host")),
        }
    }

    /// Has other hosts know whose watch it is that was not there before. A key that may only read cannot, and has none.
    async fn show_reader(&self, found: &Found, before: &[Watcher]) {
        let shown = async {
            let mut clients = self.store.clients(found).await?.users;
            clients.retain(|client| !before.contains(client));
            self.store.note_reader(found, &self.host_id, &self.settings.host, &clients).await
        };
        if let Err(error) = shown.await {
            tracing::debug!(volume = found.name, %error, "other hosts are not told who reads it");
        }
    }

    async fn fill_unmounted(&self, found: &mut Found, device: &str) -> Result<()> {
        let (fstype, limit) = (found.description.fstype, self.settings.work);
        match fs::device_size(device) {
            Some(size) if size > found.description.size => {
                // The check of all of it before that takes as long as it is large.
                if self.is_filled(found, size).await?
                    || fs::grow_unmounted(fstype, device, limit).await?
                {
                    found.description.size = size;
                    self.store.describe(found).await?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether it is known of a file system that it leaves nothing of its image.
    async fn is_filled(&self, found: &Found, size: u64) -> Result<bool> {
        if found.description.fstype != FsType::Ext4 {
            return Ok(false);
        }
        let pool = self.store.pool(&found.place).await?;
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = Image::open(&pool, &found.place.image, &read_only).await?;
        let head = format::read(&image, 0, probe::EXT4_HEAD).await;
        image.close().await;
        Ok(probe::ext4_size(&head?) == Some(size))
    }

    /// Has a mounted file system grow whose image has grown.
    pub(super) async fn fill_device(
        &self,
        found: &mut Found,
        device: &str,
        root: &Path,
    ) -> Result<()> {
        match fs::device_size(device) {
            Some(size) if size > found.description.size => {
                fs::grow(found.description.fstype, device, root, self.settings.work).await?;
                found.description.size = size;
                self.store.describe(found).await?;
                self.journal.learn(found)
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn unmount_now(&self, name: &str, user: &str) -> Result<()> {
        let Some(mut attached) = self.journal.attached(name) else { return Ok(()) };
        attached.users.remove(user);
        self.journal.attach(&attached)?;
        match attached.users.is_empty() {
            true => self.tear_down(&attached).await,
            false => Ok(()),
        }
    }

    /// Whether it is mounted still.
    pub(super) fn is_live(&self, attached: &Attached) -> bool {
        attached.boot == self.boot
            && attached.device.is_some()
            && fs::mounted(&attached.mountpoint) == attached.device
    }

    /// Whether the process that carries its data is there.
    async fn is_mapped(&self, attached: &Attached) -> bool {
        match self.mapper.device(&attached.image).await {
            Ok(device) => device == attached.device,
            // It cannot be told: then nothing is torn down.
            Err(_) => true,
        }
    }

    /// Mounts once more what containers still have, but this plugin has not: Docker unmounts what a managed plugin has
    /// mounted when that is disabled. Whether there was such a thing.
    pub(super) async fn mount_again(&self, attached: &Attached) -> Result<bool> {
        let (Some(device), Some(known)) = (&attached.device, self.journal.known(&attached.name))
        else {
            return Ok(false);
        };
        let looked_for = device.clone();
        let anywhere = tokio::task::spawn_blocking(move || fs::mounted_anywhere(&looked_for));
        let of_now = attached.boot == self.boot && !attached.users.is_empty();
        if !of_now || !anywhere.await.unwrap_or(false) {
            return Ok(false);
        }
        // The device may be another image's by now: what cannot be told is not mounted.
        if self.mapper.device(&attached.image).await? != attached.device {
            return Ok(false);
        }
        tracing::warn!(volume = attached.name, "unmounted by somebody, and in use: mounting again");
        // The kernel has it mounted: it is the same file system, with nothing to check.
        let fstype = known.description.fstype;
        let options = fs::mount_options(fstype, &known.description.options);
        let (root, limit) = (fs::Root::default(), self.settings.work);
        fs::mount_apart(device, &attached.mountpoint, fstype, &options, &root, limit).await?;
        Ok(true)
    }

    /// Unmounts and unmaps what is left of a volume on this host.
    async fn clean(&self, attached: &Attached) -> Result<()> {
        fs::unmount_apart(&attached.mountpoint, self.settings.work).await?;
        // What was attached in Cinder for its file system only was never mapped.
        match attached.image.as_str() {
            "" => Ok(()),
            image => self.mapper.unmap(image).await,
        }
    }

    /// The same, and lets other hosts have it.
    pub(super) async fn tear_down(&self, attached: &Attached) -> Result<()> {
        self.clean(attached).await?;
        let mut attached = attached.clone();
        let told = match attached.cinder.is_some() {
            true => {
                steps::done("unmount: cleaned");
                self.tell_cinder(&mut attached).await?
            }
            false => true,
        };
        let given_back = async {
            match self.find(&attached.name).await? {
                Some(found) if attached.read_only => {
                    self.store.forget_reader(&found, &self.host_id).await?;
                }
                Some(found) => self.give_back(&found).await,
                None => {}
            }
            Ok::<_, Error>(())
        };
        // If it isn't, the next to mount it finds that no client of this host has it open.
        match tokio::time::timeout(TIDY, given_back).await {
            Ok(Ok(())) => {}
            // It was never noted.
            Ok(Err(error)) if attached.read_only && error.kind() == Kind::PermissionDenied => {}
            Ok(Err(error)) => {
                tracing::warn!(volume = attached.name, %error, "its lock is not given back");
            }
            Err(_) => tracing::warn!(volume = attached.name, "its lock is not given back yet"),
        }
        if attached.cinder.is_none() && told && !attached.read_only {
            steps::done("unmount: unlocked");
        }
        // What Cinder could not be told is kept, for when it can.
        if told { self.journal.detach(&attached.name) } else { Ok(()) }
    }

    /// Has Cinder forget an attachment whose volume is unmounted; whether it has. One that is away keeps nobody from
    /// anything.
    async fn tell_cinder(&self, attached: &mut Attached) -> Result<bool> {
        let told = match tokio::time::timeout(TIDY, self.let_go(attached)).await {
            Ok(told) => told,
            Err(_) => Err(Error::new(Kind::TimedOut, "Cinder does not answer")),
        };
        match told {
            Ok(()) => {
                steps::done("unmount: detached");
                Ok(true)
            }
            Err(error) => {
                let volume = &attached.name;
                tracing::warn!(volume, %error, "Cinder shows it as attached still: told again later");
                attached.device = None;
                self.journal.attach(attached)?;
                Ok(false)
            }
        }
    }

    /// Takes a volume's lock for this host, from one that died if need be.
    pub(super) async fn take(&self, found: &Found) -> Result<()> {
        let begun = tokio::time::Instant::now();
        loop {
            if self.store.lock(found, &self.host_id, &self.settings.host).await? {
                return Ok(());
            }
            let Some(holder) = self.store.holder(found).await? else { continue };
            let watchers = self.store.watchers(found).await?;
            if holder.host_id == self.host_id {
                // Of an earlier life of this process. Nothing is mapped here any more: what the cluster still takes for
                // alive is dead, and need not be waited for.
                if holder.watches(&watchers) {
                    self.store.fence(&holder.addresses).await?;
                }
                self.store.unlock(found, &holder).await?;
                continue;
            }
            let nameless = holder.addresses.is_empty();
            if holder.watches(&watchers) || nameless && !watchers.is_empty() {
                return Err(mounted_elsewhere(&holder));
            }
            if nameless && begun.elapsed() < GRACE {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            if self.settings.fence == Fence::Manual {
                let (host, name) = (&holder.host, &found.name);
                let what = format!("host {host} had it mounted and has vanished");
                let hint = format!("if it is dead for sure: ceph-native fence {name}");
                return Err(Error::new(Kind::Busy, what).with_hint(hint));
            }
            self.take_from(found, &holder).await?;
        }
    }

    /// Takes a volume's lock from another host, which is fenced first.
    pub(super) async fn take_from(&self, found: &Found, holder: &Holder) -> Result<()> {
        tracing::warn!(volume = found.name, host = holder.host, "taken from a host that died");
        self.store.fence(holder.to_fence()).await?;
        self.store.unlock(found, holder).await
    }

    /// Gives a volume's lock back, if it is ours.
    pub(super) async fn give_back(&self, found: &Found) {
        let given_back = async {
            match self.store.holder(found).await? {
                Some(holder) if holder.host_id == self.host_id => {
                    // Nothing is mapped here any more: who seems to be there was killed, and would keep others out.
                    if holder.watches(&self.store.watchers(found).await?) {
                        self.store.fence(&holder.addresses).await?;
                    }
                    self.store.unlock(found, &holder).await
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = given_back.await.context("giving the lock back") {
            tracing::warn!(volume = found.name, %error);
        }
    }

    /// Refuses a volume that others have open without asking for our lock: `rbd map`, a virtual machine. Who only looks
    /// at it is soon gone; so is who makes it independent, or its host died, and the cluster forgets it after a while.
    pub(super) async fn must_be_unused(&self, found: &Found) -> Result<()> {
        let begun = tokio::time::Instant::now();
        self.store.end_earlier_flattening(found, &self.host_id).await?;
        // What is left of the call's time is for saying so.
        let flattening = self.settings.work.saturating_sub(LOOKING);
        loop {
            let clients = self.store.clients(found).await?;
            match (clients.users.first(), &clients.flattener) {
                (None, None) => return Ok(()),
                (Some(user), _) if begun.elapsed() > LOOKING => {
                    return Err(in_use(user, &self.store.readers(found).await?));
                }
                (None, Some(host)) if begun.elapsed() > flattening => {
                    let what = format!("host {host} makes it independent of its origin");
                    return Err(Error::new(Kind::Busy, what)
                        .with_hint("a host that died meanwhile is forgotten after 30 s"));
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

fn mounted_elsewhere(holder: &Holder) -> Error {
    let at = match holder.addresses.first() {
        Some(address) => format!(" ({address})"),
        None => String::new(),
    };
    Error::new(Kind::Busy, format!("it is mounted on host {}{at}", holder.host))
}

fn in_use(watcher: &Watcher, readers: &BTreeMap<String, String>) -> Error {
    let address = address_text(&watcher.addr);
    if let Some(host) = readers.get(&address) {
        let what = format!("it is mounted for reading on host {host} ({address})");
        return Error::new(Kind::Busy, what);
    }
    let what = format!("it is in use by {} at {address}", watcher.name);
    Error::new(Kind::Busy, what)
        .with_hint("not by this plugin; a client that crashed is forgotten after 30 s")
}

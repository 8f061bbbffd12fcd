//! What Docker has no words for: growing, checking, and who has a volume.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Volumes;
use crate::docker::filesystem as fs;
use crate::docker::journal::Attached;
use crate::docker::names::image_name;
use crate::error::{Error, Kind, Result};
use crate::image::admin::address_text;

/// How often a device is looked at for its new size.
const PAUSE: Duration = Duration::from_millis(50);

impl Volumes {
    /// Makes a volume larger, and its file system, now if it is mounted here and with the next mount otherwise.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it would not grow; whatever keeps it from growing.
    pub async fn resize(self: &Arc<Self>, name: &str, size: u64) -> Result<String> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        self.work(name, "resizing", async move { this.resize_now(&owned, size).await }).await
    }

    async fn resize_now(&self, name: &str, size: u64) -> Result<String> {
        let mut found = self.find_existing(name).await?;
        if size <= found.description.size {
            let what =
                format!("it has {} bytes already: volumes only grow", found.description.size);
            return Err(Error::new(Kind::Invalid, what));
        }
        let size = match &found.description.cinder {
            Some(of) => self.extend_in_cinder(of, size).await?,
            None => {
                self.mapper.resize(&found.place, size).await?;
                size
            }
        };
        let attached = self.journal.attached(name).filter(|attached| self.is_live(attached));
        let Some((device, root)) = attached.and_then(|a| Some((a.device?, a.mountpoint))) else {
            return Ok("the image has grown; its file system will with the next mount".to_owned());
        };
        // The mapping learns of it by itself.
        while fs::device_size(&device).is_some_and(|now| now < size) {
            tokio::time::sleep(PAUSE).await;
        }
        match self.fill_device(&mut found, &device, &root).await {
            Ok(()) => Ok(format!("image and file system have {size} bytes")),
            Err(error) => Ok(format!(
                "the image has grown; its file system cannot now, but will with the next mount: {error}"
            )),
        }
    }

    /// Checks the file system of a volume that is mounted nowhere.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it is mounted; [`Kind::Corrupt`] with what the program says.
    pub async fn fsck(self: &Arc<Self>, name: &str) -> Result<String> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        self.work(name, "checking", async move { this.fsck_now(&owned).await }).await
    }

    async fn fsck_now(&self, name: &str) -> Result<String> {
        if self.journal.attached(name).is_some() {
            return Err(Error::new(Kind::Busy, "it is mounted on this host"));
        }
        let found = self.find_existing(name).await?;
        let attached = Attached {
            name: name.to_owned(),
            image: found.place.spec(),
            boot: self.boot.clone(),
            device: None,
            mountpoint: self.settings.mounts.join(image_name(name)?),
            read_only: false,
            users: BTreeMap::new(),
            cinder: None,
        };
        // Whatever is begun is found again and cleared away, should this process end or its time be over.
        self.journal.attach(&attached)?;
        if let Err(error) = self.take(&found).await {
            self.journal.detach(name)?;
            return Err(error);
        }
        let checked = async {
            self.must_be_unused(&found).await?;
            let device = self.mapper.map(&found.place, false, None).await?;
            fs::check_all(found.description.fstype, &device, self.settings.work).await
        };
        let checked = checked.await;
        self.tear_down(&attached).await?;
        checked
    }

    /// Who has a volume, in lines.
    ///
    /// # Errors
    /// Whatever keeps it from being found out.
    pub async fn who(self: &Arc<Self>, name: &str) -> Result<String> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        let asked = async move {
            let found = this.find_existing(&owned).await?;
            let mut lines = Vec::new();
            if let Some(holder) = this.store.holder(&found).await? {
                let own = if holder.host_id == this.host_id { " (this one)" } else { "" };
                lines.push(format!("mounted on host {}{own}", holder.host));
                lines.extend(holder.addresses.iter().map(|address| format!("  through {address}")));
            }
            let readers = this.store.readers(&found).await?;
            for watcher in this.store.watchers(&found).await? {
                let address = address_text(&watcher.addr);
                lines.push(match readers.get(&address) {
                    Some(host) => format!("mounted for reading on host {host}, through {address}"),
                    None => format!("open by {} at {address}", watcher.name),
                });
            }
            if let Some(attached) = this.journal.attached(&owned) {
                let users = attached.users.iter();
                lines.extend(users.map(|(id, since)| format!("used here by {id} since {since}")));
            }
            Ok(if lines.is_empty() { "nobody".to_owned() } else { lines.join("\n") })
        };
        self.work(name, "looking at", asked).await
    }

    /// Fences the host that has a volume, for one that is dead, and takes its lock away.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no other host has it; whatever keeps it from being fenced.
    pub async fn fence(self: &Arc<Self>, name: &str) -> Result<String> {
        let (this, owned) = (Arc::clone(self), name.to_owned());
        let fenced = async move {
            let found = this.find_existing(&owned).await?;
            match this.store.holder(&found).await? {
                Some(holder) if holder.host_id != this.host_id => {
                    this.take_from(&found, &holder).await?;
                    Ok(format!("host {} is fenced off this volume", holder.host))
                }
                _ => Err(Error::new(Kind::NotFound, "no other host has it")),
            }
        };
        self.work(name, "fencing", fenced).await
    }
}

//! Making and removing volumes.
//!
//! A volume's image is there with its description from one moment to the next, in state `formatting`. Whoever holds its
//! lock makes the file system, and writes its first bytes last. So of two hosts that make one volume one does, and the
//! other waits; and one that was killed over it is taken over from.

use std::sync::Arc;
use std::time::Duration;

use proto::rbd::Features;

use super::copies::{drop_stale, grow_clone, must_be_clone};
use super::{Volumes, now};
use crate::docker::format;
use crate::docker::options::{Backend, FsType, VolumeOptions};
use crate::docker::probe::Content;
use crate::docker::store::{self, Description, Found, Place, State};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::admin::{self, CreateOptions};
use crate::image::header::{Header, image_id};
use crate::image::{Image, OpenOptions};

/// The size of a volume if nothing says what it should be.
const DEFAULT_SIZE: u64 = 10 << 30;

/// How long the image of another host that is at work may have no description, or no file system, before it is asked
/// for again.
const PAUSE: Duration = Duration::from_millis(200);

/// How many pauses until an image without a header counts as the rest of a creation that was cut short.
const PATIENCE: u32 = 25;

impl Volumes {
    pub(super) async fn create_now(
        self: &Arc<Self>,
        name: &str,
        given: VolumeOptions,
    ) -> Result<()> {
        let mut options = given.clone().or(&self.settings.volumes);
        // A clone is like its parent unless it is asked for otherwise, whatever new volumes are like.
        if given.from.is_some() {
            options.size = given.size;
            (options.order, options.features) = (given.order, given.features.clone());
        } else {
            given.fit(options.backend.unwrap_or_default())?;
        }
        let deadline = self.deadline();
        for pause in 0.. {
            if let Some(found) = self.find(name).await? {
                compatible(&found, &given)?;
                let found = self.finish(found).await?;
                self.journal.learn(&found)?;
                self.flatten_unasked();
                return Ok(());
            }
            let cluster = self.store.cluster().await?;
            let origin = match given.from {
                Some(_) => self.origin_in_cinder(&given, &mut options).await?,
                None => None,
            };
            if options.backend == Some(Backend::Cinder) {
                match self.create_in_cinder(name, &options, origin.as_ref(), deadline).await? {
                    Some(found) => return self.journal.learn(&found),
                    None => continue,
                }
            }
            let place = store::place(name, &options, &cluster.config().rbd.pool)?;
            if options.image.is_some() {
                return self.adopt(name, place, options).await;
            }
            match self.make_image(name, &place, &options).await {
                Ok(found) => return self.finish_new(found).await,
                Err(error) if error.kind() == Kind::Exists => {
                    self.look_at_existing(&place, pause, error).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// An image has the name, but no volume was found: another host is making it, or was, or it is not ours.
    async fn look_at_existing(&self, place: &Place, pause: u32, exists: Error) -> Result<()> {
        let pool = self.store.pool(place).await?;
        let id = match image_id(&pool, &place.image).await {
            Ok(id) => id,
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        match Header::read(&pool, &id).await {
            Ok(_) if self.store.find_at(place).await?.is_some() => Ok(()),
            Ok(_) => {
                let hint = format!("-o image={} makes it the volume", place.image);
                Err(exists.context("its image would be one that is not a volume").with_hint(hint))
            }
            Err(error) if error.kind() == Kind::NotFound && pause >= PATIENCE => {
                tracing::warn!(image = place.spec(), "the rest of an unfinished creation goes");
                admin::remove(&pool, &place.image, &mut |_, _| {}).await
            }
            Err(error) if error.kind() == Kind::NotFound => {
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn make_image(
        &self,
        name: &str,
        place: &Place,
        options: &VolumeOptions,
    ) -> Result<Found> {
        let pool = self.store.pool(place).await?;
        admin::check_namespace(&pool).await?;
        let config = pool.cluster().config();
        let config = &config.rbd;
        let data_pool = match options.data_pool.as_ref().or(config.data_pool.as_ref()) {
            Some(data_pool) => Some(pool.cluster().pool(data_pool).await?),
            None => None,
        };
        let features = match &options.features {
            Some(features) => features
                .parse::<Features>()
                .map_err(|error| Error::new(Kind::Invalid, "option features").with_source(error))?,
            None => admin::supported(config.features),
        };
        let size = options.size.unwrap_or(DEFAULT_SIZE);
        let description = self.unfinished(name, size, options.clone());
        let create = CreateOptions {
            size,
            order: options.order.unwrap_or(config.order),
            stripe_unit: options.stripe_unit.unwrap_or(config.stripe_unit),
            stripe_count: options.stripe_count.unwrap_or(config.stripe_count),
            features,
            data_pool,
            metadata: store::description(&description)?,
        };
        let mut found = Found {
            name: name.to_owned(),
            place: place.clone(),
            id: String::new(),
            description,
            flattening: None,
        };
        if options.from.is_some() {
            return self.make_clone(found, options, create).await;
        }
        found.id = admin::create(&pool, &place.image, &create).await?;
        Ok(found)
    }

    /// What a volume is whose image was just made.
    pub(super) fn unfinished(&self, name: &str, size: u64, options: VolumeOptions) -> Description {
        Description {
            name: name.to_owned(),
            state: State::Formatting,
            adopted: false,
            fstype: options.fstype.unwrap_or_default(),
            size,
            options: VolumeOptions { size: Some(size), ..options },
            created: now(),
            host: self.settings.host.clone(),
            cinder: None,
        }
    }

    /// Makes an image that is there a volume.
    async fn adopt(&self, name: &str, place: Place, options: VolumeOptions) -> Result<()> {
        let pool = self.store.pool(&place).await?;
        let id = image_id(&pool, &place.image).await?;
        if let Some(other) = self.store.find_at(&place).await? {
            let what = format!("image {} is volume {} already", place.spec(), other.name);
            return Err(Error::new(Kind::Exists, what));
        }
        let read_only = OpenOptions { read_only: true, ..OpenOptions::default() };
        let image = Image::open(&pool, &place.image, &read_only).await?;
        let content = format::look(&image).await;
        let size = image.size();
        image.close().await;
        let (state, fstype) = match content? {
            Content::FileSystem(fstype) => match options.fstype {
                Some(wanted)
                    if wanted != fstype && options.fstype != self.settings.volumes.fstype =>
                {
                    let what = format!("image {} has {fstype}, not {wanted}", place.spec());
                    return Err(Error::new(Kind::Invalid, what));
                }
                _ => (State::Ready, fstype),
            },
            Content::Blank => (State::Formatting, options.fstype.unwrap_or_default()),
            Content::Other(what) => {
                let what = format!("image {} holds {what}: nothing to mount", place.spec());
                return Err(Error::new(Kind::Invalid, what));
            }
            Content::Data => {
                let what =
                    format!("image {} holds data, but no file system known here", place.spec());
                return Err(Error::new(Kind::Invalid, what).with_hint("it is left as it is"));
            }
        };
        let description = Description {
            name: name.to_owned(),
            state,
            adopted: true,
            fstype,
            size,
            options: VolumeOptions { size: None, ..options },
            created: now(),
            host: self.settings.host.clone(),
            cinder: None,
        };
        let found = Found { name: name.to_owned(), place, id, description, flattening: None };
        self.store.describe(&found).await?;
        let found = self.finish(found).await?;
        self.journal.learn(&found)
    }

    /// Makes the file system of an image that was just made. If that is not possible, there shall be no volume.
    async fn finish_new(self: &Arc<Self>, found: Found) -> Result<()> {
        match self.finish(found.clone()).await {
            Ok(found) => {
                self.journal.learn(&found)?;
                self.flatten_unasked();
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.undo(&found).await {
                    tracing::warn!(volume = found.name, %error, "left behind without a file system");
                }
                Err(error)
            }
        }
    }

    /// Removes a volume whose making failed, unless another host has made it meanwhile.
    async fn undo(&self, found: &Found) -> Result<()> {
        self.take(found).await?;
        let undone = match self.store.find_at(&found.place).await? {
            Some(now) if now.id == found.id && now.description.state == State::Formatting => {
                self.remove_image(&now).await
            }
            _ => Ok(()),
        };
        // Of what is gone nothing is left to give back.
        self.give_back(found).await;
        undone
    }

    /// Makes the file system of a volume that has none yet.
    pub(super) async fn finish(&self, found: Found) -> Result<Found> {
        match (found.description.state, found.description.cinder.clone()) {
            (State::Formatting, Some(of)) => self.finish_in_cinder(found, of).await,
            _ => self.finish_image(found).await,
        }
    }

    /// The same, where nobody but Ceph has to be asked.
    pub(super) async fn finish_image(&self, mut found: Found) -> Result<Found> {
        while found.description.state == State::Formatting {
            match self.take(&found).await {
                Ok(()) => {}
                // Another host is at work on it: it is waited for, as long as the call may take.
                Err(error) if error.kind() == Kind::Busy => {
                    tokio::time::sleep(PAUSE).await;
                    found = self.find_existing(&found.name).await?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let done = self.format(&mut found).await;
            self.give_back(&found).await;
            done?;
        }
        Ok(found)
    }

    async fn format(&self, found: &mut Found) -> Result<()> {
        let pool = self.store.pool(&found.place).await?;
        // It may have been finished before the lock was ours.
        if let Some(newer) = self.store.find_at(&found.place).await? {
            *found = newer;
        }
        if found.description.state != State::Formatting {
            return Ok(());
        }
        must_be_clone(&pool, found).await?;
        let image = Image::open(&pool, &found.place.image, &OpenOptions::default()).await?;
        let made = async {
            self.format_image(found, &image).await?;
            grow_clone(found, &image).await
        };
        let made = made.await;
        image.close().await;
        made.context(format!("making its file system ({})", found.description.fstype))?;
        found.description.state = State::New;
        self.store.describe(found).await
    }

    async fn format_image(&self, found: &mut Found, image: &Image) -> Result<()> {
        match format::look(image).await? {
            // Two of one name on one host are one to it.
            Content::FileSystem(FsType::Btrfs) if found.description.options.from.is_some() => {
                return Err(Error::new(
                    Kind::Unsupported,
                    "a clone of btrfs cannot be told from it",
                ));
            }
            // All but this note was done.
            Content::FileSystem(fstype) => {
                found.description.fstype = fstype;
                return Ok(());
            }
            Content::Other(what) => {
                return Err(Error::new(Kind::Exists, format!("the image holds {what}")));
            }
            Content::Data
                if found.description.adopted || found.description.options.from.is_some() =>
            {
                return Err(Error::new(Kind::Exists, "the image holds data"));
            }
            // The rest of an attempt that was cut short, which only we can have made.
            Content::Data | Content::Blank => {}
        }
        let options = found.description.options.mkfs_options.as_deref().unwrap_or_default();
        let fstype: FsType = found.description.fstype;
        let scratch = self.settings.state.join("scratch");
        format::format(image, fstype, options, &scratch, self.settings.work).await
    }

    pub(super) async fn remove_now(&self, name: &str) -> Result<()> {
        let known = self.journal.known(name);
        let Some(found) = self.find(name).await? else {
            return self.remove_rest(name, known).await;
        };
        if let Some(attached) = self.journal.attached(name) {
            if !attached.users.is_empty() && self.is_live(&attached) {
                return Err(Error::new(Kind::Busy, "it is mounted on this host"));
            }
            self.tear_down(&attached).await?;
        }
        // Nobody can mount it from here on; and nobody has.
        self.take(&found).await?;
        let gone = async {
            self.must_be_unused(&found).await?;
            self.remove_image(&found).await
        };
        let gone = gone.await;
        // An image that is still there may come back.
        if gone.is_err() || found.description.adopted || goes_to_trash(&found) {
            self.give_back(&found).await;
        }
        gone?;
        self.journal.forget(name)
    }

    /// Removes what is left of a volume whose removal was cut short after its description was gone: the names that led
    /// to it. An image that is whole is none of ours.
    async fn remove_rest(&self, name: &str, known: Option<Found>) -> Result<()> {
        let place = match known {
            Some(known) if known.description.adopted || known.description.cinder.is_some() => {
                return Ok(());
            }
            Some(known) => known.place,
            None => self.default_place(name).await?,
        };
        let pool = match self.store.pool(&place).await {
            Err(error) if error.kind() == Kind::NotFound => return Ok(()),
            pool => pool?,
        };
        for pause in 0.. {
            let id = match image_id(&pool, &place.image).await {
                Ok(id) => id,
                Err(error) if error.kind() == Kind::NotFound => break,
                Err(error) => return Err(error),
            };
            match Header::read(&pool, &id).await {
                Ok(_) => return Ok(()),
                // It may be one that is just being made.
                Err(error) if error.kind() == Kind::NotFound && pause < PATIENCE => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) if error.kind() == Kind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        match admin::remove(&pool, &place.image, &mut |_, _| {}).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            removed => removed,
        }
    }

    async fn remove_image(&self, found: &Found) -> Result<()> {
        if found.description.adopted {
            return self.store.disown(found).await;
        }
        if found.description.cinder.is_some() {
            return self.remove_in_cinder(found).await;
        }
        let pool = self.store.pool(&found.place).await?;
        // One whose removal was cut short cannot be opened any more.
        if let Ok(image) = Image::open(&pool, &found.place.image, &OpenOptions::default()).await {
            drop_stale(&image).await;
            image.close().await;
        }
        if goes_to_trash(found) {
            let delay = Duration::from_secs(found.description.options.delete_delay.unwrap_or(0));
            return admin::move_to_trash(&pool, &found.place.image, delay).await;
        }
        let link = match found.description.options.from {
            Some(_) => Header::read(&pool, &found.id).await?.parent,
            None => None,
        };
        admin::remove(&pool, &found.place.image, &mut |_, _| {}).await?;
        match link {
            Some(link) => self.forget_parent(found, &link).await,
            None => Ok(()),
        }
    }
}

/// Whether a volume that is removed can be brought back. One that has no file system yet is nothing to keep.
fn goes_to_trash(found: &Found) -> bool {
    let Description { options, state, .. } = &found.description;
    let wanted = options.trash.unwrap_or_else(|| options.delete_delay.is_some());
    wanted && *state != State::Formatting
}

/// Refuses a volume that is there, but not as it was asked for.
fn compatible(found: &Found, given: &VolumeOptions) -> Result<()> {
    let (name, has) = (&found.name, &found.description);
    let differs = |what: &str, has: &dyn std::fmt::Display| {
        Err(Error::new(Kind::Exists, format!("volume {name} exists, and its {what} is {has}")))
    };
    let own = if has.cinder.is_some() { Backend::Cinder } else { Backend::Rbd };
    let project = has.cinder.as_ref().map(|cinder| cinder.project.as_str());
    match given {
        VolumeOptions { backend: Some(backend), .. } if *backend != own => {
            differs("back end", &own.name())
        }
        VolumeOptions { project_id: Some(id), .. } if project.is_some_and(|has| has != id) => {
            differs("project", &project.unwrap_or_default())
        }
        // Cinder counts in GiB.
        VolumeOptions { size: Some(size), .. }
            if own == Backend::Cinder
                && has.options.size == Some(size.next_multiple_of(1 << 30)) =>
        {
            compatible(found, &VolumeOptions { size: None, ..given.clone() })
        }
        VolumeOptions { size: Some(size), .. }
            if has.options.size.is_some_and(|has| has != *size) =>
        {
            let size = if has.size == 0 { has.options.size } else { Some(has.size) };
            differs("size", &format!("{} bytes", size.unwrap_or_default()))
        }
        VolumeOptions { fstype: Some(fstype), .. } if *fstype != has.fstype => {
            differs("file system", &has.fstype)
        }
        VolumeOptions { from: Some(from), .. } if has.options.from.as_ref() != Some(from) => {
            differs("origin", &has.options.from.as_deref().unwrap_or("nothing"))
        }
        VolumeOptions { pool: Some(pool), .. } if *pool != found.place.pool => {
            differs("pool", &found.place.pool)
        }
        VolumeOptions { namespace: Some(namespace), .. } if *namespace != found.place.namespace => {
            differs("namespace", &format!("{:?}", found.place.namespace))
        }
        VolumeOptions { image: Some(image), .. } if *image != found.place.image => {
            differs("image", &found.place.image)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_what_it_was_asked_for_or_refused() {
        let given =
            |options: &[(&str, &str)]| VolumeOptions::parse(options.iter().copied()).unwrap();
        let found = Found {
            name: "v".to_owned(),
            place: Place::new("rbd", "ns", "v"),
            id: "1".to_owned(),
            description: Description {
                size: 2 << 30,
                options: given(&[("size", "1")]),
                ..Description::default()
            },
            flattening: None,
        };
        for same in [&[][..], &[("size", "1"), ("fstype", "ext4"), ("pool", "rbd")]] {
            compatible(&found, &given(same)).unwrap();
        }
        for (other, word) in [
            (("size", "2"), "its size is 2147483648 bytes"),
            (("fstype", "xfs"), "its file system is ext4"),
            (("pool", "ssd"), "its pool is rbd"),
            (("namespace", ""), "its namespace is \"ns\""),
            (("image", "w"), "its image is v"),
            (("from", "u"), "its origin is nothing"),
            (("backend", "cinder"), "its back end is rbd"),
        ] {
            let error = compatible(&found, &given(&[other])).unwrap_err();
            assert_eq!(error.kind(), Kind::Exists);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

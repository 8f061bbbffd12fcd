//! `trash`: images that are out of sight, to be removed later or to come back.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ceph_native::cluster::Cluster;
use ceph_native::error::{Context as _, Error, Kind, Result};
use ceph_native::image::admin::{self, Details, ParentName, Purged};
use clap::Subcommand;
use proto::rbd::cls::{TrashImage, TrashSource};
use proto::types::UTime;

use crate::list::{parent_spec, parent_tree};
use crate::output::{Format, Side, Tree, local_time, table};
use crate::progress::Progress;
use crate::spec::{IdArgs, ImageArgs, PoolArgs};

/// Trash commands.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Trash {
    /// Moves an image to the trash.
    #[command(name = "mv", visible_alias = "move")]
    Move(Move),
    /// Lists images in the trash.
    #[command(name = "ls", visible_alias = "list")]
    List(List),
    /// Removes an image from the trash for good.
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Remove),
    /// Brings an image back.
    Restore(Restore),
    /// Removes all expired images from the trash.
    Purge(Purge),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Move {
    #[command(flatten)]
    image: ImageArgs,
    /// Until when the image must not be removed: anything that date(1) understands.
    #[arg(long, value_name = "DATE", default_value = "now")]
    expires_at: String,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pool: PoolArgs,
    /// Show images from all sources.
    #[arg(short, long)]
    all: bool,
    /// Show sources, times and parents.
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Remove {
    #[command(flatten)]
    image: IdArgs,
    /// Remove it even before its time.
    #[arg(long)]
    force: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Restore {
    #[command(flatten)]
    id: IdArgs,
    /// A new name.
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Purge {
    #[command(flatten)]
    pool: PoolArgs,
    /// Remove images that expired before: anything that date(1) understands.
    #[arg(long, value_name = "DATE", default_value = "now")]
    expired_before: String,
    /// If the pool's data use more than that part of its space (0 to 1): remove images, expired or not, until they do
    /// not.
    #[arg(long, value_name = "PART", conflicts_with = "expired_before")]
    threshold: Option<f64>,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

impl Trash {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Move(to_trash) => to_trash.run(cluster).await,
            Self::List(list) => list.run(cluster).await,
            Self::Remove(remove) => {
                let (pool, id) = remove.image.open(cluster).await?;
                let progress = Progress::new("Removing image", !remove.no_progress);
                let mut tell = |done, total| progress.set(done, total);
                admin::remove_from_trash(&pool, &id, remove.force, &mut tell).await?;
                progress.finish();
                Ok(())
            }
            Self::Restore(restore) => {
                let (pool, id) = restore.id.open(cluster).await?;
                admin::restore_from_trash(&pool, &id, restore.image.as_deref()).await
            }
            Self::Purge(purge) => {
                let pool = purge.pool.open(cluster).await?;
                let which = match purge.threshold {
                    Some(part) => Purged::Above(part),
                    None => Purged::Expired(UTime::from(date(&purge.expired_before)?)),
                };
                let progress = Progress::new("Removing images", !purge.no_progress);
                let mut tell = |done, total| progress.set(done, total);
                let what = "some expired images could not be removed";
                admin::purge_trash(&pool, which, &mut tell).await.context(what)?;
                progress.finish();
                Ok(())
            }
        }
    }
}

/// A time since 1970 as people say it.
fn date(text: &str) -> Result<Duration> {
    if text == "now" {
        return Ok(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    }
    let wrong = || Error::new(Kind::Invalid, format!("{text:?} is no date"));
    let output = Command::new("date").args(["-d", text, "+%s"]).output().map_err(|error| {
        Error::new(Kind::Invalid, format!("date(1) reads {text:?}")).with_source(error)
    })?;
    let seconds = String::from_utf8_lossy(&output.stdout);
    seconds.trim().parse().map(Duration::from_secs).map_err(|_| wrong())
}

impl Move {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let now = date("now")?;
        let until = date(&self.expires_at)?;
        if until + Duration::from_secs(1) < now {
            let what = "cannot use a date in the past as an expiration date";
            return Err(Error::new(Kind::Invalid, what));
        }
        let pool = spec.open_pool(cluster).await?;
        admin::move_to_trash(&pool, &spec.image, until.saturating_sub(now)).await
    }
}

/// An image in the trash, with what only its header knows.
struct Entry {
    id: String,
    image: TrashImage,
    parent: Option<ParentName>,
}

impl List {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let pool = self.pool.open(cluster).await?;
        let users = [TrashSource::USER, TrashSource::USER_PARENT];
        let mut entries = Vec::new();
        for (id, image) in admin::list_trash(&pool).await? {
            if !self.all && !users.contains(&image.source) {
                continue;
            }
            let mut parent = None;
            if self.long {
                match Details::read(&pool, &id).await {
                    Ok(details) => parent = details.parent,
                    // What is only half there.
                    Err(error) if error.kind() == Kind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            entries.push(Entry { id, image, parent });
        }
        self.format.print(
            "trash",
            || Tree::list("image", entries.iter().map(|entry| entry.tree(self.long))),
            || plain(&entries, self.long),
        )
    }
}

impl Entry {
    fn status(&self) -> String {
        let until = self.image.deferred_until;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match now.as_secs() < u64::from(until.sec) {
            true => format!("protected until {}", local_time(until)),
            false => format!("expired at {}", local_time(until)),
        }
    }

    fn tree(&self, long: bool) -> Tree {
        let mut fields =
            vec![("id", self.id.clone().into()), ("name", self.image.name.clone().into())];
        if long {
            fields.extend([
                ("source", self.image.source.name().into()),
                ("deleted_at", local_time(self.image.deleted).into()),
                ("status", self.status().into()),
            ]);
            if let Some(parent) = &self.parent {
                fields.push(("parent", parent_tree(parent)));
            }
        }
        Tree::Object(fields)
    }
}

fn plain(entries: &[Entry], long: bool) -> String {
    if !long {
        return entries
            .iter()
            .map(|entry| format!("{} {}\n", entry.id, entry.image.name))
            .collect();
    }
    if entries.is_empty() {
        return String::new();
    }
    let columns = ["ID", "NAME", "SOURCE", "DELETED_AT", "STATUS", "PARENT"];
    let columns = columns.map(|name| (name, Side::Left));
    let rows = entries.iter().map(|entry| {
        vec![
            entry.id.clone(),
            entry.image.name.clone(),
            entry.image.source.name().to_owned(),
            local_time(entry.image.deleted),
            entry.status(),
            entry.parent.as_ref().map(parent_spec).unwrap_or_default(),
        ]
    });
    table(&columns, &rows.collect::<Vec<_>>())
}

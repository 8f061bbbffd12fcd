//! `image-meta` and `config`: notes that are kept with an image, and settings among them.

use std::collections::BTreeMap;

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{CONFIG_PREFIX, Notes};
use ceph_native::image::header::image_id;
use ceph_native::image::{Image, Maintenance, OpenOptions};
use ceph_native::pool::Pool;
use clap::Subcommand;

use crate::output::{Format, Side, Tree, print, table};
use crate::snap::maintained;
use crate::spec::{ImageArgs, Spec};

/// Image metadata commands.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum ImageMeta {
    /// Shows the value of a key.
    Get(Key),
    /// Lists keys and values.
    #[command(name = "ls", visible_alias = "list")]
    List(List),
    /// Removes a key and its value.
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Key),
    /// Sets a key to a value.
    Set(KeyValue),
}

/// Commands for settings of pools and images.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Config {
    /// Settings of an image.
    #[command(subcommand)]
    Image(Settings),
    /// Settings of all images of a pool.
    #[command(subcommand)]
    Pool(Settings),
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Settings {
    /// Shows a setting.
    Get(Setting),
    /// Changes a setting.
    Set(SettingValue),
    /// Removes a setting.
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Setting),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    format: Format,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Key {
    #[command(flatten)]
    image: ImageArgs,
    /// The key.
    key: Option<String>,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct KeyValue {
    #[command(flatten)]
    image: ImageArgs,
    /// The key.
    key: Option<String>,
    /// The value.
    value: Option<String>,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Setting {
    /// The pool or image.
    of: String,
    /// The name of the option, as in ceph.conf.
    key: String,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SettingValue {
    #[command(flatten)]
    setting: Setting,
    /// The value.
    value: String,
}

impl ImageMeta {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::List(list) => list.run(cluster).await,
            Self::Get(get) => {
                let (pool, id, words) = named(cluster, &get.image, [get.key, None]).await?;
                let [key] = needed(words, ["metadata key"])?;
                let value = Notes::Image(&id).get(&pool, &key).await?;
                print(&format!("{}\n", String::from_utf8_lossy(&value)))
            }
            Self::Remove(remove) => {
                let (pool, id, words) = named(cluster, &remove.image, [remove.key, None]).await?;
                let [key] = needed(words, ["metadata key"])?;
                Notes::Image(&id).get(&pool, &key).await?;
                update(&pool, &id, key, None).await
            }
            Self::Set(set) => {
                let words = [set.key, set.value];
                let (pool, id, words) = named(cluster, &set.image, words).await?;
                let [key, value] = needed(words, ["metadata key", "metadata value"])?;
                update(&pool, &id, key, Some(value)).await
            }
        }
    }
}

/// Changes or removes a note of an image, whoever has to do that.
async fn update(pool: &Pool, id: &str, key: String, value: Option<String>) -> Result<()> {
    let image = Image::open_by_id(pool, id, &OpenOptions::default()).await?;
    maintained(image, Maintenance::UpdateMetadata { key, value }).await
}

/// The image that is meant, and the words after it: all of them, if options name the image.
async fn named(
    cluster: &Cluster,
    image: &ImageArgs,
    words: [Option<String>; 2],
) -> Result<(Pool, String, Vec<String>)> {
    let (spec, first) = image.spec_and_word()?;
    let pool = spec.open_pool(cluster).await?;
    let id = image_id(&pool, &spec.image).await?;
    Ok((pool, id, first.into_iter().chain(words.into_iter().flatten()).collect()))
}

/// As many words as there are names for them.
fn needed<const N: usize>(words: Vec<String>, names: [&str; N]) -> Result<[String; N]> {
    let missing = names.get(words.len()).copied().unwrap_or("nothing more");
    words.try_into().map_err(|_| Error::new(Kind::Invalid, format!("{missing} was not specified")))
}

impl List {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let id = image_id(&pool, &spec.image).await?;
        let notes = Notes::Image(&id).list(&pool).await?;
        // As `rbd` has it.
        if notes.is_empty() && !self.format.is_plain() {
            return Ok(());
        }
        self.format.print("metadatas", || tree(&notes), || plain(&notes))
    }
}

fn text(value: &Bytes) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn tree(notes: &BTreeMap<String, Bytes>) -> Tree {
    Tree::Map(notes.iter().map(|(key, value)| (key.clone(), text(value).into())).collect())
}

fn plain(notes: &BTreeMap<String, Bytes>) -> String {
    if notes.is_empty() {
        return "There are 0 metadata on this image.\n".to_owned();
    }
    let head = match notes.len() {
        1 => "There is 1 metadatum on this image:\n\n".to_owned(),
        count => format!("There are {count} metadata on this image:\n\n"),
    };
    let rows: Vec<_> = notes.iter().map(|(key, value)| vec![key.clone(), text(value)]).collect();
    head + &table(&[("Key", Side::Left), ("Value", Side::Left)], &rows)
}

impl Config {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (of_pool, settings) = match self {
            Self::Pool(settings) => (true, settings),
            Self::Image(settings) => (false, settings),
        };
        let setting = match &settings {
            Settings::Get(setting) | Settings::Remove(setting) => setting,
            Settings::Set(set) => &set.setting,
        };
        if !setting.key.starts_with("rbd_") {
            let what = format!("{} is no setting of images: not rbd config", setting.key);
            return Err(Error::new(Kind::Invalid, what));
        }
        let key = format!("{CONFIG_PREFIX}{}", setting.key);
        let (pool, id) = match of_pool {
            true => {
                let pool = Spec { pool: Some(setting.of.clone()), ..Spec::default() };
                (pool.open_pool(cluster).await?, None)
            }
            false => {
                let spec = Spec::parse(&setting.of)?.without_snap()?;
                let pool = spec.open_pool(cluster).await?;
                let id = image_id(&pool, &spec.image).await?;
                (pool, Some(id))
            }
        };
        let notes = id.as_deref().map_or(Notes::Pool, Notes::Image);
        match (settings, &id) {
            (Settings::Get(_), _) => {
                let value = notes.get(&pool, &key).await?;
                print(&format!("{}\n", String::from_utf8_lossy(&value)))
            }
            (Settings::Set(set), Some(id)) => update(&pool, id, key, Some(set.value)).await,
            (Settings::Set(set), None) => notes.set(&pool, &key, &set.value).await,
            (Settings::Remove(_), Some(id)) => {
                notes.get(&pool, &key).await?;
                update(&pool, id, key, None).await
            }
            (Settings::Remove(_), None) => notes.remove(&pool, &key).await,
        }
    }
}

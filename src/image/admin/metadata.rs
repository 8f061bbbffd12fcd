//! Notes and settings that are kept with an image or with a pool: names and values.
//!
//! Settings are notes whose names begin with [`CONFIG_PREFIX`]: of these [`crate::image::settings`]
//! applies those that have an effect here.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::rbd::cls::{GetMetadata, ListMetadata, RemoveMetadata, SetMetadata};
use proto::rbd::names;

use super::children::or_none;
use crate::error::{Context as _, Error, Kind, Result};
use crate::pool::Pool;

/// What the names of settings begin with; the rest is the name of an option in `ceph.conf`.
pub const CONFIG_PREFIX: &str = "conf_";

/// Names that are asked for at a time (librbd's `MAX_KEYS`).
const PAGE: u64 = 64;

/// What notes are kept with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notes<'a> {
    /// An image, by its id.
    Image(&'a str),
    /// The pool itself: settings for all its images.
    Pool,
}

impl Notes<'_> {
    fn object(self) -> String {
        match self {
            Self::Image(id) => names::header(id),
            Self::Pool => names::INFO.to_owned(),
        }
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// Whatever keeps them from being read.
    pub async fn list(self, pool: &Pool) -> Result<BTreeMap<String, Bytes>> {
        let object = self.object();
        let mut all = BTreeMap::new();
        loop {
            let after = all.last_key_value().map(|(name, _): (&String, _)| name.clone());
            let page = ListMetadata { after: after.unwrap_or_default(), max: PAGE };
            let page = or_none(pool.call(&object, &page).await)?.unwrap_or_default();
            let last = (page.len() as u64) < PAGE;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none of that name.
    pub async fn get(self, pool: &Pool, name: &str) -> Result<Bytes> {
        let get = GetMetadata { name: name.to_owned() };
        pool.call(&self.object(), &get).await.map_err(|error| match error.kind() {
            Kind::NotFound => Error::new(Kind::NotFound, format!("there is no {name}")),
            _ => error,
        })
    }

    /// Adds or replaces one.
    ///
    /// # Errors
    /// What the OSD answers.
    pub async fn set(self, pool: &Pool, name: &str, value: &str) -> Result<()> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let set = SetMetadata { values: BTreeMap::from([(name.to_owned(), value)]) };
        pool.call(&self.object(), &set).await.context(name).map(drop)
    }

    /// Takes one away.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none of that name.
    pub async fn remove(self, pool: &Pool, name: &str) -> Result<()> {
        self.get(pool, name).await?;
        let remove = RemoveMetadata { name: name.to_owned() };
        pool.call(&self.object(), &remove).await.context(name).map(drop)
    }
}

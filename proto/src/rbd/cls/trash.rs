//! Methods on a pool's `rbd_trash`: images that were moved out of sight, to be removed later or to come back.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use super::{Empty, methods};
use crate::denc::{Decode, Encode, Put, Reader, Result};
use crate::types::UTime;

/// Who moved an image to the trash (`cls::rbd::TrashImageSource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrashSource(pub u8);

impl TrashSource {
    /// A user.
    pub const USER: Self = Self(0);
    /// The mirroring daemon.
    pub const MIRRORING: Self = Self(1);
    /// A migration.
    pub const MIGRATION: Self = Self(2);
    /// Nobody: its removal began.
    pub const REMOVING: Self = Self(3);
    /// A user; it is there because it has clones yet.
    pub const USER_PARENT: Self = Self(4);

    /// The name that `rbd trash ls --long` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::USER => "USER",
            Self::MIRRORING => "MIRRORING",
            Self::MIGRATION => "MIGRATION",
            Self::REMOVING => "REMOVING",
            Self::USER_PARENT => "USER_PARENT",
            _ => "UNKNOWN",
        }
    }
}

/// An image that is simply in the trash.
pub const TRASH_NORMAL: u8 = 0;
/// An image that is being moved there.
pub const TRASH_MOVING: u8 = 1;
/// An image that is being removed for good.
pub const TRASH_REMOVING: u8 = 2;
/// An image that is coming back.
pub const TRASH_RESTORING: u8 = 3;

/// An image in the trash (`cls::rbd::TrashImageSpec`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrashImage {
    /// Who moved it there.
    pub source: TrashSource,
    /// Its name before.
    pub name: String,
    /// When it was moved there.
    pub deleted: UTime,
    /// Until when it is not removed.
    pub deferred_until: UTime,
    /// [`TRASH_NORMAL`] or what is being done.
    pub state: u8,
}

impl Decode for TrashImage {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("TrashImageSpec", 2, |version, r| {
            Ok(Self {
                source: TrashSource(r.u8()?),
                name: r.string()?,
                deleted: r.get()?,
                deferred_until: r.get()?,
                // Nautilus has none yet.
                state: if version >= 2 { r.u8()? } else { TRASH_NORMAL },
            })
        })
    }
}

impl Encode for TrashImage {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(2, 1, |w| {
            w.put_u8(self.source.0);
            w.put_str(&self.name);
            w.put_value(&self.deleted);
            w.put_value(&self.deferred_until);
            w.put_u8(self.state);
        });
    }
}

methods! { "rbd";
    /// Adds an image. `EEXIST` if it is there.
    writes AddToTrash("trash_add") {
        /// Its id.
        id: String,
        /// What is to be known about it.
        image: TrashImage,
    } -> Empty;

    /// Takes an image out. `ENOENT` if it is not there.
    writes RemoveFromTrash("trash_remove") {
        /// Its id.
        id: String,
    } -> Empty;

    /// Images by their ids.
    reads ListTrash("trash_list") {
        /// Ids after this one.
        after: String,
        /// How many, at most.
        max: u64,
    } -> BTreeMap<String, TrashImage>;

    /// What is known about one. `ENOENT` if it is not there.
    reads GetTrash("trash_get") {
        /// Its id.
        id: String,
    } -> TrashImage;

    /// Changes the state of one. `ESTALE` if it is neither what was expected nor what it shall be.
    writes SetTrashState("trash_state_set") {
        /// Its id.
        id: String,
        /// What it shall be.
        state: u8,
        /// What it is.
        expected: u8,
    } -> Empty;
}

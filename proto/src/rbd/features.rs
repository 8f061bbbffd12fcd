//! What an image can do, and what its clients have to know (`src/include/rbd/features.h`,
//! `src/include/rbd/object_map_types.h`).

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Not, Sub};
use std::str::FromStr;

use thiserror::Error;

/// A set of image features.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Features(pub u64);

/// Every feature with the name that `rbd` prints, in the order of their bits.
const NAMES: [(Features, &str); 12] = [
    (Features::LAYERING, "layering"),
    (Features::STRIPING, "striping"),
    (Features::EXCLUSIVE_LOCK, "exclusive-lock"),
    (Features::OBJECT_MAP, "object-map"),
    (Features::FAST_DIFF, "fast-diff"),
    (Features::DEEP_FLATTEN, "deep-flatten"),
    (Features::JOURNALING, "journaling"),
    (Features::DATA_POOL, "data-pool"),
    (Features::OPERATIONS, "operations"),
    (Features::MIGRATING, "migrating"),
    (Features::NON_PRIMARY, "non-primary"),
    (Features::DIRTY_CACHE, "dirty-cache"),
];

impl Features {
    /// The image may be, or may become, a clone.
    pub const LAYERING: Self = Self(1 << 0);
    /// Stripe unit and count are not those of plain objects.
    pub const STRIPING: Self = Self(1 << 1);
    /// One client writes at a time, whoever holds the lock.
    pub const EXCLUSIVE_LOCK: Self = Self(1 << 2);
    /// A bitmap says which objects exist. Who writes without keeping it makes others read zeros.
    pub const OBJECT_MAP: Self = Self(1 << 3);
    /// The bitmap says which objects changed since a snapshot.
    pub const FAST_DIFF: Self = Self(1 << 4);
    /// Flattening also cuts snapshots loose from the parent.
    pub const DEEP_FLATTEN: Self = Self(1 << 5);
    /// Every write goes through a journal.
    pub const JOURNALING: Self = Self(1 << 6);
    /// Data objects are in another pool.
    pub const DATA_POOL: Self = Self(1 << 7);
    /// [`OpFeatures`] apply.
    pub const OPERATIONS: Self = Self(1 << 8);
    /// The image is being moved.
    pub const MIGRATING: Self = Self(1 << 9);
    /// A mirror that is written by its mirroring daemon only.
    pub const NON_PRIMARY: Self = Self(1 << 10);
    /// A cache on some client holds writes that the cluster does not have.
    pub const DIRTY_CACHE: Self = Self(1 << 11);

    /// What Ceph gives a new image by default (61).
    pub const DEFAULT: Self = Self(
        Self::LAYERING.0
            | Self::EXCLUSIVE_LOCK.0
            | Self::OBJECT_MAP.0
            | Self::FAST_DIFF.0
            | Self::DEEP_FLATTEN.0,
    );
    /// Without knowing these, an image must not even be read.
    pub const INCOMPATIBLE: Self =
        Self(Self::LAYERING.0 | Self::STRIPING.0 | Self::DATA_POOL.0 | Self::DIRTY_CACHE.0);
    /// Without knowing these, an image must not be written.
    pub const RW_INCOMPATIBLE: Self = Self(
        Self::INCOMPATIBLE.0
            | Self::EXCLUSIVE_LOCK.0
            | Self::OBJECT_MAP.0
            | Self::FAST_DIFF.0
            | Self::DEEP_FLATTEN.0
            | Self::JOURNALING.0
            | Self::OPERATIONS.0
            | Self::MIGRATING.0
            | Self::NON_PRIMARY.0,
    );
    /// Every feature that has a name here.
    pub const ALL: Self = Self((1 << 12) - 1);
    /// What can be switched on and off later.
    pub const MUTABLE: Self = Self(
        Self::EXCLUSIVE_LOCK.0
            | Self::OBJECT_MAP.0
            | Self::FAST_DIFF.0
            | Self::JOURNALING.0
            | Self::NON_PRIMARY.0
            | Self::DIRTY_CACHE.0,
    );
    /// What can be switched off later, but not on.
    pub const DISABLE_ONLY: Self = Self::DEEP_FLATTEN;
    /// What is set by what an image is made with, never asked for.
    pub const IMPLICIT: Self = Self(
        Self::STRIPING.0
            | Self::DATA_POOL.0
            | Self::FAST_DIFF.0
            | Self::OPERATIONS.0
            | Self::MIGRATING.0
            | Self::NON_PRIMARY.0
            | Self::DIRTY_CACHE.0,
    );
    /// What no user can set or clear.
    pub const INTERNAL: Self = Self(Self::OPERATIONS.0 | Self::MIGRATING.0);

    /// Whether all of `other` are among these.
    pub fn contains(self, other: Self) -> bool {
        self & other == other
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names, in the order of the bits. Unknown bits have none.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.into_iter().filter(move |(feature, _)| self.contains(*feature)).map(|(_, name)| name)
    }

    /// The feature of a name.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.into_iter().find(|(_, known)| *known == name).map(|(feature, _)| feature)
    }
}

impl fmt::Display for Features {
    /// Names with commas between, and what has no name as a number: `layering,striping,0x8000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for name in self.names() {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
        match *self - Self::ALL {
            Self(0) => Ok(()),
            Self(unknown) => write!(f, "{separator}{unknown:#x}"),
        }
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

/// A name that no feature has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("there is no image feature {0:?}")]
pub struct UnknownFeature(pub String);

impl FromStr for Features {
    type Err = UnknownFeature;

    /// From a number, or from names with commas between; from nothing, [`Self::DEFAULT`].
    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::DEFAULT);
        }
        if let Ok(bits) = text.parse::<u64>() {
            // As Ceph does, leave out what nobody can ask for.
            return Ok((Self(bits) & Self::ALL) - Self::INTERNAL);
        }
        text.split(',').map(str::trim).try_fold(Self(0), |all, name| {
            Self::named(name)
                .map(|feature| all | feature)
                .ok_or_else(|| UnknownFeature(name.to_owned()))
        })
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;

    /// Those that are not in `other`.
    fn sub(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl Not for Features {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

/// What else a client has to know to change an image (`RBD_OPERATION_FEATURE_*`), with [`Features::OPERATIONS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpFeatures(pub u64);

impl OpFeatures {
    /// The image is a clone of the second version.
    pub const CLONE_CHILD: Self = Self(1 << 1);

    /// The names that `rbd info` prints.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        ["clone-parent", "clone-child", "group", "snap-trash"]
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, name)| name)
    }
}

/// What is known to be wrong with an image's bitmaps (`RBD_FLAG_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u64);

impl Flags {
    /// The object map must not be believed.
    pub const OBJECT_MAP_INVALID: Self = Self(1 << 0);
    /// Nor what it says about changes.
    pub const FAST_DIFF_INVALID: Self = Self(1 << 1);

    /// The names that `rbd info` prints.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        ["object map invalid", "fast diff invalid"]
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_61() {
        assert_eq!(Features::DEFAULT.0, 61);
        let names: Vec<_> = Features::DEFAULT.names().collect();
        assert_eq!(
            names,
            ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"]
        );
    }

    #[test]
    fn reads_numbers_and_names() {
        assert_eq!("61".parse(), Ok(Features::DEFAULT));
        assert_eq!("".parse(), Ok(Features::DEFAULT));
        assert_eq!("layering, striping".parse(), Ok(Features(3)));
        // OPERATIONS and MIGRATING are left out.
        assert_eq!("769".parse(), Ok(Features(1)));
        let unknown = "layering,lasers".parse::<Features>();
        assert_eq!(unknown, Err(UnknownFeature("lasers".to_owned())));
    }

    #[test]
    fn prints_what_it_does_not_know() {
        assert_eq!(Features(3 | 1 << 40).to_string(), "layering,striping,0x10000000000");
        assert_eq!(Features(1 << 63).to_string(), "0x8000000000000000");
    }

    #[test]
    fn other_names() {
        assert_eq!(OpFeatures(0b1010).names().collect::<Vec<_>>(), ["clone-child", "snap-trash"]);
        let both = Flags(Flags::OBJECT_MAP_INVALID.0 | Flags::FAST_DIFF_INVALID.0);
        assert_eq!(both.names().collect::<Vec<_>>(), ["object map invalid", "fast diff invalid"]);
    }
}

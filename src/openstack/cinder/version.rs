//! Microversions: each call says which it is written for, and the newest that both sides know counts.

use std::fmt;
use std::str::FromStr;

use super::model::Versions;
use crate::error::{Error, Kind, Result};

/// A version of Cinder's API: 3.54.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// What every Cinder that speaks v3 knows.
pub const OLDEST: Version = Version(3, 0);
/// Reasons of failures can be asked for.
pub(super) const MESSAGES: Version = Version(3, 5);
/// A volume can go back to a snapshot.
pub(super) const REVERT: Version = Version(3, 40);
/// A volume in use can be extended.
pub(super) const EXTEND_IN_USE: Version = Version(3, 42);
/// Attachments can be completed: all of that API is there.
pub(super) const ATTACHMENTS: Version = Version(3, 44);
/// Attachments have a mode.
pub(super) const ATTACH_MODE: Version = Version(3, 54);
/// The newest that anything here is written for.
pub(super) const NEWEST: Version = ATTACH_MODE;

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Version {
    type Err = ();

    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self(major.parse().map_err(drop)?, minor.parse().map_err(drop)?))
    }
}

/// The newest version that is known here and to a Cinder that says this about itself.
///
/// # Errors
/// [`Kind::Unsupported`] if there is none.
pub(super) fn negotiate(said: &Versions) -> Result<Version> {
    let v3 = said.versions.iter().find(|one| one.id.starts_with("v3"));
    let Some(v3) = v3 else {
        let there: Vec<_> = said.versions.iter().map(|one| one.id.as_str()).collect();
        let what = format!("this Cinder does not speak v3, but {}", there.join(", "));
        return Err(Error::new(Kind::Unsupported, what));
    };
    // One without microversions says nothing.
    let newest = v3.version.parse().unwrap_or(OLDEST);
    let oldest = v3.min_version.parse().unwrap_or(OLDEST);
    match NEWEST.min(newest) {
        version if version < oldest => {
            let what = format!("this Cinder speaks {oldest} and newer, we up to {NEWEST}");
            Err(Error::new(Kind::Unsupported, what))
        }
        version => Ok(version),
    }
}

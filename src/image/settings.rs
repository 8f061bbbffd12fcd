//! Settings that are kept with a pool or with an image (`rbd config pool|image set`): those of the image count before
//! those of its pool, and these before `ceph.conf` and the monitors' (`librbd/ImageCtx.cc`).
//!
//! They are read when an image is opened, which fails if they cannot be, and whenever its header is read again, which
//! does not. Nobody is told of a change of the pool's: it counts from the next such time on. At a snapshot they stay as
//! they were when it was opened.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::admin::{CONFIG_PREFIX, Notes};
use crate::cluster::read_flags;
use crate::config::ReadFrom;
use crate::error::{Kind, Result};
use crate::pool::Pool;

/// What has an effect here, and what should and has none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    /// Who may answer reads, as flags of operations.
    pub(super) read_flags: Option<u32>,
    /// Limits that nobody keeps: `rbd_qos_…_limit`.
    pub(super) limits: Vec<String>,
}

impl Settings {
    /// Reads them. Whoever may not read those of the pool does without.
    pub(super) async fn read(pool: &Pool, id: &str) -> Result<Self> {
        let mut notes = match Notes::Pool.list(&pool.with_namespace("")).await {
            Err(error) if error.kind() == Kind::PermissionDenied => BTreeMap::new(),
            notes => notes?,
        };
        notes.extend(Notes::Image(id).list(pool).await?);
        Ok(Self::of(&notes))
    }

    /// Says what has no effect.
    pub(super) fn warn(&self, image: &str) {
        if !self.limits.is_empty() {
            let limits = self.limits.join(", ");
            tracing::warn!(image, limits, "these settings of the image have no effect");
        }
    }

    fn of(notes: &BTreeMap<String, Bytes>) -> Self {
        let mut settings = Self::default();
        for (key, value) in notes {
            let Some(key) = key.strip_prefix(CONFIG_PREFIX) else { continue };
            let value = String::from_utf8_lossy(value);
            if key == "rbd_read_from_replica_policy" {
                settings.read_flags = ReadFrom::parse(&value).map(read_flags);
            } else if key.starts_with("rbd_qos_") && key.ends_with("_limit") && value != "0" {
                settings.limits.push(key.to_owned());
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use proto::msg::osd_op::flag;

    use super::*;

    #[test]
    fn settings_are_notes_with_a_prefix() {
        let notes = [
            ("conf_rbd_read_from_replica_policy", "balance"),
            ("conf_rbd_qos_iops_limit", "100"),
            ("conf_rbd_qos_bps_limit", "0"),
            ("rbd_qos_read_iops_limit", "100"),
            ("conf_rbd_cache", "true"),
        ];
        let notes = notes.map(|(key, value)| (key.to_owned(), Bytes::from(value)));
        let settings = Settings::of(&BTreeMap::from(notes));
        assert_eq!(settings.read_flags, Some(flag::BALANCE_READS));
        assert_eq!(settings.limits, ["rbd_qos_iops_limit"]);
    }
}

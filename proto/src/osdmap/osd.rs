//! What a map knows of one OSD.

use bytes::{BufMut, BytesMut};

use crate::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use crate::types::{EntityAddrs, Epoch, Fsid, UTime};

/// States of an OSD (`CEPH_OSD_*`).
pub mod osd_state {
    /// The id is in use.
    pub const EXISTS: u32 = 1 << 0;
    /// It runs.
    pub const UP: u32 = 1 << 1;
    /// It was marked out by a monitor.
    pub const AUTOOUT: u32 = 1 << 2;
    /// It has never been in.
    pub const NEW: u32 = 1 << 3;
    /// Above `full_ratio`.
    pub const FULL: u32 = 1 << 4;
    /// Above `nearfull_ratio`.
    pub const NEARFULL: u32 = 1 << 5;
    /// Above `backfillfull_ratio`.
    pub const BACKFILLFULL: u32 = 1 << 6;
    /// It may be replaced under the same id.
    pub const DESTROYED: u32 = 1 << 7;
    /// It is being stopped.
    pub const STOP: u32 = 1 << 12;
}

/// When an OSD was up and down (`osd_info_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsdInfo {
    /// The last interval that ended in a clean shutdown: its first epoch …
    pub last_clean_begin: Epoch,
    /// … and its last.
    pub last_clean_end: Epoch,
    /// When it came up.
    pub up_from: Epoch,
    /// How long it is known to have been up.
    pub up_thru: Epoch,
    /// When it went down.
    pub down_at: Epoch,
    /// When its data was declared lost.
    pub lost_at: Epoch,
}

/// More about an OSD (`osd_xinfo_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OsdExtra {
    /// When it went down.
    pub down_stamp: UTime,
    /// How likely it is only slow, as a fraction of `u32::MAX`.
    pub laggy_probability: u32,
    /// How slow, in seconds.
    pub laggy_interval: u32,
    /// The features of its messenger.
    pub features: u64,
    /// Its weight before it was marked out.
    pub old_weight: u32,
    /// When its purged snapshots were last checked.
    pub last_purged_snaps_scrub: UTime,
    /// When it was known to be dead.
    pub dead_epoch: Epoch,
}

/// What is known of an OSD beside its state and weight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Osd {
    /// Where clients reach it.
    pub addrs: EntityAddrs,
    /// Where other OSDs reach it.
    pub cluster_addrs: EntityAddrs,
    /// Where its heartbeats go, on the cluster's network …
    pub heartbeat_back_addrs: EntityAddrs,
    /// … and on the public one.
    pub heartbeat_front_addrs: EntityAddrs,
    /// Its identity, across restarts and ids.
    pub uuid: Fsid,
    /// When it was up and down.
    pub info: OsdInfo,
    /// More of it.
    pub extra: OsdExtra,
}

impl Osd {
    /// Whether nothing is known of it.
    pub(super) fn is_blank(&self) -> bool {
        *self == Self::default()
    }
}

impl Decode for OsdInfo {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        let version = r.u8()?;
        if version != 1 {
            return Err(DecodeError::Invalid { what: "osd_info_t version", value: version.into() });
        }
        Ok(Self {
            last_clean_begin: r.get()?,
            last_clean_end: r.get()?,
            up_from: r.get()?,
            up_thru: r.get()?,
            down_at: r.get()?,
            lost_at: r.get()?,
        })
    }
}

impl Encode for OsdInfo {
    fn encode(&self, w: &mut BytesMut) {
        w.put_u8(1);
        w.put_value(&self.last_clean_begin);
        w.put_value(&self.last_clean_end);
        w.put_value(&self.up_from);
        w.put_value(&self.up_thru);
        w.put_value(&self.down_at);
        w.put_value(&self.lost_at);
    }
}

impl Decode for OsdExtra {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        r.envelope("osd_xinfo_t", 4, |version, r| {
            let mut extra = Self {
                down_stamp: r.get()?,
                laggy_probability: r.u32()?,
                laggy_interval: r.u32()?,
                ..Self::default()
            };
            if version >= 2 {
                extra.features = r.u64()?;
            }
            if version >= 3 {
                extra.old_weight = r.u32()?;
            }
            if version >= 4 {
                extra.last_purged_snaps_scrub = r.get()?;
                extra.dead_epoch = r.get()?;
            }
            Ok(extra)
        })
    }
}

impl Encode for OsdExtra {
    fn encode(&self, w: &mut BytesMut) {
        w.put_envelope(4, 1, |w| {
            w.put_value(&self.down_stamp);
            w.put_u32_le(self.laggy_probability);
            w.put_u32_le(self.laggy_interval);
            w.put_u64_le(self.features);
            w.put_u32_le(self.old_weight);
            w.put_value(&self.last_purged_snaps_scrub);
            w.put_value(&self.dead_epoch);
        });
    }
}

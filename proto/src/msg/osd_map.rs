//! `MOSDMap`: OSD maps, full and incremental, still encoded.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::kind;
use crate::denc::{Encode, Put, Reader, Result};
use crate::msgr::{Header, Message, Outgoing};
use crate::types::{Epoch, Fsid};

/// The message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsdMaps {
    /// The cluster.
    pub fsid: Fsid,
    /// Changes: each makes the map of its epoch from the one before.
    pub incremental: BTreeMap<Epoch, Bytes>,
    /// Whole maps.
    pub full: BTreeMap<Epoch, Bytes>,
    /// The oldest epoch that the monitors still have.
    pub oldest: Epoch,
    /// The newest.
    pub newest: Epoch,
}

impl OsdMaps {
    /// Reads the body. The maps are slices of it.
    pub fn decode(message: &Message) -> Result<Self> {
        let front = &message.front;
        let mut r = Reader::new(front, "MOSDMap");
        let fsid = r.get()?;
        let incremental = r.map(8, |r| Ok((r.get()?, front.slice_ref(r.blob()?))))?;
        let full = r.map(8, |r| Ok((r.get()?, front.slice_ref(r.blob()?))))?;
        let (oldest, newest) =
            if message.header.version >= 2 { (r.get()?, r.get()?) } else { Default::default() };
        // Version 4 adds the snapshots removed since `oldest`, which only OSDs use.
        Ok(Self { fsid, incremental, full, oldest, newest })
    }
}

impl Outgoing for OsdMaps {
    fn header(&self) -> Header {
        Header {
            tid: 0,
            kind: kind::OSD_MAP,
            priority: kind::PRIORITY_DEFAULT,
            version: 4,
            compat: 3,
        }
    }

    fn encode_front(&self, w: &mut BytesMut) {
        w.put_value(&self.fsid);
        for maps in [&self.incremental, &self.full] {
            w.put_count(maps.len());
            for (epoch, map) in maps {
                epoch.encode(w);
                w.put_blob(map);
            }
        }
        w.put_value(&self.oldest);
        w.put_value(&self.newest);
        w.put_count(0);
    }
}

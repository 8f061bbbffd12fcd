//! The journal's bytes: records that each carry their length and checksum.

use bytes::{BufMut, Bytes, BytesMut};
use proto::crc::crc32c;
use proto::denc::{Decode, DecodeError, Encode, Put, Reader, Result};
use proto::types::{EVersion, PgId, PoolId, SnapId};
use thiserror::Error;

use super::object::{Entry, Object, ObjectId};
use super::pg::{Answer, ReqId};
use super::{Mutation, Transaction};

/// Bytes before each record: its length and its checksum.
const FRAME_BYTES: usize = 8;

/// A journal that cannot be what was written: not torn, but damaged, or of another program.
#[derive(Debug, Error)]
#[error("record at byte {at} is damaged: {why}")]
pub struct JournalError {
    /// Where the record starts.
    pub at: usize,
    /// What is wrong with it.
    pub why: DecodeError,
}

/// One entry of the journal.
#[derive(Clone, Debug)]
pub enum Record {
    /// A request that changed an object, and its answer.
    Commit(Box<(Transaction, ReqId, Answer)>),
    /// The answer to a request that changed nothing.
    Answer(PgId, ReqId, Answer),
    /// A snapshot that was removed.
    Trim(PoolId, SnapId),
    /// A pool that was removed.
    RemovePool(PoolId),
    /// A whole object.
    Object(PoolId, ObjectId, Box<Entry>),
    /// How far a placement group has come.
    Pg(PgId, EVersion, u64),
}

impl Record {
    /// Appends the record with its length and checksum.
    pub fn append_to(&self, journal: &mut BytesMut) {
        let start = journal.len();
        journal.put_bytes(0, FRAME_BYTES);
        self.encode(journal);
        let crc = crc32c(u32::MAX, &journal[start + FRAME_BYTES..]);
        let len = (journal.len() - start - FRAME_BYTES) as u32;
        journal[start..start + 4].copy_from_slice(&len.to_le_bytes());
        journal[start + 4..start + FRAME_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Hands over each record of a journal and returns how many bytes hold whole ones.
pub(super) fn each(
    journal: &[u8],
    mut record: impl FnMut(Record),
) -> std::result::Result<usize, JournalError> {
    let mut at = 0;
    while let Some((frame, rest)) = journal[at..].split_first_chunk::<FRAME_BYTES>() {
        let [a, b, c, d, e, f, g, h] = *frame;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        let crc = u32::from_le_bytes([e, f, g, h]);
        let Some(body) = rest.get(..len) else { break };
        if crc32c(u32::MAX, body) != crc {
            // The last write may have been torn in the middle; nothing after it was ever acknowledged.
            break;
        }
        record(
            Record::decode(&mut Reader::new(body, "journal record"))
                .map_err(|why| JournalError { at, why })?,
        );
        at += FRAME_BYTES + len;
    }
    Ok(at)
}

impl Encode for Record {
    fn encode(&self, w: &mut BytesMut) {
        match self {
            Self::Commit(commit) => {
                let (transaction, reqid, answer) = &**commit;
                w.put_u8(0);
                w.put_value(&transaction.pg);
                w.put_value(&transaction.object);
                w.put_count(transaction.mutations.len());
                transaction.mutations.iter().for_each(|mutation| w.put_value(mutation));
                w.put_bool(transaction.after.is_some());
                if let Some((info, snapset)) = &transaction.after {
                    w.put_value(info);
                    w.put_value(snapset);
                }
                w.put_value(reqid);
                w.put_value(answer);
            }
            Self::Answer(pg, reqid, answer) => {
                w.put_u8(1);
                w.put_value(pg);
                w.put_value(reqid);
                w.put_value(answer);
            }
            Self::Trim(pool, snap) => {
                w.put_u8(2);
                w.put_value(pool);
                w.put_value(snap);
            }
            Self::RemovePool(pool) => {
                w.put_u8(3);
                w.put_value(pool);
            }
            Self::Object(pool, id, entry) => {
                w.put_u8(4);
                w.put_value(pool);
                w.put_value(id);
                w.put_value(&entry.snapset);
                encode_object(&entry.head, w);
                w.put_count(entry.clones.len());
                for (snap, clone) in &entry.clones {
                    w.put_value(snap);
                    encode_object(clone, w);
                }
            }
            Self::Pg(pg, version, user_version) => {
                w.put_u8(5);
                w.put_value(pg);
                w.put_value(version);
                w.put_u64_le(*user_version);
            }
        }
    }
}

impl Decode for Record {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(match r.u8()? {
            0 => {
                let transaction = Transaction {
                    pg: r.get()?,
                    object: r.get()?,
                    mutations: r.list(1, Mutation::decode)?,
                    after: r.option(|r| Ok((r.get()?, r.get()?)))?,
                };
                Self::Commit(Box::new((transaction, r.get()?, r.get()?)))
            }
            1 => Self::Answer(r.get()?, r.get()?, r.get()?),
            2 => Self::Trim(r.get()?, r.get()?),
            3 => Self::RemovePool(r.get()?),
            4 => {
                let (pool, id) = (r.get()?, r.get()?);
                let snapset = r.get()?;
                let head = decode_object(r)?;
                let clones = r.map(8, |r| Ok((r.get()?, decode_object(r)?)))?;
                Self::Object(pool, id, Box::new(Entry { head, snapset, clones }))
            }
            5 => Self::Pg(r.get()?, r.get()?, r.u64()?),
            kind => {
                return Err(DecodeError::Invalid { what: "journal record", value: kind.into() });
            }
        })
    }
}

fn encode_object(object: &Object, w: &mut BytesMut) {
    w.put_value(&object.info);
    w.put_count(object.xattrs.len());
    for (name, value) in &object.xattrs {
        w.put_str(name);
        w.put_blob(value);
    }
    w.put_blob(&object.omap_header);
    w.put_count(object.omap.len());
    for (key, value) in &object.omap {
        w.put_blob(key);
        w.put_blob(value);
    }
    let mut extents = Vec::new();
    object.data.each(0, u64::MAX, |offset, data| extents.push((offset, data)));
    w.put_count(extents.len());
    for (offset, data) in extents {
        w.put_u64_le(offset);
        w.put_blob(&data);
    }
}

fn decode_object(r: &mut Reader<'_>) -> Result<Object> {
    let blob = |r: &mut Reader<'_>| r.blob().map(Bytes::copy_from_slice);
    let mut object = Object {
        info: r.get()?,
        xattrs: r.map(8, |r| Ok((r.string()?, blob(r)?)))?,
        omap_header: blob(r)?,
        omap: r.map(8, |r| Ok((blob(r)?, blob(r)?)))?,
        ..Default::default()
    };
    for _ in 0..r.count(12)? {
        object.data.write(r.u64()?, r.blob()?);
    }
    Ok(object)
}

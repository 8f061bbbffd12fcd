//! What a placement group remembers besides its objects: its version, and the requests that it has already answered.

use std::collections::{HashMap, VecDeque};

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Decode, Encode, Put, Reader, Result};
use proto::types::{EVersion, EntityName};

/// How many answered requests a placement group remembers (`osd_pg_log_dups_tracked`).
const REMEMBERED: usize = 3000;

/// A request, whoever resends it however often (`osd_reqid_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReqId {
    /// Who asked.
    pub name: EntityName,
    /// Its incarnation.
    pub inc: i32,
    /// Its number for the request.
    pub tid: u64,
}

impl Encode for ReqId {
    fn encode(&self, w: &mut BytesMut) {
        w.put_value(&self.name);
        w.put_i32_le(self.inc);
        w.put_u64_le(self.tid);
    }
}

impl Decode for ReqId {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { name: r.get()?, inc: r.i32()?, tid: r.u64()? })
    }
}

/// How a request was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The result: 0 or more, or a negative errno.
    pub result: i32,
    /// The log entry.
    pub version: EVersion,
    /// The version that clients see.
    pub user_version: u64,
    /// Results and data of the single ops, where the request asked for them to be kept (`RETURNVEC`).
    pub ops: Vec<(i32, Bytes)>,
}

impl Encode for Answer {
    fn encode(&self, w: &mut BytesMut) {
        w.put_i32_le(self.result);
        w.put_value(&self.version);
        w.put_u64_le(self.user_version);
        w.put_count(self.ops.len());
        for (result, data) in &self.ops {
            w.put_i32_le(*result);
            w.put_blob(data);
        }
    }
}

impl Decode for Answer {
    fn decode(r: &mut Reader<'_>) -> Result<Self> {
        Ok(Self {
            result: r.i32()?,
            version: r.get()?,
            user_version: r.u64()?,
            ops: r.list(8, |r| Ok((r.i32()?, Bytes::copy_from_slice(r.blob()?))))?,
        })
    }
}

/// A placement group.
#[derive(Clone, Debug, Default)]
pub struct Pg {
    /// The last log entry.
    pub version: EVersion,
    /// The highest version that clients were shown.
    pub user_version: u64,
    answers: HashMap<ReqId, Answer>,
    order: VecDeque<ReqId>,
}

impl Pg {
    /// How the request was answered, if it was.
    pub fn answered(&self, reqid: &ReqId) -> Option<&Answer> {
        self.answers.get(reqid)
    }

    /// Notes an answer, and forgets the oldest one if there are too many.
    pub fn remember(&mut self, reqid: ReqId, answer: Answer) {
        self.version = self.version.max(answer.version);
        self.user_version = self.user_version.max(answer.user_version);
        if self.answers.insert(reqid, answer).is_none() {
            self.order.push_back(reqid);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    /// All answers, oldest first.
    pub fn answers(&self) -> impl Iterator<Item = (&ReqId, &Answer)> {
        self.order.iter().filter_map(|reqid| self.answers.get_key_value(reqid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::types::{EntityType, Epoch};

    #[test]
    fn the_oldest_answer_is_forgotten_first() {
        let reqid =
            |tid| ReqId { name: EntityName { kind: EntityType::CLIENT, num: 1 }, inc: 0, tid };
        let mut pg = Pg::default();
        for tid in 0..REMEMBERED as u64 + 2 {
            let version = EVersion { epoch: Epoch(1), version: tid };
            pg.remember(reqid(tid), Answer { version, user_version: tid, ..Default::default() });
        }
        assert_eq!(pg.answered(&reqid(0)), None);
        assert_eq!(pg.answered(&reqid(1)), None);
        assert!(pg.answered(&reqid(2)).is_some());
        assert_eq!(pg.user_version, REMEMBERED as u64 + 1);
        assert_eq!(pg.answers().count(), REMEMBERED);
    }
}

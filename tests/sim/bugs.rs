//! Bugs, to be planted one at a time: what a client (or, twice, an OSD) with that bug would say or hear is made of
//! what a right one says or hears, on the way between them. So the checkers are shown to find them, and no line of the
//! client is there for that.

use std::collections::{BTreeMap, BTreeSet};

use devcluster::mon::map::FEATURES;
use devcluster::store::{Pg, Store};
use proto::msg::backoff::{Backoff, BackoffOp};
use proto::msg::kind;
use proto::msg::op::code;
use proto::msg::osd_map::OsdMaps;
use proto::msg::osd_op::{self, Operation, Reply, ReqId, Request, Routing};
use proto::msgr::Message;
use proto::osdmap::Incremental;
use proto::types::{Epoch, PgId, PoolId, Tid};

use crate::network::LineId;
use crate::osds::answer;
use crate::wires::message_of;
use crate::world::Place;

/// One bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// What was sent once is not sent again.
    DropResend,
    /// What was under way is not sent again when its session is lost.
    NoResendOnReset,
    /// Each time it is sent, a request gets another id.
    NewIdOnResend,
    /// Now and then a write gets the id of the one before.
    ReusedId,
    /// A write is taken for done before it is carried out.
    AckBeforeCommit,
    /// The end of a backoff is not heard.
    ForgetUnblock,
    /// A client goes on although the map says that it is fenced.
    IgnoreBlocklist,
    /// Changes of who acts for a group are not heeded, so that requests go to the OSD of before.
    OldPrimary,
    /// Where several maps come together, only the last is looked at.
    SkipMaps,
    /// Two writes that were submitted one after the other are sent in the other order.
    LoseOrder,
    /// Two answers are taken for each other's.
    CrossedReplies,
    /// An OSD that was lost once is not called again.
    NeverRedial,
    /// An OSD does not know after a split what it has carried out before.
    ForgetOnSplit,
}

impl Bug {
    pub(crate) const ALL: [Self; 13] = [
        Self::DropResend,
        Self::NoResendOnReset,
        Self::NewIdOnResend,
        Self::ReusedId,
        Self::AckBeforeCommit,
        Self::ForgetUnblock,
        Self::IgnoreBlocklist,
        Self::OldPrimary,
        Self::SkipMaps,
        Self::LoseOrder,
        Self::CrossedReplies,
        Self::NeverRedial,
        Self::ForgetOnSplit,
    ];
}

/// A bug at work, if any.
pub(crate) struct Planted {
    bug: Option<Bug>,
    sent_on: BTreeMap<ReqId, LineId>,
    last_write: BTreeMap<PgId, ReqId>,
    held: BTreeMap<LineId, Message>,
    dialled: BTreeSet<(usize, Place)>,
    writes: u64,
    pg_num: usize,
}

impl Planted {
    pub(crate) fn new(bug: Option<Bug>) -> Self {
        Self {
            bug,
            sent_on: BTreeMap::new(),
            last_write: BTreeMap::new(),
            held: BTreeMap::new(),
            dialled: BTreeSet::new(),
            writes: 0,
            pg_num: 0,
        }
    }

    /// What becomes of a request on its way to the OSD.
    pub(crate) fn passes_up(&mut self, line: LineId, message: Message) -> Vec<Message> {
        let Some(bug) = self.bug else { return vec![message] };
        let Ok((mut routing, operation)) = osd_op::decode_request(&message) else {
            return vec![message];
        };
        let again = routing.attempt > 0;
        let writes = is_data(&operation) && operation.writes();
        match bug {
            Bug::DropResend if again => Vec::new(),
            Bug::NoResendOnReset => {
                let before = *self.sent_on.entry(routing.reqid).or_insert(line);
                if before == line { vec![message] } else { Vec::new() }
            }
            Bug::NewIdOnResend if again => {
                routing.reqid.tid = Tid(routing.reqid.tid.0 | (routing.attempt as u64) << 60);
                vec![message_of(&Request { routing: &routing, operation: &operation })]
            }
            Bug::ReusedId if writes && !again => {
                self.writes += 1;
                let before = self.last_write.insert(routing.pgid.pg, routing.reqid);
                if let Some(before) = before.filter(|_| self.writes.is_multiple_of(5)) {
                    routing.reqid = before;
                }
                vec![message_of(&Request { routing: &routing, operation: &operation })]
            }
            Bug::LoseOrder => match self.held.remove(&line) {
                Some(before) => vec![message, before],
                None if writes && !again => {
                    self.held.insert(line, message);
                    Vec::new()
                }
                None => vec![message],
            },
            _ => vec![message],
        }
    }

    /// What becomes of a message on its way to the client.
    pub(crate) fn passes_down(&mut self, line: LineId, mut message: Message) -> Vec<Message> {
        match (self.bug, message.header.kind) {
            (Some(Bug::ForgetUnblock), kind::OSD_BACKOFF) => {
                let unblocks = |backoff: &Backoff| backoff.op == BackoffOp::Unblock;
                let unblocks = Backoff::decode(&message).is_ok_and(|backoff| unblocks(&backoff));
                if unblocks { Vec::new() } else { vec![message] }
            }
            (Some(Bug::IgnoreBlocklist), kind::OSD_MAP) => {
                vec![changed_maps(&message, |change, _| change.blocklist.clear())]
            }
            (Some(Bug::OldPrimary), kind::OSD_MAP) => {
                let without = |change: &mut Incremental, _| {
                    change.pg_temp.clear();
                    change.primary_affinity.clear();
                    change.pg_upmap.clear();
                };
                vec![changed_maps(&message, without)]
            }
            (Some(Bug::SkipMaps), kind::OSD_MAP) => {
                let skip = |change: &mut Incremental, last: bool| {
                    if !last {
                        let kept = (change.fsid, change.epoch, change.encode_features);
                        *change = Incremental::default();
                        (change.fsid, change.epoch, change.encode_features) = kept;
                    }
                };
                vec![changed_maps(&message, skip)]
            }
            (Some(Bug::CrossedReplies), kind::OSD_OP_REPLY) if is_read(&message) => {
                match self.held.remove(&line) {
                    None => {
                        self.held.insert(line, message);
                        Vec::new()
                    }
                    Some(mut before) => {
                        std::mem::swap(&mut before.header.tid, &mut message.header.tid);
                        vec![before, message]
                    }
                }
            }
            _ => vec![message],
        }
    }

    /// An answer before its time.
    pub(crate) fn answer_early(&self, routing: &Routing, operation: &Operation) -> Option<Reply> {
        let early = self.bug == Some(Bug::AckBeforeCommit);
        (early && is_data(operation) && operation.writes())
            .then(|| answer(routing, operation, Epoch(1)))
    }

    /// Whether an OSD is not to be reached.
    pub(crate) fn never_answers(&mut self, client: usize, place: Place) -> bool {
        let is_osd = matches!(place, Place::Osd(_));
        self.bug == Some(Bug::NeverRedial) && is_osd && !self.dialled.insert((client, place))
    }

    /// Before the map changes.
    pub(crate) fn before_change(&mut self, groups: usize) {
        self.pg_num = groups;
    }

    /// After it has.
    pub(crate) fn after_change(&self, store: &mut Store, pool: PoolId, groups: usize) {
        if self.bug == Some(Bug::ForgetOnSplit) {
            for seed in self.pg_num as u32..groups as u32 {
                let group = store.pg(PgId { pool, seed });
                let (version, user_version) = (group.version, group.user_version);
                *group = Pg::default();
                (group.version, group.user_version) = (version, user_version);
            }
        }
    }
}

fn is_data(operation: &Operation) -> bool {
    operation.object.starts_with("rbd_data.")
}

fn is_read(message: &Message) -> bool {
    let only = |reply: Reply| reply.ops.iter().all(|op| op.code == code::READ);
    Reply::decode(message).is_ok_and(only)
}

/// A message of maps as one would have it who reads changes otherwise. `change` is also told which is the last.
fn changed_maps(message: &Message, change: impl Fn(&mut Incremental, bool)) -> Message {
    let Ok(mut maps) = OsdMaps::decode(message) else { return message.clone() };
    let last = maps.incremental.last_key_value().map(|(epoch, _)| *epoch);
    for (epoch, bytes) in &mut maps.incremental {
        if let Ok(mut incremental) = Incremental::decode(bytes) {
            change(&mut incremental, Some(*epoch) == last);
            *bytes = incremental.encode(FEATURES);
        }
    }
    message_of(&maps)
}

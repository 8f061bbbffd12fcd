//! What OSDs do with requests before and after devcluster's carry them out: they take their time, back clients off,
//! drop what was sent before their pool was full; and the model is told what they have done.

use bytes::Bytes;
use proto::msg::backoff::{Backoff, BackoffOp};
use proto::msg::kind;
use proto::msg::object::{HObject, SpgId};
use proto::msg::osd_op::{self, Operation, Reply, Routing, flag};
use proto::msgr::Message;
use proto::osdmap::pool_flag;
use proto::types::{Epoch, OsdId, PgId, SnapId};

use crate::network::LineId;
use crate::wires::BackingOff;
use crate::world::{Event, World};

impl World {
    pub(crate) fn request(&mut self, line: LineId, osd: OsdId, message: Message) {
        match message.header.kind {
            kind::OSD_OP => {}
            kind::OSD_BACKOFF => return self.backoff_heard(line, &message),
            _ => return,
        }
        for message in self.planted.passes_up(line, message) {
            let Ok((routing, operation)) = osd_op::decode_request(&message) else { continue };
            if self.backs_off(line, &routing, &operation) {
                continue;
            }
            self.note(format_args!(
                "{line:?} asks osd.{osd}: {} attempt {} of {} {:?} in {}",
                routing.tid,
                routing.attempt,
                operation.object,
                kinds(&operation),
                routing.pgid.pg
            ));
            let now = self.millis();
            let takes = self.osds.get(&osd).map_or(1, |osd| osd.takes);
            let takes = self.random.within(1..takes.max(2));
            let Some(state) = self.osds.get_mut(&osd) else { continue };
            let Some(server) = self.servers.get_mut(&line) else { continue };
            server.waiting += 1;
            // One after the other, as a PG does.
            state.busy = state.busy.max(now) + takes;
            let (after, instance) = (state.busy - now, state.instance);
            if let Some(answer) = self.planted.answer_early(&routing, &operation) {
                let conn = server.conn;
                self.say(conn, &answer);
            }
            let message = Box::new(message);
            self.after(after, Event::Execute { line, osd, instance, message });
        }
    }

    /// Whether the OSD asks the client to hold this back, or has done so.
    fn backs_off(&mut self, line: LineId, routing: &Routing, operation: &Operation) -> bool {
        let pgid = routing.pgid;
        let Some(server) = self.servers.get_mut(&line) else { return false };
        let object = HObject {
            name: operation.object.clone(),
            key: operation.locator.key.clone(),
            hash: routing.hash,
            namespace: operation.locator.namespace.clone(),
            pool: pgid.pg.pool.0,
            snap: SnapId::HEAD,
            max: false,
        };
        if server.backoffs.get(&pgid).is_some_and(|told| told.backoff.covers(&object)) {
            return true;
        }
        if !self.faults.backed_off.contains(&pgid.pg) || server.backoffs.contains_key(&pgid) {
            return false;
        }
        self.last_backoff += 1;
        let id = self.last_backoff;
        let (begin, end) = match self.random.one_in(2) {
            true => (object.clone(), object),
            false => (HObject::min(), HObject::max()),
        };
        let epoch = self.cluster.monitor.map.view.epoch;
        let backoff = Backoff { pgid, epoch, op: BackoffOp::Block, id, begin, end };
        let told = BackingOff { backoff: backoff.clone(), heard: false, over: false };
        server.backoffs.insert(pgid, told);
        let conn = server.conn;
        self.note(format_args!("{line:?} is backed off from {}", pgid.pg));
        self.say(conn, &backoff);
        true
    }

    /// A placement group ends its backoffs.
    pub(crate) fn unblock(&mut self, pg: PgId) {
        let pgid = SpgId { pg, shard: SpgId::NO_SHARD };
        let mut lines = Vec::new();
        for (line, server) in &mut self.servers {
            if let Some(told) = server.backoffs.get_mut(&pgid) {
                told.over = true;
                lines.push(*line);
            }
        }
        for line in lines {
            self.release(line, pgid);
        }
    }

    /// A client has heard that it is to hold back (`Session::ack_backoff`).
    fn backoff_heard(&mut self, line: LineId, message: &Message) {
        let Ok(heard) = Backoff::decode(message) else { return };
        let told = self.servers.get_mut(&line).and_then(|s| s.backoffs.get_mut(&heard.pgid));
        if let Some(told) = told.filter(|told| told.backoff.id == heard.id) {
            told.heard = true;
            self.release(line, heard.pgid);
        }
    }

    /// Ends a backoff that is over and that the client has heard of.
    fn release(&mut self, line: LineId, pgid: SpgId) {
        let Some(server) = self.servers.get_mut(&line) else { return };
        if !server.backoffs.get(&pgid).is_some_and(|told| told.heard && told.over) {
            return;
        }
        let conn = server.conn;
        if let Some(told) = server.backoffs.remove(&pgid) {
            self.say(conn, &Backoff { op: BackoffOp::Unblock, ..told.backoff });
        }
    }

    pub(crate) fn execute(&mut self, line: LineId, osd: OsdId, instance: u32, message: &Message) {
        let Some(server) = self.servers.get_mut(&line).filter(|server| server.waiting > 0) else {
            return;
        };
        if !self.osds.get(&osd).is_some_and(|state| state.runs && state.instance == instance) {
            return;
        }
        server.waiting -= 1;
        let (conn, client, over) = (server.conn, server.client, server.gone && server.waiting == 0);
        if let Ok((routing, operation)) = osd_op::decode_request(message)
            && !self.drops_for_space(&routing)
        {
            let pg = routing.pgid.pg;
            let before = self.cluster.store.pg(pg).version;
            let now = self.now();
            self.cluster.handle_message(now, conn, message);
            if self.cluster.store.pg(pg).version != before {
                self.carried_out(client, &routing, &operation);
            }
            self.settle();
        }
        if over {
            self.forget(line);
        }
    }

    fn carried_out(&mut self, client: usize, routing: &Routing, operation: &Operation) {
        self.note(format_args!("client {client}: {} of {} is done", routing.tid, operation.object));
        if let Some(model) = &self.model {
            model.borrow_mut().applied(client, routing.reqid, operation);
        }
    }

    /// An OSD drops writes without a word that were sent before the pool was full, also when there is space again: so
    /// none overtakes another (`PrimaryLogPG::do_op`).
    fn drops_for_space(&self, routing: &Routing) -> bool {
        let pool = self.cluster.monitor.map.map().pool(routing.pgid.pg.pool);
        let full = pool.is_some_and(|pool| pool.has(pool_flag::FULL));
        (full || routing.epoch < self.faults.marked_full)
            && routing.flags & flag::WRITE != 0
            && routing.flags & (flag::FULL_TRY | flag::FULL_FORCE) == 0
    }
}

pub(crate) fn kinds(operation: &Operation) -> Vec<u16> {
    operation.ops.iter().map(|op| op.op.code()).collect()
}

/// An answer that an OSD would give.
pub(crate) fn answer(routing: &Routing, operation: &Operation, epoch: Epoch) -> Reply {
    Reply {
        tid: routing.tid,
        object: Bytes::copy_from_slice(operation.object.as_bytes()),
        pgid: routing.pgid.pg,
        flags: routing.flags | flag::ONDISK,
        result: 0,
        epoch,
        attempt: routing.attempt,
        version: Default::default(),
        user_version: 0,
        ops: Vec::new(),
        redirect: None,
    }
}

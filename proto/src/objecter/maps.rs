//! What new OSD maps mean for the operations in the table (`Objecter::handle_osd_map`, `_scan_requests`).

use std::collections::BTreeSet;

use thiserror::Error;

use super::placement::{Placement, Reader, respects_full};
use super::{Action, InFlight, Objecter, OpError, Place, reader};
use crate::denc::DecodeError;
use crate::msg::osd_map::OsdMaps;
use crate::msg::osd_op::Operation;
use crate::osdmap::{ApplyError, Incremental, OsdMap};
use crate::types::{Epoch, Fsid, Instant, OsdId, PoolId};

/// Why a message of OSD maps could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MapError {
    /// A map that cannot be decoded.
    #[error("OSD map {epoch}: {source}")]
    Decode {
        /// The map's epoch.
        epoch: Epoch,
        /// Why.
        source: DecodeError,
    },
    /// A change that does not fit the map it is for.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A map that is not the one it was said to be.
    #[error("OSD map {said} turned out to be OSD map {is} of cluster {fsid}")]
    Mistaken {
        /// The epoch that was announced.
        said: Epoch,
        /// The epoch in the map.
        is: Epoch,
        /// The cluster in the map.
        fsid: Fsid,
    },
}

impl<T> Objecter<T> {
    /// New maps from a monitor or an OSD. Every epoch is looked at: an OSD drops what it was doing for us whenever the
    /// set of OSDs that serve a PG changes, even if it changes back. Says whether anything was new.
    ///
    /// # Errors
    /// A map that is of no use. The one in use is still good; a full one has to be asked for.
    pub fn handle_maps(&mut self, now: Instant, maps: &OsdMaps) -> Result<bool, MapError> {
        self.map_wanted = false;
        let before = self.epoch();
        self.apply(now, maps)?;
        let epoch = self.epoch();
        self.newest = self.newest.max(maps.newest).max(epoch);
        // As long as somebody waits for an OSD that cannot be reached, the next map may say where else to go.
        let waits = self.ops.iter().any(|(_, op)| match op.place {
            Place::Held => true,
            Place::Queued => self.is_unreachable(op.location.primary),
            Place::Sent => false,
        });
        // Nobody waits for space where writes fail at once, and reads may not tell of newer maps.
        let full = self.abort_on_full
            && self.placement.as_ref().is_some_and(|placement| !placement.full_pools().is_empty());
        if epoch < maps.newest || waits || full {
            self.want_map();
        }
        Ok(epoch > before)
    }

    /// The monitors' newest epoch, as asked for with [`Action::WantNewestEpoch`]: operations on pools that are not in
    /// that map either end.
    pub fn handle_newest_epoch(&mut self, now: Instant, newest: Epoch) {
        self.asked_newest = false;
        self.newest = self.newest.max(newest);
        self.end_without_pool(now);
        if self.epoch() < newest {
            self.want_map();
        }
    }

    fn is_unreachable(&self, osd: Option<OsdId>) -> bool {
        osd.and_then(|osd| self.sessions.get(&osd)).is_some_and(|session| session.lost)
    }

    /// The epoch of the map in use; 0 if there is none.
    pub(super) fn epoch(&self) -> Epoch {
        self.map().map_or(Epoch(0), |map| map.epoch)
    }

    pub(super) fn want_map(&mut self) {
        if self.map_wanted {
            return;
        }
        self.map_wanted = true;
        let start = self.map().map_or(Epoch(0), |map| Epoch(map.epoch.0.saturating_add(1)));
        self.actions.push_back(Action::WantMap { start });
    }

    /// Applies what can be applied, one epoch at a time.
    fn apply(&mut self, now: Instant, maps: &OsdMaps) -> Result<(), MapError> {
        let decode = |epoch, source| MapError::Decode { epoch, source };
        // Each turn makes the epoch larger, whatever the maps say.
        while let Some(next) = self.epoch().0.checked_add(1).map(Epoch) {
            if let Some(placement) = &mut self.placement
                && let Some(incremental) = maps.incremental.get(&next)
            {
                let incremental =
                    Incremental::decode(incremental).map_err(|error| decode(next, error))?;
                let full = placement.full_pools();
                placement.apply(&incremental)?;
                self.rescan(now, false, &full);
                continue;
            }
            // A full map: the next one, or, where there is a gap, the oldest that is newer than ours.
            let ours = self.map();
            let newer = match ours {
                Some(_) => maps.full.range(next..).next(),
                None => maps.full.iter().next_back(),
            };
            let Some((&epoch, bytes)) = newer else { return Ok(()) };
            let map = OsdMap::decode(bytes).map_err(|error| decode(epoch, error))?;
            if map.epoch != epoch || ours.is_some_and(|ours| ours.fsid != map.fsid) {
                return Err(MapError::Mistaken { said: epoch, is: map.epoch, fsid: map.fsid });
            }
            let skipped = ours.is_some() && epoch != next;
            let full = self.placement.as_ref().map(Placement::full_pools).unwrap_or_default();
            self.placement = Some(Placement::new(map, self.near.clone()));
            self.rescan(now, skipped, &full);
        }
        Ok(())
    }

    /// After a change of the map: finds every operation's place again. Where epochs were skipped, the set of OSDs may
    /// have changed and changed back, so everything is sent again. `was_full` are the pools that were full before.
    fn rescan(&mut self, now: Instant, skipped: bool, was_full: &BTreeSet<PoolId>) {
        self.stats.maps += 1;
        self.check_fenced(now);
        self.abort_full(now);
        let dead = self.close_dead_sessions();
        self.renew_watches(now, |this, location, locator, object| {
            let locate = |placement: &Placement| placement.locate(locator, object, Reader::Primary);
            skipped
                || location.primary.is_some_and(|osd| dead.contains(&osd))
                || this.placement.as_ref().and_then(locate) != Some(*location)
        });
        let mut moved: Vec<_> = self
            .ops
            .iter()
            .filter(|(_, op)| skipped || !self.stays(op, was_full))
            .map(|(_, op)| op.routing.tid)
            .collect();
        moved.sort_unstable();
        self.forget_queued(&moved);
        for tid in moved {
            self.route(now, tid);
        }
        self.end_without_pool(now);
    }

    /// Whether nothing has changed for an operation. `was_full` are the pools that were full before.
    fn stays(&self, op: &InFlight<T>, was_full: &BTreeSet<PoolId>) -> bool {
        let Some(placement) = &self.placement else { return true };
        let Operation { locator, object, .. } = &op.operation;
        // An OSD drops writes that were sent before it learnt that the pool was full, without a word.
        let dropped = was_full.contains(&locator.pool) && respects_full(op.routing.flags);
        op.place != Place::Held
            && placement.locate(locator, object, reader(&op.routing)) == Some(op.location)
            && match op.place {
                Place::Sent => !dropped || placement.is_full(locator.pool),
                _ => !placement.paused(op.routing.flags, locator.pool),
            }
    }

    /// Once fenced, always fenced: even if the blocklist forgets this client, whoever took over must not find writes of
    /// an earlier time among theirs.
    pub(super) fn check_fenced(&mut self, now: Instant) {
        if self.fenced || self.map().is_some_and(|map| map.is_blocklisted(&self.our_addrs)) {
            self.fence(now);
        }
    }

    /// Ends everything. What is in the send buffers of connections goes with them: not a byte leaves any more.
    pub(super) fn fence(&mut self, now: Instant) {
        self.fenced = true;
        for (osd, _) in std::mem::take(&mut self.sessions) {
            self.actions.push_back(Action::Close { osd });
        }
        self.to_send.clear();
        self.end(now, |_| Some(OpError::Blocklisted));
        self.lose_watches(OpError::Blocklisted);
    }

    /// Where writes are not to wait for space, ends those that would, and those that the OSD may have dropped.
    fn abort_full(&mut self, now: Instant) {
        let Some(placement) = self.placement.as_ref().filter(|_| self.abort_on_full) else {
            return;
        };
        let full = placement.full_pools();
        if !full.is_empty() {
            self.end(now, |op| {
                let pool = op.operation.locator.pool;
                (respects_full(op.routing.flags) && full.contains(&pool))
                    .then_some(OpError::Full(pool))
            });
        }
    }

    /// Leaves OSDs that are gone, and names them.
    fn close_dead_sessions(&mut self) -> Vec<OsdId> {
        let Some(placement) = &self.placement else { return Vec::new() };
        let dead: Vec<OsdId> = self
            .sessions
            .iter()
            .filter(|(osd, session)| placement.addr(**osd) != Some(session.addr))
            .map(|(osd, _)| *osd)
            .collect();
        for osd in &dead {
            self.sessions.remove(osd);
            self.actions.push_back(Action::Close { osd: *osd });
            // Its operations must not be taken for sent: even if the OSD came back under a new address, it is a new
            // instance that has not seen them.
            for (_, op) in &mut self.ops {
                if op.location.primary == Some(*osd) {
                    op.place = Place::Held;
                }
            }
        }
        dead
    }

    /// Ends operations on pools that the newest map does not have.
    fn end_without_pool(&mut self, now: Instant) {
        let Some(placement) = &self.placement else { return };
        if self.asked_newest || placement.map().epoch < self.newest {
            return;
        }
        let gone: BTreeSet<_> = self
            .ops
            .iter()
            .map(|(_, op)| op.operation.locator.pool)
            .filter(|pool| placement.map().pool(*pool).is_none())
            .collect();
        if !gone.is_empty() {
            self.end(now, |op| {
                let pool = op.operation.locator.pool;
                gone.contains(&pool).then_some(OpError::NoPool(pool))
            });
        }
    }
}

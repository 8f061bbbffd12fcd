//! What goes wrong, one thing after another, until it is calm; then everything is put right.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use proto::osdmap::{Pool, WEIGHT_ONE, map_flag, pool_flag};
use proto::types::{EntityAddr, EntityAddrs, Epoch, OsdId, PgId};

use crate::network::{End, LineId};
use crate::world::{Event, MONS, Millis, OSDS, Place, World};

/// OSDs that are dead at a time, at most.
const DEAD: usize = 2;

/// Placement groups of the pool, at least and at most.
const PGS: std::ops::RangeInclusive<u32> = 2..=32;

/// The present state of things.
#[derive(Default)]
pub(crate) struct Faults {
    pub(crate) active: bool,
    /// Who does not reach whom: what is sent vanishes.
    pub(crate) cut_off: BTreeSet<(usize, Place)>,
    pub(crate) backed_off: BTreeSet<PgId>,
    /// The map in which the pool was last marked full.
    pub(crate) marked_full: Epoch,
    mons_out: BTreeSet<usize>,
}

/// What ends a fault.
#[derive(Debug)]
pub(crate) enum Undo {
    Start(OsdId),
    /// The monitors have noticed that this instance is dead.
    MarkDown(OsdId, u32),
    /// An OSD that was taken for dead says that it is not.
    MarkUp(OsdId, u32),
    In(OsdId),
    Hurry(OsdId),
    Join(usize),
    Reach(usize, Place),
    Unpause,
    Space,
    Unblock(PgId),
}

impl World {
    /// Lets things go wrong from now on.
    pub(crate) fn break_things(&mut self) {
        self.faults.active = true;
        self.after(1, Event::Fault);
    }

    /// Puts everything right, at once.
    pub(crate) fn calm(&mut self) {
        self.note(format_args!("calm"));
        self.faults.active = false;
        self.faults.mons_out.clear();
        self.faults.cut_off.clear();
        self.undo(Undo::Unpause);
        self.undo(Undo::Space);
        for pg in std::mem::take(&mut self.faults.backed_off) {
            self.unblock(pg);
        }
        for osd in (0..OSDS as i32).map(OsdId) {
            self.undo(Undo::Start(osd));
            self.undo(Undo::In(osd));
            self.undo(Undo::Hurry(osd));
            let instance = self.osds[&osd].instance;
            self.undo(Undo::MarkUp(osd, instance));
        }
    }

    pub(crate) fn mon_works(&self, rank: usize) -> bool {
        // Without a majority none does.
        !self.faults.mons_out.contains(&rank) && self.faults.mons_out.len() * 2 < MONS
    }

    /// The next thing goes wrong.
    pub(crate) fn fault(&mut self) {
        if !self.faults.active {
            return;
        }
        let next = match self.random.one_in(4) {
            true => self.random.within(1..100),
            false => self.random.within(100..5000),
        };
        self.after(next, Event::Fault);
        let lasts = self.random.within(10..15_000);
        let osd = OsdId(self.random.within(0..u64::from(OSDS)) as i32);
        match self.random.within(0..26) {
            0..3 => self.cut_some(),
            3 => self.hold_some(lasts),
            4 => self.lose_one(),
            5 => self.trickle_one(lasts),
            6 => self.cut_off(lasts.saturating_mul(3)),
            7..10 => self.kill(osd, lasts),
            10 => self.slow_down(osd, lasts),
            11 => self.mark_down(osd, lasts),
            12 => self.mark_out(osd, lasts),
            13..16 => self.move_group(osd),
            16 => self.resize_pool(),
            17 => self.change_pool("resend", |pool, epoch| pool.last_force_op_resend = epoch),
            18 => self.pause(lasts),
            19 => self.fill_up(lasts),
            20..22 => self.back_off(lasts),
            22 => self.lose_mon(lasts),
            23 => self.lose_quorum(lasts),
            24 => self.forget_maps(),
            _ => self.wipe_tickets(),
        }
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Start(osd) if !self.osds[&osd].runs => self.start_osd(osd),
            Undo::MarkDown(osd, instance) if self.is_dead(osd, instance) => {
                if let Some(change) = self.cluster.monitor.map.osd_down(osd) {
                    self.commit(change);
                }
            }
            Undo::MarkUp(osd, instance)
                if self.osds[&osd].runs
                    && self.osds[&osd].instance == instance
                    && !self.cluster.monitor.map.map().is_up(osd) =>
            {
                let addr = self.osd_addr(osd);
                let change = self.cluster.monitor.map.osd_up(osd, addr);
                self.commit(change);
            }
            Undo::Start(_) | Undo::MarkDown(..) | Undo::MarkUp(..) => {}
            Undo::In(osd) => {
                if self.cluster.monitor.map.map().weight(osd) != Some(WEIGHT_ONE) {
                    let change = self.cluster.monitor.map.osd_in(osd, true);
                    self.commit(change);
                }
            }
            Undo::Hurry(osd) => self.osds.entry(osd).or_default().takes = 10,
            Undo::Join(rank) => drop(self.faults.mons_out.remove(&rank)),
            Undo::Reach(client, place) => drop(self.faults.cut_off.remove(&(client, place))),
            Undo::Unpause => self.set_flags(0),
            Undo::Space => self.set_full(false),
            Undo::Unblock(pg) => {
                if self.faults.backed_off.remove(&pg) {
                    self.unblock(pg);
                }
            }
        }
    }

    fn is_dead(&self, osd: OsdId, instance: u32) -> bool {
        let state = &self.osds[&osd];
        !state.runs && state.instance == instance
    }

    fn some_line(&mut self) -> Option<LineId> {
        let lines: Vec<_> = self.servers.keys().copied().collect();
        self.random.pick(&lines).copied()
    }

    fn some_group(&mut self) -> PgId {
        let pg_num = self.cluster.monitor.map.map().pool(self.pool).map_or(1, |pool| pool.pg_num);
        PgId { pool: self.pool, seed: self.random.within(0..pg_num.into()) as u32 }
    }

    /// Cuts one connection, or all of a daemon. One side may learn of it long before the other.
    fn cut_some(&mut self) {
        let Some(line) = self.some_line() else { return };
        let place = self.servers[&line].place;
        let all = self.random.one_in(4);
        let lines: Vec<_> = (self.servers.iter())
            .filter(|(id, server)| **id == line || all && server.place == place)
            .map(|(id, _)| *id)
            .collect();
        self.note(format_args!("cut {lines:?}"));
        for line in lines {
            let (client, server) = match self.random.within(0..3) {
                0 => (1, 1),
                1 => (1, self.random.within(1..3000)),
                _ => (self.random.within(1..3000), 1),
            };
            self.after(client, Event::Over(line, End::Reset));
            self.after(server, Event::Gone(line));
        }
    }

    /// A peer stops reading, or what it says takes long, or both.
    fn hold_some(&mut self, lasts: Millis) {
        let until = self.millis() + lasts;
        let which = self.random.within(1..4);
        let Some(line) = self.some_line() else { return };
        self.note(format_args!("hold {line:?}"));
        let server = self.servers.get_mut(&line).unwrap();
        if which & 1 != 0 {
            server.up.held = until;
        }
        if which & 2 != 0 {
            server.down.held = until;
        }
    }

    /// Half-open: nothing gets through, one way or both, and nobody is told.
    fn lose_one(&mut self) {
        let which = self.random.within(1..4);
        let Some(line) = self.some_line() else { return };
        self.note(format_args!("lose {line:?}"));
        let server = self.servers.get_mut(&line).unwrap();
        server.up.lost |= which & 1 != 0;
        server.down.lost |= which & 2 != 0;
    }

    /// A byte a second.
    fn trickle_one(&mut self, lasts: Millis) {
        let until = self.millis() + lasts;
        let Some(line) = self.some_line() else { return };
        self.note(format_args!("trickle {line:?}"));
        let server = self.servers.get_mut(&line).unwrap();
        server.down.trickles = until;
        server.up.trickles = until;
    }

    /// A client and a daemon do not reach each other for some time. Connections survive that or not.
    fn cut_off(&mut self, lasts: Millis) {
        let until = self.millis() + lasts;
        let Some(line) = self.some_line() else { return };
        let (client, place) = (self.servers[&line].client, self.servers[&line].place);
        self.note(format_args!("client {client} is cut off from {place:?}"));
        let dies = self.random.one_in(2);
        for server in self.servers.values_mut().filter(|s| (s.client, s.place) == (client, place)) {
            for way in [&mut server.up, &mut server.down] {
                way.held = until;
                way.lost |= dies;
            }
        }
        self.faults.cut_off.insert((client, place));
        self.after(lasts, Event::Undo(Undo::Reach(client, place)));
    }

    fn kill(&mut self, osd: OsdId, lasts: Millis) {
        let dead = self.osds.values().filter(|osd| !osd.runs).count();
        if !self.osds[&osd].runs || dead >= DEAD {
            return;
        }
        let silently = self.random.one_in(4);
        let instance = self.osds[&osd].instance;
        self.stop_osd(osd, silently);
        let noticed = self.random.within(1..10_000);
        self.after(noticed, Event::Undo(Undo::MarkDown(osd, instance)));
        self.after(lasts, Event::Undo(Undo::Start(osd)));
    }

    fn slow_down(&mut self, osd: OsdId, lasts: Millis) {
        self.note(format_args!("osd.{osd} is slow"));
        let takes = self.random.within(100..2000);
        self.osds.entry(osd).or_default().takes = takes;
        self.after(lasts, Event::Undo(Undo::Hurry(osd)));
    }

    /// An OSD that runs is taken for dead.
    fn mark_down(&mut self, osd: OsdId, lasts: Millis) {
        let instance = self.osds[&osd].instance;
        if let Some(change) = self.cluster.monitor.map.osd_down(osd) {
            self.note(format_args!("osd.{osd} is taken for dead"));
            self.commit(change);
            self.after(lasts, Event::Undo(Undo::MarkUp(osd, instance)));
        }
    }

    fn mark_out(&mut self, osd: OsdId, lasts: Millis) {
        self.note(format_args!("osd.{osd} is out"));
        let change = self.cluster.monitor.map.osd_in(osd, false);
        self.commit(change);
        self.after(lasts, Event::Undo(Undo::In(osd)));
    }

    /// A placement group gets other OSDs, or another first one.
    fn move_group(&mut self, osd: OsdId) {
        let pg = self.some_group();
        let other = OsdId((osd.0 + 1) % OSDS as i32);
        let mut change = self.cluster.monitor.map.change();
        match self.random.within(0..4) {
            0 => drop(change.pg_temp.insert(pg, vec![osd, other])),
            1 => drop(change.pg_temp.insert(pg, Vec::new())),
            2 => drop(change.pg_upmap.insert(pg, vec![osd, other])),
            _ => {
                let affinity = self.random.within(0..3) as u32 * (WEIGHT_ONE / 2);
                change.primary_affinity.insert(osd, affinity);
            }
        }
        self.note(format_args!("{pg} moves"));
        self.commit(change);
        if self.random.one_in(3) {
            // And another one, before anybody has seen the first.
            self.move_group(other);
        }
    }

    fn resize_pool(&mut self) {
        let more = self.random.within(0..3) > 0;
        self.change_pool("resize", |pool, _| {
            let pg_num = if more { pool.pg_num * 2 } else { pool.pg_num / 2 };
            if PGS.contains(&pg_num) {
                pool.pg_num = pg_num;
                pool.pg_num_pending = pg_num;
                pool.pg_num_target = pg_num;
                pool.pgp_num = pg_num;
                pool.pgp_num_target = pg_num;
            }
        });
    }

    fn change_pool(&mut self, what: &str, change: impl FnOnce(&mut Pool, Epoch)) {
        let epoch = self.cluster.monitor.map.change().epoch;
        let set = |pool: &mut Pool| change(pool, epoch);
        if let Some(change) = self.cluster.monitor.map.change_pool(self.pool, set) {
            self.note(format_args!("{what}"));
            self.commit(change);
        }
    }

    fn pause(&mut self, lasts: Millis) {
        let flags = [map_flag::PAUSERD, map_flag::PAUSEWR, map_flag::PAUSERD | map_flag::PAUSEWR];
        let flags = flags[self.random.within(0..3) as usize];
        self.set_flags(flags);
        self.after(lasts, Event::Undo(Undo::Unpause));
    }

    fn set_flags(&mut self, pauses: u32) {
        let before = self.cluster.monitor.map.map().flags;
        let after = before & !(map_flag::PAUSERD | map_flag::PAUSEWR) | pauses;
        if before != after {
            self.note(format_args!("flags {after:x}"));
            let mut change = self.cluster.monitor.map.change();
            change.flags = Some(after);
            self.commit(change);
        }
    }

    fn fill_up(&mut self, lasts: Millis) {
        self.set_full(true);
        self.after(lasts, Event::Undo(Undo::Space));
    }

    fn set_full(&mut self, full: bool) {
        let map = self.cluster.monitor.map.map();
        if map.pool(self.pool).is_some_and(|pool| pool.has(pool_flag::FULL) != full) {
            if full {
                self.faults.marked_full = self.cluster.monitor.map.change().epoch;
            }
            self.change_pool(if full { "full" } else { "space" }, |pool, _| {
                pool.flags ^= pool_flag::FULL;
            });
        }
    }

    fn back_off(&mut self, lasts: Millis) {
        let pg = self.some_group();
        self.faults.backed_off.insert(pg);
        self.after(lasts, Event::Undo(Undo::Unblock(pg)));
    }

    fn lose_mon(&mut self, lasts: Millis) {
        let rank = self.random.within(0..MONS as u64) as usize;
        self.mon_out(rank, lasts);
    }

    /// An election that takes its time.
    fn lose_quorum(&mut self, lasts: Millis) {
        for rank in 0..MONS {
            self.mon_out(rank, lasts);
        }
    }

    fn mon_out(&mut self, rank: usize, lasts: Millis) {
        self.note(format_args!("mon.{rank} is out"));
        self.faults.mons_out.insert(rank);
        let silent = self.random.one_in(4);
        let lines: Vec<_> = (self.servers.iter())
            .filter(|(_, server)| server.place == Place::Mon(rank))
            .map(|(line, _)| *line)
            .collect();
        for line in lines {
            if silent && let Some(server) = self.servers.get_mut(&line) {
                (server.up.lost, server.down.lost) = (true, true);
            } else {
                self.hang_up(line);
            }
        }
        self.after(lasts, Event::Undo(Undo::Join(rank)));
    }

    /// The monitors keep no old maps: whoever lacks one gets a whole map, and never learns what was in between.
    fn forget_maps(&mut self) {
        for _ in 0..self.random.within(1..4) {
            let osd = OsdId(self.random.within(0..u64::from(OSDS)) as i32);
            self.move_group(osd);
        }
        self.note(format_args!("old maps are forgotten"));
        let history = &mut self.cluster.monitor.map.history;
        history.incremental.clear();
        while history.full.len() > 1 {
            history.full.pop_first();
        }
    }

    fn wipe_tickets(&mut self) {
        self.note(format_args!("tickets are worthless"));
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).wipe_rotating();
    }

    fn osd_addr(&self, osd: OsdId) -> EntityAddrs {
        let addr = Place::Osd(osd).addr();
        EntityAddrs(vec![EntityAddr::msgr2(addr, self.osds[&osd].instance)])
    }
}

//! What must be true, whatever goes wrong: checked from what clients submit and are told, and from what OSDs carry out,
//! by nothing that either of them has computed.
//!
//! The image is a row of sectors. Every write fills its sectors with a number of its own, so a sector's content names
//! the write that it is from. For each sector, writes are numbered in the order of their submission, and:
//!
//! - they are carried out in this order, each at most once, none after its client was fenced;
//! - a write is acknowledged only when it has been carried out;
//! - a read brings a write that is not older than any that was acknowledged, or read, before it began.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use proto::msg::op::Op;
use proto::msg::osd_op::{Operation, ReqId};
use proto::rbd::layout::Layout;

/// The unit that is looked at, in bytes.
pub(crate) const SECTOR: u64 = 512;

/// What a write that is over has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was acknowledged.
    Done,
    /// It failed because its client was fenced: it was carried out before, or never will be.
    Fenced,
    /// It took too long: it may be carried out at any time.
    TimedOut,
}

/// One sector's history.
struct Sector {
    writes: Vec<Write>,
    /// Nothing older may be read by reads that begin now.
    floor: usize,
    /// The last one that was carried out.
    applied: usize,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    client: usize,
    applied: bool,
    /// Its client was fenced before it was carried out.
    dead: bool,
    /// It timed out.
    limbo: bool,
    /// Zeros were carried out that may be this one's.
    maybe: bool,
}

impl Write {
    /// Zeros are not told apart: any that were not carried out will do.
    fn is_zero_of(&self, client: usize) -> bool {
        self.client == client && self.value == 0 && !self.applied
    }
}

/// A write that is under way: its place in the history of each of its sectors.
pub(crate) struct Writing(Vec<(usize, usize)>);

/// A read that is under way: its sectors, and the oldest write that each may show.
pub(crate) struct Reading(Vec<(usize, usize)>);

/// The image as it may be.
pub(crate) struct Model {
    layout: Layout,
    sectors: Vec<Sector>,
    requests: BTreeMap<ReqId, String>,
    values: BTreeSet<(usize, u64)>,
    wrong: Vec<String>,
}

impl Model {
    /// An image of zeros.
    pub(crate) fn new(layout: Layout, bytes: u64) -> Self {
        let zeros = Write {
            value: 0,
            client: usize::MAX,
            applied: true,
            dead: false,
            limbo: false,
            maybe: false,
        };
        let sector = |_| Sector { writes: vec![zeros], floor: 0, applied: 0 };
        Self {
            layout,
            sectors: (0..bytes / SECTOR).map(sector).collect(),
            requests: BTreeMap::new(),
            values: BTreeSet::new(),
            wrong: Vec::new(),
        }
    }

    /// Notes that something is not as it must be.
    pub(crate) fn fail(&mut self, what: String) {
        self.wrong.push(what);
    }

    /// What was not as it must be, in the order in which it was found.
    pub(crate) fn wrong(&self) -> &[String] {
        &self.wrong
    }

    /// A client submits a write of `value` to these sectors; 0 are zeros.
    pub(crate) fn write(&mut self, client: usize, value: u64, sectors: Range<u64>) -> Writing {
        let write =
            Write { value, client, applied: false, dead: false, limbo: false, maybe: false };
        let place = |at: u64| {
            let sector = &mut self.sectors[at as usize];
            sector.writes.push(write);
            (at as usize, sector.writes.len() - 1)
        };
        Writing(sectors.map(place).collect())
    }

    /// The client is told what became of it.
    pub(crate) fn written(&mut self, writing: &Writing, outcome: Outcome) {
        for &(at, nth) in &writing.0 {
            let sector = &mut self.sectors[at];
            let write = &mut sector.writes[nth];
            match outcome {
                // What is to be zero and is not there need not be zeroed.
                Outcome::Done if write.applied || write.value == 0 => {
                    write.applied = true;
                    sector.floor = sector.floor.max(nth);
                }
                Outcome::Done => {
                    let value = write.value;
                    self.fail(format!(
                        "sector {at}: write {value:x} is acknowledged and not carried out"
                    ));
                }
                Outcome::TimedOut => write.limbo = true,
                Outcome::Fenced => {}
            }
        }
    }

    /// A client submits a read.
    pub(crate) fn read(&self, sectors: Range<u64>) -> Reading {
        Reading(sectors.map(|at| (at as usize, self.sectors[at as usize].floor)).collect())
    }

    /// The client is told what there is.
    pub(crate) fn was_read(&mut self, reading: &Reading, content: &[u8]) {
        if content.len() as u64 != reading.0.len() as u64 * SECTOR {
            return self.fail(format!("{} bytes were read", content.len()));
        }
        for (&(at, oldest), content) in reading.0.iter().zip(content.chunks(SECTOR as usize)) {
            let value = value_of(content);
            let sector = &mut self.sectors[at];
            let found = |(_, write): &(usize, &Write)| {
                Some(write.value) == value && (!write.dead || write.maybe)
            };
            let newer = sector.writes.iter().enumerate().skip(oldest).find(found);
            match newer {
                Some((_, write)) if write.limbo => {}
                Some((nth, _)) => sector.floor = sector.floor.max(nth),
                None if sector.writes.iter().any(|w| w.limbo && Some(w.value) == value) => {}
                None => {
                    let of = sector.writes.iter().map(|w| format!("{:x}", w.value));
                    let of: Vec<_> = of.collect();
                    let value =
                        value.map_or_else(|| "a mixture".to_owned(), |value| format!("{value:x}"));
                    self.fail(format!(
                        "sector {at}: read {value}, which is none from number {oldest} on of {of:?}"
                    ));
                }
            }
        }
    }

    /// From now on nothing of this client may be carried out.
    pub(crate) fn fence(&mut self, client: usize) {
        let writes = self.sectors.iter_mut().flat_map(|sector| &mut sector.writes);
        for write in writes.filter(|write| write.client == client && !write.applied) {
            write.dead = true;
        }
    }

    /// An OSD has carried out a request that changes data of the image.
    pub(crate) fn applied(&mut self, client: usize, reqid: ReqId, operation: &Operation) {
        let what = format!("{} {:?}", operation.object, kinds(operation));
        if let Some(before) = self.requests.insert(reqid, what.clone()) {
            self.fail(format!("request {reqid:?} was carried out twice: {before}, then {what}"));
        }
        let Some(object) = object_number(&operation.object) else { return };
        for op in &operation.ops {
            let size = self.layout.object_size();
            match &op.op {
                Op::Write { offset, data } => self.stored(client, object, *offset, data),
                Op::WriteFull { data } => self.stored(client, object, 0, data),
                Op::Zero { offset, length } | Op::WriteSame { offset, length, .. } => {
                    self.zeroed(client, object, *offset..offset + length)
                }
                Op::Truncate { size: from } => self.zeroed(client, object, *from..size),
                Op::Delete => self.zeroed(client, object, 0..size),
                _ => {}
            }
        }
    }

    fn stored(&mut self, client: usize, object: u64, offset: u64, data: &[u8]) {
        for (i, content) in (0..).zip(data.chunks(SECTOR as usize)) {
            let at = self.sector_of(object, offset + i * SECTOR);
            match value_of(content) {
                Some(0) => self.zeroed_sector(client, at),
                Some(value) if !self.values.insert((at, value)) => {
                    self.fail(format!("sector {at}: write {value:x} was carried out twice"));
                }
                Some(value) => self.carried_out(at, |write| write.value == value),
                None => self.fail(format!("sector {at}: a mixture is written")),
            }
        }
    }

    fn zeroed(&mut self, client: usize, object: u64, range: Range<u64>) {
        for offset in range.step_by(SECTOR as usize) {
            let at = self.sector_of(object, offset);
            if at < self.sectors.len() {
                self.zeroed_sector(client, at);
            }
        }
    }

    /// It counts as the first that it can be. But that one may have found nothing to zero, which nobody is told: any of
    /// the others may be read from now on.
    fn zeroed_sector(&mut self, client: usize, at: usize) {
        let writes = self.sectors[at].writes.iter_mut();
        writes.filter(|write| write.is_zero_of(client)).for_each(|write| write.maybe = true);
        self.carried_out(at, |write| write.is_zero_of(client));
    }

    /// The first write of a sector of which that is true is carried out.
    fn carried_out(&mut self, at: usize, is: impl Fn(&Write) -> bool) {
        let sector = &mut self.sectors[at];
        let Some(nth) = sector.writes.iter().position(is) else {
            return self.fail(format!("sector {at}: something is written that nobody submitted"));
        };
        let last = sector.applied;
        let write = &mut sector.writes[nth];
        write.applied = true;
        let Write { value, dead, limbo, .. } = *write;
        if dead {
            self.fail(format!(
                "sector {at}: write {value:x} is carried out after its client was fenced"
            ));
        } else if nth > last {
            sector.applied = nth;
        } else if !limbo && value != 0 {
            self.fail(format!(
                "sector {at}: write {value:x}, number {nth}, is carried out after number {last}"
            ));
        }
    }

    fn sector_of(&self, object: u64, offset: u64) -> usize {
        let piece = self.layout.pieces(object, offset, SECTOR).next();
        piece.map_or(usize::MAX, |piece| (piece.image / SECTOR) as usize)
    }
}

/// What a sector is filled with, if it is one number throughout.
fn value_of(content: &[u8]) -> Option<u64> {
    let (words, _) = content.as_chunks::<8>();
    let (first, rest) = words.split_first()?;
    rest.iter().all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

/// Sectors filled with a number.
pub(crate) fn content(value: u64, sectors: u64) -> Vec<u8> {
    value.to_le_bytes().repeat((sectors * SECTOR / 8) as usize)
}

/// The number of a data object; nothing else has a name that ends in one.
fn object_number(name: &str) -> Option<u64> {
    let (_, number) = name.strip_prefix("rbd_data.")?.rsplit_once('.')?;
    u64::from_str_radix(number, 16).ok()
}

fn kinds(operation: &Operation) -> Vec<u16> {
    operation.ops.iter().map(|op| op.op.code()).collect()
}

//! Multi-step-retry rules (since Squid; `doc/dev/crush-msr.rst`, `crush_msr_do_rule` in `src/crush/mapper.c`): each
//! place descends through all steps of a block before the next place does, and starts again from the root when its
//! device is out, so that data can leave a host whose devices are gone.

use std::ops::Range;

use super::walk::Walk;
use super::{Bucket, ITEM_NONE, ITEM_UNDEF, MsrTunables, Op, Rule, RuleKind, Step};
use crate::limits;

/// What the steps of a block have chosen, to be kept and used again. Each step has a row as wide as the result.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    /// The items chosen for each stride: those that others may not choose.
    used: Vec<i32>,
    /// By stride: what it has to forget at the end of the descent, as nothing was found below it.
    undo: Vec<i32>,
    width: usize,
}

/// The result so far.
struct Output<'a> {
    out: &'a mut [i32],
    len: usize,
    is_firstn: bool,
}

/// What stays the same during one descent through a block.
struct Descent<'a> {
    /// The choose steps.
    steps: &'a [Step],
    width: usize,
    attempt: u32,
    collision_tries: u32,
}

impl<'a> Walk<'a> {
    /// Maps by a multi-step-retry rule.
    pub(super) fn msr(
        &mut self,
        rule: &Rule,
        result_max: usize,
        scratch: &mut Scratch,
        out: &mut Vec<i32>,
    ) {
        out.resize(result_max, ITEM_NONE);
        let is_firstn = rule.kind == RuleKind::MSR_FIRSTN;
        let mut output = Output { out, len: 0, is_firstn };
        let is_sound = self.msr_blocks(rule, scratch, &mut output).is_some();
        let len = output.len;
        if !is_sound {
            out.clear();
        } else if is_firstn {
            out.truncate(len);
        }
    }

    /// Settings, then blocks of `take`, `choosemsr`…, `emit`; `None` if the rule is not made of such.
    fn msr_blocks(
        &mut self,
        rule: &Rule,
        scratch: &mut Scratch,
        output: &mut Output<'_>,
    ) -> Option<()> {
        let width = output.out.len();
        let (tunables, mut steps) = self.msr_settings(&rule.steps);
        let mut start = 0;
        while let [take, rest @ ..] = steps {
            let len = rest.iter().position(|step| step.op != Op::CHOOSE_MSR)?;
            let (chooses, rest) = rest.split_at_checked(len)?;
            let [emit, rest @ ..] = rest else { return None };
            if take.op != Op::TAKE || emit.op != Op::EMIT {
                return None;
            }
            steps = rest;
            if take.arg1 >= 0 {
                if !chooses.is_empty() {
                    return None;
                }
                output.emit(start, take.arg1);
                start += 1;
                continue;
            }
            let root = self.map.bucket(take.arg1)?;
            if chooses.is_empty() || chooses.len() > limits::CRUSH_DEPTH {
                return None;
            }
            let leaves = chooses
                .iter()
                .try_fold(1, |product: u32, step| product.checked_mul(strides(step, width)))?;
            let end = width.min(start.saturating_add(leaves as usize));
            scratch.reset(chooses.len(), width);
            let enough = output.len + (end - start);
            let mut descent = Descent {
                steps: chooses,
                width,
                attempt: 0,
                collision_tries: tunables.collision_tries,
            };
            while descent.attempt < tunables.descents && output.len < enough && self.work_left > 0 {
                self.msr_choose(&descent, root, 0, start..end, scratch, output);
                descent.attempt += 1;
            }
            start = end;
        }
        Some(())
    }

    /// The limits that hold for a rule, and the steps after those that set them.
    fn msr_settings<'s>(&self, mut steps: &'s [Step]) -> (MsrTunables, &'s [Step]) {
        let mut tunables = self.map.tunables.msr.unwrap_or_default();
        while let [step, rest @ ..] = steps {
            match step.op {
                Op::SET_MSR_DESCENTS => tunables.descents = step.arg1 as u32,
                Op::SET_MSR_COLLISION_TRIES => tunables.collision_tries = step.arg1 as u32,
                _ => break,
            }
            steps = rest;
        }
        (tunables, steps)
    }

    /// Chooses an item of the step at `level` for each stride of `places`, and everything below it
    /// (`crush_msr_choose`); returns how many places were filled. `leaves` is how many there are in all below `bucket`.
    fn msr_choose(
        &mut self,
        descent: &Descent<'_>,
        bucket: &'a Bucket,
        level: usize,
        places: Range<usize>,
        scratch: &mut Scratch,
        output: &mut Output<'_>,
    ) -> usize {
        let Some(step) = descent.steps.get(level) else { return 0 };
        if self.spend(bucket).is_none() {
            return 0;
        }
        let below = descent.steps.iter().skip(level + 1);
        let stride_len = below.map(|step| strides(step, descent.width) as usize).product();
        let last = descent.steps.len() - 1;
        scratch.undo_row(level).fill(ITEM_UNDEF);
        let mut mapped = 0;
        let strides = || {
            let ends = places.clone().skip(stride_len).step_by(stride_len);
            let ends = ends.chain([places.end]);
            places.clone().step_by(stride_len).zip(ends).map(|(start, end)| start..end)
        };
        for (index, stride) in strides().enumerate() {
            if !scratch.row(last, &stride).contains(&ITEM_UNDEF) {
                continue;
            }
            let found = self.msr_item(descent, bucket, step, index, |item| {
                scratch.may_use(level, &places, &stride, item)
            });
            let Some(item) = found else { continue };
            if step.arg2 == 0 {
                // Another step after the one for devices would make no sense.
                if stride_len != 1 || level != last || self.is_out(item) {
                    continue;
                }
                scratch.push(level, &stride, item);
                output.emit(stride.start, item);
                mapped += 1;
            } else if level < last {
                let Some(child) = self.map.bucket(item) else { continue };
                let below =
                    self.msr_choose(descent, child, level + 1, stride.clone(), scratch, output);
                // What gave nothing still collides for the rest of this descent, so that marking a device out moves
                // as little as possible, and is free again for the next.
                if scratch.push(level, &stride, item) && below == 0 {
                    scratch.undo_row(level).iter_mut().skip(index).take(1).for_each(|u| *u = item);
                }
                mapped += below;
            }
        }
        for (index, stride) in strides().enumerate() {
            if scratch.undo_row(level).get(index).is_some_and(|item| *item != ITEM_UNDEF) {
                scratch.pop(level, &stride);
            }
        }
        mapped
    }

    /// An item of a step's type below `bucket` that `may_use` allows.
    fn msr_item(
        &mut self,
        descent: &Descent<'_>,
        bucket: &'a Bucket,
        step: &Step,
        index: usize,
        may_use: impl Fn(i32) -> bool,
    ) -> Option<i32> {
        let attempt = descent.attempt.wrapping_mul(descent.width as u32).wrapping_add(index as u32);
        for collisions in 0..descent.collision_tries {
            let r = (attempt << 16).wrapping_add(collisions);
            let item = self.msr_descend(bucket, step.arg2, r, index)?;
            if may_use(item) {
                return Some(item);
            }
        }
        None
    }

    /// Descends to a device, or to a bucket of type `kind`.
    fn msr_descend(
        &mut self,
        mut bucket: &'a Bucket,
        kind: i32,
        r: u32,
        index: usize,
    ) -> Option<i32> {
        let mut depth = 0;
        loop {
            let item = self.choose(bucket, r, index)?;
            if item >= 0 {
                return Some(item);
            }
            bucket = self.child(item, &mut depth)?;
            if i32::from(bucket.kind) == kind {
                return Some(item);
            }
        }
    }
}

/// Into how many strides a step divides its places.
fn strides(step: &Step, width: usize) -> u32 {
    if step.arg1 == 0 { width as u32 } else { step.arg1 as u32 }
}

impl Output<'_> {
    fn emit(&mut self, place: usize, item: i32) {
        let place = if self.is_firstn { self.len } else { place };
        if let Some(slot) = self.out.get_mut(place) {
            *slot = item;
            self.len += 1;
        }
    }
}

impl Scratch {
    fn reset(&mut self, levels: usize, width: usize) {
        self.width = width;
        for rows in [&mut self.used, &mut self.undo] {
            rows.clear();
            rows.resize(levels * width, ITEM_UNDEF);
        }
    }

    /// What the step at `level` has chosen for `places`.
    fn row(&self, level: usize, places: &Range<usize>) -> &[i32] {
        let row = level * self.width;
        self.used.get(row + places.start..row + places.end).unwrap_or_default()
    }

    fn row_mut(&mut self, level: usize, places: &Range<usize>) -> &mut [i32] {
        let row = level * self.width;
        self.used.get_mut(row + places.start..row + places.end).unwrap_or_default()
    }

    fn undo_row(&mut self, level: usize) -> &mut [i32] {
        let row = level * self.width;
        self.undo.get_mut(row..row + self.width).unwrap_or_default()
    }

    /// Whether no stride of `places` but `stride` itself has chosen `item`.
    fn may_use(
        &self,
        level: usize,
        places: &Range<usize>,
        stride: &Range<usize>,
        item: i32,
    ) -> bool {
        match self.row(level, places).iter().position(|used| *used == item) {
            Some(at) => stride.contains(&(places.start + at)),
            None => true,
        }
    }

    /// Adds `item` to what `stride` has chosen; `false` if it was there.
    fn push(&mut self, level: usize, stride: &Range<usize>, item: i32) -> bool {
        for slot in self.row_mut(level, stride) {
            if *slot == item {
                return false;
            }
            if *slot == ITEM_UNDEF {
                *slot = item;
                return true;
            }
        }
        false
    }

    /// Forgets what `stride` has chosen last.
    fn pop(&mut self, level: usize, stride: &Range<usize>) {
        let last = self.row_mut(level, stride).iter_mut().rev().find(|slot| **slot != ITEM_UNDEF);
        if let Some(slot) = last {
            *slot = ITEM_UNDEF;
        }
    }
}

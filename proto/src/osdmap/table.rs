//! The table of placements of one pool, filled as it is asked for.

use std::sync::OnceLock;

use super::placement::PgMapping;
use crate::types::OsdId;

type Entry = OnceLock<Box<PgMapping>>;

/// Placements that were worked out, by placement group. A cache, so all tables are equal.
#[derive(Clone, Debug, Default)]
pub(super) struct PgTable(OnceLock<Box<[Entry]>>);

impl PartialEq for PgTable {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl PgTable {
    /// The placement of group `seed` below `pg_num`, worked out once.
    #[inline]
    pub(super) fn get(
        &self,
        pg_num: u32,
        seed: u32,
        work_out: impl FnOnce() -> PgMapping,
    ) -> Option<&PgMapping> {
        let entries = self.0.get_or_init(|| (0..pg_num).map(|_| Entry::new()).collect());
        let entry = entries.get(seed as usize)?;
        Some(entry.get_or_init(|| Box::new(work_out())))
    }

    /// How many placements are known.
    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.0.get().into_iter().flatten().filter(|entry| entry.get().is_some()).count()
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.0.take();
    }

    /// Forgets one group.
    pub(super) fn forget(&mut self, seed: u32) {
        if let Some(entry) = self.0.get_mut().and_then(|all| all.get_mut(seed as usize)) {
            entry.take();
        }
    }

    /// Forgets the groups whose placement could depend on the state of any of these OSDs.
    pub(super) fn forget_those_with(&mut self, changed: impl Fn(OsdId) -> bool) {
        for entry in self.0.get_mut().into_iter().flat_map(|all| all.iter_mut()) {
            if entry.get().is_some_and(|mapping| mapping.candidates().any(&changed)) {
                entry.take();
            }
        }
    }
}

//! The objects of all pools, in memory, and the journal that makes them last. No files here: the journal is bytes that
//! somebody takes from [`Store::take_journal`] and gives back to [`Store::replay`].
//!
//! All OSDs of a devcluster share one store: each object is where its placement group's primary is, whoever that is
//! after the next map. So a stopped OSD loses nothing and recovery takes no time; everything a client sees of a
//! failover (resent requests, requests to the wrong OSD, watches that have to reconnect) stays as it is with copies.

pub mod extents;
pub mod intervals;
mod journal;
pub mod mutation;
pub mod object;
pub mod pg;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proto::types::{PgId, PoolId, SnapId};

use crate::osd::fold;

pub use journal::{JournalError, Record};
pub use mutation::Mutation;
pub use object::{Entry, Object, ObjectId, ObjectInfo, SnapSet};
pub use pg::{Answer, Pg, ReqId};

/// All changes of one request, which happen together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The placement group.
    pub pg: PgId,
    /// The object.
    pub object: ObjectId,
    /// What happens to its content, in order.
    pub mutations: Vec<Mutation>,
    /// What it is afterwards; `None` if it is gone, clones and all.
    pub after: Option<(ObjectInfo, SnapSet)>,
}

/// One pool.
#[derive(Debug, Default)]
pub struct Pool {
    objects: BTreeMap<ObjectId, Entry>,
    pgs: BTreeMap<u32, Pg>,
}

/// All pools.
#[derive(Debug, Default)]
pub struct Store {
    pools: BTreeMap<PoolId, Pool>,
    /// What has not been written yet; `None` if nothing is to be kept.
    journal: Option<BytesMut>,
}

impl Store {
    /// An empty store. With `journal`, every change is also noted for [`Self::take_journal`].
    pub fn new(journal: bool) -> Self {
        Self { pools: BTreeMap::new(), journal: journal.then(BytesMut::new) }
    }

    /// The object, with its past.
    pub fn get(&self, pool: PoolId, id: &ObjectId) -> Option<&Entry> {
        self.pools.get(&pool)?.objects.get(id)
    }

    /// The placement group's memory.
    pub fn pg(&mut self, pg: PgId) -> &mut Pg {
        self.pools.entry(pg.pool).or_default().pgs.entry(pg.seed).or_default()
    }

    /// Objects of a pool from `from` on, in the order in which Ceph lists them. Whiteouts are among them.
    pub fn objects_from(
        &self,
        pool: PoolId,
        from: &ObjectId,
    ) -> impl Iterator<Item = (&ObjectId, &Entry)> {
        self.pools.get(&pool).into_iter().flat_map(move |pool| pool.objects.range(from..))
    }

    /// Objects of a pool that somebody watches.
    pub fn watched(&self, pool: PoolId) -> impl Iterator<Item = (&ObjectId, &ObjectInfo)> {
        let objects = self.pools.get(&pool).into_iter().flat_map(|pool| &pool.objects);
        let infos = objects.map(|(id, entry)| (id, &entry.head.info));
        infos.filter(|(_, info)| !info.watchers.is_empty())
    }

    /// Objects, clones, and bytes of data of a pool.
    pub fn usage(&self, pool: PoolId) -> Usage {
        let mut usage = Usage::default();
        for entry in self.pools.get(&pool).into_iter().flat_map(|pool| pool.objects.values()) {
            usage.objects += u64::from(!entry.head.info.whiteout) + entry.clones.len() as u64;
            usage.clones += entry.clones.len() as u64;
            usage.bytes += entry.head.data.bytes();
            usage.bytes += entry.clones.values().map(|clone| clone.data.bytes()).sum::<u64>();
        }
        usage
    }

    /// Makes the changes and remembers how the request was answered. The journal has both before this returns; they
    /// last once what [`Self::take_journal`] gives has been written.
    pub fn commit(&mut self, transaction: Transaction, reqid: ReqId, answer: Answer) {
        self.note(|| Record::Commit(Box::new((transaction.clone(), reqid, answer.clone()))));
        self.pg(transaction.pg).remember(reqid, answer);
        self.apply(transaction);
    }

    /// Remembers an answer to a request that changed nothing.
    pub fn remember(&mut self, pg: PgId, reqid: ReqId, answer: Answer) {
        self.note(|| Record::Answer(pg, reqid, answer.clone()));
        self.pg(pg).remember(reqid, answer);
    }

    /// Forgets a snapshot: clones that nobody else sees go away.
    pub fn trim(&mut self, pool: PoolId, snap: SnapId) {
        self.note(|| Record::Trim(pool, snap));
        let Some(pool) = self.pools.get_mut(&pool) else { return };
        pool.objects.retain(|_, entry| {
            trim(entry, snap);
            !(entry.head.info.whiteout && entry.clones.is_empty())
        });
    }

    /// Forgets a pool.
    pub fn remove_pool(&mut self, pool: PoolId) {
        self.note(|| Record::RemovePool(pool));
        self.pools.remove(&pool);
    }

    /// Splits or merges a pool's placement groups, which take their memory along: a request that was answered by the
    /// one must not be carried out by the other.
    pub fn resize(&mut self, pool: PoolId, before: u32, after: u32) {
        let (fewer, more) = (before.min(after), before.max(after));
        for seed in fewer..more {
            let (child, parent) = (PgId { pool, seed }, PgId { pool, seed: fold(seed, fewer) });
            let (from, to) = if before < after { (parent, child) } else { (child, parent) };
            let memory = self.pg(from).clone();
            for (reqid, answer) in memory.answers() {
                self.remember(to, *reqid, answer.clone());
            }
        }
    }

    fn apply(&mut self, transaction: Transaction) {
        let Transaction { pg, object, mutations, after } = transaction;
        let objects = &mut self.pools.entry(pg.pool).or_default().objects;
        let Some((info, snapset)) = after else {
            objects.remove(&object);
            return;
        };
        let entry = objects.entry(object).or_default();
        for mutation in mutations {
            mutation.apply(entry);
        }
        entry.head.info = info;
        entry.snapset = snapset;
    }

    fn note(&mut self, record: impl FnOnce() -> Record) {
        if let Some(journal) = &mut self.journal {
            record().append_to(journal);
        }
    }

    /// What has to be written and synced before any answer to what came before may leave. `None` if there is nothing.
    pub fn take_journal(&mut self) -> Option<Bytes> {
        let journal = self.journal.as_mut().filter(|journal| !journal.is_empty())?;
        Some(journal.split().freeze())
    }

    /// Brings back what a journal holds. A torn tail (a record that was being written when the power went) ends it and
    /// is no error. Returns how many bytes are whole: what follows has to be cut off before more is appended.
    pub fn replay(&mut self, journal: &[u8]) -> Result<usize, JournalError> {
        let noted = self.journal.take();
        let whole = journal::each(journal, |record| self.replay_one(record));
        self.journal = noted;
        whole
    }

    fn replay_one(&mut self, record: Record) {
        match record {
            Record::Commit(commit) => {
                let (transaction, reqid, answer) = *commit;
                self.pg(transaction.pg).remember(reqid, answer);
                self.apply(transaction);
            }
            Record::Answer(pg, reqid, answer) => self.pg(pg).remember(reqid, answer),
            Record::Trim(pool, snap) => self.trim(pool, snap),
            Record::RemovePool(pool) => self.remove_pool(pool),
            Record::Object(pool, id, entry) => {
                self.pools.entry(pool).or_default().objects.insert(id, *entry);
            }
            Record::Pg(pg, version, user_version) => {
                let pg = self.pg(pg);
                pg.version = version;
                pg.user_version = user_version;
            }
        }
    }

    /// Everything as a fresh journal, record by record: what replaces one that has grown long.
    pub fn dump(&self, mut write: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut put = |record: Record| {
            buffer.clear();
            record.append_to(&mut buffer);
            write(&buffer)
        };
        for (&pool_id, pool) in &self.pools {
            for (id, entry) in &pool.objects {
                put(Record::Object(pool_id, id.clone(), Box::new(entry.clone())))?;
            }
            for (&seed, pg) in &pool.pgs {
                let pg_id = PgId { pool: pool_id, seed };
                for (reqid, answer) in pg.answers() {
                    put(Record::Answer(pg_id, *reqid, answer.clone()))?;
                }
                put(Record::Pg(pg_id, pg.version, pg.user_version))?;
            }
        }
        Ok(())
    }
}

/// How much a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects, clones included.
    pub objects: u64,
    /// Clones.
    pub clones: u64,
    /// Bytes of data that are not holes.
    pub bytes: u64,
}

/// Takes one snapshot out of an object's clones (`PrimaryLogPG::trim_object`).
fn trim(entry: &mut Entry, snap: SnapId) {
    let Some((&id, clone)) =
        entry.snapset.clones.iter_mut().find(|(_, clone)| clone.snaps.contains(&snap))
    else {
        return;
    };
    clone.snaps.retain(|other| *other != snap);
    if !clone.snaps.is_empty() {
        return;
    }
    entry.clones.remove(&id);
    let gone = entry.snapset.clones.remove(&id).unwrap_or_default();
    // What the next older clone shared with this one, it shares with what comes after only where this one did.
    if let Some((_, older)) = entry.snapset.clones.range_mut(..id).next_back() {
        older.overlap.intersect(&gone.overlap);
    }
}

#[cfg(test)]
mod tests;

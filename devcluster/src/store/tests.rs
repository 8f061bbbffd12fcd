//! The store as a whole: commits, journal, snapshots.

//! What the store must do, on its own.

use std::collections::BTreeMap;

use proto::types::{EVersion, EntityAddr, EntityName, EntityType, Epoch, UTime};

use super::object::{CloneInfo, Watcher};
use super::*;

const POOL: PoolId = PoolId(3);
const PG: PgId = PgId { pool: POOL, seed: 5 };

fn id(name: &str) -> ObjectId {
    ObjectId { hash: 0x1234, nspace: "ns".into(), key: String::new(), name: name.into() }
}

fn reqid(tid: u64) -> ReqId {
    ReqId { name: EntityName { kind: EntityType::CLIENT, num: 4100 }, inc: 1, tid }
}

fn answer(version: u64) -> Answer {
    let version = EVersion { epoch: Epoch(7), version };
    Answer { result: 0, version, user_version: version.version, ops: vec![(3, "out".into())] }
}

fn info(size: u64) -> ObjectInfo {
    let watcher = Watcher { timeout: 30, addr: EntityAddr::default() };
    ObjectInfo {
        size,
        mtime: UTime { sec: 1, nsec: 2 },
        has_omap: true,
        alloc_hint: (1, 2, 3),
        watchers: BTreeMap::from([((9, reqid(0).name), watcher)]),
        ..Default::default()
    }
}

fn commit(store: &mut Store, name: &str, tid: u64, mutations: Vec<Mutation>, snapset: SnapSet) {
    let after = Some((info(tid), snapset));
    let transaction = Transaction { pg: PG, object: id(name), mutations, after };
    store.commit(transaction, reqid(tid), answer(tid));
}

fn snapset(seq: u64, clones: &[(u64, &[u64])]) -> SnapSet {
    let clones = clones.iter().map(|(id, snaps)| {
        let snaps = snaps.iter().map(|snap| SnapId(*snap)).collect();
        let overlap = intervals::Intervals::of(0, *id);
        (SnapId(*id), CloneInfo { snaps, size: 4, overlap })
    });
    SnapSet { seq, clones: clones.collect() }
}

/// A store with some of everything.
fn filled() -> Store {
    let mut store = Store::new(true);
    let write = |data: &'static str| Mutation::Write { offset: 10, data: data.into() };
    let set =
        vec![("k1".into(), "v1".into()), ("k2".into(), "v2".into()), ("k3".into(), "".into())];
    commit(
        &mut store,
        "a",
        1,
        vec![
            write("hello"),
            Mutation::SetXattr("x".into(), "y".into()),
            Mutation::SetXattr("gone".into(), "y".into()),
            Mutation::RemoveXattr("gone".into()),
            Mutation::OmapSet(set),
            Mutation::OmapRemove(vec!["k1".into()]),
            Mutation::OmapRemoveRange("k3".into(), "k4".into()),
            Mutation::OmapHeader("header".into()),
            Mutation::Zero { offset: 11, len: 2 },
        ],
        SnapSet::default(),
    );
    let clone = vec![Mutation::Clone(SnapId(4)), write("world"), Mutation::Truncate(13)];
    commit(&mut store, "a", 2, clone, snapset(4, &[(4, &[4, 3])]));
    commit(&mut store, "b", 3, vec![write("b")], SnapSet::default());
    let gone = Transaction { pg: PG, object: id("b"), mutations: Vec::new(), after: None };
    store.commit(gone, reqid(4), answer(4));
    store.remember(PG, reqid(5), Answer { result: -2, ..answer(5) });
    store.trim(POOL, SnapId(3));
    store
}

fn same(a: &mut Store, b: &mut Store) {
    let content = |store: &Store| -> Vec<_> {
        store
            .pools
            .iter()
            .flat_map(|(pool, content)| {
                content.objects.iter().map(move |(id, entry)| (pool, id, entry))
            })
            .map(|(pool, id, entry)| (*pool, id.clone(), entry.clone()))
            .collect()
    };
    assert_eq!(content(a), content(b));
    let answers = |pg: &Pg| -> Vec<_> {
        pg.answers().map(|(reqid, answer)| (*reqid, answer.clone())).collect()
    };
    assert_eq!(answers(a.pg(PG)), answers(b.pg(PG)));
    assert_eq!(a.pg(PG).version, b.pg(PG).version);
    assert_eq!(a.pg(PG).user_version, b.pg(PG).user_version);
}

#[test]
fn what_was_committed_is_there() {
    let mut store = filled();
    let entry = store.get(POOL, &id("a")).unwrap();
    let read = |object: &Object| {
        let mut bytes = Vec::new();
        object.data.read(9, 7, |piece| bytes.extend_from_slice(&piece));
        bytes
    };
    assert_eq!(read(&entry.head), b"\0wor\0\0\0");
    assert_eq!(read(&entry.clones[&SnapId(4)]), b"\0h\0\0lo\0");
    assert!(entry.clones[&SnapId(4)].info.watchers.is_empty());
    assert_eq!(entry.head.info, info(2));
    assert_eq!(entry.head.xattrs, BTreeMap::from([("x".into(), Bytes::from("y"))]));
    assert_eq!(entry.head.omap, BTreeMap::from([("k2".into(), Bytes::from("v2"))]));
    assert_eq!(entry.head.omap_header, "header");
    assert_eq!(store.get(POOL, &id("b")), None);
    assert_eq!(store.usage(POOL), Usage { objects: 2, clones: 1, bytes: 3 + 3 });
    assert_eq!(store.pg(PG).answered(&reqid(5)).unwrap().result, -2);
    assert_eq!(store.pg(PG).user_version, 5);
}

#[test]
fn a_journal_brings_everything_back() {
    let mut store = filled();
    let journal = store.take_journal().unwrap();
    assert_eq!(store.take_journal(), None);
    let mut again = Store::new(true);
    assert_eq!(again.replay(&journal).unwrap(), journal.len());
    assert_eq!(again.take_journal(), None, "what was replayed is not noted again");
    same(&mut store, &mut again);

    let mut dump = Vec::new();
    store
        .dump(|bytes| {
            dump.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
    let mut again = Store::new(false);
    assert_eq!(again.replay(&dump).unwrap(), dump.len());
    same(&mut store, &mut again);
}

#[test]
fn a_torn_tail_costs_only_the_last_record() {
    let mut store = Store::new(true);
    commit(&mut store, "a", 1, Vec::new(), SnapSet::default());
    let first = store.take_journal().unwrap();
    commit(&mut store, "b", 2, vec![Mutation::Remove], SnapSet::default());
    let second = store.take_journal().unwrap();
    let both = [first.clone(), second].concat();
    for len in first.len()..both.len() {
        let mut again = Store::new(false);
        assert_eq!(again.replay(&both[..len]).unwrap(), first.len());
        assert!(again.get(POOL, &id("a")).is_some() && again.get(POOL, &id("b")).is_none());
    }
    for at in first.len()..both.len() {
        let mut torn = both.clone();
        torn[at] ^= 0x10;
        assert_eq!(Store::new(false).replay(&torn).unwrap(), first.len(), "byte {at}");
    }
}

#[test]
fn trimming_forgets_clones_that_nobody_sees() {
    let mut store = Store::new(false);
    let clones = [(4, &[4, 3][..]), (6, &[6]), (8, &[8])];
    let keep = |snap| Mutation::Clone(SnapId(snap));
    commit(&mut store, "a", 1, vec![keep(4), keep(6), keep(8)], snapset(8, &clones));
    let seen = |store: &Store| -> Vec<u64> {
        store.get(POOL, &id("a")).unwrap().clones.keys().map(|snap| snap.0).collect()
    };
    store.trim(POOL, SnapId(3));
    assert_eq!(seen(&store), [4, 6, 8]);
    store.trim(POOL, SnapId(8));
    assert_eq!(seen(&store), [4, 6]);
    let entry = store.get(POOL, &id("a")).unwrap();
    assert_eq!(entry.snapset.clones[&SnapId(6)].overlap, intervals::Intervals::of(0, 6));
    store.trim(POOL, SnapId(6));
    let entry = store.get(POOL, &id("a")).unwrap();
    assert_eq!(entry.snapset.clones[&SnapId(4)].overlap, intervals::Intervals::of(0, 4));
    store.trim(POOL, SnapId(4));
    assert_eq!(seen(&store), [0; 0]);

    // A whiteout is there for its clones only.
    let whiteout = ObjectInfo { whiteout: true, ..Default::default() };
    let after = Some((whiteout, snapset(8, &clones[..1])));
    let mutations = vec![keep(4), Mutation::Remove];
    store.commit(Transaction { pg: PG, object: id("b"), mutations, after }, reqid(2), answer(2));
    store.trim(POOL, SnapId(3));
    assert!(store.get(POOL, &id("b")).is_some());
    store.trim(POOL, SnapId(4));
    assert!(store.get(POOL, &id("b")).is_none());
}

#[test]
fn groups_that_split_or_merge_keep_what_they_answered() {
    let mut store = filled();
    let (whole, child) = (PgId { pool: POOL, seed: 1 }, PgId { pool: POOL, seed: 5 });
    store.remember(whole, reqid(77), answer(8));
    store.resize(POOL, 4, 8);
    assert_eq!(store.pg(child).answered(&reqid(77)), Some(&answer(8)));
    assert!(store.pg(child).version >= answer(8).version);
    store.remember(child, reqid(78), answer(9));
    store.resize(POOL, 8, 4);
    assert_eq!(store.pg(whole).answered(&reqid(78)), Some(&answer(9)));
}

//! Listing the objects of a placement group (`PGNLS` in Ceph's `PrimaryLogPG::do_pg_op`).

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};
use proto::msg::object::{HObject, Locator};
use proto::msg::op::{ListedObject, ObjectList, Op, OsdOp};
use proto::msg::osd_op::OpReply;
use proto::types::{PgId, SnapId};

use crate::errno::{EINVAL, OpResult};
use crate::store::{ObjectId, Store};

/// How many objects one operation lists (`osd_max_pgls`).
const MAX_OBJECTS: u64 = 1024;

/// Runs operations on a placement group.
pub(super) fn run(
    store: &Store,
    pg: PgId,
    pg_num: u32,
    locator: &Locator,
    snap: SnapId,
    ops: &[OsdOp],
) -> (i32, Vec<OpReply>) {
    let mut result = 0;
    let mut replies = Vec::with_capacity(ops.len());
    for op in ops {
        let mut reply = OpReply { code: op.op.code(), result: 0, data: Bytes::new() };
        if result >= 0 {
            let listed = match &op.op {
                Op::ListObjects { max, cursor, .. } if snap == SnapId::HEAD => {
                    list(store, pg, pg_num, &locator.namespace, *max, cursor)
                }
                _ => Err(EINVAL),
            };
            match listed {
                Ok((end, data)) => (result, reply.data) = (i32::from(end), data),
                Err(errno) => result = -errno,
            }
        }
        replies.push(reply);
    }
    (result, replies)
}

/// Objects from the cursor on, and whether they are the last ones.
fn list(
    store: &Store,
    pg: PgId,
    pg_num: u32,
    namespace: &str,
    max: u64,
    cursor: &HObject,
) -> OpResult<(bool, Bytes)> {
    let bits = split_bits(pg, pg_num);
    let pool = pg.pool.0;
    let end = end_of(pg, bits);
    let start = HObject { hash: pg.seed, pool, ..HObject::min() };
    let at_start = *cursor == HObject::min();
    let outside = !at_start && cursor.compare(&start) == Ordering::Less;
    if outside || (!cursor.max && cursor.compare(&end) != Ordering::Less) {
        return Err(EINVAL);
    }
    let from = if at_start { &start } else { cursor };
    let from = ObjectId {
        hash: from.hash,
        nspace: from.namespace.clone(),
        key: from.key.clone(),
        name: from.name.clone(),
    };
    let last = u64::from(pg.seed.reverse_bits()) | (0xffff_ffff >> bits);
    let mut list = ObjectList { cursor: end, objects: Vec::new() };
    let mut ended = true;
    let in_group = (store.objects_from(pg.pool, &from))
        .take_while(|(id, _)| u64::from(id.hash.reverse_bits()) <= last);
    for (id, _) in in_group.filter(|_| !cursor.max) {
        if list.objects.len() as u64 >= max.min(MAX_OBJECTS) {
            list.cursor = HObject {
                name: id.name.clone(),
                key: id.key.clone(),
                snap: SnapId::HEAD,
                hash: id.hash,
                max: false,
                namespace: id.nspace.clone(),
                pool,
            };
            ended = false;
            break;
        }
        if namespace == Locator::ALL_NAMESPACES || namespace == id.nspace {
            list.objects.push(ListedObject {
                namespace: id.nspace.clone(),
                name: id.name.clone(),
                locator: id.key.clone(),
            });
        }
    }
    let mut w = BytesMut::new();
    list.encode(&mut w);
    Ok((ended, w.freeze()))
}

/// How many bits of the reversed hash all objects of a placement group share (`pg_t::get_split_bits`).
fn split_bits(pg: PgId, pg_num: u32) -> u32 {
    if pg_num <= 1 {
        return 0;
    }
    let bits = u32::BITS - pg_num.leading_zeros();
    let half = 1 << (bits - 1);
    if pg.seed % half < pg_num % half { bits } else { bits - 1 }
}

/// The first object behind the placement group (`pg_t::get_hobj_end`).
fn end_of(pg: PgId, bits: u32) -> HObject {
    let last = u64::from(pg.seed.reverse_bits()) | 0xffff_ffff_u64.checked_shr(bits).unwrap_or(0);
    match u32::try_from(last + 1) {
        Ok(next) => HObject {
            hash: next.reverse_bits(),
            snap: SnapId::HEAD,
            pool: pg.pool.0,
            ..HObject::min()
        },
        Err(_) => HObject::max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Answer, ReqId, Transaction};
    use proto::types::{EntityName, EntityType, Epoch, PoolId};

    #[test]
    fn groups_cover_all_hashes_once() {
        for pg_num in [1, 2, 3, 5, 8, 12, 32] {
            let mut groups: Vec<(u64, u64)> = (0..pg_num)
                .map(|seed| {
                    let pg = PgId { pool: PoolId(1), seed };
                    let bits = split_bits(pg, pg_num);
                    let start = u64::from(seed.reverse_bits());
                    (start, start | (0xffff_ffff >> bits))
                })
                .collect();
            groups.sort_unstable();
            assert_eq!(groups[0].0, 0, "{pg_num}");
            assert!(groups.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{pg_num}");
            assert_eq!(groups[pg_num as usize - 1].1, 0xffff_ffff, "{pg_num}");
        }
    }

    #[test]
    fn pages_of_a_list_join_up() {
        let mut store = Store::new(false);
        let pool = PoolId(1);
        let client = EntityName { kind: EntityType::CLIENT, num: 1 };
        for i in 0..100u32 {
            let hash = i.wrapping_mul(0x9e37_79b9);
            let nspace = if i % 10 == 0 { "other".to_owned() } else { String::new() };
            let object = ObjectId { hash, nspace, key: String::new(), name: format!("o{i}") };
            let pg = PgId { pool, seed: hash % 4 };
            let after = Some(Default::default());
            let transaction = Transaction { pg, object, mutations: Vec::new(), after };
            let reqid = ReqId { name: client, inc: 0, tid: i.into() };
            store.commit(transaction, reqid, Answer::default());
        }
        let mut names = Vec::new();
        for seed in 0..4 {
            let pg = PgId { pool, seed };
            let mut cursor = HObject::min();
            loop {
                let op = Op::ListObjects {
                    max: 7,
                    start_epoch: Epoch(0),
                    cursor: Box::new(cursor.clone()),
                };
                let locator = Locator::of_pool(pool);
                let (result, replies) =
                    run(&store, pg, 4, &locator, SnapId::HEAD, &[OsdOp::from(op)]);
                let list = ObjectList::decode(&replies[0].data).unwrap();
                names.extend(list.objects.into_iter().map(|object| object.name));
                if result == 1 {
                    assert_eq!(list.cursor, end_of(pg, 2));
                    break;
                }
                assert_eq!(result, 0);
                cursor = list.cursor;
            }
        }
        assert_eq!(names.len(), 90);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 90);
    }
}

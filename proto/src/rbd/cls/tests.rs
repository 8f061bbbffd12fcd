//! Inputs and outputs of real calls: made through librados 16.2.15 on images made by its `rbd`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;

use super::*;
use crate::denc::{Encode, decode};
use crate::msg::object::SnapContext;
use crate::rbd::Features;
use crate::types::{AddrType, EntityAddr, EntityName, EntityType, PoolId, SnapId, UTime};

fn unhex(hex: &str) -> Vec<u8> {
    let digits: Vec<_> =
        hex.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).unwrap() as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Checks a call against what was sent and what came back, in both directions, and that nothing shorter is taken.
fn known<M>(method: M, input: &str, output: &str, reply: M::Reply)
where
    M: Method + Debug + PartialEq,
    M::Reply: Debug + PartialEq,
{
    let (input, output) = (unhex(input), unhex(output));
    assert_eq!(method.input(), input, "input of {}", M::NAME);
    assert_eq!(decode::<M>(&input, "input").as_ref(), Ok(&method));
    assert_eq!(M::reply(&output).as_ref(), Ok(&reply), "output of {}", M::NAME);
    assert_eq!(reply.to_bytes(), output, "output of {}", M::NAME);
    for len in 0..input.len() {
        assert!(
            decode::<M>(&input[..len], "input").is_err(),
            "{len} bytes are enough for {}",
            M::NAME
        );
    }
    for len in 0..output.len() {
        assert!(M::reply(&output[..len]).is_err(), "{len} bytes are enough for {}", M::NAME);
    }
}

const HEAD: &str = "feffffffffffffff";

fn text(text: &str) -> String {
    text.to_owned()
}

#[test]
fn directory() {
    let id = || text("101dff57a0a5");
    known(GetId {}, "", "0c000000313031646666353761306135", id());
    let name = GetIdOfName { name: text("a") };
    known(name, "0100000061", "0c000000313031646666353761306135", id());
    let of_id = GetNameOfId { id: id() };
    known(of_id, "0c000000313031646666353761306135", "0100000061", text("a"));
    known(
        ListImages { after: text(""), max: 64 },
        "000000004000000000000000",
        "0400000001000000610c00000031303164666635376130613501000000620c00000031303166663864616633633201000000630c000000\
         31303231643561623835623302000000636c0c000000313039623636623539623363",
        BTreeMap::from([
            (text("a"), id()),
            (text("b"), text("101ff8daf3c2")),
            (text("c"), text("1021d5ab85b3")),
            (text("cl"), text("109b66b59b3c")),
        ]),
    );
    let namespaces = ListNamespaces { after: text(""), max: 10 };
    known(namespaces, "000000000a00000000000000", "01000000030000006e7331", vec![text("ns1")]);
}

#[test]
fn header() {
    let size = SizeAndOrder { order: 22, size: 1 << 30 };
    known(GetSize { snap: SnapId::HEAD }, HEAD, "160000004000000000", size);
    let (features, incompatible) = (Features::DEFAULT.0, Features::DEFAULT.0);
    known(
        GetFeatures { snap: SnapId::HEAD, read_only: false },
        "feffffffffffffff00",
        "3d000000000000003d00000000000000",
        FeatureSets { features, incompatible },
    );
    known(
        GetFeatures { snap: SnapId::HEAD, read_only: true },
        "feffffffffffffff01",
        "3d000000000000000100000000000000",
        FeatureSets { features, incompatible: Features::LAYERING.0 },
    );
    known(GetAllFeatures {}, "", "ff0f000000000000", Features::ALL.0);
    let prefix = "150000007262645f646174612e313031646666353761306135";
    known(GetObjectPrefix {}, "", prefix, text("rbd_data.101dff57a0a5"));
    known(GetDataPool {}, "", "ffffffffffffffff", PoolId(-1));
    let striping = StripeUnitCount { unit: 65536, count: 4 };
    known(GetStripeUnitCount {}, "", "00000100000000000400000000000000", striping);
    known(GetFlags { snap: SnapId::HEAD }, HEAD, "0000000000000000", 0);
    known(GetOpFeatures {}, "", "0000000000000000", 0);
    let created = UTime { sec: 0x6b04_5d5d, nsec: 0x38cb_31cf };
    known(GetCreateTimestamp {}, "", "5d5d046bcf31cb38", created);
    known(
        ListMetadata { after: text(""), max: 10 },
        "000000000a00000000000000",
        "020000000e000000636f6e665f7262645f63616368650500000066616c7365030000006b65790500000076616c7565",
        BTreeMap::from([
            (text("conf_rbd_cache"), Bytes::from_static(b"false")),
            (text("key"), Bytes::from_static(b"value")),
        ]),
    );
    let metadata = GetMetadata { name: text("key") };
    known(metadata, "030000006b6579", "0500000076616c7565", Bytes::from_static(b"value"));
    known(SetSize { size: 20 << 20 }, "0000400100000000", "", Empty);
}

#[test]
fn snapshots() {
    let context = SnapContext { seq: SnapId(4), snaps: vec![SnapId(4)] };
    known(GetSnapContext {}, "", "0400000000000000010000000400000000000000", context);
    known(GetSnapContext {}, "", "000000000000000000000000", SnapContext::default());
    known(GetSnapshotLimit {}, "", "ffffffffffffffff", u64::MAX);
    known(GetProtectionStatus { snap: SnapId(4) }, "0400000000000000", "02", 2);
    known(
        GetSnapshot { snap: SnapId(5) },
        "0500000000000000",
        "01012c0000000500000000000000010104000000000000000200000073320000a000000000008d5e046b2174d80200000000",
        SnapshotInfo {
            id: SnapId(5),
            namespace: SnapshotNamespace::User,
            name: text("s2"),
            image_size: 10 << 20,
            timestamp: UTime { sec: 0x6b04_5e8d, nsec: 0x02d8_7421 },
            child_count: 0,
        },
    );
}

#[test]
fn a_snap_context_out_of_order_is_refused() {
    for (seq, snaps) in [(4, vec![5]), (9, vec![4, 5]), (9, vec![5, 5])] {
        let snaps = snaps.into_iter().map(SnapId).collect();
        let bytes = SnapContext { seq: SnapId(seq), snaps }.to_bytes();
        assert!(GetSnapContext::reply(&bytes).is_err());
    }
}

#[test]
fn parents() {
    let image_id = || text("101dff57a0a5");
    let snap = SnapId(4);
    known(
        GetParent {},
        "",
        "0101240000000100000000000000000000000c0000003130316466663537613061350400000000000000",
        Parent { pool: PoolId(1), namespace: text(""), image_id: image_id(), snap },
    );
    let none =
        Parent { pool: PoolId(-1), namespace: text(""), image_id: text(""), snap: SnapId::HEAD };
    known(GetParent {}, "", "010118000000ffffffffffffffff0000000000000000feffffffffffffff", none);
    known(GetParentOverlap { snap: SnapId::HEAD }, HEAD, "010000004000000000", Some(1 << 30));
    known(GetParentOverlap { snap: SnapId::HEAD }, HEAD, "00", None);
    known(
        GetParentOld { snap: SnapId::HEAD },
        HEAD,
        "01000000000000000c00000031303164666635376130613504000000000000000000004000000000",
        ParentAndOverlap { pool: PoolId(1), image_id: image_id(), snap, overlap: 1 << 30 },
    );
}

#[test]
fn locks() {
    let client = EntityName { kind: EntityType::CLIENT, num: 4259 };
    let addr = EntityAddr {
        kind: AddrType::LEGACY,
        nonce: 0x3b49_93e4,
        addr: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
    };
    known(
        lock::GetInfo { name: text(lock::RBD_LOCK) },
        "01010c000000080000007262645f6c6f636b",
        "0101570000000100000001011300000008a310000000000000060000006d796c6f636b01012f0000000000000000000000010101\
         1c00000001000000e493493b10000000020000007f0000010000000000000000000000000100000000",
        lock::LockState {
            lockers: BTreeMap::from([(
                lock::Locker { client, cookie: text("mylock") },
                lock::LockerInfo { expiration: UTime::default(), addr, description: text("") },
            )]),
            kind: lock::EXCLUSIVE,
            tag: text(""),
        },
    );
    let locks = lock::Locks { names: vec![text(lock::RBD_LOCK)] };
    known(lock::ListLocks {}, "", "01011000000001000000080000007262645f6c6f636b", locks);
}

#[test]
fn journals() {
    known(GetJournalOrder {}, "", "18", 24);
    known(GetJournalWidth {}, "", "04", 4);
    known(GetJournalPool {}, "", "ffffffffffffffff", -1);
    let at = |object, tag, entry| ObjectPosition { object, tag, entry };
    known(
        GetJournalClient { id: text("") },
        "00000000",
        "01018000000000000000130000000201 0d00000000000000000000000000000000 01015e00000003000000010118000000010000\
         00000000000e0000000000000001000000000000000101180000000000000000000000 0e0000000000000000000000000000000101\
         1800000002000000000000000100000000000000020000000000000000",
        JournalClient {
            id: text(""),
            data: Bytes::from(unhex("02010d00000000000000000000000000000000")),
            position: CommitPosition { objects: vec![at(1, 14, 1), at(0, 14, 0), at(2, 1, 2)] },
            state: 0,
        },
    );
    let data = unhex("00000000000000000 10e000000000000000100000000000000");
    let tag = JournalTag { tid: 14, class: 0, data: Bytes::from(data) };
    known(
        ListTags { after: 0, max: 64, client: text(""), class: Some(0) },
        "0000000000000000400000000000000000000000010000000000000000",
        "0100000001012d0000000e0000000000000000000000000000001900000000000000000000000 10e0000000000000001000000\
         00000000",
        vec![tag],
    );
}

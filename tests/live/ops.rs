//! Every object operation against a real OSD, and what `rados` says of the result.

use std::sync::Arc;

use bytes::Bytes;
use ceph_native::error::Kind;
use ceph_native::pool::{Op, Pool};
use proto::denc::{Reader, decode};
use proto::msg::object::SnapContext;
use proto::msg::op::decode_sparse_read;
use proto::rbd::cls::GetId;
use proto::types::SnapId;

use crate::support::{Ceph, Options, Store};
use crate::with_client;

/// Runs a test against the pool `rbd` of a cluster of its own.
pub(crate) fn with_pool(test: impl AsyncFnOnce(&Ceph, Pool)) {
    with_pool_of(Options::default(), test);
}

fn with_pool_of(options: Options, test: impl AsyncFnOnce(&Ceph, Pool)) {
    let ceph = Ceph::start(options);
    with_client(&ceph, async |cluster| {
        let pool = cluster.pool("rbd").await.unwrap();
        test(&ceph, pool).await;
    });
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn content(pool: &Pool, object: &str) -> Bytes {
    pool.read(object, 0, 1 << 20).await.unwrap()
}

#[test]
fn data() {
    with_pool(async |ceph, pool| {
        pool.write_full("o", bytes("0123456789")).await.unwrap();
        pool.operate("o", vec![Op::Write { offset: 3, data: bytes("abc") }]).await.unwrap();
        assert_eq!(content(&pool, "o").await, "012abc6789");
        assert_eq!(ceph.rados(&["-p", "rbd", "get", "o", "-"]), "012abc6789");

        pool.operate("o", vec![Op::Append { data: bytes("XY") }]).await.unwrap();
        pool.operate("o", vec![Op::Zero { offset: 0, length: 2 }]).await.unwrap();
        pool.operate("o", vec![Op::Truncate { size: 8 }]).await.unwrap();
        assert_eq!(content(&pool, "o").await, "\0\x002abc67");
        let same = Op::WriteSame { offset: 8, length: 6, data: bytes("xyz") };
        pool.operate("o", vec![same]).await.unwrap();
        assert_eq!(content(&pool, "o").await, "\0\x002abc67xyzxyz");
        assert_eq!(pool.stat("o").await.unwrap().size, 14);
        // Reading ends where the object ends.
        assert_eq!(pool.read("o", 12, 100).await.unwrap(), "yz");

        let far = 1 << 20;
        pool.operate("sparse", vec![Op::Write { offset: far, data: bytes("far") }]).await.unwrap();
        let read = Op::SparseRead { offset: 0, length: 2 << 20 };
        let replies = pool.operate("sparse", vec![read]).await.unwrap();
        let (extents, data) = decode_sparse_read(&replies[0].data).unwrap();
        assert!(data.ends_with(b"far"));
        let (offset, length) = *extents.last().unwrap();
        assert_eq!(offset + length, far + 3);

        pool.remove("o").await.unwrap();
        assert_eq!(pool.stat("o").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(pool.remove("o").await.unwrap_err().kind(), Kind::NotFound);
        assert_eq!(ceph.rados(&["-p", "rbd", "ls"]), "sparse\n");
    });
}

#[test]
fn conditions_and_several_operations_at_once() {
    with_pool(async |_, pool| {
        let create = || Op::Create { exclusive: true };
        let hint = Op::SetAllocHint { object_size: 4 << 20, write_size: 4 << 20, flags: 0 };
        pool.operate("o", vec![create(), hint]).await.unwrap();
        let again = pool.operate("o", vec![create()]).await.unwrap_err();
        assert_eq!(again.kind(), Kind::Exists);
        pool.operate("o", vec![Op::Create { exclusive: false }]).await.unwrap();

        pool.write_full("o", bytes("before")).await.unwrap();
        // A condition that does not hold: nothing of the request happens.
        let compare = |expected| Op::CompareExtent { offset: 0, data: bytes(expected) };
        let write = || Op::Write { offset: 0, data: bytes("after!") };
        let refused = pool.operate("o", vec![compare("bEfore"), write()]).await.unwrap_err();
        // -MAX_ERRNO - the offset of the first difference.
        assert_eq!(refused.kind(), Kind::Os(4095 + 1));
        assert_eq!(content(&pool, "o").await, "before");
        pool.operate("o", vec![compare("before"), write()]).await.unwrap();
        assert_eq!(content(&pool, "o").await, "after!");

        // ERANGE: the object is newer; EOVERFLOW: it is older.
        for (version, errno) in [(1, 34), (u64::MAX, 75)] {
            let assert = Op::AssertVersion { version };
            let refused = pool.operate("o", vec![assert, write()]).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Os(errno));
        }

        let replies = pool
            .operate("o", vec![Op::Read { offset: 0, length: 2 }, Op::Stat, Op::GetXattrs])
            .await
            .unwrap();
        assert_eq!(replies.len(), 3);
        assert_eq!(replies[0].data, "af");
        assert_eq!(decode::<u64>(&replies[1].data, "size"), Ok(6));
    });
}

#[test]
fn attributes_and_omap() {
    with_pool(async |ceph, pool| {
        let set = Op::SetXattr { name: "colour".into(), value: bytes("blue") };
        pool.operate("o", vec![set]).await.unwrap();
        assert_eq!(ceph.rados(&["-p", "rbd", "getxattr", "o", "colour"]).trim_end(), "blue");
        let get = || Op::GetXattr { name: "colour".into() };
        assert_eq!(pool.operate("o", vec![get()]).await.unwrap()[0].data, "blue");
        pool.operate("o", vec![Op::RemoveXattr { name: "colour".into() }]).await.unwrap();
        // ENODATA
        assert_eq!(pool.operate("o", vec![get()]).await.unwrap_err().kind(), Kind::Os(61));

        let values = (0..50).map(|i| (format!("key{i:02}"), Bytes::from(format!("value{i}"))));
        let set = Op::OmapSetValues { values: values.collect() };
        let header = Op::OmapSetHeader { header: bytes("head") };
        pool.operate("o", vec![set, header]).await.unwrap();
        assert!(ceph.rados(&["-p", "rbd", "getomapval", "o", "key07", "-"]).contains("value7"));
        let (page, more) = pool.omap_values("o", "key09", 20).await.unwrap();
        assert_eq!((page.len(), more), (20, true));
        assert_eq!(page.first_key_value().unwrap().0, "key10");
        let remove = Op::OmapRemoveKeys { keys: vec!["key10".into()] };
        let range = Op::OmapRemoveRange { from: "key20".into(), to: "key40".into() };
        pool.operate("o", vec![remove, range]).await.unwrap();
        let (rest, more) = pool.omap_values("o", "", 1000).await.unwrap();
        assert_eq!((rest.len(), more), (29, false));
        let replies = pool
            .operate(
                "o",
                vec![
                    Op::OmapGetHeader,
                    Op::OmapGetValuesByKeys { keys: vec!["key01".into(), "nosuch".into()] },
                    Op::OmapGetKeys { after: "key45".into(), max: 10 },
                ],
            )
            .await
            .unwrap();
        assert_eq!(replies[0].data, "head");
        let found =
            Reader::new(&replies[1].data, "values").map(8, |r| Ok((r.string()?, r.string()?)));
        assert_eq!(found.unwrap(), [("key01".to_owned(), "value1".to_owned())].into());
        let keys = Reader::new(&replies[2].data, "keys").list(4, Reader::string).unwrap();
        assert_eq!(keys, ["key46", "key47", "key48", "key49"]);
        pool.operate("o", vec![Op::OmapClear]).await.unwrap();
        assert_eq!(ceph.rados(&["-p", "rbd", "listomapkeys", "o"]), "");
    });
}

#[test]
fn snapshots_are_preserved() {
    with_pool(async |ceph, pool| {
        // The image only makes the pool one with self-managed snapshots, and gives a snapshot's id.
        ceph.rbd(&["create", "--size", "1M", "--image-feature", "layering", "i"]);
        ceph.rbd(&["snap", "create", "i@s"]);
        let snaps = ceph.run("rbd", &["snap", "ls", "i", "--format", "json"]).json();
        let snap = SnapId(snaps[0]["id"].as_u64().unwrap());
        let before = Arc::new(SnapContext::default());
        let after = Arc::new(SnapContext { seq: snap, snaps: vec![snap] });

        let write = |text| vec![Op::WriteFull { data: bytes(text) }];
        pool.operate_with_snaps("o", write("old"), before).await.unwrap();
        pool.operate_with_snaps("o", write("new"), Arc::clone(&after)).await.unwrap();
        assert_eq!(content(&pool, "o").await, "new");
        let rollback = vec![Op::Rollback { snap }];
        pool.operate_with_snaps("o", rollback, after).await.unwrap();
        assert_eq!(content(&pool, "o").await, "old");
    });
}

#[test]
fn class_methods_watchers_and_namespaces() {
    with_pool(async |ceph, pool| {
        ceph.rbd(&["create", "--size", "1M", "i"]);
        let id = pool.call("rbd_id.i", &GetId {}).await.unwrap();
        assert!(ceph.rados(&["-p", "rbd", "ls"]).contains(&format!("rbd_header.{id}")));
        let missing = pool.call("rbd_id.nosuch", &GetId {}).await.unwrap_err();
        assert_eq!(missing.kind(), Kind::NotFound);
        assert!(missing.to_string().contains("rbd/rbd_id.nosuch"), "{missing}");
        assert!(pool.watchers(&format!("rbd_header.{id}")).await.unwrap().is_empty());

        let other = pool.with_namespace("other");
        other.write_full("here", bytes("x")).await.unwrap();
        let listed = other.list_objects().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].namespace.as_str(), listed[0].name.as_str()), ("other", "here"));
        assert_eq!(ceph.rados(&["-p", "rbd", "-N", "other", "ls"]), "here\n");
        assert!(pool.stat("here").await.is_err());
    });
}

#[test]
fn listing_takes_as_many_pages_as_there_are() {
    with_pool(async |_, pool| {
        let names: Vec<_> = (0..300).map(|i| format!("object{i:03}")).collect();
        for name in &names {
            pool.write_full(name, bytes("x")).await.unwrap();
        }
        let mut listed: Vec<_> =
            pool.list_objects().await.unwrap().into_iter().map(|object| object.name).collect();
        listed.sort();
        assert_eq!(listed, names);
    });
}

#[test]
fn operations_outlive_a_restarted_osd() {
    let options = Options { store: Store::Bluestore, ..Options::default() };
    with_pool_of(options, async |ceph, pool| {
        pool.write_full("o", bytes("before")).await.unwrap();
        ceph.kill_osd(0);
        let write = tokio::spawn({
            let pool = pool.clone();
            async move { pool.operate("o", vec![Op::Append { data: bytes("+after") }]).await }
        });
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        assert!(!write.is_finished());
        ceph.start_osd(0);
        write.await.unwrap().unwrap();
        // Once, however often it was sent.
        assert_eq!(content(&pool, "o").await, "before+after");
    });
}

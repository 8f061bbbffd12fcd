//! Object maps that are made anew while the image is written to, grows, a snapshot is taken and one goes.

use std::future::poll_fn;

use bytes::Bytes;
use ceph_native::image::{Image, Io, Maintenance, OpenOptions};
use proto::rbd::cls::SnapshotNamespace;

use crate::support::Ceph;
use crate::{on_each_release, with_client};

/// Objects of the image, each of them of 4 KiB.
const OBJECTS: u64 = 1024;

async fn write(image: &Image, object: u64) {
    let mut queue = image.queue();
    let io = Io::Write { offset: object * 4096 + 512, data: Bytes::from_static(&[7; 512]) };
    queue.submit(0, io);
    queue.kick();
    let mut done = Vec::new();
    poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
    done.pop().unwrap().result.unwrap();
}

fn snapshots(ceph: &Ceph, image: &str) -> Vec<String> {
    let all = ceph.run("rbd", &["snap", "ls", "--format", "json", image]).json();
    let all = all.as_array().unwrap().iter();
    all.map(|snap| snap["name"].as_str().unwrap().to_owned()).collect()
}

/// Makes the maps anew while one object after the other is written to, which makes it for the snapshots, too, and while
/// this is done as well.
fn remade_under_writes(ceph: &Ceph, name: &str, meanwhile: &[Maintenance]) {
    with_client(ceph, async |cluster| {
        let pool = cluster.pool("rbd").await.unwrap();
        let image = Image::open(&pool, name, &OpenOptions::default()).await.unwrap();
        // The lock is ours before.
        write(&image, OBJECTS - 1).await;
        let writing = async {
            for object in 0..OBJECTS - 1 {
                if object == 4 {
                    for what in meanwhile {
                        image.maintain(what, &mut |_, _| {}).await.unwrap();
                    }
                }
                write(&image, object).await;
            }
        };
        let mut untold = |_, _| {};
        let remaking = image.maintain(&Maintenance::RebuildObjectMap, &mut untold);
        let (remade, ()) = tokio::join!(remaking, writing);
        remade.unwrap();
        image.close().await;
    });
}

/// Snapshots get the objects that writes make of the parent, whoever looks at them at that time.
#[test]
fn maps_are_right_that_were_made_anew_under_writes() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "remade-base", "--size", "4M", "--object-size", "4K"]);
        let io = ["--io-type", "write", "--io-size", "1M", "--io-total", "4M"];
        ceph.rbd(&[&["bench", "remade-base", "--io-pattern", "seq"], &io[..]].concat());
        ceph.rbd(&["snap", "create", "--no-progress", "remade-base@s"]);
        let user = SnapshotNamespace::User;
        let take =
            Maintenance::SnapCreate { namespace: user.clone(), name: "three".to_owned(), flags: 0 };
        let remove = Maintenance::SnapRemove { namespace: user, name: "one".to_owned() };
        for (name, meanwhile) in [
            ("remade-1", vec![]),
            ("remade-2", vec![take.clone()]),
            ("remade-3", vec![remove.clone()]),
            ("remade-4", vec![take, remove]),
            ("remade-5", vec![Maintenance::Resize { size: 5 << 20, may_shrink: false }]),
        ] {
            let clone = ["clone", "--rbd-default-clone-format", "2"];
            ceph.rbd(&[&clone[..], &["remade-base@s", name]].concat());
            // What has not changed since a snapshot has changed since the one before, once that is gone.
            let io = ["--io-type", "write", "--io-size", "4K", "--io-total", "128K"];
            ceph.rbd(&[&["bench", name, "--io-pattern", "seq"], &io[..]].concat());
            let before = ceph.exported(name);
            for snap in ["one", "two"] {
                ceph.rbd(&["snap", "create", "--no-progress", &format!("{name}@{snap}")]);
            }
            remade_under_writes(ceph, name, &meanwhile);
            let snaps = snapshots(ceph, name);
            assert_eq!(
                snaps.len(),
                2 + usize::from(name == "remade-2") - usize::from(name == "remade-3")
            );
            ceph.check_object_map(name);
            for snap in &snaps {
                ceph.check_object_map(&format!("{name}@{snap}"));
            }
            // Without the parent they show only what is theirs.
            ceph.rbd(&["flatten", "--no-progress", name]);
            assert_eq!(ceph.exported(&format!("{name}@two")), before, "{name}");
        }
    });
}

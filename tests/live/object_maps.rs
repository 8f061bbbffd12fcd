//! Object maps that are made anew while the image is written to, grows, a snapshot is taken and one goes.

use std::future::poll_fn;
use std::sync::Mutex;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::image::{Completion, Image, Io, Maintenance, OpenOptions, Queue, admin};
use proto::rbd::cls::SnapshotNamespace;
use tokio::sync::Notify;

use crate::support::Ceph;
use crate::watch::io;
use crate::{on_each_release, on_new_clusters_with, with_client};

/// Objects of the image, each of them of 4 KiB.
const OBJECTS: u64 = 1024;

/// The same, where more would only take longer.
const FEW: u64 = 64;

fn a_write(object: u64) -> Io {
    Io::Write { offset: object * 4096 + 512, data: Bytes::from_static(&[7; 512]) }
}

async fn write(image: &Image, object: u64) {
    let mut queue = image.queue();
    submit(&mut queue, a_write(object));
    end(&mut queue, Vec::new()).await;
}

/// Submits it, and waits for nothing.
fn submit(queue: &mut Queue, io: Io) {
    queue.submit(0, io);
    queue.kick();
}

/// Takes what has come so far, and sends what follows from that.
async fn step(queue: &mut Queue, done: &mut Vec<Completion>) {
    let take = |cx: &mut std::task::Context<'_>| {
        let _ = queue.poll_completions(cx, done);
        Poll::Ready(())
    };
    poll_fn(take).await;
}

/// Until what was submitted is done.
async fn end(queue: &mut Queue, mut done: Vec<Completion>) {
    if done.is_empty() {
        poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
    }
    done.remove(0).result.unwrap();
}

/// An image of such objects, full of sevens, with a snapshot `s`.
fn full_image(ceph: &Ceph, name: &str, objects: u64) {
    let file = ceph.dir().join(name);
    std::fs::write(&file, vec![7; objects as usize * 4096]).unwrap();
    let file = file.to_str().unwrap();
    ceph.rbd(&["import", "--no-progress", "--object-size", "4K", file, name]);
    ceph.rbd(&["snap", "create", "--no-progress", &format!("{name}@s")]);
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

/// Nobody asks OSDs for objects that the map says are not there: so one that came behind its back is not seen.
#[test]
fn what_is_absent_by_the_map_is_neither_read_nor_discarded() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "spared", "--size", "256K", "--object-size", "4K"]);
        let object = format!("{}.{:016x}", ceph.data_prefix("spared"), 3);
        let serve = ceph.serve(&["rbd/spared"]);
        let uri = serve.uri("rbd/spared");
        let file = ceph.dir().join("sevens");
        std::fs::write(&file, [7; 4096]).unwrap();
        ceph.rados(&["-p", "rbd", "put", &object, file.to_str().unwrap()]);
        // Without the lock the map may be another one by now.
        assert!(io(&uri, &["read -P 7 12k 4k"]));
        assert!(io(&uri, &["write -P 1 128k 4k", "read -P 0 12k 4k", "discard 0 64k"]));
        assert!(ceph.rados(&["-p", "rbd", "ls"]).contains(&object));
        serve.terminate();
        let serve = ceph.serve(&["--read-only", "rbd/spared"]);
        let uri = serve.uri("rbd/spared");
        let read = ["-r", "-f", "raw", &uri, "-c", "read -P 7 12k 4k"];
        assert!(!crate::run("qemu-io", &read).ok().contains("failed"));
    });
}

/// A write makes an object for snapshots, and stands still at some step of that when the maps begin to be made anew:
/// either it comes first, or what it makes is in all maps.
#[test]
fn what_is_being_made_when_a_rebuild_begins_is_in_the_maps() {
    on_each_release(|ceph| {
        full_image(ceph, "begun-base", FEW);
        // The head's map; whether there is an object; what the parent has; snapshots' maps; the object; the write.
        for steps in 0..7 {
            let name = format!("begun-{steps}");
            let clone = ["clone", "--rbd-default-clone-format", "2", "begun-base@s"];
            ceph.rbd(&[&clone[..], &["--object-size", "4K", &name]].concat());
            ceph.rbd(&["snap", "create", "--no-progress", &format!("{name}@one")]);
            let before = ceph.exported(&name);
            with_client(ceph, async |cluster| {
                let pool = cluster.pool("rbd").await.unwrap();
                let image = Image::open(&pool, &name, &OpenOptions::default()).await.unwrap();
                write(&image, FEW - 1).await;
                let (mut queue, mut done) = (image.queue(), Vec::new());
                submit(&mut queue, a_write(3));
                for _ in 0..steps {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    step(&mut queue, &mut done).await;
                }
                // It goes on when all objects were looked at, or if that waits for it.
                let looked = Notify::new();
                let mut progress = |done, total| {
                    if done == total {
                        looked.notify_one();
                    }
                };
                let rebuild = image.maintain(&Maintenance::RebuildObjectMap, &mut progress);
                let writing = async {
                    let _ = tokio::time::timeout(Duration::from_secs(1), looked.notified()).await;
                    end(&mut queue, done).await;
                };
                let (rebuilt, ()) = tokio::join!(rebuild, writing);
                rebuilt.unwrap();
                image.close().await;
            });
            for spec in [name.clone(), format!("{name}@one")] {
                ceph.check_object_map(&spec);
            }
            ceph.rbd(&["flatten", "--no-progress", &name]);
            assert_eq!(ceph.exported(&format!("{name}@one")), before, "{name}");
        }
    });
}

/// What could not be noted in a map while that is made anew is not forgotten at its end.
#[test]
fn a_map_that_becomes_invalid_while_it_is_made_anew_stays_so() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "lapsed", "--size", "256K", "--object-size", "4K"]);
        let map = ceph.data_prefix("lapsed").replace("rbd_data.", "rbd_object_map.");
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            let image = Image::open(&pool, "lapsed", &OpenOptions::default()).await.unwrap();
            write(&image, FEW - 1).await;
            let queue = Mutex::new(image.queue());
            let submitted = Notify::new();
            // All objects were looked at: only the flags are left to be cleared.
            let mut progress = |done, total| {
                if done == total {
                    ceph.rados(&["-p", "rbd", "truncate", &map, "3"]);
                    submit(&mut queue.lock().unwrap(), a_write(3));
                    submitted.notify_one();
                }
            };
            let rebuild = image.maintain(&Maintenance::RebuildObjectMap, &mut progress);
            let writing = async {
                submitted.notified().await;
                let mut done = Vec::new();
                poll_fn(|cx| queue.lock().unwrap().poll_completions(cx, &mut done)).await;
                done.remove(0).result.unwrap();
            };
            let (rebuilt, ()) = tokio::join!(rebuild, writing);
            assert!(rebuilt.is_err(), "there is no map that could be changed");
            drop(queue);
            image.close().await;
        });
        let flags = || {
            let info = ceph.run("rbd", &["info", "--format", "json", "lapsed"]).json();
            info["flags"].as_array().unwrap().len()
        };
        assert_eq!(flags(), 2);
        ceph.ours(&["object-map", "rebuild", "--no-progress", "lapsed"]).ok();
        assert_eq!(flags(), 0);
        ceph.check_object_map("lapsed");
    });
}

/// The maps that are to be made anew are those of snapshots that are there, at whatever point of its removal one is.
#[test]
fn a_snapshot_that_goes_when_a_rebuild_begins_is_not_missed() {
    const SNAPSHOTS: u32 = 50;
    const STAY: u32 = 25;

    on_each_release(|ceph| {
        ceph.rbd(&["create", "fewer", "--size", "64K", "--object-size", "4K"]);
        let user = |snap: u32| (SnapshotNamespace::User, snap.to_string());
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            let image = Image::open(&pool, "fewer", &OpenOptions::default()).await.unwrap();
            write(&image, 0).await;
            for snap in 0..SNAPSHOTS {
                let (namespace, name) = user(snap);
                let take = Maintenance::SnapCreate { namespace, name, flags: 0 };
                image.maintain(&take, &mut |_, _| {}).await.unwrap();
            }
            // The last one, which is looked at when all others were.
            let mut takes = None;
            for last in (STAY..SNAPSHOTS).rev() {
                let (namespace, name) = user(last);
                let remove = Maintenance::SnapRemove { namespace, name };
                let removal = async {
                    let begun = Instant::now();
                    image.maintain(&remove, &mut |_, _| {}).await.unwrap();
                    begun.elapsed()
                };
                let Some(whole) = takes else {
                    takes = Some(removal.await);
                    continue;
                };
                let rebuild = async {
                    tokio::time::sleep(whole * (SNAPSHOTS - last) / (SNAPSHOTS - STAY)).await;
                    image.maintain(&Maintenance::RebuildObjectMap, &mut |_, _| {}).await.unwrap();
                };
                tokio::join!(removal, rebuild);
            }
            image.close().await;
        });
        assert_eq!(snapshots(ceph, "fewer").len(), STAY as usize);
        ceph.check_object_map("fewer");
    });
}

/// Whoever dies when all objects were brought back, and before the map says which, leaves none of which it says that it
/// is absent, although the maps were made anew meanwhile.
#[test]
fn what_a_rollback_brings_back_is_not_absent_by_a_rebuild() {
    on_new_clusters_with("osd client watch timeout = 2", |ceph| {
        full_image(ceph, "undone", OBJECTS);
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            let image = Image::open(&pool, "undone", &OpenOptions::default()).await.unwrap();
            let mut queue = image.queue();
            submit(&mut queue, Io::Discard { offset: 0, length: OBJECTS * 4096 });
            end(&mut queue, Vec::new()).await;
            drop(queue);
            let [begun, over] = [Notify::new(), Notify::new()];
            let mut rebuilding = |done, _| {
                if done == 200 {
                    begun.notify_one();
                }
            };
            let rebuild = async {
                let what = Maintenance::RebuildObjectMap;
                let _ = image.maintain(&what, &mut rebuilding).await;
                // If it ends at all.
                std::future::pending::<()>().await;
            };
            let mut bringing = |done, total| {
                if done == total {
                    over.notify_one();
                }
            };
            let rollback = async {
                begun.notified().await;
                admin::rollback(&image, "s", &mut bringing).await.unwrap();
            };
            tokio::select! {
                biased;
                () = over.notified() => {}
                () = rebuild => {}
                () = rollback => panic!("it was to end before"),
            }
        });
        let serve = ceph.serve(&["rbd/undone"]);
        let uri = serve.uri("rbd/undone");
        // The lock is had by writing, and with it the map by which is read.
        assert!(io(&uri, &["write -P 7 0 512"]), "{}", serve.log());
        let read = format!("read -P 7 512 {}", OBJECTS * 4096 - 512);
        assert!(io(&uri, &[&read]), "{}", serve.log());
    });
}

//! Watching objects; what others see of an image that we serve, and what we see of what they do to it.

use std::process::{Command, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::Kind;
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::{Image, OpenOptions, SnapshotNamespace};
use ceph_native::pool::{Pool, WatchEvent};
use proto::rbd::notify::{self, Maintenance};
use proto::rbd::{Features, names};
use proto::types::SnapId;

use crate::ops::with_pool;
use crate::support::{Ceph, Options, Serve, Store, run_in};
use crate::{MIXED_SIZES, config_of, full, on_each_release, run, sha256, with_client};

impl Ceph {
    /// The watchers of an image, as librbd sees them.
    fn watchers(&self, image: &str) -> usize {
        let status = self.run("rbd", &["status", "--format", "json", image]).json();
        status["watchers"].as_array().map_or(0, Vec::len)
    }

    /// The content of a version of an image.
    pub(crate) fn exported(&self, spec: &str) -> String {
        let file = self.dir().join(spec.replace('/', "-"));
        self.rbd(&["export", "--no-progress", spec, file.to_str().unwrap()]);
        let sum = sha256(&file);
        std::fs::remove_file(file).unwrap();
        sum
    }

    fn plain_image(&self, image: &str, size: &str) {
        self.rbd(&["create", "--size", size, "--image-feature", "layering", image]);
    }
}

fn size(uri: &str) -> u64 {
    run("nbdinfo", &["--size", uri]).ok().trim().parse().unwrap()
}

/// Runs commands of `qemu-io`, and says whether all went well.
pub(crate) fn io(uri: &str, commands: &[&str]) -> bool {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let args: Vec<_> = ["-f", "raw", uri].into_iter().chain(commands).collect();
    let ran = run("qemu-io", &args);
    ran.code == 0 && !String::from_utf8_lossy(&ran.out).contains("failed")
}

#[track_caller]
pub(crate) fn wait_for(what: &str, seconds: u64, mut there: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < Duration::from_secs(seconds), "{what}: not in {seconds} s");
        sleep(Duration::from_millis(100));
    }
    begun.elapsed()
}

#[test]
fn a_notification_of_rados_comes_and_our_answer_goes_back() {
    with_pool(async |ceph, pool| {
        assert_eq!(pool.watch("missing").await.unwrap_err().kind(), Kind::NotFound);
        pool.write_full("o", Bytes::new()).await.unwrap();
        let mut watch = pool.watch("o").await.unwrap();
        let watchers = pool.watchers("o").await.unwrap();
        assert_eq!((watchers.len(), watchers[0].cookie), (1, watch.cookie()));
        let conf = ceph.conf();
        let notify = tokio::task::spawn_blocking(move || {
            let args = ["-p", "rbd", "notify", "o", "what is new"];
            run_in("rados", &args, &[("CEPH_CONF", &conf)], 20).ok()
        });
        let WatchEvent::Notify(notification) = watch.next().await else { panic!("lost") };
        assert!(notification.payload.ends_with(b"what is new"), "{notification:?}");
        let news = Bytes::from_static(b"nothing at all");
        watch.acknowledge(notification.id, news).await.unwrap();
        let replies = notify.await.unwrap();
        let cookie = format!("cookie {}", watch.cookie());
        assert!(replies.contains(&cookie) && replies.contains("nothing at all"), "{replies}");

        // Anew, as after a loss: the old one is gone.
        watch.renew().await.unwrap();
        let watchers = pool.watchers("o").await.unwrap();
        assert_eq!((watchers.len(), watchers[0].cookie), (1, watch.cookie()));
        watch.close().await.unwrap();
        assert_eq!(pool.watchers("o").await.unwrap(), []);
        // Whoever just drops it lets the OSD know as well.
        drop(pool.watch("o").await.unwrap());
        assert_eq!(pool.watchers("o").await.unwrap(), []);
        // The object goes, and the watch with it.
        let mut watch = pool.watch("o").await.unwrap();
        pool.remove("o").await.unwrap();
        let lost = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        assert!(matches!(lost, Ok(WatchEvent::Lost(_))), "{lost:?}");
    });
}

#[test]
fn our_notification_waits_for_those_who_watch() {
    with_pool(async |ceph, pool| {
        pool.write_full("o", Bytes::new()).await.unwrap();
        assert!(pool.notify("o", Bytes::new()).await.unwrap(), "nobody to wait for");
        let mut rados = Command::new("rados")
            .args(["-p", "rbd", "watch", "o"])
            .env("CEPH_CONF", ceph.conf())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        ceph.reap(rados.id());
        while pool.watchers("o").await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(pool.notify("o", Bytes::from_static(b"news")).await.unwrap());
        // One that does not answer is waited for, but not for ever.
        run("kill", &["-STOP", &rados.id().to_string()]).ok();
        let begun = Instant::now();
        assert!(!pool.notify("o", Bytes::from_static(b"news")).await.unwrap());
        let seconds = begun.elapsed().as_secs();
        assert!((9..14).contains(&seconds), "{seconds} s");
        rados.kill().unwrap();
        rados.wait().unwrap();
    });
}

#[test]
fn others_see_that_an_image_is_in_use() {
    on_each_release(|ceph| {
        ceph.plain_image("used", "8M");
        let serve = ceph.serve(&["rbd/used"]);
        assert_eq!(ceph.watchers("used"), 1);
        let refused = ceph.run("rbd", &["rm", "--no-progress", "used"]).refused();
        assert!(refused.contains("image still has watchers"), "{refused}");
        // Readers, too, which librbd's are not; but not those of a snapshot, nor those who may only read.
        let reader = ceph.serve(&["--read-only", "rbd/used"]);
        assert_eq!(ceph.watchers("used"), 2);
        ceph.rbd(&["snap", "create", "--no-progress", "used@s"]);
        let caps = ["mon", "profile rbd", "osd", "profile rbd-read-only"];
        ceph.ceph(&[&["auth", "add", "client.reader"], &caps[..]].concat());
        let keyring = ceph.dir().join("reader.keyring");
        ceph.ceph(&["auth", "get", "client.reader", "-o", keyring.to_str().unwrap()]);
        let as_reader = ["--id", "reader", "--keyring", keyring.to_str().unwrap()];
        let unseen = [
            ceph.serve(&["rbd/used@s"]),
            ceph.serve(&[&as_reader[..], &["--read-only", "rbd/used"]].concat()),
        ];
        assert_eq!(ceph.watchers("used"), 2);
        drop(unseen);
        ceph.rbd(&["snap", "rm", "--no-progress", "used@s"]);
        // Whoever ends politely is gone at once, and so is whoever only came to change something.
        serve.terminate();
        assert_eq!(ceph.watchers("used"), 1);
        let refused = ceph.run("rbd", &["rm", "--no-progress", "used"]).refused();
        assert!(refused.contains("image still has watchers"), "{refused}");
        // A reader's size is the image's, as soon as whoever changed it is done.
        ceph.ours(&["resize", "--size", "16M", "--no-progress", "rbd/used"]).ok();
        assert_eq!(size(&reader.uri("rbd/used")), 16 << 20);
        reader.terminate();
        assert_eq!(ceph.watchers("used"), 0);
        ceph.rbd(&["rm", "--no-progress", "used"]);
    });
}

#[test]
fn a_client_that_was_killed_stops_being_seen_after_a_while() {
    on_each_release(|ceph| {
        ceph.plain_image("killed", "8M");
        drop(ceph.serve(&["rbd/killed"]));
        assert_eq!(ceph.watchers("killed"), 1, "nobody told the OSD");
        wait_for("the OSD gives the watch up", 60, || ceph.watchers("killed") == 0);
        ceph.rbd(&["rm", "--no-progress", "killed"]);
    });
}

#[test]
fn a_new_size_is_in_effect_when_whoever_resized_is_done() {
    on_each_release(|ceph| {
        ceph.plain_image("resized", "8M");
        let serve = ceph.serve(&["rbd/resized"]);
        let uri = serve.uri("rbd/resized");
        assert!(!io(&uri, &["write -P 1 8M 4k"]));
        ceph.rbd(&["resize", "--no-progress", "--size", "12M", "resized"]);
        assert_eq!(size(&uri), 12 << 20);
        assert!(io(&uri, &["write -P 1 8M 4k", "read -P 1 8M 4k"]));
        // By our own program as well, which waits for the answers and no longer.
        let begun = Instant::now();
        ceph.ours(&["resize", "--no-progress", "--size", "20M", "rbd/resized"]).ok();
        assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
        assert_eq!(size(&uri), 20 << 20);
        ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "4M", "resized"]);
        assert_eq!(size(&uri), 4 << 20);
        assert!(!io(&uri, &["write -P 1 4M 4k"]));
        ceph.rbd(&["resize", "--no-progress", "--size", "12M", "resized"]);
        assert!(io(&uri, &["read -P 0 8M 4k"]), "what was cut off does not come back");
        assert_eq!(ceph.watchers("resized"), 1);
    });
}

#[test]
fn a_snapshot_is_what_was_written_before_it() {
    on_each_release(|ceph| {
        ceph.plain_image("shot", "8M");
        let serve = ceph.serve(&["rbd/shot"]);
        let uri = serve.uri("rbd/shot");
        assert!(io(&uri, &["write -P 65 0 6M"]));
        let before = ceph.exported("shot");
        ceph.rbd(&["snap", "create", "--no-progress", "shot@a"]);
        assert!(io(&uri, &["write -P 66 0 5M", "discard 5M 1M", "write -P 66 7M 64k"]));
        assert_eq!(ceph.exported("shot@a"), before);
        assert!(io(&uri, &["read -P 66 0 5M", "read -P 0 5M 2M", "read -P 66 7M 64k"]));
        assert_ne!(ceph.exported("shot"), before);
        let snap = ceph.serve(&["rbd/shot@a"]);
        assert!(
            run("qemu-io", &["-r", "-f", "raw", &snap.uri("rbd/shot@a"), "-c", "read -P 65 0 6M"])
                .ok()
                .contains("read 6291456/6291456")
        );
        // Without it, nothing is left to preserve.
        ceph.rbd(&["snap", "rm", "--no-progress", "shot@a"]);
        assert!(io(&uri, &["write -P 67 0 8M", "read -P 67 0 8M"]));
    });
}

/// Whoever took a snapshot was told that all writers know of it: from then on it must not change.
#[test]
fn snapshots_under_load_do_not_change() {
    on_each_release(|ceph| {
        ceph.plain_image("busy", "16M");
        let mut serve = ceph.serve(&["rbd/busy"]);
        let uri = serve.uri("rbd/busy");
        scope(|scope| {
            let load = scope.spawn(|| {
                let uri = format!("--uri={uri}");
                let runtime = format!("--runtime={}", if full() { 30 } else { 8 });
                let args = ["--name=load", "--ioengine=nbd", &uri, "--rw=randwrite", MIXED_SIZES];
                let more = ["--iodepth=32", "--size=16M", "--time_based=1", &runtime[..]];
                ceph.run("fio", &[&args[..], &more].concat()).ok();
            });
            sleep(Duration::from_millis(700));
            let mut snapshots = Vec::new();
            while !load.is_finished() && snapshots.len() < 30 {
                let snapshot = format!("busy@{}", snapshots.len());
                ceph.rbd(&["snap", "create", "--no-progress", &snapshot]);
                let content = ceph.exported(&snapshot);
                snapshots.push((snapshot, content));
            }
            load.join().unwrap();
            // The last one may have been taken after the load.
            assert!(snapshots.len() > 3, "{} snapshots are too few", snapshots.len());
            for (snapshot, content) in &snapshots {
                assert_eq!(ceph.exported(snapshot), *content, "{snapshot} has changed");
            }
            let different: std::collections::BTreeSet<_> =
                snapshots.iter().map(|(_, content)| content).collect();
            assert!(different.len() + 1 >= snapshots.len(), "nothing was written in between");
        });
        serve.assert_running();
        super::data::assert_same_for_librbd_and_nbd(ceph, "busy", &uri);
    });
}

async fn open(pool: &Pool, name: &str) -> Image {
    Image::open(pool, name, &OpenOptions::default()).await.unwrap()
}

/// What is written to it from now on preserves.
fn preserved(image: &Image) -> Vec<SnapId> {
    image.header().snap_context.snaps.clone()
}

/// The settings of its pool are in another placement group than its header, and that may be out of reach.
#[test]
fn a_snapshot_does_not_wait_for_settings() {
    let ceph = Ceph::start(Options { osds: 2, ..Options::default() });
    ceph.ceph(&["osd", "pool", "set", "rbd", "size", "1", "--yes-i-really-mean-it"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // They are waited for; they fail.
    for limit in ["0", "2"] {
        let options = format!("--rados_osd_op_timeout={limit}");
        runtime.block_on(async {
            let cluster = Cluster::connect(config_of(&ceph, &[&options])).await.unwrap();
            let pool = cluster.pool("rbd").await.unwrap();
            let osd_of = |object: &str| {
                let map = ["osd", "map", "rbd", object, "--format", "json"];
                ceph.run("ceph", &map).json()["acting_primary"].as_u64().unwrap()
            };
            let unreachable = osd_of("rbd_info");
            let mut number = 0;
            let name = loop {
                number += 1;
                let name = format!("image{limit}-{number}");
                let features = Features::LAYERING;
                let options = CreateOptions { features, ..CreateOptions::new(8 << 20) };
                let id = admin::create(&pool, &name, &options).await.unwrap();
                if osd_of(&names::header(&id)) != unreachable {
                    break name;
                }
            };
            let (one, other) = (open(&pool, &name).await, open(&pool, &name).await);
            let osd = ceph.pid(&format!("osd.{unreachable}")).to_string();
            run("kill", &["-STOP", &osd]).ok();
            let begun = Instant::now();
            let taken = admin::create_snapshot(&one, &SnapshotNamespace::User, "s");
            let taken = tokio::time::timeout(Duration::from_secs(25), taken).await;
            let snap = taken.expect("in time").unwrap();
            assert!(begun.elapsed() > Duration::from_secs(1), "settings were in reach");
            assert_eq!((preserved(&one), preserved(&other)), (vec![snap], vec![snap]));
            run("kill", &["-CONT", &osd]).ok();
            one.close().await;
            other.close().await;
        });
    }
}

/// A snapshot that is there has to be known to all who write, whatever goes wrong after it was taken.
#[test]
fn all_know_of_a_snapshot_whose_object_map_could_not_be_made() {
    on_each_release(|ceph| {
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            admin::create(&pool, "unmapped", &CreateOptions::new(8 << 20)).await.unwrap();
            let (one, other) = (open(&pool, "unmapped").await, open(&pool, "unmapped").await);
            // Without the lock it has no map, as when that goes meanwhile.
            let user = SnapshotNamespace::User;
            let error = admin::create_snapshot(&one, &user, "s").await.unwrap_err();
            assert_eq!(error.kind(), Kind::Busy, "{error}");
            assert_eq!(preserved(&one).len(), 1);
            assert_eq!(preserved(&other), preserved(&one));
            one.close().await;
            other.close().await;
        });
    });
}

/// Does something to an image whose header object is then out of order, and returns whether it failed, although others
/// were told that the image has changed.
async fn fails_and_is_told(pool: &Pool, image: &Image, what: &Maintenance) -> bool {
    let mut watch = pool.watch(&names::header(image.id())).await.unwrap();
    let told = async {
        while let WatchEvent::Notify(notification) = watch.next().await {
            watch.acknowledge(notification.id, Bytes::new()).await.unwrap();
            if notification.payload == notify::header_update() {
                return true;
            }
        }
        false
    };
    let (told, progress) = (tokio::time::timeout(Duration::from_secs(30), told), &mut |_, _| {});
    let (done, told) = tokio::join!(image.maintain(what, progress), told);
    done.is_err() && told == Ok(true)
}

/// A change that is made has to be known to all who have the image open, whether whoever made it could take note of it
/// or not.
#[test]
fn all_are_told_of_a_change_that_could_not_be_noted() {
    on_each_release(|ceph| {
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            let noted = async |name: &str, what: Maintenance| {
                admin::create(&pool, name, &CreateOptions::new(8 << 20)).await.unwrap();
                let image = open(&pool, name).await;
                // For this it takes the exclusive lock.
                let first = Maintenance::Resize { size: 16 << 20, may_shrink: false };
                image.maintain(&first, &mut |_, _| {}).await.unwrap();
                // From now on its header can be changed, but not be read as a whole.
                let header = names::header(image.id());
                ceph.rados(&["-p", "rbd", "setomapval", &header, "parent", "nothing"]);
                assert!(fails_and_is_told(&pool, &image, &what).await, "{what:?}");
                ceph.rados(&["-p", "rbd", "rmomapkey", &header, "parent"]);
                image.close().await;
            };
            let maps = Features::OBJECT_MAP;
            // What fails half-way has switched something, too.
            let half_way = async {
                let options =
                    CreateOptions { features: Features::LAYERING, ..CreateOptions::new(8 << 20) };
                let id = admin::create(&pool, "half-way", &options).await.unwrap();
                let image = open(&pool, "half-way").await;
                let map = names::object_map(&id, SnapId::HEAD);
                pool.write_full(&map, Bytes::from_static(b"no map")).await.unwrap();
                let features = (Features::EXCLUSIVE_LOCK | maps).0;
                let what = Maintenance::UpdateFeatures { features, enable: true };
                assert!(fails_and_is_told(&pool, &image, &what).await);
                // Whoever writes takes the lock.
                assert!(image.header().features.contains(Features::EXCLUSIVE_LOCK));
                image.close().await;
            };
            tokio::join!(
                noted("noted-size", Maintenance::Resize { size: 32 << 20, may_shrink: false }),
                noted(
                    "noted-features",
                    Maintenance::UpdateFeatures { features: maps.0, enable: false }
                ),
                noted("noted-maps", Maintenance::RebuildObjectMap),
                half_way,
            );
        });
    });
}

#[test]
fn features_that_we_do_not_keep_end_writing_until_they_are_gone() {
    on_each_release(|ceph| {
        ceph.create_pool("featured");
        ceph.rbd(&["mirror", "pool", "enable", "featured", "image"]);
        ceph.rbd(&["create", "featured/image", "--size", "8M"]);
        ceph.rbd(&["mirror", "image", "enable", "featured/image", "snapshot"]);
        let serve = ceph.serve(&["featured/image"]);
        let uri = serve.uri("featured/image");
        assert!(io(&uri, &["write -P 1 0 64k"]));
        ceph.rbd(&["mirror", "image", "demote", "featured/image"]);
        assert!(!io(&uri, &["write -P 2 0 64k"]));
        assert!(!io(&uri, &["discard 0 64k"]));
        let read = run("qemu-io", &["-r", "-f", "raw", &uri, "-c", "read -P 1 0 64k"]).ok();
        assert!(read.contains("read 65536/65536"), "{read}");
        let log = serve.log();
        assert!(log.contains("can no longer be written to"), "{log}");
        assert!(log.contains("non-primary"), "{log}");
        // Of which nobody is told.
        ceph.rbd(&["mirror", "image", "promote", "featured/image"]);
        wait_for("it can be written to again", 20, || io(&uri, &["write -P 3 0 64k"]));
        assert!(io(&uri, &["read -P 3 0 64k"]), "{}", serve.log());
    });
}

#[test]
fn the_watch_outlives_its_osd() {
    let ceph = Ceph::start(Options { store: Store::Bluestore, ..Options::default() });
    ceph.plain_image("image", "8M");
    let serve = ceph.serve(&["rbd/image"]);
    ceph.kill_osd(0);
    ceph.start_osd(0);
    wait_for("the watch is back", 20, || ceph.watchers("image") == 1);
    still_told(&ceph, &serve, 12);
    assert!(!serve.log().contains("lost the watch"), "{}", serve.log());
    if !full() {
        return;
    }
    // Longer than an OSD waits for a watcher, and so it is not expected to be there any more.
    ceph.kill_osd(0);
    wait_for("the loss is noticed", 60, || serve.log().contains("lost the watch"));
    ceph.start_osd(0);
    // With nobody to report it, the monitors never knew that it was down. On a busy machine it starts slowly.
    wait_for("the watch is back", 200, || serve.log().contains("watching the image again"));
    wait_for("no other is left", 60, || ceph.watchers("image") == 1);
    still_told(&ceph, &serve, 16);
}

/// A change is in effect when `rbd` is done, without waiting for anybody's timeout.
#[track_caller]
fn still_told(ceph: &Ceph, serve: &Serve, megabytes: u64) {
    let begun = Instant::now();
    ceph.rbd(&["resize", "--no-progress", "--size", &format!("{megabytes}M"), "image"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "took {:?}", begun.elapsed());
    assert_eq!(size(&serve.uri("rbd/image")), megabytes << 20);
}

//! Images with a journal: what we record is what librbd records, and each replays what the other has left.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ceph_native::image::transfer::Writer;
use ceph_native::image::{Image, Io, OpenOptions};
use proto::rbd::cls::RegisterJournalClient;

use crate::data::assert_same_for_librbd_and_nbd;
use crate::support::{Ceph, Release, run};
use crate::watch::{io, wait_for};
use crate::{fio_verify, on_each_release, with_client};

const FEATURES: &str = "layering,exclusive-lock,object-map,fast-diff,journaling";

impl Ceph {
    /// How many entries librbd finds that are not known to be done.
    #[track_caller]
    fn entries_left(&self, image: &str) -> u64 {
        let said = self.run("rbd", &["journal", "inspect", "--image", image]).ok();
        assert!(said.contains("0 errors") || !said.contains("error"), "{said}");
        let line = said.lines().find(|line| line.contains("entries inspected")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    fn content(&self, image: &str) -> Vec<u8> {
        let ran = self.run("rbd", &["export", "--no-progress", image, "-"]);
        assert_eq!(ran.code, 0, "{}", ran.err);
        ran.out
    }

    /// Removes all data of an image, behind everybody's back.
    fn lose_data(&self, image: &str) {
        let prefix = self.data_prefix(image);
        let objects = self.rados(&["-p", "rbd", "ls"]);
        for object in objects.lines().filter(|object| object.starts_with(&prefix)) {
            self.rados(&["-p", "rbd", "rm", object]);
        }
    }

    /// librbd writes, a block after the other.
    fn bench(&self, image: &str, total: &str) -> Child {
        let what = ["bench", image, "--io-type", "write", "--io-pattern", "rand"];
        let how = ["--io-size", "4K", "--io-threads", "1", "--rbd-cache", "false"];
        let mut command = self.command("rbd");
        command.args(what).args(how).args(["--io-total", total]);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    /// What of an image's journal is known to be done, as the journal's header has it.
    fn position(&self, image: &str) -> PathBuf {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let file = self.file(&format!("position{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        self.rados(&[
            "-p",
            "rbd",
            "getomapval",
            &self.journal(image),
            "client_",
            file.to_str().unwrap(),
        ]);
        file
    }

    fn set_position(&self, image: &str, position: &Path) {
        let args = ["-p", "rbd", "setomapval", &self.journal(image), "client_", "--input-file"];
        self.rados(&[&args[..], &[position.to_str().unwrap()]].concat());
    }

    fn journal(&self, image: &str) -> String {
        format!("journal.{}", self.id(image))
    }

    /// Those of an image's journal, with its header.
    fn journal_objects(&self, image: &str) -> Vec<String> {
        let (id, objects) = (self.id(image), self.rados(&["-p", "rbd", "ls"]));
        let is_of_it = |object: &&str| object.starts_with("journal") && object.contains(&id);
        objects.lines().filter(is_of_it).map(str::to_owned).collect()
    }

    fn pool_id(&self, pool: &str) -> u64 {
        let pools = self.run("ceph", &["osd", "lspools", "--format", "json"]).json();
        let pools = pools.as_array().unwrap();
        pools.iter().find(|other| other["poolname"] == pool).unwrap()["poolnum"].as_u64().unwrap()
    }

    fn id(&self, image: &str) -> String {
        let info = self.run("rbd", &["info", "--format", "json", image]).json();
        info["id"].as_str().unwrap().to_owned()
    }

    /// librbd finds so many events of each type that are not known to be done.
    #[track_caller]
    fn events(&self, image: &str, expected: &[(&str, usize)]) {
        let inspect = ["journal", "inspect", "--verbose", "--image", image];
        let said = self.run("rbd", &inspect).ok();
        for (what, times) in expected {
            let found = said.matches(&format!("\"event_type\": \"{what}\"")).count();
            assert_eq!(found, *times, "{what}: {said}");
        }
        assert!(said.contains(" 0 errors"), "{said}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }
}

/// Which blocks of 4 KiB are not the same.
fn blocks_that_differ(one: &[u8], other: &[u8]) -> Vec<usize> {
    assert_eq!(one.len(), other.len());
    let pairs = one.chunks(4096).zip(other.chunks(4096)).enumerate();
    pairs.filter(|(_, (one, other))| one != other).map(|(nth, _)| nth).collect()
}

/// Everything that a writer can do to an image of 64 MiB, and what it then reads.
const CHANGES: [&str; 9] = [
    "write -P 1 0 64k",
    "write -P 2 4095k 5M",
    "discard 4M 1M",
    "write -z 8M 1M",
    "write -z -u 5000k 100k",
    "write -P 3 63M 1M",
    "write -P 4 512 512",
    "write -P 5 20M 100k",
    "discard 20M 64k",
];

#[test]
fn what_is_written_is_recorded_as_librbd_records_it() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "--image-feature", FEATURES, "theirs"]);
        ceph.ours(&["create", "--size", "64M", "--image-feature", FEATURES, "ours"]).ok();
        for image in ["theirs", "ours"] {
            crate::verbs::printed_alike(ceph, &["info", image]);
            let serve = ceph.serve(&[&format!("rbd/{image}")]);
            let uri = serve.uri(&format!("rbd/{image}"));
            assert!(io(&uri, &CHANGES), "{}", serve.log());
            let left = ceph.entries_left(image);
            assert!(left > 300, "{left}: long writes are several entries");
            wait_for("all is known to be done", 12, || ceph.entries_left(image) == 0);
            fio_verify(ceph, 64, &["--ioengine=nbd", &format!("--uri={uri}")]);
            assert_same_for_librbd_and_nbd(ceph, image, &uri);
            // It goes to and fro, and nothing is left to be replayed.
            ceph.bench(image, "64K").wait().unwrap();
            assert!(io(&uri, &["write -P 7 1M 64k", "read -P 7 1M 64k"]), "{}", serve.log());
            serve.terminate();
            assert_eq!(ceph.entries_left(image), 0, "at the end");
            ceph.check_object_map(image);
        }
        let journals = ["theirs", "ours"].map(|image| ceph.id(image));
        ceph.ours(&["rm", "--no-progress", "theirs"]).ok();
        ceph.rbd(&["rm", "--no-progress", "ours"]);
        let left = ceph.rados(&["-p", "rbd", "ls"]);
        assert!(!journals.iter().any(|id| left.contains(id)), "{journals:?}: {left}");
    });
}

#[test]
fn each_replays_what_the_other_has_left() {
    on_each_release(|ceph| {
        for image in ["left-by-us", "left-by-librbd"] {
            ceph.rbd(&["create", "--size", "64M", "--image-feature", FEATURES, image]);
        }
        let mut bench = ceph.bench("left-by-librbd", "1G");
        let serve = ceph.serve(&["rbd/left-by-us"]);
        assert!(io(&serve.uri("rbd/left-by-us"), &CHANGES));
        run("kill", &["-9", &serve.pid().to_string()]).ok();
        std::thread::sleep(Duration::from_secs(1));
        bench.kill().unwrap();
        bench.wait().unwrap();
        let images = ["left-by-us", "left-by-librbd"].map(|image| {
            assert!(ceph.entries_left(image) > 0, "{image}");
            let content = ceph.content(image);
            // As if nothing of it had been done.
            ceph.lose_data(image);
            assert_ne!(blocks_that_differ(&ceph.content(image), &content), [0; 0]);
            content
        });
        let serve = ceph.serve_telling(&["rbd/left-by-librbd"], Some("info"));
        std::thread::scope(|scope| {
            // Whoever wants the lock waits until the cluster misses the one who had it.
            scope.spawn(|| assert!(ceph.bench("left-by-us", "4K").wait().unwrap().success()));
            let uri = serve.uri("rbd/left-by-librbd");
            assert!(io(&uri, &["write -P 1 0 4k"]), "{}", serve.log());
        });
        assert!(serve.log().contains("replayed the journal"), "{}", serve.log());
        serve.terminate();
        for (image, content) in ["left-by-us", "left-by-librbd"].iter().zip(images) {
            assert_eq!(ceph.entries_left(image), 0, "{image}");
            // One block was written since, and the last one of before may have been recorded and not done.
            let others = blocks_that_differ(&ceph.content(image), &content);
            assert!(others.len() <= 2, "{image}: {others:?}");
            ceph.check_object_map(image);
        }
    });
}

/// What is done to the image as a whole is in its journal, and in the right place among what is written: librbd makes
/// the same image of an empty one, with the same snapshots.
#[test]
fn operations_are_recorded_too() {
    on_each_release(|ceph| {
        let create = ["create", "--size", "8M", "--image-feature", FEATURES];
        ceph.ours(&[&create[..], &["done"]].concat()).ok();
        let begin = ceph.position("done");
        let serve = ceph.serve(&["rbd/done"]);
        let uri = serve.uri("rbd/done");
        let write = |what: &str| assert!(io(&uri, &[what]), "{}", serve.log());
        let ours = |args: &[&str]| drop(ceph.ours(args).ok());
        write("write -P 1 0 1M");
        ours(&["snap", "create", "--no-progress", "done@one"]);
        write("write -P 2 512k 1M");
        ours(&["snap", "create", "--no-progress", "done@two"]);
        ours(&["snap", "protect", "done@two"]);
        write("write -P 3 4M 1M");
        ours(&["resize", "--no-progress", "--size", "16M", "done"]);
        write("write -P 4 12M 1M");
        ours(&["resize", "--no-progress", "--allow-shrink", "--size", "10M", "done"]);
        ours(&["resize", "--no-progress", "--size", "20M", "done"]);
        ours(&["image-meta", "set", "done", "key", "value"]);
        ours(&["image-meta", "set", "done", "other", "value"]);
        ours(&["image-meta", "remove", "done", "other"]);
        ours(&["snap", "limit", "set", "--limit", "7", "done"]);
        ours(&["snap", "unprotect", "done@two"]);
        write("write -P 5 19M 1M");
        serve.terminate();
        ours(&["snap", "create", "--no-progress", "done@four"]);
        ours(&["snap", "rm", "--no-progress", "done@two"]);
        ours(&["snap", "rollback", "--no-progress", "done@one"]);
        ours(&["feature", "disable", "done", "fast-diff"]);
        // What fails for whoever wants it is not in the journal, where it would fail again.
        ours(&["snap", "protect", "done@four"]);
        for refused in [
            &["snap", "rm", "--no-progress", "done@four"][..],
            &["snap", "protect", "done@four"],
            &["snap", "rename", "done@four", "done@one"],
            &["feature", "disable", "done", "fast-diff"],
            &["image-meta", "remove", "done", "other"],
        ] {
            ceph.ours(refused).refused();
        }
        ours(&["snap", "unprotect", "done@four"]);
        assert_eq!(ceph.entries_left("done"), 0);

        let end = ceph.position("done");
        ceph.set_position("done", &begin);
        ceph.events(
            "done",
            &[
                ("SnapCreate", 3),
                ("SnapProtect", 2),
                ("SnapUnprotect", 2),
                ("SnapRemove", 1),
                ("SnapRollback", 1),
                ("SnapLimit", 1),
                // The third is that to the size of the snapshot.
                ("Resize", 4),
                ("MetadataSet", 2),
                ("MetadataRemove", 1),
                ("UpdateFeatures", 1),
                ("OpFinish", 18),
            ],
        );
        let file = ceph.file("done.journal");
        let path = file.to_str().unwrap();
        ceph.rbd(&["journal", "export", "--image", "done", "--path", path]);
        // What names, or numbers, belong to this image alone.
        ceph.set_position("done", &end);
        ours(&["snap", "rename", "done@four", "done@five"]);
        ours(&["rename", "done", "renamed"]);
        ours(&["rename", "renamed", "done"]);
        ceph.set_position("done", &end);
        ceph.events("done", &[("SnapRename", 1), ("Rename", 2), ("OpFinish", 3)]);
        // `rbd journal import` of 16 often waits for ever for what it has appended.
        if ceph.release() == Release::Pacific {
            return;
        }
        ceph.rbd(&[&create[..], &["again"]].concat());
        ceph.rbd(&["journal", "import", "--dest", "again", path]);
        // It is replayed by whoever writes next.
        ceph.rbd(&["snap", "create", "--no-progress", "again@replayed"]);
        for (version, theirs) in [("", ""), ("@one", "@one"), ("@five", "@four")] {
            let one = ceph.content(&format!("done{version}"));
            let other = ceph.content(&format!("again{theirs}"));
            assert_eq!(blocks_that_differ(&one, &other), [0; 0], "{version}");
        }
    });
}

/// More than a set of objects holds: another one is begun, and the one before goes.
#[test]
fn a_journal_does_not_grow_for_ever() {
    on_each_release(|ceph| {
        ceph.ours(&["create", "--size", "256M", "--image-feature", FEATURES, "long"]).ok();
        let serve = ceph.serve(&["rbd/long"]);
        let uri = serve.uri("rbd/long");
        for pattern in 1..=3 {
            assert!(io(&uri, &[&format!("write -P {pattern} {pattern}0M 60M")]), "{}", serve.log());
        }
        let status = || {
            ceph.run("rbd", &["journal", "status", "--format", "json", "--image", "long"]).json()
        };
        let set = |name: &str| status()[name].as_u64().unwrap();
        assert!(set("active_set") >= 2, "{}", status());
        assert!(io(&uri, &["write -P 9 0 4k"]));
        wait_for("what is done is removed", 20, || set("minimum_set") == set("active_set"));
        // With its header.
        assert!(ceph.journal_objects("long").len() <= 5, "{}", status());
        assert_same_for_librbd_and_nbd(ceph, "long", &uri);
        // What was recorded across the sets is replayed across them, as long as somebody needs it.
        let reader = RegisterJournalClient { id: "reader".to_owned(), data: Bytes::new() };
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            pool.call(&ceph.journal("long"), &reader).await.unwrap();
        });
        let position = ceph.position("long");
        assert!(io(&uri, &["write -P 4 0 100M", "write -P 5 50M 100M"]));
        let content = ceph.content("long");
        serve.terminate();
        assert!(set("active_set") > set("minimum_set") + 1, "{}", status());
        ceph.set_position("long", &position);
        ceph.lose_data("long");
        let serve = ceph.serve(&["rbd/long"]);
        assert!(io(&serve.uri("rbd/long"), &["write -P 5 200M 4k"]), "{}", serve.log());
        let others = blocks_that_differ(&ceph.content("long")[..150 << 20], &content[..150 << 20]);
        assert_eq!(others, [0; 0]);
    });
}

/// It comes and goes while somebody writes, whoever switches it.
#[test]
fn a_journal_comes_and_goes_under_a_writer() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "switched"]);
        let serve = ceph.serve(&["rbd/switched"]);
        let uri = serve.uri("rbd/switched");
        let ours = |args: &[&str]| drop(ceph.ours(args).ok());
        let theirs = |args: &[&str]| drop(ceph.rbd(args));
        for program in [&theirs as &dyn Fn(&[&str]), &ours] {
            // Nobody has the lock, or the writer.
            for first in ["read -P 0 60M 4k", "write -P 1 0 4k"] {
                assert!(io(&uri, &[first]));
                program(&["feature", "enable", "switched", "journaling"]);
                assert!(io(&uri, &["write -P 2 1M 64k", "discard 4M 4M"]), "{}", serve.log());
                assert!(ceph.entries_left("switched") > 0);
                program(&["feature", "disable", "switched", "journaling"]);
                assert!(io(&uri, &["write -P 3 2M 64k"]), "{}", serve.log());
                assert_eq!(ceph.journal_objects("switched"), [""; 0]);
                ceph.bench("switched", "4K").wait().unwrap();
            }
        }
        std::thread::scope(|scope| {
            let verify =
                scope.spawn(|| fio_verify(ceph, 64, &["--ioengine=nbd", &format!("--uri={uri}")]));
            while !verify.is_finished() {
                for program in [&theirs as &dyn Fn(&[&str]), &ours] {
                    program(&["feature", "enable", "switched", "journaling"]);
                    program(&["feature", "disable", "switched", "journaling"]);
                }
            }
        });
        assert_same_for_librbd_and_nbd(ceph, "switched", &uri);
        serve.terminate();
        ceph.check_object_map("switched");
    });
}

/// Whoever asked is gone: what was recorded for it is done, and holds up nothing.
#[test]
fn what_is_recorded_for_who_is_gone_is_done() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "8M", "--image-feature", FEATURES, "left"]);
        with_client(ceph, async |cluster| {
            let pool = cluster.pool("rbd").await.unwrap();
            let image = Image::open(&pool, "left", &OpenOptions::default()).await.unwrap();
            let mut writer = Writer::new(&image);
            writer.write(0, Bytes::from_static(&[1; 4096])).await.unwrap();
            writer.finish().await.unwrap();
            let mut queue = image.queue();
            for nth in 1..4 {
                let data = Bytes::from_static(&[2; 4096]);
                queue.submit(nth, Io::Write { offset: nth << 20, data });
            }
            queue.kick();
            drop(queue);
            // It goes on, and what it does counts.
            writer.write(1 << 20, Bytes::from_static(&[3; 4096])).await.unwrap();
            writer.finish().await.unwrap();
            image.close().await;
        });
        assert_eq!(ceph.entries_left("left"), 0);
        let content = ceph.content("left");
        let found: Vec<_> = (0..5).map(|nth| content[nth << 20]).collect();
        assert_eq!(found, [1, 3, 2, 2, 0]);
        ceph.check_object_map("left");
    });
}

/// What is in it cannot be read: that is said, by whoever wants to write, and whoever removes the image need not.
#[test]
fn a_damaged_journal_is_named_and_can_be_removed() {
    on_each_release(|ceph| {
        let garbage = ceph.file("garbage");
        std::fs::write(&garbage, [7; 4096]).unwrap();
        for image in ["unreadable", "forgotten"] {
            ceph.ours(&["create", "--size", "8M", "--image-feature", FEATURES, image]).ok();
            let object = format!("journal_data.{}.{}.0", ceph.pool_id("rbd"), ceph.id(image));
            ceph.rados(&["-p", "rbd", "put", &object, garbage.to_str().unwrap()]);
        }
        let serve = ceph.serve(&["rbd/unreadable"]);
        let uri = serve.uri("rbd/unreadable");
        assert!(!io(&uri, &["write -P 1 0 64k"]));
        assert!(io(&uri, &["read -P 0 0 64k"]));
        assert!(serve.log().contains("rbd journal reset"), "{}", serve.log());
        let refused = ceph.ours(&["snap", "create", "--no-progress", "forgotten@s"]).refused();
        assert!(refused.contains("rbd journal reset"), "{refused}");
        ceph.rbd(&["journal", "reset", "--image", "unreadable"]);
        wait_for("it is opened again", 20, || io(&uri, &["write -P 1 0 64k"]));
        let id = ceph.id("forgotten");
        ceph.ours(&["rm", "--no-progress", "forgotten"]).ok();
        let left = ceph.rados(&["-p", "rbd", "ls"]);
        assert!(!left.contains(&id), "{left}");
    });
}

/// A mirror is written by its mirroring daemon only.
#[test]
fn a_mirror_is_not_written_to() {
    on_each_release(|ceph| {
        ceph.create_pool("mirrors");
        ceph.rbd(&["mirror", "pool", "enable", "mirrors", "image"]);
        ceph.rbd(&["create", "--size", "8M", "--image-feature", FEATURES, "mirrors/image"]);
        ceph.rbd(&["mirror", "image", "enable", "mirrors/image", "journal"]);
        let refused = ceph.ours(&["feature", "disable", "mirrors/image", "journaling"]).refused();
        assert!(refused.contains("mirrored"), "{refused}");
        let serve = ceph.serve(&["mirrors/image"]);
        let uri = serve.uri("mirrors/image");
        assert!(io(&uri, &["write -P 1 0 64k"]), "{}", serve.log());
        ceph.rbd(&["mirror", "image", "demote", "mirrors/image"]);
        assert!(!io(&uri, &["write -P 2 0 64k"]));
        assert!(io(&uri, &["read -P 1 0 64k"]));
        assert!(serve.log().contains("is a mirror"), "{}", serve.log());
        ceph.rbd(&["mirror", "image", "promote", "mirrors/image"]);
        wait_for("it can be written to again", 20, || io(&uri, &["write -P 3 0 64k"]));

        // Where all images with a journal are mirrored, we make none.
        ceph.create_pool("all");
        ceph.rbd(&["mirror", "pool", "enable", "all", "pool"]);
        let create = ["create", "--size", "8M", "--image-feature", FEATURES, "all/image"];
        let refused = ceph.ours(&create).refused();
        assert!(refused.contains("mirrors all images"), "{refused}");
        assert_eq!(ceph.rbd(&["ls", "all"]), "");
        let left = ceph.rados(&["-p", "all", "ls"]);
        assert!(!left.contains("rbd_header") && !left.contains("rbd_id"), "{left}");
    });
}

/// Who has lost the lock writes nothing more to a journal that is another's, and writes on when it has it again.
#[test]
fn a_lock_that_was_broken_ends_recording() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "--image-feature", FEATURES, "broken"]);
        let serve = ceph.serve(&["rbd/broken"]);
        let uri = serve.uri("rbd/broken");
        std::thread::scope(|scope| {
            let verify =
                scope.spawn(|| fio_verify(ceph, 64, &["--ioengine=nbd", &format!("--uri={uri}")]));
            for nth in 0..2 {
                std::thread::sleep(Duration::from_millis(500));
                let Some((locker, cookie)) = ceph.lock_owner("broken") else { continue };
                let rm = ["lock", "rm", "broken", &cookie, &locker];
                ceph.run("rbd", &[&rm[..], &["--rbd-blocklist-on-break-lock=false"]].concat()).ok();
                // Somebody takes it.
                ceph.rbd(&["snap", "create", "--no-progress", &format!("broken@{nth}")]);
            }
            verify.join().unwrap();
        });
        assert_same_for_librbd_and_nbd(ceph, "broken", &uri);
        serve.terminate();
        assert_eq!(ceph.entries_left("broken"), 0);
    });
}

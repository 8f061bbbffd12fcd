//! Clones that are flattened by whoever has the exclusive lock, for others, while they are written to.

use std::thread::{scope, sleep};
use std::time::Duration;

use crate::data::assert_same_for_librbd_and_nbd;
use crate::lock::librbd_writer_with;
use crate::support::{Ceph, Ran, program, run_in};
use crate::watch::{io, wait_for};
use crate::{fio_verify, on_new_clusters, random_file};

const MEGABYTES: u64 = 64;

/// So that flattening takes long enough for something to happen meanwhile.
const SLOWLY: &str = "--rbd-concurrent-management-ops=1";

impl Ceph {
    /// A clone with all features of a parent of its own, all of whose 2048 objects are there; and its bytes.
    fn full_clone(&self, clone: &str) -> Vec<u8> {
        let file = self.dir().join(format!("{clone}.random"));
        random_file(&file, MEGABYTES << 20);
        let parent = format!("{clone}-parent");
        let import = ["import", "--no-progress", "--object-size", "32K"];
        self.rbd(&[&import[..], &[file.to_str().unwrap(), &parent]].concat());
        self.rbd(&["snap", "create", "--no-progress", &format!("{parent}@snap")]);
        let args = ["clone", "--rbd-default-clone-format", "2", "--object-size", "32K"];
        self.rbd(&[&args[..], &[&format!("{parent}@snap"), clone]].concat());
        std::fs::read(file).unwrap()
    }

    /// Nothing of the image depends on its parent any more: that one goes.
    #[track_caller]
    fn remove_parent_of(&self, clone: &str) {
        let info = self.run("rbd", &["info", "--format", "json", clone]).json();
        assert!(info["parent"].is_null(), "{info}");
        let parent = format!("{clone}-parent");
        assert_eq!(self.rbd(&["children", "--all", &parent]), "");
        self.rbd(&["snap", "purge", "--no-progress", &parent]);
        self.rbd(&["rm", "--no-progress", &parent]);
    }

    /// Ours, as on a terminal.
    fn ours_on_a_terminal(&self, verb: &str) -> Ran {
        let line = format!("{} {verb}", program());
        run_in("script", &["-qec", &line, "/dev/null"], &[("CEPH_CONF", &self.conf())], 120)
    }

    fn read(&self, spec: &str) -> Vec<u8> {
        self.run("rbd", &["export", "--no-progress", spec, "-"]).out
    }
}

/// The percentages that somebody was shown between nothing and all.
fn percentages(shown: &str) -> usize {
    let numbers = shown.split('%').filter_map(|before| {
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    });
    numbers.filter(|percent| (1..100).contains(percent)).count()
}

#[test]
fn we_flatten_for_others_what_we_write_to() {
    on_new_clusters(|ceph| {
        for by in ["rbd", "ours"] {
            let clone = format!("for-{by}");
            let bytes = ceph.full_clone(&clone);
            let [before, during] = ["before", "during"].map(|snap| format!("{clone}@{snap}"));
            ceph.rbd(&["snap", "create", "--no-progress", &before]);
            let serve = ceph.serve(&[SLOWLY, &format!("rbd/{clone}")]);
            let uri = serve.uri(&format!("rbd/{clone}"));
            assert!(io(&uri, &["write -P 1 0 64k"]));
            let owner = ceph.lock_owner(&clone);
            scope(|scope| {
                let flattened = scope.spawn(|| match by {
                    "rbd" => ceph.run("rbd", &["flatten", &clone]),
                    _ => ceph.ours_on_a_terminal(&format!("flatten rbd/{clone}")),
                });
                scope.spawn(|| {
                    fio_verify(ceph, 32, &["--ioengine=nbd", &format!("--uri={uri}")]);
                });
                sleep(Duration::from_secs(1));
                ceph.rbd(&["snap", "create", "--no-progress", &during]);
                assert!(io(&uri, &["discard 40M 4M", "write -P 3 50M 1M", "read -P 3 50M 1M"]));
                let flattened = flattened.join().unwrap();
                let shown = flattened.to_string();
                assert!(percentages(&shown) > 1, "{shown}");
                flattened.ok();
            });
            assert_eq!(ceph.lock_owner(&clone), owner, "done by us");
            ceph.remove_parent_of(&clone);
            assert!(ceph.read(&before) == bytes, "{before}");
            let head = ceph.read(&clone);
            assert!(head[32 << 20..40 << 20] == bytes[32 << 20..40 << 20]);
            assert!(head[51 << 20..] == bytes[51 << 20..]);
            assert!(head[40 << 20..44 << 20].iter().all(|byte| *byte == 0));
            assert!(ceph.read(&during)[51 << 20..] == bytes[51 << 20..]);
            assert_same_for_librbd_and_nbd(ceph, &clone, &uri);
            serve.terminate();
            for spec in [&clone, &before, &during] {
                ceph.check_object_map(spec);
            }
            let again = ceph.ours(&["flatten", &clone]);
            assert_eq!(again.code, 22, "{again}");
        }
    });
}

#[test]
fn librbd_flattens_for_us_what_it_writes_to() {
    on_new_clusters(|ceph| {
        let bytes = ceph.full_clone("theirs");
        let mut writer = librbd_writer_with(ceph, "theirs", &[("CEPH_ARGS", SLOWLY)]);
        wait_for("librbd has the lock", 60, || ceph.lock_owner("theirs").is_some());
        let owner = ceph.lock_owner("theirs");
        let flattened = ceph.ours_on_a_terminal("flatten rbd/theirs");
        assert!(percentages(&flattened.to_string()) > 1, "{flattened}");
        flattened.ok();
        assert_eq!(ceph.lock_owner("theirs"), owner, "done by librbd");
        let _ = writer.kill();
        let _ = writer.wait();
        ceph.remove_parent_of("theirs");
        // All but what was written meanwhile, 50 blocks a second.
        let head = ceph.read("theirs");
        assert_eq!(head.len(), bytes.len());
        let blocks = head.chunks(4096).zip(bytes.chunks(4096));
        let changed = blocks.filter(|(now, before)| now != before).count();
        assert!(changed < head.len() / 4096 / 2, "{changed} blocks changed");
        ceph.check_object_map("theirs");
    });
}

/// Who wants to write does not wait until an image is flattened: the lock goes to them, and the rest is asked of them.
#[test]
fn flattening_goes_on_when_the_lock_goes_elsewhere() {
    on_new_clusters(|ceph| {
        let bytes = ceph.full_clone("handed");
        ceph.rbd(&["snap", "create", "--no-progress", "handed@before"]);
        let [first, second] = [(); 2].map(|()| ceph.serve(&[SLOWLY, "rbd/handed"]));
        assert!(io(&first.uri("rbd/handed"), &["write -P 1 0 64k"]));
        scope(|scope| {
            let flattening = scope.spawn(|| {
                ceph.run("rbd", &["flatten", "handed"]).ok();
            });
            sleep(Duration::from_millis(500));
            // By turns: what the first has begun the second goes on with, and so on.
            for turn in 2..=3 {
                assert!(io(&second.uri("rbd/handed"), &[&format!("write -P {turn} 1M 64k")]));
                assert!(turn > 2 || !flattening.is_finished(), "it waited for all of it");
                assert!(io(&first.uri("rbd/handed"), &[&format!("write -P {turn} 2M 64k")]));
            }
            flattening.join().unwrap();
        });
        ceph.remove_parent_of("handed");
        assert!(ceph.read("handed@before") == bytes);
        assert!(ceph.read("handed")[3 << 20..] == bytes[3 << 20..]);
        let uri = first.uri("rbd/handed");
        assert!(io(&uri, &["read -P 1 0 64k", "read -P 3 1M 64k", "read -P 3 2M 64k"]));
        for serve in [first, second] {
            serve.terminate();
        }
        for spec in ["handed", "handed@before"] {
            ceph.check_object_map(spec);
        }
    });
}

/// Who ends does not stay until an image is flattened for others: they go on with it.
#[test]
fn flattening_goes_on_when_its_owner_ends() {
    on_new_clusters(|ceph| {
        for by in ["rbd", "ours"] {
            let clone = format!("left-to-{by}");
            let bytes = ceph.full_clone(&clone);
            let serve = ceph.serve(&[SLOWLY, &format!("rbd/{clone}")]);
            assert!(io(&serve.uri(&format!("rbd/{clone}")), &["write -P 1 0 64k"]));
            scope(|scope| {
                let flattening = scope.spawn(|| match by {
                    "rbd" => ceph.run("rbd", &["flatten", SLOWLY, &clone]).ok(),
                    _ => ceph.ours(&["flatten", SLOWLY, &clone]).ok(),
                });
                sleep(Duration::from_millis(300));
                assert_eq!(serve.terminate().0, 0);
                assert!(!flattening.is_finished(), "it stayed for all of it");
                flattening.join().unwrap();
            });
            ceph.remove_parent_of(&clone);
            assert!(ceph.read(&clone)[64 << 10..] == bytes[64 << 10..]);
            ceph.check_object_map(&clone);
        }
    });
}

/// What goes because the image shrinks is made for its snapshots first, whatever else is flattened at the time.
#[test]
fn what_snapshots_show_stays_when_it_is_flattened_and_shrinks_at_once() {
    on_new_clusters(|ceph| {
        let bytes = ceph.full_clone("both");
        ceph.rbd(&["snap", "create", "--no-progress", "both@before"]);
        let serve = ceph.serve(&[SLOWLY, "rbd/both"]);
        assert!(io(&serve.uri("rbd/both"), &["write -P 1 0 64k"]));
        scope(|scope| {
            let flattening = scope.spawn(|| {
                ceph.run("rbd", &["flatten", "--no-progress", "both"]).ok();
            });
            sleep(Duration::from_millis(200));
            let size = ["resize", "--no-progress", "both", "--size", "8M", "--allow-shrink"];
            ceph.rbd(&size);
            flattening.join().unwrap();
        });
        serve.terminate();
        ceph.remove_parent_of("both");
        assert!(ceph.read("both@before") == bytes);
        assert!(ceph.read("both")[64 << 10..] == bytes[64 << 10..8 << 20]);
        for spec in ["both", "both@before"] {
            ceph.check_object_map(spec);
        }
    });
}

/// The end of the size that it goes back to is within an object that only the parent has.
#[test]
fn a_clone_that_grew_goes_back_to_a_snapshot() {
    on_new_clusters(|ceph| {
        let file = ceph.dir().join("rolled.random");
        random_file(&file, 9 << 20);
        ceph.rbd(&["import", "--no-progress", file.to_str().unwrap(), "rolled-parent"]);
        ceph.rbd(&["snap", "create", "--no-progress", "rolled-parent@snap"]);
        let clone = ["clone", "--rbd-default-clone-format", "2", "rolled-parent@snap", "rolled"];
        ceph.rbd(&clone);
        ceph.rbd(&["snap", "create", "--no-progress", "rolled@s"]);
        ceph.rbd(&["resize", "--no-progress", "rolled", "--size", "16M"]);
        ceph.ours(&["snap", "rollback", "--no-progress", "rolled@s"]).ok();
        for spec in ["rolled", "rolled@s"] {
            assert!(ceph.read(spec) == std::fs::read(&file).unwrap(), "{spec}");
            ceph.check_object_map(spec);
        }
    });
}

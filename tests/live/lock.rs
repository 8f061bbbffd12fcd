//! Images as `rbd create` makes them, with exclusive lock and object map: shared with librbd, which must find them
//! right.

use std::process::{Child, Stdio};
use std::thread::scope;
use std::time::{Duration, Instant};

use crate::data::assert_same_for_librbd_and_nbd;
use crate::support::Ceph;
use crate::watch::{io, wait_for};
use crate::{fio_verify, on_each_release, on_new_clusters, run};

impl Ceph {
    /// Who holds an image's exclusive lock: id and cookie.
    pub(crate) fn lock_owner(&self, image: &str) -> Option<(String, String)> {
        let locks = self.run("rbd", &["lock", "ls", "--format", "json", image]).json();
        let lock = locks.as_array()?.first()?.clone();
        let text = |name: &str| lock[name].as_str().unwrap().to_owned();
        Some((text("locker"), text("id")))
    }

    /// librbd goes through all objects and compares them with the map.
    #[track_caller]
    pub(crate) fn check_object_map(&self, image: &str) {
        let ran = self.run("rbd", &["object-map", "check", "--no-progress", image]);
        let said = ran.to_string();
        ran.ok();
        let flags = self.run("rbd", &["info", "--format", "json", image]).json()["flags"].clone();
        assert_eq!(flags.as_array().map(Vec::len), Some(0), "{image}: {flags} {said}");
    }

    /// What the names of an image's data objects begin with.
    pub(crate) fn data_prefix(&self, image: &str) -> String {
        let info = self.run("rbd", &["info", "--format", "json", image]).json();
        info["block_name_prefix"].as_str().unwrap().to_owned()
    }

    fn rbd_bench(&self, image: &str, total: &str) {
        let size = ["--io-size", "4K", "--io-threads", "4"];
        let what = ["bench", image, "--io-type", "write", "--io-total", total];
        self.rbd(&[&what[..], &size].concat());
    }
}

fn signal(process: u32, signal: &str) {
    run("kill", &[signal, &process.to_string()]).ok();
}

#[test]
fn an_image_as_rbd_makes_it_is_written_and_right_for_librbd() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "128M", "default"]);
        let serve = ceph.serve(&["rbd/default"]);
        let uri = serve.uri("rbd/default");
        assert_eq!(ceph.lock_owner("default"), None, "nothing was written yet");
        assert!(io(&uri, &["read -P 0 0 8M", "write -P 1 5M 64k"]));
        let (_, cookie) = ceph.lock_owner("default").unwrap();
        assert!(cookie.starts_with("auto "), "{cookie}");
        let status = ceph.run("rbd", &["status", "--format", "json", "default"]).json();
        assert_eq!(cookie, format!("auto {}", status["watchers"][0]["cookie"]));
        fio_verify(ceph, 128, &["--ioengine=nbd", &format!("--uri={uri}")]);
        assert!(io(
            &uri,
            &["discard 4M 20M", "write -z 40M 4M", "discard 65M 2M", "write -P 7 21M 1M"]
        ));
        assert!(io(&uri, &["read -P 0 4M 17M", "read -P 7 21M 1M", "read -P 0 40M 4M"]));
        assert_same_for_librbd_and_nbd(ceph, "default", &uri);
        serve.terminate();
        assert_eq!(ceph.lock_owner("default"), None, "given back at the end");
        ceph.check_object_map("default");
    });
}

/// Each takes the lock from the other, without anybody's timeout.
#[test]
fn the_lock_goes_to_librbd_and_comes_back() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "handed"]);
        let serve = ceph.serve(&["rbd/handed"]);
        let uri = serve.uri("rbd/handed");
        let begun = Instant::now();
        for turn in 1..=3 {
            assert!(io(&uri, &[&format!("write -P {turn} {turn}M 64k"), "write -P 9 40M 1M"]));
            let ours = ceph.lock_owner("handed").unwrap();
            // It takes the lock, writes, and gives it back at its end.
            ceph.rbd_bench("handed", "256K");
            assert_eq!(ceph.lock_owner("handed"), None, "after {ours:?}");
        }
        assert!(begun.elapsed() < Duration::from_secs(25), "took {:?}", begun.elapsed());
        assert!(io(&uri, &["read -P 1 1M 64k", "read -P 3 3M 64k", "write -P 5 50M 64k"]));
        assert_same_for_librbd_and_nbd(ceph, "handed", &uri);
        serve.terminate();
        ceph.check_object_map("handed");
    });
}

/// Reading takes no lock: neither does it wait for one, nor is it taken from whoever has it.
#[test]
fn readers_do_not_ask_for_the_lock() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "read"]);
        let writer = ceph.serve(&["rbd/read"]);
        assert!(io(&writer.uri("rbd/read"), &["write -P 1 0 64k"]));
        let owner = ceph.lock_owner("read");
        let reader = ceph.serve(&["rbd/read"]);
        assert!(io(&reader.uri("rbd/read"), &["read -P 1 0 64k", "read -P 0 1M 64k", "flush"]));
        assert_eq!(ceph.lock_owner("read"), owner);
        // It writes: now the lock is its.
        assert!(io(&reader.uri("rbd/read"), &["write -P 2 1M 64k"]));
        assert_ne!(ceph.lock_owner("read"), owner);
        assert!(io(&writer.uri("rbd/read"), &["read -P 2 1M 64k"]));
    });
}

#[test]
fn whoever_keeps_the_lock_is_named_to_those_who_want_it() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "kept"]);
        ceph.rbd(&["snap", "create", "--no-progress", "kept@snap"]);
        let kept = ceph.serve(&["--exclusive", "rbd/kept"]);
        let (owner, _) = ceph.lock_owner("kept").expect("taken before anything is written");
        // librbd is refused: EROFS.
        let args = ["bench", "kept", "--io-type", "write", "--io-total", "64K", "--io-size", "4K"];
        let refused = ceph.run("rbd", &args);
        assert_ne!(refused.code, 0, "{refused}");
        let other = ceph.serve(&["rbd/kept"]);
        assert!(io(&other.uri("rbd/kept"), &["read -P 0 0 64k"]));
        assert!(!io(&other.uri("rbd/kept"), &["write -P 2 0 64k"]));
        assert!(other.log().contains(&format!("kept by {owner} at")), "{}", other.log());
        let snapshot = ["serve", "--exclusive", "rbd/kept@snap", "--listen", "127.0.0.1:0"];
        let said = ceph.ours(&snapshot).refused();
        assert!(said.contains("takes no exclusive lock"), "{said}");
        let second = ceph.ours(&["serve", "--exclusive", "rbd/kept", "--listen", "127.0.0.1:0"]);
        assert_eq!(second.code, 30, "{second}");
        assert!(second.err.contains(&owner), "{second}");
        assert!(io(&kept.uri("rbd/kept"), &["write -P 1 0 64k", "read -P 1 0 64k"]));
        // When it ends, the others go on.
        kept.terminate();
        wait_for("writes succeed", 20, || io(&other.uri("rbd/kept"), &["write -P 3 0 64k"]));
        // Without the feature there is nothing to keep.
        ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "plain-kept"]);
        let refused =
            ceph.ours(&["serve", "--exclusive", "rbd/plain-kept", "--listen", "127.0.0.1:0"]);
        assert_eq!(refused.code, 22, "{refused}");
    });
}

/// An owner that is gone without a word is fenced off before its lock is broken.
#[test]
fn a_dead_owner_is_fenced_off() {
    on_new_clusters(|ceph| {
        for image in ["ours", "theirs"] {
            ceph.rbd(&["create", "--size", "64M", image]);
        }
        let ours = ceph.serve(&["rbd/ours"]);
        assert!(io(&ours.uri("rbd/ours"), &["write -P 1 0 64k"]));
        let mut theirs = librbd_writer(ceph, "theirs");
        wait_for("librbd has the lock", 60, || ceph.lock_owner("theirs").is_some());
        let dead = [ceph.lock_owner("ours"), ceph.lock_owner("theirs")];
        signal(ours.pid(), "-KILL");
        theirs.kill().unwrap();
        theirs.wait().unwrap();
        let heir = ceph.serve(&["rbd/theirs"]);
        scope(|scope| {
            // Both wait until the OSD has given up the watch of the dead.
            scope.spawn(|| ceph.rbd_bench("ours", "256K"));
            scope.spawn(|| {
                let uri = heir.uri("rbd/theirs");
                let begun = Instant::now();
                assert!(io(&uri, &["read 0 64k"]), "reading waits for nothing");
                assert!(begun.elapsed() < Duration::from_secs(15), "took {:?}", begun.elapsed());
                assert!(io(&uri, &["write -P 4 60M 64k", "read -P 4 60M 64k"]), "{}", heir.log());
            });
        });
        let fenced = ceph.ceph(&["osd", "blocklist", "ls"]);
        assert_eq!(fenced.lines().count(), 2, "{fenced}");
        assert!(heir.log().contains("fenced off"), "{}", heir.log());
        assert!(!dead.contains(&ceph.lock_owner("theirs")), "broken");
        assert_same_for_librbd_and_nbd(ceph, "theirs", &heir.uri("rbd/theirs"));
        heir.terminate();
        for image in ["ours", "theirs"] {
            ceph.check_object_map(image);
        }
    });
}

/// Who comes back from being frozen finds its watch gone: the lock is its still if nobody took it, and names its new
/// watch; of an image that was removed meanwhile it writes nothing any more.
#[test]
fn an_owner_that_lost_its_watch_has_the_lock_under_a_new_cookie() {
    on_new_clusters(|ceph| {
        let served = |image: &str| {
            ceph.rbd(&["create", "--size", "64M", image]);
            let serve = ceph.serve(&[&format!("rbd/{image}")]);
            let uri = serve.uri(&format!("rbd/{image}"));
            assert!(io(&uri, &["write -P 1 0 1M"]));
            (serve, uri)
        };
        let [(stays, uri), (goes, gone)] = ["stays", "goes"].map(served);
        let prefix = ceph.data_prefix("goes");
        let before = ceph.lock_owner("stays").unwrap();
        // While somebody has it open it is not removed, and it is said by whom.
        let refused = ceph.ours(&["rm", "--no-progress", "goes"]);
        assert_eq!(refused.code, 16, "{refused}");
        assert!(refused.err.contains(&ceph.lock_owner("goes").unwrap().0), "{refused}");
        for serve in [&stays, &goes] {
            signal(serve.pid(), "-STOP");
        }
        let watched = |image| {
            let status = ceph.run("rbd", &["status", "--format", "json", image]).json();
            status["watchers"][0]["cookie"].as_u64()
        };
        wait_for("the watches end", 90, || ["stays", "goes"].iter().all(|i| watched(i).is_none()));
        ceph.ours(&["rm", "--no-progress", "goes"]).ok();
        assert_eq!(ceph.ceph(&["osd", "blocklist", "ls"]).lines().count(), 1);
        scope(|scope| {
            scope.spawn(|| assert!(!io(&gone, &["write -P 2 1M 1M"]), "{}", goes.log()));
            for serve in [&stays, &goes] {
                signal(serve.pid(), "-CONT");
            }
        });
        assert!(!ceph.rados(&["-p", "rbd", "ls"]).contains(&prefix));

        wait_for("a new watch", 90, || watched("stays").is_some());
        assert!(io(&uri, &["write -P 2 1M 1M", "write -P 2 63M 1M"]), "{}", stays.log());
        let after = ceph.lock_owner("stays").unwrap();
        assert_eq!(after.0, before.0, "the same client");
        assert_ne!(after.1, before.1, "a new watch has a new cookie");
        assert_eq!(after.1, format!("auto {}", watched("stays").unwrap()));
        // librbd finds in it somebody to ask.
        ceph.rbd_bench("stays", "64K");
        assert!(io(&uri, &["write -P 3 2M 1M"]));
        assert_same_for_librbd_and_nbd(ceph, "stays", &uri);
        stays.terminate();
        ceph.check_object_map("stays");
    });
}

/// A lock that a user took is nobody's to ask for.
#[test]
fn what_a_user_locked_is_not_changed() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "8M", "by-hand"]);
        ceph.rbd(&["lock", "add", "by-hand", "cookie"]);
        let locker = ceph.lock_owner("by-hand").unwrap().0;
        for args in [
            &["snap", "create", "--no-progress", "by-hand@a"][..],
            &["resize", "--no-progress", "--size", "16M", "by-hand"],
            &["image-meta", "set", "by-hand", "key", "value"],
            &["rename", "by-hand", "other"],
            &["object-map", "rebuild", "--no-progress", "by-hand"],
            &["feature", "disable", "by-hand", "object-map"],
        ] {
            let why = crate::verbs::refused_alike(ceph, args);
            assert!(why.contains(&locker), "{why}");
        }
        // librbd tries for ever.
        for args in [&["rm", "--no-progress", "by-hand"][..], &["trash", "mv", "by-hand"]] {
            let refused = ceph.ours(args);
            assert_eq!(refused.code, 16, "{refused}");
            assert!(refused.err.contains(&locker), "{refused}");
        }
        ceph.rbd(&["lock", "rm", "by-hand", "cookie", &locker]);
        ceph.ours(&["rm", "--no-progress", "by-hand"]).ok();
    });
}

/// Four million objects of which the map says that they are not there.
#[test]
fn an_image_is_removed_by_its_object_map() {
    on_each_release(|ceph| {
        ceph.ours(&["create", "--size", "16T", "huge"]).ok();
        let prefix = ceph.data_prefix("huge");
        let serve = ceph.serve(&["rbd/huge"]);
        let uri = serve.uri("rbd/huge");
        assert!(io(&uri, &["write -P 1 0 64k", "write -P 1 9T 64k", "write -P 1 17179869180k 4k"]));
        serve.terminate();
        assert_eq!(ceph.rados(&["-p", "rbd", "ls"]).matches(&format!("{prefix}.")).count(), 3);
        // In the trash it goes from hand to hand as well.
        ceph.ours(&["trash", "mv", "huge"]).ok();
        ceph.ours(&["trash", "purge"]).ok();
        let left = ceph.rados(&["-p", "rbd", "ls"]);
        assert!(!left.contains(prefix.trim_start_matches("rbd_data.")), "{left}");
    });
}

/// A map that cannot be kept up is marked as invalid before anything is written.
#[test]
fn a_map_that_cannot_be_changed_becomes_invalid() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "damaged"]);
        let serve = ceph.serve(&["rbd/damaged"]);
        let uri = serve.uri("rbd/damaged");
        assert!(io(&uri, &["write -P 1 0 64k"]));
        let flags = || {
            let info = ceph.run("rbd", &["info", "--format", "json", "damaged"]).json();
            info["flags"].as_array().unwrap().len()
        };
        assert_eq!(flags(), 0);
        let map = ceph.data_prefix("damaged").replace("rbd_data.", "rbd_object_map.");
        ceph.rados(&["-p", "rbd", "truncate", &map, "3"]);
        assert!(io(&uri, &["write -P 2 40M 64k", "read -P 2 40M 64k", "read -P 1 0 64k"]));
        assert_eq!(flags(), 2, "{}", serve.log());
        assert!(io(&uri, &["write -P 3 50M 64k", "discard 40M 4M", "read -P 3 50M 64k"]));
        assert_same_for_librbd_and_nbd(ceph, "damaged", &uri);
        serve.terminate();
        ceph.ours(&["object-map", "rebuild", "--no-progress", "damaged"]).ok();
        ceph.check_object_map("damaged");
    });
}

/// fio on librbd that writes slowly and for long.
pub(crate) fn librbd_writer(ceph: &Ceph, image: &str) -> Child {
    librbd_writer_with(ceph, image, &[])
}

/// The same, with more in its environment.
pub(crate) fn librbd_writer_with(ceph: &Ceph, image: &str, envs: &[(&str, &str)]) -> Child {
    let name = format!("--rbdname={image}");
    let child = ceph
        .command("fio")
        .args(["--name=w", "--ioengine=rbd", "--clientname=admin", "--pool=rbd", &name])
        .args(["--rw=randwrite", "--bs=4k", "--size=64M", "--iodepth=4", "--rate_iops=50"])
        .args(["--time_based", "--runtime=600"])
        .envs(envs.iter().copied())
        .current_dir(ceph.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    ceph.reap(child.id());
    child
}

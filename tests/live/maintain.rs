//! What only the owner of the exclusive lock may do: each side does the other's, and object maps are right afterwards.

use std::process::Child;
use std::time::{Duration, Instant};

use crate::data::assert_same_for_librbd_and_nbd;
use crate::lock::librbd_writer;
use crate::support::Ceph;
use crate::watch::{io, wait_for};
use crate::{on_each_release, on_new_clusters};

impl Ceph {
    fn size(&self, image: &str) -> u64 {
        self.run("rbd", &["info", "--format", "json", image]).json()["size"].as_u64().unwrap()
    }

    fn features(&self, image: &str) -> Vec<String> {
        let info = self.run("rbd", &["info", "--format", "json", image]).json();
        let names = info["features"].as_array().unwrap().clone();
        names.iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    fn flags(&self, image: &str) -> usize {
        let info = self.run("rbd", &["info", "--format", "json", image]).json();
        info["flags"].as_array().unwrap().len()
    }
}

/// Ends it, and says nothing.
fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[test]
fn librbd_has_us_do_what_only_the_owner_may() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "--object-size", "1M", "asked"]);
        let serve = ceph.serve(&["rbd/asked"]);
        let uri = serve.uri("rbd/asked");
        assert!(io(&uri, &["write -P 1 0 64M"]));
        let owner = ceph.lock_owner("asked");
        assert!(owner.is_some());

        ceph.rbd(&["resize", "--no-progress", "--size", "96M", "asked"]);
        assert!(io(&uri, &["write -P 2 90M 1M", "read -P 1 63M 1M", "read -P 0 64M 26M"]));
        let refused = ceph.run("rbd", &["resize", "--no-progress", "--size", "10M", "asked"]);
        assert_eq!(refused.code, 22, "shrinking was not allowed: {refused}");
        ceph.rbd(&["resize", "--no-progress", "--size", "10M", "--allow-shrink", "asked"]);
        assert_eq!(ceph.size("asked"), 10 << 20);
        assert!(!io(&uri, &["write -P 2 11M 1M"]));
        ceph.rbd(&["resize", "--no-progress", "--size", "32M", "asked"]);
        assert!(io(&uri, &["read -P 1 0 10M", "read -P 0 10M 22M"]));
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");

        // A snapshot, which must not change, and its map.
        ceph.rbd(&["snap", "create", "--no-progress", "asked@one"]);
        let before = ceph.exported("asked@one");
        assert!(io(&uri, &["write -P 6 4M 2M", "discard 8M 2M", "write -P 6 31M 64k"]));
        ceph.rbd(&["snap", "create", "--no-progress", "asked@two"]);
        assert!(io(&uri, &["write -P 7 5M 2M"]));
        assert_eq!(ceph.exported("asked@one"), before);
        ceph.rbd(&["snap", "rename", "asked@two", "asked@third"]);
        ceph.rbd(&["snap", "protect", "asked@third"]);
        ceph.rbd(&["snap", "unprotect", "asked@third"]);
        ceph.rbd(&["snap", "rename", "asked@third", "asked@two"]);
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");
        // librbd takes the lock to look.
        for spec in ["asked", "asked@one", "asked@two"] {
            ceph.check_object_map(spec);
        }
        assert!(io(&uri, &["write -P 8 2M 64k"]));
        let owner = ceph.lock_owner("asked");
        ceph.rbd(&["snap", "rm", "--no-progress", "asked@two"]);
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");
        ceph.check_object_map("asked");
        // Back to it, by our own program, which takes the lock for that.
        ceph.ours(&["snap", "rollback", "--no-progress", "asked@one"]).ok();
        assert_eq!(ceph.exported("asked"), before);
        ceph.check_object_map("asked");
        ceph.ours(&["snap", "rm", "--no-progress", "asked@one"]).ok();
        ceph.check_object_map("asked");
        assert!(io(&uri, &["write -P 8 0 64k"]));
        let owner = ceph.lock_owner("asked");

        // Its name, and back again, by turns; and what users note with it.
        ceph.rbd(&["rename", "asked", "renamed"]);
        ceph.ours(&["rename", "renamed", "third"]).ok();
        ceph.ours(&["rename", "third", "asked"]).ok();
        ceph.ours(&["image-meta", "set", "asked", "key", "value"]).ok();
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");
        assert_eq!(ceph.rbd(&["image-meta", "get", "asked", "key"]).trim(), "value");
        ceph.rbd(&["feature", "disable", "asked", "fast-diff", "object-map"]);
        assert!(!ceph.features("asked").contains(&"object-map".to_owned()));
        assert!(io(&uri, &["write -P 3 20M 2M", "discard 0 2M"]));
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");
        // To switch features on, librbd takes the lock. The map is invalid until it is made anew.
        ceph.rbd(&["feature", "enable", "asked", "object-map"]);
        assert!(ceph.flags("asked") > 0);
        assert!(io(&uri, &["write -P 4 25M 1M", "read -P 3 20M 2M", "read -P 4 25M 1M"]));
        let owner = ceph.lock_owner("asked");
        ceph.rbd(&["object-map", "rebuild", "--no-progress", "asked"]);
        assert_eq!(ceph.lock_owner("asked"), owner, "done by us");
        assert!(io(&uri, &["write -P 5 30M 1M", "discard 20M 1M"]));
        assert_same_for_librbd_and_nbd(ceph, "asked", &uri);
        serve.terminate();
        ceph.check_object_map("asked");
    });
}

#[test]
fn we_have_librbd_do_what_only_the_owner_may() {
    on_new_clusters(|ceph| {
        ceph.rbd(&["create", "--size", "64M", "theirs"]);
        let writer = librbd_writer(ceph, "theirs");
        wait_for("librbd has the lock", 60, || ceph.lock_owner("theirs").is_some());
        let owner = ceph.lock_owner("theirs");
        ceph.ours(&["resize", "--no-progress", "--size", "128M", "theirs"]).ok();
        assert_eq!(ceph.size("theirs"), 128 << 20);
        let refused = ceph.ours(&["resize", "--no-progress", "--size", "96M", "theirs"]);
        assert_eq!(refused.code, 22, "{refused}");
        ceph.ours(&["resize", "--no-progress", "--size", "96M", "--allow-shrink", "theirs"]).ok();
        ceph.ours(&["snap", "create", "--no-progress", "theirs@one"]).ok();
        ceph.ours(&["snap", "rename", "theirs@one", "theirs@two"]).ok();
        for verb in ["protect", "unprotect", "rm"] {
            ceph.ours(&["snap", verb, "theirs@two"]).ok();
        }
        assert_eq!(ceph.rbd(&["snap", "ls", "--all", "theirs"]), "");
        ceph.ours(&["object-map", "rebuild", "--no-progress", "theirs"]).ok();
        ceph.ours(&["feature", "disable", "theirs", "object-map", "fast-diff"]).ok();
        assert!(!ceph.features("theirs").contains(&"object-map".to_owned()));
        ceph.ours(&["image-meta", "set", "theirs", "key", "value"]).ok();
        assert_eq!(ceph.rbd(&["image-meta", "get", "theirs", "key"]).trim(), "value");
        ceph.ours(&["rename", "theirs", "renamed"]).ok();
        assert_eq!(ceph.lock_owner("renamed"), owner, "done by librbd");
        end(writer);
    });
}

/// Our verbs alone, on images with snapshots whose maps are wrong.
#[test]
fn object_maps_are_checked_and_made_anew() {
    on_each_release(|ceph| {
        let features = ["--image-feature", "layering,exclusive-lock"];
        ceph.rbd(
            &[&["create", "--size", "64M", "--object-size", "1M", "maps"], &features[..]].concat(),
        );
        let write = |bytes: &[&str]| {
            let serve = ceph.serve(&["rbd/maps"]);
            assert!(io(&serve.uri("rbd/maps"), bytes), "{}", serve.log());
            serve.terminate();
        };
        write(&["write -P 1 0 8M"]);
        ceph.rbd(&["snap", "create", "--no-progress", "maps@a"]);
        write(&["write -P 2 4M 8M", "discard 0 1M"]);
        ceph.rbd(&["snap", "create", "--no-progress", "maps@b"]);
        write(&["write -P 3 30M 2M", "discard 11M 1M"]);
        ceph.ours(&["feature", "enable", "maps", "object-map"]).ok();
        assert_eq!(ceph.features("maps")[2..4], ["object-map", "fast-diff"]);
        assert_eq!(ceph.flags("maps"), 2, "nothing is known yet");
        ceph.ours(&["object-map", "rebuild", "--no-progress", "maps"]).ok();
        ceph.check_object_map("maps");
        for snap in ["maps@a", "maps@b"] {
            ceph.check_object_map(snap);
        }
        ceph.ours(&["object-map", "check", "--no-progress", "maps"]).ok();
        assert_eq!(ceph.flags("maps"), 0, "ours says the same");
        // An object behind the map's back.
        let info = ceph.run("rbd", &["info", "--format", "json", "maps"]).json();
        let prefix = info["block_name_prefix"].as_str().unwrap().to_owned();
        let object = format!("{prefix}.{:016x}", 50);
        ceph.rados(&["-p", "rbd", "create", &object]);
        ceph.ours(&["object-map", "check", "--no-progress", "maps"]).ok();
        assert_eq!(ceph.flags("maps"), 2);
        // As long as it is wrong, nobody believes it.
        let serve = ceph.serve(&["rbd/maps"]);
        let uri = serve.uri("rbd/maps");
        assert!(io(&uri, &["write -P 7 40M 64k", "read -P 7 40M 64k"]));
        ceph.ours(&["object-map", "rebuild", "--no-progress", "maps"]).ok();
        assert!(io(&uri, &["write -P 8 45M 64k", "read -P 3 30M 2M", "read -P 0 50M 1M"]));
        assert_same_for_librbd_and_nbd(ceph, "maps", &uri);
        serve.terminate();
        ceph.check_object_map("maps");

        // What makes no sense is refused alike.
        for args in [
            &["feature", "disable", "maps", "exclusive-lock"][..],
            &["feature", "enable", "maps", "object-map"],
            &["feature", "enable", "maps", "layering"],
            &["feature", "disable", "maps", "journaling"],
            &["feature", "enable", "nowhere", "object-map"],
            &["object-map", "rebuild", "nowhere"],
        ] {
            crate::verbs::refused_alike(ceph, args);
        }
        // One of them takes the other along.
        ceph.ours(&["feature", "disable", "maps", "fast-diff"]).ok();
        assert_eq!(ceph.features("maps"), ["layering", "exclusive-lock"]);
        crate::verbs::refused_alike(ceph, &["object-map", "rebuild", "maps"]);
        ceph.ours(&["feature", "disable", "maps", "exclusive-lock"]).ok();
        assert_eq!(ceph.features("maps"), ["layering"]);
        let left = ceph.rados(&["-p", "rbd", "ls"]);
        let id = prefix.trim_start_matches("rbd_data.");
        assert!(!left.contains(&format!("rbd_object_map.{id}")), "{left}");
    });
}

#[test]
fn locks_are_shown_taken_and_removed_as_rbd_does() {
    on_new_clusters(|ceph| {
        ceph.rbd(&["create", "--size", "8M", "--image-feature", "layering", "locked"]);
        let printed = |args: &[&str]| crate::verbs::printed_alike(ceph, args);
        printed(&["lock", "ls", "locked"]);
        ceph.ours(&["lock", "add", "locked", "a cookie"]).ok();
        printed(&["lock", "ls", "locked"]);
        crate::verbs::refused_alike(ceph, &["lock", "add", "locked", "another"]);
        crate::verbs::refused_alike(ceph, &["lock", "rm", "locked", "a cookie", "client.1"]);
        crate::verbs::refused_alike(ceph, &["lock", "rm", "locked", "a cookie", "locker"]);
        let (locker, cookie) = ceph.lock_owner("locked").unwrap();
        assert_eq!(cookie, "a cookie");
        // Who may not change the image must not fence anybody off over it.
        let caps = ["mon", "profile rbd", "osd", "profile rbd-read-only"];
        let keyring = ceph.create_client("client.reads", &caps);
        let reads = ["--id", "reads", "--keyring", keyring.to_str().unwrap()];
        for wrong in [&locker, "locker"] {
            let args = [&["lock", "rm", "locked", "a cookie", wrong][..], &reads].concat();
            crate::verbs::refused_alike(ceph, &args);
        }
        assert_eq!(ceph.ceph(&["osd", "blocklist", "ls"]).lines().count(), 0);
        let begun = Instant::now();
        ceph.ours(&["lock", "rm", "locked", &cookie, &locker]).ok();
        // Whoever is told and does not answer is waited for for 10 s.
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!(ceph.ceph(&["osd", "blocklist", "ls"]).lines().count(), 1);
        assert_eq!(ceph.lock_owner("locked"), None);
        ceph.ours(&["lock", "add", "locked", "one", "--shared", "tag"]).ok();
        ceph.rbd(&["lock", "add", "locked", "two", "--shared", "tag"]);
        printed(&["lock", "ls", "locked"]);
        crate::verbs::refused_alike(ceph, &["lock", "add", "locked", "three", "--shared", "other"]);
    });
}

//! Images that are unlike most: as large as can be, of the smallest and of the largest objects; what is set for them;
//! and what we do not open, in one clear line.

use bytes::Bytes;
use ceph_native::image::{Image, Io, OpenOptions, Outcome, Queue, Segment};

use crate::data::assert_same_for_librbd_and_nbd;
use crate::on_each_release;
use crate::ops::with_pool;
use crate::support::Ceph;
use crate::verbs::printed_alike;
use crate::watch::io;

/// Does one thing with an image, and waits for it.
async fn done(queue: &mut Queue, io: Io) -> Outcome {
    queue.submit(0, io);
    queue.kick();
    let mut completions = Vec::new();
    std::future::poll_fn(|cx| queue.poll_completions(cx, &mut completions)).await;
    completions.remove(0).result.unwrap()
}

#[test]
fn an_image_ends_one_object_before_offsets_do() {
    with_pool(async |ceph, pool| {
        let size = u64::MAX >> 25 << 25;
        let layering = ["--object-size", "32M", "--image-feature", "layering"];
        let megabytes = format!("{}M", size >> 20);
        ceph.ours(&[&["create", "endless", "--size", &megabytes], &layering[..]].concat()).ok();
        printed_alike(ceph, &["info", "endless"]);
        let image = Image::open(&pool, "endless", &OpenOptions::default()).await.unwrap();
        assert_eq!(image.size(), size);
        let mut queue = image.queue();
        let data = Bytes::from(vec![7; 8192]);
        for offset in [0, (1 << 63) - 4096, size - 8192] {
            done(&mut queue, Io::Write { offset, data: data.clone() }).await;
            let read = match done(&mut queue, Io::Read { offset, length: 8192 }).await {
                Outcome::ReadWhole(data) => vec![Segment::Data(data)],
                Outcome::Read(segments) => segments,
                other => panic!("{other:?}"),
            };
            let right = |part: &Segment| matches!(part, Segment::Data(data) if data.iter().all(|b| *b == 7));
            assert!(read.iter().all(right), "at {offset}");
            assert_eq!(read.iter().map(Segment::len).sum::<u64>(), 8192, "at {offset}");
        }
        drop(queue);
        image.close().await;
        let prefix = ceph.data_prefix("endless");
        let objects = ceph.rados(&["-p", "rbd", "ls"]);
        let last = format!("{prefix}.{:016x}", (size >> 25) - 1);
        assert!(objects.contains(&last), "{objects}");
    });
}

#[test]
fn objects_are_of_four_kibibytes_and_of_thirty_two_mebibytes() {
    on_each_release(|ceph| {
        for (image, object, size) in [("small", "4K", "2M"), ("large", "32M", "80M")] {
            ceph.rbd(&["create", image, "--size", size, "--object-size", object]);
            let serve = ceph.serve(&[&format!("rbd/{image}")]);
            let uri = serve.uri(&format!("rbd/{image}"));
            let ops = [
                "write -P 1 1k 1M",
                "discard 512k 256k",
                "write -P 2 1535k 513k",
                "write -z 8k 5k",
            ];
            assert!(io(&uri, &ops), "{}", serve.log());
            assert_same_for_librbd_and_nbd(ceph, image, &uri);
            serve.terminate();
            ceph.check_object_map(image);
            ceph.ours(&["rm", "--no-progress", image]).ok();
        }
    });
}

/// What is set for an image or its pool counts, or it is said that it does not.
#[test]
fn limits_that_nobody_keeps_are_named() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "limited", "--size", "8M"]);
        let said = || {
            let serve = ceph.serve(&["rbd/limited"]);
            serve.terminate().1
        };
        assert!(!said().contains("no effect"));
        ceph.rbd(&["config", "image", "set", "limited", "rbd_qos_iops_limit", "100"]);
        let said = said();
        assert!(said.contains("rbd_qos_iops_limit") && said.contains("no effect"), "{said}");
        // Those that come while it is open, when whoever set them is done, whether or not it is us who do it for them.
        let serve = ceph.serve(&["rbd/limited"]);
        let owner = || io(&serve.uri("rbd/limited"), &["write 0 4k"]);
        let limits = ["bps", "read_iops", "write_iops", "read_bps"];
        for (at, limit) in limits.iter().enumerate() {
            let limit = format!("rbd_qos_{limit}_limit");
            assert!(at < 2 || owner());
            let set = ["config", "image", "set", "limited", &limit, "100"];
            match at % 2 {
                0 => ceph.rbd(&set),
                _ => ceph.ours(&set).ok(),
            };
            assert!(serve.log().contains(&limit), "{limit}: {}", serve.log());
        }
        serve.terminate();
        ceph.rbd(&["rm", "--no-progress", "limited"]);

        // Of the pool, for an image in a namespace, too.
        ceph.create_pool("limited");
        ceph.rbd(&["namespace", "create", "limited/ns"]);
        ceph.rbd(&["create", "limited/ns/image", "--size", "8M"]);
        ceph.rbd(&["config", "pool", "set", "limited", "rbd_qos_iops_limit", "100"]);
        let said = ceph.serve(&["limited/ns/image"]).terminate().1;
        assert!(said.contains("rbd_qos_iops_limit"), "{said}");
    });
}

#[test]
fn what_is_not_built_is_refused_in_one_line() {
    on_each_release(|ceph| {
        ceph.rbd(&["create", "moving", "--size", "8M"]);
        ceph.rbd(&["migration", "prepare", "moving", "moved"]);
        refused(ceph, &["serve", "rbd/moved", "--listen", "127.0.0.1:0"], "migrating");
        ceph.rbd(&["migration", "abort", "--no-progress", "moved"]);
        ceph.rbd(&["rm", "--no-progress", "moving"]);

        ceph.create_pool("mirrored");
        ceph.rbd(&["mirror", "pool", "enable", "mirrored", "image"]);
        ceph.rbd(&["create", "mirrored/image", "--size", "8M"]);
        ceph.rbd(&["mirror", "image", "enable", "mirrored/image", "snapshot"]);
        refused(ceph, &["rm", "mirrored/image"], "mirror");
        refused(ceph, &["trash", "mv", "mirrored/image"], "mirror");
        ceph.rbd(&["mirror", "image", "demote", "mirrored/image"]);
        for verb in [
            &["serve", "mirrored/image", "--listen", "127.0.0.1:0"][..],
            &["resize", "mirrored/image", "--size", "9M"],
            &["rm", "mirrored/image"],
        ] {
            refused(ceph, verb, "non-primary");
        }
        drop(ceph.serve(&["--read-only", "mirrored/image"]));

        ceph.rbd(&["create", "grouped", "--size", "8M"]);
        ceph.rbd(&["group", "create", "odd-group"]);
        ceph.rbd(&["group", "image", "add", "odd-group", "grouped"]);
        for verb in [&["rm", "grouped"][..], &["trash", "mv", "grouped"]] {
            refused(ceph, verb, "group");
        }
        ceph.rbd(&["group", "rm", "odd-group"]);
        ceph.rbd(&["rm", "--no-progress", "grouped"]);

        encrypted(ceph);

        for verb in [
            "deep cp a b",
            "group ls",
            "journal info --pool rbd",
            "migration prepare a",
            "mirror pool info",
        ] {
            let verb: Vec<_> = verb.split(' ').collect();
            refused(ceph, &verb, verb[0]);
            refused(ceph, &verb, "not built");
        }
        refused(ceph, &["create", "old", "--size", "8M", "--image-format", "1"], "format 1");

        ceph.rados(&["-p", "rbd", "create", "format-1.rbd"]);
        refused(ceph, &["info", "format-1"], "first format");
        ceph.rados(&["-p", "rbd", "rm", "format-1.rbd"]);
    });
}

/// Nothing of an image says that it is encrypted but its content, which is served as it is, as librbd does where nobody
/// has a passphrase. Who asks for what is behind that is refused.
fn encrypted(ceph: &Ceph) {
    let phrase = ceph.dir().join("passphrase");
    std::fs::write(&phrase, "a passphrase").unwrap();
    let phrase = phrase.to_str().unwrap();
    ceph.rbd(&["create", "odd-luks", "--size", "32M"]);
    ceph.rbd(&["encryption", "format", "odd-luks", "luks2", phrase]);
    let serve = ceph.serve(&["rbd/odd-luks"]);
    let uri = serve.uri("rbd/odd-luks");
    assert!(io(&uri, &["read -P 0x4c 0 1", "read -P 0x55 1 1", "read -P 0x4b 2 1"]), "LUK…");
    assert_same_for_librbd_and_nbd(ceph, "odd-luks", &uri);
    serve.terminate();
    printed_alike(ceph, &["info", "odd-luks"]);
    let listen = ["--listen", "127.0.0.1:0"];
    let file = ["--encryption-passphrase-file", phrase];
    for verb in [
        &["encryption", "format", "odd-luks", "luks2", phrase][..],
        &[&["serve", "rbd/odd-luks", "--encryption-format", "luks2"], &file[..], &listen].concat(),
        &[&["serve", "rbd/odd-luks"], &file[..], &listen].concat(),
        &[&["map", "rbd/odd-luks", "--encryption-format", "luks2"], &file[..]].concat(),
        &[&["map", "rbd/odd-luks"], &file[..]].concat(),
        &[&["resize", "odd-luks", "--size", "64M"], &file[..]].concat(),
        &[&["flatten", "odd-luks"], &file[..]].concat(),
    ] {
        refused(ceph, verb, "encrypt");
    }
    ceph.rbd(&["rm", "--no-progress", "odd-luks"]);
}

fn refused(ceph: &Ceph, args: &[&str], why: &str) {
    let said = ceph.ours(args).refused();
    assert!(said.contains(why) && said.lines().count() == 1, "{said}");
}

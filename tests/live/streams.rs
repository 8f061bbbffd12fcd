//! `export-diff` and `import-diff` with librbd at either end; and what else Ceph's own scripts call for
//! (`docs/images.md`), without these scripts.

use std::path::Path;

use crate::on_each_release;
use crate::support::{Ceph, Ran, program, run_in};
use crate::verbs::{printed_alike, refused_alike};

/// One of the two programs.
type Program = fn(&Ceph, &[&str]) -> Ran;

fn ours(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.ours(args)
}

fn theirs(ceph: &Ceph, args: &[&str]) -> Ran {
    ceph.run("rbd", args)
}

#[test]
fn what_has_changed_goes_from_one_image_to_another() {
    on_each_release(|ceph| {
        let file = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
        let bench = |total| {
            let io = ["--io-type", "write", "--io-pattern", "rand", "--io-total", total];
            ceph.rbd(&[&["bench", "changing"], &io[..]].concat());
        };
        ceph.rbd(&["create", "changing", "--size", "64M", "--object-size", "1M"]);
        bench("2M");
        ceph.rbd(&["snap", "create", "--no-progress", "changing@one"]);
        bench("1M");
        // Some of it is no longer there, and all of it is longer.
        ceph.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", "32M", "changing"]);
        ceph.rbd(&["resize", "--no-progress", "--size", "70M", "changing"]);
        bench("64K");
        ceph.rbd(&["snap", "create", "--no-progress", "changing@two"]);
        let wanted = ["one", "two"].map(|snap| ceph.exported(&format!("changing@{snap}")));
        assert_ne!(wanted[0], wanted[1]);
        let ways: [(&str, Program, Program); 3] =
            [("to-rbd", ours, theirs), ("from-rbd", theirs, ours), ("between", ours, ours)];
        for (name, export, import) in ways {
            let copy = format!("changed-{name}");
            let (first, second) = (file(&format!("{name}.1")), file(&format!("{name}.2")));
            export(ceph, &["export-diff", "--no-progress", "changing@one", &first]).ok();
            let since = ["--from-snap", "one", "--no-progress", "changing@two"];
            export(ceph, &[&["export-diff"], &since[..], &[&second]].concat()).ok();
            ceph.rbd(&["create", &copy, "--size", "1M"]);
            // What it begins at is not there.
            assert_eq!(refused_alike(ceph, &["import-diff", &second, &copy]).lines().count(), 1);
            import(ceph, &["import-diff", "--no-progress", &first, &copy]).ok();
            import(ceph, &["import-diff", "--no-progress", &second, &copy]).ok();
            let found = ["one", "two"].map(|snap| ceph.exported(&format!("{copy}@{snap}")));
            assert_eq!(found, wanted, "{name}");
            assert_eq!(ceph.exported(&copy), wanted[1], "{name}");
            ceph.check_object_map(&copy);
            // What it ends at is there.
            refused_alike(ceph, &["import-diff", &second, &copy]);
        }
        // What follows one another can be made one.
        let part = |which| file(&format!("between.{which}"));
        ceph.rbd(&["merge-diff", "--no-progress", &part("1"), &part("2"), &part("merged")]);
        ceph.rbd(&["create", "changed-merged", "--size", "1M"]);
        ceph.ours(&["import-diff", "--no-progress", &part("merged"), "changed-merged"]).ok();
        assert_eq!(ceph.exported("changed-merged@two"), wanted[1]);
        let backwards = ["--from-snap", "two", "changing@one"];
        let nowhere = file("nowhere");
        ceph.ours(&[&["export-diff"], &backwards[..], &[&nowhere]].concat()).refused();
        // Half a stream is none.
        assert!(!Path::new(&nowhere).exists());
        std::fs::write(&nowhere, "no stream at all").unwrap();
        refused_alike(ceph, &["import-diff", &nowhere, "changing"]);
        // Nor is one that ends within data.
        let whole = std::fs::read(part("1")).unwrap();
        std::fs::write(&nowhere, &whole[..whole.len() - 2]).unwrap();
        ceph.rbd(&["create", "changed-cut", "--size", "1M"]);
        refused_alike(ceph, &["import-diff", &nowhere, "changed-cut"]);
        assert_eq!(ceph.rbd(&["snap", "ls", "changed-cut"]), "");
        ceph.rbd(&["rm", "--no-progress", "changed-cut"]);
        for image in
            ["changing", "changed-to-rbd", "changed-from-rbd", "changed-between", "changed-merged"]
        {
            ceph.rbd(&["snap", "purge", "--no-progress", image]);
            ceph.rbd(&["rm", "--no-progress", image]);
        }
    });
}

#[test]
fn images_are_named_in_every_way_that_scripts_know() {
    let ceph = crate::one_osd();
    ceph.create_pool("named");
    let empty = ceph.dir().join("empty");
    std::fs::write(&empty, [0]).unwrap();
    let empty = empty.to_str().unwrap();
    for args in [
        &["--image", "n1", "-p", "named", "import", empty][..],
        &["--dest", "n2", "--dest-pool", "named", "import", empty],
        &["import", "--image", "named/n3", empty],
        &["import", empty, "-p", "named", "n4", "--image-format", "2"],
        &["-p", "named", "create", "--size", "1M", "--image-shared", "n5"],
    ] {
        ceph.ours(args).ok();
    }
    // What options name is not looked for among the words.
    let file = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
    for (nth, program) in [theirs, ours].into_iter().enumerate() {
        let [whole, diff, second] =
            ["named-whole", "named-diff", "named-second"].map(|name| file(&format!("{name}{nth}")));
        program(ceph, &["export", "--image", "n4", "-p", "named", &whole]).ok();
        program(ceph, &["export", "named/n4", "--path", &second]).ok();
        assert_eq!(std::fs::read(whole).unwrap(), [0]);
        program(ceph, &["export-diff", "--image", "n4", "-p", "named", &diff]).ok();
        program(ceph, &["export-diff", "--path", &file(&format!("d{nth}")), "named/n4"]).ok();
        program(ceph, &["import-diff", "--path", &diff, "named/n4"]).ok();
        program(ceph, &["import-diff", "--image", "named/n4", &diff]).ok();
    }
    ceph.ours(&["export", "--image", "named/n4", "--path", &file("n"), "more"]).refused();
    // An image that several clients write to.
    let shared = ["create", "--size", "1M", "--image-shared", "--image-feature"];
    let features = "layering,exclusive-lock,object-map,fast-diff,journaling";
    ceph.create_pool("shared");
    for (program, image) in [(ours as Program, "shared/ours"), (theirs, "shared/theirs")] {
        program(ceph, &[&shared[..], &[features, image]].concat()).ok();
        let info = ceph.run("rbd", &["info", "--format", "json", image]).json();
        assert_eq!(info["features"], serde_json::json!(["layering"]), "{image}");
    }
    printed_alike(ceph, &["-p", "named", "ls"]);
    assert_eq!(ceph.rbd(&["ls", "named"]), "n1\nn2\nn3\nn4\nn5\n");
    assert!(!ceph.rbd(&["info", "named/n5"]).contains("exclusive-lock"));
    refused_alike(ceph, &["import", empty, "named/n6@snap"]);
    let first = ["create", "--size", "1M", "--image-format", "1", "named/n6"];
    let said = ceph.ours(&first).refused();
    assert!(said.contains("format 1 cannot be made"), "{said}");

    // Clones of clones, by ids of their snapshots and of an image in the trash.
    ceph.rbd(&["snap", "create", "--no-progress", "named/n1@s"]);
    let snap =
        ceph.run("rbd", &["snap", "ls", "--format", "json", "named/n1"]).json()[0]["id"].clone();
    let v2 = ["--rbd-default-clone-format", "2"];
    let by_id = ["clone", "--snap-id", &snap.to_string(), "named/n1", "named/c1"];
    ceph.ours(&[&by_id[..], &v2].concat()).ok();
    refused_alike(ceph, &["clone", "named/n1@absent", "named/c2"]);
    ceph.rbd(&["snap", "create", "--no-progress", "named/c1@s"]);
    ceph.rbd(&[&["clone", "named/c1@s", "named/c2"], &v2[..]].concat());
    printed_alike(ceph, &["children", "named/n1@s"]);
    let all = ceph.ours(&["children", "--descendants", "named/n1"]).ok();
    assert_eq!(all, "named/c1\nnamed/c2\n");
    let id = ceph.run("rbd", &["info", "--format", "json", "named/n1"]).json()["id"].clone();
    let id = id.as_str().unwrap();
    ceph.ours(&["rm", "named/n1", "--rbd-move-to-trash-on-remove", "true"]).ok();
    // So does the pool, whatever else is said.
    let on_remove = ["named", "rbd_move_to_trash_on_remove"];
    ceph.rbd(&[&["config", "pool", "set"], &on_remove[..], &["true"]].concat());
    ceph.ours(&["rm", "named/n2", "--rbd-move-to-trash-on-remove", "false"]).ok();
    ceph.rbd(&[&["config", "pool", "rm"], &on_remove[..]].concat());
    assert!(ceph.rbd(&["trash", "ls", "named"]).contains(" n2\n"));
    printed_alike(ceph, &["trash", "-p", "named", "ls"]);
    printed_alike(ceph, &["info", "-p", "named", "--image-id", id]);
    let children = ceph.ours(&["children", "-p", "named", "--image-id", id]).ok();
    assert_eq!(children, "named/c1\n");
    let of_id = ["-p", "named", "--image-id", id, "--snap", "s"];
    ceph.ours(&[&["snap", "protect"], &of_id[..]].concat()).ok();
    assert!(ceph.rbd(&["snap", "ls", "-p", "named", "--image-id", id]).contains("yes"));
}

/// Images with their snapshots, protection and notes, there and back.
#[test]
fn images_go_with_their_snapshots_from_one_program_to_another() {
    on_each_release(|ceph| {
        let file = |name: &str| ceph.dir().join(name).to_str().unwrap().to_owned();
        let bench = |image: &str| {
            let io = ["--io-type", "write", "--io-pattern", "rand", "--io-total", "1M"];
            ceph.rbd(&[&["bench", image], &io[..]].concat());
        };
        let striped = ["--stripe-unit", "64K", "--stripe-count", "4"];
        for (image, options) in [("whole", &["--object-size", "1M"][..]), ("wide", &striped)] {
            ceph.rbd(&[&["create", image, "--size", "16M"], options].concat());
            bench(image);
            ceph.rbd(&["snap", "create", "--no-progress", &format!("{image}@one")]);
            ceph.rbd(&["snap", "protect", &format!("{image}@one")]);
            ceph.rbd(&["resize", "--no-progress", "--size", "24M", image]);
            bench(image);
            ceph.rbd(&["snap", "create", "--no-progress", &format!("{image}@two")]);
            let shrink = ["--allow-shrink", "--size", "9M", image];
            ceph.rbd(&[&["resize", "--no-progress"], &shrink[..]].concat());
            bench(image);
            ceph.rbd(&["image-meta", "set", image, "key", "a value"]);
            let specs = ["", "@one", "@two"];
            let wanted = specs.map(|snap| ceph.exported(&format!("{image}{snap}")));
            let like = |image: &str| {
                let info = ceph.run("rbd", &["info", "--format", "json", image]).json();
                let keys = ["size", "order", "features", "stripe_unit", "stripe_count"];
                let snaps = ceph.run("rbd", &["snap", "ls", "--format", "json", image]).json();
                let snaps = snaps.as_array().unwrap().iter();
                let snaps = snaps
                    .map(|snap| format!("{} {} {}", snap["name"], snap["size"], snap["protected"]));
                (keys.map(|key| info[key].clone()), snaps.collect::<Vec<_>>())
            };
            let ways: [(&str, Program, Program); 3] =
                [("to-rbd", ours, theirs), ("from-rbd", theirs, ours), ("between", ours, ours)];
            for (name, export, import) in ways {
                let (copy, stream) =
                    (format!("{image}-{name}"), file(&format!("stream-{image}-{name}")));
                let format = ["--no-progress", "--export-format", "2"];
                export(ceph, &[&["export"], &format[..], &[image, &stream]].concat()).ok();
                import(ceph, &[&["import"], &format[..], &[&stream, &copy]].concat()).ok();
                let found = specs.map(|snap| ceph.exported(&format!("{copy}{snap}")));
                assert_eq!(found, wanted, "{copy}");
                assert_eq!(like(&copy), like(image), "{copy}");
                assert_eq!(ceph.rbd(&["image-meta", "get", &copy, "key"]).trim(), "a value");
                ceph.check_object_map(&copy);
                // Half of it is no image, and leaves none.
                let whole = std::fs::read(&stream).unwrap();
                std::fs::write(&stream, &whole[..whole.len() - 1]).unwrap();
                let cut = ceph.ours(&[&["import"], &format[..], &[&stream, "half"]].concat());
                assert!(cut.refused().contains("cut short"));
                assert!(!ceph.rbd(&["ls"]).contains("half"));
                ceph.rbd(&["snap", "unprotect", &format!("{copy}@one")]);
                ceph.rbd(&["snap", "purge", "--no-progress", &copy]);
                ceph.rbd(&["rm", "--no-progress", &copy]);
            }
            ceph.rbd(&["snap", "unprotect", &format!("{image}@one")]);
        }
        // A snapshot alone is none of these; and what cannot be read whole leaves no file.
        let nowhere = file("half");
        let two = ["--export-format", "2"];
        ceph.ours(&[&["export", "whole@one", &nowhere], &two[..]].concat()).refused();
        ceph.ours(&[&["export", "whole@absent", &nowhere], &two[..]].concat()).refused();
        assert!(!Path::new(&nowhere).exists());
        // Nor does what does not fit.
        let narrow = file("narrow");
        std::fs::create_dir(&narrow).unwrap();
        for verb in ["export", "export --export-format 2", "export-diff"] {
            let ours = format!("{} {verb} whole {narrow}/file", program());
            let script = format!(
                "mount -t tmpfs -o size=64k none {narrow} && ! {ours} && test -z \"$(ls {narrow})\""
            );
            let conf = ceph.conf();
            let envs = [("CEPH_CONF", conf.as_path())];
            let ran = run_in("unshare", &["-m", "sh", "-c", &script], &envs, 60);
            assert!(ran.err.contains("No space left"), "{ran}");
            ran.ok();
        }
        std::fs::remove_dir(narrow).unwrap();
        for image in ["whole", "wide"] {
            ceph.rbd(&["snap", "purge", "--no-progress", image]);
            ceph.rbd(&["rm", "--no-progress", image]);
        }
    });
}

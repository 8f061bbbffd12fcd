//! Every option of `-o`, by every way in which Docker's users can give it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::host::{DRIVER, Host, eventually};
use crate::one_osd;
use crate::support::run_in;

type Options = &'static [(&'static str, &'static str)];

/// Makes a volume of that name.
type Way<'a> = dyn Fn(&str, Options) + 'a;

/// Volumes that have, together, all options of a volume that Ceph has.
const VOLUMES: &[(&str, Options)] = &[
    (
        "all",
        &[
            ("size", "256M"),
            ("pool", "ways"),
            ("namespace", "ns"),
            ("data-pool", "rbd"),
            ("object-size", "1M"),
            ("stripe-unit", "64K"),
            ("stripe-count", "4"),
            ("features", "layering,exclusive-lock"),
            ("fstype", "ext4"),
            ("mkfs-options", "-m 0 -L label"),
            ("mount-options", "noatime,nodev"),
            ("uid", "1001"),
            ("gid", "1002"),
            ("mode", "2750"),
            ("backend", "rbd"),
        ],
    ),
    ("xfs", &[("size", "512M"), ("fstype", "xfs"), ("trash", "true")]),
    ("btrfs", &[("size", "512M"), ("fstype", "btrfs"), ("delete-delay", "1h")]),
    ("clone", &[("from", "ways-origin"), ("flatten", "true")]),
    ("read", &[("from", "ways-origin@then"), ("read-only", "true")]),
];

/// Leaves a line, and says how many there are.
const WRITE: &str = "echo line >> /v/lines; cat /v/lines";

#[test]
fn every_option_means_the_same_by_every_way_in() {
    let ceph = one_osd();
    ceph.create_pool("ways");
    ceph.rbd(&["namespace", "create", "ways/ns"]);
    let mut host = Host::start(ceph, "ways", "[volumes]\nsize = \"128M\"\n");
    host.start_dockerd(&[]);
    // Neither takes options there: what is not there yet is made as the settings say.
    let bare =
        ["run", "--rm", "--network=none", "--volume-driver", DRIVER, "-v", "ways-v:/v", "bb"];
    for lines in 1..=2 {
        let said = host.docker(&[&bare[..], &["sh", "-c", WRITE]].concat());
        assert_eq!(said, vec!["line"; lines].join("\n"));
    }
    assert_eq!(host.inspect("ways-v")["Status"]["size"], 128 << 20);

    host.create("ways-origin", &["size=128M"]);
    host.in_container("ways-origin", "echo line > /v/lines");
    host.ours(&["snapshot", "ways-origin", "then"]).ok();
    let by_create = |name: &str, options: Options| {
        let options: Vec<_> =
            options.iter().map(|(name, value)| format!("{name}={value}")).collect();
        host.create(name, &options.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let by_mount = |name: &str, options: Options| {
        // A value with a comma has to be quoted, as in CSV.
        let options: String =
            options.iter().map(|(name, value)| format!(",\"volume-opt={name}={value}\"")).collect();
        let mount = format!("type=volume,src={name},dst=/v,volume-driver={DRIVER}{options}");
        host.docker(&["run", "--rm", "--network=none", "--mount", &mount, "bb", "sh", "-c", ""]);
    };
    let by_compose = |name: &str, options: Options| {
        let options: serde_json::Map<String, Value> =
            options.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        // YAML takes JSON.
        let file = json!({
            "version": "3.8",
            "services": { "s": {
                "image": "bb",
                "network_mode": "none",
                "command": ["sh", "-c", ""],
                "volumes": ["v:/v"],
            }},
            "volumes": { "v": { "name": name, "driver": DRIVER, "driver_opts": options } },
        });
        let path = host.dir.join(format!("{name}.yaml"));
        fs::write(&path, file.to_string()).unwrap();
        let socket = format!("unix://{}/docker.sock", host.dir.display());
        let with = ["-H", &socket, "-p", name, "-f", path.to_str().unwrap()];
        for verb in ["up", "down"] {
            let none: &[(&str, &Path)] = &[];
            run_in("docker-compose", &[&with[..], &[verb]].concat(), none, 240).ok();
        }
    };
    let ways: [(&str, &Way<'_>); 3] =
        [("create", &by_create), ("mount", &by_mount), ("compose", &by_compose)];
    for (kind, options) in VOLUMES {
        let mut all = Vec::new();
        for (way, create) in ways {
            let name = format!("ways-{way}-{kind}");
            create(&name, options);
            let volume = host.inspect(&name);
            let image = volume["Status"]["image"].as_str().expect("an image").to_owned();
            let kept = ceph.rbd(&["image-meta", "get", &image, "ceph-native.volume"]);
            let kept: Value = serde_json::from_str(&kept).unwrap();
            all.push((kept["options"].clone(), kept["fstype"].clone(), volume["Driver"].clone()));
            match *kind {
                "read" => {
                    assert_eq!(host.in_container(&name, "cat /v/lines"), "line");
                    let refused = host.try_in_container(&name, "echo line > /v/more").refused();
                    assert!(refused.contains("Read-only file system"), "{refused}");
                }
                _ => {
                    let before = usize::from(*kind == "clone");
                    for lines in 1..=2 {
                        let said = host.in_container(&name, WRITE);
                        assert_eq!(said, vec!["line"; before + lines].join("\n"), "{name}");
                    }
                }
            }
            // `docker rm` was each container's end, and the volume is there.
            if *kind == "clone" {
                eventually("it is independent", || {
                    let info = ceph.run("rbd", &["info", "--format", "json", &image]).json();
                    info.get("parent").is_none()
                });
            }
            host.docker(&["volume", "rm", &name]);
        }
        for (name, _) in *options {
            assert!(
                all[0].0.get(name.replace("object-size", "order")).is_some_and(|it| !it.is_null())
                    || *name == "backend",
                "{name}: {}",
                all[0].0
            );
        }
        assert!(all.iter().all(|one| *one == all[0]), "{kind}: {all:#?}");
    }
    // In the trash is what was to be there.
    let trash = ceph.rbd(&["trash", "ls"]);
    for (way, _) in ways {
        for kind in ["xfs", "btrfs"] {
            assert!(trash.contains(&format!("ways-{way}-{kind}")), "{trash}");
        }
        assert!(!trash.contains(&format!("ways-{way}-clone")), "{trash}");
    }
    // An image that is there, by every way in.
    for (way, create) in ways {
        let name = format!("ways-{way}-adopted");
        ceph.rbd(&["create", "-s", "64M", "ways-image"]);
        create(&name, &[("image", "ways-image")]);
        assert_eq!(host.in_container(&name, WRITE), "line");
        host.docker(&["volume", "rm", &name]);
        ceph.rbd(&["rm", "--no-progress", "ways-image"]);
    }
    host.ours(&["snapshot", "ways-origin", "then", "--remove"]).ok();
    for name in ["ways-origin", "ways-v"] {
        host.docker(&["volume", "rm", name]);
    }
}

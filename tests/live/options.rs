//! Options that the monitors have for their clients (`ceph config set`): heeded by our verbs as by `rbd`.

use std::time::Duration;

use ceph_native::Cluster;

use crate::support::{Ceph, Ran};
use crate::{config_of, on_new_clusters, with_client};

type Program = fn(&Ceph, &[&str]) -> Ran;

const OURS: Program = |ceph, args| ceph.ours(args);
const THEIRS: Program = |ceph, args| ceph.run("rbd", args);

fn set(ceph: &Ceph, who: &str, option: &str, value: &str) {
    ceph.ceph(&["config", "set", who, option, value]);
}

fn unset(ceph: &Ceph, who: &str, option: &str) {
    ceph.ceph(&["config", "rm", who, option]);
}

/// What `rbd` says of an image that is made by both programs with these options, which must be the same.
#[track_caller]
fn made(ceph: &Ceph, options: &[&str]) -> String {
    let look = |ran: Ran| {
        ran.ok();
        let info = ceph.run("rbd", &["info", "made", "--format", "json"]).json();
        ceph.rbd(&["rm", "--no-progress", "--rbd-move-to-trash-on-remove", "false", "made"]);
        format!(
            "{} {} {} {}",
            info["order"], info["features"], info["stripe_unit"], info["stripe_count"]
        )
    };
    let create = [&["create", "made", "--size", "8M"], options].concat();
    let theirs = look(ceph.run("rbd", &create));
    assert_eq!(look(ceph.ours(&create)), theirs, "{options:?}");
    theirs
}

/// Where an image ends up that is removed by both programs with these options: both in the trash, or both gone.
#[track_caller]
fn kept(ceph: &Ceph, options: &[&str]) -> bool {
    let look = |program: Program| {
        ceph.rbd(&["create", "removed", "--size", "8M"]);
        program(ceph, &[&["rm", "--no-progress", "removed"], options].concat()).ok();
        let trash = ceph.run("rbd", &["trash", "ls", "-l", "--format", "json"]).json();
        ceph.rbd(&["trash", "purge", "--no-progress"]);
        trash.as_array().unwrap().iter().any(|image| image["name"] == "removed")
    };
    let theirs = look(THEIRS);
    assert_eq!(look(OURS), theirs, "{options:?}");
    theirs
}

#[test]
fn the_monitors_options_count_as_with_rbd() {
    on_new_clusters(|ceph| {
        let plain = made(ceph, &[]);
        assert!(plain.starts_with("22 "), "{plain}");
        set(ceph, "global", "rbd_default_order", "20");
        set(ceph, "global", "rbd_default_features", "layering,exclusive-lock");
        assert!(made(ceph, &[]).starts_with(r#"20 ["layering","exclusive-lock"]"#));
        // Of what holds for all clients, one of some, or of one, the nearest counts: the monitors see to that.
        set(ceph, "client", "rbd_default_order", "21");
        set(ceph, "client.other", "rbd_default_order", "18");
        assert!(made(ceph, &[]).starts_with("21 "));
        set(ceph, "client.admin", "rbd_default_order", "19");
        set(ceph, "client", "rbd_default_stripe_unit", "65536");
        set(ceph, "client", "rbd_default_stripe_count", "3");
        let all = made(ceph, &[]);
        assert!(all.starts_with("19 ") && all.ends_with(" 65536 3"), "{all}");

        // A file counts before them, the command line before both.
        let text = std::fs::read_to_string(ceph.conf()).unwrap();
        let file = ceph.dir().join("other.conf");
        std::fs::write(&file, format!("{text}\n[client]\nrbd default order = 24\n")).unwrap();
        let file = ["-c", file.to_str().unwrap()];
        assert!(made(ceph, &file).starts_with("24 "));
        let line = ["--rbd-default-order", "23"];
        assert!(made(ceph, &[&file[..], &line].concat()).starts_with("23 "));

        for who in ["client.admin", "client", "global"] {
            unset(ceph, who, "rbd_default_order");
        }
        assert!(made(ceph, &[]).starts_with("22 "));
        for option in ["rbd_default_stripe_unit", "rbd_default_stripe_count"] {
            unset(ceph, "client", option);
        }
        unset(ceph, "global", "rbd_default_features");
        assert_eq!(made(ceph, &[]), plain);

        removing(ceph);
        cloning(ceph);
        other_pool(ceph);
        encrypted(ceph);
        changing(ceph);
    });
}

fn removing(ceph: &Ceph) {
    let trash = "rbd_move_to_trash_on_remove";
    assert!(!kept(ceph, &[]));
    set(ceph, "client", trash, "true");
    assert!(kept(ceph, &[]));
    assert!(!kept(ceph, &["--rbd-move-to-trash-on-remove", "false"]));
    let pool = ["config", "pool", "set", "rbd", trash, "false"];
    ceph.rbd(&pool);
    assert!(!kept(ceph, &[]), "the pool's own setting counts before all");
    ceph.rbd(&["config", "pool", "rm", "rbd", trash]);
    unset(ceph, "client", trash);
    assert!(!kept(ceph, &[]));
}

/// A clone of the second format needs no protected snapshot.
fn cloning(ceph: &Ceph) {
    let format = "rbd_default_clone_format";
    ceph.rbd(&["create", "base", "--size", "8M"]);
    ceph.rbd(&["snap", "create", "--no-progress", "base@s"]);
    for (value, works) in [("2", true), ("1", false)] {
        set(ceph, "client", format, value);
        for program in [THEIRS, OURS] {
            let ran = program(ceph, &["clone", "base@s", "clone"]);
            assert_eq!(ran.code == 0, works, "format {value}: {ran}");
            if works {
                ceph.rbd(&["rm", "--no-progress", "clone"]);
            }
        }
    }
    unset(ceph, "client", format);
}

fn other_pool(ceph: &Ceph) {
    ceph.create_pool("usual");
    ceph.rbd(&["create", "usual/there", "--size", "8M"]);
    set(ceph, "client", "rbd_default_pool", "usual");
    assert_eq!(ceph.ours(&["ls"]).ok(), ceph.rbd(&["ls"]));
    assert_eq!(ceph.ours(&["info", "there"]).code, ceph.run("rbd", &["info", "there"]).code);
    unset(ceph, "client", "rbd_default_pool");
}

/// Whoever wants data encrypted on its way gets it.
fn encrypted(ceph: &Ceph) {
    ceph.rbd(&["create", "served", "--size", "8M"]);
    for (set_to, mode) in [(None, "mode=Crc"), (Some("secure"), "mode=Secure")] {
        if let Some(value) = set_to {
            set(ceph, "client", "ms_client_mode", value);
        }
        let serve = ceph.serve_telling(&["served"], Some("ceph_native::cluster=debug"));
        let log = serve.log();
        let connected: Vec<_> = log.lines().filter(|line| line.contains("connected")).collect();
        assert!(!connected.is_empty(), "{log}");
        assert!(connected.iter().all(|line| line.contains(mode)), "{log}");
    }
    unset(ceph, "client", "ms_client_mode");
}

/// A client that stays hears of changes.
fn changing(ceph: &Ceph) {
    let timeout = |cluster: &Cluster| cluster.config().osd_op_timeout.map(|limit| limit.as_secs());
    set(ceph, "client", "rados_osd_op_timeout", "55");
    with_client(ceph, async |cluster| {
        let alone = Cluster::connect(config_of(ceph, &["--no-mon-config"])).await.unwrap();
        assert_eq!(timeout(&cluster), Some(55), "known before anything else is done");
        for wanted in [Some(66), None] {
            match wanted {
                Some(seconds) => {
                    set(ceph, "client", "rados_osd_op_timeout", &seconds.to_string());
                }
                None => unset(ceph, "client", "rados_osd_op_timeout"),
            }
            let heard = async {
                while timeout(&cluster) != wanted {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), heard).await.unwrap();
            assert_eq!(timeout(&alone), None);
        }
    });
}

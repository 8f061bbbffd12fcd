//! Services of a swarm, of one node.

use std::fs;

use crate::host::{DRIVER, Host, eventually};
use crate::one_osd;

#[test]
fn tasks_of_a_service_have_a_volume_each() {
    let mut host = Host::start(one_osd(), "swarm", "");
    host.start_dockerd(&[]);
    // A node offers the drivers that Docker has met.
    host.docker(&["volume", "ls"]);
    let init = ["swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:0"];
    host.docker(&init);
    let source = "type=volume,src=os-day.{{.Task.Slot}},dst=/data,volume-opt=size=128M";
    let mount = format!("{source},volume-driver={DRIVER}");
    let line = "echo $TASK >> /data/tasks; sync -d /data/tasks; exec sleep 1000";
    let service = ["service", "create", "--detach", "--name", "day", "--replicas", "5"];
    let how = [
        "--mount",
        &mount,
        "--env",
        "TASK={{.Task.Slot}}",
        "--stop-grace-period",
        "1s",
        "--network",
        "host",
    ];
    host.docker(&[&service[..], &how[..], &["bb", "sh", "-c", line]].concat());
    let tasks = |slot: u32| {
        let file = host.dir.join(format!("state/mounts/os-day.{slot}/tasks"));
        fs::read_to_string(file).unwrap_or_default()
    };
    let has_only = |slot: u32, times: usize| tasks(slot) == format!("{slot}\n").repeat(times);
    eventually("five tasks run, each with a volume of its own", || {
        host.docker(&["ps", "-q"]).lines().count() == 5 && (1..=5).all(|slot| has_only(slot, 1))
    });
    assert_eq!(host.mounts().len(), 5);
    let images = one_osd().rbd(&["ls"]);
    assert_eq!(images.lines().filter(|image| image.starts_with("os-day.")).count(), 5);

    host.docker(&["service", "scale", "--detach", "day=1"]);
    eventually("one is left", || host.mounts().len() == 1 && host.mappings().len() == 1);
    host.docker(&["service", "scale", "--detach", "day=5"]);
    eventually("the others find what they had", || {
        let again = (1..=5).filter(|slot| has_only(*slot, 2)).count();
        again == 4 && (1..=5).all(|slot| has_only(slot, 1) || has_only(slot, 2))
    });
    // Moved: all tasks are ended and started anew.
    host.docker(&["service", "update", "--detach", "--force", "--update-parallelism", "5", "day"]);
    eventually("each is started once more", || {
        (1..=5).filter(|slot| has_only(*slot, 3)).count() == 4
            && (1..=5).filter(|slot| has_only(*slot, 2)).count() == 1
    });
    host.docker(&["service", "rm", "day"]);
    eventually("none is left", || host.mounts().is_empty() && host.mappings().is_empty());
    for slot in 1..=5 {
        let name = format!("os-day.{slot}");
        eventually("it can be removed", || host.try_docker(&["volume", "rm", &name]).code == 0);
    }
}

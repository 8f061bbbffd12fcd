//! A service of a swarm of two nodes, whose tasks have volumes of Cinder's.

use std::fs;

use crate::host::{DRIVER, Host, eventually};
use crate::openstack;
use crate::volumes::{ALICE, settings};

#[test]
fn tasks_of_a_service_have_a_volume_of_cinders_each_wherever_they_are() {
    let Some((cloud, _turn)) = openstack() else { return };
    let nodes = ["127.0.0.1", "127.0.0.2"].map(|address| {
        let mut host = Host::start(cloud.ceph, &address.replace('.', "-"), &settings(cloud, ""));
        host.start_dockerd(&[]);
        // A node offers the drivers that Docker has met.
        host.docker(&["volume", "ls"]);
        (host, address)
    });
    let [(first, at), (second, there)] = &nodes;
    let listen = |address: &str| format!("{address}:0");
    let how = ["--advertise-addr", at, "--listen-addr", &format!("{at}:2477")];
    first.docker(&[&["swarm", "init"], &how[..]].concat());
    let token = first.docker(&["swarm", "join-token", "-q", "worker"]);
    let how = ["--advertise-addr", there, "--listen-addr", &listen(there), "--token", &token];
    second.docker(&[&["swarm", "join"], &how[..], &[&format!("{at}:2477")]].concat());

    let source = "type=volume,src=day.{{.Task.Slot}},dst=/data,volume-opt=size=1";
    let mount = format!("{source},volume-driver={DRIVER}");
    let line = "echo $TASK >> /data/tasks; sync -d /data/tasks; exec sleep 100000";
    let service = ["service", "create", "--detach", "--name", "day", "--replicas", "5"];
    let grace = ["--stop-grace-period", "1s", "--restart-delay", "2s"];
    let how = ["--mount", &mount, "--env", "TASK={{.Task.Slot}}", "--network", "host"];
    first.docker(&[&service[..], &how, &grace, &["bb", "sh", "-c", line]].concat());

    // What a task has written, and on which of both nodes it is.
    let tasks = |slot: u32| {
        nodes.iter().enumerate().find_map(|(node, (host, _))| {
            let file = host.dir.join(format!("state/mounts/day.{slot}/tasks"));
            fs::read_to_string(file).ok().map(|text| (node, text))
        })
    };
    let running = |slot: u32, times: usize| {
        tasks(slot).filter(|(_, text)| *text == format!("{slot}\n").repeat(times))
    };
    let patiently = |what: &str, is: &dyn Fn() -> bool| {
        for _ in 0..3 {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually(what, is);
            }));
            if done.is_ok() {
                return;
            }
        }
        panic!("{what}: {}", first.docker(&["service", "ps", "--no-trunc", "day"]));
    };
    patiently("five tasks run, each with a volume of its own", &|| {
        (1..=5).all(|slot| running(slot, 1).is_some())
    });
    let in_use = || {
        let all = cloud.all_volumes(ALICE);
        let days = all.iter();
        let days = days.filter(|one| one["name"].as_str().is_some_and(|n| n.starts_with("day.")));
        let days: Vec<_> = days.collect();
        assert!(days.len() <= 5, "{days:?}");
        days.iter().filter(|one| one["status"] == "in-use").count()
    };
    assert_eq!(in_use(), 5);

    first.docker(&["service", "scale", "--detach", "day=2"]);
    patiently("two are left", &|| {
        nodes.iter().map(|(host, _)| host.mounts().len()).sum::<usize>() == 2 && in_use() == 2
    });
    first.docker(&["service", "scale", "--detach", "day=5"]);
    patiently("the others find what they had", &|| {
        (1..=5).filter(|slot| running(*slot, 2).is_some()).count() == 3
    });

    // All move to the first node.
    let name = second.docker(&["info", "--format", "{{.Swarm.NodeID}}"]);
    let before: Vec<_> = (1..=5).map(|slot| tasks(slot).expect("it runs")).collect();
    let moved = before.iter().filter(|(node, _)| *node == 1).count();
    assert!(moved > 0, "the second node had none: {before:?}");
    first.docker(&["node", "update", "--availability", "drain", &name]);
    patiently("all are on the first node, with what they had", &|| {
        (1..=5).zip(&before).all(|(slot, (node, text))| {
            let again = if *node == 1 { format!("{text}{slot}\n") } else { text.clone() };
            tasks(slot) == Some((0, again))
        })
    });
    assert_eq!(in_use(), 5);
    patiently("nothing is left on the second", &|| {
        second.mounts().is_empty() && second.mappings().is_empty()
    });

    first.docker(&["service", "rm", "day"]);
    patiently("none is left", &|| first.mounts().is_empty() && in_use() == 0);
    for slot in 1..=5 {
        let name = format!("day.{slot}");
        eventually("it can be removed", || first.try_docker(&["volume", "rm", &name]).code == 0);
        assert!(cloud.volumes(ALICE, &name).is_empty());
    }
}

//! Every call of Docker's, from a volume's making to its end: no dockerd.

use serde_json::json;

use crate::host::Host;
use crate::one_osd;

#[test]
fn every_call_answers_what_docker_expects() {
    let host = Host::start(one_osd(), "p1", "");
    let empty = json!({});
    assert_eq!(host.called("Plugin.Activate", &empty)["Implements"], json!(["VolumeDriver"]));
    let capabilities = host.called("VolumeDriver.Capabilities", &empty);
    assert_eq!(capabilities["Capabilities"]["Scope"], "global");

    let create = json!({ "Name": "calls", "Opts": { "size": "64M" }, "New": 1 });
    host.called("VolumeDriver.Create", &create);
    // Docker creates again what it has forgotten.
    host.called("VolumeDriver.Create", &create);
    host.called("VolumeDriver.Create", &json!({ "Name": "calls", "Opts": null }));
    let other = json!({ "Name": "calls", "Opts": { "size": "65M" } });
    assert!(host.refused("VolumeDriver.Create", &other).contains("its size is 67108864 bytes"));

    let named = json!({ "Name": "calls" });
    let volume = host.called("VolumeDriver.Get", &named)["Volume"].clone();
    assert_eq!(volume["Name"], "calls");
    assert!(volume.get("Mountpoint").is_none(), "Docker takes it for mounted: {volume}");
    assert!(volume["CreatedAt"].as_str().unwrap().ends_with('Z'));
    assert_eq!(volume["Status"]["image"], "rbd/calls");
    assert_eq!(volume["Status"]["size"], 64 << 20);
    assert_eq!(host.called("VolumeDriver.Path", &named)["Mountpoint"], "");

    // Counted by id: mounted once, however often an id comes, and until the last is gone.
    let root = host.mount("calls", "a");
    assert_eq!(host.mount("calls", "a"), root);
    assert_eq!(host.mount("calls", "b"), root);
    assert_eq!(host.mounts().len(), 1);
    assert_eq!(host.called("VolumeDriver.Path", &named)["Mountpoint"], root.to_str().unwrap());
    let status = host.called("VolumeDriver.Get", &named)["Volume"]["Status"].clone();
    assert_eq!((&status["users"], &status["mounted-by"]["host"]), (&json!(2), &json!("p1")));
    assert!(status["device"].as_str().unwrap().starts_with("/dev/"), "{status}");
    for (key, value) in [("fstype", json!("ext4")), ("health", json!("ok"))] {
        assert_eq!(status[key], value, "{status}");
    }
    assert!(status["used"].as_u64().is_some_and(|used| used < 64 << 20), "{status}");
    assert_eq!(status["watchers"].as_array().map(Vec::len), Some(1), "{status}");
    let metrics = host.http(&[], "metrics");
    let gauge = |name: &str| {
        let line = format!("ceph_native_volume_{name}{{volume=\"calls\"}} ");
        let value = metrics.lines().find_map(|found| found.strip_prefix(line.as_str()));
        value
            .and_then(|value| value.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{line}: {metrics}"))
    };
    assert_eq!(gauge("users"), 2);
    assert!(gauge("used_bytes") < gauge("size_bytes") && gauge("size_bytes") <= 64 << 20);
    let error = host.refused("VolumeDriver.Remove", &named);
    assert!(error.contains("mounted on this host"), "{error}");
    host.unmount("calls", "a");
    host.unmount("calls", "of a container that never was");
    assert_eq!(host.mounts().len(), 1);
    host.unmount("calls", "b");
    host.unmount("calls", "b");
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0));

    let listed = host.called("VolumeDriver.List", &empty)["Volumes"].clone();
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|volume| &volume["Name"]).collect();
    assert!(names.contains(&&json!("calls")), "{names:?}");
    host.called("VolumeDriver.Remove", &named);
    host.called("VolumeDriver.Remove", &named);
    assert_eq!(host.refused("VolumeDriver.Get", &named), "there is no volume calls");
    let error = host.refused("VolumeDriver.Mount", &json!({ "Name": "calls", "ID": "x" }));
    assert!(error.contains("there is no volume calls"), "{error}");
    let rbd = one_osd().rbd(&["ls"]);
    assert!(!rbd.lines().any(|image| image == "calls"), "{rbd}");

    for said in ["creating: done", "mounting: done", "unmounting: done", "removing: done"] {
        let of_it = |line: &&str| line.contains(said) && line.contains("volume=\"calls\"");
        assert!(host.log().lines().any(|line| of_it(&line)), "{said}\n{}", host.log());
    }
    let metrics = host.http(&[], "metrics");
    for line in [
        "ceph_native_calls_total{call=\"VolumeDriver.Mount\"} 4",
        "ceph_native_calls_failed_total{call=\"VolumeDriver.Mount\"} 1",
        "ceph_native_calls_total{call=\"VolumeDriver.Create\"} 4",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

//! The plugin is killed at every step with a volume of Cinder's, and all that remember it agree again.

use ceph_native::docker::steps;
use serde_json::{Value, json};

use crate::host::{Host, eventually};
use crate::openstack;
use crate::volumes::settings;

const ALICE: [&str; 2] = ["alice", "alpha"];

#[test]
fn after_every_crash_cinder_ceph_the_devices_and_the_journal_agree() {
    let Some((cloud, _turn)) = openstack() else { return };
    let mut host = Host::start(cloud.ceph, "crash", &settings(cloud, ""));
    let name = json!({ "Name": "v" });
    let user = json!({ "Name": "v", "ID": "1" });
    for step in steps::CINDER {
        // Up to the call that dies, all is well.
        let call = |host: &Host, what: &str| -> Value {
            let request = if what.ends_with("ount") { &user } else { &name };
            host.called(&format!("VolumeDriver.{what}"), request)
        };
        let (verb, before): (_, &[&str]) = match step.split_once(':').unwrap().0 {
            "create" => ("Create", &[]),
            "mount" => ("Mount", &["Create"]),
            "unmount" => ("Unmount", &["Create", "Mount"]),
            _ => ("Remove", &["Create"]),
        };
        for what in before {
            call(&host, what);
        }
        host.kill_plugin();
        host.env.insert("CEPH_NATIVE_KILL_AT", (*step).to_owned());
        host.start_plugin();
        let request = if verb.ends_with("ount") { &user } else { &name };
        let answer = host.call(&format!("VolumeDriver.{verb}"), request);
        assert_eq!(
            answer,
            "",
            "{step}: {verb} was answered, so it did not die there\n{}",
            host.log()
        );
        host.kill_plugin();
        host.env.remove("CEPH_NATIVE_KILL_AT");
        host.start_plugin();

        // By itself, or when it is asked again as Docker does.
        match verb {
            "Create" => drop(call(&host, "Create")),
            "Mount" => {
                let at = call(&host, "Mount")["Mountpoint"].clone();
                std::fs::write(format!("{}/file", at.as_str().unwrap()), *step).unwrap();
                let shown = cloud.volumes(ALICE, "v");
                assert_eq!(shown.len(), 1, "{step}: {shown:?}");
                assert_eq!(shown[0]["status"], "in-use", "{step}: {shown:?}");
                assert_eq!(shown[0]["attachments"].as_array().map(Vec::len), Some(1), "{step}");
                call(&host, "Unmount");
            }
            "Unmount" => drop(call(&host, "Unmount")),
            _ => {}
        }
        if verb != "Remove" {
            eventually(&format!("{step}: nothing is attached that isn't mapped"), || {
                let shown = cloud.volumes(ALICE, "v");
                shown.len() == 1 && shown[0]["status"] == "available"
            });
        }
        eventually(&format!("{step}: nothing is mapped"), || host.mappings().is_empty());
        assert!(host.mounts().is_empty(), "{step}: {:?}", host.mounts());
        eventually(&format!("{step}: it can be removed"), || {
            let gone: Value =
                serde_json::from_str(&host.call("VolumeDriver.Remove", &name)).unwrap_or_default();
            gone["Err"].as_str() == Some("")
        });
        eventually(&format!("{step}: nothing is left in Cinder"), || {
            cloud.volumes(ALICE, "v").is_empty()
        });
        assert_eq!(cloud.ceph.rbd(&["ls", "volumes"]).trim(), "", "{step}");
        let left = std::fs::read_dir(host.dir.join("state/attached")).unwrap().count();
        assert_eq!(left, 0, "{step}: the journal remembers an attachment");
    }
}

//! Volumes that come and go by the dozen, with a plugin that is killed now and then.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::full;
use crate::host::{Host, eventually, socket};
use crate::support::{Ceph, Options, run};

#[test]
fn nothing_is_left_of_many_volumes_and_a_plugin_that_is_killed() {
    let (volumes, workers, kills) = if full() { (200, 8, 20) } else { (12, 4, 3) };
    let ceph: &'static Ceph = Box::leak(Box::new(Ceph::start(Options::default())));
    let host = Mutex::new(Host::start(ceph, "churn", ""));
    let socket = socket(&host.lock().unwrap().dir);
    // A call that the plugin does not live to answer is made again, as Docker does.
    let insist = |call: &str, request: &Value| {
        let (body, url) = (request.to_string(), format!("http://plugin/VolumeDriver.{call}"));
        let args = ["-s", "-m", "100", "--unix-socket", socket.to_str().unwrap()];
        let args = [&args[..], &["-X", "POST", "-d", &body, &url]].concat();
        let mut said = String::new();
        eventually(call, || {
            said = String::from_utf8_lossy(&run("curl", &args).out).into_owned();
            serde_json::from_str::<Value>(&said).is_ok_and(|answer| answer["Err"] == "")
        });
        said
    };
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= volumes {
                        break;
                    }
                    let name = format!("churn-{number}");
                    let named = json!({ "Name": name, "ID": "x", "Opts": { "size": "64M" } });
                    let other = json!({ "Name": name, "ID": "y" });
                    insist("Create", &named);
                    let mounted = insist("Mount", &named);
                    let mounted: Value = serde_json::from_str(&mounted).unwrap();
                    let root = std::path::Path::new(mounted["Mountpoint"].as_str().unwrap());
                    let file = root.join("file");
                    std::fs::write(&file, &name).unwrap();
                    if number % 3 == 0 {
                        insist("Mount", &other);
                        insist("Unmount", &named);
                        assert_eq!(std::fs::read_to_string(&file).unwrap(), name);
                        insist("Unmount", &other);
                    } else {
                        insist("Unmount", &named);
                    }
                    if number % 4 == 0 {
                        insist("Mount", &other);
                        assert_eq!(std::fs::read_to_string(&file).unwrap(), name, "kept");
                        insist("Unmount", &other);
                        let host = host.lock().unwrap();
                        host.ours(&["fsck", &name]).ok();
                    }
                    insist("Remove", &named);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            for kill in 1..=kills {
                eventually("some more are done", || {
                    done.load(Ordering::Relaxed) >= kill * volumes / (kills + 1)
                });
                let mut host = host.lock().unwrap();
                host.kill_plugin();
                std::thread::sleep(Duration::from_millis(100));
                host.start_plugin();
            }
        });
    });
    let host = host.into_inner().unwrap();
    assert_eq!((host.mounts().len(), host.mappings().len()), (0, 0), "{}", host.log());
    assert_eq!(ceph.rbd(&["ls"]), "");
    assert_eq!(ceph.rados(&["-p", "rbd", "ls"]).matches("rbd_data").count(), 0);
    let attached = std::fs::read_dir(host.dir.join("state/attached")).unwrap().count();
    assert_eq!(attached, 0);
    host.called("VolumeDriver.List", &json!({}));
    let known = std::fs::read_to_string(host.dir.join("state/known.json")).unwrap();
    assert_eq!(known.trim(), "{}");
    let scratch = std::fs::read_dir(host.dir.join("state/scratch")).unwrap().count();
    assert_eq!(scratch, 0, "what a killed mkfs wrote to goes with the next of the same image");
}

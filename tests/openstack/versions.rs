//! The client itself with the real Cinder, in the versions of its API at which something changes.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ceph_native::openstack::cinder::{Api, Connector, NewVolume, Version};
use ceph_native::openstack::{Cinder, Cloud, Session};
use ceph_native::{Error, Kind};
use serde_json::json;
use tokio::time::Instant;

use crate::cloud::OpenStack;
use crate::dockerd::nothing_is_left;
use crate::openstack;

fn client(cloud: &OpenStack) -> Cinder {
    let auth = json!({
        "auth_url": cloud.keystone,
        "username": "alice",
        "password": "alicepw",
        "project_id": cloud.project("alpha"),
    });
    let cloud = Cloud::parse("real", &json!({ "auth": auth, "api_timeout": 60 })).unwrap();
    Cinder::new(Session::new(cloud, None).unwrap())
}

/// A connection of somebody else's to an image, which Cinder takes for a user of it.
struct Watcher(Child);

impl Watcher {
    fn start(cloud: &OpenStack, image: &str) -> Self {
        let child = Command::new("rbd")
            .arg("-c")
            .arg(cloud.ceph.conf())
            .args(["watch", image])
            // It ends with its input.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        cloud.ceph.reap(child.id());
        crate::host::eventually("it watches", || {
            cloud.ceph.rbd(&["status", image]).contains("watcher=")
        });
        Self(child)
    }

    /// Ends it so that it says so to Ceph.
    fn stop(mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[test]
fn cinder_is_spoken_to_in_each_version_in_which_something_changes() {
    let Some((cloud, _turn)) = openstack() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for newest in [Version(3, 0), Version(3, 41), Version(3, 43), Version(3, 44), Version(3, 54)] {
        runtime.block_on(live_through(&client(cloud).up_to(newest), newest));
    }
    runtime.block_on(ends_and_reasons(cloud));
    nothing_is_left(cloud);
}

/// A volume's life, from its making to its removal.
async fn live_through(cinder: &Cinder, spoken: Version) {
    let deadline = || Instant::now() + Duration::from_secs(120);
    let free = |id: String| async move { cinder.until(&id, &["available"], deadline()).await };
    assert_eq!(cinder.version().await.unwrap(), spoken);
    let api = if spoken < Version(3, 44) { Api::Actions } else { Api::Attachments };
    assert_eq!(cinder.api().await.unwrap(), api);
    let name = format!("v{spoken}");
    let new = NewVolume {
        name: name.clone(),
        size: 1,
        metadata: BTreeMap::from([("tests.tag".to_owned(), format!("it's {spoken}"))]),
        ..NewVolume::default()
    };
    let id = cinder.create(&new).await.unwrap().id;
    free(id.clone()).await.unwrap();
    for found in
        [cinder.find(&name).await, cinder.find_tagged("tests.tag", &format!("it's {spoken}")).await]
    {
        let found = found.unwrap();
        assert_eq!(found.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id], "{spoken}");
    }

    // Attached once, and not twice.
    let by = |host: &str| Connector {
        host: host.to_owned(),
        mountpoint: format!("{host}:/mounts/{spoken}"),
        instance: Some("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
        read_only: false,
    };
    let (attachment, connection) = cinder.attach(api, &id, &by("one")).await.unwrap();
    assert_eq!(connection.image, format!("volume-{id}"), "{spoken}");
    assert_eq!((connection.pool.as_str(), connection.user.as_deref()), ("volumes", Some("cinder")));
    let attachment = cinder.complete(api, &id, attachment.as_deref(), &by("one")).await.unwrap();
    let shown = cinder.volume(&id).await.unwrap();
    assert_eq!(shown.status, "in-use", "{spoken}");
    assert_eq!(shown.attachments[0].attachment_id, attachment, "{spoken}");
    assert_eq!(shown.attachments[0].device.as_deref(), Some(by("one").mountpoint.as_str()));
    let error = cinder.attach(api, &id, &by("two")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{spoken}: {error}");

    // Larger, while it is in use only where Cinder can.
    let grown = cinder.extend(&id, 2).await;
    if spoken < Version(3, 42) {
        let error = grown.unwrap_err().to_string();
        assert!(error.contains("this Cinder cannot extend a volume that is in use"), "{error}");
    } else {
        grown.unwrap();
        cinder.until(&id, &["in-use"], deadline()).await.unwrap();
    }
    cinder.detach(api, &id, Some(&attachment), &by("one")).await.unwrap();
    assert!(free(id.clone()).await.unwrap().attachments.is_empty(), "{spoken}");
    cinder.detach(api, &id, Some(&attachment), &by("one")).await.unwrap();
    if spoken < Version(3, 42) {
        cinder.extend(&id, 2).await.unwrap();
    }
    assert_eq!(free(id.clone()).await.unwrap().size, 2, "{spoken}");

    // A snapshot, what is made of it, and going back to it.
    let snapshot = cinder.create_snapshot(&id, "s").await.unwrap().id;
    cinder.until_taken(&snapshot, deadline()).await.unwrap();
    assert_eq!(cinder.snapshots(&id).await.unwrap().len(), 1, "{spoken}");
    let back = cinder.revert(&id, &snapshot).await;
    if spoken < Version(3, 40) {
        assert_eq!(back.unwrap_err().kind(), Kind::Unsupported, "{spoken}");
    } else {
        back.unwrap();
        free(id.clone()).await.unwrap();
    }
    let copy = |snapshot: Option<&str>, source: Option<&str>| NewVolume {
        size: 2,
        snapshot: snapshot.map(str::to_owned),
        source: source.map(str::to_owned),
        ..new.clone()
    };
    for copy in [copy(Some(&snapshot), None), copy(None, Some(&id))] {
        let made = cinder.create(&copy).await.unwrap().id;
        let shown = free(made.clone()).await.unwrap();
        assert_eq!((&shown.snapshot_id, &shown.source_volid), (&copy.snapshot, &copy.source));
        gone(cinder, &made).await.unwrap();
    }
    cinder.delete_snapshot(&snapshot).await.unwrap();
    cinder.until_snapshot_gone(&snapshot, deadline()).await.unwrap();
    gone(cinder, &id).await.unwrap();
    assert_eq!(cinder.volume(&id).await.unwrap_err().kind(), Kind::NotFound, "{spoken}");
    cinder.delete(&id).await.unwrap();
}

async fn gone(cinder: &Cinder, id: &str) -> Result<(), Error> {
    cinder.delete(id).await?;
    cinder.until_gone(id, Instant::now() + Duration::from_secs(120)).await
}

/// What comes to no good end, and what is told of it.
async fn ends_and_reasons(cloud: &OpenStack) {
    let deadline = || Instant::now() + Duration::from_secs(120);
    for (version, words) in
        [(Version(3, 54), "weighted backend"), (Version(3, 4), "Cinder says no reason")]
    {
        let cinder = client(cloud).up_to(version);
        let new = NewVolume {
            name: "nowhere".to_owned(),
            size: 1,
            volume_type: Some("nowhere".to_owned()),
            ..NewVolume::default()
        };
        let id = cinder.create(&new).await.unwrap().id;
        let error = cinder.until(&id, &["available"], deadline()).await.unwrap_err().to_string();
        assert!(error.contains(words), "{version}: {error}");
        gone(&cinder, &id).await.unwrap();
    }

    // Cinder lets a deletion be while a client has the image open, and says nothing.
    let cinder = client(cloud);
    let new = NewVolume { name: "watched".to_owned(), size: 1, ..NewVolume::default() };
    let id = cinder.create(&new).await.unwrap().id;
    cinder.until(&id, &["available"], deadline()).await.unwrap();
    let watcher = Watcher::start(cloud, &format!("volumes/volume-{id}"));
    let error = gone(&cinder, &id).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{error}");
    assert!(error.to_string().contains("its image is open somewhere"), "{error}");
    watcher.stop();
    gone(&cinder, &id).await.unwrap();
}

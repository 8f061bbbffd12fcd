//! `check`: what the plugin needs, and whether it is there.

use std::path::Path;
use std::time::Duration;

use ceph_native::config::Process;
use ceph_native::docker::Settings;
use ceph_native::docker::options::Backend;
use ceph_native::docker::store::{Store, place};
use ceph_native::error::{Error, Kind, Result};
use ceph_native::openstack::{Cinder, Cloud, Session};

/// How long the cluster may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Looks at everything, and says what is wrong. That something is, is an error.
pub(crate) async fn run(settings: &Settings) -> Result<()> {
    let mut wrong = 0;
    let mut say = |what: &str, found: std::result::Result<String, String>| match found {
        Ok(found) => println!("ok     {what}: {found}"),
        Err(why) => {
            wrong += 1;
            println!("WRONG  {what}: {why}");
        }
    };
    say("settings", Ok(format!("state in {}, host {}", settings.state.display(), settings.host)));
    if let Some(tls) = settings.tls.load().transpose() {
        let fine = |_| "certificates and key can be used".to_owned();
        say("tls", tls.map(fine).map_err(|error| error.to_string()));
    }
    say("user", root());
    say("state folder", writable(&settings.state));
    say("mapper", program(settings.mapper.first().map_or("", String::as_str)));
    say("kernel", kernel());
    for tool in ["mkfs.ext4", "e2fsck", "resize2fs"] {
        say(tool, program(tool));
    }
    for tool in ["mkfs.xfs", "mkfs.btrfs"] {
        if program(tool).is_err() {
            println!("note   {tool} is not installed: no volumes with that file system");
        }
    }
    let (cluster, pool) = cluster(settings).await;
    say("cluster", cluster);
    if let Some(pool) = pool {
        say("pool", pool);
    }
    let wanted = settings.volumes.backend == Some(Backend::Cinder);
    if wanted || settings.own_cloud.is_some() || settings.cloud.is_some() {
        say("cloud", cloud(settings).await.map_err(|error| error.to_string()));
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Error::new(Kind::Invalid, format!("{wrong} of these are wrong"))),
    }
}

type Found = std::result::Result<String, String>;

async fn cluster(settings: &Settings) -> (Found, Option<Found>) {
    let store = Store::new(settings.ceph.clone());
    let cluster = match tokio::time::timeout(LIMIT, store.connect()).await {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(error)) => return (Err(error.to_string()), None),
        Err(_) => return (Err(format!("no answer in {} s", LIMIT.as_secs())), None),
    };
    let told = format!("{} as {}", cluster.fsid(), cluster.entity());
    let pool = async {
        let place = place("check", &settings.volumes, &cluster.config().rbd.pool)?;
        let pool = cluster.pool(&place.pool).await?.with_namespace(&place.namespace);
        ceph_native::image::admin::list(&pool).await?;
        let for_rbd = cluster.with_map(|map| {
            map.pool(pool.id()).is_some_and(|pool| pool.applications.contains_key("rbd"))
        });
        match for_rbd {
            Some(true) => Ok(format!("{}, readable", place.pool)),
            _ => Err(Error::new(Kind::Invalid, format!("{} is not for RBD", place.pool))
                .with_hint(format!("`rbd pool init {}`", place.pool))),
        }
    };
    let pool = match tokio::time::timeout(LIMIT, pool).await {
        Ok(pool) => pool.map_err(|error: Error| error.to_string()),
        Err(_) => Err(format!("no answer in {} s", LIMIT.as_secs())),
    };
    (Ok(told), Some(pool))
}

/// Logs in, and asks Cinder for what it can.
async fn cloud(settings: &Settings) -> Result<String> {
    let cloud = match (&settings.own_cloud, &settings.cloud) {
        (Some(own), None) => own.clone(),
        (_, named) => Cloud::find(&Process, named.as_deref())?,
    };
    let cinder = Cinder::new(Session::new(cloud, settings.volumes.project_id.as_deref())?);
    let (id, name) = cinder.session().project().await?;
    let (version, limits) = (cinder.version().await?, cinder.limits().await?);
    Ok(format!("project {name} ({id}), Cinder {version}; {limits}"))
}

fn root() -> Found {
    match rustix::process::geteuid().is_root() {
        true => Ok("root".to_owned()),
        false => Err("not root: nothing can be mounted".to_owned()),
    }
}

/// Whether a file can be made in a folder, or in the nearest one above that exists.
fn writable(folder: &Path) -> Found {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(folder);
    let probe = there.join(format!(".ceph-native-{}", std::process::id()));
    match std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe)) {
        Ok(()) => Ok(format!("{} can be written to", folder.display())),
        Err(error) => Err(format!("{}: {error}", there.display())),
    }
}

fn program(name: &str) -> Found {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').map(Path::new);
    let found = match name.contains('/') {
        true => Some(Path::new(name).to_owned()).filter(|path| path.is_file()),
        false => folders.map(|folder| folder.join(name)).find(|path| path.is_file()),
    };
    match found {
        Some(path) => Ok(path.display().to_string()),
        None => Err(format!("{name} is not installed, or not in $PATH")),
    }
}

/// Whether the kernel has anything that makes a device of an image.
fn kernel() -> Found {
    let nbd = Path::new("/sys/block/nbd0").exists() || Path::new("/sys/module/nbd").exists();
    let fuse = Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    match (nbd, fuse) {
        (true, _) => Ok("nbd".to_owned()),
        (false, true) => Ok("no nbd, but FUSE and loop devices, which do as well".to_owned()),
        (false, false) => Err("neither nbd (modprobe nbd) nor FUSE with loop devices".to_owned()),
    }
}

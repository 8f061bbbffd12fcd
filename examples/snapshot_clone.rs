//! Takes a snapshot of an image, makes a clone of it, and makes that independent:
//! `cargo run --example snapshot_clone -- --conf ceph.conf NAME`.

use std::error::Error;

use ceph_native::config::{Args, Process};
use ceph_native::error::Result as Done;
use ceph_native::image::admin::{self, CloneFormat, CreateOptions};
use ceph_native::image::{Image, Maintenance, OpenOptions, SnapshotNamespace, Version};
use ceph_native::{Cluster, Config, Pool};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // As Ceph's own programs: --conf, --id, --keyring, $CEPH_CONF, /etc/ceph/ceph.conf.
    let mut words = std::env::args().collect();
    let config = Config::load(&Args::take(&mut words)?, &Process)?;
    let cluster = Cluster::connect(config).await?;
    let pool = cluster.pool("rbd").await?;
    let name = words.get(1).map_or("disk", String::as_str);
    run(&pool, name).await?;
    Ok(())
}
pub(crate) async fn run(pool: &Pool, name: &str) -> Done<()> {
    let snap = "monday";
    let image = Image::open(pool, name, &OpenOptions::default()).await?;
    // Whoever has the image's lock, be it we, takes it, so that it is in order with their writes.
    let namespace = SnapshotNamespace::User;
    let take = Maintenance::SnapCreate { namespace, name: snap.to_owned(), flags: 0 };
    image.maintain(&take, &mut |_, _| {}).await?;
    image.close().await;

    let version = Version::Snapshot(snap.to_owned());
    let parent =
        Image::open(pool, name, &OpenOptions { version, ..OpenOptions::default() }).await?;
    let clone = format!("{name}-clone");
    let like = admin::clone_like(&parent, CreateOptions::new(parent.size()));
    admin::clone(&parent, pool, &clone, &like, CloneFormat::V2).await?;
    parent.close().await;

    // It can be read and written now; what it does not have of its own comes from the snapshot.
    let image = Image::open(pool, &clone, &OpenOptions::default()).await?;
    let mut progress = |done, total| println!("{done} of {total} objects");
    image.maintain(&Maintenance::Flatten, &mut progress).await?;
    image.close().await;
    Ok(())
}

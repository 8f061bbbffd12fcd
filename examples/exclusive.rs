//! Takes an image's lock and keeps it, whoever asks, as a virtual machine does with its disk:
//! `cargo run --example exclusive -- --conf ceph.conf NAME`.

use std::error::Error;

use ceph_native::config::{Args, Process};
use ceph_native::error::Result as Done;
use ceph_native::image::admin;
use ceph_native::image::{Image, OpenOptions};
use ceph_native::{Cluster, Config, Kind, Pool};

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
    let exclusive = OpenOptions { exclusive: true, ..OpenOptions::default() };
    let image = Image::open(pool, name, &exclusive).await?;
    for locker in admin::locks(pool, image.id()).await?.lockers {
        println!("locked by {} at {}", locker.client, admin::address_text(&locker.addr));
    }
    // A second one is told who has it.
    match Image::open(pool, name, &exclusive).await {
        Err(error) if error.kind() == Kind::ReadOnly => println!("{error}"),
        Err(error) => return Err(error),
        Ok(second) => second.close().await,
    }
    // Without this the lock stays until others find its owner dead.
    image.close().await;
    Ok(())
}

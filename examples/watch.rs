//! Says what others do with an image while it is open, until its size changes:
//! `cargo run --example watch -- --conf ceph.conf NAME`.

use std::error::Error;
use std::time::Duration;

use ceph_native::config::{Args, Process};
use ceph_native::error::Result as Done;
use ceph_native::image::{Image, OpenOptions};
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
    // An image that is open is kept up to date by itself: nothing has to be asked of the cluster.
    let image = Image::open(pool, name, &OpenOptions::default()).await?;
    let (size, mut snapshots) = (image.size(), 0);
    while image.size() == size {
        let now = image.header().snap_context.snaps.len();
        if now != snapshots {
            println!("{now} snapshots");
            snapshots = now;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{} bytes, {} before", image.size(), size);
    image.close().await;
    Ok(())
}

//! Creates an image of 1 GiB, writes to it, reads it back: `cargo run --example read_write -- --conf ceph.conf NAME`.

use std::error::Error;
use std::future::poll_fn;

use bytes::Bytes;
use ceph_native::config::{Args, Process};
use ceph_native::error::Result as Done;
use ceph_native::image::admin::{self, CreateOptions};
use ceph_native::image::{Image, Io, OpenOptions, Outcome, Queue};
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
    admin::create(pool, name, &CreateOptions::new(1 << 30)).await?;
    let image = Image::open(pool, name, &OpenOptions::default()).await?;
    // Requests are submitted one by one, sent together, and completed in any order: as many as you like at a time.
    let mut queue = image.queue();
    for block in 0..4 {
        let data = Bytes::from(vec![block as u8; 4096]);
        queue.submit(block, Io::Write { offset: block * 4096, data });
    }
    // When a write is complete, every replica has it on stable storage.
    complete(&mut queue, 4).await?;
    queue.submit(0, Io::Read { offset: 3 * 4096, length: 4096 });
    for outcome in complete(&mut queue, 1).await? {
        match outcome {
            Outcome::ReadWhole(data) => println!("{} bytes of {}", data.len(), data[0]),
            other => println!("{other:?}"),
        }
    }
    drop(queue);
    image.close().await;
    Ok(())
}

/// Sends what was submitted and waits for so many completions.
async fn complete(queue: &mut Queue, count: usize) -> Done<Vec<Outcome>> {
    queue.kick();
    let mut done = Vec::new();
    while done.len() < count {
        poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
    }
    done.into_iter().map(|completion| completion.result).collect()
}

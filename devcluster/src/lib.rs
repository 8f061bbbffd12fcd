//! A whole small RADOS cluster in one process: monitor, OSDs, cephx and real messenger v2 on loopback.
//!
//! Real Ceph clients can use it, and so can ours: for trying things out, for tests, and for benches where the cluster
//! must not be the bottleneck. Nothing is replicated and nothing is placed on any device: objects are in memory and, if
//! wanted, in a journal in a folder.
//!
//! From the inside out: [`store`] (objects and their journal), [`osd`] and [`mon`] (the daemons as state machines),
//! [`cluster`] (all of them together, still without sockets), then the only file that knows TCP, and [`DevCluster`],
//! which runs it all in a thread of its own.
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! let cluster = devcluster::DevCluster::start(devcluster::Options::default()).await?;
//! let conf = cluster.write_conf(std::path::Path::new("/tmp/dev"))?;
//! println!("rados -c {} -p rbd ls", conf.display());
//! cluster.stop().await;
//! # Ok(())
//! # }
//! ```

pub mod cluster;
mod disk;
pub mod errno;
pub mod mon;
mod net;
pub mod osd;
mod run;
pub mod store;
pub mod wire;

pub use cluster::Daemon;
pub use proto::msgr::auth::ConnectionMode;
pub use run::{DevCluster, Options, PoolOptions};

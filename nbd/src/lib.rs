//! NBD on the wire, and an asynchronous server for any block device. Knows nothing of Ceph.
//!
//! A block device implements [`device::Device`], gets a name as an [`Export`], and is served by a [`Server`]:
//!
//! ```no_run
//! use nbd::device::Geometry;
//! use nbd::memory::MemoryDevice;
//! use nbd::{Export, Exports, Server};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = MemoryDevice::new(Geometry::new(1 << 30));
//! let server = Server::new(Exports::new(vec![Export::new("disk", disk)])?);
//! server.listen_unix("/run/disk.sock", 0o600)?;
//! tokio::signal::ctrl_c().await?;
//! println!("{}", server.shutdown(std::time::Duration::from_secs(10)).await);
//! # Ok(())
//! # }
//! ```
//!
//! Inside, from the wire up: `wire` has the numbers, `negotiate` the handshake and `request` the judgement of
//! requests (all three without I/O), `replies` what goes out, `connection` drives them over one socket in one task,
//! and `server` is what starts those tasks. [`client`] is the other side, small.

pub mod client;
mod connection;
pub mod device;
mod exports;
#[cfg(target_os = "linux")]
pub mod freeze;
#[cfg(target_os = "linux")]
pub mod fuse;
#[cfg(target_os = "linux")]
mod ioctl;
#[cfg(target_os = "linux")]
pub mod kernel;
pub mod limits;
#[cfg(target_os = "linux")]
pub mod loop_device;
pub mod memory;
mod negotiate;
#[cfg(target_os = "linux")]
mod node;
mod replies;
mod request;
mod server;
mod socket;
#[cfg(target_os = "linux")]
pub mod ublk;
mod wire;

pub use exports::{Export, Exports, ExportsError};
pub use server::{Report, Server};

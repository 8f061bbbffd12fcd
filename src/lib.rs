#![doc = include_str!("ARCHITECTURE.md")]

pub mod attach;
pub mod cluster;
pub mod config;
pub mod docker;
pub mod error;
pub mod image;
mod net;
pub mod openstack;
pub mod pool;
pub mod telemetry;

pub use self::cluster::Cluster;
pub use self::config::Config;
pub use self::error::{Error, Kind, Result};
pub use self::image::Image;
pub use self::pool::Pool;

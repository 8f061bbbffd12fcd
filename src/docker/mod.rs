//! Docker volumes that are RBD images: the driver behind `docker volume create --driver ceph-native`.
//!
//! `server` takes Docker's calls ([`protocol`] has their words), [`volumes`] does what they ask: [`store`] is what the
//! cluster has of a volume, `journal` what this host remembers of it, `mapper` the process that makes a device of an
//! image, `filesystem` and `format` what is on it, `cinder` where it is in OpenStack, if it is; [`on_host`] is
//! how a plugin in a container starts what must outlive it. Control and data are
//! apart: nothing that is mounted notices an end of the plugin.

pub mod activation;
pub mod cinder;
mod files;
pub mod filesystem;
mod format;
mod journal;
mod mapper;
mod metrics;
mod names;
pub mod on_host;
pub mod options;
mod probe;
pub mod protocol;
mod run;
pub mod server;
pub mod settings;
pub mod steps;
pub mod store;
pub mod tls;
pub mod volumes;

pub use self::settings::Settings;
pub use self::volumes::Volumes;

//! A whole small RADOS cluster in one process: monitor, OSDs, cephx and real messenger v2 on loopback.

pub mod errno;
pub mod osd;
pub mod store;
pub mod wire;

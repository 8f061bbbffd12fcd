//! NBD on the wire, and an asynchronous server for any block device. Knows nothing of Ceph.
//!
//! [`device`] is what a block device is to its user: implement [`device::Device`] to have it served.

pub mod device;
pub mod memory;

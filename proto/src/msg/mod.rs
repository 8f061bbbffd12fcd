//! The bodies of messages, one file per family.
//!
//! Every body can be both written and read: our client needs one direction, devcluster and the simulator the other.
//! Facts are from Ceph's `src/messages/*.h` and `src/include/rados.h`; the oldest peer is Ceph 16.

pub mod backoff;
pub mod kind;
pub mod mon;
pub mod object;
pub mod op;
pub mod osd_map;
pub mod osd_op;
pub mod snaps;
pub mod watch;

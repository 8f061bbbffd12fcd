//! Ceph's protocols without I/O: bytes, state machines and maths.
//!
//! Nothing in this crate opens a socket, reads a clock, touches a file, starts a thread or draws
//! randomness. A state machine takes inputs through `handle_*` methods and commands, and gives outputs
//! through `poll_*`; time ([`types::Instant`], [`types::UTime`]) and entropy ([`types::Entropy`]) are
//! arguments. So every fault is a unit test, and a whole cluster can be simulated from one seed.
//!
//! Bytes from a peer never panic and never allocate more than the bytes that are there: all decoding goes
//! through [`denc::Reader`].
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod cephx;
pub mod crc;
pub mod crush;
pub mod denc;
pub mod limits;
pub mod mon;
pub mod monmap;
pub mod msg;
pub mod msgr;
pub mod objecter;
pub mod osdmap;
pub mod rbd;
pub mod types;

//! Everything that needs a real cluster: our program against Ceph's own daemons, clients and tools, and QEMU's and
//! libnbd's. One test program, so that tests share clusters, which cost seconds.

#[path = "../support/mod.rs"]
mod support;

mod cluster;
mod ops;
mod verbs;

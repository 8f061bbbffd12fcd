//! Bytes of real Ceph.

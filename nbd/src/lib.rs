//! NBD on the wire, and an asynchronous server for any block device. Knows nothing of Ceph.

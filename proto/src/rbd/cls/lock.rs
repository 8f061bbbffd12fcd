//! The `lock` class: advisory locks on objects. `rbd lock` and the exclusive-lock feature are made of it.

use std::collections::BTreeMap;

use super::{Empty, methods, record};
use crate::types::{EntityAddr, EntityName, UTime};

/// The lock of an image, be it taken by `rbd lock` or by a client of an image with the exclusive-lock feature.
pub const RBD_LOCK: &str = "rbd_lock";

/// One owner at a time.
pub const EXCLUSIVE: u8 = 1;
/// Owners with the same tag share.
pub const SHARED: u8 = 2;

record! {
    /// Who holds a lock (`rados::cls::lock::locker_id_t`).
    Locker [1, 1] {
        /// The client.
        client: EntityName,
        /// Tells several locks of one client apart.
        cookie: String,
    }
}

record! {
    /// More about a holder (`rados::cls::lock::locker_info_t`).
    LockerInfo [1, 1] {
        /// When the lock ends by itself; 0 if it does not.
        expiration: UTime,
        /// The client's address: what to blocklist before the lock is broken.
        addr: EntityAddr,
        /// What the holder said about itself.
        description: String,
    }
}

record! {
    /// State of a lock.
    LockState [1, 1] {
        /// Who holds it.
        lockers: BTreeMap<Locker, LockerInfo>,
        /// [`EXCLUSIVE`] or [`SHARED`].
        kind: u8,
        /// What sharers agree on.
        tag: String,
    }
}

record! {
    /// The locks of an object.
    Locks [1, 1] {
        /// Their names.
        names: Vec<String>,
    }
}

impl PartialOrd for Locker {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Locker {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (&self.client, &self.cookie).cmp(&(&other.client, &other.cookie))
    }
}

methods! { "lock";
    /// Takes a lock. `EBUSY` if another holds it, `EEXIST` if we do.
    writes Lock("lock") [1, 1] {
        /// Which lock.
        name: String,
        /// [`EXCLUSIVE`] or [`SHARED`].
        kind: u8,
        /// Tells several locks of one client apart.
        cookie: String,
        /// What sharers agree on.
        tag: String,
        /// What to say about ourselves.
        description: String,
        /// When to end by itself; 0 for never.
        duration: UTime,
        /// 1 renews a lock that we hold, 2 takes none that we do not hold.
        flags: u8,
    } -> Empty;

    /// Gives a lock back. `ENOENT` if it is not ours.
    writes Unlock("unlock") [1, 1] {
        /// Which lock.
        name: String,
        /// As it was taken.
        cookie: String,
    } -> Empty;

    /// Takes a lock from another. `ENOENT` if it does not hold it.
    writes BreakLock("break_lock") [1, 1] {
        /// Which lock.
        name: String,
        /// Who holds it.
        client: EntityName,
        /// As it was taken.
        cookie: String,
    } -> Empty;

    /// State of a lock.
    reads GetInfo("get_info") [1, 1] {
        /// Which lock.
        name: String,
    } -> LockState;

    /// The locks of an object.
    reads ListLocks("list_locks") {} -> Locks;

    /// Fails with `EBUSY` unless we hold the lock.
    reads AssertLocked("assert_locked") [1, 1] {
        /// Which lock.
        name: String,
        /// [`EXCLUSIVE`] or [`SHARED`].
        kind: u8,
        /// As it was taken.
        cookie: String,
        /// What sharers agree on.
        tag: String,
    } -> Empty;

    /// Changes the cookie of a lock that we hold. `EBUSY` if we do not.
    writes SetCookie("set_cookie") [1, 1] {
        /// Which lock.
        name: String,
        /// [`EXCLUSIVE`] or [`SHARED`].
        kind: u8,
        /// As it was taken.
        cookie: String,
        /// What sharers agree on.
        tag: String,
        /// As it shall be.
        new_cookie: String,
    } -> Empty;
}

//! Advisory locks on objects (Ceph's `src/cls/lock`). A lock is an attribute of the object: who holds it, and how.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::{Put, Reader, Result};
use proto::types::{AddrType, EntityAddr, EntityName, UTime};

use super::{Method, arguments};
use crate::errno::{EBUSY, EEXIST, EINVAL, EIO, ENODATA, ENOENT, OpResult};
use crate::osd::context::Context;

pub(super) const METHODS: &[Method] = &[
    Method::writes("lock", "lock", lock),
    Method::writes("lock", "unlock", unlock),
    Method::writes("lock", "break_lock", break_lock),
    Method::reads("lock", "get_info", get_info),
    Method::reads("lock", "list_locks", list_locks),
    Method::reads("lock", "assert_locked", assert_locked),
    Method::writes("lock", "set_cookie", set_cookie),
];

/// What the attributes' names begin with.
const PREFIX: &str = "lock.";

/// `ClsLockType`.
const EXCLUSIVE: u8 = 1;
const SHARED: u8 = 2;
const EXCLUSIVE_EPHEMERAL: u8 = 3;

/// Take the lock although it is held by the same locker.
const FLAG_MAY_RENEW: u8 = 1;
/// Take the lock only if it is held by the same locker.
const FLAG_MUST_RENEW: u8 = 2;

/// Who holds a lock: an instance of a client may hold several, by cookie.
type Locker = (EntityName, String);

#[derive(Clone)]
struct Holder {
    /// When it ends by itself; zero is never.
    expiration: UTime,
    addr: EntityAddr,
    description: String,
}

#[derive(Default)]
struct Lock {
    lockers: BTreeMap<Locker, Holder>,
    kind: u8,
    tag: String,
}

fn is_valid(kind: u8) -> bool {
    matches!(kind, EXCLUSIVE | SHARED | EXCLUSIVE_EPHEMERAL)
}

/// The encoding of the attribute (`lock_info_t`) and of the answer to `get_info`, which is the same.
fn put_lock(lock: &Lock, w: &mut BytesMut) {
    w.put_envelope(1, 1, |w| {
        w.put_count(lock.lockers.len());
        for ((name, cookie), holder) in &lock.lockers {
            w.put_envelope(1, 1, |w| {
                w.put_value(name);
                w.put_str(cookie);
            });
            w.put_envelope(1, 1, |w| {
                w.put_value(&holder.expiration);
                w.put_value(&holder.addr);
                w.put_str(&holder.description);
            });
        }
        w.put_u8(lock.kind);
        w.put_str(&lock.tag);
    });
}

fn decode_lock(bytes: &[u8]) -> Result<Lock> {
    Reader::new(bytes, "lock").envelope("lock_info_t", 1, |_, r| {
        let lockers = r.map(12, |r| {
            let locker = r.envelope("locker_id_t", 1, |_, r| Ok((r.get()?, r.string()?)))?;
            let holder = r.envelope("locker_info_t", 1, |_, r| {
                Ok(Holder { expiration: r.get()?, addr: r.get()?, description: r.string()? })
            })?;
            Ok((locker, holder))
        })?;
        Ok(Lock { lockers, kind: r.u8()?, tag: r.string()? })
    })
}

/// The lock as it is now; one that nobody took is empty.
fn read_lock(context: &Context<'_>, name: &str) -> OpResult<Lock> {
    let mut lock = match context.xattr(&format!("{PREFIX}{name}")) {
        Ok(value) => decode_lock(&value).map_err(|_| EIO)?,
        Err(ENODATA) => Lock::default(),
        Err(errno) => return Err(errno),
    };
    let now = context.requester.now;
    lock.lockers
        .retain(|_, holder| holder.expiration == UTime::default() || holder.expiration >= now);
    Ok(lock)
}

fn write_lock(context: &mut Context<'_>, name: &str, lock: &Lock) -> OpResult {
    let mut w = BytesMut::new();
    put_lock(lock, &mut w);
    context.set_xattr(&format!("{PREFIX}{name}"), w.freeze())
}

fn lock(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (name, kind, cookie, tag, description, duration, flags) = arguments(input, |r| {
        r.envelope("cls_lock_lock_op", 1, |_, r| {
            let head = (r.string()?, r.u8()?, r.string()?, r.string()?);
            let (name, kind, cookie, tag) = head;
            Ok((name, kind, cookie, tag, r.string()?, r.get::<UTime>()?, r.u8()?))
        })
    })?;
    let may_renew = flags & FLAG_MAY_RENEW != 0;
    let must_renew = flags & FLAG_MUST_RENEW != 0;
    if !is_valid(kind) || name.is_empty() || (may_renew && must_renew) {
        return Err(EINVAL);
    }
    let mut lock = match read_lock(context, &name) {
        Err(ENOENT) => Lock::default(),
        lock => lock?,
    };
    if !lock.lockers.is_empty() && lock.tag != tag {
        return Err(EBUSY);
    }
    let locker = (context.requester.name, cookie);
    match lock.lockers.remove(&locker) {
        Some(_) if !may_renew && !must_renew => return Err(EEXIST),
        None if must_renew => return Err(ENOENT),
        _ => {}
    }
    if !lock.lockers.is_empty() && (kind != SHARED || lock.kind != kind) {
        return Err(EBUSY);
    }
    let expiration = match duration {
        UTime { sec: 0, nsec: 0 } => UTime::default(),
        duration => UTime::from(Duration::from(context.requester.now) + Duration::from(duration)),
    };
    // Whichever protocol the client speaks: an address is the same locker's by all but its type.
    let addr = EntityAddr { kind: AddrType::LEGACY, ..context.requester.addr };
    lock.kind = kind;
    lock.tag = tag;
    lock.lockers.insert(locker, Holder { expiration, addr, description });
    write_lock(context, &name, &lock)
}

fn remove_lock(context: &mut Context<'_>, name: &str, locker: &Locker) -> OpResult {
    let mut lock = read_lock(context, name)?;
    lock.lockers.remove(locker).ok_or(ENOENT)?;
    if lock.kind == EXCLUSIVE_EPHEMERAL {
        context.user_modify = true;
        return context.delete();
    }
    write_lock(context, name, &lock)
}

fn unlock(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (name, cookie) = arguments(input, |r| {
        r.envelope("cls_lock_unlock_op", 1, |_, r| Ok((r.string()?, r.string()?)))
    })?;
    remove_lock(context, &name, &(context.requester.name, cookie))
}

fn break_lock(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (name, locker) = arguments(input, |r| {
        r.envelope("cls_lock_break_op", 1, |_, r| Ok((r.string()?, (r.get()?, r.string()?))))
    })?;
    remove_lock(context, &name, &locker)
}

fn get_info(context: &mut Context<'_>, input: &Bytes, out: &mut BytesMut) -> OpResult {
    let name = arguments(input, |r| r.envelope("cls_lock_get_info_op", 1, |_, r| r.string()))?;
    put_lock(&read_lock(context, &name)?, out);
    Ok(())
}

fn list_locks(context: &mut Context<'_>, _input: &Bytes, out: &mut BytesMut) -> OpResult {
    let xattrs = context.before().map(|object| &object.xattrs);
    let names: Vec<&str> =
        xattrs.into_iter().flatten().filter_map(|(name, _)| name.strip_prefix(PREFIX)).collect();
    out.put_envelope(1, 1, |w| {
        w.put_count(names.len());
        names.iter().for_each(|name| w.put_str(name));
    });
    Ok(())
}

/// The lock, if the requester holds it in just this way.
fn held(context: &Context<'_>, name: &str, kind: u8, locker: &Locker, tag: &str) -> OpResult<Lock> {
    if !is_valid(kind) || name.is_empty() {
        return Err(EINVAL);
    }
    let lock = read_lock(context, name)?;
    if lock.kind != kind || lock.tag != tag || !lock.lockers.contains_key(locker) {
        return Err(EBUSY);
    }
    Ok(lock)
}

fn assert_locked(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (name, kind, cookie, tag) = arguments(input, |r| {
        r.envelope("cls_lock_assert_op", 1, |_, r| {
            Ok((r.string()?, r.u8()?, r.string()?, r.string()?))
        })
    })?;
    held(context, &name, kind, &(context.requester.name, cookie), &tag).map(|_| ())
}

fn set_cookie(context: &mut Context<'_>, input: &Bytes, _out: &mut BytesMut) -> OpResult {
    let (name, kind, cookie, tag, new_cookie) = arguments(input, |r| {
        r.envelope("cls_lock_set_cookie_op", 1, |_, r| {
            Ok((r.string()?, r.u8()?, r.string()?, r.string()?, r.string()?))
        })
    })?;
    let locker = (context.requester.name, cookie);
    let mut lock = held(context, &name, kind, &locker, &tag)?;
    let new = (context.requester.name, new_cookie);
    if lock.lockers.contains_key(&new) {
        return Err(EBUSY);
    }
    if let Some(holder) = lock.lockers.remove(&locker) {
        lock.lockers.insert(new, holder);
    }
    write_lock(context, &name, &lock)
}

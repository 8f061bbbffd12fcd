//! The operations of a request, one by one (`do_osd_ops` in Ceph's `PrimaryLogPG`).

use std::cmp::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::Put;
use proto::msg::op::{Op, OsdOp, WatchOp, op_flag};
use proto::msg::osd_op::OpReply;
use proto::msg::watch::{NotifyAckInput, NotifyInput, encode_watchers};

use super::cls;
use super::context::{Context, Effect, put_entries};
use super::snaps;
use crate::errno::{
    ECANCELED, EINVAL, ENOENT, ENOTCONN, EOPNOTSUPP, ETIMEDOUT, MAX_ERRNO, OpResult,
};
use crate::store::Mutation;
use crate::store::object::Watcher;

/// Seconds after which a silent watch is dropped, and a notify completes, unless the request says
/// (`osd_client_watch_timeout`, `osd_default_notify_timeout`).
const DEFAULT_TIMEOUT: u32 = 30;

/// What each op came to, and the request: the first failure, or the last op's result.
pub(super) fn run(context: &mut Context<'_>, ops: &[OsdOp]) -> (i32, Vec<OpReply>) {
    let mut result = 0;
    let mut replies = Vec::with_capacity(ops.len());
    let mut failed = false;
    for op in ops {
        let mut reply = OpReply { code: op.op.code(), result: 0, data: Bytes::new() };
        if !failed {
            if op.op.writes() && !matches!(op.op, Op::Watch { .. }) {
                context.user_modify = true;
            }
            let mut out = Bytes::new();
            reply.result = match run_one(context, &op.op, &mut out) {
                Ok(value) => value,
                Err(errno) => -errno,
            };
            reply.data = out;
            result = reply.result;
            if result < 0 && op.flags & op_flag::FAIL_OK != 0 {
                result = 0;
            }
            failed = result < 0;
        }
        replies.push(reply);
    }
    (result, replies)
}

fn run_one(context: &mut Context<'_>, op: &Op, out: &mut Bytes) -> OpResult<i32> {
    let mut w = BytesMut::new();
    match op {
        Op::Read { offset, length } => {
            *out = context.read(*offset, *length);
            return Ok(0);
        }
        Op::SparseRead { offset, length } => sparse_read(context, *offset, *length, &mut w),
        Op::Stat => {
            let (size, mtime) = context.stat()?;
            w.put_u64_le(size);
            w.put_value(&mtime);
        }
        Op::Write { offset, data } => context.write(*offset, data.clone())?,
        Op::WriteFull { data } => context.write_full(data.clone())?,
        Op::Append { data } => {
            let end = context.info().size;
            context.write(end, data.clone())?;
        }
        Op::WriteSame { offset, length, data } => write_same(context, *offset, *length, data)?,
        Op::Zero { offset, length } => context.zero(*offset, *length)?,
        Op::Truncate { size } => context.truncate(*size)?,
        Op::Delete => context.delete()?,
        Op::Create { exclusive } => context.create(*exclusive)?,
        Op::SetAllocHint { object_size, write_size, flags } => {
            context.create_if_missing();
            let hint = (*object_size, *write_size, *flags);
            if context.info().alloc_hint != hint {
                context.info_mut().alloc_hint = hint;
            }
        }
        Op::CompareExtent { offset, data } => compare_extent(context, *offset, data)?,
        Op::AssertVersion { version } => context.assert_version(*version)?,
        Op::Rollback { snap } => snaps::rollback(context, *snap)?,
        Op::Call { class, method, input } => return cls::call(context, class, method, input, out),
        Op::GetXattr { name } => {
            *out = context.xattr(name)?;
            return Ok(0);
        }
        Op::GetXattrs => {
            let xattrs = context.before().map(|object| &object.xattrs);
            let entries = xattrs.into_iter().flatten().collect::<Vec<_>>();
            put_entries(&mut w, entries.iter().map(|(name, value)| (name.as_bytes(), *value)));
        }
        Op::SetXattr { name, value } => context.set_xattr(name, value.clone())?,
        Op::RemoveXattr { name } => context.remove_xattr(name)?,
        Op::CompareXattr { name, value, operator, mode } => {
            compare_xattr(context, name, value, *operator, *mode)?;
            return Ok(1);
        }
        Op::OmapGetKeys { after, max } => {
            let (found, more) = context.omap_range(after.as_bytes(), b"", *max);
            w.put_count(found.len());
            found.iter().for_each(|(key, _)| w.put_blob(key));
            w.put_bool(more);
        }
        Op::OmapGetValues { after, max, prefix } => {
            let (found, more) = context.omap_range(after.as_bytes(), prefix.as_bytes(), *max);
            put_entries(&mut w, found.iter().map(|(key, value)| (&key[..], *value)));
            w.put_bool(more);
        }
        Op::OmapGetHeader => {
            let object = context.before().filter(|_| context.info().has_omap);
            *out = object.map(|object| object.omap_header.clone()).unwrap_or_default();
            return Ok(0);
        }
        Op::OmapGetValuesByKeys { keys } => {
            let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            keys.sort_unstable();
            keys.dedup();
            let found: Vec<_> = (keys.iter())
                .filter_map(|key| Some((key.as_bytes(), context.omap_value(key.as_bytes()).ok()?)))
                .collect();
            put_entries(&mut w, found.iter().copied());
        }
        Op::OmapCompare { assertions } => {
            context.check_exists()?;
            for (key, value, operator) in assertions {
                let stored = context.omap_value(key.as_bytes()).map_or(&[][..], |value| value);
                if !compare(stored.cmp(value), *operator, &[EQ, LT, GT])? {
                    return Err(ECANCELED);
                }
            }
        }
        Op::OmapSetValues { values } => {
            let own = |key: &String| Bytes::copy_from_slice(key.as_bytes());
            context.omap_set(values.iter().map(|(key, value)| (own(key), value.clone())).collect());
        }
        Op::OmapSetHeader { header } => {
            context.create_if_missing();
            context.info_mut().has_omap = true;
            context.mutations.push(Mutation::OmapHeader(header.clone()));
        }
        Op::OmapClear => {
            context.check_exists()?;
            if context.info().has_omap {
                context.info_mut().has_omap = false;
                context.mutations.push(Mutation::OmapClear);
            }
        }
        Op::OmapRemoveKeys { keys } => {
            let own = |key: &String| Bytes::copy_from_slice(key.as_bytes());
            context.omap_remove(keys.iter().map(own).collect())?;
        }
        Op::OmapRemoveRange { from, to } => {
            context.check_exists()?;
            let own = |key: &String| Bytes::copy_from_slice(key.as_bytes());
            context.mutations.push(Mutation::OmapRemoveRange(own(from), own(to)));
        }
        Op::Watch { cookie, op, timeout_seconds, .. } => {
            watch(context, *cookie, *op, *timeout_seconds)?;
        }
        Op::Notify { cookie, input } => {
            let input = NotifyInput::decode(input)
                .unwrap_or(NotifyInput { timeout_seconds: 0, payload: Bytes::new() });
            let timeout = match input.timeout_seconds {
                0 => DEFAULT_TIMEOUT,
                seconds => seconds,
            };
            let (id, cookie, payload) = (context.next_notify, *cookie, input.payload);
            context.next_notify += 1;
            context.effects.push(Effect::Notify { id, cookie, timeout, payload });
            w.put_u64_le(id);
        }
        Op::NotifyAck { input } => {
            let ack = NotifyAckInput::decode(input).map_err(|_| EINVAL)?;
            let (id, cookie, reply) = (ack.notify_id, Some(ack.cookie), ack.reply);
            context.effects.push(Effect::Ack { id, cookie, reply });
        }
        Op::ListWatchers => {
            let watchers = context.info().watchers.iter().map(|((cookie, name), watcher)| {
                proto::msg::watch::Watcher {
                    name: *name,
                    cookie: *cookie,
                    timeout_seconds: watcher.timeout,
                    addr: watcher.addr,
                }
            });
            encode_watchers(&watchers.collect::<Vec<_>>(), &mut w);
        }
        Op::ListSnaps => snaps::list(context, &mut w),
        // Listing is on a placement group; the rest is not for replicated pools, or older than Ceph 16.
        Op::ListObjects { .. } | Op::Unknown { .. } => return Err(EOPNOTSUPP),
    }
    *out = w.freeze();
    Ok(0)
}

fn sparse_read(context: &Context<'_>, offset: u64, length: u64, w: &mut BytesMut) {
    let length = context.clip(offset, length);
    let data = context.before().filter(|_| length > 0).map(|object| &object.data);
    let extents = data.map(|data| data.allocated(offset, length)).unwrap_or_default();
    w.put_count(extents.len());
    for (offset, len) in &extents {
        w.put_u64_le(*offset);
        w.put_u64_le(*len);
    }
    w.put_sized(|w| {
        if let Some(data) = data {
            data.each(offset, length, |_, piece| w.put_slice(&piece));
        }
    });
}

fn write_same(context: &mut Context<'_>, offset: u64, length: u64, data: &Bytes) -> OpResult {
    if length == 0 {
        return Ok(());
    }
    super::context::check_extent(offset, length)?;
    if data.is_empty() || !length.is_multiple_of(data.len() as u64) {
        return Err(EINVAL);
    }
    context.write(offset, data.repeat(length as usize / data.len()).into())
}

/// Fails with the offset of the first difference below the smallest errno. What is beyond the object's end compares as
/// zeros.
fn compare_extent(context: &Context<'_>, offset: u64, data: &Bytes) -> OpResult {
    let stored =
        if data.is_empty() { Bytes::new() } else { context.read(offset, data.len() as u64) };
    let differs = |(at, byte): (usize, &u8)| *byte != stored.get(at).copied().unwrap_or(0);
    match data.iter().enumerate().position(differs) {
        Some(at) => Err(MAX_ERRNO + at as i32),
        None => Ok(()),
    }
}

/// `CEPH_OSD_CMPXATTR_OP_*`.
const EQ: i32 = 1;
const NE: i32 = 2;
const GT: i32 = 3;
const GTE: i32 = 4;
const LT: i32 = 5;
const LTE: i32 = 6;

/// Whether an ordering is what an operator asks for.
fn compare(ordering: Ordering, operator: i32, allowed: &[i32]) -> OpResult<bool> {
    if !allowed.contains(&operator) {
        return Err(EINVAL);
    }
    Ok(match operator {
        EQ => ordering.is_eq(),
        NE => ordering.is_ne(),
        GT => ordering.is_gt(),
        GTE => ordering.is_ge(),
        LT => ordering.is_lt(),
        _ => ordering.is_le(),
    })
}

/// Compares the given value with the attribute, in this order; one that is missing is empty, or 0.
fn compare_xattr(
    context: &Context<'_>,
    name: &str,
    value: &Bytes,
    operator: u8,
    mode: u8,
) -> OpResult {
    let stored = match context.xattr(name) {
        Err(ENOENT) => return Err(ENOENT),
        stored => stored.unwrap_or_default(),
    };
    let ordering = match mode {
        1 => value.cmp(&stored),
        2 => {
            let given = value.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            // An attribute that is compared as a number is one in decimal.
            let text = std::str::from_utf8(&stored).unwrap_or_default();
            let stored: u64 = if text.is_empty() { 0 } else { text.parse().map_err(|_| EINVAL)? };
            given.ok_or(EINVAL)?.cmp(&stored)
        }
        _ => return Err(EINVAL),
    };
    if compare(ordering, operator.into(), &[EQ, NE, GT, GTE, LT, LTE])? {
        Ok(())
    } else {
        Err(ECANCELED)
    }
}

fn watch(context: &mut Context<'_>, cookie: u64, op: WatchOp, timeout: u32) -> OpResult {
    if !context.exists {
        return Err(ENOENT);
    }
    let key = (cookie, context.requester.name);
    let timeout = if timeout == 0 { DEFAULT_TIMEOUT } else { timeout };
    let known = context.info().watchers.contains_key(&key);
    match op {
        WatchOp::Watch => {
            let watcher = Watcher { timeout, addr: context.requester.addr };
            if !known {
                context.info_mut().watchers.insert(key, watcher);
            }
            context.effects.push(Effect::Connect { cookie, timeout });
        }
        WatchOp::Reconnect if !known => return Err(ENOTCONN),
        WatchOp::Reconnect => context.effects.push(Effect::Connect { cookie, timeout }),
        WatchOp::Ping if !known => return Err(ENOTCONN),
        WatchOp::Ping if !(context.connected)(cookie) => return Err(ETIMEDOUT),
        WatchOp::Ping => context.effects.push(Effect::Ping { cookie }),
        WatchOp::Unwatch if known => {
            context.info_mut().watchers.remove(&key);
            let name = context.requester.name;
            context.effects.push(Effect::Disconnect { cookie, name, tell: false });
        }
        WatchOp::Unwatch => {}
    }
    Ok(())
}

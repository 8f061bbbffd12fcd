//! The error numbers that OSDs and monitors answer with, as Linux numbers them. Results on the wire are negative.

/// What an operation came to: a value of its own that is not negative, or one of these numbers, not yet negated.
pub type OpResult<T = ()> = Result<T, i32>;

/// Operation not permitted.
pub const EPERM: i32 = 1;
/// No such object, pool, key or snapshot.
pub const ENOENT: i32 = 2;
/// Input/output error: stored bytes that cannot be read back.
pub const EIO: i32 = 5;
/// No such device or address: the wrong OSD was asked.
pub const ENXIO: i32 = 6;
/// Exec format error: an image without the feature that was asked for.
pub const ENOEXEC: i32 = 8;
/// Bad descriptor: an id that is taken.
pub const EBADF: i32 = 9;
/// Try again.
pub const EAGAIN: i32 = 11;
/// Permission denied.
pub const EACCES: i32 = 13;
/// Busy: somebody holds a lock.
pub const EBUSY: i32 = 16;
/// Already there.
pub const EEXIST: i32 = 17;
/// Cross-device link: a namespace where none can be told.
pub const EXDEV: i32 = 18;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// Too large.
pub const EFBIG: i32 = 27;
/// No space left.
pub const ENOSPC: i32 = 28;
/// Result out of range.
pub const ERANGE: i32 = 34;
/// Name too long.
pub const ENAMETOOLONG: i32 = 36;
/// Not empty.
pub const ENOTEMPTY: i32 = 39;
/// No such attribute.
pub const ENODATA: i32 = 61;
/// Value too large.
pub const EOVERFLOW: i32 = 75;
/// Illegal byte sequence: the image features do not allow it.
pub const EILSEQ: i32 = 84;
/// Snapshot context older than the object's (`EOLDSNAPC`).
pub const EOLDSNAPC: i32 = 85;
/// Message too long: a write above `osd_max_write_size` (`OSD_WRITETOOBIG`).
pub const EMSGSIZE: i32 = 90;
/// Not supported.
pub const EOPNOTSUPP: i32 = 95;
/// Not connected: no such watch.
pub const ENOTCONN: i32 = 107;
/// Cut off from the cluster: the address is on the blocklist (`ESHUTDOWN`, `EBLOCKLISTED`).
pub const EBLOCKLISTED: i32 = 108;
/// Timed out.
pub const ETIMEDOUT: i32 = 110;
/// Stale handle.
pub const ESTALE: i32 = 116;
/// Quota exceeded.
pub const EDQUOT: i32 = 122;
/// Cancelled: a comparison that failed.
pub const ECANCELED: i32 = 125;
/// The largest error number; `cmpext` answers with offsets above it.
pub const MAX_ERRNO: i32 = 4095;

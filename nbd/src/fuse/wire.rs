//! Messages of the FUSE protocol that a file system of one file needs (`include/uapi/linux/fuse.h`). They are in the
//! host's byte order.

use bytes::{Buf, BufMut};

use crate::device::Geometry;

/// The version spoken. What came later is asked for by flags.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// The only file there is: the root itself.
const ROOT: u64 = 1;
const REGULAR: u32 = 0o100_000;

/// Requests that the kernel may have in flight of its own accord, such as those of direct I/O, and of how many on it
/// counts as congested.
const BACKGROUND: u16 = 512;
const CONGESTED: u16 = 384;

/// The longest read or write, in bytes and in pages: what the kernel allows at most unless told otherwise.
pub(super) const TRANSFER_BYTES: u32 = 1 << 20;
const TRANSFER_PAGES: u16 = 256;

/// A request's headers, at most, before the payload of a write.
pub(super) const HEADERS_BYTES: usize = 4096;

/// What `fstrim` and loop take for the granularity of discards, in bytes: less of an object is not worth it.
pub(super) const DISCARD_BYTES: u32 = 64 << 10;

mod opcode {
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
}

/// What is asked for when the connection begins.
mod init {
    pub(super) const ASYNC_READ: u32 = 1 << 0;
    pub(super) const BIG_WRITES: u32 = 1 << 5;
    pub(super) const ASYNC_DIO: u32 = 1 << 15;
    pub(super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(super) const MAX_PAGES: u32 = 1 << 22;
}

/// How the file is opened: nothing of it is cached, writes go in parallel, and closing it is no event.
mod open {
    pub(super) const DIRECT_IO: u32 = 1 << 0;
    pub(super) const NO_FLUSH: u32 = 1 << 5;
    pub(super) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

mod fallocate {
    pub(super) const KEEP_SIZE: u32 = 1;
    pub(super) const PUNCH_HOLE: u32 = 2;
    pub(super) const ZERO_RANGE: u32 = 16;
}

/// A request of the kernel's, and the number under which it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) unique: u64,
    pub(super) body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Init {
        major: u32,
        readahead: u32,
        flags: u32,
    },
    GetAttr,
    Open,
    Read {
        offset: u64,
        len: u32,
    },
    /// The payload is the rest of the message.
    Write {
        offset: u64,
        len: u32,
    },
    Fsync,
    /// Zeros, whose space may be freed or not.
    Zero {
        offset: u64,
        len: u64,
        may_free: bool,
    },
    StatFs,
    Release,
    /// Nothing is answered.
    Silent,
    /// Nothing that a single file needs.
    Unknown,
}

/// Reads a message: itself, and where the payload of a write begins. `None` if it makes no sense.
pub(super) fn decode(message: &[u8]) -> Option<(Message, usize)> {
    let mut rest = message;
    let len = rest.try_get_u32_ne().ok()?;
    let opcode = rest.try_get_u32_ne().ok()?;
    let unique = rest.try_get_u64_ne().ok()?;
    // Node, user, group, process, extensions.
    if len as usize != message.len() || rest.remaining() < 24 {
        return None;
    }
    rest.advance(24);
    let body = match opcode {
        opcode::INIT => {
            let major = rest.try_get_u32_ne().ok()?;
            let _minor = rest.try_get_u32_ne().ok()?;
            let readahead = rest.try_get_u32_ne().unwrap_or_default();
            Body::Init { major, readahead, flags: rest.try_get_u32_ne().unwrap_or_default() }
        }
        opcode::GETATTR => Body::GetAttr,
        opcode::OPEN => Body::Open,
        opcode::READ | opcode::WRITE => {
            let _handle = rest.try_get_u64_ne().ok()?;
            let offset = rest.try_get_u64_ne().ok()?;
            let len = rest.try_get_u32_ne().ok()?;
            // Flags, lock owner.
            if rest.remaining() < 20 {
                return None;
            }
            rest.advance(20);
            match opcode {
                opcode::READ => Body::Read { offset, len },
                _ if rest.remaining() == len as usize => Body::Write { offset, len },
                _ => return None,
            }
        }
        opcode::FSYNC => Body::Fsync,
        opcode::FALLOCATE => {
            let _handle = rest.try_get_u64_ne().ok()?;
            let offset = rest.try_get_u64_ne().ok()?;
            let len = rest.try_get_u64_ne().ok()?;
            match rest.try_get_u32_ne().ok()? & !fallocate::KEEP_SIZE {
                fallocate::PUNCH_HOLE => Body::Zero { offset, len, may_free: true },
                fallocate::ZERO_RANGE => Body::Zero { offset, len, may_free: false },
                _ => Body::Unknown,
            }
        }
        opcode::STATFS => Body::StatFs,
        opcode::RELEASE => Body::Release,
        opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::DESTROY => Body::Silent,
        _ => Body::Unknown,
    };
    Some((Message { unique, body }, message.len() - rest.remaining()))
}

/// The header of an answer that `payload` bytes follow.
pub(super) fn header(unique: u64, payload: usize) -> [u8; 16] {
    answer(unique, payload, 0)
}

/// The answer to what failed.
pub(super) fn error(unique: u64, errno: u32) -> [u8; 16] {
    answer(unique, 0, -(errno as i32))
}

fn answer(unique: u64, payload: usize, error: i32) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut out = &mut bytes[..];
    // Bounded by TRANSFER_BYTES.
    out.put_u32_ne(16 + payload as u32);
    out.put_i32_ne(error);
    out.put_u64_ne(unique);
    bytes
}

/// What is spoken, given what the kernel can.
pub(super) fn init(readahead: u32, flags: u32) -> Vec<u8> {
    let wanted = init::ASYNC_READ
        | init::BIG_WRITES
        | init::ASYNC_DIO
        | init::PARALLEL_DIROPS
        | init::MAX_PAGES;
    let mut out = Vec::with_capacity(64);
    for word in [MAJOR, MINOR, readahead, flags & wanted] {
        out.put_u32_ne(word);
    }
    out.put_u16_ne(BACKGROUND);
    out.put_u16_ne(CONGESTED);
    out.put_u32_ne(TRANSFER_BYTES);
    // The granularity of times: a second, as there are none.
    out.put_u32_ne(1_000_000_000);
    out.put_u16_ne(TRANSFER_PAGES);
    out.put_bytes(0, 2 + 4 * 8);
    out
}

/// Whether a version of the kernel's can be talked to.
pub(super) fn is_spoken(major: u32) -> bool {
    major == MAJOR
}

/// The only version there is, for a kernel that speaks a later one: it asks again.
pub(super) fn version() -> Vec<u8> {
    let mut out = vec![0; 64];
    (&mut out[..4]).put_u32_ne(MAJOR);
    (&mut out[4..8]).put_u32_ne(MINOR);
    out
}

/// The file's attributes, to be believed for no time at all: its size changes behind the kernel's back.
pub(super) fn attributes(geometry: &Geometry) -> Vec<u8> {
    let mode = REGULAR | if geometry.read_only { 0o400 } else { 0o600 };
    let mut out = Vec::with_capacity(104);
    // For how long.
    out.put_bytes(0, 16);
    for word in [ROOT, geometry.size, geometry.size.div_ceil(512)] {
        out.put_u64_ne(word);
    }
    // Times.
    out.put_bytes(0, 3 * 8 + 3 * 4);
    // Mode, links, user, group, device, block size, flags.
    for word in [mode, 1, 0, 0, 0, DISCARD_BYTES, 0] {
        out.put_u32_ne(word);
    }
    out
}

pub(super) fn opened() -> [u8; 16] {
    let mut bytes = [0; 16];
    let flags = open::DIRECT_IO | open::NO_FLUSH | open::PARALLEL_DIRECT_WRITES;
    (&mut bytes[8..]).put_u32_ne(flags);
    bytes
}

pub(super) fn written(len: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    (&mut bytes[..]).put_u32_ne(len);
    bytes
}

/// A file system whose blocks are what discards are rounded to.
pub(super) fn file_system(geometry: &Geometry) -> [u8; 80] {
    let mut bytes = [0; 80];
    let mut out = &mut bytes[..];
    out.put_u64_ne(geometry.size.div_ceil(DISCARD_BYTES.into()));
    // Free blocks, of those for everybody, files and free ones.
    out.put_bytes(0, 4 * 8);
    out.put_u32_ne(DISCARD_BYTES);
    out.put_u32_ne(255);
    out.put_u32_ne(DISCARD_BYTES);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32_ne(40 + body.len() as u32);
        out.put_u32_ne(opcode);
        out.put_u64_ne(7);
        out.put_bytes(0xff, 24);
        out.put_slice(body);
        out
    }

    fn words(words: &[u64]) -> Vec<u8> {
        let mut out = Vec::new();
        words.iter().for_each(|word| out.put_u64_ne(*word));
        out
    }

    fn body(opcode: u32, body: &[u8]) -> Option<Body> {
        decode(&message(opcode, body)).map(|(message, _)| message.body)
    }

    #[test]
    fn requests_are_understood() {
        let mut write = words(&[1, 4096, 3, 0, 0]);
        write.extend(b"abc");
        let bytes = message(16, &write);
        let (message, at) = decode(&bytes).unwrap();
        assert_eq!(message, Message { unique: 7, body: Body::Write { offset: 4096, len: 3 } });
        assert_eq!(&bytes[at..], b"abc");
        let read = body(15, &words(&[1, 512, 1024, 0, 0]));
        assert_eq!(read, Some(Body::Read { offset: 512, len: 1024 }));
        let zero = |mode| body(43, &words(&[1, 2, 3, mode]));
        assert_eq!(zero(3), Some(Body::Zero { offset: 2, len: 3, may_free: true }));
        assert_eq!(zero(17), Some(Body::Zero { offset: 2, len: 3, may_free: false }));
        assert_eq!(zero(0), Some(Body::Unknown));
        assert_eq!(body(3, &[]), Some(Body::GetAttr));
        assert_eq!(body(36, &words(&[9])), Some(Body::Silent));
        assert_eq!(body(99, &[]), Some(Body::Unknown));
    }

    #[test]
    fn what_is_cut_short_or_too_long_makes_no_sense() {
        let write = message(16, &words(&[1, 4096, 8, 0, 0, 1]));
        for len in 0..write.len() {
            assert_eq!(decode(&write[..len]), None, "{len}");
        }
        // A length that is not that of the message.
        assert_eq!(decode(&[&write[..], &[0]].concat()), None);
        assert_eq!(body(16, &words(&[1, 4096, 9, 0, 0, 1])), None);
        assert_eq!(body(43, &words(&[1, 2])), None);
    }

    /// The sizes of the structures in `fuse.h`.
    #[test]
    fn answers_have_the_kernels_layout() {
        let geometry = Geometry { read_only: true, ..Geometry::new(1 << 20) };
        assert_eq!(init(0, u32::MAX).len(), 64);
        assert_eq!(version().len(), 64);
        let attributes = attributes(&geometry);
        assert_eq!(attributes.len(), 104);
        assert_eq!((&attributes[24..32]).get_u64_ne(), 1 << 20);
        assert_eq!((&attributes[76..80]).get_u32_ne(), 0o100_400);
        let statfs = file_system(&geometry);
        assert_eq!(((&statfs[..8]).get_u64_ne(), (&statfs[40..44]).get_u32_ne()), (16, 65536));
        assert_eq!((&error(9, 5)[4..8]).get_i32_ne(), -5);
        assert_eq!((&header(9, 100)[..4]).get_u32_ne(), 116);
    }
}

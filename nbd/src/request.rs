//! From a request on the wire to an operation of a device, or the error the protocol document demands for it.

use bytes::Bytes;

use crate::device::{Errno, Geometry, Op};
use crate::limits::{EXTENTS, TRANSFER_BYTES};
use crate::wire::{RequestHeader, command, command_flag as flag};

/// What requests of one connection are judged by.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) geometry: Geometry,
    /// Reads are answered in chunks.
    pub(crate) structured: bool,
    /// A metadata context was selected.
    pub(crate) extents: bool,
}

/// Why a request is refused: the error, and words for people.
pub(crate) type Refusal = (Errno, &'static str);

/// A request that the device has, and what its reply needs to know.
pub(crate) struct Pending {
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) command: u16,
    pub(crate) flags: u16,
}

impl Pending {
    pub(crate) fn new(header: &RequestHeader) -> Self {
        let RequestHeader { flags, command, cookie, offset, len } = *header;
        Self { cookie, offset, len, command, flags }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The memory it may take until it is answered, in bytes.
    pub(crate) fn cost(&self) -> u64 {
        match self.command {
            command::READ | command::WRITE => self.len.into(),
            command::BLOCK_STATUS => 8 * EXTENTS as u64,
            _ => 0,
        }
    }
}

/// Whether a request may go to the device (NBD's `doc/proto.md`, "Request types", "Error values").
#[inline]
pub(crate) fn check(request: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let geometry = &terms.geometry;
    let zero_flags = flag::NO_HOLE | if geometry.can_write_zeroes { flag::FAST_ZERO } else { 0 };
    // What is there, the flags that go with it (beside FUA), and whether it changes the device.
    let (there, flags, changes) = match request.command {
        command::READ => (true, if terms.structured { flag::DF } else { 0 }, false),
        command::WRITE => (true, 0, true),
        command::FLUSH => (geometry.can_flush, 0, false),
        command::TRIM => (geometry.can_discard, 0, true),
        command::CACHE => (true, 0, false),
        command::WRITE_ZEROES => (geometry.can_write_zeroes, zero_flags, true),
        command::BLOCK_STATUS => (terms.extents, flag::REQ_ONE, false),
        _ => return Err((Errno::EINVAL, "unknown command")),
    };
    let fua = if geometry.can_be_durable { flag::FUA } else { 0 };
    if request.flags & !(flags | fua) != 0 {
        return Err((Errno::EINVAL, "a command flag that is unknown or has no meaning here"));
    }
    if changes && geometry.read_only {
        return Err((Errno::EPERM, "the export is read-only"));
    }
    if !there {
        return Err((Errno::EINVAL, "a command that was not offered"));
    }
    if request.command == command::FLUSH {
        return match (request.offset, request.len) {
            (0, 0) => Ok(()),
            _ => Err((Errno::EINVAL, "a flush has no offset or length")),
        };
    }
    check_range(request, terms)
}

fn check_range(request: &RequestHeader, terms: &Terms) -> Result<(), Refusal> {
    let geometry = &terms.geometry;
    let RequestHeader { command, offset, len, .. } = *request;
    if len == 0 {
        return Err((Errno::EINVAL, "a length of zero"));
    }
    if matches!(command, command::READ | command::WRITE)
        && len > geometry.maximum_transfer.min(TRANSFER_BYTES)
    {
        // EOVERFLOW has a meaning only where a client may know about fragmented reads.
        let errno = match command {
            command::READ if terms.structured => Errno::EOVERFLOW,
            _ => Errno::EINVAL,
        };
        return Err((errno, "longer than the maximum payload"));
    }
    let mask = u64::from(geometry.minimum_block.saturating_sub(1));
    if (offset | u64::from(len)) & mask != 0 {
        return Err((Errno::EINVAL, "not aligned to the minimum block size"));
    }
    if offset.checked_add(len.into()).is_none_or(|end| end > geometry.size) {
        let errno = match command {
            command::WRITE | command::WRITE_ZEROES => Errno::ENOSPC,
            _ => Errno::EINVAL,
        };
        return Err((errno, "beyond the end of the export"));
    }
    Ok(())
}

/// The operation for a request that was checked. `data` is the payload of a write.
#[inline]
pub(crate) fn operation(request: &RequestHeader, data: Bytes) -> Op {
    let RequestHeader { flags, command, offset, len, .. } = *request;
    let durable = flags & flag::FUA != 0;
    match command {
        command::READ => Op::Read { offset, len },
        command::WRITE => Op::Write { offset, data, durable },
        command::TRIM => Op::Discard { offset, len, durable },
        command::WRITE_ZEROES => Op::WriteZeroes {
            offset,
            len,
            may_discard: flags & flag::NO_HOLE == 0,
            durable,
            fast: flags & flag::FAST_ZERO != 0,
        },
        command::BLOCK_STATUS => Op::Extents { offset, len },
        command::CACHE => Op::Prefetch { offset, len },
        // Only a flush is left of what `check` lets through.
        _ => Op::Flush,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 20;

    fn request(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 1, offset, len }
    }

    fn terms() -> Terms {
        Terms { geometry: Geometry::new(SIZE), structured: true, extents: true }
    }

    fn errno(request: RequestHeader, terms: Terms) -> u32 {
        check(&request, &terms).err().map_or(0, |(errno, _)| errno.number())
    }

    #[test]
    fn the_end_of_the_export_has_the_documents_errors() {
        for (command, expected) in [(0, 22), (1, 28), (4, 22), (5, 22), (6, 28), (7, 22)] {
            assert_eq!(errno(request(command, 0, SIZE - 512, 512), terms()), 0, "{command}");
            for offset in [SIZE - 511, SIZE, u64::MAX, u64::MAX - 511] {
                assert_eq!(errno(request(command, 0, offset, 512), terms()), expected, "{command}");
            }
            assert_eq!(errno(request(command, 0, 0, 0), terms()), 22, "{command} of nothing");
        }
    }

    #[test]
    fn each_command_has_its_flags_only() {
        let allowed = [(0, 0b00101), (1, 1), (3, 1), (4, 1), (5, 1), (6, 0b10011), (7, 0b01001)];
        for (command, allowed) in allowed {
            for bit in 0..16 {
                let (flags, len) = (1 << bit, if command == 3 { 0 } else { 512 });
                let expected = if flags & allowed != 0 { 0 } else { 22 };
                let errno = errno(request(command, flags, 0, len), terms());
                assert_eq!(errno, expected, "command {command} flag {bit}");
            }
        }
        let plain = Terms { structured: false, ..terms() };
        assert_eq!(errno(request(command::READ, flag::DF, 0, 512), plain), 22);
    }

    #[test]
    fn what_was_not_offered_is_invalid() {
        let mut terms = terms();
        terms.extents = false;
        terms.geometry.can_flush = false;
        terms.geometry.can_discard = false;
        terms.geometry.can_write_zeroes = false;
        terms.geometry.can_be_durable = false;
        for command in [3, 4, 6, 7, 8, 9, 0xffff] {
            assert_eq!(errno(request(command, 0, 0, 0), terms), 22, "{command}");
        }
        assert_eq!(errno(request(command::WRITE, flag::FUA, 0, 512), terms), 22);
        assert_eq!(errno(request(command::FLUSH, 0, 0, 0), self::terms()), 0);
        assert_eq!(errno(request(command::FLUSH, 0, 1, 0), self::terms()), 22);
    }

    #[test]
    fn a_read_only_export_permits_no_change() {
        let mut terms = terms();
        terms.geometry.read_only = true;
        for (command, expected) in [(0, 0), (1, 1), (4, 1), (5, 0), (6, 1), (7, 0)] {
            assert_eq!(errno(request(command, 0, 0, 512), terms), expected, "{command}");
        }
    }

    #[test]
    fn blocks_and_payloads_are_bounded() {
        let mut terms = terms();
        terms.geometry.size = 1 << 40;
        let long = (32 << 20) + 1;
        assert_eq!(errno(request(command::READ, 0, 0, long - 1), terms), 0);
        assert_eq!(errno(request(command::READ, 0, 0, long), terms), 75);
        assert_eq!(errno(request(command::WRITE, 0, 0, long), terms), 22);
        assert_eq!(errno(request(command::TRIM, 0, 0, u32::MAX), terms), 0);
        assert_eq!(errno(request(command::WRITE_ZEROES, 0, 0, u32::MAX), terms), 0);
        assert_eq!(
            errno(request(command::READ, 0, 0, long), Terms { structured: false, ..terms }),
            22
        );
        terms.geometry.minimum_block = 512;
        assert_eq!(errno(request(command::READ, 0, 512, 1024), terms), 0);
        assert_eq!(errno(request(command::READ, 0, 256, 512), terms), 22);
        assert_eq!(errno(request(command::WRITE, 0, 512, 256), terms), 22);
    }
}

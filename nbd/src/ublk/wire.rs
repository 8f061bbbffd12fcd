//! Numbers and structures of `include/uapi/linux/ublk_cmd.h`.

use bytes::{Buf, BufMut, Bytes};

use crate::device::{Geometry, Op};

/// Commands to `/dev/ublk-control`.
pub(super) mod control {
    pub(in super::super) const GET_DEV_INFO: u32 = read(0x02);
    pub(in super::super) const ADD_DEV: u32 = both(0x04);
    pub(in super::super) const DEL_DEV: u32 = both(0x05);
    pub(in super::super) const START_DEV: u32 = both(0x06);
    pub(in super::super) const STOP_DEV: u32 = both(0x07);
    pub(in super::super) const SET_PARAMS: u32 = both(0x08);
    pub(in super::super) const START_USER_RECOVERY: u32 = both(0x10);
    pub(in super::super) const END_USER_RECOVERY: u32 = both(0x11);
    pub(in super::super) const DEL_DEV_ASYNC: u32 = read(0x14);

    /// `_IOR('u', number, struct ublksrv_ctrl_cmd)`
    const fn read(number: u32) -> u32 {
        0x8020_7500 | number
    }

    /// `_IOWR('u', number, struct ublksrv_ctrl_cmd)`
    const fn both(number: u32) -> u32 {
        0xc020_7500 | number
    }
}

/// Commands to `/dev/ublkcN`: `_IOWR('u', number, struct ublksrv_io_cmd)`.
pub(super) const FETCH_REQ: u32 = 0xc010_7520;
pub(super) const COMMIT_AND_FETCH_REQ: u32 = 0xc010_7521;

/// The device waits for another process when the one that serves it is gone, which is asked again what that had not
/// answered.
const USER_RECOVERY: u64 = 1 << 3;
const USER_RECOVERY_REISSUE: u64 = 1 << 4;
/// Commands are encoded as ioctls are.
const CMD_IOCTL_ENCODE: u64 = 1 << 6;
/// Data is read from and written to `/dev/ublkcN`.
const USER_COPY: u64 = 1 << 7;

/// What we need of a device; the kernel leaves out what it does not have.
pub(super) const FEATURES: u64 =
    USER_RECOVERY | USER_RECOVERY_REISSUE | CMD_IOCTL_ENCODE | USER_COPY;

/// Requests that the kernel has in flight at most.
pub(super) const DEPTH: u16 = 128;

/// Any device, in place of one's number.
pub(super) const ANY: u32 = u32::MAX;

/// A command to `/dev/ublk-control` about a device, with a structure that the kernel reads or fills:
/// `struct ublksrv_ctrl_cmd`.
pub(super) fn control_command(index: u32, structure: &mut [u8], data: u64) -> Vec<u8> {
    let mut command = Vec::with_capacity(32);
    command.put_u32_ne(index);
    // It is of no queue.
    command.put_u16_ne(u16::MAX);
    command.put_u16_ne(structure.len() as u16);
    command.put_u64_ne(match structure.is_empty() {
        true => 0,
        false => structure.as_mut_ptr().expose_provenance() as u64,
    });
    command.put_u64_ne(data);
    command.put_u64_ne(0);
    command
}

/// What the kernel keeps of a device: `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DevInfo {
    pub(super) index: u32,
    /// Whether there is a block device, and somebody to serve it; 0 if there is none.
    pub(super) state: u16,
    pub(super) longest: u32,
    /// The process that serves it; -1 if nobody does any more.
    pub(super) pid: i32,
    pub(super) features: u64,
    /// Left to whoever makes the device, and invisible to the driver: which cookie it is known by.
    pub(super) mark: u64,
}

impl DevInfo {
    pub(super) const BYTES: usize = 64;

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        // One queue: one thread serves it.
        bytes.put_u16_ne(1);
        bytes.put_u16_ne(DEPTH);
        bytes.put_u16_ne(self.state);
        bytes.put_u16_ne(0);
        bytes.put_u32_ne(self.longest);
        bytes.put_u32_ne(self.index);
        bytes.put_i32_ne(self.pid);
        bytes.put_u32_ne(0);
        bytes.put_u64_ne(self.features);
        bytes.put_u64_ne(self.mark);
        // Whose it is, which the kernel notes, and room.
        bytes.put_bytes(0, 24);
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        bytes.try_get_u32_ne().ok()?;
        let state = bytes.try_get_u16_ne().ok()?;
        bytes.try_get_u16_ne().ok()?;
        let longest = bytes.try_get_u32_ne().ok()?;
        let index = bytes.try_get_u32_ne().ok()?;
        let pid = bytes.try_get_i32_ne().ok()?;
        bytes.try_get_u32_ne().ok()?;
        let features = bytes.try_get_u64_ne().ok()?;
        let mark = bytes.try_get_u64_ne().ok()?;
        Some(Self { index, state, longest, pid, features, mark })
    }
}

/// What a device looks like: `struct ublk_params`, as far as its first two parts.
pub(super) fn params(geometry: &Geometry, block_size: u32, trim: bool, longest: u32) -> Vec<u8> {
    const BASIC: u32 = 1 << 0;
    const DISCARD: u32 = 1 << 1;
    const READ_ONLY: u32 = 1 << 0;
    const ROTATIONAL: u32 = 1 << 1;
    const VOLATILE_CACHE: u32 = 1 << 2;
    const FUA: u32 = 1 << 3;
    const BYTES: u32 = 60;
    /// 2 GiB at once.
    const LONGEST_DISCARD: u32 = 1 << 22;

    let attributes = [
        (geometry.read_only, READ_ONLY),
        (geometry.rotational, ROTATIONAL),
        (geometry.can_flush, VOLATILE_CACHE),
        (geometry.can_be_durable, FUA),
    ];
    let attributes = attributes.iter().filter(|(has, _)| *has).fold(0, |all, (_, bit)| all | bit);
    let shift = |bytes: u32| bytes.max(block_size).ilog2() as u8;
    let mut params = Vec::with_capacity(BYTES as usize);
    params.put_u32_ne(BYTES);
    params.put_u32_ne(if trim { BASIC | DISCARD } else { BASIC });
    params.put_u32_ne(attributes);
    // The logical block, the physical one, the best and the least transfer.
    for bytes in [block_size, geometry.preferred_block, longest, geometry.preferred_block] {
        params.put_u8(shift(bytes));
    }
    params.put_u32_ne(longest >> 9);
    // No chunks.
    params.put_u32_ne(0);
    params.put_u64_ne(geometry.size >> 9);
    // No boundaries.
    params.put_u64_ne(0);
    let most = |can: bool| if can { LONGEST_DISCARD } else { 0 };
    params.put_u32_ne(0);
    params.put_u32_ne(geometry.discard_granularity.max(block_size));
    params.put_u32_ne(most(geometry.can_discard));
    params.put_u32_ne(most(geometry.can_write_zeroes));
    // One range at a time, and room.
    params.put_u16_ne(1);
    params.put_u16_ne(0);
    params
}

/// A command to `/dev/ublkcN` about a request: `struct ublksrv_io_cmd`.
pub(super) fn io_command(tag: u16, result: i32) -> [u8; 16] {
    let mut command = [0; 16];
    let mut rest = &mut command[..];
    // The first queue.
    rest.put_u16_ne(0);
    rest.put_u16_ne(tag);
    rest.put_i32_ne(result);
    command
}

/// Where in `/dev/ublkcN` the data of a request is.
pub(super) fn data_offset(tag: u16) -> u64 {
    const DATA: u64 = 0x8000_0000;
    const TAG_SHIFT: u32 = 25;
    DATA + (u64::from(tag) << TAG_SHIFT)
}

/// A request of the kernel: `struct ublksrv_io_desc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) op_flags: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
}

/// What the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Other,
}

impl Descriptor {
    pub(super) const BYTES: usize = 24;

    const READ: u32 = 0;
    const WRITE: u32 = 1;
    const FLUSH: u32 = 2;
    const DISCARD: u32 = 3;
    const WRITE_ZEROES: u32 = 5;

    pub(super) fn kind(&self) -> Kind {
        match self.op_flags & 0xff {
            Self::READ => Kind::Read,
            Self::WRITE => Kind::Write,
            _ => Kind::Other,
        }
    }

    /// In bytes.
    pub(super) fn len(&self) -> u32 {
        self.sectors.saturating_mul(512)
    }

    /// What is to be done, if we know it. `data` is what is to be written.
    pub(super) fn operation(&self, data: Bytes) -> Option<Op> {
        const FUA: u32 = 1 << 13;
        const NOUNMAP: u32 = 1 << 15;
        let (offset, len) = (self.start_sector.saturating_mul(512), self.len());
        let durable = self.op_flags & FUA != 0;
        Some(match self.op_flags & 0xff {
            Self::READ => Op::Read { offset, len },
            Self::WRITE => Op::Write { offset, data, durable },
            Self::FLUSH => Op::Flush,
            Self::DISCARD => Op::Discard { offset, len, durable },
            Self::WRITE_ZEROES => {
                let may_discard = self.op_flags & NOUNMAP == 0;
                Op::WriteZeroes { offset, len, may_discard, durable, fast: false }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_of_a_device_comes_back() {
        let info =
            DevInfo { index: 3, state: 2, longest: 4 << 20, pid: 17, features: FEATURES, mark: 9 };
        let bytes = info.encode();
        assert_eq!(bytes.len(), DevInfo::BYTES);
        assert_eq!(bytes[..8], [1, 0, 128, 0, 2, 0, 0, 0]);
        assert_eq!(DevInfo::decode(&bytes), Some(info));
        assert_eq!(DevInfo::decode(&bytes[..39]), None);
    }

    #[test]
    fn a_device_is_described_as_the_header_has_it() {
        let geometry =
            Geometry { read_only: true, discard_granularity: 64 << 10, ..Geometry::new(1 << 30) };
        let params = params(&geometry, 512, true, 4 << 20);
        assert_eq!(params.len(), 60);
        let word = |at: usize| (&params[at..]).get_u32_ne();
        // Its length, both parts, read-only with a cache and FUA, blocks of 512 and 4096 bytes.
        assert_eq!([word(0), word(4), word(8)], [60, 0b11, 0b1101]);
        assert_eq!(params[12..16], [9, 12, 22, 12]);
        assert_eq!([word(16), word(20), word(24), word(28)], [8192, 0, 1 << 21, 0]);
        assert_eq!([word(40), word(44), word(48)], [0, 64 << 10, 1 << 22]);
        assert_eq!(word(4), 3);
        assert_eq!(super::params(&geometry, 512, false, 4 << 20)[4], 1);
    }

    #[test]
    fn requests_are_understood() {
        let descriptor = |op_flags| Descriptor { op_flags, sectors: 8, start_sector: 2 };
        let (offset, len) = (1024, 4096);
        assert_eq!(descriptor(0).operation(Bytes::new()), Some(Op::Read { offset, len }));
        let write = Op::Write { offset, data: vec![7; 4096].into(), durable: true };
        assert_eq!(descriptor(1 | 1 << 13).operation(vec![7; 4096].into()), Some(write));
        assert_eq!(descriptor(2).operation(Bytes::new()), Some(Op::Flush));
        let zeroes =
            |may_discard| Op::WriteZeroes { offset, len, may_discard, durable: false, fast: false };
        assert_eq!(descriptor(5).operation(Bytes::new()), Some(zeroes(true)));
        assert_eq!(descriptor(5 | 1 << 15).operation(Bytes::new()), Some(zeroes(false)));
        assert_eq!(descriptor(4).operation(Bytes::new()), None);
    }
}

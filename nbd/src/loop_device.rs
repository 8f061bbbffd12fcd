//! Loop devices of the Linux kernel (`drivers/block/loop.c`): block devices over a file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use bytes::BufMut;
use rustix::ioctl::Opcode;

use crate::ioctl;
use crate::node;

/// Numbers of `include/uapi/linux/loop.h`.
const LOOP_CLR_FD: Opcode = 0x4c01;
const LOOP_GET_STATUS64: Opcode = 0x4c05;
const LOOP_SET_CAPACITY: Opcode = 0x4c07;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_GET_FREE: Opcode = 0x4c82;

const READ_ONLY: u32 = 1;
const PARTSCAN: u32 = 8;
const DIRECT_IO: u32 = 16;

/// `struct loop_config`: descriptor, block size, a `struct loop_info64`, and 64 bytes for later.
const CONFIG_BYTES: usize = 4 + 4 + INFO_BYTES + 64;
const INFO_BYTES: usize = 232;
const NAME_OFFSET: usize = 56;
const NAME_BYTES: usize = 64;

/// How often another free device is asked for when somebody else was faster.
const ATTEMPTS: u32 = 64;

/// What a loop device is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device to take; any free one if there is none named.
    pub number: Option<u32>,
    /// The logical block size, in bytes: 512 to the size of a page.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether partitions are looked for.
    pub partitions: bool,
    /// What `losetup` shows as its file, cut to 63 bytes.
    pub name: String,
}

/// A loop device that has a file.
#[derive(Debug)]
pub struct LoopDevice {
    number: u32,
    file: File,
}

impl LoopDevice {
    /// Puts a block device over a file. I/O on it is direct: nothing is cached twice. Blocks; reading the partition
    /// table reads the file, so whoever serves the file must be another thread.
    ///
    /// # Errors
    /// No permission (this takes root), no loop devices in this kernel, or the one asked for is in use.
    pub fn attach(backing: BorrowedFd<'_>, options: &Options) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let number = match options.number {
                Some(number) => number,
                None => free()?,
            };
            let path = path(number);
            node::make(&path)?;
            let file = open(&path, options.read_only)?;
            match ioctl::structure(&file, LOOP_CONFIGURE, &mut config(backing, options)) {
                Ok(_) => return Ok(Self { number, file }),
                Err(rustix::io::Errno::BUSY) if options.number.is_none() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(rustix::io::Errno::BUSY.into())
    }

    /// Its device node.
    pub fn path(&self) -> PathBuf {
        path(self.number)
    }

    /// Takes over the size that the file has now. Blocks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn update_size(&self) -> io::Result<()> {
        ioctl::number(&self.file, LOOP_SET_CAPACITY, 0)?;
        Ok(())
    }

    /// Takes the file away from it: at once if nobody has the device open, otherwise when nobody has it open any more.
    /// Blocks.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(&self) -> io::Result<()> {
        clear(&self.file)
    }
}

/// Takes the file away from a device whose owner is gone. See [`LoopDevice::detach`].
///
/// # Errors
/// The kernel's; that it has none is fine.
pub fn release(path: &Path) -> io::Result<()> {
    match open(path, true) {
        Ok(file) => clear(&file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What a device was called when it got its file; `None` if it has none. Nobody can tell once the file is dead: then it
/// is nothing.
pub fn name(path: &Path) -> Option<String> {
    let file = open(path, true).ok()?;
    let mut info = [0; INFO_BYTES];
    match ioctl::structure(&file, LOOP_GET_STATUS64, &mut info) {
        Ok(_) => {}
        Err(rustix::io::Errno::NXIO) => return None,
        Err(_) => return Some(String::new()),
    }
    let name = info[NAME_OFFSET..NAME_OFFSET + NAME_BYTES].split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

fn clear(file: impl AsFd) -> io::Result<()> {
    match ioctl::number(file, LOOP_CLR_FD, 0) {
        Ok(_) | Err(rustix::io::Errno::NXIO) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn free() -> io::Result<u32> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    let number = ioctl::number(&control, LOOP_CTL_GET_FREE, 0)?;
    u32::try_from(number).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(!read_only).open(path)
}

fn config(backing: BorrowedFd<'_>, options: &Options) -> [u8; CONFIG_BYTES] {
    let flags = DIRECT_IO
        | if options.read_only { READ_ONLY } else { 0 }
        | if options.partitions { PARTSCAN } else { 0 };
    let mut bytes = [0; CONFIG_BYTES];
    let mut out = &mut bytes[..];
    out.put_i32_ne(backing.as_raw_fd());
    out.put_u32_ne(options.block_size);
    // Device, inode, the device's device, offset and size limit; number, encryption.
    out.put_bytes(0, 5 * 8 + 3 * 4);
    out.put_u32_ne(flags);
    let name = options.name.as_bytes();
    out.put_slice(&name[..name.len().min(NAME_BYTES - 1)]);
    bytes
}

/// Whether this kernel has loop devices at all.
pub fn is_available() -> bool {
    fs::metadata("/dev/loop-control").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets are of `struct loop_config` on every 64-bit and 32-bit Linux.
    #[test]
    fn a_configuration_is_laid_out_as_the_kernel_reads_it() {
        let options = Options {
            number: None,
            block_size: 4096,
            read_only: true,
            partitions: true,
            name: "x".repeat(100),
        };
        let stdin = io::stdin();
        let bytes = config(stdin.as_fd(), &options);
        assert_eq!(bytes.len(), 304);
        assert_eq!(bytes[..8], [0, 0, 0, 0, 0, 16, 0, 0]);
        assert!(bytes[8..60].iter().all(|byte| *byte == 0));
        assert_eq!(bytes[60..64], [25, 0, 0, 0]);
        assert_eq!(bytes[64..64 + 63], [b'x'; 63]);
        assert!(bytes[127..].iter().all(|byte| *byte == 0));
    }
}

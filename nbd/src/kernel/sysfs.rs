//! What sysfs shows and takes of block devices.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::node;

/// The folder of a block device that is there, by its node.
fn folder(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

/// Whether the kernel has an NBD client loaded.
pub fn has_nbd() -> bool {
    Path::new("/sys/module/nbd").exists()
}

/// Whether it is being loaded still.
pub fn is_nbd_coming() -> bool {
    fs::read_to_string("/sys/module/nbd/initstate").is_ok_and(|state| state.trim() == "coming")
}

/// The number of a device from its node: 3 of `/dev/nbd3`.
pub fn index(device: &Path) -> Option<u32> {
    device.file_name()?.to_str()?.strip_prefix("nbd")?.parse().ok()
}

/// The process that connected a device; `None` if it is not connected.
pub fn pid(device: &Path) -> Option<u32> {
    fs::read_to_string(folder(device).join("pid")).ok()?.trim().parse().ok()
}

/// The cookie of a connected device, if the kernel keeps it.
pub fn cookie(device: &Path) -> Option<String> {
    let text = fs::read_to_string(folder(device).join("backend")).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// The size of a block device, in bytes.
pub fn size(device: &Path) -> Option<u64> {
    let sectors: u64 = fs::read_to_string(folder(device).join("size")).ok()?.trim().parse().ok()?;
    Some(sectors * 512)
}

/// How often the kernel looks whether a request that is in flight was lost with its connection, and then asks again. It
/// does so for ever, and logs it, so that more often than this would fill the log while a cluster is not there.
const LOOK_MILLISECONDS: u32 = 5000;

/// Sets up the queue of a device for objects over a network: requests as long as the kernel makes them, up to
/// `longest` bytes, no scheduler, and read ahead as far. What this kernel doesn't have is left.
pub fn tune(device: &Path, longest: u32) {
    let queue = folder(device).join("queue");
    let kilobytes = |name: &str| -> Option<u32> {
        fs::read_to_string(queue.join(name)).ok()?.trim().parse().ok()
    };
    let longest = kilobytes("max_hw_sectors_kb").unwrap_or(u32::MAX).min(longest >> 10);
    for (name, value) in [
        // First what the kernel does not wait for anything for.
        ("io_timeout", LOOK_MILLISECONDS.to_string()),
        ("scheduler", "none".to_owned()),
        ("max_sectors_kb", longest.to_string()),
        ("read_ahead_kb", longest.to_string()),
        ("rotational", "0".to_owned()),
        ("add_random", "0".to_owned()),
    ] {
        if let Err(error) = fs::write(queue.join(name), value) {
            tracing::debug!(name, %error, "a setting of the queue");
        }
    }
}

/// Has the kernel look for partitions again, which it only does by itself when the device is opened.
///
/// # Errors
/// The kernel's; that the device is in use is fine, partitions are then changed one by one by whoever uses it.
pub fn reread_partitions(device: &Path) -> io::Result<()> {
    const BLKRRPART: rustix::ioctl::Opcode = 0x125f;
    node::make(device)?;
    let file = fs::File::open(device)?;
    match crate::ioctl::number(&file, BLKRRPART, 0) {
        Ok(_) | Err(rustix::io::Errno::BUSY | rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_device() {
        assert_eq!(index(Path::new("/dev/nbd12")), Some(12));
        for other in ["/dev/nbd", "/dev/loop1", "/dev/nbd1p2", "nbdx"] {
            assert_eq!(index(Path::new(other)), None, "{other}");
        }
    }
}

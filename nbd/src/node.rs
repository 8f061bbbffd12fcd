//! Device nodes, where nobody makes them: in containers, and on hosts without udev or devtmpfs.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, Dev, FileType, Mode, Stat, makedev, mknodat};

/// Makes the node of a block device that the kernel has, unless it is there. One that is there and is another device's,
/// left by whoever made it when its number was that one's, is replaced.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    make_of(path, FileType::BlockDevice, "/sys/block")
}

/// The same for a character device, of a class.
pub(crate) fn make_char(path: &Path, class: &str) -> io::Result<()> {
    make_of(path, FileType::CharacterDevice, &format!("/sys/class/{class}"))
}

fn make_of(path: &Path, kind: FileType, folder: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let numbers = std::fs::read_to_string(Path::new(folder).join(name).join("dev"))?;
    let (major, minor) = parse(&numbers).ok_or(io::ErrorKind::InvalidData)?;
    let device = makedev(major, minor);
    match rustix::fs::stat(path) {
        Ok(node) if is_of(&node, kind, device) => return Ok(()),
        Ok(_) => std::fs::remove_file(path)?,
        Err(_) => {}
    }
    match mknodat(CWD, path, kind, Mode::from(0o660), device) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn is_of(node: &Stat, kind: FileType, device: Dev) -> bool {
    FileType::from_raw_mode(node.st_mode) == kind && node.st_rdev == device
}

fn parse(numbers: &str) -> Option<(u32, u32)> {
    let (major, minor) = numbers.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_of_a_device() {
        assert_eq!(super::parse("43:96\n"), Some((43, 96)));
        assert_eq!(super::parse("43"), None);
    }
}

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
    use super::*;

    #[test]
    fn a_node_that_is_another_devices_is_replaced() {
        let folder = std::env::temp_dir().join(format!("node-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let name = std::fs::read_dir("/sys/block").unwrap().next().unwrap().unwrap().file_name();
        let (path, mode) = (folder.join(name), Mode::from(0o600));
        let number = || rustix::fs::stat(&path).unwrap().st_rdev;
        make(&path).unwrap();
        let right = number();
        std::fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::BlockDevice, mode, makedev(1, 250)).unwrap();
        assert_ne!(number(), right);
        make(&path).unwrap();
        assert_eq!(number(), right);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn numbers_of_a_device() {
        assert_eq!(parse("43:96\n"), Some((43, 96)));
        assert_eq!(parse("43"), None);
    }
}

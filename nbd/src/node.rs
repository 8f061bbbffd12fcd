//! Device nodes, where nobody makes them: in containers, and on hosts without udev or devtmpfs.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// Makes the node of a block device that the kernel has, unless it is there.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or_default();
    let numbers = std::fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
    let (major, minor) = parse(&numbers).ok_or(io::ErrorKind::InvalidData)?;
    match mknodat(CWD, path, FileType::BlockDevice, Mode::from(0o660), makedev(major, minor)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
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

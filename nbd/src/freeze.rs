//! File systems that are held still for a moment: everything is written out, and whoever writes more waits.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::ioctl::Opcode;

use crate::ioctl;

/// `FIFREEZE` and `FITHAW` of `include/uapi/linux/fs.h`. They are declared to take a number, which no kernel looks at.
const FREEZE: Opcode = 0xc004_5877;
const THAW: Opcode = 0xc004_5878;

/// A file system that is mounted, to be frozen.
#[derive(Debug)]
pub struct FileSystem(File);

impl FileSystem {
    /// Takes hold of the file system that is mounted there. Whoever freezes it does well to have done so before: what
    /// is frozen may be in the way of opening it.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        File::open(folder).map(Self)
    }

    /// Writes out what is cached, and has whoever writes more wait until [`FileSystem::thaw`].
    ///
    /// # Errors
    /// `EBUSY` if somebody else has frozen it; `EOPNOTSUPP` if it knows nothing of that.
    pub fn freeze(&self) -> io::Result<()> {
        ioctl::number(&self.0, FREEZE, 0).map(drop).map_err(io::Error::from)
    }

    /// Lets those who wait go on.
    ///
    /// # Errors
    /// `EINVAL` if it is not frozen.
    pub fn thaw(&self) -> io::Result<()> {
        ioctl::number(&self.0, THAW, 0).map(drop).map_err(io::Error::from)
    }
}

//! A device as a file, by FUSE: what a loop device needs under it where the kernel has no nbd. See
//! [`crate::loop_device`].
//!
//! The file system is one file, its own root, mounted nowhere: nobody can stumble over it, and no mount namespace keeps
//! it. It goes when the last descriptor of the file is closed.

mod session;
mod wire;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

pub use self::session::serve;

/// The mode of the file system's root: a file, not a folder.
const ROOT_MODE: &str = "100600";

/// Whether this kernel has FUSE.
pub fn is_available() -> bool {
    std::fs::metadata("/dev/fuse").is_ok()
}

/// A file system of one file.
#[derive(Debug)]
pub struct FileSystem {
    mount: OwnedFd,
}

impl FileSystem {
    /// Makes one, and the kernel's end of it, which goes to [`serve`]. `source` is what it is shown as being of.
    ///
    /// # Errors
    /// No permission (this takes root), or a kernel without FUSE or older than 5.2.
    pub fn new(source: &str) -> io::Result<(Self, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let kernel = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
        let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", source)?;
        fsconfig_set_string(&context, "fd", kernel.as_raw_fd().to_string())?;
        fsconfig_set_string(&context, "rootmode", ROOT_MODE)?;
        fsconfig_set_string(&context, "user_id", "0")?;
        fsconfig_set_string(&context, "group_id", "0")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok((Self { mount }, kernel))
    }

    /// Opens the file, for direct I/O, with a size that the kernel knows. Blocks until [`serve`] has answered, so that
    /// must run on another thread.
    ///
    /// # Errors
    /// The kernel's, or that nobody serves it.
    pub fn open(&self, read_only: bool) -> io::Result<File> {
        let flags = OFlags::DIRECT.bits() as i32;
        let file = File::options()
            .read(true)
            .write(!read_only)
            .custom_flags(flags)
            .open(format!("/proc/self/fd/{}", self.mount.as_raw_fd()))?;
        // The kernel has not asked for it yet, and loop devices of older ones (6.12, not 6.18) don't either: they would
        // have no size.
        file.metadata()?;
        Ok(file)
    }
}

//! Has the file systems on mapped images fill their devices.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ceph_native::error::{Error, Kind, Result};
use nbd::kernel::sysfs;

use super::state::{DeviceType, Found, failed};
use super::{unmap, users};
use crate::spec::Spec;

/// How long a device may take to have the size of its image.
const PATIENCE: Duration = Duration::from_secs(60);

/// A device of this host that an image is mapped to, with a file system that is to grow with it.
#[derive(Debug)]
pub(crate) struct Growing {
    device: PathBuf,
    mounts: Vec<users::Mount>,
}

impl Growing {
    /// Where an image is mapped to.
    ///
    /// # Errors
    /// It is not mapped here, or nothing is mounted from it.
    pub(crate) fn find(spec: &Spec) -> Result<Self> {
        let refused = |what: String| {
            let hint = "without --grow-fs, only the image gets another size";
            Err(Error::new(Kind::Invalid, what).with_hint(hint))
        };
        let is_meant = |found: &Found| {
            found.alive && !found.mapping.read_only && unmap::is_of(&found.mapping, spec)
        };
        let Some(found) = Found::all()?.into_iter().find(is_meant) else {
            return refused(format!("{spec} is not mapped on this host"));
        };
        if found.mapping.device_type == DeviceType::Ublk {
            return refused("a device of ublk keeps the size that it was made with".to_owned());
        }
        let device = found.mapping.device;
        let mounts = users::mounted(&device);
        if let Some(other) = mounts.iter().find(|mount| program(&mount.kind).is_none()) {
            return refused(format!("{} cannot be grown here", other.kind));
        }
        if mounts.is_empty() {
            return refused(format!("no file system is mounted from {}", device.display()));
        }
        Ok(Self { device, mounts })
    }

    /// Has the file systems fill the device as soon as that has its new size.
    ///
    /// # Errors
    /// What the program says that grows such a file system.
    pub(crate) fn grow(&self, size: u64) -> Result<()> {
        let device = self.device.display();
        let deadline = Instant::now() + PATIENCE;
        // A device is made of whole sectors.
        while sysfs::size(&self.device) != Some(size / 512 * 512) {
            if Instant::now() >= deadline {
                let what = format!("{device} does not get the size of its image");
                return Err(Error::new(Kind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.mounts.iter().try_for_each(|mount| self.grow_one(mount))
    }

    fn grow_one(&self, mount: &users::Mount) -> Result<()> {
        let Some(program) = program(&mount.kind) else { return Ok(()) };
        let args: &[&Path] = match program {
            "resize2fs" => &[&self.device],
            "btrfs" => &["filesystem".as_ref(), "resize".as_ref(), "max".as_ref(), &mount.seen],
            _ => &[&mount.seen],
        };
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| failed(program, error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(Kind::Os(5), format!("{program}: {said}")))
    }
}

/// What grows a kind of file system while it is mounted.
fn program(kind: &str) -> Option<&'static str> {
    match kind {
        "ext2" | "ext3" | "ext4" => Some("resize2fs"),
        "xfs" => Some("xfs_growfs"),
        "btrfs" => Some("btrfs"),
        _ => None,
    }
}

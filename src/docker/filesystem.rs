//! File systems on devices of this host: checked, mounted, grown.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::files::failed;
use super::options::{FsType, VolumeOptions};
use super::run::{must, run};
use crate::error::{Error, Kind, Result};

/// The hidden verb by which this program mounts in a process of its own: one that waits for a device that is gone can
/// neither be killed nor end, and must not be the plugin.
pub const MOUNT_VERB: &str = "do-mount";

/// The same for the other direction.
pub const UNMOUNT_VERB: &str = "do-unmount";

/// Repairs what a crash leaves, if that can be done without asking.
///
/// # Errors
/// [`Kind::Corrupt`] if it takes a person to decide.
pub(crate) async fn check(fstype: FsType, device: &str, limit: Duration) -> Result<()> {
    // The others are repaired by being mounted.
    if fstype != FsType::Ext4 {
        return Ok(());
    }
    let ran = run(&["e2fsck", "-p", device], limit).await?;
    match ran.code {
        0 => Ok(()),
        // Repaired.
        1..=3 => {
            tracing::warn!(device, said = ran.out.trim(), "the file system was repaired");
            Ok(())
        }
        _ => {
            Err(Error::new(Kind::Corrupt, format!("the file system is damaged: {}", ran.reason()))
                .with_hint("look at it with `ceph-native fsck`"))
        }
    }
}

/// Checks a file system that is not mounted, thoroughly; what the program says.
///
/// # Errors
/// [`Kind::Corrupt`] with what it says.
pub(crate) async fn check_all(fstype: FsType, device: &str, limit: Duration) -> Result<String> {
    let words = match fstype {
        FsType::Ext4 => ["e2fsck", "-f", "-p", device],
        FsType::Xfs => ["xfs_repair", "-n", "-e", device],
        FsType::Btrfs => ["btrfs", "check", "--readonly", device],
    };
    let ran = run(&words, limit).await?;
    let said = format!("{}{}", ran.out, ran.err).trim().to_owned();
    match ran.code {
        0 | 1 => Ok(said),
        _ => Err(Error::new(Kind::Corrupt, said)),
    }
}

/// Options for `mount`: what is always wanted, then what the volume wants.
pub(crate) fn mount_options(fstype: FsType, options: &VolumeOptions) -> String {
    let mut all = Vec::new();
    match (options.read_only == Some(true), fstype) {
        // The journal is of whoever writes, elsewhere.
        (true, FsType::Ext4) => all.push("ro,noload"),
        (true, FsType::Xfs) => all.push("ro,norecovery"),
        (true, FsType::Btrfs) => all.push("ro"),
        // ext4 would go on after an error; the others stop by themselves.
        (false, FsType::Ext4) => all.push("errors=remount-ro"),
        (false, _) => {}
    }
    all.extend(options.mount_options.as_deref());
    all.join(",")
}

/// Mounts, in a process of its own.
///
/// # Errors
/// What the kernel says.
pub(crate) async fn mount_apart(
    device: &str,
    target: &Path,
    fstype: FsType,
    options: &str,
    limit: Duration,
) -> Result<()> {
    fs::create_dir_all(target).map_err(|error| failed(target, error))?;
    let target = target.display().to_string();
    let own = own_program()?;
    must(&[&own, MOUNT_VERB, device, &target, fstype.name(), options], limit).await.map(drop)
}

/// Unmounts, in a process of its own. That nothing is mounted is no error.
///
/// # Errors
/// [`Kind::Busy`] while somebody on this host is in it.
pub(crate) async fn unmount_apart(target: &Path, limit: Duration) -> Result<()> {
    // Something may be mounted over it.
    while mounted(target).is_some() {
        let path = target.display().to_string();
        must(&[&own_program()?, UNMOUNT_VERB, &path], limit).await?;
    }
    let _ = fs::remove_dir(target);
    Ok(())
}

fn own_program() -> Result<String> {
    let own =
        std::env::current_exe().map_err(|error| failed(Path::new("/proc/self/exe"), error))?;
    let own = own.display().to_string();
    // A newer version has taken its place.
    Ok(own.trim_end_matches(" (deleted)").to_owned())
}

/// What [`MOUNT_VERB`] does.
///
/// # Errors
/// What the kernel says.
pub fn do_mount(device: &str, target: &Path, fstype: &str, options: &str) -> Result<()> {
    let (flags, data) = flags(options);
    let data = std::ffi::CString::new(data)
        .map_err(|error| Error::new(Kind::Invalid, options).with_source(error))?;
    mount(device, target, fstype, flags, data.as_c_str()).map_err(|errno| {
        let what = format!("mounting {device} ({fstype}, {options}) on {}", target.display());
        Error::new(Kind::from_errno(errno.raw_os_error()), what).with_source(io::Error::from(errno))
    })
}

/// What [`UNMOUNT_VERB`] does.
///
/// # Errors
/// What the kernel says.
pub fn do_unmount(target: &Path) -> Result<()> {
    unmount(target, UnmountFlags::NOFOLLOW).map_err(|errno| {
        let what = format!("unmounting {}", target.display());
        Error::new(Kind::from_errno(errno.raw_os_error()), what).with_source(io::Error::from(errno))
    })
}

/// Tells options of the kernel's own from those for the file system.
fn flags(options: &str) -> (MountFlags, String) {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "rw" | "defaults" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

/// The device that is mounted there, if one is.
pub(crate) fn mounted(target: &Path) -> Option<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_source(&text, target)
}

/// In a `mountinfo`, the source of the last mount on a folder.
fn mount_source(text: &str, target: &Path) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        let point = words.by_ref().nth(4)?;
        if Path::new(&unescape(point)) != target {
            return None;
        }
        // Optional fields end with a dash; then type and source.
        words.by_ref().find(|word| *word == "-")?;
        words.nth(1).map(unescape)
    })
}

/// Spaces and the like are three octal digits there.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Makes the root folder of a new volume what it is to be. Docker copies an image's files only into a folder that is
/// empty, and databases insist on one.
///
/// # Errors
/// Whatever keeps it from being changed.
pub(crate) fn prepare_root(root: &Path, options: &VolumeOptions) -> Result<()> {
    if let Some(mode) = options.mode {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(root, mode).map_err(|error| failed(root, error))?;
    }
    if options.uid.is_some() || options.gid.is_some() {
        let owned = std::os::unix::fs::chown(root, options.uid, options.gid);
        owned.map_err(|error| failed(root, error))?;
    }
    Ok(())
}

/// Takes away the folder that `mkfs.ext4` and `e2fsck` put into every root, if it is empty.
pub(crate) fn remove_lost_and_found(root: &Path) {
    let _ = fs::remove_dir(root.join("lost+found"));
}

/// Has a file system that is not mounted fill its device, if that is how it grows best: says whether it has.
///
/// # Errors
/// What the programs say.
pub(crate) async fn grow_unmounted(fstype: FsType, device: &str, limit: Duration) -> Result<bool> {
    // The others grow only while they are mounted. ext4 does, too, but for that it takes CAP_SYS_RESOURCE.
    if fstype != FsType::Ext4 {
        return Ok(false);
    }
    check_all(fstype, device, limit).await?;
    must(&["resize2fs", device], limit).await.map(|_| true)
}

/// Has a mounted file system fill its device.
///
/// # Errors
/// What the program says.
pub(crate) async fn grow(fstype: FsType, device: &str, root: &Path, limit: Duration) -> Result<()> {
    let root = root.display().to_string();
    let words = match fstype {
        FsType::Ext4 => vec!["resize2fs", device],
        FsType::Xfs => vec!["xfs_growfs", &root],
        FsType::Btrfs => vec!["btrfs", "filesystem", "resize", "max", &root],
    };
    must(&words, limit).await.map(drop)
}

/// Bytes of a mounted file system: all, and used.
pub(crate) fn usage(root: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(root).ok()?;
    let all = stat.f_blocks.saturating_mul(stat.f_frsize);
    Some((all, all.saturating_sub(stat.f_bfree.saturating_mul(stat.f_frsize))))
}

/// The size of a block device in bytes.
pub(crate) fn device_size(device: &str) -> Option<u64> {
    let name = PathBuf::from(device);
    let size = Path::new("/sys/class/block").join(name.file_name()?).join("size");
    fs::read_to_string(size).ok()?.trim().parse::<u64>().ok().map(|sectors| sectors * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_kernel_are_told_from_the_file_systems() {
        let (mount, data) = flags("errors=remount-ro,noatime,,nodev,discard,ro");
        assert_eq!(mount, MountFlags::NOATIME | MountFlags::NODEV | MountFlags::RDONLY);
        assert_eq!(data, "errors=remount-ro,discard");

        let options = VolumeOptions::parse([("mount-options", "noatime")]).unwrap();
        assert_eq!(mount_options(FsType::Ext4, &options), "errors=remount-ro,noatime");
        assert_eq!(mount_options(FsType::Xfs, &options), "noatime");
        let options = VolumeOptions::parse([("read-only", "true")]).unwrap();
        assert_eq!(mount_options(FsType::Ext4, &options), "ro,noload");
    }

    #[test]
    fn what_is_mounted_where() {
        let text = "\
22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 35 98:0 / /mnt/a\\040b rw,noatime master:1 - ext4 /dev/loop1 rw,errors=remount-ro
37 35 98:1 / /mnt/a\\040b rw - xfs /dev/loop2 rw
";
        let source = |target| mount_source(text, Path::new(target));
        assert_eq!(source("/mnt/a b").as_deref(), Some("/dev/loop2"));
        assert_eq!(source("/sys").as_deref(), Some("sysfs"));
        assert_eq!(source("/mnt"), None);
    }
}

//! File systems on devices of this host: checked, mounted, grown.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
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

/// Docker's folder for what a managed plugin mounts.
const PROPAGATED: &str = "propagated-mount";

/// And by which it writes what is in memory.
pub const SYNC_VERB: &str = "do-sync";

/// What the root folder of a volume becomes when it is mounted; as a word, `UID:GID:MODE`, each of which may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Its owner.
    uid: Option<u32>,
    /// Its group.
    gid: Option<u32>,
    /// Its permissions.
    mode: Option<u32>,
}

impl Root {
    /// That of a new volume with these options.
    pub(crate) fn of(options: &VolumeOptions) -> Self {
        Self { uid: options.uid, gid: options.gid, mode: options.mode }
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |number: Option<u32>| number.map_or(String::new(), |number| number.to_string());
        write!(f, "{}:{}:{}", text(self.uid), text(self.gid), text(self.mode))
    }
}

impl FromStr for Root {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let mut words = text.splitn(3, ':');
        let mut number = || match words.next() {
            None | Some("") => Ok(None),
            Some(word) => word.parse().map(Some),
        };
        Ok(Self { uid: number()?, gid: number()?, mode: number()? })
    }
}

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
        (true, FsType::Xfs) => all.push("ro,norecovery,nouuid"),
        (true, FsType::Btrfs) => all.push("ro"),
        // ext4 would go on after an error; the others stop by themselves.
        (false, FsType::Ext4) => all.push("errors=remount-ro"),
        // A clone is mounted beside what it is a clone of, and both have one name.
        (false, FsType::Xfs) if options.from.is_some() => all.push("nouuid"),
        (false, _) => {}
    }
    all.extend(options.mount_options.as_deref());
    all.join(",")
}

/// Mounts, and makes the root folder what it is to be, in a process of its own: each of that can wait for the cluster.
///
/// # Errors
/// What the kernel says.
pub(crate) async fn mount_apart(
    device: &str,
    target: &Path,
    fstype: FsType,
    options: &str,
    root: &Root,
    limit: Duration,
) -> Result<()> {
    fs::create_dir_all(target).map_err(|error| failed(target, error))?;
    let (target, root) = (target.display().to_string(), root.to_string());
    let own = own_program()?;
    must(&[&own, MOUNT_VERB, device, &target, fstype.name(), options, &root], limit).await.map(drop)
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

/// Writes what is in memory of a mounted file system, in a process of its own.
///
/// # Errors
/// What the kernel says.
pub(crate) async fn sync_apart(target: &Path, limit: Duration) -> Result<()> {
    must(&[&own_program()?, SYNC_VERB, &target.display().to_string()], limit).await.map(drop)
}

/// What [`MOUNT_VERB`] does.
///
/// # Errors
/// What the kernel says.
pub fn do_mount(
    device: &str,
    target: &Path,
    fstype: &str,
    options: &str,
    root: &Root,
) -> Result<()> {
    let (flags, data) = flags(options);
    let data = std::ffi::CString::new(data)
        .map_err(|error| Error::new(Kind::Invalid, options).with_source(error))?;
    mount(device, target, fstype, flags, data.as_c_str()).map_err(|errno| {
        let what = format!("mounting {device} ({fstype}, {options}) on {}", target.display());
        Error::new(Kind::from_errno(errno.raw_os_error()), what).with_source(io::Error::from(errno))
    })?;
    if flags.contains(MountFlags::RDONLY) {
        return Ok(());
    }
    prepare_root(target, root)
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

/// What [`SYNC_VERB`] does.
///
/// # Errors
/// What the kernel says.
pub fn do_sync(target: &Path) -> Result<()> {
    let folder = fs::File::open(target).map_err(|error| failed(target, error))?;
    rustix::fs::syncfs(&folder).map_err(|errno| failed(target, io::Error::from(errno)))
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

/// For each of these mount points of ours, whether what is mounted there can be seen anywhere else: under another path,
/// in this mount namespace or that of any process. A copy of our own mount, as every namespace that was split off this
/// one has it, does not count.
pub(crate) fn seen_elsewhere(points: &[PathBuf]) -> Vec<bool> {
    let own = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let devices: Vec<_> = points.iter().map(|point| mount_device(&own, point)).collect();
    let mut seen = vec![false; points.len()];
    each_namespace(|text| {
        for ((point, device), seen) in points.iter().zip(&devices).zip(&mut seen) {
            // Of what is not mounted any more nothing is said.
            let elsewhere = |device: &String| is_mounted_elsewhere(text, device, point);
            *seen |= device.as_ref().is_none_or(elsewhere);
        }
    });
    seen
}

/// Whether a device is mounted anywhere on this host, in whichever mount namespace.
pub(crate) fn mounted_anywhere(device: &str) -> bool {
    let mut seen = false;
    each_namespace(|text| {
        seen |= text.lines().any(|line| source(line).is_some_and(|it| it == device))
    });
    seen
}

/// Calls this with the `mountinfo` of every mount namespace that a process is in.
fn each_namespace(mut look: impl FnMut(&str)) {
    let mut namespaces = HashSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_none_or(|name| name.parse::<u32>().is_err()) {
            continue;
        }
        let Ok(namespace) = fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if namespaces.contains(&namespace) {
            continue;
        }
        // The process may end, and others of its namespace not: then they are asked.
        let Ok(text) = fs::read_to_string(entry.path().join("mountinfo")) else { continue };
        namespaces.insert(namespace);
        look(&text);
    }
}

/// In a `mountinfo`, the number of the device of the last mount on a folder.
fn mount_device(text: &str, target: &Path) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let words: Vec<_> = line.splitn(6, ' ').collect();
        let at = Path::new(&unescape(words.get(4)?)) == target;
        at.then(|| words.get(2).map(|device| (*device).to_owned()))?
    })
}

/// In a `mountinfo`, whether a device is mounted under another path. What a managed plugin mounts, the host has under a
/// path of Docker's.
fn is_mounted_elsewhere(text: &str, device: &str, target: &Path) -> bool {
    let mut folders = target.iter().rev().take(2);
    let (name, folder) = (folders.next(), folders.next());
    let propagated: PathBuf =
        [Some(PROPAGATED.as_ref()), folder, name].into_iter().flatten().collect();
    text.lines().any(|line| {
        let words: Vec<_> = line.splitn(6, ' ').collect();
        let elsewhere = |point: &&str| {
            let point = PathBuf::from(unescape(point));
            point != target && !point.ends_with(&propagated)
        };
        words.get(2) == Some(&device) && words.get(4).is_some_and(elsewhere)
    })
}

/// In a `mountinfo`, the source of the last mount on a folder.
fn mount_source(text: &str, target: &Path) -> Option<String> {
    text.lines().rev().find_map(|line| {
        let point = line.split(' ').nth(4)?;
        if Path::new(&unescape(point)) != target {
            return None;
        }
        source(line)
    })
}

/// In a line of a `mountinfo`, the source.
fn source(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    // Optional fields end with a dash; then type and source.
    words.by_ref().find(|word| *word == "-")?;
    words.nth(1).map(unescape)
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

/// Makes the root folder of a volume what it is to be. Docker copies an image's files only into a folder that is empty,
/// and databases insist on one: the folder that `mkfs.ext4` and `e2fsck` put into every root goes, if it is empty.
fn prepare_root(path: &Path, root: &Root) -> Result<()> {
    let _ = fs::remove_dir(path.join("lost+found"));
    if let Some(mode) = root.mode {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, mode).map_err(|error| failed(path, error))?;
    }
    if root.uid.is_some() || root.gid.is_some() {
        let owned = std::os::unix::fs::chown(path, root.uid, root.gid);
        owned.map_err(|error| failed(path, error))?;
    }
    Ok(())
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
        let options = VolumeOptions::parse([("from", "x")]).unwrap();
        assert_eq!(mount_options(FsType::Xfs, &options), "nouuid");
        let options = VolumeOptions::parse([("read-only", "true")]).unwrap();
        assert_eq!(mount_options(FsType::Ext4, &options), "ro,noload");
    }

    #[test]
    fn what_a_root_folder_becomes_fits_into_a_word() {
        let options = [("uid", "1001"), ("mode", "0750")];
        for root in [Root::default(), Root::of(&VolumeOptions::parse(options).unwrap())] {
            assert_eq!(root.to_string().parse(), Ok(root));
        }
        assert_eq!(Root::of(&VolumeOptions::parse(options).unwrap()).to_string(), "1001::488");
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

        let device = |target| mount_device(text, Path::new(target));
        assert_eq!(device("/mnt/a b").as_deref(), Some("98:1"));
        assert_eq!(device("/mnt"), None);
        assert!(!is_mounted_elsewhere(text, "98:1", Path::new("/mnt/a b")));
        assert!(!is_mounted_elsewhere(text, "98:7", Path::new("/mnt")));
        assert!(is_mounted_elsewhere(text, "98:1", Path::new("/mnt/b")));
        let of_docker =
            "40 35 98:2 / /d/plugins/1/propagated-mount/mounts/v rw - ext4 /dev/loop3 rw";
        assert!(!is_mounted_elsewhere(of_docker, "98:2", Path::new("/var/mounts/v")));
        assert!(is_mounted_elsewhere(of_docker, "98:2", Path::new("/var/mounts/w")));
    }
}

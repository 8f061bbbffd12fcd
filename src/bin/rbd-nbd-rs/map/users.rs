//! Who uses a block device: what is mounted from it, built on it, or has it open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Uses of a device and its partitions, in words; empty if there are none. Our own open files don't count, nor do those
/// of `but`.
pub(crate) fn of(device: &Path, but: u32) -> Vec<String> {
    let parts = with_partitions(device);
    let places: BTreeSet<_> = mounts(&parts).into_iter().map(|mount| mount.place).collect();
    let mut users: Vec<_> = places.iter().map(|place| format!("mounted on {place}")).collect();
    for part in &parts {
        users.extend(holders(part).iter().map(|holder| format!("part of {holder}")));
        if users.is_empty() && is_in_btrfs(part) {
            users.push("part of a btrfs file system".to_owned());
        }
    }
    users.extend(swaps(&parts));
    if users.is_empty() {
        users = open_files(&parts, but);
    }
    users
}

/// A folder of every file system that is mounted from a device, its partitions, or what is built on these.
pub(crate) fn file_systems(device: &Path) -> Vec<Mount> {
    let mut names = with_partitions(device);
    let mut at = 0;
    while let Some(name) = names.get(at) {
        let above: Vec<_> =
            holders(name).into_iter().filter(|holder| !names.contains(holder)).collect();
        names.extend(above);
        at += 1;
    }
    once_each(mounts(&names))
}

/// What is mounted from a device itself: each file system once.
pub(crate) fn mounted(device: &Path) -> Vec<Mount> {
    let name = device.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    once_each(mounts(&[name]))
}

/// Of each file system that is mounted several times one mount, which is not covered if that can be.
fn once_each(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut each = BTreeMap::<String, Mount>::new();
    for mount in mounts {
        if each.get(&mount.number).is_none_or(Mount::is_covered) {
            each.insert(mount.number.clone(), mount);
        }
    }
    each.into_values().collect()
}

/// The names of a device and its partitions.
fn with_partitions(device: &Path) -> Vec<String> {
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let mut names = vec![name.to_owned()];
    for entry in fs::read_dir(Path::new("/sys/block").join(name)).into_iter().flatten().flatten() {
        let part = entry.file_name().to_string_lossy().into_owned();
        if part.starts_with(name) && entry.path().join("partition").exists() {
            names.push(part);
        }
    }
    names
}

/// Major and minor number, as `major:minor`.
fn numbers(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/sys/class/block").join(name).join("dev")).ok()?;
    Some(text.trim().to_owned())
}

/// Something that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// That of the file system.
    number: String,
    /// Where it is, to those who see it.
    place: String,
    /// Where it is for us.
    pub(crate) seen: PathBuf,
    /// The kind of file system.
    pub(crate) kind: String,
}

impl Mount {
    /// Something else is mounted over it: its path leads there.
    pub(crate) fn is_covered(&self) -> bool {
        let Ok(metadata) = fs::metadata(&self.seen) else { return true };
        let (major, minor) = (rustix::fs::major(metadata.dev()), rustix::fs::minor(metadata.dev()));
        // Files of btrfs have other numbers than its mounts.
        self.kind != "btrfs" && self.number != format!("{major}:{minor}")
    }
}

/// Mounts in any mount namespace that some process is in.
fn mounts(names: &[String]) -> Vec<Mount> {
    let numbers: BTreeSet<String> = names.iter().filter_map(|name| numbers(name)).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for process in processes() {
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let text = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        for line in text.lines().filter_map(mount) {
            // A file system over several devices has a number of its own.
            let source = line.source.strip_prefix("/dev/").is_some_and(|name| {
                names.iter().any(|known| known == name) && !numbers.contains(line.number)
            });
            if numbers.contains(line.number) || source {
                let place = unescape(line.place);
                let seen = process.join("root").join(place.trim_start_matches('/'));
                let (number, kind) = (line.number.to_owned(), line.kind.to_owned());
                found.push(Mount { number, place, seen, kind });
            }
        }
    }
    found
}

/// What a line of `/proc/PID/mountinfo` says.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    number: &'a str,
    place: &'a str,
    kind: &'a str,
    source: &'a str,
}

fn mount(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split(' ').skip(2);
    let (number, place) = (fields.next()?, fields.nth(1)?);
    // Optional fields end with a dash.
    fields.find(|field| *field == "-")?;
    Some(Line { number, place, kind: fields.next()?, source: fields.next()? })
}

/// Spaces and the like are three octal digits there.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let octal = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(octal.map_or('\\', char::from));
        out.push_str(if octal.is_some() { &part[3..] } else { part });
    }
    out
}

/// What is built on a device.
fn holders(name: &str) -> Vec<String> {
    let folder = Path::new("/sys/class/block").join(name).join("holders");
    let holders = fs::read_dir(folder).into_iter().flatten().flatten();
    holders.map(|holder| holder.file_name().to_string_lossy().into_owned()).collect()
}

fn is_in_btrfs(name: &str) -> bool {
    let file_systems = fs::read_dir("/sys/fs/btrfs").into_iter().flatten().flatten();
    file_systems.into_iter().any(|entry| entry.path().join("devices").join(name).exists())
}
fn swaps(names: &[String]) -> Vec<String> {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let used = |line: &&str| {
        let device = line.split_whitespace().next().unwrap_or_default();
        names.iter().any(|name| device == format!("/dev/{name}"))
    };
    swaps.lines().filter(used).map(|_| "used for swap".to_owned()).collect()
}

fn open_files(names: &[String], but: u32) -> Vec<String> {
    let devices: BTreeSet<u64> = names
        .iter()
        .filter_map(|name| fs::metadata(Path::new("/dev").join(name)).ok())
        .filter(|metadata| metadata.file_type().is_block_device())
        .map(|metadata| metadata.rdev())
        .collect();
    let ours = [std::process::id(), but];
    let mut found = Vec::new();
    for process in processes() {
        let pid = process.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0);
        if !ours.contains(&pid) && has_open(&process, &devices) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            found.push(format!("open in process {pid} ({})", name.trim()));
        }
    }
    found
}

fn has_open(process: &Path, devices: &BTreeSet<u64>) -> bool {
    fs::read_dir(process.join("fd")).into_iter().flatten().flatten().any(|entry| {
        // Only what is in /dev is looked at: other files may be on something that hangs.
        let path = entry.path();
        fs::read_link(&path).is_ok_and(|target| target.starts_with("/dev"))
            && fs::metadata(path).is_ok_and(|metadata| {
                metadata.file_type().is_block_device() && devices.contains(&metadata.rdev())
            })
    })
}

fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_a_device_and_a_place() {
        let line = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw";
        let place = "/mnt\\0402";
        let (number, kind, source) = ("98:0", "ext3", "/dev/root");
        assert_eq!(mount(line), Some(Line { number, place, kind, source }));
        assert_eq!(unescape(place), "/mnt 2");
        assert_eq!(mount("36 35 98:0"), None);
        assert_eq!(unescape("a\\b\\"), "a\\b\\");
    }
}

//! Who uses a block device: what is mounted from it, built on it, or has it open.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Uses of a device and its partitions, in words; empty if there are none. Our own open files don't count, nor do those
/// of `but`.
pub(crate) fn of(device: &Path, but: u32) -> Vec<String> {
    let parts = with_partitions(device);
    let numbers: BTreeSet<String> = parts.iter().filter_map(|part| numbers(part)).collect();
    let mut users = mounts(&numbers);
    for part in &parts {
        users.extend(holders(part));
    }
    users.extend(swaps(&parts));
    if users.is_empty() {
        users = open_files(&parts, but);
    }
    users
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

/// Mounts in any mount namespace that some process is in.
fn mounts(numbers: &BTreeSet<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut found = BTreeSet::new();
    for process in processes() {
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
        for (device, place) in mounts.lines().filter_map(mount) {
            if numbers.contains(device) {
                found.insert(format!("mounted on {place}"));
            }
        }
    }
    found.into_iter().collect()
}

/// Device and place of a line of `/proc/PID/mountinfo`.
fn mount(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split(' ').skip(2);
    Some((fields.next()?, fields.nth(1)?))
}

fn holders(name: &str) -> Vec<String> {
    let folder = Path::new("/sys/class/block").join(name).join("holders");
    let holders = fs::read_dir(folder).into_iter().flatten().flatten();
    holders.map(|holder| format!("part of {}", holder.file_name().to_string_lossy())).collect()
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
    #[test]
    fn a_mount_is_a_device_and_a_place() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(super::mount(line), Some(("98:0", "/mnt2")));
        assert_eq!(super::mount("36 35 98:0"), None);
    }
}

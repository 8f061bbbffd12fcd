//! Programs that have to outlive a container: a managed plugin's is killed with all that runs in it when the plugin is
//! disabled or upgraded, and what it mapped must not be.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::files::failed;
use crate::error::{Error, Kind, Result};

/// Names a process of the host's, by its id: it is set in a managed plugin, and nowhere else.
pub const HOST: &str = "CEPH_NATIVE_HOST_PID";

/// The hidden verb by which this program becomes another one, on the host.
pub const VERB: &str = "on-host";

/// What processes that have left a container are in.
const GROUP: &str = "ceph-native";

/// Where control groups are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Leaves the container that this process is in, and becomes another program, which only the container has: on the host
/// no file of it is needed. Returns if that fails.
///
/// # Errors
/// Whatever keeps it from leaving: then nothing is run, as it would end with the container.
pub fn run(program: &Path, args: &[OsString]) -> Result<()> {
    let host = std::env::var(HOST).unwrap_or_default();
    let host = PathBuf::from("/proc").join(host.trim()).join("ns");
    let file = File::open(program).map_err(|error| failed(program, error))?;
    // That of the control groups first: its file is of this container's /proc.
    for (name, kind) in
        [("cgroup", LinkNameSpaceType::ControlGroup), ("mnt", LinkNameSpaceType::Mount)]
    {
        let path = host.join(name);
        let namespace = File::open(&path).map_err(|error| failed(&path, error))?;
        move_into_link_name_space(namespace.as_fd(), Some(kind))
            .map_err(|errno| failed(&path, io::Error::from(errno)))?;
    }
    leave_groups(Path::new(GROUPS)).map_err(|(path, error)| failed(&path, error))?;
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    let error = Command::new(same).arg0(program).args(args).exec();
    Err(Error::new(Kind::Os(5), format!("running {}", program.display())).with_source(error))
}

/// Goes where nobody kills what is in there: to a group of our own, or, of version 1, to the root, since what is below
/// has no processors before somebody gives it some.
fn leave_groups(root: &Path) -> std::result::Result<(), (PathBuf, io::Error)> {
    let go = |group: &Path| {
        let file = group.join("cgroup.procs");
        // Zero is who writes it.
        fs::write(&file, "0").map_err(|error| (file, error))
    };
    if root.join("cgroup.controllers").exists() {
        let group = root.join(GROUP);
        return match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err((group, error)),
            _ => go(&group),
        };
    }
    let folders = fs::read_dir(root).map_err(|error| (root.to_owned(), error))?;
    folders
        .flatten()
        .map(|entry| entry.path())
        .filter(|group| group.join("cgroup.procs").exists())
        .try_for_each(|group| go(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions_are_left() {
        let root = std::env::temp_dir().join(format!("ceph-native-groups-{}", std::process::id()));
        let (first, second) = (root.join("1"), root.join("2"));
        for group in ["devices", "freezer"] {
            fs::create_dir_all(first.join(group)).unwrap();
            fs::write(first.join(group).join("cgroup.procs"), "").unwrap();
        }
        fs::create_dir_all(first.join("not-mounted")).unwrap();
        fs::create_dir_all(&second).unwrap();
        fs::write(second.join("cgroup.controllers"), "cpu").unwrap();
        leave_groups(&first).unwrap();
        leave_groups(&second).unwrap();
        leave_groups(&second).expect("it is there already");
        for left in ["1/devices", "1/freezer", "2/ceph-native"] {
            let who = fs::read_to_string(root.join(left).join("cgroup.procs")).unwrap();
            assert_eq!(who, "0", "{left}");
        }
        assert!(!first.join("not-mounted/cgroup.procs").exists());
        fs::remove_dir_all(root).unwrap();
    }
}

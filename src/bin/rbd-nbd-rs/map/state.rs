//! What is mapped, in a folder per mapping below `/run/rbd-nbd-rs`, named by its cookie.
//!
//! `mapping.json` says what it is. Whoever serves it holds `lock` for as long as it lives, so that whether somebody
//! does is never a guess, however it ended. `control` is its socket, `log` what it said.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ceph_native::error::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// Where the folders are, unless the environment says otherwise.
const STATE: &str = "/run/rbd-nbd-rs";
const STATE_VARIABLE: &str = "RBD_NBD_RS_STATE";

/// The longest cookie, in bytes: what the name of a folder has room for.
const COOKIE_BYTES: usize = 80;

/// How often a lock is tried that somebody may only be looking at.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// What makes the block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeviceType {
    /// The kernel's NBD client.
    Nbd,
    /// The same without its netlink: a device that ends with the process that serves it.
    Ioctl,
    /// A loop device over a file that FUSE serves.
    Fuse,
    /// The kernel's ublk driver.
    Ublk,
}

/// A mapping. Fields that a later version adds are passed over by this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mapping {
    pub(crate) cookie: String,
    pub(crate) device_type: DeviceType,
    pub(crate) device: PathBuf,
    pub(crate) pool: String,
    pub(crate) namespace: String,
    pub(crate) image: String,
    pub(crate) snap: String,
    pub(crate) snap_id: Option<u64>,
    pub(crate) read_only: bool,
    /// Who serves it, or did.
    pub(crate) pid: u32,
    /// The process or thread that the kernel shows as having connected the NBD device, for as long as that is there:
    /// a device by ioctl has no cookie to be told from a later one by.
    #[serde(default)]
    pub(crate) connector: Option<u32>,
    /// Which boot of this host it is of.
    pub(crate) boot: String,
    /// The address by which the cluster knows whoever serves it.
    #[serde(default)]
    pub(crate) client: Option<String>,
    /// The command line after the verb, and where and with which Ceph variables it was given.
    pub(crate) arguments: Vec<String>,
    pub(crate) directory: PathBuf,
    pub(crate) environment: BTreeMap<String, String>,
}

impl Mapping {
    /// What is mapped, as people write it.
    pub(crate) fn spec(&self) -> String {
        let Self { pool, namespace, image, .. } = self;
        let mut spec = match namespace.as_str() {
            "" => format!("{pool}/{image}"),
            _ => format!("{pool}/{namespace}/{image}"),
        };
        if !self.snap.is_empty() {
            let _ = write!(spec, "@{}", self.snap);
        }
        spec
    }

    /// Whether it is of this boot: otherwise nothing is left of it in the kernel.
    pub(crate) fn is_of_this_boot(&self) -> bool {
        self.boot == boot()
    }
}

/// What this boot of the host is called.
pub(crate) fn boot() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

/// The folder of a mapping that is held: it is being served, made or removed by this process.
#[derive(Debug)]
pub(crate) struct Held {
    folder: PathBuf,
    _lock: File,
}

impl Held {
    /// Takes the folder of a cookie, made if it is not there.
    pub(crate) fn take(cookie: &str) -> Result<Self> {
        let folder = state().join(folder_name(cookie)?);
        Self::take_folder(folder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                Error::new(Kind::Busy, format!("the mapping with the cookie {cookie:?} is in use"))
            }
            _ => failed("the state of mappings", error),
        })
    }

    /// The same, where whoever has it is about to leave.
    pub(crate) async fn take_soon(cookie: &str, limit: Duration) -> Result<Self> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let cookie = cookie.to_owned();
            let taken = tokio::task::spawn_blocking(move || Self::take(&cookie)).await;
            match taken.map_err(|error| failed("a thread", io::Error::other(error)))? {
                Err(error)
                    if error.kind() == Kind::Busy && tokio::time::Instant::now() < deadline => {}
                taken => return taken,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn take_folder(folder: PathBuf) -> io::Result<Self> {
        let mut attempt = 0;
        loop {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let path = folder.join("lock");
            let lock = match File::options().create(true).append(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                lock => lock?,
            };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // Unless who held it has removed it.
                Ok(()) if is_same(&lock, &path) => return Ok(Self { folder, _lock: lock }),
                Ok(()) => continue,
                Err(rustix::io::Errno::WOULDBLOCK) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
            attempt += 1;
            std::thread::sleep(PAUSE);
        }
    }

    pub(crate) fn write(&self, mapping: &Mapping) -> Result<()> {
        let text = serde_json::to_vec_pretty(mapping).map_err(io::Error::from);
        let (new, path) = (self.folder.join("mapping.new"), self.folder.join("mapping.json"));
        text.and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| failed("the state of a mapping", error))
    }

    /// Whether it has been written what is mapped.
    pub(crate) fn is_known(&self) -> bool {
        self.folder.join("mapping.json").exists()
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Forgets the mapping.
    pub(crate) fn remove(self) {
        for name in ["mapping.json", "mapping.new", "control", "log", "lock"] {
            let _ = fs::remove_file(self.folder.join(name));
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// A mapping that was found.
#[derive(Debug)]
pub(crate) struct Found {
    folder: PathBuf,
    pub(crate) mapping: Mapping,
    /// Somebody serves it.
    pub(crate) alive: bool,
}

impl Found {
    /// All that there are, in the order of their devices.
    ///
    /// # Errors
    /// Only root may know.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(state()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed("what is mapped is root's to know", error));
            }
            entries => entries.map_err(|error| failed("the state of mappings", error))?,
        };
        for entry in entries.flatten() {
            let folder = entry.path();
            let Ok(text) = fs::read(folder.join("mapping.json")) else { continue };
            match serde_json::from_slice(&text) {
                Ok(mapping) => found.push(Self { alive: is_held(&folder), folder, mapping }),
                Err(error) => tracing::warn!(folder = %folder.display(), %error, "what is mapped"),
            }
        }
        found.sort_by_key(|found| {
            let device = found.mapping.device.to_string_lossy().into_owned();
            (device.len(), device)
        });
        Ok(found)
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("control")
    }

    /// Takes it over, if nobody serves it.
    pub(crate) fn take(&self) -> Result<Held> {
        Held::take(&self.mapping.cookie)
    }

    /// Whether somebody serves it now.
    pub(crate) fn is_held(&self) -> bool {
        is_held(&self.folder)
    }
}

/// The mapping that has a cookie.
pub(crate) fn find(cookie: &str) -> Result<Option<Found>> {
    Ok(Found::all()?.into_iter().find(|found| found.mapping.cookie == cookie))
}

fn state() -> PathBuf {
    std::env::var_os(STATE_VARIABLE).map_or_else(|| STATE.into(), PathBuf::from)
}

fn is_held(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join("lock")) else { return false };
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}

fn is_same(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let now = fs::metadata(path).map(identity);
    file.metadata().map(identity).is_ok_and(|then| now.is_ok_and(|now| now == then))
}

/// A cookie as the name of a folder: what is neither letter nor digit is written as its number.
fn folder_name(cookie: &str) -> Result<String> {
    if cookie.is_empty() || cookie.len() > COOKIE_BYTES || cookie.contains('\0') {
        let what = format!("a cookie has 1 to {COOKIE_BYTES} bytes, and no NUL");
        return Err(Error::new(Kind::Invalid, what));
    }
    Ok(cookie.bytes().fold(String::new(), |mut name, byte| {
        match byte {
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(byte)),
            _ => drop(write!(name, "%{byte:02x}")),
        }
        name
    }))
}

/// A cookie that nobody else has: a random UUID, as `rbd-nbd` makes them.
pub(crate) fn random_cookie() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Kind::Os(5), "no random bytes").with_source(error))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut cookie = String::with_capacity(36);
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            cookie.push('-');
        }
        let _ = write!(cookie, "{byte:02x}");
    }
    Ok(cookie)
}

/// A failure of the operating system's.
pub(crate) fn failed(what: impl Into<String>, error: io::Error) -> Error {
    let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
    Error::new(kind, what).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_become_names_of_folders() {
        assert_eq!(folder_name("Abc-1_x").unwrap(), "Abc-1_x");
        assert_eq!(folder_name("abc de/..").unwrap(), "abc%20de%2f%2e%2e");
        for wrong in ["", "\0", &"x".repeat(81)] {
            assert!(folder_name(wrong).is_err(), "{wrong:?}");
        }
        let cookie = random_cookie().unwrap();
        assert_eq!((cookie.len(), &cookie[14..15]), (36, "4"));
        assert_ne!(cookie, random_cookie().unwrap());
    }

    #[test]
    fn a_folder_is_held_by_one_and_seen_to_be() {
        let folder = std::env::temp_dir().join(format!("state-{}", std::process::id()));
        let held = Held::take_folder(folder.clone()).unwrap();
        assert!(is_held(&folder));
        let error = Held::take_folder(folder.clone()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        assert!(!is_held(&folder));
        Held::take_folder(folder.clone()).unwrap().remove();
        assert!(!folder.exists());
    }
}

//! `unmap` and `detach`: ends a device, or the process that serves it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ceph_native::error::{Error, Kind, Result};
use nbd::kernel::{Netlink, by_ioctl, sysfs};
use nbd::loop_device;
use rustix::process::{Pid, Signal, kill_process};

use super::control::{self, Command};
use super::state::{DeviceType, Found, Mapping, failed};
use super::{PROCESS, ublk, users};
use crate::spec::{SnapArgs, Spec};

/// How long a process that serves may take to end a device at once, before it is ended itself.
const FORCE: Duration = Duration::from_secs(3);

/// How long it may take to end it in good order before somebody is told what it waits for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a process may take to be gone after it has answered: longer than it takes to close the image.
const GONE: Duration = Duration::from_secs(45);

/// Ends a device.
///
/// What is cached of it is written out first. A device that is mounted or open is left alone.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Unmap {
    #[command(flatten)]
    target: Target,
    /// End it at once, whatever state the cluster is in, even if it is in use: what is in flight fails, and what was
    /// not written is lost.
    #[arg(long)]
    force: bool,
}

/// Ends the process that serves a device, and leaves the device waiting for another (`attach`).
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Detach {
    #[command(flatten)]
    target: Target,
}

/// Which device is meant.
#[derive(clap::Args, Clone, Debug)]
struct Target {
    #[command(flatten)]
    image: SnapArgs,
    /// The snapshot, by number.
    #[arg(long, value_name = "ID")]
    snap_id: Option<u64>,
    /// What the device is known by.
    #[arg(long)]
    cookie: Option<String>,
    /// The device: the same as naming it alone.
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
}

impl Unmap {
    pub(super) fn run(self) -> Result<()> {
        let Some(found) = self.target.find()? else {
            // A device of nobody's that is not in use is as it should be.
            let device = self.target.device();
            if let Some(device) = device.as_deref().filter(|it| nbd::ublk::index(it).is_some()) {
                let users = users::of(device, 0);
                return match users.is_empty() || self.force {
                    true => ublk::end_unknown(device),
                    false => Err(in_use(device, &users)),
                };
            }
            return match device.filter(|device| sysfs::index(device).is_some()) {
                Some(device) if sysfs::pid(&device).is_some() => end_nbd(&device),
                Some(_) => Ok(()),
                None => Err(self.target.not_mapped()),
            };
        };
        if found.alive {
            match self.force {
                true => force(&found)?,
                false => return end_served(&found),
            }
            if !found.is_held() && !found.control().exists() {
                return Ok(());
            }
        }
        end_unserved(&found, self.force)
    }
}

/// Has whoever serves a device end it.
fn end_served(found: &Found) -> Result<()> {
    let began = Instant::now();
    let device = found.mapping.device.display();
    let (done, answer) = std::sync::mpsc::channel();
    let socket = found.control();
    std::thread::spawn(move || done.send(control::ask(&socket, Command::Unmap, Duration::MAX)));
    loop {
        match answer.recv_timeout(PATIENCE) {
            Ok(answered) => {
                // It may have ended of its own accord, a moment ago.
                if answered.is_err() && !found.is_held() && !found.control().exists() {
                    return Ok(());
                }
                answered?;
                return wait_until_gone(found);
            }
            Err(_) => eprintln!(
                "rbd-nbd-rs: {device} is being flushed, for {} s so far; --force gives up what is not written",
                began.elapsed().as_secs()
            ),
        }
    }
}

/// Ends a device at once, and whoever serves it if it does not do so itself.
fn force(found: &Found) -> Result<()> {
    if control::ask(&found.control(), Command::Force, FORCE).is_ok() {
        return wait_until_gone(found);
    }
    if let Some(pid) = i32::try_from(found.mapping.pid).ok().and_then(Pid::from_raw)
        && found.is_held()
    {
        kill_process(pid, Signal::KILL)
            .map_err(|error| failed("the process that serves the device", error.into()))?;
    }
    wait_until_gone(found)
}

/// Ends a device that nobody serves, and forgets it.
fn end_unserved(found: &Found, force: bool) -> Result<()> {
    let held = found.take()?;
    let mapping = &found.mapping;
    if is_there(mapping) {
        let users = users::of(&mapping.device, 0);
        if !users.is_empty() && !force {
            return Err(in_use(&mapping.device, &users)
                .with_hint("nobody serves it: `attach` has it served again, --force ends it"));
        }
        match mapping.device_type {
            DeviceType::Nbd | DeviceType::Ioctl => end_nbd(&mapping.device)?,
            DeviceType::Fuse => loop_device::release(&mapping.device)
                .map_err(|error| failed(mapping.device.display().to_string(), error))?,
            DeviceType::Ublk => ublk::end_unserved(&mapping.device)?,
        }
    }
    held.remove();
    Ok(())
}

fn in_use(device: &Path, users: &[String]) -> Error {
    Error::new(Kind::Busy, format!("{} is in use: {}", device.display(), users.join(", ")))
}

/// Whether the device of a mapping is still there, and still its own.
pub(super) fn is_there(mapping: &Mapping) -> bool {
    if !mapping.is_of_this_boot() {
        return false;
    }
    let device = &mapping.device;
    match mapping.device_type {
        DeviceType::Nbd | DeviceType::Ioctl => {
            let same = |cookie: String| cookie == mapping.cookie;
            sysfs::pid(device)
                .is_some_and(|pid| mapping.connector.is_none_or(|connector| connector == pid))
                && sysfs::cookie(device).is_none_or(same)
        }
        DeviceType::Fuse => loop_device::name(device)
            .is_some_and(|name| format!("rbd:{}", mapping.spec()).starts_with(&name)),
        DeviceType::Ublk => {
            nbd::ublk::index(device).is_some_and(|index| ublk::is_known_by(index, &mapping.cookie))
        }
    }
}

fn end_nbd(device: &Path) -> Result<()> {
    let index = sysfs::index(device).ok_or_else(|| not_mapped(&device.display().to_string()))?;
    let ended = match Netlink::open() {
        Ok(mut netlink) => netlink.disconnect(index),
        // It cannot be seen from here, or there is none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => by_ioctl::disconnect(device),
        Err(error) => Err(error),
    };
    ended.map_err(|error| failed(format!("{} cannot be ended", device.display()), error))
}

fn wait_until_gone(found: &Found) -> Result<()> {
    let (began, pid, mut told) = (Instant::now(), found.mapping.pid, false);
    while found.is_held() || is_running(pid) {
        if began.elapsed() >= GONE {
            return Err(Error::new(Kind::TimedOut, format!("process {pid} does not end")));
        }
        if !told && began.elapsed() >= PATIENCE {
            eprintln!(
                "rbd-nbd-rs: process {pid} waits for the cluster to hear that it has closed the image"
            );
            told = true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether there is a process of ours with this id that has not ended.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.contains(&format!("({PROCESS}) ")) && !stat.contains(") Z ")
}

impl Detach {
    pub(super) fn run(self) -> Result<()> {
        match self.target.find()? {
            Some(found) if found.alive => leave(&found),
            _ => Err(self.target.not_mapped()),
        }
    }
}

/// Has whoever serves a device leave it to somebody else.
pub(super) fn leave(found: &Found) -> Result<()> {
    control::ask(&found.control(), Command::Detach, GONE)?;
    wait_until_gone(found)
}

impl Target {
    /// The device, if that is how it is named.
    fn device(&self) -> Option<PathBuf> {
        let named = self.image.text().filter(|text| text.starts_with("/dev/")).map(PathBuf::from);
        self.device.clone().or(named)
    }

    fn find(&self) -> Result<Option<Found>> {
        let device = self.device();
        let spec = match (&device, self.image.is_empty()) {
            (Some(_), _) | (None, true) => None,
            (None, false) => Some(self.image.spec()?),
        };
        if device.is_none() && spec.is_none() && self.cookie.is_none() {
            return Err(Error::new(Kind::Invalid, "must specify a device, an image or a cookie"));
        }
        let is_meant = |mapping: &Mapping| {
            device.as_ref().is_none_or(|device| *device == mapping.device)
                && self.cookie.as_ref().is_none_or(|cookie| *cookie == mapping.cookie)
                && spec.as_ref().is_none_or(|spec| is_of(mapping, spec))
                && self.snap_id.is_none_or(|id| mapping.snap_id == Some(id))
        };
        let mut all = Found::all()?;
        all.retain(|found| is_meant(&found.mapping));
        // Of several, one that is served, and that has the device: another may be about to end.
        all.sort_by_key(|found| (!found.alive, !is_there(&found.mapping)));
        Ok(all.into_iter().next())
    }

    fn not_mapped(&self) -> Error {
        let named = self.device().map(|device| device.display().to_string());
        let named =
            named.or_else(|| self.image.text().map(str::to_owned)).or_else(|| self.cookie.clone());
        not_mapped(&named.unwrap_or_default())
    }
}

/// Whether an image is what is mapped. A pool that is not named is whichever it is.
pub(super) fn is_of(mapping: &Mapping, spec: &Spec) -> bool {
    spec.pool.as_ref().is_none_or(|pool| *pool == mapping.pool)
        && spec.namespace == mapping.namespace
        && spec.image == mapping.image
        && spec.snap.as_deref().unwrap_or_default() == mapping.snap
}

/// Whether a device or an image, as people write it, is what is mapped.
pub(super) fn is_named(mapping: &Mapping, text: &str) -> bool {
    mapping.device == Path::new(text)
        || mapping.cookie == text
        || Spec::parse(text).is_ok_and(|spec| is_of(mapping, &spec))
}

pub(super) fn not_mapped(what: &str) -> Error {
    Error::new(Kind::Invalid, format!("{what} is not mapped"))
}

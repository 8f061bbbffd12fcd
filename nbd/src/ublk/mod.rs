//! Block devices of Linux' ublk driver (`Documentation/block/ublk.rst`), from Linux 6.5 on: made, ended and taken over
//! by commands to `/dev/ublk-control`, and served by [`serve`]. There is no socket: requests come by an io_uring, and
//! data is copied once, between the kernel's pages and ours.

mod ring;
mod serving;
mod wire;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::ring::Ring;
pub use self::serving::{Serving, serve};
use self::wire::{ANY, DevInfo, FEATURES, control, control_command};
use crate::device::Geometry;
use crate::node;

const CONTROL: &str = "/dev/ublk-control";

/// How long the nodes of a device may take to be there.
const NODE: Duration = Duration::from_secs(1);

/// What a device looks like.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// Its number; the first free one if there is none named.
    pub index: Option<u32>,
    /// Its properties.
    pub geometry: Geometry,
    /// Its logical block size, in bytes: 512 to the size of a page.
    pub block_size: u32,
    /// Whether discards are passed on.
    pub trim: bool,
    /// The longest request, in bytes.
    pub longest: u32,
    /// What it is known by.
    pub cookie: &'a str,
}

/// Whether this kernel has ublk loaded.
pub fn is_available() -> bool {
    Path::new(CONTROL).exists()
}

/// The number of a device from its node: 3 of `/dev/ublkb3`.
pub fn index(device: &Path) -> Option<u32> {
    device.file_name()?.to_str()?.strip_prefix("ublkb")?.parse().ok()
}

/// The node of a device.
pub fn path(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{index}"))
}

/// The driver's ear. Its answers are waited for: it is for threads that may block.
pub struct Control {
    file: File,
    ring: Ring,
    /// What has become of a command is not known: none is sent after it.
    broken: bool,
}

impl Control {
    /// Opens it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the kernel has no ublk loaded; the kernel's, such as where io_uring is forbidden.
    pub fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(CONTROL)?;
        Ok(Self { file, ring: Ring::new(4)?, broken: false })
    }

    /// Makes a device, of which there is nothing to be seen before it is served and [started](Control::start), and
    /// returns its number.
    ///
    /// # Errors
    /// The kernel's: `EEXIST` if the number is taken. [`io::ErrorKind::Unsupported`] if its ublk is too old.
    pub fn add(&mut self, connect: &Connect<'_>) -> io::Result<u32> {
        let wanted = DevInfo {
            index: connect.index.unwrap_or(ANY),
            state: 0,
            longest: connect.longest,
            pid: 0,
            features: FEATURES,
            mark: mark(connect.cookie),
        };
        let mut info = wanted.encode();
        self.ask(control::ADD_DEV, wanted.index, &mut info, 0)?;
        let made = DevInfo::decode(&info).ok_or(io::ErrorKind::InvalidData)?;
        let Connect { geometry, block_size, trim, longest, .. } = connect;
        let mut params = wire::params(geometry, *block_size, *trim, *longest);
        let described = match made.features & FEATURES == FEATURES {
            true => self.ask(control::SET_PARAMS, made.index, &mut params, 0),
            false => Err(io::ErrorKind::Unsupported.into()),
        };
        if let Err(error) = described {
            let _ = self.delete(made.index);
            return Err(error);
        }
        Ok(made.index)
    }

    /// Has a device that is served appear. What looks into it then, such as for partitions, is served meanwhile.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&mut self, index: u32) -> io::Result<PathBuf> {
        self.ask(control::START_DEV, index, &mut [], std::process::id().into())?;
        let path = path(index);
        node::make(&path)?;
        Ok(path)
    }

    /// Has a device disappear: what is in flight and nobody serves fails. That it has already is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub fn stop(&mut self, index: u32) -> io::Result<()> {
        fine_if_gone(self.ask(control::STOP_DEV, index, &mut [], 0))
    }

    /// Forgets a device, whose number is free again when nobody has it open any more. (Before Linux 6.9 it waits for
    /// that.)
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&mut self, index: u32) -> io::Result<()> {
        fine_if_gone(match self.ask(control::DEL_DEV_ASYNC, index, &mut [], 0) {
            // It knows no such command: EINVAL, EOPNOTSUPP or, within the kernel, ENOTSUPP.
            Err(error) if matches!(error.raw_os_error(), Some(22 | 95 | 524)) => {
                self.ask(control::DEL_DEV, index, &mut [], 0)
            }
            deleted => deleted,
        })
    }

    /// Readies a device whose process is gone for another that [serves](serve) it.
    ///
    /// # Errors
    /// `EBUSY` if it is not gone yet, or not for the driver.
    pub fn begin_recovery(&mut self, index: u32) -> io::Result<()> {
        self.ask(control::START_USER_RECOVERY, index, &mut [], 0)
    }

    /// Has a device go on that somebody serves again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_recovery(&mut self, index: u32) -> io::Result<()> {
        self.ask(control::END_USER_RECOVERY, index, &mut [], std::process::id().into())
    }

    /// What the kernel has of a device; `None` if there is none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn known(&mut self, index: u32) -> io::Result<Option<Known>> {
        let mut info = vec![0; DevInfo::BYTES];
        match self.ask(control::GET_DEV_INFO, index, &mut info, 0) {
            Err(error) if error.raw_os_error() == Some(19) => Ok(None),
            asked => asked.map(|()| DevInfo::decode(&info).map(Known)),
        }
    }

    /// Sends a command and waits until it is done.
    fn ask(&mut self, command: u32, index: u32, structure: &mut [u8], data: u64) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut told: Box<[u8]> = structure.into();
        let bytes = control_command(index, &mut told, data);
        let pushed = self.ring.push(&self.file, command, &bytes, 0);
        let done = match pushed {
            true => self.ring.enter_and_wait(1).map(|()| self.ring.completed()),
            false => Err(io::ErrorKind::ResourceBusy.into()),
        };
        match done {
            Ok(Some((_, result))) => {
                structure.copy_from_slice(&told);
                match result {
                    0.. => Ok(()),
                    error => Err(io::Error::from_raw_os_error(-error)),
                }
            }
            // The kernel may still fill it, and a later answer would be taken for that of another command.
            unknown => {
                Box::leak(told);
                self.broken = true;
                Err(unknown.err().unwrap_or_else(|| io::ErrorKind::Interrupted.into()))
            }
        }
    }
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

/// What the kernel has of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known(DevInfo);

impl Known {
    /// Whether it was made with this cookie.
    pub fn is_by(&self, cookie: &str) -> bool {
        self.0.mark == mark(cookie)
    }

    /// Whether there is a block device: not before it is started, nor after it was stopped.
    pub fn is_started(&self) -> bool {
        self.0.state != 0
    }

    /// The process that serves it, or did.
    pub fn pid(&self) -> Option<u32> {
        u32::try_from(self.0.pid).ok().filter(|pid| *pid > 0)
    }
}

/// What is kept of a cookie in the 64 bits that the driver has room for: FNV-1a.
fn mark(cookie: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    cookie.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

fn fine_if_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(19) => Ok(()),
        done => done,
    }
}

/// Opens what a device is served by.
fn open(index: u32) -> io::Result<File> {
    let path = PathBuf::from(format!("/dev/ublkc{index}"));
    let deadline = Instant::now() + NODE;
    loop {
        // Where nobody makes nodes, as in containers, it is made here.
        let opened = node::make_char(&path, "ublk-char")
            .and_then(|()| File::options().read(true).write(true).open(&path));
        match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_device() {
        assert_eq!(index(Path::new("/dev/ublkb12")), Some(12));
        for other in ["/dev/ublkb", "/dev/ublkc1", "/dev/ublkb1p2", "/dev/nbd1"] {
            assert_eq!(index(Path::new(other)), None, "{other}");
        }
        assert_eq!(index(&path(3)), Some(3));
    }

    #[test]
    fn cookies_differ() {
        assert_eq!(mark(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(mark("a"), 0xaf63_dc4c_8601_ec8c);
    }
}

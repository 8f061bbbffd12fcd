//! Devices of the kernel's NBD client by ioctls, as before netlink: for where that cannot be seen, such as in a
//! container with a network of its own (before Linux 6.3 the family is of the host's alone), and for Linux before 4.12.
//!
//! Such a device is held by a thread of ours for as long as it lives, and fails when that dies: nobody takes it over.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::ioctl::Opcode;
use tokio::sync::oneshot;

use super::{Connect, server_flags, sysfs};
use crate::ioctl;
use crate::node;

/// Numbers of `include/uapi/linux/nbd.h`.
const SET_SOCK: Opcode = 0xab00;
const SET_BLOCK_SIZE: Opcode = 0xab01;
const DO_IT: Opcode = 0xab03;
const CLEAR_SOCK: Opcode = 0xab04;
const SET_SIZE_BLOCKS: Opcode = 0xab07;
const SET_TIMEOUT: Opcode = 0xab09;
const SET_FLAGS: Opcode = 0xab0a;

/// How long the kernel may take from being told to hold a device to having it.
const READY: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(2);

/// A device that this process holds.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: Arc<File>,
    block_size: u32,
}

/// Tells when a device has ended.
#[derive(Debug)]
pub struct Over(oneshot::Receiver<io::Result<()>>);

impl Over {
    /// Returns when it has.
    ///
    /// # Errors
    /// The kernel's, if it was not ended on purpose.
    pub async fn ended(&mut self) -> io::Result<()> {
        (&mut self.0).await.unwrap_or(Ok(()))
    }
}

impl Device {
    /// Connects a device to whoever is at the other end of these sockets. Blocks until the device is there, for which
    /// those have to be served by another thread.
    ///
    /// # Errors
    /// The kernel's: `EBUSY` if the device is in use, or all are; `ENODEV` if there is none.
    pub fn connect(connect: &Connect<'_>, sockets: Vec<UnixStream>) -> io::Result<(Self, Over)> {
        let candidates = match connect.index {
            Some(index) => vec![index],
            None => indices()?,
        };
        if candidates.is_empty() {
            return Err(rustix::io::Errno::NODEV.into());
        }
        let sockets = Arc::new(sockets);
        for index in candidates {
            let path = super::node(index)?;
            if sysfs::pid(&path).is_some() {
                continue;
            }
            match Self::hold(path, connect, &sockets) {
                // Somebody else was faster.
                Err(error) if error.raw_os_error() == Some(16) => {}
                held => return held,
            }
        }
        Err(rustix::io::Errno::BUSY.into())
    }

    fn hold(
        path: PathBuf,
        connect: &Connect<'_>,
        sockets: &Arc<Vec<UnixStream>>,
    ) -> io::Result<(Self, Over)> {
        let file = Arc::new(File::options().read(true).write(true).open(&path)?);
        let block_size = connect.block_size;
        let settings = [
            (SET_BLOCK_SIZE, block_size as usize),
            (SET_SIZE_BLOCKS, blocks(connect.geometry.size, block_size)?),
            (SET_FLAGS, server_flags(&connect.geometry, connect.trim).into()),
            (SET_TIMEOUT, connect.io_timeout.map_or(0, |limit| limit.as_secs() as usize)),
        ];
        let (end, over) = oneshot::channel();
        let (begin, begun) = std::sync::mpsc::channel();
        let (held, sockets) = (Arc::clone(&file), Arc::clone(sockets));
        // The kernel wants all of this of one thread, and keeps it.
        let thread = std::thread::Builder::new().name("rbd-nbd".into());
        thread.spawn(move || {
            // A signal would end the device.
            ioctl::block_signals();
            let begun = begin_to_hold(&held, &sockets, &settings);
            drop(sockets);
            let is_held = begun.is_ok();
            // Who waits for it is there until it has this.
            let _ = begin.send(begun);
            if is_held {
                let over = ioctl::number(&*held, DO_IT, 0).map(drop);
                let _ = ioctl::number(&*held, CLEAR_SOCK, 0);
                drop(held);
                let _ = end.send(over.map_err(Into::into));
            }
        })?;
        begun.recv().map_err(io::Error::other)??;
        let (device, mut over) = (Self { path, file, block_size }, Over(over));
        device.wait_until_ready(&mut over)?;
        Ok((device, over))
    }

    fn wait_until_ready(&self, over: &mut Over) -> io::Result<()> {
        let deadline = Instant::now() + READY;
        while sysfs::pid(&self.path).is_none() {
            match over.0.try_recv() {
                Ok(over) => {
                    return Err(over.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
                }
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(_) => {
                    let _ = self.disconnect();
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
        }
        Ok(())
    }

    /// Its node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, size: u64) -> io::Result<()> {
        ioctl::number(&*self.file, SET_SIZE_BLOCKS, blocks(size, self.block_size)?)?;
        Ok(())
    }

    /// Ends it: what is in flight fails.
    ///
    /// # Errors
    /// The kernel's.
    pub fn disconnect(&self) -> io::Result<()> {
        ioctl::number(&*self.file, CLEAR_SOCK, 0)?;
        Ok(())
    }
}

/// Ends a device that somebody else holds, or held, however it was made: of all the ioctls, the kernel takes this one
/// (and `NBD_DISCONNECT`) for devices of netlink's, too (`nbd_ioctl` of `drivers/block/nbd.c`).
///
/// # Errors
/// The kernel's.
pub fn disconnect(path: &Path) -> io::Result<()> {
    node::make(path)?;
    ioctl::number(File::open(path)?, CLEAR_SOCK, 0)?;
    Ok(())
}

/// All that has to be said before the device is held.
fn begin_to_hold(
    device: &File,
    sockets: &[UnixStream],
    settings: &[(Opcode, usize)],
) -> io::Result<()> {
    let told = sockets
        .iter()
        // A descriptor is never negative.
        .map(|socket| (SET_SOCK, socket.as_raw_fd() as usize))
        .chain(settings.iter().copied())
        .try_for_each(|(opcode, argument)| ioctl::number(device, opcode, argument).map(drop));
    if told.is_err_and(|error| error != rustix::io::Errno::BUSY) {
        let _ = ioctl::number(device, CLEAR_SOCK, 0);
    }
    Ok(told?)
}

fn blocks(size: u64, block_size: u32) -> io::Result<usize> {
    usize::try_from(size / u64::from(block_size)).map_err(io::Error::other)
}

/// Numbers of the devices that the kernel has.
fn indices() -> io::Result<Vec<u32>> {
    let names = fs::read_dir("/sys/block")?.filter_map(|entry| Some(entry.ok()?.file_name()));
    let mut indices: Vec<_> = names.filter_map(|name| sysfs::index(Path::new(&name))).collect();
    indices.sort_unstable();
    Ok(indices)
}

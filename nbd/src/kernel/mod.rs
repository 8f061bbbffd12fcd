//! Block devices of the Linux kernel's NBD client (`drivers/block/nbd.c`):
//! made, changed and ended by generic netlink, or [`by_ioctl`].

pub mod by_ioctl;
mod genl;
pub mod sysfs;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Buf;
use rustix::buffer::spare_capacity;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use self::genl::{Answer, Message, attribute, attributes};
use crate::device::Geometry;
use crate::exports::transmission_flags;
use crate::node;

/// The family of all families, its command that asks for one, and its attributes (`genetlink.h`).
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// Numbers of `include/uapi/linux/nbd-netlink.h`.
const FAMILY: &str = "nbd";
const VERSION: u8 = 1;

mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const STATUS: u8 = 5;
}

mod attr {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const TIMEOUT: u16 = 4;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const CLIENT_FLAGS: u16 = 6;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND: u16 = 10;

    /// Within `SOCKETS`, and within each of its items.
    pub(super) const SOCKET_ITEM: u16 = 1;
    pub(super) const SOCKET_FD: u16 = 1;

    /// Within `DEVICE_LIST`, and within each of its items.
    pub(super) const DEVICE_ITEM: u16 = 1;
    pub(super) const DEVICE_INDEX: u16 = 1;
    pub(super) const DEVICE_CONNECTED: u16 = 2;
}

/// What the kernel says at once, at most, in bytes: the status of 256 devices is a tenth of it.
const ANSWER_BYTES: usize = 64 << 10;

/// How a device is to be connected.
#[derive(Clone, Debug)]
pub struct Connect<'a> {
    /// The device to take; the first free one if there is none named.
    pub index: Option<u32>,
    /// What it looks like.
    pub geometry: Geometry,
    /// Its logical block size, in bytes: 512 to the size of a page.
    pub block_size: u32,
    /// Whether discards are passed on.
    pub trim: bool,
    /// How long a request may take before its connection is given up; for ever if not set.
    pub io_timeout: Option<Duration>,
    /// How long the device waits for somebody to serve it before requests fail.
    pub dead_timeout: Duration,
    /// Whoever wants to change the device has to know this (Linux 5.14 and later).
    pub cookie: &'a str,
}

/// The way to the kernel's NBD client.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if the kernel has no NBD client loaded, or one without netlink.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        )?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        let mut netlink = Self { socket, family: CONTROL, sequence: 0 };
        let mut message = netlink.message_of(CONTROL, GET_FAMILY, 1);
        message.text(FAMILY_NAME, FAMILY);
        let answer = netlink.ask(message)?;
        let id = attribute(&answer, FAMILY_ID).and_then(|mut id| id.try_get_u16_ne().ok());
        netlink.family = id.ok_or(io::ErrorKind::InvalidData)?;
        Ok(netlink)
    }

    /// Connects a device to whoever is at the other end of these sockets, and returns its number. The kernel keeps
    /// the sockets; ours can be closed.
    ///
    /// # Errors
    /// The kernel's: `EBUSY` if the device is in use, or all are.
    pub fn connect(
        &mut self,
        connect: &Connect<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<u32> {
        let mut message = self.message(command::CONNECT);
        if let Some(index) = connect.index {
            message.u32(attr::INDEX, index);
        }
        let geometry = &connect.geometry;
        message.u64(attr::SIZE_BYTES, geometry.size);
        message.u64(attr::BLOCK_SIZE_BYTES, connect.block_size.into());
        message.u64(attr::SERVER_FLAGS, server_flags(geometry, connect.trim).into());
        message.u64(attr::CLIENT_FLAGS, 0);
        message.u64(attr::TIMEOUT, connect.io_timeout.map_or(0, |limit| limit.as_secs()));
        message.u64(attr::DEAD_CONN_TIMEOUT, connect.dead_timeout.as_secs());
        message.text(attr::BACKEND, connect.cookie);
        put_sockets(&mut message, sockets);
        let answer = self.ask(message)?;
        let index =
            attribute(&answer, attr::INDEX).and_then(|mut index| index.try_get_u32_ne().ok());
        index.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Gives a device that waits for it new sockets.
    ///
    /// # Errors
    /// `ENOSPC` if its old ones still work, `EINVAL` if it is not connected or knows another cookie.
    pub fn reconnect(
        &mut self,
        index: u32,
        cookie: &str,
        sockets: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let mut message = self.message(command::RECONFIGURE);
        message.u32(attr::INDEX, index);
        message.text(attr::BACKEND, cookie);
        put_sockets(&mut message, sockets);
        self.ask(message).map(drop)
    }

    /// Gives a device another size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&mut self, index: u32, cookie: &str, size: u64) -> io::Result<()> {
        let mut message = self.message(command::RECONFIGURE);
        message.u32(attr::INDEX, index);
        message.text(attr::BACKEND, cookie);
        message.u64(attr::SIZE_BYTES, size);
        self.ask(message).map(drop)
    }

    /// Ends a device: what is in flight fails.
    ///
    /// # Errors
    /// The kernel's; that it is not connected is fine.
    pub fn disconnect(&mut self, index: u32) -> io::Result<()> {
        let mut message = self.message(command::DISCONNECT);
        message.u32(attr::INDEX, index);
        match self.ask(message) {
            Err(error) if error.raw_os_error() == Some(22) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Whether a device is connected: it has somebody to serve it, or waits for it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn is_connected(&mut self, index: u32) -> io::Result<bool> {
        let mut message = self.message(command::STATUS);
        message.u32(attr::INDEX, index);
        let answer = self.ask(message)?;
        Ok(devices(&answer).any(|device| device == (index, true)))
    }

    fn message(&mut self, command: u8) -> Message {
        self.message_of(self.family, command, VERSION)
    }

    fn message_of(&mut self, family: u16, command: u8, version: u8) -> Message {
        self.sequence += 1;
        Message::new(family, self.sequence, command, version)
    }

    /// Sends a request, and returns the attributes of what is answered, if there are any.
    fn ask(&self, message: Message) -> io::Result<Vec<u8>> {
        let bytes = message.finish();
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)?;
        let mut found = Vec::new();
        loop {
            let mut received = Vec::with_capacity(ANSWER_BYTES);
            rustix::net::recv(&self.socket, spare_capacity(&mut received), RecvFlags::empty())?;
            for answer in genl::answers(&received, self.sequence) {
                match answer {
                    Answer::Attributes(attributes) => found = attributes,
                    Answer::End(Ok(())) => return Ok(found),
                    Answer::End(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }
}

/// The node of a device, made if nobody has.
///
/// # Errors
/// There is no such device.
pub fn node(index: u32) -> io::Result<PathBuf> {
    let path = PathBuf::from(format!("/dev/nbd{index}"));
    node::make(&path)?;
    Ok(path)
}

/// What a device can do, as the kernel is told. Without discards there is no zeroing either: it would give back space.
fn server_flags(geometry: &Geometry, trim: bool) -> u16 {
    let geometry = Geometry {
        can_discard: geometry.can_discard && trim,
        can_write_zeroes: geometry.can_write_zeroes && trim,
        ..*geometry
    };
    transmission_flags(&geometry, false)
}

fn put_sockets(message: &mut Message, sockets: &[BorrowedFd<'_>]) {
    message.nested(attr::SOCKETS, |items| {
        for socket in sockets {
            // A descriptor is never negative.
            let fd = socket.as_raw_fd() as u32;
            items.nested(attr::SOCKET_ITEM, |item| item.u32(attr::SOCKET_FD, fd));
        }
    });
}

/// Numbers of devices, and whether they are connected.
fn devices(answer: &[u8]) -> impl Iterator<Item = (u32, bool)> {
    let list = attribute(answer, attr::DEVICE_LIST).unwrap_or_default();
    attributes(list).filter(|(kind, _)| *kind == attr::DEVICE_ITEM).filter_map(|(_, item)| {
        let index = attribute(item, attr::DEVICE_INDEX)?.try_get_u32_ne().ok()?;
        let connected = attribute(item, attr::DEVICE_CONNECTED)?.first()?;
        Some((index, *connected != 0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_understood() {
        let mut message = Message::new(0, 0, 0, 0);
        message.nested(attr::DEVICE_LIST, |list| {
            for index in [0, 3] {
                list.nested(attr::DEVICE_ITEM, |item| {
                    item.u32(attr::DEVICE_INDEX, index);
                    item.u32(attr::DEVICE_CONNECTED, u32::from(index == 3));
                });
            }
        });
        let bytes = message.finish();
        assert_eq!(devices(&bytes[20..]).collect::<Vec<_>>(), [(0, false), (3, true)]);
        assert_eq!(devices(&bytes[20..30]).count(), 0);
    }

    #[test]
    fn a_device_without_discards_is_not_told_to_zero() {
        let geometry = Geometry::new(1 << 20);
        assert_eq!(server_flags(&geometry, true), 0b1101_0110_1101);
        assert_eq!(server_flags(&geometry, false), 0b0101_0000_1101);
    }
}

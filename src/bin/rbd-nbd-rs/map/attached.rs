//! A block device of this host that serves an image: made, resized and ended, whichever way it is made.

use std::fs::File;
use std::future::pending;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ceph_native::attach::ImageDevice;
use ceph_native::error::{Error, Kind, Result};
use nbd::device::{Device, Geometry};
use nbd::fuse::{self, FileSystem};
use nbd::kernel::{Connect, Netlink, by_ioctl, sysfs};
use nbd::loop_device::{self, LoopDevice};
use nbd::{Export, Exports, Server};
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use tokio::task::JoinHandle;

use super::control::Handed;
use super::state::{DeviceType, failed};
use super::ublk::Ublk;

/// The longest request that the kernel is to make, in bytes: an object of the usual size.
pub(crate) const LONGEST_REQUEST: u32 = 4 << 20;

/// What one side may have sent that the other has not read yet, in bytes: with what Linux gives otherwise (208 KiB),
/// two requests of 128 KiB already wait for each other, and whoever sends is woken for each piece of room.
const SEND_BUFFER: usize = 1 << 20;

/// How long it may take until no request is in flight when the device is left to somebody else. What is not done by
/// then, the kernel asks again.
pub(crate) const DETACH: Duration = Duration::from_secs(1);

/// The same when its connections are given to somebody else, who begins with nothing to do: it may take as long as the
/// cluster takes, which is not the time that handing over takes.
const HAND_OVER: Duration = Duration::from_secs(10);

/// How often and for how long a device is offered somebody to serve it whose old process the kernel has not missed yet.
pub(crate) const OFFER_PAUSE: Duration = Duration::from_millis(20);
const OFFER: Duration = Duration::from_secs(20);

/// How long the kernel's NBD client may take from being seen to being ready.
const LOADING: Duration = Duration::from_secs(2);

/// How long others may take to load it: anybody who may read the folder that they lock can lock it for ever.
const TURN: Duration = Duration::from_secs(10);

/// How long setting up a device's queue may be waited for: it is served without, but not yet noted who serves it.
const TUNE: Duration = Duration::from_secs(5);

/// How a device is to be made.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) device_type: DeviceType,
    /// The device to take; any free one if there is none named.
    pub(crate) device: Option<PathBuf>,
    pub(crate) cookie: String,
    /// What it is shown as being of.
    pub(crate) spec: String,
    pub(crate) block_size: u32,
    pub(crate) trim: bool,
    pub(crate) connections: usize,
    pub(crate) io_timeout: Option<Duration>,
    pub(crate) reattach_timeout: Duration,
}

impl Wanted {
    /// What the kernel's NBD client is told.
    fn connect(&self, geometry: Geometry) -> Result<Connect<'_>> {
        Ok(Connect {
            index: self.device.as_deref().map(nbd_index).transpose()?,
            geometry: Geometry { coherent_queues: self.connections > 1, ..geometry },
            block_size: self.block_size,
            trim: self.trim,
            io_timeout: self.io_timeout,
            dead_timeout: self.reattach_timeout,
            cookie: &self.cookie,
        })
    }

    fn not_connected(&self, error: io::Error) -> Error {
        match (error.raw_os_error(), &self.device) {
            (Some(16), Some(device)) => {
                Error::new(Kind::Busy, format!("{} is in use", device.display()))
            }
            (Some(19), None) => Error::new(Kind::Unsupported, "this kernel has no /dev/nbdN")
                .with_hint(
                    "`modprobe nbd` makes some, after `modprobe -r nbd` if it was loaded without",
                ),
            _ => failed("the kernel does not connect a device", error),
        }
    }
}

/// A device that is there.
#[derive(Debug)]
pub(crate) enum Attached {
    Nbd(Nbd),
    Ioctl(NbdByIoctl),
    Fuse(Fuse),
    Ublk(Ublk),
}

impl Attached {
    /// Makes a device.
    pub(crate) async fn new(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        match wanted.device_type {
            DeviceType::Nbd => Nbd::connect(wanted, image).await.map(Self::Nbd),
            DeviceType::Ioctl => NbdByIoctl::connect(wanted, image).await.map(Self::Ioctl),
            DeviceType::Fuse => Fuse::attach(wanted, image).await.map(Self::Fuse),
            DeviceType::Ublk => Ublk::add(wanted, image).await.map(Self::Ublk),
        }
    }

    /// Takes over a device that waits for somebody to serve it.
    pub(crate) async fn take_over(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        match wanted.device_type {
            DeviceType::Nbd => Nbd::take_over(wanted, image).await.map(Self::Nbd),
            DeviceType::Ublk => Ublk::take_over(wanted, image).await.map(Self::Ublk),
            DeviceType::Ioctl | DeviceType::Fuse => Err(only_served_by_one().with_hint(
                "it ends with the process that serves it: unmap it, and map the image again",
            )),
        }
    }

    /// Goes on with connections that somebody else has served.
    pub(crate) async fn adopt(
        wanted: &Wanted,
        image: ImageDevice,
        handed: Vec<Handed>,
    ) -> Result<Self> {
        Nbd::adopt(wanted, image, handed).await.map(Self::Nbd)
    }

    /// Its node.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Nbd(nbd) => &nbd.path,
            Self::Ioctl(nbd) => nbd.device.path(),
            Self::Fuse(fuse) => &fuse.path,
            Self::Ublk(ublk) => ublk.path(),
        }
    }

    /// Takes over the image's size.
    pub(crate) async fn resize(&self, size: u64) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.resize(size).await,
            Self::Ioctl(nbd) => nbd.resize(size).await,
            Self::Fuse(fuse) => fuse.resize().await,
            Self::Ublk(ublk) => ublk.resize(),
        }
    }

    /// Returns when somebody else has ended the device, or nobody serves it any more.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.ended().await,
            Self::Ioctl(nbd) => nbd.ended().await,
            Self::Fuse(fuse) => fuse.ended().await,
            Self::Ublk(ublk) => ublk.ended().await,
        }
    }

    /// Ends the device. What is in flight fails.
    pub(crate) async fn end(self) -> Result<()> {
        match self {
            Self::Nbd(nbd) => nbd.disconnect().await,
            Self::Ioctl(nbd) => nbd.disconnect().await,
            Self::Fuse(fuse) => fuse.detach().await,
            Self::Ublk(ublk) => ublk.end().await,
        }
    }

    /// Gives its connections to somebody else, who is to serve it from now on; none if what is in flight does not end.
    /// Gives the device back if there cannot be anybody else.
    pub(crate) async fn hand_over(self) -> std::result::Result<Vec<Handed>, (Self, Error)> {
        match self {
            Self::Nbd(nbd) => Ok(nbd.hand_over().await),
            Self::Ublk(_) => {
                let what =
                    "ublk has a device served by somebody else only when this process is gone";
                Err((self, Error::new(Kind::Unsupported, what)))
            }
            Self::Ioctl(_) | Self::Fuse(_) => Err((self, only_served_by_one())),
        }
    }

    /// Leaves the device to somebody else, or gives it back if there cannot be anybody else.
    /// Says whether all that was asked is done.
    pub(crate) async fn leave(self) -> std::result::Result<bool, (Self, Error)> {
        match self {
            Self::Nbd(nbd) => {
                let report = nbd.server.shutdown(DETACH).await;
                Ok(report.abandoned == 0)
            }
            Self::Ublk(ublk) => Ok(ublk.leave().await),
            Self::Ioctl(_) | Self::Fuse(_) => Err((self, only_served_by_one())),
        }
    }
}

fn only_served_by_one() -> Error {
    let what = "a device over FUSE, or by ioctl where netlink is missing, cannot be served by anybody else";
    Error::new(Kind::Unsupported, what)
}

/// A device of the kernel's NBD client.
pub(crate) struct Nbd {
    path: PathBuf,
    index: u32,
    cookie: String,
    connections: usize,
    server: Server,
}

impl std::fmt::Debug for Nbd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nbd").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Nbd {
    async fn connect(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let mut netlink = netlink()?;
        let geometry = image.geometry();
        let server = server(wanted, image)?;
        let kernel = sockets(&server, wanted.connections)?;
        let connect = wanted.connect(geometry)?;
        // The kernel notes which thread connects it, and shows that as the device's process: it has to be this one.
        let fds: Vec<_> = kernel.iter().map(AsFd::as_fd).collect();
        let index = netlink.connect(&connect, &fds).map_err(|error| wanted.not_connected(error))?;
        let path = nbd::kernel::node(index).map_err(|error| {
            let _ = netlink.disconnect(index);
            failed(format!("/dev/nbd{index}"), error)
        })?;
        tune(&path).await;
        let (cookie, connections) = (wanted.cookie.clone(), wanted.connections);
        Ok(Self { path, index, cookie, connections, server })
    }

    async fn take_over(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let Some(path) = wanted.device.clone() else {
            return Err(Error::new(Kind::Invalid, "must specify device to attach"));
        };
        let index = nbd_index(&path)?;
        let size = image.geometry().size;
        let (cookie, connections) = (wanted.cookie.clone(), wanted.connections);
        let nbd = Self { path, index, cookie, connections, server: server(wanted, image)? };
        nbd.offer().await?;
        if sysfs::size(&nbd.path) != Some(size) {
            nbd.resize(size).await?;
        }
        Ok(nbd)
    }

    /// The kernel notices nothing.
    async fn adopt(wanted: &Wanted, image: ImageDevice, handed: Vec<Handed>) -> Result<Self> {
        let path = wanted.device.clone().unwrap_or_default();
        let index = nbd_index(&path)?;
        let size = image.geometry().size;
        let (cookie, connections) = (wanted.cookie.clone(), handed.len());
        let server = server(wanted, image)?;
        for Handed { socket, read } in handed {
            server
                .adopt(socket.into(), BytesMut::from(&read[..]))
                .map_err(|error| failed("a connection of the kernel's", error))?;
        }
        let nbd = Self { path, index, cookie, connections, server };
        if sysfs::size(&nbd.path) != Some(size) {
            nbd.resize(size).await?;
        }
        Ok(nbd)
    }

    async fn hand_over(self) -> Vec<Handed> {
        let connections = self.server.hand_over(HAND_OVER).await;
        // All of them, or none: who serves the device next is to serve all of it.
        if connections.len() != self.connections {
            return Vec::new();
        }
        let handed = connections.into_iter();
        handed.map(|(stream, read)| Handed { socket: stream.into(), read: read.to_vec() }).collect()
    }

    /// Offers the kernel sockets in place of those that it has lost.
    async fn offer(&self) -> Result<()> {
        let mut netlink = netlink()?;
        let deadline = tokio::time::Instant::now() + OFFER;
        loop {
            let kernel = sockets(&self.server, self.connections)?;
            let fds: Vec<_> = kernel.iter().map(AsFd::as_fd).collect();
            match netlink.reconnect(self.index, &self.cookie, &fds) {
                Ok(()) => return Ok(()),
                // It has not noticed yet that the old ones are dead.
                Err(error)
                    if error.raw_os_error() == Some(28)
                        && tokio::time::Instant::now() < deadline => {}
                Err(error) => {
                    let what = format!("{} cannot be taken over", self.path.display());
                    return Err(failed(what, error));
                }
            }
            tokio::time::sleep(OFFER_PAUSE).await;
        }
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let what = || format!("{} cannot be resized", self.path.display());
        let mut netlink = netlink()?;
        let (path, index, cookie) = (self.path.clone(), self.index, self.cookie.clone());
        // It waits for what is in flight, and reads the partition table: we serve both.
        blocking(move || {
            netlink.resize(index, &cookie, size)?;
            sysfs::reread_partitions(&path)
        })
        .await
        .map_err(|error| failed(what(), error))
    }

    async fn ended(&self) -> Result<()> {
        loop {
            self.server.idle().await;
            if !netlink()?.is_connected(self.index).unwrap_or(false) {
                return Ok(());
            }
            // The kernel gave up a connection that took too long, but not the device.
            tracing::warn!(device = %self.path.display(), "the kernel has lost its connections: here are new ones");
            self.offer().await?;
        }
    }

    async fn disconnect(self) -> Result<()> {
        let (mut netlink, index) = (netlink()?, self.index);
        // It waits for whoever is sending us something.
        blocking(move || netlink.disconnect(index))
            .await
            .map_err(|error| failed(format!("{} cannot be ended", self.path.display()), error))
    }
}

/// A device of the kernel's NBD client, held by this process.
pub(crate) struct NbdByIoctl {
    device: Arc<by_ioctl::Device>,
    over: by_ioctl::Over,
    /// Whose connections it has.
    _server: Server,
}

impl std::fmt::Debug for NbdByIoctl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdByIoctl").field("device", &self.device).finish_non_exhaustive()
    }
}

impl NbdByIoctl {
    async fn connect(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let geometry = image.geometry();
        wanted.connect(geometry)?;
        let server = server(wanted, image)?;
        let kernel = sockets(&server, wanted.connections)?;
        let told = wanted.clone();
        let connecting = blocking(move || {
            let connect = told.connect(geometry).map_err(io::Error::other)?;
            by_ioctl::Device::connect(&connect, kernel)
        });
        let (device, over) = connecting.await.map_err(|error| wanted.not_connected(error))?;
        tune(device.path()).await;
        Ok(Self { device: Arc::new(device), over, _server: server })
    }

    async fn resize(&self, size: u64) -> Result<()> {
        let device = Arc::clone(&self.device);
        blocking(move || {
            device.resize(size)?;
            sysfs::reread_partitions(device.path())
        })
        .await
        .map_err(|error| {
            failed(format!("{} cannot be resized", self.device.path().display()), error)
        })
    }

    async fn ended(&mut self) -> Result<()> {
        self.over
            .ended()
            .await
            .map_err(|error| failed(self.device.path().display().to_string(), error))
    }

    async fn disconnect(self) -> Result<()> {
        let device = Arc::clone(&self.device);
        blocking(move || device.disconnect()).await.map_err(|error| {
            failed(format!("{} cannot be ended", self.device.path().display()), error)
        })
    }
}

/// A loop device over a file that FUSE serves.
#[derive(Debug)]
pub(crate) struct Fuse {
    path: PathBuf,
    device: Arc<LoopDevice>,
    /// Our own descriptor of it, to ask for its size.
    file: Arc<File>,
    file_system: FileSystem,
    server: JoinHandle<io::Result<()>>,
}

impl Fuse {
    async fn attach(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let number = wanted.device.as_deref().map(loop_number).transpose()?;
        let read_only = image.geometry().read_only;
        let options = loop_device::Options {
            number,
            block_size: wanted.block_size,
            read_only,
            partitions: true,
            name: format!("rbd:{}", wanted.spec),
        };
        let (file_system, kernel) = FileSystem::new(&format!("rbd:{}", wanted.spec))
            .map_err(|error| failed("no file system by FUSE", error))?;
        let server = tokio::spawn(fuse::serve(kernel, Arc::new(image)));
        let attaching = blocking(move || {
            let file = file_system.open(read_only)?;
            let device = LoopDevice::attach(file.as_fd(), &options)?;
            Ok((file_system, file, device))
        });
        let (file_system, file, device) = match attaching.await {
            Ok(attached) => attached,
            Err(error) => {
                server.abort();
                return Err(match (error.raw_os_error(), &wanted.device) {
                    (Some(16), Some(device)) => {
                        Error::new(Kind::Busy, format!("{} is in use", device.display()))
                    }
                    _ => failed("no loop device", error),
                });
            }
        };
        let path = device.path();
        tune(&path).await;
        let (device, file) = (Arc::new(device), Arc::new(file));
        Ok(Self { path, device, file, file_system, server })
    }

    async fn resize(&self) -> Result<()> {
        let (file, device) = (Arc::clone(&self.file), Arc::clone(&self.device));
        let path = self.path.clone();
        // Asking for the attributes has the kernel take them over, and the device takes its size from there.
        blocking(move || {
            file.metadata()?;
            device.update_size()?;
            sysfs::reread_partitions(&path)
        })
        .await
        .map_err(|error| failed(format!("{} cannot be resized", self.path.display()), error))
    }

    async fn ended(&mut self) -> Result<()> {
        match (&mut self.server).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed("FUSE", error)),
            // It was aborted, or panicked, which was reported.
            Err(_) => pending().await,
        }
    }

    async fn detach(self) -> Result<()> {
        let Self { path, device, file, file_system, server } = self;
        let detached = blocking(move || {
            let detached = device.detach();
            // With these the file goes.
            drop((file, file_system));
            detached
        });
        let detached = detached.await;
        // Whoever still has the device open gets errors from now on.
        server.abort();
        detached.map_err(|error| failed(format!("{} cannot be ended", path.display()), error))
    }
}

/// Which ways there are on this host: the better one first.
pub(crate) fn choose() -> Result<DeviceType> {
    if load_nbd() {
        return nbd();
    }
    if fuse::is_available() && loop_device::is_available() {
        return Ok(DeviceType::Fuse);
    }
    Err(Error::new(Kind::Unsupported, "this kernel has neither nbd nor FUSE with loop devices")
        .with_hint("`modprobe nbd`, or `modprobe fuse` and `modprobe loop`, where the kernel comes with these"))
}

/// How the kernel's NBD client is spoken to.
pub(crate) fn nbd() -> Result<DeviceType> {
    insist_on_nbd()?;
    Ok(match Netlink::open() {
        // Its netlink is of the host's network alone before Linux 6.3, which a container may not have.
        Err(error) if error.kind() == io::ErrorKind::NotFound => DeviceType::Ioctl,
        _ => DeviceType::Nbd,
    })
}

/// Loads the kernel's NBD client if need be, or says that there is none.
pub(crate) fn insist_on_nbd() -> Result<()> {
    if load_nbd() {
        return Ok(());
    }
    Err(Error::new(Kind::Unsupported, "this kernel has no nbd, and `modprobe nbd` did not load it")
        .with_hint(
            "it is one of the kernel's modules (Ubuntu: linux-modules-extra); --device-type fuse does without",
        ))
}

/// Whether the kernel's NBD client is there, loaded now if need be.
fn load_nbd() -> bool {
    load("nbd", sysfs::has_nbd);
    // It is seen before it is ready.
    let deadline = Instant::now() + LOADING;
    while sysfs::is_nbd_coming() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    sysfs::has_nbd()
}

/// Loads a module of the kernel's unless it is there.
pub(crate) fn load(module: &str, is_there: fn() -> bool) {
    if is_there() {
        return;
    }
    // One after the other: of several that load it at once, one is told that it is done, and the others that it could
    // not be, before it is.
    let turn = File::open("/sys/module").ok().filter(|turn| take_turn(turn, is_there));
    if !is_there() {
        let mut modprobe = std::process::Command::new("modprobe");
        let _ = modprobe.arg(module).stderr(std::process::Stdio::null()).status();
    }
    drop(turn);
}

/// Waits for those who load it already. False if it is there then, or if they take too long.
fn take_turn(turn: &File, is_there: fn() -> bool) -> bool {
    let deadline = Instant::now() + TURN;
    while turn.try_lock().is_err() {
        if is_there() || Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

fn netlink() -> Result<Netlink> {
    Netlink::open().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::new(Kind::Unsupported, "this kernel has no nbd")
            .with_hint("`modprobe nbd` loads the module where the kernel comes with it"),
        _ => failed("the kernel's NBD client", error),
    })
}

fn server(wanted: &Wanted, image: ImageDevice) -> Result<Server> {
    let exports = Exports::new(vec![Export::new(wanted.spec.as_str(), image)]);
    let exports = exports
        .map_err(|error| Error::new(Kind::Invalid, wanted.spec.as_str()).with_source(error))?;
    Ok(Server::new(exports))
}

/// Pairs of sockets, of which the server has one end each. These are the others.
fn sockets(server: &Server, count: usize) -> Result<Vec<UnixStream>> {
    let pairs = (0..count.max(1)).map(|_| {
        let (ours, kernel) = UnixStream::pair()?;
        for socket in [&ours, &kernel] {
            // With less, too, all is right, if not as fast.
            if let Err(error) = set_socket_send_buffer_size_force(socket, SEND_BUFFER) {
                tracing::debug!(%error, "the buffer of a connection with the kernel");
            }
        }
        server.adopt(ours, BytesMut::new())?;
        Ok(kernel)
    });
    pairs.collect::<io::Result<_>>().map_err(|error| failed("sockets for the kernel", error))
}

/// Sets up the device's queue. For some of that the kernel waits until nothing is in flight (`blk_mq_freeze_queue`),
/// such as what udev reads of a device as soon as it is there: we serve that meanwhile. If the cluster does not, the
/// rest is done when it does.
pub(crate) async fn tune(device: &Path) {
    let device = device.to_owned();
    let tuned = blocking(move || {
        sysfs::tune(&device, LONGEST_REQUEST);
        Ok(())
    });
    // What fails of it is said there.
    if tokio::time::timeout(TUNE, tuned).await.is_err() {
        tracing::warn!("the device's queue waits for what is in flight to be set up");
    }
}

fn nbd_index(device: &Path) -> Result<u32> {
    sysfs::index(device).filter(|_| device.starts_with("/dev")).ok_or_else(|| {
        let what = format!("invalid device path: {} (expected /dev/nbd{{num}})", device.display());
        Error::new(Kind::Invalid, what)
    })
}

fn loop_number(device: &Path) -> Result<u32> {
    let number = device.to_str().and_then(|path| path.strip_prefix("/dev/loop")?.parse().ok());
    number.ok_or_else(|| {
        let what = format!("invalid device path: {} (expected /dev/loop{{num}})", device.display());
        Error::new(Kind::Invalid, what)
    })
}

/// Does what blocks on another thread: it may need what this one serves.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

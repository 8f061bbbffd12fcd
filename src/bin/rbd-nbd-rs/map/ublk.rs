//! Block devices of the kernel's ublk driver: one kind of [`Attached`](super::attached::Attached).
//!
//! The driver keeps a device whose process is gone until another takes it over, however long that takes, and asks that
//! again what was in flight. It has no place for a cookie, but one for a mark of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ceph_native::attach::ImageDevice;
use ceph_native::error::{Error, Kind, Result};
use nbd::device::Device;
use nbd::kernel::sysfs;
use nbd::ublk::{Connect, Control, Serving, index, is_available, serve};

use super::attached::{DETACH, LONGEST_REQUEST, OFFER_PAUSE, Wanted, blocking, load, tune};
use super::state::{DeviceType, failed};

/// How long a device is offered somebody to serve it: with every tag in use, the driver misses the process before only
/// by the time a request may take, which is 30 s unless the queue was set up.
const OFFER: Duration = Duration::from_secs(40);

/// A device of the driver's.
#[derive(Debug)]
pub(crate) struct Ublk {
    path: PathBuf,
    index: u32,
    serving: Serving,
    /// Somebody else has stopped it.
    is_stopped: bool,
}

impl Ublk {
    pub(crate) async fn add(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let named = wanted.device.as_deref().map(number).transpose()?;
        let (told, geometry) = (wanted.clone(), image.geometry());
        let added = blocking(move || {
            Control::open()?.add(&Connect {
                index: named,
                geometry,
                block_size: told.block_size,
                trim: told.trim,
                longest: LONGEST_REQUEST,
                cookie: &told.cookie,
            })
        });
        let index = added.await.map_err(|error| not_added(wanted, error))?;
        let begun = begin(index, image, move |control| control.start(index).map(drop)).await;
        let serving = match begun {
            Ok(serving) => serving,
            Err(error) => {
                let _ = blocking(move || Control::open()?.delete(index)).await;
                return Err(failed("the kernel does not start a device", error));
            }
        };
        let path = nbd::ublk::path(index);
        tune(&path).await;
        Ok(Self { path, index, serving, is_stopped: false })
    }

    pub(crate) async fn take_over(wanted: &Wanted, image: ImageDevice) -> Result<Self> {
        let Some(path) = wanted.device.clone() else {
            return Err(Error::new(Kind::Invalid, "must specify device to attach"));
        };
        let index = number(&path)?;
        let not_taken = |error| failed(format!("{} cannot be taken over", path.display()), error);
        let deadline = tokio::time::Instant::now() + OFFER;
        loop {
            match blocking(move || Control::open()?.begin_recovery(index)).await {
                Ok(()) => break,
                // Somebody has begun before, and died: it can be begun only once, and is to be gone on with.
                Err(error) if error.raw_os_error() == Some(22) => break,
                // It has not noticed yet that the process before is gone.
                Err(error)
                    if error.raw_os_error() == Some(16)
                        && tokio::time::Instant::now() < deadline => {}
                Err(error) => return Err(not_taken(error)),
            }
            tokio::time::sleep(OFFER_PAUSE).await;
        }
        let size = image.geometry().size;
        let serving = begin(index, image, move |control| control.end_recovery(index)).await;
        let serving = serving.map_err(not_taken)?;
        let ublk = Self { path, index, serving, is_stopped: false };
        if sysfs::size(&ublk.path) != Some(size / 512 * 512)
            && let Err(error) = ublk.resize()
        {
            tracing::error!(%error, "the image has a new size");
        }
        Ok(ublk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Linux can before 6.16 not, and we do not know how after that.
    #[expect(clippy::unused_self, reason = "as the others")]
    pub(crate) fn resize(&self) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "a device of ublk keeps the size that it was made with")
            .with_hint("unmap it, and map the image again"))
    }

    /// Returns when somebody else has stopped the device, of which nothing is left then. May be dropped and called
    /// again.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        let (index, path) = (self.index, self.path.display().to_string());
        if !self.is_stopped {
            let ended = self.serving.ended().await;
            ended.map_err(|error| failed(path.clone(), error))?;
            self.is_stopped = true;
        }
        let deleted = blocking(move || Control::open()?.delete(index)).await;
        deleted.map_err(|error| failed(path, error))
    }

    pub(crate) async fn end(self) -> Result<()> {
        let Self { path, index, mut serving, is_stopped } = self;
        let ended = async {
            // Without a way to the driver nothing fails yet; it waits for what is in flight.
            drop(blocking(Control::open).await?);
            serving.fail();
            blocking(move || Control::open()?.stop(index)).await?;
            // Before Linux 6.9 it forgets the device only when nobody has it open.
            if !is_stopped {
                let _ = serving.ended().await;
            }
            blocking(move || Control::open()?.delete(index)).await
        };
        ended.await.map_err(|error| failed(format!("{} cannot be ended", path.display()), error))
    }

    pub(crate) async fn leave(self) -> bool {
        self.serving.leave(DETACH).await
    }
}

/// Serves a device, and has the kernel begin with it: whatever that then asks for, it waits for.
async fn begin(
    index: u32,
    image: ImageDevice,
    begin: impl FnOnce(&mut Control) -> io::Result<()> + Send + 'static,
) -> io::Result<Serving> {
    let mut serving = serve(index, Arc::new(image))?;
    let begun = tokio::select! {
        begun = blocking(move || begin(&mut Control::open()?)) => begun,
        // It would wait for somebody to serve the device.
        ended = serving.ended() => ended.and_then(|()| Err(io::ErrorKind::BrokenPipe.into())),
    };
    begun.map(|()| serving)
}

/// Loads the driver if need be, or says that there is none.
pub(crate) fn insist() -> Result<DeviceType> {
    load("ublk_drv", is_available);
    if is_available() {
        return Ok(DeviceType::Ublk);
    }
    Err(Error::new(
        Kind::Unsupported,
        "this kernel has no ublk, and `modprobe ublk_drv` did not load it",
    )
    .with_hint("it comes with Linux 6.5 and later; without --device-type, what there is is taken"))
}

/// Whether a device is there that was made with this cookie. Who may not ask the driver sees whether there is one.
pub(crate) fn is_known_by(number: u32, cookie: &str) -> bool {
    match Control::open().and_then(|mut control| control.known(number)) {
        Ok(known) => known.is_some_and(|known| known.is_by(cookie)),
        Err(_) => sysfs::size(&nbd::ublk::path(number)).is_some(),
    }
}

/// Ends a device that nobody serves: what waits for somebody fails.
pub(crate) fn end_unserved(device: &Path) -> Result<()> {
    let number = number(device)?;
    let end = || {
        let mut control = Control::open()?;
        control.stop(number)?;
        control.delete(number)
    };
    end().map_err(|error| failed(format!("{} cannot be ended", device.display()), error))
}

/// Ends a device of which nothing is noted here: whoever made it died before that, or is another program.
pub(crate) fn end_unknown(device: &Path) -> Result<()> {
    let known =
        Control::open().and_then(|mut control| control.known(index(device).unwrap_or(u32::MAX)));
    let known = known.map_err(|error| failed(device.display().to_string(), error))?;
    let serves = |pid: &u32| Path::new("/proc").join(pid.to_string()).exists();
    match known {
        None => Ok(()),
        Some(known) => match known.pid().filter(serves) {
            Some(pid) if known.is_started() => {
                let what = format!("{} is served by process {pid}", device.display());
                Err(Error::new(Kind::Busy, what))
            }
            _ => end_unserved(device),
        },
    }
}

fn number(device: &Path) -> Result<u32> {
    index(device).filter(|_| device.starts_with("/dev")).ok_or_else(|| {
        let what =
            format!("invalid device path: {} (expected /dev/ublkb{{num}})", device.display());
        Error::new(Kind::Invalid, what)
    })
}

fn not_added(wanted: &Wanted, error: io::Error) -> Error {
    match (error.raw_os_error(), error.kind(), &wanted.device) {
        (Some(17), _, Some(device)) => {
            Error::new(Kind::Busy, format!("{} is in use", device.display()))
        }
        (_, io::ErrorKind::Unsupported, _) => {
            Error::new(Kind::Unsupported, "this kernel's ublk cannot do all that it takes")
                .with_hint("Linux 6.5 and later can")
        }
        (_, io::ErrorKind::PermissionDenied, _) => failed("no ublk", error)
            .with_hint("io_uring may be forbidden: `sysctl kernel.io_uring_disabled`"),
        _ => failed("the kernel does not make a device", error),
    }
}

//! The process that serves a mapping, from the image's opening until the device ends or is left to somebody else.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use ceph_native::attach::ImageDevice;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Context as _, Error, Kind, Result};
use ceph_native::image::admin::address_text;
use ceph_native::image::{Image, OpenOptions, Version};
use ceph_native::telemetry::Telemetry;
use nbd::kernel::sysfs;
use proto::rbd::names;
use proto::types::SnapId;
use rustix::mm::MlockAllFlags;
use rustix::process::configure_io_flusher_behavior;
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

use super::attached::{Attached, Wanted, blocking};
use super::control::{self, Asked, Command, Handed};
use super::state::{self, DeviceType, Held, Mapping, failed};
use super::{Options, quiesce, ublk, unmap, users};
use crate::daemon;
use crate::spec::Spec;

/// How often the image's size is compared with the device's.
const LOOK: Duration = Duration::from_millis(250);

/// How much the log may grow to, in bytes.
const LOG_BYTES: u64 = 1 << 20;

/// For how long a device may be open elsewhere when it is to be ended: udev looks into it after every change.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long an answer takes to go out.
const ANSWER: Duration = Duration::from_millis(20);

/// How long the process before may take to hand over the device: longer than it waits for what is in flight.
const HAND_OVER: Duration = Duration::from_secs(15);

/// How long closing the image may take when its device has ended: an OSD may be slow, or be replaced by another. Then
/// the cluster has forgotten us, too (`osd_client_watch_timeout`).
const CLOSE: Duration = Duration::from_secs(30);

/// How long it may take when nobody is to be waited for, or when somebody waits to serve the device.
const CLOSE_AT_ONCE: Duration = Duration::from_secs(2);

/// How long what the process before listens on may be in the way.
const IN_THE_WAY: Duration = Duration::from_secs(2);

/// What a daemon is to do.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) options: Options,
    pub(crate) spec: Spec,
    pub(crate) wanted: Wanted,
    /// Where the device comes from.
    pub(crate) from: From,
    /// What to write into the state.
    pub(crate) mapping: Mapping,
}

/// How serving a device ended.
#[derive(Debug)]
enum End {
    InOrder,
    /// The device is somebody else's to serve, who fences this process off; not before it is gone, if it holds the
    /// mapping still.
    Left(Option<Held>),
    /// The same, and all that was asked of this process is done: it need not be fenced off once the image is closed.
    LeftDone(Box<(Held, Mapping)>),
    /// Whatever state the cluster is in.
    ByForce,
}

/// Where a device comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// It is to be made.
    Nothing,
    /// It waits for somebody to serve it.
    Waiting,
    /// Somebody serves it, who is to hand it over.
    Running,
}

impl Daemon {
    /// Makes or takes the device, reports it by `ready`, and serves it until it ends.
    pub(crate) async fn run(
        self,
        cluster: &Cluster,
        ready: impl FnOnce(&Mapping) -> io::Result<()>,
    ) -> Result<()> {
        if self.from == From::Running {
            return self.replace(cluster, ready).await;
        }
        // Nobody is fenced off who still serves it.
        let held = Held::take(&self.wanted.cookie)?;
        let opened = match self.fence(cluster, None).await {
            Ok(()) => unless_abandoned(self.from, self.open(cluster)).await,
            Err(error) => Err(error),
        };
        let image = match opened {
            Ok(image) => image,
            Err(error) => {
                self.give_up(held);
                return Err(error);
            }
        };
        let device = ImageDevice::new(image.clone());
        let made = match self.from {
            From::Nothing => Attached::new(&self.wanted, device).await,
            From::Waiting | From::Running => match self.claim(&image, &held).await {
                Ok(()) => Attached::take_over(&self.wanted, device).await,
                Err(error) => Err(error),
            },
        };
        let ended = match made {
            Ok(attached) => self.serve(&image, attached, held, ready).await,
            Err(error) => {
                self.give_up(held);
                Err(error)
            }
        };
        close(image, ended).await
    }

    /// A device that is there waits for somebody else, if it is known what it is.
    fn give_up(&self, held: Held) {
        if self.from == From::Nothing || !held.is_known() {
            held.remove();
        }
    }

    /// Takes the device from a process that serves it until then.
    async fn replace(
        self,
        cluster: &Cluster,
        ready: impl FnOnce(&Mapping) -> io::Result<()>,
    ) -> Result<()> {
        let image = self.open(cluster).await?;
        let ended = match self.take_from_running(cluster, &image).await {
            Ok((attached, held)) => self.serve(&image, attached, held, ready).await,
            Err(error) => Err(error),
        };
        close(image, ended).await
    }

    async fn take_from_running(
        &self,
        cluster: &Cluster,
        image: &Image,
    ) -> Result<(Attached, Held)> {
        let found = state::find(&self.wanted.cookie)?
            .ok_or_else(|| unmap::not_mapped(&self.wanted.cookie))?;
        let (own, control) = (own_address(image).await, found.control());
        let client = own.clone();
        let ask = move || Ok(control::ask_to_hand_over(&control, client, HAND_OVER));
        let asked = blocking(ask).await.map_err(|error| failed("a thread", error))?;
        let device = ImageDevice::new(image.clone());
        match asked {
            Ok(handed) => {
                // What it closes yet does not keep us from serving.
                let attached = Attached::adopt(&self.wanted, device, handed).await?;
                Ok((attached, Held::take_soon(&self.wanted.cookie, HAND_OVER).await?))
            }
            // It is of a version that does not know how, or what is in flight does not end.
            Err(error) => {
                tracing::warn!(%error, "the device has to wait for a moment");
                // It may be about to leave, or be gone.
                let left = blocking(move || Ok(unmap::leave(&found))).await;
                tracing::debug!(?left, "asked to leave");
                let held = Held::take_soon(&self.wanted.cookie, HAND_OVER).await?;
                self.fence(cluster, own.as_deref()).await?;
                self.claim(image, &held).await?;
                Ok((Attached::take_over(&self.wanted, device).await?, held))
            }
        }
    }

    /// Makes sure that nothing more comes of the process before, unless that ended in good order: what it had sent when
    /// it died could otherwise be carried out after what is written from now on. `own` is our own address: it is in the
    /// state if the process before had handed over all it had, and only its answer was lost.
    async fn fence(&self, cluster: &Cluster, own: Option<&str>) -> Result<()> {
        let before = state::find(&self.wanted.cookie)?.filter(|_| self.from != From::Nothing);
        // The driver goes on with a device of which nobody here knows any more who has served it.
        if before.is_none()
            && self.from != From::Nothing
            && self.wanted.device_type == DeviceType::Ublk
            && !self.options.force
        {
            return Err(Error::new(Kind::Invalid, "it is not known who has served the device")
                .with_hint("--force takes it without fencing off whoever that was"));
        }
        let client = before.and_then(|found| found.mapping.client);
        let Some(address) = client.filter(|client| own != Some(client)) else { return Ok(()) };
        let command =
            format!(r#"{{"prefix": "osd blocklist", "blocklistop": "add", "addr": "{address}"}}"#);
        let fenced = cluster.command(command).await.context("fencing off the process before");
        match fenced {
            Ok(_) => {}
            Err(error) if self.options.force => tracing::warn!(%error, "going on all the same"),
            Err(error) => return Err(error.with_hint("--force goes on without")),
        }
        // Whatever is sent from now on makes the OSDs wait for this map.
        cluster.refresh_map().await
    }

    /// Notes who serves the device from now on: should this process die before it has written more, it is the one to be
    /// fenced off.
    async fn claim(&self, image: &Image, held: &Held) -> Result<()> {
        let connector = sysfs::pid(&self.mapping.device);
        let client = own_address(image).await;
        held.write(&Mapping { client, connector, ..self.mapping.clone() })
    }

    async fn open(&self, cluster: &Cluster) -> Result<Image> {
        let pool = self.spec.open_pool(cluster).await?;
        let version = match (&self.spec.snap, self.options.snap_id) {
            (Some(snap), _) => Version::Snapshot(snap.clone()),
            (None, Some(id)) => Version::SnapshotId(SnapId(id)),
            (None, None) => Version::Head,
        };
        let Options { read_only, exclusive, .. } = self.options;
        let options = OpenOptions { read_only, version, exclusive, watched: true };
        Image::open(&pool, &self.spec.image, &options).await
    }

    async fn serve(
        self,
        image: &Image,
        attached: Attached,
        held: Held,
        ready: impl FnOnce(&Mapping) -> io::Result<()>,
    ) -> Result<End> {
        let Self { options, mut mapping, from, .. } = self;
        image.pool().name().clone_into(&mut mapping.pool);
        mapping.read_only = image.is_read_only();
        mapping.client = own_address(image).await;
        let telemetry = Telemetry::new();
        telemetry.cluster(image.cluster());
        telemetry.image(image);
        attached.path().clone_into(&mut mapping.device);
        mapping.pid = std::process::id();
        mapping.connector = sysfs::pid(&mapping.device);
        let deadline = tokio::time::Instant::now() + IN_THE_WAY;
        let told = loop {
            let config = image.cluster().config();
            let said = |text: &str| {
                tracing::info!("{}", text.trim());
                Ok(())
            };
            match daemon::tell(&telemetry, &config, options.metrics, said).await {
                // What the process before listens on may be in the way, for a moment.
                Err(_) if from != From::Nothing && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                // The device comes first.
                Err(error) if from != From::Nothing => {
                    tracing::warn!(%error, "nobody is told how it is");
                    break Ok(Vec::new());
                }
                told => break told,
            }
        };
        let prepared = told.and_then(|telling| {
            held.write(&mapping)?;
            let commands = control::serve(&held.control());
            let commands = commands.map_err(|error| failed("the control socket", error))?;
            ready(&mapping).map_err(|error| failed("whoever asked for the device", error))?;
            if !options.foreground {
                retire(&held).map_err(|error| failed("the background", error))?;
            }
            Ok((commands, telling))
        });
        let (commands, _telling) = match prepared {
            Ok(prepared) => prepared,
            Err(error) if from == From::Nothing => {
                let _ = attached.end().await;
                held.remove();
                return Err(error);
            }
            // Somebody uses the device: it waits for who attaches it next.
            Err(error) => {
                let _ = attached.leave().await;
                return Err(error);
            }
        };
        tracing::info!(device = %mapping.device.display(), image = image.spec(), "mapped");
        if options.quiesce && !image.is_read_only() {
            let device = mapping.device.clone();
            tokio::spawn(quiesce::serve(image.pauses(), device, options.quiesce_hook));
        }
        watch(image, attached, (held, mapping), commands).await
    }
}

/// Does what waits for the cluster before there is a device, for as long as somebody waits for that: one who was
/// interrupted would otherwise leave a process that keeps the mapping's name from whoever tries again. A device that is
/// there needs somebody to serve it all the same.
pub(crate) async fn unless_abandoned<T>(
    from: From,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    if from != From::Nothing || !super::is_child() {
        return work.await;
    }
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let Ok(asked) = stdout.and_then(pipe::Sender::from_owned_fd) else {
        return work.await;
    };
    tokio::select! {
        done = work => done,
        // A pipe whose other end is gone is an error.
        _ = asked.ready(Interest::ERROR) => {
            Err(Error::new(Kind::Os(32), "nobody waits for the device any more"))
        }
    }
}

/// Keeps this process from being in the way of the memory and the storage that it serves: it may use the last reserves
/// of memory and never waits for pages to be written, is not swapped out, and is killed last.
pub(crate) fn protect() {
    if let Err(error) = configure_io_flusher_behavior(true) {
        tracing::info!(%error, "PR_SET_IO_FLUSHER");
    }
    // What is there now, as a whole; what comes later, as it is touched: threads' stacks are large and mostly empty.
    let later = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    let locked =
        rustix::mm::mlockall(MlockAllFlags::CURRENT).and_then(|()| rustix::mm::mlockall(later));
    if let Err(error) = locked {
        tracing::info!(%error, "memory cannot be locked");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::info!(%error, "the OOM killer may choose this process");
    }
}

/// Lets go of the terminal, the folder and the files of whoever asked for the device. What is said goes to the log.
fn retire(held: &Held) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(held.log())?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    std::env::set_current_dir("/")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&log)?;
    Ok(())
}

/// Serves the device until it ends.
async fn watch(
    image: &Image,
    mut attached: Attached,
    (held, mapping): (Held, Mapping),
    mut commands: tokio::sync::mpsc::Receiver<Asked>,
) -> Result<End> {
    let (mut terminate, mut interrupt) =
        (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
    let (mut size, mut complained) = (image.size(), false);
    let mut look = tokio::time::interval(LOOK);
    let ended = loop {
        let asked = tokio::select! {
            ended = attached.ended() => break ended,
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            Some(asked) = commands.recv() => Some(asked),
            _ = look.tick() => {
                bound_log(&held);
                let new = image.size();
                if new != size {
                    match attached.resize(new).await {
                        Ok(()) => (size, complained) = (new, false),
                        // It is tried again at the next look.
                        Err(error) if !complained => {
                            tracing::error!(%error, "the image has a new size");
                            complained = true;
                        }
                        Err(_) => {}
                    }
                }
                continue;
            }
        };
        let Some((command, answer)) = asked else {
            // A signal is sent by who cannot be told that the device is in use. Then it had better wait for somebody
            // else than lose what is not written yet.
            match flush_unused(attached.path()).await {
                Ok(()) => break attached.end().await,
                Err(error) => tracing::warn!(%error, "asked to end by a signal"),
            }
            match attached.leave().await {
                Ok(clean) => return Ok(left(held, mapping, clean)),
                Err((back, error)) => {
                    tracing::error!(%error, "the signal is ignored");
                    attached = back;
                }
            }
            continue;
        };
        let allowed = match command {
            Command::Unmap => flush_unused(attached.path()).await.map(|()| End::InOrder),
            Command::Force => Ok(End::ByForce),
            Command::HandOver { client } => match attached.hand_over().await {
                Ok(handed) => {
                    let what = "requests in flight did not end in time";
                    let ready = match handed.is_empty() {
                        true => Err(Error::new(Kind::TimedOut, what)),
                        // From now on it is the other one who writes.
                        false => held.write(&Mapping { client, ..mapping }).map(|()| handed),
                    };
                    tell(answer, ready).await;
                    return Ok(End::Left(None));
                }
                Err((back, error)) => {
                    attached = back;
                    Err(error)
                }
            },
            Command::Detach => match attached.leave().await {
                Ok(clean) => {
                    tell(answer, Ok(Vec::new())).await;
                    return Ok(left(held, mapping, clean));
                }
                Err((back, error)) => {
                    attached = back;
                    Err(error)
                }
            },
        };
        let end = match allowed {
            Ok(end) => end,
            Err(error) => {
                tell(answer, Err(error)).await;
                continue;
            }
        };
        let ended = attached.end().await;
        forget(held, &mapping, &ended);
        let told = match &ended {
            Ok(()) => Ok(Vec::new()),
            Err(error) => Err(Error::new(error.kind(), error.to_string())),
        };
        tell(answer, told).await;
        return ended.map(|()| end);
    };
    forget(held, &mapping, &ended);
    ended.map(|()| End::InOrder)
}

/// Forgets a mapping whose device has ended. One that could not be ended, and is there still, is for who attaches it
/// next, or ends it.
fn forget(held: Held, mapping: &Mapping, ended: &Result<()>) {
    if ended.is_ok() || !unmap::is_there(mapping) {
        held.remove();
    }
}

/// Closes the image, so that nobody takes it for being in use until the cluster misses us.
async fn close(image: Image, ended: Result<End>) -> Result<()> {
    let spec = image.spec();
    let limit = if matches!(ended, Ok(End::InOrder)) { CLOSE } else { CLOSE_AT_ONCE };
    let closed = tokio::time::timeout(limit, image.close()).await;
    if closed.is_err() && !matches!(ended, Ok(End::ByForce)) {
        tracing::warn!(image = spec, "it seems to be in use until the cluster misses this process");
    }
    match ended? {
        // Only now: who is gone without having given back the exclusive lock would keep it from others for as long.
        End::LeftDone(left) if closed.is_ok() => {
            let (held, mapping) = *left;
            held.write(&Mapping { client: None, ..mapping })
        }
        End::Left(held) => {
            drop(held);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Notes that the device is left to whoever attaches it next, who finds it by its state. If all that was asked of this
/// process is done, nobody needs to be kept from what it might still do.
fn left(held: Held, mapping: Mapping, clean: bool) -> End {
    tracing::info!(clean, "left the device to whoever attaches it next");
    match clean {
        true => End::LeftDone(Box::new((held, mapping))),
        false => End::Left(Some(held)),
    }
}

/// The address by which the cluster knows this process, if it writes: of one that only reads nothing can come later,
/// and its key may not be allowed to fence anybody off.
async fn own_address(image: &Image) -> Option<String> {
    if image.is_read_only() {
        return None;
    }
    let watchers = image.pool().watchers(&names::header(image.id())).await.ok()?;
    let id = image.cluster().global_id();
    let ours = watchers.into_iter().find(|watcher| watcher.name.num as u64 == id)?;
    Some(address_text(&ours.addr))
}

/// Answers, and gives the answer the time to go out: this process may be about to end.
async fn tell(
    answer: tokio::sync::oneshot::Sender<Result<Vec<Handed>>>,
    result: Result<Vec<Handed>>,
) {
    let _ = answer.send(result);
    tokio::time::sleep(ANSWER).await;
}

/// Writes out what is cached of a device that nobody uses, or says who does.
async fn flush_unused(device: &std::path::Path) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    let device: PathBuf = device.to_owned();
    loop {
        let looked_at = device.clone();
        let users = blocking(move || Ok(users::of(&looked_at, 0))).await.unwrap_or_default();
        if users.is_empty() {
            break;
        }
        // What is mounted stays so, and what is open may be closed soon.
        let lasting = users.iter().any(|user| !user.starts_with("open"));
        if lasting || std::time::Instant::now() >= deadline {
            let what = format!("{} is in use: {}", device.display(), users.join(", "));
            return Err(Error::new(Kind::Busy, what));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let flushed = device.clone();
    blocking(move || File::options().read(true).open(flushed)?.sync_all())
        .await
        .map_err(|error| failed(format!("{} cannot be flushed", device.display()), error))
}

fn bound_log(held: &Held) {
    let log = held.log();
    if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_BYTES) {
        let _ = File::options().write(true).open(log).and_then(|file| file.set_len(0));
    }
}

fn catch(kind: SignalKind) -> Result<tokio::signal::unix::Signal> {
    signal(kind).map_err(|error| Error::new(Kind::Os(5), "signals").with_source(error))
}

/// The cookie that the kernel has of a device, which has to be that of whoever takes it over.
pub(crate) fn check_cookie(device: &std::path::Path, cookie: &str) -> Result<()> {
    let is_its = match nbd::ublk::index(device) {
        Some(number) => ublk::is_known_by(number, cookie),
        None => sysfs::cookie(device).is_none_or(|its| its == cookie),
    };
    match is_its {
        true => Ok(()),
        false => Err(Error::new(Kind::Invalid, "cookie mismatch")),
    }
}

/// The state of a mapping, as far as it is known before it is made.
pub(crate) fn mapping(options: &Options, spec: &Spec, wanted: &Wanted) -> Mapping {
    let variables = ["CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING"];
    Mapping {
        cookie: wanted.cookie.clone(),
        device_type: wanted.device_type,
        device: wanted.device.clone().unwrap_or_default(),
        pool: spec.pool.clone().unwrap_or_default(),
        namespace: spec.namespace.clone(),
        image: spec.image.clone(),
        snap: spec.snap.clone().unwrap_or_default(),
        snap_id: options.snap_id,
        read_only: options.read_only,
        pid: std::process::id(),
        connector: None,
        boot: state::boot(),
        client: None,
        arguments: Vec::new(),
        directory: std::env::current_dir().unwrap_or_default(),
        environment: variables
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)))
            .collect(),
    }
}

//! `map` and its kin: images as block devices of this host, each served by a process of its own.

mod attached;
mod control;
mod daemon;
mod grow;
mod list;
mod quiesce;
mod state;
mod ublk;
mod unmap;
mod users;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ceph_native::cluster::Cluster;
use ceph_native::config::{self, Config};
use ceph_native::error::{Error, Kind, Result};
use clap::Subcommand;
use nbd::kernel::sysfs;
use rustix::thread::CapabilitySet;

use self::attached::Wanted;
use self::daemon::{Daemon, From};
pub(crate) use self::grow::Growing;
use self::state::{DeviceType, Found, failed};
use crate::output::print;
use crate::spec::{SnapArgs, Spec};

/// What the processes that serve are called, so that `ps -C rbd-nbd` and Ceph's own `rbd` find them.
const PROCESS: &str = "rbd-nbd";

/// Set for a process that serves in the background: its standard output is what it reports to.
const CHILD: &str = "RBD_NBD_RS_CHILD";

/// Connections per device unless asked otherwise. One thread serves them all, and of a device with several the kernel
/// gives up the connection of every request that takes 30 s, as in a cluster that waits for its OSDs.
const CONNECTIONS: usize = 1;
const CONNECTIONS_MOST: usize = 64;

/// What the threads for work that blocks are called: as librbd's, which people and scripts count.
const THREADS: &str = "io_context_pool";
const THREADS_MOST: u64 = 64;

/// Their stacks, in bytes: what is used of them takes memory, and less than a huge page is never given as a whole.
const STACK: usize = 512 << 10;

/// Added to the words of a process that takes a device from one that serves it still.
const REPLACE: &str = "--replace";

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    Map(Map),
    Attach(Attach),
    Unmap(unmap::Unmap),
    Detach(unmap::Detach),
    Upgrade(Upgrade),
    #[command(visible_alias = "showmapped")]
    ListMapped(list::ListMapped),
    #[command(name = quiesce::VERB, hide = true)]
    HoldStill(quiesce::HoldStill),
}

/// Makes an image a block device of this host, and prints the device.
///
/// The device is served by a process in the background, one per device. It takes CAP_SYS_ADMIN.
#[derive(clap::Args, Clone, Debug)]
#[command(
    args_override_self = true,
    after_help = "Examples:
  rbd-nbd-rs map rbd/disk
  mkfs.ext4 /dev/nbd0; mount /dev/nbd0 /mnt
  rbd-nbd-rs map rbd/disk@monday --read-only --show-cookie
  rbd-nbd-rs unmap rbd/disk"
)]
pub(crate) struct Map {
    #[command(flatten)]
    options: Options,
}

/// Takes over a device whose process is gone.
///
/// The device has waited meanwhile (for --reattach-timeout); requests in flight are carried out as if nothing had been.
#[derive(clap::Args, Clone, Debug)]
#[command(args_override_self = true)]
pub(crate) struct Attach {
    #[command(flatten)]
    options: Options,
    /// Take over every device that waits.
    #[arg(long)]
    all: bool,
}

/// Replaces the processes that serve devices by this program, one after the other.
///
/// The new one opens the image first, then takes the kernel's connections from the old one, which loses no request and
/// takes a fraction of a second. A device of ublk waits for as long as the new one takes to open the image. Devices
/// over FUSE cannot be handed over.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Upgrade {
    /// Devices, or what is mapped there.
    #[arg(value_name = "DEVICE|SPEC", required_unless_present = "all")]
    targets: Vec<String>,
    /// All of them.
    #[arg(long)]
    all: bool,
}

/// How an image is mapped: `rbd-nbd`'s options, and some more.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    image: SnapArgs,
    /// The device to use: /dev/nbd{num}, /dev/loop{num} over FUSE, or /dev/ublkb{num}.
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
    /// What makes the block device [default: nbd where the kernel has it (ioctl where it has no netlink), else fuse].
    ///
    /// ublk (Linux 6.5 and later) takes the least CPU, and has its limits: docs/map.md.
    #[arg(long, value_name = "TYPE")]
    device_type: Option<DeviceType>,
    /// Refuse writes.
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Take the exclusive lock at once, and keep it whoever asks.
    #[arg(long)]
    pub(crate) exclusive: bool,
    /// The snapshot, by number.
    #[arg(long, value_name = "ID")]
    pub(crate) snap_id: Option<u64>,
    /// Don't pass on discards.
    #[arg(long)]
    notrim: bool,
    /// Give up a connection on which a request takes longer; 0 waits for ever. (Not with ublk.)
    #[arg(long, value_name = "SECONDS", default_value_t = 0, alias = "timeout")]
    io_timeout: u64,
    /// How long the device waits for its process to come back before requests fail. (With ublk it waits for ever.)
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    reattach_timeout: u64,
    /// Answer Prometheus at http://ADDRESS:PORT/metrics.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Ignored: it always is, as with Ceph 18's.
    #[arg(long, hide = true)]
    try_netlink: bool,
    /// Ignored: devices are made as they are needed.
    #[arg(long = "nbds_max", value_name = "COUNT", hide = true)]
    nbds_max: Option<u32>,
    /// Ignored: partitions are made as they are found.
    #[arg(long = "max_part", value_name = "COUNT", hide = true)]
    max_part: Option<u8>,
    /// Connections of the kernel to the process that serves the device. (With ublk there is one.)
    #[arg(long, value_name = "COUNT")]
    num_connections: Option<usize>,
    /// The logical block size, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    block_size: u32,
    /// Freeze what is mounted from the device while somebody takes a snapshot.
    #[arg(long)]
    pub(crate) quiesce: bool,
    /// Call this in place of freezing, with the device and `quiesce` or `unquiesce`.
    #[arg(long, value_name = "PATH")]
    pub(crate) quiesce_hook: Option<PathBuf>,
    /// What the device is known by, to be named when it is taken over [default: a random UUID].
    #[arg(long)]
    cookie: Option<String>,
    /// Print the cookie, too.
    #[arg(long)]
    show_cookie: bool,
    /// Not built yet.
    #[arg(long, value_name = "FORMAT", hide = true)]
    encryption_format: Vec<String>,
    /// Not built yet.
    #[arg(long, value_name = "PATH", hide = true)]
    encryption_passphrase_file: Vec<PathBuf>,
    /// attach: insist neither on the cookie nor on fencing off the process before.
    #[arg(long, hide = true)]
    pub(crate) force: bool,
    /// attach: from a process that serves it still.
    #[arg(long, hide = true)]
    replace: bool,
    /// Serve the device in this process, in the foreground.
    #[arg(short, long)]
    pub(crate) foreground: bool,
}

/// Carries out a verb. Only those that serve a device speak to the cluster.
pub(crate) fn run(verb: Verb, ceph: &config::Args) -> Result<()> {
    match verb {
        Verb::Map(map) => map_or_attach(map.options, From::Nothing, ceph),
        Verb::Attach(attach) if attach.all => attach_all(),
        Verb::Attach(attach) => attach.run(ceph),
        Verb::Unmap(unmap) => unmap.run(),
        Verb::Detach(detach) => detach.run(),
        Verb::Upgrade(upgrade) => upgrade.run(),
        Verb::ListMapped(list) => list.run(),
        Verb::HoldStill(hold) => hold.run(),
    }
}

fn map_or_attach(options: Options, from: From, ceph: &config::Args) -> Result<()> {
    options.check()?;
    let config = Config::load(ceph, &config::Process)
        .map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
    let mut spec = options.image.spec()?;
    if spec.image.is_empty() {
        return Err(Error::new(Kind::Invalid, "image name was not specified"));
    }
    if spec.snap.is_some() && options.snap_id.is_some() {
        return Err(Error::new(Kind::Invalid, "a snapshot is named both by name and by number"));
    }
    spec.pool.get_or_insert_with(|| config.rbd.pool.clone());
    insist_on_capability()?;
    match options.foreground || is_child() {
        true => serve(options, spec, from, config),
        false => start(&words(&spec), None, &BTreeMap::new())?.or_exit().and_then(|it| print(&it)),
    }
}

/// From the words of Ceph's program to ours: with us the verb comes first, and `-i` is `--id`.
pub(crate) fn translate(words: &mut [String]) {
    for word in words.iter_mut().filter(|word| *word == "-i") {
        "--id".clone_into(word);
    }
    let verbs = ["map", "attach", "unmap", "detach", "list-mapped"];
    if let Some(at) = words.iter().position(|word| verbs.contains(&word.as_str())) {
        words.get_mut(..=at).unwrap_or_default().rotate_right(1);
    }
}

/// Whether this is called by the name of Ceph's own program, and is to behave as that does.
pub(crate) fn is_drop_in() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    Path::new(&name).file_name().is_some_and(|name| name == PROCESS) && !is_child()
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// What has become of a process that was to serve in the background.
enum Started {
    /// It serves, and reports this.
    Serves(String),
    /// It has ended with this code, and has said why on the standard error that it has from us.
    Refused(i32),
}

impl Started {
    /// What it reports; ends this process as that one ended if it does not serve.
    fn or_exit(self) -> Result<String> {
        match self {
            Self::Serves(report) => Ok(report),
            Self::Refused(_) if is_drop_in() => std::process::exit(1),
            Self::Refused(code) => std::process::exit(code.max(1)),
        }
    }
}

/// Starts a process that serves in the background, and waits until its device is ready.
fn start(
    words: &[String],
    directory: Option<&Path>,
    environment: &BTreeMap<String, String>,
) -> Result<Started> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0(PROCESS).args(words).env(CHILD, "1").envs(environment);
    if let Some(directory) = directory.filter(|directory| directory.is_dir()) {
        command.current_dir(directory);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| failed("the process that is to serve the device", error))?;
    let mut report = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        // It ends with the child's report, or with the child.
        let _ = stdout.read_to_string(&mut report);
    }
    if !report.is_empty() {
        return Ok(Started::Serves(report));
    }
    let status = child.wait().map_err(|error| failed("the process", error))?;
    match (status.code(), status.signal()) {
        (Some(code), _) => Ok(Started::Refused(code)),
        (None, signal) => {
            let what =
                format!("the process that was to serve the device died by signal {signal:?}");
            Err(Error::new(Kind::Os(5), what))
        }
    }
}

/// The command line of this process for one that serves, with the image spelled out so that `ps` shows it.
fn words(spec: &Spec) -> Vec<String> {
    let mut words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    translate(&mut words);
    let full = spec.to_string();
    let named = [spec.image.as_str(), full.as_str()];
    let short = |word: &&mut String| {
        let path = word.split('@').next().unwrap_or_default();
        named.contains(&path) || full.ends_with(&format!("/{word}"))
    };
    if let Some(word) = words.iter_mut().skip(1).find(short) {
        *word = full;
    }
    words
}

fn serve(options: Options, spec: Spec, from: From, config: Config) -> Result<()> {
    if is_child() {
        let _ = rustix::process::setsid();
    }
    let _ = rustix::thread::set_name(c"rbd-nbd");
    let wanted = options.wanted(&spec)?;
    if from != From::Nothing
        && let Some(device) = &wanted.device
    {
        daemon::check_cookie(device, &wanted.cookie)?;
    }
    let mut mapping = daemon::mapping(&options, &spec, &wanted);
    mapping.arguments = std::env::args().skip(1).filter(|word| word != REPLACE).collect();
    let show_cookie = options.show_cookie;
    let daemon = Daemon { options, spec, wanted, from, mapping };
    daemon::protect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name(THREADS)
        .thread_stack_size(STACK)
        .thread_keep_alive(Duration::MAX)
        .build()
        .map_err(|error| failed("cannot start", error))?;
    let done = runtime.block_on(async {
        let cluster = daemon::unless_abandoned(from, Cluster::connect(config)).await?;
        make_threads(cluster.config().threads);
        daemon
            .run(&cluster, |mapping| {
                let device = mapping.device.display();
                let report = match show_cookie {
                    true => format!("{device} {}\n", mapping.cookie),
                    false => format!("{device}\n"),
                };
                let mut out = io::stdout().lock();
                out.write_all(report.as_bytes()).and_then(|()| out.flush())
            })
            .await
    });
    // Nothing that still blocks keeps the process.
    runtime.shutdown_background();
    done
}

/// Makes threads for work that blocks, and they stay: later, there may be no memory for one that is wanted. They are no
/// limit: if all of them wait, for a cluster that is away, one more is made, whose work may be to find it again.
fn make_threads(count: u64) {
    let gate = Arc::new(Mutex::new(()));
    // While none can end, each needs another thread.
    let _closed = gate.lock();
    for _ in 0..count.clamp(1, THREADS_MOST) {
        let gate = Arc::clone(&gate);
        tokio::task::spawn_blocking(move || drop(gate.lock()));
    }
}

/// Takes over every device that waits; fails if one could not be.
fn attach_all() -> Result<()> {
    let all = Found::all()?;
    for_each(all.iter().filter(|found| is_waiting(found)), |found| attach_again(found, false))
}

/// Does the same for each mapping, also where it failed for another, and says for which.
fn for_each<'a>(
    all: impl Iterator<Item = &'a Found>,
    act: impl Fn(&Found) -> Result<Started>,
) -> Result<()> {
    let mut failed = Vec::new();
    for found in all {
        let device = found.mapping.device.display();
        match act(found) {
            Ok(Started::Serves(report)) => print(&report)?,
            Ok(Started::Refused(_)) => failed.push(device.to_string()),
            Err(error) => failed.push(format!("{device} ({error})")),
        }
    }
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(Error::new(Kind::Os(5), format!("not taken over: {}", failed.join(", ")))),
    }
}

/// Whether the kernel keeps a device for whoever serves it next.
fn is_waiting(found: &Found) -> bool {
    let mapping = &found.mapping;
    let waits = match mapping.device_type {
        DeviceType::Nbd => {
            mapping.is_of_this_boot()
                && sysfs::pid(&mapping.device).is_some()
                && sysfs::cookie(&mapping.device).is_none_or(|cookie| cookie == mapping.cookie)
        }
        DeviceType::Ublk => unmap::is_there(mapping) && sysfs::size(&mapping.device).is_some(),
        DeviceType::Ioctl | DeviceType::Fuse => false,
    };
    !found.alive && waits
}

/// Starts a process for a device, with the command line of the one before, which may serve it still.
fn attach_again(found: &Found, replace: bool) -> Result<Started> {
    let mapping = &found.mapping;
    let verbs = ["map", "attach"];
    let mut words: Vec<_> = mapping.arguments.clone();
    match words.iter_mut().find(|word| verbs.contains(&word.as_str())) {
        Some(verb) => "attach".clone_into(verb),
        None => words.insert(0, "attach".to_owned()),
    }
    // What was added here the last time.
    while let [.., device, _, cookie, _] = words.as_slice()
        && device == "--device"
        && cookie == "--cookie"
    {
        words.truncate(words.len() - 4);
    }
    // Whoever started it in the foreground is not there any more.
    words.retain(|word| word != "-f" && word != "--foreground");
    let device = mapping.device.to_string_lossy();
    let named = [("--device", &*device), ("--cookie", &*mapping.cookie)];
    words.extend(named.iter().flat_map(|(name, value)| [(*name).to_owned(), (*value).to_owned()]));
    if replace {
        words.insert(1, REPLACE.to_owned());
    }
    start(&words, Some(&mapping.directory), &mapping.environment)
}

impl Attach {
    fn run(self, ceph: &config::Args) -> Result<()> {
        let Self { options, .. } = self;
        if options.image.is_empty() {
            // What it was is in the state.
            let is_meant = |found: &&Found| {
                let mapping = &found.mapping;
                let device = options.device.as_ref().is_none_or(|device| *device == mapping.device);
                device && options.cookie.as_ref().is_none_or(|cookie| *cookie == mapping.cookie)
            };
            let all = Found::all()?;
            return match all.iter().filter(is_meant).collect::<Vec<_>>().as_slice() {
                [found] if found.alive => {
                    let what = format!("{} is served already", found.mapping.device.display());
                    Err(Error::new(Kind::Busy, what))
                }
                [found] => print(&attach_again(found, false)?.or_exit()?),
                _ => Err(Error::new(Kind::Invalid, "must specify the image to attach")),
            };
        }
        if options.device.is_none() {
            return Err(Error::new(Kind::Invalid, "must specify device to attach"));
        }
        if options.cookie.is_none() && !options.force {
            return Err(Error::new(Kind::Invalid, "must specify cookie to attach"));
        }
        let from = if options.replace { From::Running } else { From::Waiting };
        map_or_attach(options, from, ceph)
    }
}

impl Upgrade {
    fn run(&self) -> Result<()> {
        insist_on_capability()?;
        let all: Vec<_> = Found::all()?.into_iter().filter(|found| found.alive).collect();
        let mut meant = Vec::new();
        for target in &self.targets {
            let known = all.iter().find(|found| unmap::is_named(&found.mapping, target));
            meant.push(known.ok_or_else(|| unmap::not_mapped(target))?);
        }
        if self.all {
            let can = |found: &&Found| {
                matches!(found.mapping.device_type, DeviceType::Nbd | DeviceType::Ublk)
            };
            meant = all.iter().filter(can).collect();
        }
        for_each(meant.into_iter(), |found| {
            // Who keeps the image's lock gives it up only by ending, and ublk takes nobody else before.
            let keeps = found.mapping.arguments.iter().any(|word| word == "--exclusive")
                || found.mapping.device_type == DeviceType::Ublk;
            if keeps {
                unmap::leave(found)?;
            }
            attach_again(found, !keeps)
        })
    }
}

impl Options {
    /// Refuses what is not built.
    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::new(Kind::Unsupported, what));
        if !self.encryption_format.is_empty() || !self.encryption_passphrase_file.is_empty() {
            return refuse("encrypted images are not built yet");
        }
        if !self.block_size.is_power_of_two() || !(512..=4096).contains(&self.block_size) {
            return Err(Error::new(Kind::Invalid, "--block-size is 512, 1024, 2048 or 4096"));
        }
        if self.num_connections.is_some_and(|count| !(1..=CONNECTIONS_MOST).contains(&count)) {
            let what = format!("--num-connections is 1 to {CONNECTIONS_MOST}");
            return Err(Error::new(Kind::Invalid, what));
        }
        Ok(())
    }

    fn wanted(&self, spec: &Spec) -> Result<Wanted> {
        let is_loop = |device: &PathBuf| device.starts_with("/dev") && is_called(device, "loop");
        let device_type = match (self.device_type, &self.device) {
            (Some(DeviceType::Nbd), _) => attached::nbd()?,
            (Some(DeviceType::Ioctl), _) => {
                attached::insist_on_nbd()?;
                DeviceType::Ioctl
            }
            (Some(DeviceType::Fuse), _) => DeviceType::Fuse,
            (Some(DeviceType::Ublk), _) => ublk::insist()?,
            // A device that is named says what makes it.
            (None, Some(device)) if is_loop(device) => DeviceType::Fuse,
            (None, Some(device)) if is_called(device, "nbd") => attached::nbd()?,
            (None, Some(device)) if is_called(device, "ublkb") => ublk::insist()?,
            (None, _) => attached::choose()?,
        };
        Ok(Wanted {
            device_type,
            device: self.device.clone(),
            cookie: self.cookie.clone().map_or_else(state::random_cookie, Ok)?,
            spec: spec.to_string(),
            block_size: self.block_size,
            trim: !self.notrim,
            connections: self.num_connections.unwrap_or(CONNECTIONS),
            io_timeout: Some(Duration::from_secs(self.io_timeout)).filter(|limit| !limit.is_zero()),
            reattach_timeout: Duration::from_secs(self.reattach_timeout),
        })
    }
}

fn is_called(device: &Path, kind: &str) -> bool {
    device.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(kind))
}

/// A process of another user may have been given it, and root of a container may lack it.
fn insist_on_capability() -> Result<()> {
    let has_it = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    if has_it {
        return Ok(());
    }
    Err(Error::new(Kind::PermissionDenied, "block devices take CAP_SYS_ADMIN")
        .with_hint("run it as root, in a container with `--cap-add SYS_ADMIN`"))
}

//! `serve`: exports images over NBD.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ceph_native::attach::ImageDevice;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Context as _, Error, Kind, Result};
use ceph_native::image::{Image, OpenOptions, Version};
use ceph_native::telemetry::Telemetry;
use nbd::{Export, Exports, Server};
use proto::types::SnapId;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::daemon;
use crate::output::print;
use crate::spec::Spec;

/// How long requests in flight may take after the first SIGTERM, before they are given up.
const GRACE: Duration = Duration::from_secs(30);

/// Exports images over NBD, on a Unix socket, on TCP, or on both, until SIGTERM or SIGINT. Those end it politely: what
/// is in flight is finished first. A second one ends it at once.
///
/// Each image is an export by the name it is given here; the first is also the default one.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "Examples:
  rbd-nbd-rs serve rbd/disk --socket /run/disk.sock
  nbdinfo nbd+unix:///?socket=/run/disk.sock
  qemu-img convert nbd+unix:///?socket=/run/disk.sock disk.qcow2 -O qcow2
  rbd-nbd-rs serve rbd/a rbd/b@monday --listen 127.0.0.1:10809
  rbd-nbd-rs serve rbd/disk --socket /run/disk.sock --admin-socket /run/disk.asok --metrics 127.0.0.1:9123
  rbd-nbd-rs status --daemon /run/disk.asok
  nbdcopy nbd://127.0.0.1/rbd/b@monday monday.img")]
pub(crate) struct Serve {
    /// Images, or snapshots of them.
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE[@SNAP]", required = true)]
    specs: Vec<String>,
    /// Listen on a Unix socket. Whoever may write to it may write to the images.
    #[arg(long, value_name = "PATH", required_unless_present = "listen")]
    socket: Option<PathBuf>,
    /// Listen on TCP. NBD has no passwords: whoever reaches the port may write to the images.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Refuse writes.
    #[arg(long)]
    read_only: bool,
    /// Answer Prometheus at http://ADDRESS:PORT/metrics.
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Take the exclusive lock at once and keep it: other clients cannot write in between.
    #[arg(long, conflicts_with = "read_only")]
    exclusive: bool,
    /// Serve the snapshot with this id of the image, whatever it is for.
    #[arg(long, value_name = "ID")]
    snap_id: Option<u64>,
}

impl Serve {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let mut images = Vec::new();
        let result = self.serve(cluster, &mut images).await;
        // So that nobody takes them for being in use until the cluster misses us.
        for image in images {
            image.close().await;
        }
        result
    }

    async fn serve(&self, cluster: &Cluster, images: &mut Vec<Image>) -> Result<()> {
        let (mut terminate, mut interrupt) =
            (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
        let telemetry = Telemetry::new();
        telemetry.cluster(cluster);
        let _telling = daemon::tell(&telemetry, &cluster.config(), self.metrics, print).await?;
        let mut exports = Vec::new();
        for text in &self.specs {
            let image = self.open(cluster, text).await?;
            images.push(image.clone());
            telemetry.image(&image);
            let mut export = Export::new(text.as_str(), ImageDevice::new(image));
            export.description = format!("RBD image {text} of cluster {}", cluster.fsid());
            exports.push(export);
        }
        let exports = Exports::new(exports)
            .map_err(|error| Error::new(Kind::Invalid, "exports").with_source(error))?;
        let server = Server::new(exports);
        self.listen(&server)?;

        let signals = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        signals.await;
        print("ending: finishing what is in flight (a second signal ends it at once)\n")?;
        let second = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::select! {
            report = server.shutdown(GRACE) => print(&format!("ended: {report}\n")),
            () = second => {
                images.clear();
                Err(cut_off())
            }
        }
    }

    async fn open(&self, cluster: &Cluster, text: &str) -> Result<Image> {
        let spec = Spec::parse(text)?;
        let pool = spec.open_pool(cluster).await?;
        let version = match (spec.snap, self.snap_id) {
            (None, Some(id)) => Version::SnapshotId(SnapId(id)),
            (Some(_), Some(_)) => {
                let what = "a snapshot has a name here or an id, not both";
                return Err(Error::new(Kind::Invalid, what));
            }
            (name, None) => name.map_or(Version::Head, Version::Snapshot),
        };
        let Self { read_only, exclusive, .. } = *self;
        let options = OpenOptions { read_only, version, exclusive, watched: true };
        Image::open(&pool, &spec.image, &options).await
    }

    fn listen(&self, server: &Server) -> Result<()> {
        let served = self.specs.join(", ");
        let failed = |error: std::io::Error| {
            Error::new(Kind::from_errno(error.raw_os_error().unwrap_or(5)), "cannot listen")
                .with_source(error)
        };
        if let Some(path) = &self.socket {
            let shown = path.display();
            server.listen_unix(path, 0o600).map_err(failed).context(&shown)?;
            print(&format!("serving {served} on nbd+unix:///?socket={shown}\n"))?;
        }
        if let Some(addr) = self.listen {
            let addr = server.listen_tcp(addr).map_err(failed).context(addr)?;
            print(&format!("serving {served} on nbd://{addr}\n"))?;
        }
        Ok(())
    }
}

fn catch(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Error::new(Kind::Os(5), "signals").with_source(error))
}

fn cut_off() -> Error {
    Error::new(Kind::Os(4), "ended at once: what was in flight may or may not have happened")
}

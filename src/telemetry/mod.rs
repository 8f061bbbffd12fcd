//! What a process has to say about itself: through an admin socket as Ceph's daemons have one, and as metrics for
//! Prometheus. Everything is looked at when somebody asks; nothing is done for it while I/O runs but counting.
//!
//! A program makes one [`Telemetry`], adds what it has (clusters, images, sections of its own), and listens.

mod metrics;
mod serve;
mod socket;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::objecter::{OpStats, SlowOp};
use proto::types::EntityAddr;
use serde_json::{Map, Value, json};

pub use self::socket::ask;
use crate::cluster::{Cluster, Status};
use crate::error::Result;
use crate::image::{Image, Locked};

/// Says what there is to say about something: called whenever somebody asks.
type Section = Box<dyn Fn() -> Value + Send + Sync>;

/// What a process has to say. Cheap to clone.
#[derive(Clone, Default)]
pub struct Telemetry(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    clusters: Vec<Cluster>,
    images: Vec<Image>,
    sections: Vec<(String, Section)>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Says nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells about a client of a cluster. It is kept open for as long as that is told about it.
    pub fn cluster(&self, cluster: &Cluster) {
        self.lock().clusters.push(cluster.clone());
    }

    /// Tells about an image.
    pub fn image(&self, image: &Image) {
        self.lock().images.push(image.clone());
    }

    /// Tells no more about an image, which has to be let go before it can be closed.
    pub fn forget_image(&self, image: &Image) {
        self.lock().images.retain(|told| told.spec() != image.spec());
    }

    /// Adds a section of this name to what `status` tells. It replaces one of the same name.
    pub fn section(
        &self,
        name: impl Into<String>,
        tell: impl Fn() -> Value + Send + Sync + 'static,
    ) {
        let name = name.into();
        let sections = &mut self.lock().sections;
        sections.retain(|(known, _)| *known != name);
        sections.push((name, Box::new(tell)));
    }

    /// Answers on a Unix socket, for `rbd-nbd-rs status --daemon` and `ceph daemon`, until the guard is dropped. The
    /// socket is for the user who runs this process only.
    ///
    /// # Errors
    /// Whatever keeps it from listening.
    pub fn listen_admin(&self, path: &Path) -> Result<Listening> {
        socket::listen(self.clone(), path)
    }

    /// Answers Prometheus at `http://ADDR/metrics` until the guard is dropped. Returns the address as well, for a port
    /// that was left open.
    ///
    /// # Errors
    /// Whatever keeps it from listening.
    pub async fn listen_metrics(&self, addr: SocketAddr) -> Result<(SocketAddr, Listening)> {
        metrics::listen(self.clone(), addr).await
    }

    /// Everything, as JSON.
    pub fn status(&self) -> Value {
        let contents = self.lock();
        let mut all = Map::new();
        all.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        all.insert("pid".into(), std::process::id().into());
        let clusters = contents.clusters.iter().map(|cluster| cluster_json(&cluster.status()));
        all.insert("clusters".into(), clusters.collect());
        all.insert("images".into(), contents.images.iter().map(image_json).collect());
        for (name, tell) in &contents.sections {
            all.insert(name.clone(), tell());
        }
        all.into()
    }

    /// The operations in flight, oldest first.
    fn ops(&self) -> Value {
        let clusters: Vec<_> = self.lock().clusters.iter().map(Cluster::status).collect();
        let ops: Vec<_> = clusters.iter().flat_map(|status| &status.oldest).map(op_json).collect();
        let all: usize = clusters.iter().map(|status| status.ops).sum();
        json!({ "ops": ops, "num_ops": all })
    }

    /// What was counted, by the names that librados has for it (`perf dump`).
    fn counters(&self) -> Value {
        let clusters: Vec<_> = self.lock().clusters.iter().map(Cluster::status).collect();
        let counters = clusters.iter().map(|status| {
            let stats = &status.stats;
            let name = format!("objecter-client.{}", status.global_id);
            (
                name,
                json!({
                    "op_active": status.ops,
                    "op_inflight_bytes": status.bytes,
                    "op_reply": stats.reads.latency.count() + stats.writes.latency.count(),
                    "op_r": stats.reads.latency.count(),
                    "op_w": stats.writes.latency.count(),
                    "op_resend": stats.resent,
                    "op_backoffs": stats.backoffs,
                    "linger_active": status.watches.len(),
                    "map_epoch": status.epoch.0,
                    "map_seen": stats.maps,
                    "osd_sessions": status.sessions.len(),
                    "osd_session_open": stats.sessions_opened,
                    "osd_session_lost": stats.sessions_lost,
                    "op_r_latency": latency_json(&stats.reads),
                    "op_w_latency": latency_json(&stats.writes),
                }),
            )
        });
        counters.collect::<Map<_, _>>().into()
    }
}

/// Ends what it stands for when it is dropped.
#[derive(Debug)]
pub struct Listening {
    task: tokio::task::JoinHandle<()>,
    path: Option<PathBuf>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn cluster_json(status: &Status) -> Value {
    let sessions = status.sessions.iter().map(|session| {
        let table = &session.table;
        json!({
            "osd": table.osd.0,
            "addr": table.addr.bare(),
            "state": if table.open { "open" } else { "opening" },
            "ops": table.ops,
            "bytes": table.bytes,
            "waiting": table.waiting,
            "backoffs": table.backoffs,
            "queued_bytes": session.queued,
            "failures": session.failures,
        })
    });
    let watches = status.watches.iter().map(|watch| {
        json!({
            "cookie": watch.cookie,
            "object": watch.object,
            "state": if watch.confirmed { "watching" } else { "registering" },
            "confirmed_seconds_ago": watch.age.as_secs_f64(),
        })
    });
    json!({
        "fsid": status.fsid.to_string(),
        "entity": status.entity,
        "client": status.global_id,
        "addr": status.addr.bare(),
        "osdmap_epoch": status.epoch.0,
        "fenced": status.fenced,
        "failed": status.failed.as_ref().map(|(_, why)| why),
        "monitors": status.monitors.iter().map(EntityAddr::bare).collect::<Vec<_>>(),
        "sessions": sessions.collect::<Vec<_>>(),
        "watches": watches.collect::<Vec<_>>(),
        "ops_in_flight": status.ops,
        "bytes_in_flight": status.bytes,
        "ops": status.oldest.iter().map(op_json).collect::<Vec<_>>(),
        "reads": counts_json(&status.stats.reads),
        "writes": counts_json(&status.stats.writes),
        "resent": status.stats.resent,
        "redirected": status.stats.redirected,
        "unanswered": status.stats.unanswered,
        "backoffs": status.stats.backoffs,
        "sessions_opened": status.stats.sessions_opened,
        "sessions_lost": status.stats.sessions_lost,
        "osdmaps": status.stats.maps,
    })
}

fn op_json(op: &SlowOp) -> Value {
    json!({
        "tid": op.tid.0,
        "type": if op.writes { "write" } else { "read" },
        "object": op.object,
        "pg": op.pgid.to_string(),
        "osd": op.osd.map(|osd| osd.0),
        "age": op.age.as_secs_f64(),
        "sent": op.sent,
        "waits_for": op.waits_for,
    })
}

fn counts_json(stats: &OpStats) -> Value {
    json!({
        "done": stats.done,
        "failed": stats.failed,
        "bytes": stats.bytes,
        "latency": latency_json(stats),
    })
}

/// Times in microseconds. The histogram has how often it took less than 2^i of them, and not less than half of that.
fn latency_json(stats: &OpStats) -> Value {
    let latency = &stats.latency;
    json!({
        "count": latency.count(),
        "sum_us": latency.sum,
        "p50_us": latency.below(0.5),
        "p99_us": latency.below(0.99),
        "histogram": latency.buckets.to_vec(),
    })
}

fn image_json(image: &Image) -> Value {
    let (requests, bytes) = image.in_flight();
    json!({
        "image": image.spec(),
        "id": image.id(),
        "size": image.size(),
        "read_only": image.is_read_only(),
        "requests_in_flight": requests,
        "bytes_in_flight": bytes,
        "lock": match image.locked() {
            Locked::Ours { cookie, map_valid } => {
                json!({ "state": "owned", "cookie": cookie, "object_map_valid": map_valid })
            }
            Locked::NotOurs { owner } => json!({
                "state": "not owned",
                "owner": owner.map(|client| format!("client.{client}")),
            }),
            Locked::Never => json!({ "state": "none" }),
        },
    })
}

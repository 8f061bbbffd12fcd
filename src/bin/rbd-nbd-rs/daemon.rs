//! What verbs that run for long tell of themselves: where they can be asked, and how the answer looks to people.

use std::fmt::Write as _;
use std::net::SocketAddr;

use ceph_native::config::{AdminSocket, Config};
use ceph_native::error::Result;
use ceph_native::telemetry::{Listening, Telemetry};
use serde_json::Value;

/// How many operations in flight are shown to people.
const SHOWN: usize = 16;

/// Answers on the admin socket that the configuration names, and on the port for metrics that was asked for, and `says`
/// which that is. Dropping what this returns ends it.
pub(crate) async fn tell(
    telemetry: &Telemetry,
    config: &Config,
    metrics: Option<SocketAddr>,
    says: impl Fn(&str) -> Result<()>,
) -> Result<Vec<Listening>> {
    let mut listening = Vec::new();
    if let Some(AdminSocket { path, asked }) = &config.admin_socket {
        match telemetry.listen_admin(path) {
            Ok(guard) => listening.push(guard),
            Err(error) if *asked => return Err(error),
            // Usually there is no such folder, or it is not ours.
            Err(error) => tracing::info!(%error, "no admin socket"),
        }
    }
    if let Some(addr) = metrics {
        let (addr, guard) = telemetry.listen_metrics(addr).await?;
        says(&format!("metrics on http://{addr}/metrics\n"))?;
        listening.push(guard);
    }
    Ok(listening)
}

/// The answer to `status`, for people.
pub(crate) fn plain(told: &Value) -> String {
    let mut out = format!("rbd-nbd-rs {}, process {}\n", text(&told["version"]), told["pid"]);
    for cluster in list(&told["clusters"]) {
        plain_cluster(cluster, &mut out);
    }
    for image in list(&told["images"]) {
        let read_only = if image["read_only"] == true { ", read-only" } else { "" };
        let lock = match text(&image["lock"]["state"]) {
            "none" => String::new(),
            state => format!(", lock {state}"),
        };
        let _ = writeln!(
            out,
            "image {}: {} bytes{read_only}{lock}; {} requests, {} bytes in flight",
            text(&image["image"]),
            image["size"],
            image["requests_in_flight"],
            image["bytes_in_flight"]
        );
    }
    out
}

fn plain_cluster(cluster: &Value, out: &mut String) {
    let _ = writeln!(
        out,
        "cluster {}: {} as client.{} at {}, OSD map {}",
        text(&cluster["fsid"]),
        text(&cluster["entity"]),
        cluster["client"],
        text(&cluster["addr"]),
        cluster["osdmap_epoch"]
    );
    if cluster["fenced"] == true {
        out.push_str("  FENCED: the cluster has blocklisted this client; all I/O fails until it is restarted\n");
    }
    let monitors: Vec<_> = list(&cluster["monitors"]).map(text).collect();
    let _ = match monitors.is_empty() {
        true => writeln!(out, "  no monitor at the moment"),
        false => writeln!(out, "  monitor {}", monitors.join(", ")),
    };
    for session in list(&cluster["sessions"]) {
        let _ = writeln!(
            out,
            "  osd.{} at {}: {}, {} operations, {} bytes to send",
            session["osd"],
            text(&session["addr"]),
            text(&session["state"]),
            session["ops"],
            session["queued_bytes"]
        );
    }
    for watch in list(&cluster["watches"]) {
        let _ = writeln!(out, "  watch on {}: {}", text(&watch["object"]), text(&watch["state"]));
    }
    for kind in ["reads", "writes"] {
        let (stats, latency) = (&cluster[kind], &cluster[kind]["latency"]);
        let _ = writeln!(
            out,
            "  {kind}: {} done, {} failed, {} bytes; half of them within {} µs, 99 % within {} µs",
            stats["done"], stats["failed"], stats["bytes"], latency["p50_us"], latency["p99_us"]
        );
    }
    let _ = writeln!(
        out,
        "  {} operations, {} bytes in flight",
        cluster["ops_in_flight"], cluster["bytes_in_flight"]
    );
    for op in list(&cluster["ops"]).take(SHOWN) {
        let osd =
            op["osd"].as_i64().map_or_else(|| "no OSD".to_owned(), |osd| format!("osd.{osd}"));
        let _ = writeln!(
            out,
            "    {} of {} in PG {} at {osd}, sent {} times, for {:.1} s: waits for {}",
            text(&op["type"]),
            text(&op["object"]),
            text(&op["pg"]),
            op["sent"],
            op["age"].as_f64().unwrap_or(0.0),
            text(&op["waits_for"])
        );
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

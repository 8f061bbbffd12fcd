//! Metrics in Prometheus' text format, over the least HTTP that a scraper needs.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;

use proto::objecter::{Histogram, OpStats};
use tokio::net::TcpListener;

use super::serve::serve;
use super::{Listening, Telemetry};
use crate::cluster::{Cluster, Status};
use crate::error::{Error, Kind, Result};
use crate::image::{Image, Locked};

/// Operations that are older than this are slow (Ceph's `osd_op_complaint_time`).
const SLOW_SECONDS: u64 = 30;

/// Ticks per second of the times in /proc: `sysconf(_SC_CLK_TCK)`, which is 100 on every Linux of today.
const TICKS: f64 = 100.0;

/// Bytes of a page of memory, in which /proc counts.
const PAGE: u64 = 4096;

pub(super) async fn listen(
    telemetry: Telemetry,
    addr: SocketAddr,
) -> Result<(SocketAddr, Listening)> {
    let failed = |error: std::io::Error| {
        let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
        Error::new(kind, format!("metrics on {addr}")).with_source(error)
    };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    let ends = |request: &[u8]| request.windows(4).any(|end| end == b"\r\n\r\n");
    let task = tokio::spawn(serve(listener, ends, move |request| respond(&telemetry, request)));
    Ok((addr, Listening { task, path: None }))
}

fn respond(telemetry: &Telemetry, request: &[u8]) -> Vec<u8> {
    let line = String::from_utf8_lossy(request.split(|byte| *byte == b'\r').next().unwrap_or(&[]));
    let mut words = line.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET" | "HEAD"), Some(path)) if path.split('?').next() == Some("/metrics") => {
            ("200 OK", render(telemetry))
        }
        (Some("GET" | "HEAD"), _) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    match line.starts_with("HEAD") {
        true => head.into_bytes(),
        false => (head + &body).into_bytes(),
    }
}

/// Everything, as a scraper takes it.
fn render(telemetry: &Telemetry) -> String {
    let (clusters, images) = {
        let contents = telemetry.lock();
        let clusters: Vec<_> = contents.clusters.iter().map(Cluster::status).collect();
        (clusters, contents.images.clone())
    };
    let mut text = Text::default();
    of_process(&mut text);
    of_clusters(&mut text, &clusters);
    of_images(&mut text, &images);
    text.0
}

/// Metrics under way to be text.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a metric.
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value of it. Labels are names and values.
    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let open = if i == 0 { '{' } else { ',' };
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{escaped}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{close} {value}");
    }

    /// A histogram of times, in seconds.
    fn histogram(&mut self, name: &str, labels: &[(&str, &str)], times: &Histogram) {
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (i, count) in times.buckets.iter().enumerate() {
            below += count;
            let limit = match i + 1 < times.buckets.len() {
                true => format!("{}", (1u64 << i) as f64 / 1e6),
                false => "+Inf".to_owned(),
            };
            self.value(&bucket, &[labels, &[("le", limit.as_str())]].concat(), below);
        }
        self.value(&format!("{name}_sum"), labels, times.sum as f64 / 1e6);
        self.value(&format!("{name}_count"), labels, below);
    }
}

/// What every exporter tells of its process, by the names that they all use.
fn of_process(text: &mut Text) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program may contain anything; what follows it does not.
    let fields: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let cpu = (field(14) + field(15)) as f64 / TICKS;
    text.metric(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
    );
    text.value("process_cpu_seconds_total", &[], cpu);
    text.metric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
    text.value("process_resident_memory_bytes", &[], field(24) * PAGE);
    text.metric("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.");
    text.value("process_virtual_memory_bytes", &[], field(23));
}

fn of_clusters(text: &mut Text, clusters: &[Status]) {
    let of: Vec<_> =
        clusters.iter().map(|status| (status, format!("client.{}", status.global_id))).collect();
    let name = "ceph_native_client_info";
    text.metric(name, "gauge", "A client of a cluster, by its identity; always 1.");
    for (status, client) in &of {
        let fsid = status.fsid.to_string();
        let version = ("version", env!("CARGO_PKG_VERSION"));
        let labels = [("client", client.as_str()), ("entity", &status.entity), ("fsid", &fsid)];
        text.value(name, &[&labels[..], &[version]].concat(), 1);
    }
    type Value = fn(&Status) -> u64;
    let slow: Value = |status| {
        let slow = status.oldest.iter().filter(|op| op.age.as_secs() >= SLOW_SECONDS);
        slow.count() as u64
    };
    let single: [(&str, &str, &str, Value); 14] = [
        ("osdmap_epoch", "gauge", "Epoch of the OSD map in use.", |s| s.epoch.0.into()),
        (
            "fenced",
            "gauge",
            "Whether the cluster has blocklisted this client: 1 if all I/O fails.",
            |s| s.fenced.into(),
        ),
        ("monitor_sessions", "gauge", "Established sessions with monitors.", |s| {
            s.monitors.len() as u64
        }),
        ("watches", "gauge", "Watches on objects that the OSDs have confirmed.", |s| {
            s.watches.iter().filter(|watch| watch.confirmed).count() as u64
        }),
        ("ops_in_flight", "gauge", "Operations that are not answered.", |s| s.ops as u64),
        (
            "bytes_in_flight",
            "gauge",
            "Bytes that the operations in flight carry or ask for.",
            |s| s.bytes,
        ),
        ("slow_ops", "gauge", "Operations that have waited for more than 30 seconds.", slow),
        (
            "ops_resent_total",
            "counter",
            "Operations sent again: to a new session or another OSD.",
            |s| s.stats.resent,
        ),
        ("ops_redirected_total", "counter", "Operations that an OSD sent elsewhere.", |s| {
            s.stats.redirected
        }),
        ("ops_unanswered_total", "counter", "Operations that ended without an answer.", |s| {
            s.stats.unanswered
        }),
        ("osd_backoffs_total", "counter", "Backoffs that OSDs asked for.", |s| s.stats.backoffs),
        (
            "osd_sessions_opened_total",
            "counter",
            "Sessions with OSDs that were established.",
            |s| s.stats.sessions_opened,
        ),
        (
            "osd_sessions_lost_total",
            "counter",
            "Sessions with OSDs that were lost or could not be established.",
            |s| s.stats.sessions_lost,
        ),
        ("osdmaps_total", "counter", "OSD maps that were looked at.", |s| s.stats.maps),
    ];
    for (name, kind, help, value) in single {
        let name = format!("ceph_native_{name}");
        text.metric(&name, kind, help);
        for (status, client) in &of {
            text.value(&name, &[("client", client)], value(status));
        }
    }
    let name = "ceph_native_osd_sessions";
    text.metric(name, "gauge", "Sessions with OSDs, by their state.");
    for (status, client) in &of {
        let open = status.sessions.iter().filter(|session| session.table.open).count();
        for (state, count) in [("open", open), ("opening", status.sessions.len() - open)] {
            text.value(name, &[("client", client), ("state", state)], count);
        }
    }
    of_ops(text, &of);
}

fn of_ops(text: &mut Text, of: &[(&Status, String)]) {
    let kinds = |status: &Status| {
        [("read", status.stats.reads.clone()), ("write", status.stats.writes.clone())]
    };
    let name = "ceph_native_ops_total";
    text.metric(
        name,
        "counter",
        "Operations that were answered, by what they are and how they ended.",
    );
    for (status, client) in of {
        for (op, OpStats { done, failed, .. }) in kinds(status) {
            for (result, count) in [("ok", done), ("error", failed)] {
                text.value(name, &[("client", client), ("op", op), ("result", result)], count);
            }
        }
    }
    let name = "ceph_native_op_bytes_total";
    text.metric(name, "counter", "Bytes that answered operations carried or asked for.");
    for (status, client) in of {
        for (op, stats) in kinds(status) {
            text.value(name, &[("client", client), ("op", op)], stats.bytes);
        }
    }
    let name = "ceph_native_op_latency_seconds";
    text.metric(name, "histogram", "Time from the submission of an operation to its answer.");
    for (status, client) in of {
        for (op, stats) in kinds(status) {
            text.histogram(name, &[("client", client), ("op", op)], &stats.latency);
        }
    }
}

fn of_images(text: &mut Text, images: &[Image]) {
    type Value = fn(&Image) -> u64;
    let metrics: [(&str, &str, Value); 5] = [
        ("size_bytes", "Size of the image.", Image::size),
        ("read_only", "Whether writes to the image are refused.", |image| {
            image.is_read_only().into()
        }),
        ("lock_owned", "Whether this client has the image's exclusive lock.", |image| {
            matches!(image.locked(), Locked::Ours { .. }).into()
        }),
        ("requests_in_flight", "Requests on the image that are not complete.", |image| {
            image.in_flight().0
        }),
        ("bytes_in_flight", "Bytes that these requests carry or ask for.", |image| {
            image.in_flight().1
        }),
    ];
    for (name, help, value) in metrics {
        let name = format!("ceph_native_image_{name}");
        text.metric(&name, "gauge", help);
        for image in images {
            text.value(&name, &[("image", &image.spec())], value(image));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_histograms_add_up() {
        let mut text = Text::default();
        text.value("a", &[("x", "1\"\\\n"), ("y", "")], 3);
        assert_eq!(text.0, "a{x=\"1\\\"\\\\\\n\",y=\"\"} 3\n");
        let mut times = Histogram { sum: 2_500_000, ..Histogram::default() };
        times.buckets[0] = 1;
        times.buckets[26] = 2;
        let mut text = Text::default();
        text.histogram("t", &[("op", "read")], &times);
        assert!(text.0.contains("t_bucket{op=\"read\",le=\"0.000001\"} 1\n"), "{}", text.0);
        assert!(text.0.contains("t_bucket{op=\"read\",le=\"33.554432\"} 1\n"), "{}", text.0);
        assert!(text.0.contains("t_bucket{op=\"read\",le=\"+Inf\"} 3\n"), "{}", text.0);
        assert!(text.0.ends_with("t_sum{op=\"read\"} 2.5\nt_count{op=\"read\"} 3\n"), "{}", text.0);
    }

    #[test]
    fn only_metrics_are_served_and_only_to_those_who_ask_for_them() {
        let telemetry = Telemetry::new();
        let status = |request: &str| {
            let response = respond(&telemetry, request.as_bytes());
            String::from_utf8(response).unwrap().lines().next().unwrap().to_owned()
        };
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("HEAD /metrics?x=1 HTTP/1.0\r\n\r\n"), "HTTP/1.1 200 OK");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "HTTP/1.1 404 Not Found");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
        assert_eq!(status("\r\n\r\n"), "HTTP/1.1 405 Method Not Allowed");
    }
}

//! How often each call was made, how long it took, and what is mounted: as Prometheus reads it, at `/metrics` of the
//! plugin's own sockets.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::volumes::{Usage, Volumes};

/// Counters, by call.
#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<BTreeMap<String, Calls>>);

#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    count: u64,
    failed: u64,
    took: Duration,
}

impl Metrics {
    /// Counts a call.
    pub(crate) fn count(&self, path: &str, took: Duration, failed: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = all.entry(path.trim_start_matches('/').to_owned()).or_default();
        calls.count += 1;
        calls.failed += u64::from(failed);
        calls.took += took;
    }

    /// Everything, in Prometheus' text format.
    pub(crate) fn text(&self, volumes: &Volumes) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut text = String::new();
        let mut table = |name: &str, kind: &str, help: &str, rows: Vec<(String, String)>| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in rows {
                let _ = writeln!(text, "{name}{{{labels}}} {value}");
            }
        };
        let calls = |value: &dyn Fn(&Calls) -> String| {
            let row = |(call, calls): (&String, &Calls)| (format!("call=\"{call}\""), value(calls));
            all.iter().map(row).collect::<Vec<_>>()
        };
        let counter = "counter";
        table(
            "ceph_native_calls_total",
            counter,
            "Calls of the plugin.",
            calls(&|calls| calls.count.to_string()),
        );
        table(
            "ceph_native_calls_failed_total",
            counter,
            "Calls that failed.",
            calls(&|calls| calls.failed.to_string()),
        );
        table(
            "ceph_native_calls_seconds_total",
            counter,
            "How long calls took.",
            calls(&|calls| calls.took.as_secs_f64().to_string()),
        );
        let usage = volumes.usage();
        let volumes = |value: &dyn Fn(&Usage) -> u64| {
            let label = |row: &Usage| format!("volume=\"{}\"", escape(&row.volume));
            usage.iter().map(|row| (label(row), value(row).to_string())).collect()
        };
        table(
            "ceph_native_volume_users",
            "gauge",
            "Users of a volume that is mounted on this host.",
            volumes(&|row| row.users),
        );
        table(
            "ceph_native_volume_size_bytes",
            "gauge",
            "Size of the file system.",
            volumes(&|row| row.size),
        );
        table(
            "ceph_native_volume_used_bytes",
            "gauge",
            "What of it is used.",
            volumes(&|row| row.used),
        );
        text
    }
}

/// A label's value as it has to be written.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

//! Verbs: calls to the plugin on this host, as Docker makes them.

use ceph_native::docker::Settings;
use ceph_native::error::{Error, Kind, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Prints all volumes.
pub(crate) async fn volumes(settings: &Settings) -> Result<()> {
    let answer = call(settings, "VolumeDriver.List", &json!({})).await?;
    let empty = Vec::new();
    let volumes = answer["Volumes"].as_array().unwrap_or(&empty);
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut rows = vec![["NAME", "IMAGE", "SIZE", "FS", "MOUNTED AT"].map(str::to_owned)];
    for volume in volumes {
        let status = &volume["Status"];
        let size = status["size"].as_u64().map_or_else(|| "-".to_owned(), gib);
        rows.push([
            text(&volume["Name"]),
            text(&status["image"]),
            size,
            text(&status["fstype"]),
            text(&volume["Mountpoint"]),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..4).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}  ");
        }
        println!("{line}{}", row[4]);
    }
    if volumes.iter().any(|volume| volume["Status"]["stale"] == true) {
        eprintln!("ceph-native: the cluster does not answer: this is what was known before");
    }
    Ok(())
}

/// Has the plugin carry out a verb, and prints what it says.
pub(crate) async fn verb(settings: &Settings, verb: &str, name: &str, more: Value) -> Result<()> {
    let mut request = more;
    request["Name"] = name.into();
    let answer = call(settings, &format!("CephNative.{verb}"), &request).await?;
    println!("{}", answer["Said"].as_str().unwrap_or_default());
    Ok(())
}

fn gib(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1 << 30);
    if gib < 1.0 { format!("{:.0} MiB", gib * 1024.0) } else { format!("{gib:.1} GiB") }
}

/// Makes a call, and turns `Err` into an error.
async fn call(settings: &Settings, path: &str, request: &Value) -> Result<Value> {
    let sockets = settings.listen.iter().filter(|listen| !listen.starts_with("tcp://"));
    let socket = sockets.map(|socket| socket.trim_start_matches("unix://")).next();
    let socket = socket.ok_or_else(|| {
        Error::new(Kind::Invalid, "the plugin has no Unix socket: see listen in the settings")
    })?;
    let failed = |error: std::io::Error| {
        Error::new(Kind::Unreachable, format!("the plugin at {socket}")).with_source(error)
    };
    let mut stream = UnixStream::connect(socket).await.map_err(failed)?;
    let body = request.to_string();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.map_err(failed)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(failed)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    let answer: Value = serde_json::from_str(body).map_err(|error| {
        Error::new(Kind::Corrupt, "what the plugin answered").with_source(error)
    })?;
    match answer["Err"].as_str() {
        None | Some("") => Ok(answer),
        Some(error) => Err(Error::new(Kind::Os(1), error)),
    }
}

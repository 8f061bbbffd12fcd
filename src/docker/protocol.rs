//! Docker's volume plugin protocol: JSON over HTTP, one POST for each call. And calls of our own for what Docker has no
//! words for, which `ceph-native` makes.
//!
//! A failure is an answer with `Err`, which Docker shows to whoever asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::options;
use super::volumes::{Volume, Volumes};
use crate::error::{Error, Kind, Result};

/// What the plugin can be, as Docker asks first.
const IMPLEMENTS: &str = "VolumeDriver";

/// The calls of Docker's.
pub const CALLS: &[&str] = &[
    "/Plugin.Activate",
    "/VolumeDriver.Capabilities",
    "/VolumeDriver.Create",
    "/VolumeDriver.Get",
    "/VolumeDriver.List",
    "/VolumeDriver.Mount",
    "/VolumeDriver.Path",
    "/VolumeDriver.Remove",
    "/VolumeDriver.Unmount",
];

/// And our own.
const OWN_CALLS: &[&str] = &[
    "/CephNative.Clone",
    "/CephNative.Fence",
    "/CephNative.Fsck",
    "/CephNative.RemoveSnapshot",
    "/CephNative.Resize",
    "/CephNative.Restore",
    "/CephNative.Snapshot",
    "/CephNative.Who",
];

/// What any call may bring. Fields that are not known are left out.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Request {
    name: String,
    #[serde(rename = "ID")]
    id: String,
    /// Docker sends null for none.
    opts: Option<BTreeMap<String, String>>,
    size: String,
    /// Of a snapshot, or a clone.
    other: String,
}

/// Whether there is such a call.
pub fn knows(path: &str) -> bool {
    CALLS.contains(&path) || OWN_CALLS.contains(&path)
}

/// Carries out a call.
///
/// # Errors
/// What keeps it from being carried out, for [`refusal`].
pub async fn call(volumes: &Arc<Volumes>, path: &str, body: &[u8]) -> Result<Value> {
    let request: Request = parse(body)?;
    let name = request.name.as_str();
    let named = || match name {
        "" => Err(Error::new(Kind::Invalid, "the request names no volume")),
        name => Ok(name),
    };
    let said = |text: String| json!({ "Said": text, "Err": "" });
    Ok(match path {
        "/Plugin.Activate" => json!({ "Implements": [IMPLEMENTS] }),
        // Every host sees the same volumes.
        "/VolumeDriver.Capabilities" => json!({ "Capabilities": { "Scope": "global" } }),
        "/VolumeDriver.Create" => {
            volumes.create(named()?, &request.opts.unwrap_or_default()).await?;
            json!({ "Err": "" })
        }
        "/VolumeDriver.Remove" => {
            volumes.remove(named()?).await?;
            json!({ "Err": "" })
        }
        "/VolumeDriver.Mount" => {
            let mountpoint = volumes.mount(named()?, &request.id).await?;
            json!({ "Mountpoint": mountpoint, "Err": "" })
        }
        "/VolumeDriver.Unmount" => {
            volumes.unmount(named()?, &request.id).await?;
            json!({ "Err": "" })
        }
        "/VolumeDriver.Path" => {
            json!({ "Mountpoint": volumes.path(named()?).unwrap_or_default(), "Err": "" })
        }
        "/VolumeDriver.Get" => {
            json!({ "Volume": told(volumes.get(named()?).await?), "Err": "" })
        }
        "/VolumeDriver.List" => {
            let (listed, _) = volumes.list().await;
            json!({ "Volumes": listed.into_iter().map(told).collect::<Vec<_>>(), "Err": "" })
        }
        "/CephNative.Resize" => {
            let size = options::size(&request.size)
                .map_err(|what| Error::new(Kind::Invalid, format!("{}: {what}", request.size)))?;
            said(volumes.resize(named()?, size).await?)
        }
        "/CephNative.Snapshot" => said(volumes.snapshot(named()?, &request.other).await?),
        "/CephNative.RemoveSnapshot" => {
            said(volumes.remove_snapshot(named()?, &request.other).await?)
        }
        "/CephNative.Restore" => said(volumes.restore(named()?, &request.other).await?),
        "/CephNative.Clone" => said(volumes.clone_to(named()?, &request.other).await?),
        "/CephNative.Fsck" => said(volumes.fsck(named()?).await?),
        "/CephNative.Who" => said(volumes.who(named()?).await?),
        "/CephNative.Fence" => said(volumes.fence(named()?).await?),
        _ => {
            let known = CALLS.join(", ");
            return Err(Error::new(Kind::Unsupported, format!("there is no call {path}"))
                .with_hint(format!("known are {known}")));
        }
    })
}

/// The answer to a call that failed.
pub fn refusal(error: &Error) -> Value {
    json!({ "Err": error.to_string() })
}

fn told(volume: Volume) -> Value {
    let mut told =
        json!({ "Name": volume.name, "CreatedAt": volume.created, "Status": volume.status });
    // Docker takes a volume for mounted as soon as there is any.
    if let Some(mountpoint) = &volume.mountpoint {
        told["Mountpoint"] = json!(mountpoint);
    }
    told
}

fn parse<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    let wrong = || Error::new(Kind::Invalid, "the request cannot be understood");
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(wrong().with_source("expected an object"));
    }
    serde_json::from_slice(body).map_err(|error| wrong().with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_docker_sends_them_and_worse() {
        let request: Request =
            parse(br#"{"Name":"v","ID":"7","Opts":null,"New":{"x":[1]}}"#).unwrap();
        assert_eq!((request.name.as_str(), request.id.as_str()), ("v", "7"));
        assert_eq!(request.opts, None);
        let request: Request = parse(br#"{"Name":"v","Opts":{"size":"1"}}"#).unwrap();
        assert_eq!(request.opts.unwrap()["size"], "1");
        assert_eq!(parse::<Request>(b"").unwrap().name, "");
        assert_eq!(parse::<Request>(b" null").unwrap_err().kind(), Kind::Invalid);
        for wrong in [&b"{"[..], b"[]", b"{\"Name\":7}", b"\xff\xfe", b"{\"Opts\":{\"size\":1}}"] {
            let error = parse::<Request>(wrong).unwrap_err().to_string();
            assert!(error.starts_with("the request cannot be understood: "), "{error}");
        }
    }
}

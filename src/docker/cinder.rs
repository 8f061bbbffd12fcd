//! Volumes as Cinder has them: which cloud, which project, and what is remembered of an attachment.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::Process;
use crate::error::Result;
use crate::openstack::cinder::{Api, Connector};
use crate::openstack::{Cinder, Cloud, Session};

/// The metadata by which the volume of a name is found in Cinder.
pub(crate) const TAG: &str = "ceph-native.volume";

/// Where a volume is in OpenStack: a part of its description.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct InCinder {
    /// The cloud, if it is not the one that is meant if none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<String>,
    /// The project's id.
    pub project: String,
    /// The volume's id.
    pub volume: String,
    /// The image: what else has this description is a copy.
    pub image: String,
    /// How it is attached, for as long as it lives.
    pub api: Api,
}

/// An attachment that this host has in Cinder, or is about to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Of what.
    pub(crate) of: InCinder,
    /// Its id; nothing before Cinder has said.
    pub(crate) attachment: Option<String>,
    /// Whether Cinder shows the volume as in use.
    pub(crate) complete: bool,
    /// This host's name.
    pub(crate) host: String,
    /// What Cinder shows as the device: the host, and where it is mounted there.
    pub(crate) device: String,
    /// What stands for the virtual machine with the older actions.
    pub(crate) instance: Option<String>,
    /// Whether it is never written.
    pub(crate) read_only: bool,
}

/// The longest that Cinder keeps of a device's name.
const MAX_DEVICE: usize = 255;

impl Held {
    /// What an attachment is to be.
    pub(crate) fn new(of: InCinder, host: &str, root: &str, user: &str, read_only: bool) -> Self {
        let device = format!("{host}:{root}").chars().take(MAX_DEVICE).collect();
        Self {
            of,
            attachment: None,
            complete: false,
            host: host.to_owned(),
            device,
            instance: uuid(user),
            read_only,
        }
    }

    /// Who attaches, in Cinder's words.
    pub(crate) fn connector(&self) -> Connector {
        Connector {
            host: self.host.clone(),
            mountpoint: self.device.clone(),
            instance: self.instance.clone(),
            read_only: self.read_only,
        }
    }
}

/// Whether a device is one that a plugin has named: a host and a folder.
pub(crate) fn is_ours(device: Option<&str>) -> bool {
    device.and_then(|device| device.split_once(":/")).is_some_and(|(host, _)| !host.contains('/'))
}

/// The first half of an id of Docker's, as a UUID.
fn uuid(id: &str) -> Option<String> {
    let digits = id.get(..32).filter(|id| id.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Some(parts.join("-").to_lowercase())
}

/// A cloud's name and a project's id, where they are given.
type Key = (Option<String>, Option<String>);

/// The clouds, and the projects in them that were worked in.
#[derive(Debug)]
pub(crate) struct Clouds {
    /// The one that the settings describe.
    own: Option<Cloud>,
    /// The one that is meant if none is named.
    named: Option<String>,
    open: Mutex<HashMap<Key, Cinder>>,
}

impl Clouds {
    /// Clouds by the settings. Nothing is read or asked yet.
    pub(crate) fn new(own: Option<Cloud>, named: Option<String>) -> Self {
        Self { own, named, open: Mutex::default() }
    }

    /// Cinder in a project of a cloud, where the settings may say which is meant.
    ///
    /// # Errors
    /// Whatever is wrong with the cloud's settings.
    pub(crate) fn cinder(&self, cloud: Option<&str>, project: Option<&str>) -> Result<Cinder> {
        let key = (cloud.map(str::to_owned), project.map(str::to_owned));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cinder) = open.get(&key) {
            return Ok(cinder.clone());
        }
        let named = cloud.or(self.named.as_deref());
        let settings = match (&self.own, named) {
            (Some(own), None) => own.clone(),
            (_, named) => Cloud::find(&Process, named)?,
        };
        let cinder = Cinder::new(Session::new(settings, project)?);
        open.insert(key, cinder.clone());
        Ok(cinder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_containers_stand_for_virtual_machines() {
        let id = "0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(uuid(id).as_deref(), Some("01234567-89ab-cdef-0123-456789abcdef"));
        assert_eq!(uuid("short"), None);
        assert_eq!(uuid(&"ö".repeat(32)), None);
    }

    #[test]
    fn devices_tell_whose_they_are() {
        let held =
            Held::new(InCinder::default(), "h", &format!("/m/{}", "x".repeat(300)), "", false);
        assert_eq!(held.device.len(), 255);
        assert!(is_ours(Some(&held.device)));
        for other in [None, Some("/dev/vdb"), Some("na"), Some("/a:/b")] {
            assert!(!is_ours(other), "{other:?}");
        }
    }
}

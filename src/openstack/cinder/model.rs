//! What Cinder says, as far as it is used here. What is not known is left alone, and what may be missing is missing.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Volume {
    /// Its id.
    pub id: String,
    /// Its name, which need not be its alone.
    pub name: Option<String>,
    /// What becomes of it: `creating`, `available`, `in-use`, …
    #[serde(default)]
    pub status: String,
    /// Its size in GiB.
    #[serde(default)]
    pub size: u64,
    /// When it was made, in UTC.
    pub created_at: Option<String>,
    /// When anything of it changed last, in UTC.
    pub updated_at: Option<String>,
    /// Its type.
    pub volume_type: Option<String>,
    /// Where it is.
    pub availability_zone: Option<String>,
    /// Whether several may have it attached at a time.
    #[serde(default)]
    pub multiattach: bool,
    /// Whether its data are encrypted, so that the image is not what it seems.
    #[serde(default)]
    pub encrypted: bool,
    /// What was written down about it.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Who has it.
    #[serde(default)]
    pub attachments: Vec<AttachedTo>,
    /// The snapshot it was made from.
    pub snapshot_id: Option<String>,
    /// The volume it was made from.
    pub source_volid: Option<String>,
}

/// Who has a volume, as the volume tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AttachedTo {
    /// The attachment's id.
    #[serde(default)]
    pub attachment_id: String,
    /// The virtual machine.
    pub server_id: Option<String>,
    /// The host: told to administrators only.
    pub host_name: Option<String>,
    /// As what it has it.
    pub device: Option<String>,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// Its id.
    pub id: String,
    /// How far it has come: `reserved`, `attaching`, `attached`, …
    #[serde(default)]
    pub status: String,
    /// The virtual machine, if it is one's.
    pub instance: Option<String>,
    /// The volume.
    #[serde(default)]
    pub volume_id: String,
    /// How to reach the data; empty until there is a connector.
    #[serde(default)]
    pub connection_info: serde_json::Value,
}

/// Where the data of a volume are: what is needed to reach an RBD image, but the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The pool.
    pub pool: String,
    /// The image in it.
    pub image: String,
    /// The monitors: `address:port`.
    pub monitors: Vec<String>,
    /// Ceph's user, without `client.`; none if the cluster asks nobody.
    pub user: Option<String>,
    /// Whether it may be written.
    pub writable: bool,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Option<String>,
    /// What becomes of it.
    #[serde(default)]
    pub status: String,
    /// The volume.
    #[serde(default)]
    pub volume_id: String,
    /// The size of the volume then, in GiB.
    #[serde(default)]
    pub size: u64,
    /// When it was taken, in UTC.
    pub created_at: Option<String>,
}

/// What a project may have and has. -1 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Volumes that it may have.
    pub max_total_volumes: i64,
    /// Volumes that it has.
    pub total_volumes_used: i64,
    /// GiB that it may have.
    pub max_total_volume_gigabytes: i64,
    /// GiB that it has.
    pub total_gigabytes_used: i64,
    /// Snapshots that it may have.
    pub max_total_snapshots: i64,
    /// Snapshots that it has.
    pub total_snapshots_used: i64,
}

impl std::fmt::Display for Limits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let of = |max: i64| if max < 0 { "any number".to_owned() } else { max.to_string() };
        write!(
            f,
            "the project has {} of {} volumes, {} of {} GiB, {} of {} snapshots",
            self.total_volumes_used,
            of(self.max_total_volumes),
            self.total_gigabytes_used,
            of(self.max_total_volume_gigabytes),
            self.total_snapshots_used,
            of(self.max_total_snapshots)
        )
    }
}

/// A link to more.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Link {
    pub(super) rel: String,
    pub(super) href: String,
}

/// Bodies, each of which has one thing in it.
#[derive(Deserialize)]
pub(super) struct OneVolume {
    pub(super) volume: Volume,
}

#[derive(Deserialize)]
pub(super) struct Volumes {
    pub(super) volumes: Vec<Volume>,
    #[serde(default)]
    pub(super) volumes_links: Vec<Link>,
}

#[derive(Deserialize)]
pub(super) struct OneAttachment {
    pub(super) attachment: Attachment,
}

#[derive(Deserialize)]
pub(super) struct Attachments {
    pub(super) attachments: Vec<Attachment>,
}

#[derive(Deserialize)]
pub(super) struct OneSnapshot {
    pub(super) snapshot: Snapshot,
}

#[derive(Deserialize)]
pub(super) struct Snapshots {
    pub(super) snapshots: Vec<Snapshot>,
    #[serde(default)]
    pub(super) snapshots_links: Vec<Link>,
}

#[derive(Deserialize)]
pub(super) struct Absolute {
    pub(super) limits: AbsoluteLimits,
}

#[derive(Deserialize)]
pub(super) struct AbsoluteLimits {
    pub(super) absolute: Limits,
}

#[derive(Deserialize)]
pub(super) struct Messages {
    pub(super) messages: Vec<Message>,
}

#[derive(Deserialize)]
pub(super) struct Message {
    pub(super) user_message: String,
    #[serde(default)]
    pub(super) created_at: String,
}

#[derive(Deserialize)]
pub(super) struct Versions {
    pub(super) versions: Vec<VersionInfo>,
}

#[derive(Deserialize)]
pub(super) struct VersionInfo {
    pub(super) id: String,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) min_version: String,
}

#[derive(Deserialize)]
pub(super) struct Initialized {
    pub(super) connection_info: serde_json::Value,
}

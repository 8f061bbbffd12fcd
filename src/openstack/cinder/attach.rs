//! Who has a volume: the attachments API (3.44 and newer), and the older actions.
//!
//! Cinder keeps a volume of an ordinary type from being attached twice, by either API; but the two must not be mixed on
//! one volume, since its record of the mode is then wrong for good. No virtual machine is named to the attachments API:
//! with one, Cinder would ask Nova before it lets go.

use std::time::Duration;

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::model::{self, AttachedTo, Attachment, Connection};
use super::{Cinder, version};
use crate::error::{Context as _, Error, Kind, Result};
use crate::openstack::answer::Answer;

/// How often a volume is asked for that others have for a moment, and how long between.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// How volumes are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// By `/attachments`.
    #[default]
    Attachments,
    /// By `os-reserve`, `os-initialize_connection`, `os-attach`, `os-detach`.
    Actions,
}

/// Who attaches.
#[derive(Clone, Debug, Default)]
pub struct Connector {
    /// This host's name.
    pub host: String,
    /// What is shown as the device: where it is to be found.
    pub mountpoint: String,
    /// What stands for the virtual machine where there must be one: only told by the older actions.
    pub instance: Option<String>,
    /// Whether it is never written.
    pub read_only: bool,
}

impl Connector {
    fn mode(&self) -> &'static str {
        if self.read_only { "ro" } else { "rw" }
    }

    fn json(&self) -> Value {
        json!({
            "host": self.host,
            "ip": "127.0.0.1",
            "initiator": null,
            "multipath": false,
            "os_type": "linux",
            "platform": std::env::consts::ARCH,
            "do_local_attach": false,
            "mountpoint": self.mountpoint,
            "mode": self.mode(),
        })
    }
}

impl Cinder {
    /// The way in which this Cinder's volumes are attached if nobody asks for another.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn api(&self) -> Result<Api> {
        Ok(match self.version().await? >= version::ATTACHMENTS {
            true => Api::Attachments,
            false => Api::Actions,
        })
    }

    /// Begins to attach a volume: from here on nobody else can. The attachment's id, if it has one yet, and how to
    /// reach the data. [`Cinder::complete`] makes it known as attached.
    ///
    /// # Errors
    /// [`Kind::Busy`] if it is attached already, with who has it; [`Kind::NotFound`]; [`Kind::Unsupported`] if its data
    /// are not in Ceph or are encrypted.
    pub async fn attach(
        &self,
        api: Api,
        id: &str,
        by: &Connector,
    ) -> Result<(Option<String>, Connection)> {
        match api {
            Api::Attachments => {
                let mut attachment = json!({ "volume_uuid": id, "connector": by.json() });
                if self.version().await? >= version::ATTACH_MODE {
                    attachment["mode"] = by.mode().into();
                }
                let body = json!({ "attachment": attachment });
                let answer = self.reserve(id, "attachments", body).await?;
                let made = answer.read::<model::OneAttachment>()?.attachment;
                match connection(&made.connection_info) {
                    Ok(connection) => Ok((Some(made.id), connection)),
                    Err(error) => {
                        self.detach(api, id, Some(&made.id), by).await?;
                        Err(error)
                    }
                }
            }
            Api::Actions => {
                let path = format!("volumes/{id}/action");
                self.reserve(id, &path, json!({ "os-reserve": {} })).await?;
                let body = json!({ "os-initialize_connection": { "connector": by.json() } });
                let found = async {
                    let said: model::Initialized = self.act(id, body).await?.read()?;
                    connection(&said.connection_info)
                };
                match found.await {
                    Ok(connection) => Ok((None, connection)),
                    Err(error) => {
                        self.act(id, json!({ "os-unreserve": {} })).await?.fine()?;
                        Err(error)
                    }
                }
            }
        }
    }

    /// Asks for a volume, as only one can have it. Refused, and free when that is looked into, another had it for a
    /// moment only: then it is asked for again.
    async fn reserve(&self, id: &str, path: &str, body: Value) -> Result<Answer> {
        let mut left = ATTEMPTS;
        loop {
            let answer = self.ask(Method::POST, path, Some(body.clone())).await?;
            if answer.is_fine() {
                return Ok(answer);
            }
            let error = self.refused(id, answer.refusal()).await;
            left -= 1;
            if error.kind() != Kind::Invalid || left == 0 {
                return Err(error);
            }
            sleep(PAUSE).await;
        }
    }

    /// Makes an attachment known as done; its id. Done already is success.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it was taken away; [`Kind::Busy`] if another has the volume; whatever keeps Cinder from
    /// being asked.
    pub async fn complete(
        &self,
        api: Api,
        id: &str,
        attachment: Option<&str>,
        by: &Connector,
    ) -> Result<String> {
        if let (Api::Attachments, Some(attachment)) = (api, attachment) {
            let path = format!("attachments/{attachment}/action");
            let body = json!({ "os-complete": null });
            self.ask(Method::POST, &path, Some(body)).await?.fine()?;
            return Ok(attachment.to_owned());
        }
        if let Some(own) = self.own(id, by).await? {
            return Ok(own.attachment_id);
        }
        let mut attach = json!({
            "mountpoint": by.mountpoint,
            "mode": by.mode(),
            "host_name": by.host,
        });
        if let Some(instance) = &by.instance {
            attach["instance_uuid"] = instance.as_str().into();
        }
        if let Err(error) = self.act(id, json!({ "os-attach": attach })).await?.fine() {
            return Err(self.refused(id, error).await);
        }
        let own = self.own(id, by).await?.map(|own| own.attachment_id);
        own.ok_or_else(|| Error::new(Kind::Corrupt, "attached, but Cinder shows no attachment"))
    }

    /// Ends an attachment, or an attempt at one. That there is none is success.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn detach(
        &self,
        api: Api,
        id: &str,
        attachment: Option<&str>,
        by: &Connector,
    ) -> Result<()> {
        match (api, attachment) {
            (Api::Attachments, Some(attachment)) => {
                let path = format!("attachments/{attachment}");
                let answer = self.ask(Method::DELETE, &path, None).await?;
                if answer.status == 404 { Ok(()) } else { answer.fine() }
            }
            (Api::Attachments, None) => Ok(()),
            (Api::Actions, attachment) => {
                let volume = match self.volume(id).await {
                    Ok(volume) => volume,
                    Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                    Err(error) => return Err(error),
                };
                // It was taken away, and another has the volume since.
                let is_there =
                    |id: &str| volume.attachments.iter().any(|one| one.attachment_id == id);
                if !volume.attachments.is_empty() && attachment.is_some_and(|id| !is_there(id)) {
                    return Ok(());
                }
                match volume.status.as_str() {
                    "attaching" => {
                        return self.act(id, json!({ "os-unreserve": {} })).await?.fine();
                    }
                    "in-use" => self.act(id, json!({ "os-begin_detaching": {} })).await?.fine()?,
                    "detaching" => {}
                    _ => return Ok(()),
                }
                let terminate = json!({ "os-terminate_connection": { "connector": by.json() } });
                self.act(id, terminate).await?.fine()?;
                let which = match attachment {
                    Some(attachment) => json!({ "attachment_id": attachment }),
                    None => json!({}),
                };
                self.act(id, json!({ "os-detach": which })).await?.fine()
            }
        }
    }

    /// The attachments of a volume, whatever their state.
    ///
    /// # Errors
    /// Whatever keeps Cinder from being asked.
    pub async fn attachments(&self, id: &str) -> Result<Vec<Attachment>> {
        let path = format!("attachments/detail{}", super::query(&[("volume_id", id)]));
        let mut found = self.get::<model::Attachments>(&path).await?.attachments;
        // A Cinder that did not understand the filter shows all.
        found.retain(|one| one.volume_id == id);
        Ok(found)
    }

    /// The attachment of a volume that says what we say of ourselves.
    async fn own(&self, id: &str, by: &Connector) -> Result<Option<AttachedTo>> {
        let volume = self.volume(id).await?;
        let own = |one: &AttachedTo| one.device.as_deref() == Some(by.mountpoint.as_str());
        Ok(volume.attachments.into_iter().find(own))
    }

    /// Why a volume cannot be attached: by what it says itself, since Cinder's words may change.
    async fn refused(&self, id: &str, refusal: Error) -> Error {
        if refusal.kind() != Kind::Invalid {
            return refusal;
        }
        let Ok(volume) = self.volume(id).await else { return refusal };
        match (volume.status.as_str(), volume.attachments.first()) {
            ("available", _) => refusal,
            (_, Some(AttachedTo { server_id: Some(server), device, .. })) => {
                let device = device.as_deref().unwrap_or("no device");
                Error::new(Kind::Busy, format!("it is attached to server {server} as {device}"))
            }
            (_, Some(AttachedTo { device: Some(device), .. })) => {
                Error::new(Kind::Busy, format!("it is attached as {device}"))
            }
            (status, _) => Error::new(Kind::Busy, format!("its status in Cinder is {status}")),
        }
    }
}

/// Where the data are, of what either API says.
///
/// # Errors
/// [`Kind::Unsupported`] for what is not an RBD image as it is; [`Kind::Corrupt`].
pub(crate) fn connection(info: &Value) -> Result<Connection> {
    let driver = info["driver_volume_type"].as_str().unwrap_or_default();
    if driver != "rbd" {
        let what = format!("its data are not in Ceph: driver {driver:?}");
        return Err(Error::new(Kind::Unsupported, what));
    }
    // The older API puts them one level deeper.
    let data = if info["data"].is_object() { &info["data"] } else { info };
    if data["encrypted"] == true {
        return Err(Error::new(Kind::Unsupported, "its data are encrypted by Cinder (LUKS)"));
    }
    let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("connection of a volume: {what}"));
    let name = data["name"].as_str().and_then(|name| name.split_once('/'));
    let (pool, image) = name.ok_or_else(|| corrupt("no pool and image"))?;
    let texts = |word: &str| -> Vec<String> {
        let list = data[word].as_array().into_iter().flatten();
        list.map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect()
    };
    let (hosts, ports) = (texts("hosts"), texts("ports"));
    if hosts.is_empty() || hosts.len() != ports.len() {
        return Err(corrupt("no monitors")).context("Cinder");
    }
    let monitors = hosts.iter().zip(&ports).map(|(host, port)| match host.contains(':') {
        true if !host.starts_with('[') => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    });
    Ok(Connection {
        pool: pool.to_owned(),
        image: image.to_owned(),
        monitors: monitors.collect(),
        user: match data["auth_enabled"].as_bool() {
            Some(false) => None,
            _ => data["auth_username"].as_str().map(str::to_owned),
        },
        writable: data["access_mode"] != "ro",
    })
}

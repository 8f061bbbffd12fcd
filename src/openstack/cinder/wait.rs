//! Waiting for what Cinder does later, and the reason where it does not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Cinder, Volume, model, version};
use crate::error::{Error, Kind, Result};
use crate::openstack::LATE;

/// How long between two looks, at first and at last.
const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

impl Cinder {
    /// Waits until a volume has a status, and whether it came to another end.
    ///
    /// # Errors
    /// [`Kind::Full`], or what else Cinder says, if it ends in an error; [`Kind::TimedOut`] if it has come to no end by
    /// then, with the status that it has; [`Kind::NotFound`].
    pub async fn until(&self, id: &str, wanted: &[&str], deadline: Instant) -> Result<Volume> {
        let mut pause = FIRST;
        loop {
            let volume = self.volume(id).await?;
            if wanted.contains(&volume.status.as_str()) {
                return Ok(volume);
            }
            if volume.status.starts_with("error") {
                let what = format!("volume {id} came to status {}", volume.status);
                return Err(match self.reason(id).await {
                    Some(reason) => Error::new(Kind::Full, format!("{what}: {reason}")),
                    None => Error::new(Kind::Os(5), what).with_hint("Cinder says no reason"),
                });
            }
            if Instant::now() + pause > deadline {
                let what = format!("volume {id} is still {}", volume.status);
                return Err(Error::new(Kind::TimedOut, what).with_hint(LATE));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LAST);
        }
    }

    /// Waits until a volume that is being deleted is gone.
    ///
    /// # Errors
    /// [`Kind::Busy`] if Cinder gave up, which it does while somebody has the image open; what it says if it ends in an
    /// error; [`Kind::TimedOut`].
    pub async fn until_gone(&self, id: &str, deadline: Instant) -> Result<()> {
        let mut pause = FIRST;
        loop {
            let volume = match self.volume(id).await {
                Ok(volume) => volume,
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            match volume.status.as_str() {
                "deleting" => {}
                "available" => {
                    let what = "Cinder gave up deleting it: its image is open somewhere";
                    let hint = "a client that was killed is forgotten after 30 s; then again";
                    return Err(Error::new(Kind::Busy, what).with_hint(hint));
                }
                status => {
                    let reason = self.reason(id).await.unwrap_or_else(|| "no reason told".into());
                    let what = format!("deleting came to status {status}: {reason}");
                    return Err(Error::new(Kind::Os(5), what));
                }
            }
            if Instant::now() + pause > deadline {
                let what = format!("volume {id} is still deleting");
                return Err(Error::new(Kind::TimedOut, what).with_hint(LATE));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LAST);
        }
    }

    /// Waits until a snapshot is there.
    ///
    /// # Errors
    /// As [`Cinder::until`].
    pub async fn until_taken(&self, id: &str, deadline: Instant) -> Result<()> {
        let mut pause = FIRST;
        loop {
            let snapshot = self.snapshot(id).await?;
            match snapshot.status.as_str() {
                "available" => return Ok(()),
                status if status.starts_with("error") => {
                    let reason = self.reason(id).await.unwrap_or_else(|| "no reason told".into());
                    let what = format!("snapshot {id} came to status {status}: {reason}");
                    return Err(Error::new(Kind::Os(5), what));
                }
                status if Instant::now() + pause > deadline => {
                    let what = format!("snapshot {id} is still {status}");
                    return Err(Error::new(Kind::TimedOut, what).with_hint(LATE));
                }
                _ => {}
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LAST);
        }
    }

    /// Waits until a snapshot that is being deleted is gone.
    ///
    /// # Errors
    /// As [`Cinder::until_gone`]: Cinder gives up while a volume that was made of it cannot do without it.
    pub async fn until_snapshot_gone(&self, id: &str, deadline: Instant) -> Result<()> {
        let mut pause = FIRST;
        loop {
            let snapshot = match self.snapshot(id).await {
                Ok(snapshot) => snapshot,
                Err(error) if error.kind() == Kind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            let status = snapshot.status;
            if status != "deleting" {
                let reason = self.reason(id).await.unwrap_or_else(|| "no reason told".into());
                let kind = if status == "available" { Kind::Busy } else { Kind::Os(5) };
                let what = format!("deleting snapshot {id} came to status {status}: {reason}");
                return Err(Error::new(kind, what));
            }
            if Instant::now() + pause > deadline {
                let what = format!("snapshot {id} is still deleting");
                return Err(Error::new(Kind::TimedOut, what).with_hint(LATE));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(LAST);
        }
    }

    /// The last thing that Cinder says went wrong with something.
    async fn reason(&self, id: &str) -> Option<String> {
        if self.version().await.ok()? < version::MESSAGES {
            return None;
        }
        let path = format!("messages{}", super::query(&[("resource_uuid", id)]));
        let found: model::Messages = self.get(&path).await.ok()?;
        let last = found.messages.into_iter().max_by(|a, b| a.created_at.cmp(&b.created_at))?;
        let line = last.user_message.lines().next()?.trim().chars().take(400).collect::<String>();
        (!line.is_empty()).then_some(line)
    }
}

//! What nobody asks for: putting in order what a crash, a reboot, a call that ran out of time or an Unmount that never
//! came have left behind.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Volumes;
use crate::docker::filesystem as fs;
use crate::docker::journal::Attached;

/// How often it is looked for.
const PAUSE: Duration = Duration::from_secs(10);

/// Every how many times the trash is looked through as well, and Cinder is asked for what it gave to another.
const SELDOM: u32 = 6;

impl Volumes {
    /// Puts in order what needs it, for ever.
    pub(super) async fn stay_tidy(self: &Arc<Self>) {
        let mut unused = HashMap::new();
        for round in 0_u32.. {
            self.recover().await;
            self.settle_all(round % SELDOM == 0).await;
            self.forget_lost_users(&mut unused).await;
            self.flatten_unasked();
            if round % SELDOM == SELDOM - 1 && self.store.connected() {
                let emptied = tokio::time::timeout(self.settings.work, self.store.empty_trash());
                if let Ok(Err(error)) = emptied.await {
                    tracing::warn!(%error, "looking through the trash");
                }
            }
            tokio::time::sleep(PAUSE.min(self.settings.lost)).await;
        }
    }

    /// Unmounts what has no users any more, and clears away what is not mounted any more.
    async fn recover(self: &Arc<Self>) {
        for attached in self.journal.all_attached() {
            if !self.is_left_behind(&attached) {
                continue;
            }
            let (this, name) = (Arc::clone(self), attached.name.clone());
            let recovered = async move {
                // Whoever was at work on it may be done.
                match this.journal.attached(&name) {
                    Some(attached) if this.is_left_behind(&attached) => {
                        if this.mount_again(&attached).await? {
                            return Ok(());
                        }
                        tracing::warn!(volume = name, "left behind: cleaning up");
                        this.tear_down(&attached).await
                    }
                    _ => Ok(()),
                }
            };
            // What fails is told there, and is tried again.
            let _ = self.work(&attached.name, "recovering", recovered).await;
        }
    }

    fn is_left_behind(&self, attached: &Attached) -> bool {
        attached.users.is_empty() || !self.is_live(attached)
    }

    /// Forgets users who have never said that they are done: Docker does not, when it is killed and its containers end
    /// before it is back. Nobody uses a volume that no container sees, if that has been so for long.
    async fn forget_lost_users(self: &Arc<Self>, unused: &mut HashMap<String, Instant>) {
        let mut attached = self.journal.all_attached();
        attached.retain(|attached| !attached.users.is_empty() && self.is_live(attached));
        let points: Vec<_> = attached.iter().map(|attached| attached.mountpoint.clone()).collect();
        let seen = match attached.is_empty() {
            true => Vec::new(),
            // So many files are not read on the one thread that answers.
            false => match tokio::task::spawn_blocking(move || fs::seen_elsewhere(&points)).await {
                Ok(seen) => seen,
                Err(_) => return,
            },
        };
        let mut still = HashMap::new();
        for (attached, seen) in attached.into_iter().zip(seen) {
            if seen {
                continue;
            }
            // A use that is new is not seen yet, and another life of the same volume begins anew.
            let users: Vec<_> = attached.users.keys().cloned().collect();
            let key = format!("{} {}", attached.name, users.join(" "));
            let since = unused.get(&key).copied().unwrap_or_else(Instant::now);
            if since.elapsed() < self.settings.lost {
                still.insert(key, since);
                continue;
            }
            let (this, name) = (Arc::clone(self), attached.name.clone());
            let forgotten = async move {
                tracing::warn!(volume = name, ?users, "no container has it: unmounting");
                for user in users {
                    this.unmount_now(&name, &user).await?;
                }
                Ok(())
            };
            let _ = self.work(&attached.name, "unmounting", forgotten).await;
        }
        *unused = still;
    }
}

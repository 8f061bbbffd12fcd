//! The tasks of a client: one that supervises (dials, timers), and one for each connection.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::BytesMut;

use super::state::{Dial, LinkId};
use super::{Shared, login};
use crate::config::Config;
use crate::net::{self, Lost, Wire};

/// Does what the state asks for until the client is closed.
pub(super) async fn supervise(shared: Arc<Shared>) {
    loop {
        let now = shared.now();
        shared.with_at(now, |state| state.handle_timeout(now));
        if shared.lock().take_reread_key() {
            let config = Arc::clone(&shared.lock().config);
            reread_key(&shared, &config);
        }
        let (dials, timeout, over) = {
            let mut state = shared.lock();
            (state.take_dials(), state.poll_timeout(), state.is_over())
        };
        for dial in dials {
            tokio::spawn(run_link(Arc::clone(&shared), dial));
        }
        if over {
            return;
        }
        let wait = timeout.map_or(Duration::from_secs(3600), |timeout| timeout.since(shared.now()));
        tokio::select! {
            // Not a random one first: the same input has to take the same course when it is replayed.
            biased;
            () = shared.changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// The monitors refuse our key: perhaps an administrator has changed it, and put the new one where the old one was. The
/// file is small, and read only then.
fn reread_key(shared: &Shared, config: &Config) {
    let name = &config.name;
    match login::reread_key(config) {
        Ok(Some((key, file))) => {
            let (now, file) = (shared.now(), file.display());
            if shared.with_at(now, |state| state.mon.set_key(now, key)) {
                tracing::warn!(
                    "the key of {name} was refused; {file} has a new one, logging in with that"
                );
            } else {
                tracing::warn!(
                    "the key of {name} is refused; {file} has no other one yet: it is read again at the next attempt"
                );
            }
        }
        Ok(None) => tracing::warn!(
            "the key of {name} is refused, and is in no file that could have a new one"
        ),
        Err(error) => {
            tracing::warn!(%error, "the key of {name} is refused, and no other one is to be had")
        }
    }
}

/// Makes a connection and moves its bytes until it ends.
async fn run_link(shared: Arc<Shared>, dial: Dial) {
    let lost = match net::connect(&*shared.surroundings, dial.addr).await {
        Ok(stream) => net::drive(stream, &Link { shared: &shared, id: dial.link }).await,
        Err(lost) => lost,
    };
    let now = shared.now();
    shared.with_at(now, |state| state.handle_lost(now, dial.link, lost));
    shared.changed.notify_one();
}

/// A connection, as its task sees it.
struct Link<'a> {
    shared: &'a Shared,
    id: LinkId,
}

impl net::Owner for Link<'_> {
    fn transmit(&self, cx: &mut Context<'_>, wire: &Wire) -> Result<(), Lost> {
        self.shared.lock().transmit(self.id, cx, wire)
    }

    fn receive(&self, input: &mut BytesMut) -> Result<usize, Lost> {
        let now = self.shared.now();
        self.shared.with_at(now, |state| state.receive(now, self.id, input))
    }
}

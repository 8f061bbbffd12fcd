//! The tasks of a client: one that supervises (dials, timers), and one for each connection.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::BytesMut;

use super::Shared;
use super::state::{Dial, LinkId};
use crate::net::{self, Lost, TryWrite};

/// Does what the state asks for until the client is closed.
pub(super) async fn supervise(shared: Arc<Shared>) {
    loop {
        let now = shared.now();
        shared.with(|state| state.handle_timeout(now));
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

/// Makes a connection and moves its bytes until it ends.
async fn run_link(shared: Arc<Shared>, dial: Dial) {
    let lost = match net::connect(&*shared.surroundings, dial.addr).await {
        Ok(stream) => net::drive(stream, &Link { shared: &shared, id: dial.link }).await,
        Err(lost) => lost,
    };
    let now = shared.now();
    shared.with(|state| state.handle_lost(now, dial.link, lost));
    shared.changed.notify_one();
}

/// A connection, as its task sees it.
struct Link<'a> {
    shared: &'a Shared,
    id: LinkId,
}

impl net::Owner for Link<'_> {
    fn transmit(&self, cx: &mut Context<'_>, write: TryWrite<'_>) -> Result<(), Lost> {
        self.shared.lock().transmit(self.id, cx, write)
    }

    fn receive(&self, input: &mut BytesMut) -> Result<usize, Lost> {
        let now = self.shared.now();
        self.shared.with(|state| state.receive(now, self.id, input))
    }
}

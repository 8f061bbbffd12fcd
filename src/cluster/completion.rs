//! How the results of operations come back: one by one as futures, or in batches through an inbox.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use proto::objecter::OpResult;
use tokio::sync::oneshot;

/// Who waits for an operation.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A future.
    One(oneshot::Sender<OpResult>),
    /// An inbox, which gets the token with the result.
    Batch(Arc<Inbox>, u64),
}

impl Waiter {
    /// Hands the result over. Inboxes are not woken yet: that is done once for all results of a turn.
    pub(crate) fn deliver(self, result: OpResult, to_wake: &mut Vec<Arc<Inbox>>) {
        match self {
            // Whoever waited may have given up.
            Self::One(waiter) => drop(waiter.send(result)),
            Self::Batch(inbox, token) => {
                if inbox.put(token, result) {
                    to_wake.push(inbox);
                }
            }
        }
    }
}

/// Results of a user that has many operations in flight, to be taken in batches.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    results: Vec<(u64, OpResult)>,
    nudged: bool,
    waker: Option<Waker>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a result. True if it is the first since the last take, so that somebody has to be woken.
    fn put(&self, token: u64, result: OpResult) -> bool {
        let mut state = self.lock();
        state.results.push((token, result));
        state.results.len() == 1
    }

    /// Wakes whoever waits for results.
    pub(crate) fn wake(&self) {
        let waker = self.lock().waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Has whoever takes results look again, though there may be none.
    pub(crate) fn nudge(&self) {
        self.lock().nudged = true;
        self.wake();
    }

    /// Swaps all results into `taken`, which must be empty; pending while there are none and nobody nudged.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, taken: &mut Vec<(u64, OpResult)>) -> Poll<()> {
        let mut state = self.lock();
        if state.results.is_empty() && !mem::take(&mut state.nudged) {
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        mem::swap(&mut state.results, taken);
        Poll::Ready(())
    }
}

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
    /// Hands the result over, and wakes whoever waits for it.
    pub(crate) fn deliver(self, result: OpResult) {
        match self {
            // Whoever waited may have given up.
            Self::One(waiter) => drop(waiter.send(result)),
            Self::Batch(inbox, token) => inbox.put(token, result),
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

    /// Adds a result. Who waits is woken by the first one, and takes what has come by its turn.
    fn put(&self, token: u64, result: OpResult) {
        let waker = {
            let mut state = self.lock();
            state.results.push((token, result));
            state.waker.take()
        };
        wake(waker);
    }

    /// Has whoever takes results look again, though there may be none.
    pub(crate) fn nudge(&self) {
        let waker = {
            let mut state = self.lock();
            state.nudged = true;
            state.waker.take()
        };
        wake(waker);
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

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

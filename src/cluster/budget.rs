//! How much may be in flight: of an image, and of all clients of this process. (What one client may have, its table of
//! operations counts.) Nothing is refused; whoever can wait asks first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What all clients of this process may have in flight: eight times what one may have by Ceph's defaults, and still
/// small beside a host's memory.
static PROCESS: Budget = Budget::new(8 * 1024, 512 << 20);

/// A number of operations and of bytes that may be in flight.
#[derive(Debug)]
pub(crate) struct Budget {
    max_ops: u64,
    max_bytes: u64,
    ops: AtomicU64,
    bytes: AtomicU64,
    waiters: Mutex<Vec<Waker>>,
}

impl Budget {
    pub(crate) const fn new(max_ops: u64, max_bytes: u64) -> Self {
        Self {
            max_ops,
            max_bytes,
            ops: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiters: Mutex::new(Vec::new()),
        }
    }

    fn is_full(&self) -> bool {
        self.ops.load(Ordering::Relaxed) >= self.max_ops
            || self.bytes.load(Ordering::Relaxed) >= self.max_bytes
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so much of it, also if that is more than there is.
    #[inline]
    pub(crate) fn take(&self, ops: u64, bytes: u64) {
        self.ops.fetch_add(ops, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives so much back.
    #[inline]
    pub(crate) fn give(&self, ops: u64, bytes: u64) {
        // Whoever takes it from full to not full sees that it did, whatever others take and give meanwhile.
        let ops_before = self.ops.fetch_sub(ops, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        let was_full = ops_before >= self.max_ops || bytes_before >= self.max_bytes;
        if was_full && !self.is_full() {
            for waker in std::mem::take(&mut *self.waiters()) {
                waker.wake();
            }
        }
    }

    /// Ready if there is some left; otherwise the task of `cx` is woken when there is.
    #[inline]
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        let mut waiters = self.waiters();
        // Given back meanwhile, before this task would have been woken for it.
        if !self.is_full() {
            return Poll::Ready(());
        }
        if !waiters.iter().any(|waiter| waiter.will_wake(cx.waker())) {
            waiters.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What is in flight: operations and bytes.
    pub(crate) fn in_flight(&self) -> (u64, u64) {
        (self.ops.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What one client has of the process's budget. It goes back with the client.
#[derive(Debug)]
pub(super) struct Share {
    of: &'static Budget,
    ops: AtomicU64,
    bytes: AtomicU64,
}

impl Default for Share {
    fn default() -> Self {
        Self::new(&PROCESS)
    }
}

impl Share {
    fn new(of: &'static Budget) -> Self {
        Self { of, ops: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// This much is in flight now.
    pub(super) fn set(&self, ops: u64, bytes: u64) {
        let ops_before = self.ops.swap(ops, Ordering::Relaxed);
        let bytes_before = self.bytes.swap(bytes, Ordering::Relaxed);
        if (ops, bytes) != (ops_before, bytes_before) {
            self.of.take(ops, bytes);
            self.of.give(ops_before, bytes_before);
        }
    }

    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.of.poll_room(cx)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_finds_no_room_is_woken_once_when_there_is_some() {
        let budget = Budget::new(2, 100);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        budget.take(1, 99);
        assert!(budget.poll_room(&cx).is_ready());
        // More than is left may be taken by whoever was told that there is room.
        budget.take(1, 50);
        assert!(budget.poll_room(&cx).is_pending());
        assert!(budget.poll_room(&cx).is_pending());
        budget.give(1, 10);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "too many bytes still");
        budget.give(0, 60);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(budget.poll_room(&cx).is_ready());
        assert_eq!(budget.in_flight(), (1, 79));
    }

    #[test]
    fn a_client_that_goes_gives_everything_back() {
        static WHOLE: Budget = Budget::new(8, 1000);
        let (one, other) = (Share::new(&WHOLE), Share::new(&WHOLE));
        one.set(5, 500);
        other.set(1, 1);
        one.set(3, 900);
        assert_eq!(WHOLE.in_flight(), (4, 901));
        drop(one);
        assert_eq!(WHOLE.in_flight(), (1, 1));
    }
}

//! Pausing those who write while a snapshot is taken, so that file systems are whole in it
//! (`src/librbd/ImageWatcher.cc`).
//!
//! Whoever takes a snapshot asks all who watch the image to pause, again and again until each has answered, and tells
//! them afterwards that they may go on. If it dies in between, they go on after a while.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use proto::rbd::names;
use proto::rbd::notify::snap_create::{IGNORE_QUIESCE_ERROR, SKIP_QUIESCE};
use proto::rbd::notify::{self, Notice, RequestId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::admin::Progress;
use super::{Image, Inner};
use crate::error::{Context as _, Error, Kind, Result};

/// How long users stay paused after they have answered, if nothing is heard of who asked: twice as long as it may take
/// until a notification is answered, as in librbd.
const STAY: Duration = Duration::from_secs(20);

/// How often those who don't answer are asked again (librbd's `rbd_quiesce_notification_attempts`).
const ATTEMPTS: u64 = 10;

/// How many requests that failed are remembered, should they be sent again.
const REMEMBERED: usize = 64;

/// How many notifications may wait to be looked at.
const EVENTS: usize = 64;

const EOPNOTSUPP: i32 = 95;

/// What a user of an image who can pause is asked.
#[derive(Debug)]
pub enum Pausing {
    /// Write out what is cached, and nothing more. The snapshot waits for the answer.
    Pause(oneshot::Sender<Result<()>>),
    /// Go on, and say when that is done.
    GoOn(oneshot::Sender<()>),
}

/// Where a user of an image is asked to pause. Dropping it is the end of that.
#[derive(Debug)]
pub struct Pauses(mpsc::Receiver<Pausing>);

impl Pauses {
    /// What is asked next; nothing if the image is closed.
    pub async fn next(&mut self) -> Option<Pausing> {
        self.0.recv().await
    }
}

/// The way to the task that speaks with the user who can pause, if there is one.
#[derive(Debug, Default)]
pub(super) struct Quiescing(Mutex<Option<mpsc::Sender<Event>>>);

/// Answers a notification.
type Answer = Box<dyn FnOnce(Bytes) + Send>;

enum Event {
    Pause(RequestId, Answer),
    GoOn(RequestId, Answer),
}

impl Quiescing {
    /// Somebody takes a snapshot.
    pub(super) fn pause(&self, id: RequestId, answer: impl FnOnce(Bytes) + Send + 'static) {
        self.tell(Event::Pause(id, Box::new(answer)));
    }

    /// It is taken.
    pub(super) fn go_on(&self, id: RequestId, answer: impl FnOnce(Bytes) + Send + 'static) {
        self.tell(Event::GoOn(id, Box::new(answer)));
    }

    fn tell(&self, event: Event) {
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let event = match task {
            None => event,
            Some(task) => match task.try_send(event) {
                Ok(()) => return,
                Err(error) => error.into_inner(),
            },
        };
        // Nobody who could pause, or more than anybody sends: as if there was nobody.
        let (Event::Pause(_, answer) | Event::GoOn(_, answer)) = event;
        answer(Bytes::new());
    }
}

impl Image {
    /// Has whoever uses what is returned be asked to pause when somebody takes a snapshot. Who asks for it later takes
    /// its place. For images that are open for writing; must be called in a tokio runtime.
    pub fn pauses(&self) -> Pauses {
        let (user, pauses) = mpsc::channel(1);
        let (task, events) = mpsc::channel(EVENTS);
        tokio::spawn(run(self.spec(), events, user));
        let mut current = self.0.quiescing.0.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Some(task);
        Pauses(pauses)
    }

    /// Has everybody pause who can, as far as `flags` want it, until [`Image::let_go_on`].
    pub(super) async fn have_pause(&self, flags: u64, progress: Progress<'_>) -> Result<Paused> {
        if flags & SKIP_QUIESCE != 0 {
            return Ok(Paused(None));
        }
        let id = RequestId {
            client: self.0.client_id(),
            number: self.0.requests.last.fetch_add(1, Ordering::Relaxed) + 1,
        };
        match self.0.ask_to_pause(id, progress).await {
            Ok(()) => {}
            Err(error) if flags & IGNORE_QUIESCE_ERROR != 0 => {
                tracing::warn!(%error, "the snapshot is taken all the same");
            }
            Err(error) => {
                self.let_go_on(Paused(Some(id))).await;
                return Err(error);
            }
        }
        Ok(Paused(Some(id)))
    }

    /// Tells those who have paused to go on. Who does not hear of it does so by itself.
    pub(super) async fn let_go_on(&self, paused: Paused) {
        let Some(id) = paused.0 else { return };
        let header = names::header(self.id());
        if let Err(error) = self.pool().notify(&header, Notice::Unquiesce(id).encode()).await {
            tracing::warn!(image = self.spec(), %error, "telling writers to go on");
        }
    }
}

/// A request under which others have paused, if they were asked.
#[derive(Debug)]
#[must_use]
pub(super) struct Paused(Option<RequestId>);

impl Inner {
    async fn ask_to_pause(&self, id: RequestId, progress: Progress<'_>) -> Result<()> {
        let asking = || format!("image {}: asking writers to pause", self.spec());
        for attempt in 0..ATTEMPTS {
            progress(attempt, ATTEMPTS);
            let notice = Notice::Quiesce(id).encode();
            let replies = self.pool.notify_for_replies(&names::header(&self.id), notice).await?;
            let Some(replies) = replies else { continue };
            for (_, answer) in &replies.answers {
                match notify::decode_response(answer).context(asking())? {
                    Some(errno) if errno < 0 && errno != -EOPNOTSUPP => {
                        return Err(Error::from_errno(errno, asking())
                            .with_hint("--skip-quiesce or --ignore-quiesce-error do without"));
                    }
                    _ => {}
                }
            }
            if replies.silent.is_empty() {
                return Ok(());
            }
        }
        Err(Error::new(Kind::TimedOut, format!("{}: not all have answered", asking())))
    }
}

/// Whether the user is paused.
enum State {
    Going,
    /// It is asked to.
    Pausing(oneshot::Receiver<Result<()>>),
    Paused,
}

/// Somebody who takes a snapshot.
struct Taker {
    /// What is owed to it, while the user has not paused yet.
    answer: Option<Answer>,
    /// When it is taken for dead.
    until: Instant,
}

/// Speaks with one user on behalf of all who take snapshots.
async fn run(spec: String, mut events: mpsc::Receiver<Event>, user: mpsc::Sender<Pausing>) {
    let mut state = State::Going;
    let mut takers: BTreeMap<RequestId, Taker> = BTreeMap::new();
    let mut failed: VecDeque<(RequestId, i32)> = VecDeque::new();
    loop {
        let patience = takers.values().map(|taker| taker.until).min();
        let (expires, pausing) = match &mut state {
            State::Going => (None, None),
            State::Pausing(answer) => (None, Some(answer)),
            State::Paused => (patience, None),
        };
        tokio::select! {
            biased;
            event = events.recv() => match event {
                None => break,
                Some(Event::Pause(id, answer)) => {
                    if let Some((_, errno)) = failed.iter().find(|(known, _)| *known == id) {
                        answer(notify::response(*errno));
                        continue;
                    }
                    let until = Instant::now() + STAY;
                    let answer = match state {
                        State::Paused => {
                            answer(notify::response(0));
                            None
                        }
                        _ => Some(answer),
                    };
                    takers.insert(id, Taker { answer, until });
                    if let State::Going = state {
                        let (sender, answer) = oneshot::channel();
                        // A user that is gone shows in the answer that does not come.
                        let _ = user.send(Pausing::Pause(sender)).await;
                        state = State::Pausing(answer);
                    }
                }
                Some(Event::GoOn(id, answer)) => {
                    takers.remove(&id);
                    if takers.is_empty() && matches!(state, State::Paused) {
                        state = State::Going;
                        go_on(&user).await;
                    }
                    answer(Bytes::new());
                }
            },
            answer = async {
                match pausing {
                    Some(answer) => answer.await,
                    None => pending().await,
                }
            } => match answer {
                Ok(Ok(())) if takers.is_empty() => {
                    state = State::Going;
                    go_on(&user).await;
                }
                Ok(Ok(())) => {
                    state = State::Paused;
                    for taker in takers.values_mut() {
                        taker.until = Instant::now() + STAY;
                        if let Some(answer) = taker.answer.take() {
                            answer(notify::response(0));
                        }
                    }
                }
                refused => {
                    state = State::Going;
                    let errno = match refused {
                        Ok(Err(error)) => {
                            tracing::error!(image = spec, %error, "quiesce failed");
                            // That nothing can pause is no failure to others.
                            if error.kind() == Kind::Unsupported { -22 } else { -error.errno() }
                        }
                        _ => -EOPNOTSUPP,
                    };
                    for (id, taker) in std::mem::take(&mut takers) {
                        if let Some(answer) = taker.answer {
                            answer(notify::response(errno));
                        }
                        failed.push_back((id, errno));
                    }
                    while failed.len() > REMEMBERED {
                        failed.pop_front();
                    }
                }
            },
            () = async {
                match expires {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => pending().await,
                }
            } => {
                let now = Instant::now();
                takers.retain(|_, taker| taker.until > now);
                if takers.is_empty() {
                    tracing::warn!(image = spec, "nothing is heard of who takes a snapshot: going on");
                    state = State::Going;
                    go_on(&user).await;
                }
            }
        }
    }
    if !matches!(state, State::Going) {
        go_on(&user).await;
    }
}

/// Has the user go on, and returns when it does.
async fn go_on(user: &mpsc::Sender<Pausing>) {
    let (sender, done) = oneshot::channel();
    if user.send(Pausing::GoOn(sender)).await.is_ok() {
        let _ = done.await;
    }
}

#[cfg(test)]
mod tests {
    use proto::rbd::notify::ClientId;

    use super::*;

    fn taker(number: u64) -> RequestId {
        RequestId { client: ClientId { gid: 1, handle: 2 }, number }
    }

    fn decoded(answer: &[u8]) -> Option<i32> {
        notify::decode_response(answer).unwrap()
    }

    /// The task, the user's side, and answers as they come: who got which.
    struct World {
        quiescing: Quiescing,
        pauses: Pauses,
        answers: mpsc::UnboundedReceiver<(u64, Option<i32>)>,
        sender: mpsc::UnboundedSender<(u64, Option<i32>)>,
    }

    impl World {
        fn new() -> Self {
            let (user, pauses) = mpsc::channel(1);
            let (task, events) = mpsc::channel(EVENTS);
            tokio::spawn(run("image".into(), events, user));
            let (sender, answers) = mpsc::unbounded_channel();
            Self {
                quiescing: Quiescing(Mutex::new(Some(task))),
                pauses: Pauses(pauses),
                answers,
                sender,
            }
        }

        fn answer(&self, number: u64) -> impl FnOnce(Bytes) + Send + 'static {
            let sender = self.sender.clone();
            move |bytes: Bytes| {
                let _ = sender.send((number, decoded(&bytes)));
            }
        }

        fn pause(&self, number: u64) {
            self.quiescing.pause(taker(number), self.answer(number));
        }

        fn go_on(&self, number: u64) {
            self.quiescing.go_on(taker(number), self.answer(number));
        }

        /// The user is asked to pause, and says how that went.
        async fn paused(&mut self, result: Result<()>) {
            let Some(Pausing::Pause(done)) = self.pauses.next().await else { panic!("no pause") };
            done.send(result).unwrap();
        }

        async fn goes_on(&mut self) {
            let Some(Pausing::GoOn(done)) = self.pauses.next().await else { panic!("no end") };
            done.send(()).unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_waits_for_the_pause_and_the_end_for_its_end() {
        let mut world = World::new();
        world.pause(1);
        // Its notification has timed out: it is asked again, and only that is answered.
        world.pause(1);
        world.paused(Ok(())).await;
        assert_eq!(world.answers.recv().await, Some((1, Some(0))));
        // Another one finds a user that pauses already, and the user stays for it.
        world.pause(2);
        assert_eq!(world.answers.recv().await, Some((2, Some(0))));
        world.go_on(1);
        assert_eq!(world.answers.recv().await, Some((1, None)));
        world.go_on(2);
        world.goes_on().await;
        assert_eq!(world.answers.recv().await, Some((2, None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_that_cannot_pause_fails_the_snapshot_however_often_it_is_asked() {
        let mut world = World::new();
        world.pause(1);
        world.paused(Err(Error::new(Kind::Busy, "no"))).await;
        assert_eq!(world.answers.recv().await, Some((1, Some(-16))));
        world.pause(1);
        assert_eq!(world.answers.recv().await, Some((1, Some(-16))));
        world.pause(2);
        world.paused(Err(Error::new(Kind::Unsupported, "no"))).await;
        assert_eq!(world.answers.recv().await, Some((2, Some(-22))));
        // Nobody is there to be asked.
        drop(world.pauses);
        let sender = world.sender.clone();
        world.quiescing.pause(taker(3), move |bytes| sender.send((3, decoded(&bytes))).unwrap());
        assert_eq!(world.answers.recv().await, Some((3, Some(-EOPNOTSUPP))));
        world.quiescing = Quiescing::default();
        let sender = world.sender.clone();
        world.quiescing.pause(taker(4), move |bytes| sender.send((4, decoded(&bytes))).unwrap());
        assert_eq!(world.answers.recv().await, Some((4, None)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_took_the_snapshot_may_die() {
        let mut world = World::new();
        world.pause(1);
        world.paused(Ok(())).await;
        let begun = Instant::now();
        world.goes_on().await;
        assert_eq!(begun.elapsed(), STAY);
        // It is over before the user has paused.
        world.pause(2);
        let Some(Pausing::Pause(done)) = world.pauses.next().await else { panic!("no pause") };
        world.go_on(2);
        done.send(Ok(())).unwrap();
        world.goes_on().await;
        // And the image is closed while the user pauses.
        world.pause(3);
        world.paused(Ok(())).await;
        world.quiescing = Quiescing::default();
        world.goes_on().await;
        assert!(world.pauses.next().await.is_none());
    }
}

//! Everything a client of a cluster knows, behind one lock: the monitor client, the table of operations, and the
//! connections that carry both. Sync and without I/O; [`super::tasks`] moves the bytes.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::mon::{self, ConnectError, Event as MonEvent, Loss, Mon};
use proto::msg::mon::{Config as Options, PoolOpReply};
use proto::msg::object::Locator;
use proto::msg::osd_map::OsdMaps;
use proto::msg::osd_op::{Operation, Reply};
use proto::msg::watch::{self, WatchNotify};
use proto::msg::{backoff::Backoff, kind};
use proto::msgr::auth::ClientAuth;
use proto::msgr::{self, ClientConfig, Connection, Event, Message, Outgoing, Timing, features};
use proto::objecter::{Action, Objecter, WatchEvent};
use proto::types::{
    AddrType, EntityAddr, EntityType, Entropy, Epoch, Instant, OsdId, PoolId, SnapId, Tid,
};
use slab::Slab;
use tokio::sync::{mpsc, oneshot};

use super::completion::Waiter;
use super::wall_clock;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::net::{FEW_PIECES, Lost, WRITE_PIECES, Wire};

/// How long to wait before an OSD is called again: doubled each time, up to the last.
const REDIAL_FIRST: Duration = Duration::from_millis(100);
const REDIAL_LAST: Duration = Duration::from_secs(5);

/// How long to wait before a full map is asked for after one that could not be used.
const MAP_AGAIN: Duration = Duration::from_secs(1);

/// Operations that wait longer than this are reported (Ceph's `osd_op_complaint_time`), then again after twice as long
/// and so on.
const SLOW_OP: Duration = Duration::from_secs(30);

/// How many events of a watch wait for its owner, who has a problem if they ever do.
const WATCH_EVENTS: usize = 256;
/// Between half of a time and all of it, so that clients that lost an OSD together don't call it together.
fn jittered(entropy: &mut dyn Entropy, wait: Duration) -> Duration {
    let mut random = [0];
    entropy.fill(&mut random);
    wait / 2 + wait * u32::from(random[0]) / 510
}

/// Which connection, within this client.
pub(crate) type LinkId = usize;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Mon(mon::ConnId),
    Osd(OsdId),
}

/// A connection, from before it is dialled until its task has ended.
pub(super) struct Link {
    pub(super) peer: Peer,
    pub(super) addr: EntityAddr,
    pub(super) connection: Connection,
    /// The session is there.
    pub(super) ready: bool,
    /// Wakes the task that moves its bytes, once there is one; and where these go.
    task: Option<(Waker, Wire)>,
    /// Something was queued that its task was not told of.
    unsent: bool,
    /// It is to end, for this reason.
    end: Option<Lost>,
}

impl Link {
    /// Queues a message. The queue's bound is far above what is let into the table: reaching it means that something is
    /// badly wrong, and the connection is given up.
    fn send(&mut self, message: &impl Outgoing) {
        if let Err(error) = self.connection.send(message) {
            self.end(std::io::Error::other(error).into());
        }
    }

    fn end(&mut self, why: Lost) {
        self.end.get_or_insert(why);
        self.wake();
    }

    fn wake(&self) {
        if let Some((waker, _)) = &self.task {
            waker.wake_by_ref();
        }
    }

    /// Writes what is queued, until nothing is left or the stream takes no more: then the task of `cx` goes on with it.
    fn transmit(&mut self, cx: &mut Context<'_>, wire: &Wire) -> std::result::Result<(), Lost> {
        while self.connection.has_transmit() {
            // Room for many costs as much as the rest of this does for few.
            let (mut few, mut many) = ([IoSlice::new(&[]); FEW_PIECES], None);
            let mut pieces = &mut few[..];
            let mut count = self.connection.transmit_slices(pieces);
            if count == FEW_PIECES {
                pieces = many.insert([IoSlice::new(&[]); WRITE_PIECES]);
                count = self.connection.transmit_slices(pieces);
            }
            match wire.write(cx, &pieces[..count]) {
                Poll::Ready(written) => self.connection.transmitted(written?),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// The same, by who has queued it, in the place of its task: to wake that costs more than the writing.
    fn transmit_now(&mut self) {
        // One that is about to end is woken already, and sends nothing more.
        if self.end.is_some() {
            return;
        }
        let Some((waker, wire)) = self.task.take() else { return };
        let sent = self.transmit(&mut Context::from_waker(&waker), &wire);
        self.task = Some((waker, wire));
        if let Err(lost) = sent {
            self.end(lost);
        }
    }
}

/// What is known about reaching an OSD.
#[derive(Debug, Default)]
pub(super) struct OsdState {
    pub(super) link: Option<LinkId>,
    /// Failures since it last answered.
    pub(super) failures: u32,
    /// When it is to be called again, if it is.
    redial: Option<(Instant, EntityAddr)>,
}

/// Something for a task of its own.
#[derive(Debug)]
pub(crate) struct Dial {
    pub(crate) link: LinkId,
    pub(crate) addr: SocketAddr,
}

/// What a monitor command brought.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// What it has to tell a person.
    pub status: String,
    /// What it printed.
    pub output: Bytes,
}

pub(crate) struct State {
    pub(super) config: Arc<Config>,
    pub(super) mon: Mon,
    pub(super) objecter: Objecter<Waiter>,
    entropy: Box<dyn Entropy>,
    pub(super) links: Slab<Link>,
    monitors: BTreeMap<mon::ConnId, LinkId>,
    pub(super) osds: BTreeMap<OsdId, OsdState>,
    commands: BTreeMap<Tid, oneshot::Sender<Result<CommandOutput>>>,
    pool_ops: BTreeMap<Tid, oneshot::Sender<PoolOpReply>>,
    /// Who waits for the monitors' newest epoch; `None` is the objecter.
    versions: BTreeMap<Tid, Option<oneshot::Sender<Epoch>>>,
    /// Who waits for a map of at least this epoch.
    map_waiters: Vec<(Epoch, oneshot::Sender<()>)>,
    /// This client's address: the same to everybody, since by it the cluster would fence us.
    pub(super) local: EntityAddr,
    global_seq: u64,
    dials: Vec<Dial>,
    /// Connections with requests that nobody was told to write.
    unsent: Vec<LinkId>,
    /// Something has changed that the supervisor has to look at.
    supervise: bool,
    /// Why nothing works any more.
    pub(super) failed: Option<(Kind, String)>,
    closed: bool,
    /// Our key was refused: there may be another one by now.
    reread_key: bool,
    /// When a full map is asked for, after one that was of no use.
    map_again: Option<Instant>,
    /// When operations in flight are looked at for slow ones, and from which age on they are reported.
    slow_check: Option<(Instant, Duration)>,
    /// Who gets the events of which watch.
    watches: BTreeMap<u64, mpsc::Sender<WatchEvent>>,
    /// Who waits until all watchers have answered a notification, by its cookie.
    notifies: BTreeMap<u64, oneshot::Sender<WatchNotify>>,
    last_notify: u64,
    /// What the supervisor was last told to wait for.
    next_timeout: Option<Instant>,
    /// Who waits until there is room for another operation.
    room_waiters: Vec<Waker>,
    /// That the cluster fenced us was said.
    told_fenced: bool,
}

fn configure(objecter: &mut Objecter<Waiter>, config: &Config) {
    objecter.set_timeout(config.osd_op_timeout);
    objecter.set_limits(config.inflight_ops, config.inflight_bytes);
    objecter.set_abort_on_full(config.abort_on_full);
    objecter.set_location(config.crush_location.clone());
}

impl State {
    pub(super) fn new(mon: Mon, entropy: Box<dyn Entropy>, nonce: u32, config: Config) -> Self {
        let mut objecter = Objecter::new(features::SUPPORTED);
        configure(&mut objecter, &config);
        Self {
            config: Arc::new(config),
            mon,
            objecter,
            entropy,
            links: Slab::new(),
            monitors: BTreeMap::new(),
            osds: BTreeMap::new(),
            commands: BTreeMap::new(),
            pool_ops: BTreeMap::new(),
            versions: BTreeMap::new(),
            map_waiters: Vec::new(),
            local: EntityAddr { nonce, kind: AddrType::MSGR2, addr: None },
            global_seq: 0,
            dials: Vec::new(),
            unsent: Vec::new(),
            supervise: true,
            failed: None,
            closed: false,
            reread_key: false,
            map_again: None,
            slow_check: None,
            watches: BTreeMap::new(),
            notifies: BTreeMap::new(),
            last_notify: 0,
            next_timeout: None,
            room_waiters: Vec::new(),
            told_fenced: false,
        }
    }

    /// The monitors have other options for us than before.
    fn reconfigure(&mut self, options: Options) {
        tracing::debug!(?options, "options of the monitors");
        let config = self.config.with_monitors_options(options.options);
        configure(&mut self.objecter, &config);
        self.mon.set_service_modes(config.client_modes.clone());
        self.config = Arc::new(config);
    }

    /// Puts an operation into the table. It goes out with the next [`State::settle`].
    pub(super) fn submit(&mut self, now: Instant, operation: Operation, waiter: Waiter) {
        if self.closed || self.failed.is_some() {
            return; // dropping the waiter tells it
        }
        self.expect_slow_ops(now);
        self.objecter.submit(now, operation, waiter);
    }

    fn expect_slow_ops(&mut self, now: Instant) {
        if self.slow_check.is_none() {
            self.slow_check = Some((now + SLOW_OP, SLOW_OP));
            self.supervise = true;
        }
    }

    /// Watches an object: the watch's cookie, and what happens to it.
    pub(super) fn watch(
        &mut self,
        now: Instant,
        locator: Locator,
        object: &str,
        timeout: Duration,
    ) -> (u64, mpsc::Receiver<WatchEvent>) {
        let (sender, events) = mpsc::channel(WATCH_EVENTS);
        if self.closed || self.failed.is_some() {
            return (0, events); // dropping the sender tells it
        }
        self.expect_slow_ops(now);
        let cookie = self.objecter.watch(now, locator, object, timeout, wall_clock());
        self.watches.insert(cookie, sender);
        (cookie, events)
    }

    /// Does without what happens to a watch.
    pub(super) fn forget_watch(&mut self, cookie: u64) {
        self.objecter.forget_watch(cookie);
        self.watches.remove(&cookie);
    }

    /// A cookie for a notification; `waiter` gets its completion.
    pub(super) fn expect_completion(&mut self, waiter: oneshot::Sender<WatchNotify>) -> u64 {
        self.notifies.retain(|_, waiter| !waiter.is_closed());
        self.last_notify += 1;
        if !self.closed && self.failed.is_none() {
            self.notifies.insert(self.last_notify, waiter);
        }
        self.last_notify
    }

    fn handle_watch_notify(&mut self, message: WatchNotify) {
        if message.event == watch::event::NOTIFY_COMPLETE {
            if let Some(waiter) = self.notifies.remove(&message.cookie) {
                let _ = waiter.send(message);
            }
            return;
        }
        self.objecter.handle_watch_notify(message);
    }

    fn deliver_watch_event(&mut self, cookie: u64, event: WatchEvent) {
        let Some(sender) = self.watches.get(&cookie) else { return };
        let last = matches!(event, WatchEvent::Lost(_));
        if let Err(error) = sender.try_send(event) {
            // Whoever notified gets no answer, and goes on without it.
            tracing::warn!(cookie, %error, "a watch event is dropped");
        }
        if last {
            self.watches.remove(&cookie);
        }
    }

    /// Runs a monitor command.
    pub(super) fn command(&mut self, json: String, waiter: oneshot::Sender<Result<CommandOutput>>) {
        let tid = self.mon.command(vec![json], Bytes::new());
        self.commands.insert(tid, waiter);
    }

    /// Has the monitors work on a pool: `op` is one of [`proto::msg::mon::pool_op`].
    pub(super) fn pool_op(
        &mut self,
        pool: PoolId,
        op: u32,
        snap: SnapId,
        waiter: oneshot::Sender<PoolOpReply>,
    ) {
        let tid = self.mon.pool_op(pool.0 as u32, op, snap, String::new());
        self.pool_ops.insert(tid, waiter);
    }

    /// Asks the monitors for their newest epoch.
    pub(super) fn ask_newest(&mut self, waiter: Option<oneshot::Sender<Epoch>>) {
        let tid = self.mon.get_version("osdmap");
        self.versions.insert(tid, waiter);
    }

    /// Tells `waiter` when there is a map of at least this epoch.
    pub(super) fn wait_for_map(&mut self, epoch: Epoch, waiter: oneshot::Sender<()>) {
        let have = self.objecter.map().map(|map| map.epoch);
        if self.failed.is_some() {
            return; // dropping the waiter tells it
        }
        if have.is_some_and(|have| have >= epoch) {
            let _ = waiter.send(());
            return;
        }
        self.map_waiters.push((epoch, waiter));
        self.mon.want_osdmap(have.map_or(Epoch(0), |have| Epoch(have.0 + 1)), true);
    }

    /// Ends everything: connections are closed, and whoever waits is told.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.supervise = true;
        for (_, link) in &mut self.links {
            link.end(Lost::Unwanted);
        }
    }

    /// Whether the supervisor has nothing left to do.
    pub(super) fn is_over(&self) -> bool {
        self.closed && self.links.is_empty()
    }

    /// Why nothing works any more.
    pub(super) fn failure(&self) -> Error {
        match &self.failed {
            Some((kind, what)) => Error::new(*kind, what.clone()),
            None => Error::new(Kind::Closed, "the client was closed"),
        }
    }

    /// Connections to make, each by a task of its own.
    pub(super) fn take_dials(&mut self) -> Vec<Dial> {
        std::mem::take(&mut self.dials)
    }

    /// Whether our key is to be read again, because it was refused.
    pub(super) fn take_reread_key(&mut self) -> bool {
        std::mem::take(&mut self.reread_key)
    }

    /// After any change: does what monitor client and table ask for, sends what can be sent, and hands results over.
    /// True if there is something for the supervisor to do. Most changes need no look at the clock.
    pub(super) fn settle(&mut self, now: &dyn Fn() -> Instant) -> bool {
        while !self.closed
            && let Some(action) = self.objecter.poll_action()
        {
            self.supervise = true;
            self.act(now(), action);
        }
        while !self.closed
            && let Some(action) = self.mon.poll_action()
        {
            self.supervise = true;
            self.act_for_mon(now(), action);
        }
        while let Some((osd, request)) = self.objecter.poll_send() {
            let Some(id) = self.osds.get(&osd).and_then(|osd| osd.link) else { continue };
            let Some(link) = self.links.get_mut(id) else { continue };
            link.send(&request);
            if !std::mem::replace(&mut link.unsent, true) {
                self.unsent.push(id);
            }
        }
        while let Some((waiter, result)) = self.objecter.poll_completed() {
            waiter.deliver(result);
        }
        while let Some((cookie, event)) = self.objecter.poll_watch_event() {
            self.deliver_watch_event(cookie, event);
        }
        if let Some(due) = self.next_objecter_timeout()
            && self.next_timeout.is_none_or(|next| due < next)
        {
            self.next_timeout = Some(due);
            self.supervise = true;
        }
        if self.objecter.is_fenced() && !self.told_fenced {
            self.told_fenced = true;
            self.tell_fenced();
        }
        std::mem::take(&mut self.supervise)
    }

    /// Has what [`State::settle`] has queued written: here and now, or by the tasks of its connections, together with
    /// what else is queued until these get their turn.
    pub(super) fn send_queued(&mut self, now: bool) {
        for id in self.unsent.drain(..) {
            let Some(link) = self.links.get_mut(id) else { continue };
            link.unsent = false;
            match now {
                true => link.transmit_now(),
                false => link.wake(),
            }
        }
    }

    fn next_objecter_timeout(&self) -> Option<Instant> {
        self.objecter.poll_timeout().into_iter().chain(self.objecter.poll_tick()).min()
    }

    /// Says once, loudly, what every operation that fails from now on cannot say better.
    fn tell_fenced(&self) {
        tracing::error!(
            client = self.mon.global_id(),
            addr = self.local.bare(),
            epoch = self.objecter.map().map(|map| map.epoch.0),
            "the cluster has fenced this client off (blocklisted it): all I/O fails from now on, and nothing of it is \
             applied. Another host took over its images, or an administrator fenced this one off: `ceph osd blocklist \
             ls` shows until when. Make sure that nobody else uses the images, then restart this client, which gives \
             it a new address"
        );
    }

    /// Who waits for room, if there is some now.
    pub(super) fn take_room_waiters(&mut self) -> Vec<Waker> {
        match self.objecter.has_room() {
            true => std::mem::take(&mut self.room_waiters),
            false => Vec::new(),
        }
    }

    /// Keeps whoever waits for room; each once.
    pub(super) fn wait_for_room(&mut self, waker: &Waker) {
        if !self.room_waiters.iter().any(|waiting| waiting.will_wake(waker)) {
            self.room_waiters.push(waker.clone());
        }
    }
}

/// What the monitor client and the table of operations ask for.
impl State {
    fn act(&mut self, now: Instant, action: Action) {
        match action {
            Action::Open { osd, addr } => {
                let state = self.osds.entry(osd).or_default();
                if state.failures == 0 {
                    return self.dial_osd(now, osd, addr);
                }
                let wait = REDIAL_FIRST.saturating_mul(1 << state.failures.min(10));
                let wait = jittered(&mut *self.entropy, wait.min(REDIAL_LAST));
                state.redial = Some((now + wait, addr));
            }
            Action::Close { osd } => {
                if let Some(state) = self.osds.remove(&osd)
                    && let Some(link) = state.link.and_then(|link| self.links.get_mut(link))
                {
                    link.end(Lost::Unwanted);
                }
            }
            Action::AckBackoff { osd, message } => {
                if let Some(link) = self.osds.get(&osd).and_then(|osd| osd.link) {
                    self.send(link, &message);
                }
            }
            Action::WantMap { start } => self.mon.want_osdmap(start, true),
            Action::WantNewestEpoch => self.ask_newest(None),
        }
    }

    fn act_for_mon(&mut self, now: Instant, action: mon::Action) {
        match action {
            mon::Action::Dial { conn, addr, auth } => {
                let link = self.dial(now, Peer::Mon(conn), addr, auth);
                self.monitors.insert(conn, link);
            }
            mon::Action::Close(conn) => {
                let link = self.monitors.remove(&conn);
                if let Some(link) = link.and_then(|link| self.links.get_mut(link)) {
                    link.end(Lost::Unwanted);
                }
            }
            mon::Action::Send(conn, request) => {
                if let Some(link) = self.monitors.get(&conn) {
                    self.send(*link, &request);
                }
            }
            mon::Action::Event(event) => self.handle_mon_event(now, event),
        }
    }

    fn handle_mon_event(&mut self, now: Instant, event: MonEvent) {
        match event {
            MonEvent::Command(ack) => {
                let Some(waiter) = self.commands.remove(&ack.tid) else { return };
                let result = match ack.result {
                    0.. => Ok(CommandOutput { status: ack.status, output: ack.output }),
                    errno => Err(Error::new(Kind::from_errno(errno), ack.status)),
                };
                let _ = waiter.send(result);
            }
            MonEvent::Version(reply) => {
                let newest = Epoch(reply.version as u32);
                match self.versions.remove(&Tid(reply.handle)) {
                    Some(Some(waiter)) => drop(waiter.send(newest)),
                    Some(None) => self.objecter.handle_newest_epoch(now, newest),
                    None => {}
                }
            }
            MonEvent::PoolOp(reply) => {
                if let Some(waiter) = self.pool_ops.remove(&reply.tid) {
                    let _ = waiter.send(reply);
                }
            }
            MonEvent::Connected { addr, .. } => tracing::debug!(%addr, "logged in"),
            MonEvent::Lost { addr, reason } => {
                tracing::info!(%addr, reason, "lost the monitor; looking for another one");
            }
            MonEvent::Options(options) => self.reconfigure(options),
            MonEvent::KeyRefused => self.reread_key = true,
            MonEvent::TicketsRenewed => tracing::debug!("fresh tickets"),
            MonEvent::Refused(error) => tracing::error!(%error, "the monitors refuse us"),
            MonEvent::Failed(error) => {
                let kind = match &error {
                    ConnectError::Refused(_) => Kind::PermissionDenied,
                    ConnectError::Unreachable { .. } => Kind::Unreachable,
                    _ => Kind::Invalid,
                };
                self.failed = Some((kind, error.to_string()));
                // Whoever waits learns it from the end of its channel.
                self.map_waiters.clear();
                self.commands.clear();
                self.pool_ops.clear();
                self.versions.clear();
                self.watches.clear();
                self.notifies.clear();
            }
            _ => {}
        }
    }

    fn send(&mut self, link: LinkId, message: &impl Outgoing) {
        if let Some(link) = self.links.get_mut(link) {
            link.send(message);
            link.wake();
        }
    }

    fn dial_osd(&mut self, now: Instant, osd: OsdId, addr: EntityAddr) {
        match self.mon.authorizer(EntityType::OSD) {
            Ok(auth) => {
                let link = self.dial(now, Peer::Osd(osd), addr, auth);
                let before = self.osds.entry(osd).or_default().link.replace(link);
                if let Some(before) = before.and_then(|link| self.links.get_mut(link)) {
                    before.end(Lost::Unwanted);
                }
            }
            Err(error) => {
                tracing::warn!(%osd, %error, "cannot log in to the OSD");
                let state = self.osds.entry(osd).or_default();
                state.redial = Some((now + REDIAL_LAST, addr));
            }
        }
    }

    /// A connection that a task of its own is about to make.
    fn dial(
        &mut self,
        now: Instant,
        peer: Peer,
        addr: EntityAddr,
        auth: Box<dyn ClientAuth>,
    ) -> LinkId {
        self.global_seq += 1;
        let kind = match peer {
            Peer::Mon(_) => EntityType::MON,
            Peer::Osd(_) => EntityType::OSD,
        };
        let config = ClientConfig {
            peer: kind,
            target: addr,
            local: self.local,
            global_seq: self.global_seq,
        };
        let connection = Connection::client(now, Timing::default(), config, auth);
        let link = self.links.insert(Link {
            peer,
            addr,
            connection,
            ready: false,
            task: None,
            unsent: false,
            end: None,
        });
        // Addresses without a socket address are never dialled: see `EntityAddrs::msgr2`.
        if let Some(addr) = addr.addr {
            self.dials.push(Dial { link, addr });
            self.supervise = true;
        }
        link
    }
}

/// What connections bring.
impl State {
    /// Writes what a connection has queued, and keeps what it takes to write what comes later.
    pub(super) fn transmit(
        &mut self,
        link: LinkId,
        cx: &mut Context<'_>,
        wire: &Wire,
    ) -> std::result::Result<(), Lost> {
        let Some(link) = self.links.get_mut(link) else { return Err(Lost::Unwanted) };
        if let Some(end) = link.end.take() {
            return Err(end);
        }
        link.transmit(cx, wire)?;
        if !link.task.as_ref().is_some_and(|(waker, _)| waker.will_wake(cx.waker())) {
            link.task = Some((cx.waker().clone(), wire.clone()));
        }
        Ok(())
    }

    /// Takes what a connection has received. Returns how many bytes complete its next frame.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        id: LinkId,
        input: &mut BytesMut,
    ) -> std::result::Result<usize, Lost> {
        let Some(link) = self.links.get_mut(id) else { return Err(Lost::Unwanted) };
        link.connection.handle_data(now, input)?;
        let (peer, addr) = (link.peer, link.addr);
        loop {
            let Some(link) = self.links.get_mut(id) else { return Err(Lost::Unwanted) };
            // Given up for another one to the same peer: what it still brings is not to be taken for that's.
            if let Some(end) = link.end.take() {
                return Err(end);
            }
            match link.connection.poll_event() {
                None => return Ok(link.connection.wanted(input.len())),
                Some(Event::Ready(session)) => {
                    link.ready = true;
                    self.handle_ready(now, peer, addr, &session);
                }
                Some(Event::Message(message)) => self.handle_message(now, peer, &message)?,
            }
        }
    }

    /// A connection has ended.
    pub(super) fn handle_lost(&mut self, now: Instant, id: LinkId, why: Lost) {
        let Some(link) = self.links.try_remove(id) else { return };
        if self.closed {
            return;
        }
        let addr = link.addr;
        match link.peer {
            Peer::Mon(conn) => {
                tracing::debug!(%addr, %why, "monitor connection ended");
                self.monitors.remove(&conn);
                self.mon.handle_lost(
                    now,
                    conn,
                    match why {
                        Lost::Protocol(msgr::Error::Refused(error)) => Loss::Auth(error),
                        why => Loss::Connection(why.to_string()),
                    },
                );
            }
            Peer::Osd(osd) => {
                // Closed on purpose, because the map said that the OSD is gone: there may be another one by now.
                let Some(state) = self.osds.get_mut(&osd).filter(|osd| osd.link == Some(id)) else {
                    return;
                };
                state.link = None;
                state.failures += 1;
                match &why {
                    Lost::Protocol(error) if !error.retryable() => {
                        tracing::warn!(%osd, %addr, %error, "the OSD cannot be used");
                        self.mon.handle_authorizer_refused(now, EntityType::OSD);
                    }
                    why => tracing::info!(%osd, %addr, %why, "OSD connection lost"),
                }
                self.objecter.handle_session_lost(now, osd);
            }
        }
    }

    fn handle_ready(
        &mut self,
        now: Instant,
        peer: Peer,
        addr: EntityAddr,
        session: &msgr::Session,
    ) {
        match peer {
            Peer::Mon(conn) => {
                // The first monitor's word on where we are is kept: all our connections say the same.
                if self.local.addr.is_none() {
                    self.local = session.local;
                }
                self.mon.handle_connected(now, conn);
                self.objecter.set_identity(now, self.mon.global_id(), self.local);
            }
            Peer::Osd(osd) => {
                tracing::debug!(%osd, %addr, mode = ?session.mode, "connected");
                self.osds.entry(osd).or_default().failures = 0;
                self.objecter.handle_session_open(osd);
            }
        }
    }

    fn handle_message(
        &mut self,
        now: Instant,
        peer: Peer,
        message: &Message,
    ) -> std::result::Result<(), Lost> {
        let handled = match (peer, message.header.kind) {
            (Peer::Osd(osd), kind::OSD_OP_REPLY) => {
                Reply::decode(message).map(|reply| self.objecter.handle_reply(now, osd, reply))
            }
            (Peer::Osd(osd), kind::OSD_BACKOFF) => {
                Backoff::decode(message).map(|backoff| self.objecter.handle_backoff(osd, backoff))
            }
            (Peer::Osd(_), kind::WATCH_NOTIFY) => {
                WatchNotify::decode(message).map(|notify| self.handle_watch_notify(notify))
            }
            (_, kind::OSD_MAP) => {
                OsdMaps::decode(message).map(|maps| self.handle_osd_maps(now, &maps))
            }
            (Peer::Mon(conn), _) => {
                self.mon.handle_message(now, conn, message);
                Ok(())
            }
            (Peer::Osd(_), kind) => {
                tracing::debug!(kind, "a message that is of no use to this client");
                Ok(())
            }
        };
        handled.map_err(|error| msgr::Error::from(error).into())
    }

    fn handle_osd_maps(&mut self, now: Instant, maps: &OsdMaps) {
        if let Err(error) = self.objecter.handle_maps(now, maps) {
            tracing::error!(%error, "an OSD map is of no use; asking for a full one");
            self.map_again = Some(now + MAP_AGAIN);
            self.supervise = true;
            return;
        }
        let Some(epoch) = self.objecter.map().map(|map| map.epoch) else { return };
        self.mon.got_osdmap(epoch);
        for (_, waiter) in self.map_waiters.extract_if(.., |(wanted, _)| *wanted <= epoch) {
            let _ = waiter.send(());
        }
        if let Some(missing) = self.map_waiters.first() {
            tracing::debug!(wanted = %missing.0, have = %epoch, "more maps are needed");
            self.mon.want_osdmap(Epoch(epoch.0 + 1), true);
        }
    }
}

/// What time brings.
impl State {
    /// When [`State::handle_timeout`] has something to do next.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        // What is left is for connections to end, which takes no clock.
        if self.closed {
            return None;
        }
        let links = self.links.iter().filter_map(|(_, link)| link.connection.poll_timeout());
        let redials = self.osds.values().filter_map(|osd| osd.redial.map(|(when, _)| when));
        let others = [
            self.mon.poll_timeout(),
            self.next_objecter_timeout(),
            self.map_again,
            self.slow_check.map(|(when, _)| when),
        ];
        self.next_timeout = links.chain(redials).chain(others.into_iter().flatten()).min();
        self.next_timeout
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.closed {
            return;
        }
        self.mon.handle_timeout(now);
        self.objecter.handle_timeout(now);
        self.objecter.handle_tick(now);
        for (_, link) in &mut self.links {
            if link.connection.poll_timeout().is_some_and(|when| when <= now) {
                match link.connection.handle_timeout(now) {
                    Ok(()) => link.wake(),
                    Err(error) => link.end(error.into()),
                }
            }
        }
        if self.map_again.take_if(|when| *when <= now).is_some() {
            self.mon.want_osdmap(Epoch(0), true);
        }
        let mut due = Vec::new();
        for (osd, state) in &mut self.osds {
            if let Some((_, addr)) = state.redial.take_if(|(when, _)| *when <= now) {
                due.push((*osd, addr));
            }
        }
        for (osd, addr) in due {
            self.dial_osd(now, osd, addr);
        }
        self.report_slow_ops(now);
    }

    /// Says which operations have waited too long, and for what.
    fn report_slow_ops(&mut self, now: Instant) {
        let Some((_, age)) = self.slow_check.filter(|(when, _)| *when <= now) else { return };
        let slow = self.objecter.slow_ops(now, age);
        if let Some(op) = slow.first() {
            tracing::warn!(
                object = op.object,
                pg = %op.pgid,
                osd = op.osd.map(|osd| osd.0),
                seconds = op.age.as_secs(),
                "{} slow requests; the oldest waits for {}",
                slow.len(),
                op.waits_for
            );
        }
        self.slow_check = match (self.objecter.in_flight(), slow.is_empty()) {
            (0, _) => None,
            // Rarer the longer it lasts.
            (_, false) => Some((now + age, age * 2)),
            // When the oldest will be slow, and those that came with it.
            (_, true) => {
                let due = |oldest| oldest + SLOW_OP + Duration::from_secs(1);
                self.objecter.oldest().map(|oldest| (due(oldest), SLOW_OP))
            }
        };
    }
}

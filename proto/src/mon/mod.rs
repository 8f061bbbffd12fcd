//! The monitor client: hunting, subscriptions, commands, tickets (`src/mon/MonClient.cc`).
//!
//! [`Mon`] keeps one session with one monitor, whichever. It owns no connection: it says what to dial and what to send.
//!
//! - **Inputs**: [`Mon::handle_connected`] when a dialled connection is ready, [`Mon::handle_lost`] when it is not or
//!   no more ([`crate::msgr::Connection`] tells when a peer is silent), [`Mon::handle_message`],
//!   [`Mon::handle_timeout`].
//! - **Commands**: [`Mon::want_osdmap`], [`Mon::command`], [`Mon::get_version`], [`Mon::pool_op`], [`Mon::statfs`],
//!   [`Mon::authorizer`]. What is asked while no monitor is connected, or was not answered when one was lost, is sent
//!   to the next one.
//! - **Outputs**: [`Mon::poll_action`] until it gives nothing, after every input and command; then
//!   [`Mon::poll_timeout`].
//!
//! ```text
//!            all refuse, or time is up, before the first login
//!   Hunting ───────────────────────────────────────────────────► Failed
//!    │   ▲
//!    │   │ lost, or no longer in the monitor map
//!    ▼   │
//!   Connected
//! ```

mod event;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

pub use event::{Action, Candidate, Config, ConnId, ConnectError, Event, Loss};
pub use request::Request;

use crate::cephx::{Key, KeyType, LoggedIn, Tickets};
use crate::denc::{DecodeError, decode};
use crate::monmap::MonMap;
use crate::msg::kind;
use crate::msg::mon::{
    Auth, AuthReply, Command, CommandAck, Config as Options, GetVersion, GetVersionReply,
    MonMap as MonMapMessage, PoolOp, PoolOpReply, Statfs, StatfsReply, Subscribe, Subscription,
};
use crate::msgr::Message;
use crate::msgr::auth::{AuthError, ClientAuth, ConnectionMode, method};
use crate::types::{EntityAddr, EntityType, Entropy, Epoch, Fsid, Instant, SnapId, Tid};

/// The subscription to options. It has no versions that a client could know: each session begins with all of them,
/// before the maps that are subscribed to with it, since monitors answer in the order of names.
const OPTIONS: &str = "config";
/// How many monitors are tried at once (`mon_client_hunt_parallel`).
const PARALLEL: usize = 3;
/// How long one round of hunting lasts at first (`mon_client_hunt_interval`).
const HUNT: Duration = Duration::from_secs(3);
/// How much longer the rounds grow (`mon_client_hunt_interval_max_multiple`).
const HUNT_MAX: Duration = Duration::from_secs(30);
/// The pause before the second round if all monitors refuse: one that has just started knows nobody yet.
const REFUSED_PAUSE: Duration = Duration::from_millis(300);
/// How long a refused or unanswered renewal of tickets waits for the next attempt.
const RENEW_AGAIN: Duration = Duration::from_secs(5);

/// The monitor client. See the top of this file.
pub struct Mon {
    config: Config,
    tickets: Tickets,
    entropy: Box<dyn Entropy>,
    state: State,
    actions: VecDeque<Action>,
    next_conn: u64,
    next_tid: u64,
    map: Option<MonMap>,
    wanted: BTreeMap<String, Subscription>,
    /// What has not been answered, in the order it was asked.
    asked: BTreeMap<Tid, Ask>,
    /// The last thing that was wrong with each address.
    trouble: BTreeMap<EntityAddr, String>,
    began: Instant,
    logged_in_once: bool,
    /// How long the next round of hunting lasts.
    hunt: Duration,
    /// Rounds in which every monitor that answered refused us.
    refusals: u32,
}

enum State {
    /// Between two rounds of hunting.
    Resting {
        until: Instant,
    },
    Hunting(Hunt),
    Connected(Session),
    Failed,
}

/// One round: each monitor is tried once, a few at a time.
struct Hunt {
    untried: Vec<EntityAddr>,
    dialling: BTreeMap<ConnId, (EntityAddr, Arc<OnceLock<LoggedIn>>)>,
    ends: Instant,
    refused: Option<AuthError>,
}

struct Session {
    conn: ConnId,
    addr: EntityAddr,
    /// When a renewal of tickets was asked for.
    renewing: Option<Instant>,
}

/// What is asked of the monitors, without what can be filled in only when it is sent.
enum Ask {
    Command { command: Vec<String>, input: Bytes },
    Version { what: String },
    PoolOp { pool: u32, op: u32, snap: SnapId, name: String },
    Statfs { pool: Option<i64> },
}

impl Mon {
    /// Begins to hunt at once.
    pub fn new(now: Instant, config: Config, entropy: Box<dyn Entropy>) -> Self {
        let all = Subscription { start: 0, onetime: false };
        let mut wanted = BTreeMap::from([("monmap".to_owned(), all)]);
        if config.wants_options {
            wanted.insert(OPTIONS.to_owned(), all);
        }
        let mut mon = Self {
            tickets: Tickets::new(Arc::new(config.login.clone())),
            config,
            entropy,
            state: State::Failed,
            actions: VecDeque::new(),
            next_conn: 1,
            next_tid: 1,
            map: None,
            wanted,
            asked: BTreeMap::new(),
            trouble: BTreeMap::new(),
            began: now,
            logged_in_once: false,
            hunt: HUNT,
            refusals: 0,
        };
        mon.start_round(now);
        mon
    }

    /// Who we are to the cluster; 0 before the first login.
    pub fn global_id(&self) -> u64 {
        self.tickets.global_id()
    }

    /// The monitor map, after [`Event::MonMap`].
    pub fn monmap(&self) -> Option<&MonMap> {
        self.map.as_ref()
    }

    /// The cluster, after [`Event::MonMap`].
    pub fn fsid(&self) -> Option<Fsid> {
        self.map.as_ref().map(|map| map.fsid)
    }

    /// The modes of connections to services from now on, preferred first.
    pub fn set_service_modes(&mut self, modes: Vec<ConnectionMode>) {
        self.config.service_modes = modes;
    }

    /// How to authenticate on a new connection to a service, with the freshest ticket.
    ///
    /// # Errors
    /// There is no ticket for it.
    pub fn authorizer(&mut self, service: EntityType) -> Result<Box<dyn ClientAuth>, AuthError> {
        self.tickets.authorizer(service, self.config.service_modes.clone(), &mut *self.entropy)
    }

    /// Our key is another one from now on. `false` if it is the one that we have. Whatever waits because the last one
    /// was refused is tried again at once.
    pub fn set_key(&mut self, now: Instant, key: Key) -> bool {
        if self.config.login.key.as_ref() == Some(&key) {
            return false;
        }
        self.config.login.key = Some(key);
        self.tickets.set_login(Arc::new(self.config.login.clone()), now);
        match &mut self.state {
            State::Hunting(hunt) => {
                for conn in std::mem::take(&mut hunt.dialling).into_keys() {
                    self.actions.push_back(Action::Close(conn));
                }
                self.start_round(now);
            }
            State::Resting { .. } => self.start_round(now),
            State::Connected(_) => self.renew(now),
            State::Failed => {}
        }
        true
    }

    /// A service has refused an [`Mon::authorizer`]: tickets for it are fetched anew. [`Event::TicketsRenewed`] says
    /// when it is worth trying again.
    pub fn handle_authorizer_refused(&mut self, now: Instant, service: EntityType) {
        self.tickets.refused(service);
        self.renew(now);
    }

    /// Wants OSD maps from `start` on (0: the newest, in full): one, or all to come. They arrive as messages that
    /// [`Mon::handle_message`] leaves to the caller.
    pub fn want_osdmap(&mut self, start: Epoch, onetime: bool) {
        let wanted = Subscription { start: start.0.into(), onetime };
        self.wanted.insert("osdmap".to_owned(), wanted);
        if let State::Connected(Session { conn, .. }) = self.state {
            let what = BTreeMap::from([("osdmap".to_owned(), wanted)]);
            self.send_subscribe(conn, what);
        }
    }

    /// The caller has got OSD maps up to this one.
    pub fn got_osdmap(&mut self, epoch: Epoch) {
        got(&mut self.wanted, "osdmap", epoch);
    }

    /// Runs a command: `command` is JSON such as `{"prefix": "osd dump", "format": "json"}`.
    pub fn command(&mut self, command: Vec<String>, input: Bytes) -> Tid {
        self.ask(Ask::Command { command, input })
    }

    /// Asks for the newest version of a map (`osdmap`), which the monitors agree on.
    pub fn get_version(&mut self, what: &str) -> Tid {
        self.ask(Ask::Version { what: what.to_owned() })
    }

    /// Works on a pool: `op` is one of [`crate::msg::mon::pool_op`].
    pub fn pool_op(&mut self, pool: u32, op: u32, snap: SnapId, name: String) -> Tid {
        self.ask(Ask::PoolOp { pool, op, snap, name })
    }

    /// Asks how big the cluster is, or a pool.
    pub fn statfs(&mut self, pool: Option<i64>) -> Tid {
        self.ask(Ask::Statfs { pool })
    }

    /// Nobody waits for the answer any more.
    pub fn forget(&mut self, tid: Tid) {
        self.asked.remove(&tid);
    }

    fn ask(&mut self, ask: Ask) -> Tid {
        let tid = Tid(self.next_tid);
        self.next_tid += 1;
        if let State::Connected(Session { conn, .. }) = self.state
            && let Some(request) = self.request(tid, &ask)
        {
            self.actions.push_back(Action::Send(conn, request));
        }
        self.asked.insert(tid, ask);
        tid
    }

    /// `None` while the cluster's id is not known, which most requests must name.
    fn request(&self, tid: Tid, ask: &Ask) -> Option<Request> {
        let request = match ask {
            Ask::Version { what } => {
                Request::GetVersion(GetVersion { handle: tid.0, what: what.clone() })
            }
            Ask::Command { command, input } => {
                let (command, input) = (command.clone(), input.clone());
                Request::Command(Command { tid, fsid: self.fsid()?, command, input })
            }
            Ask::PoolOp { pool, op, snap, name } => Request::PoolOp(PoolOp {
                tid,
                fsid: self.fsid()?,
                pool: *pool,
                op: *op,
                snap: *snap,
                name: name.clone(),
            }),
            Ask::Statfs { pool } => {
                Request::Statfs(Statfs { tid, fsid: self.fsid()?, pool: *pool })
            }
        };
        Some(request)
    }

    fn send_subscribe(&mut self, conn: ConnId, what: BTreeMap<String, Subscription>) {
        let hostname = self.config.hostname.clone();
        let subscribe = Request::Subscribe(Subscribe { what, hostname });
        self.actions.push_back(Action::Send(conn, subscribe));
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Mon::handle_timeout`], unless something else happens before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Failed => None,
            State::Resting { until: wake } | State::Hunting(Hunt { ends: wake, .. }) => {
                Some(if self.logged_in_once { *wake } else { self.deadline().min(*wake) })
            }
            State::Connected(session) => session
                .renewing
                .map(|asked| asked + RENEW_AGAIN)
                .or_else(|| self.tickets.renewal_due()),
        }
    }

    fn deadline(&self) -> Instant {
        self.began + self.config.connect_timeout
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let time_is_up = !self.logged_in_once && self.deadline() <= now;
        match &mut self.state {
            State::Failed => {}
            State::Resting { .. } | State::Hunting(_) if time_is_up => self.give_up(now),
            State::Resting { until } if *until <= now => self.start_round(now),
            State::Hunting(hunt) if hunt.ends <= now => self.next_round(now),
            State::Resting { .. } | State::Hunting(_) => {}
            State::Connected(session) => {
                if session.renewing.is_some_and(|asked| asked + RENEW_AGAIN <= now) {
                    session.renewing = None;
                }
                self.renew(now);
            }
        }
    }

    /// A dialled connection is ready, and its [`ClientAuth`] is done.
    pub fn handle_connected(&mut self, now: Instant, conn: ConnId) {
        let State::Hunting(hunt) = &mut self.state else { return };
        let Some((addr, outcome)) = hunt.dialling.remove(&conn) else { return };
        let Some(outcome) = outcome.get() else {
            self.actions.push_back(Action::Close(conn));
            self.trouble.insert(addr, "connected without authentication".to_owned());
            self.dial(now);
            return;
        };
        for loser in hunt.dialling.keys() {
            self.actions.push_back(Action::Close(*loser));
        }
        self.tickets.logged_in(now, outcome);
        self.logged_in_once = true;
        (self.hunt, self.refusals) = (HUNT, 0);
        self.trouble.clear();
        let session = Session { conn, addr, renewing: None };
        self.state = State::Connected(session);
        let event = Event::Connected { addr, global_id: self.tickets.global_id() };
        self.actions.push_back(Action::Event(event));
        self.send_subscribe(conn, self.wanted.clone());
        self.send_asked(|_| true);
    }

    /// Sends what has not been answered.
    fn send_asked(&mut self, which: impl Fn(&Ask) -> bool) {
        let State::Connected(Session { conn, .. }) = self.state else { return };
        let requests: Vec<_> = (self.asked.iter().filter(|(_, ask)| which(ask)))
            .filter_map(|(tid, ask)| self.request(*tid, ask))
            .collect();
        self.actions.extend(requests.into_iter().map(|request| Action::Send(conn, request)));
    }

    /// A connection was not to be had, or is gone.
    pub fn handle_lost(&mut self, now: Instant, conn: ConnId, loss: Loss) {
        match &mut self.state {
            State::Hunting(hunt) => {
                let Some((addr, _)) = hunt.dialling.remove(&conn) else { return };
                let reason = match loss {
                    Loss::Connection(reason) => reason,
                    Loss::Auth(error @ (AuthError::Refused(_) | AuthError::Incompatible(_))) => {
                        let reason = error.to_string();
                        let told = hunt.refused.replace(error).is_some();
                        if self.logged_in_once && !told {
                            self.actions.push_back(Action::Event(Event::KeyRefused));
                        }
                        reason
                    }
                    Loss::Auth(error) => error.to_string(),
                };
                self.trouble.insert(addr, reason);
                self.dial(now);
            }
            State::Connected(session) if session.conn == conn => {
                let reason = match loss {
                    Loss::Connection(reason) => reason,
                    Loss::Auth(error) => error.to_string(),
                };
                self.lose(now, reason);
            }
            _ => {}
        }
    }

    /// The monitors don't say why they refuse a key, but their map may.
    fn explained(&self, error: AuthError) -> AuthError {
        let auth = self.map.as_ref().and_then(|map| map.auth.as_ref());
        let (AuthError::Refused(_), Some(auth), Some(key)) = (&error, auth, &self.config.login.key)
        else {
            return error;
        };
        let ours = key.kind();
        if auth.allowed_ciphers.contains(&ours.code().into()) {
            return error;
        }
        let name = |code: &u32| match u16::try_from(*code).ok().and_then(KeyType::from_code) {
            Some(kind) => kind.name().to_owned(),
            None => format!("type {code}"),
        };
        let allowed: Vec<_> = auth.allowed_ciphers.iter().map(name).collect();
        AuthError::Refused(format!(
            "the cluster does not allow {} keys any more, only {}: {} needs a new key",
            ours.name(),
            allowed.join(", "),
            self.config.login.entity
        ))
    }

    /// The session is gone: hunts anew.
    fn lose(&mut self, now: Instant, reason: String) {
        let State::Connected(Session { addr, .. }) = &self.state else { return };
        self.trouble.insert(*addr, reason.clone());
        self.actions.push_back(Action::Event(Event::Lost { addr: *addr, reason }));
        self.start_round(now);
    }

    fn start_round(&mut self, now: Instant) {
        let candidates = match &self.map {
            Some(map) => candidates(map),
            None => self.config.candidates.clone(),
        };
        // The last one is taken first.
        let mut untried = self.draw_order(candidates);
        untried.reverse();
        if untried.is_empty() {
            return self.fail(ConnectError::NoAddress);
        }
        let (dialling, ends) = (BTreeMap::new(), now + self.hunt);
        self.state = State::Hunting(Hunt { untried, dialling, ends, refused: None });
        self.dial(now);
    }

    /// By priority, and among equals by lot (`MonClient::_add_conns`).
    fn draw_order(&mut self, mut rest: Vec<Candidate>) -> Vec<EntityAddr> {
        let mut order = Vec::with_capacity(rest.len());
        while let Some(lowest) = rest.iter().map(|candidate| candidate.priority).min() {
            let equals = || rest.iter().enumerate().filter(|(_, one)| one.priority == lowest);
            let no_weights = equals().all(|(_, candidate)| candidate.weight == 0);
            let share = |one: &Candidate| if no_weights { 1 } else { u64::from(one.weight) };
            let total: u64 = equals().map(|(_, candidate)| share(candidate)).sum();
            let mut drawn = [0; 8];
            self.entropy.fill(&mut drawn);
            let mut drawn = u64::from_le_bytes(drawn) % total.max(1);
            let found = equals().find(|(_, candidate)| {
                let share = share(candidate);
                let is_it = drawn < share;
                drawn = drawn.saturating_sub(share);
                is_it
            });
            let Some((index, _)) = found else { break };
            order.push(rest.swap_remove(index).addr);
        }
        order
    }

    /// Keeps a few monitors dialled while there are untried ones.
    fn dial(&mut self, now: Instant) {
        let State::Hunting(hunt) = &mut self.state else { return };
        while hunt.dialling.len() < PARALLEL
            && let Some(addr) = hunt.untried.pop()
        {
            let conn = ConnId(self.next_conn);
            self.next_conn += 1;
            let (auth, outcome) = self.tickets.mon_auth(&mut *self.entropy);
            hunt.dialling.insert(conn, (addr, outcome));
            self.actions.push_back(Action::Dial { conn, addr, auth: Box::new(auth) });
        }
        // All have failed: why wait for the end of the round to tell that they refuse us?
        if hunt.dialling.is_empty() && hunt.refused.is_some() {
            self.next_round(now);
        }
    }

    fn next_round(&mut self, now: Instant) {
        let State::Hunting(hunt) = &mut self.state else { return };
        for (conn, (addr, _)) in std::mem::take(&mut hunt.dialling) {
            self.actions.push_back(Action::Close(conn));
            self.trouble.insert(addr, "no answer".to_owned());
        }
        if !hunt.untried.is_empty() {
            hunt.ends = now + self.hunt;
            return self.dial(now);
        }
        let Some(error) = hunt.refused.take() else {
            self.refusals = 0;
            self.hunt = (self.hunt * 3 / 2).min(HUNT_MAX);
            return self.start_round(now);
        };
        self.refusals += 1;
        let pause = match self.refusals {
            1 => REFUSED_PAUSE,
            _ if !self.logged_in_once => return self.fail(ConnectError::Refused(error)),
            refusals => {
                if refusals == 2 {
                    let error = self.explained(error);
                    self.actions.push_back(Action::Event(Event::Refused(error)));
                }
                self.hunt = (self.hunt * 3 / 2).min(HUNT_MAX);
                self.hunt
            }
        };
        self.state = State::Resting { until: now + pause };
    }

    /// Time is up before the first login.
    fn give_up(&mut self, now: Instant) {
        let mut refused = None;
        if let State::Hunting(hunt) = &mut self.state {
            for (conn, (addr, _)) in std::mem::take(&mut hunt.dialling) {
                self.actions.push_back(Action::Close(conn));
                self.trouble.entry(addr).or_insert_with(|| "no answer".to_owned());
            }
            for addr in hunt.untried.drain(..) {
                self.trouble.entry(addr).or_insert_with(|| "not tried".to_owned());
            }
            refused = hunt.refused.take();
        }
        let tried = std::mem::take(&mut self.trouble).into_iter().collect();
        let after = now.since(self.began);
        let unreachable = ConnectError::Unreachable { after, tried };
        self.fail(refused.map_or(unreachable, ConnectError::Refused));
    }

    fn fail(&mut self, error: ConnectError) {
        self.state = State::Failed;
        self.actions.push_back(Action::Event(Event::Failed(error)));
    }

    /// A message has come. `false` if it is not for this client but for whoever knows such messages.
    pub fn handle_message(&mut self, now: Instant, conn: ConnId, message: &Message) -> bool {
        if !matches!(&self.state, State::Connected(session) if session.conn == conn) {
            return true; // from a connection that has lost the race
        }
        match self.read(now, message) {
            Ok(ours) => ours,
            Err(error) => {
                self.actions.push_back(Action::Close(conn));
                self.lose(now, error.to_string());
                true
            }
        }
    }

    fn read(&mut self, now: Instant, message: &Message) -> Result<bool, DecodeError> {
        match message.header.kind {
            kind::MON_MAP => {
                let map = decode(&MonMapMessage::decode(message)?.map, "MonMap")?;
                self.new_map(now, map);
            }
            // Monitors may send it unasked, too.
            kind::CONFIG if self.config.wants_options => {
                let options = Options::decode(message)?;
                self.actions.push_back(Action::Event(Event::Options(options)));
            }
            kind::AUTH_REPLY => {
                let reply = AuthReply::decode(message)?;
                self.renewed(now, &reply);
            }
            kind::MON_COMMAND_ACK => {
                let reply = CommandAck::decode(message)?;
                self.answered(reply.tid, Event::Command(reply));
            }
            kind::MON_GET_VERSION_REPLY => {
                let reply = GetVersionReply::decode(message)?;
                self.answered(Tid(reply.handle), Event::Version(reply));
            }
            kind::POOL_OP_REPLY => {
                let reply = PoolOpReply::decode(message)?;
                self.answered(reply.tid, Event::PoolOp(reply));
            }
            kind::STATFS_REPLY => {
                let reply = StatfsReply::decode(message)?;
                self.answered(reply.tid, Event::Statfs(reply));
            }
            // Only of old monitors: subscriptions end with the session, and not before.
            kind::MON_SUBSCRIBE_ACK => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// An answer that comes a second time, because the question was sent again, is nobody's.
    fn answered(&mut self, tid: Tid, event: Event) {
        if self.asked.remove(&tid).is_some() {
            self.actions.push_back(Action::Event(event));
        }
    }

    fn new_map(&mut self, now: Instant, map: MonMap) {
        got(&mut self.wanted, "monmap", map.epoch);
        let State::Connected(Session { conn, addr, .. }) = &self.state else { return };
        let (conn, addr) = (*conn, *addr);
        if self.fsid().is_some_and(|fsid| fsid != map.fsid) {
            self.actions.push_back(Action::Close(conn));
            return self.lose(now, format!("the monitor of another cluster, {}", map.fsid));
        }
        let first = self.map.is_none();
        if self.map.as_ref().is_some_and(|known| known.epoch > map.epoch) {
            return;
        }
        // Service tickets were declared worthless (`ceph auth wipe-rotating-service-keys`).
        let auth_epoch = |map: &MonMap| map.auth.as_ref().map(|auth| auth.epoch);
        if self.map.as_ref().is_some_and(|known| auth_epoch(known) < auth_epoch(&map)) {
            for service in &self.config.login.services {
                self.tickets.refused(*service);
            }
        }
        let known = candidates(&map);
        let gone = !known.is_empty() && !known.iter().any(|known| known.addr.addr == addr.addr);
        self.map = Some(map.clone());
        self.actions.push_back(Action::Event(Event::MonMap(map)));
        if gone {
            self.actions.push_back(Action::Close(conn));
            return self.lose(now, "no longer in the monitor map".to_owned());
        }
        if first {
            self.send_asked(|ask| !matches!(ask, Ask::Version { .. }));
        }
        self.renew(now);
    }

    /// Asks for fresh tickets if it is time.
    fn renew(&mut self, now: Instant) {
        let State::Connected(session) = &mut self.state else { return };
        if session.renewing.is_some() || self.tickets.renewal_due().is_none_or(|due| due > now) {
            return;
        }
        let Some(payload) = self.tickets.renewal_request(now, &mut *self.entropy) else { return };
        session.renewing = Some(now);
        let monmap_epoch = self.map.as_ref().map(|map| map.epoch).unwrap_or_default();
        let auth = Auth { protocol: method::CEPHX, payload, monmap_epoch };
        self.actions.push_back(Action::Send(session.conn, Request::Auth(auth)));
    }

    fn renewed(&mut self, now: Instant, reply: &AuthReply) {
        let State::Connected(session) = &mut self.state else { return };
        if session.renewing.take().is_none() {
            return;
        }
        let event = match self.tickets.renewal_reply(now, reply.result, &reply.payload) {
            Ok(()) => Event::TicketsRenewed,
            Err(error) => {
                self.tickets.postpone(now + RENEW_AGAIN);
                self.actions.push_back(Action::Event(Event::KeyRefused));
                Event::Refused(self.explained(error))
            }
        };
        self.actions.push_back(Action::Event(event));
        self.renew(now);
    }
}

fn candidates(map: &MonMap) -> Vec<Candidate> {
    let candidate = |mon: &crate::monmap::Mon| {
        let addr = mon.addrs.msgr2()?;
        Some(Candidate { addr, priority: mon.priority, weight: mon.weight })
    };
    map.mons.iter().filter_map(candidate).collect()
}

/// A map has come: a subscription to it goes on after it, or is done.
fn got(wanted: &mut BTreeMap<String, Subscription>, what: &str, epoch: Epoch) {
    let next = u64::from(epoch.0) + 1;
    match wanted.get_mut(what) {
        Some(subscription) if subscription.start >= next => {}
        Some(Subscription { onetime: true, .. }) => {
            wanted.remove(what);
        }
        Some(subscription) => subscription.start = next,
        None => {}
    }
}

#[cfg(test)]
mod tests;

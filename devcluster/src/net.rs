//! Drives a [`Cluster`] over TCP: one thread, one task per connection, no task or channel per request.
//!
//! A connection's task reads all that is there, hands every message over, makes what happened last, and writes all that
//! is to be written with one vectored write. Answers to other connections wait in those connections' outboxes, whose
//! tasks are woken.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use proto::msgr::auth::ConnectionMode;
use proto::msgr::{Connection, Event, SendError, ServerConfig, Timing};
use proto::types::{AddrType, EntityAddr, EntityAddrs, Instant, OsdId, UTime};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, Daemon};
use crate::wire::{Action, ConnId, Now, ToPeer};

/// What one connection reads at once, in bytes.
const READ_BYTES: usize = 256 << 10;

/// What one connection may have read before others get their turn, in bytes.
const TURN_BYTES: usize = 2 << 20;

/// A peer that does not read its answers is not read from beyond this many queued bytes.
const BACKLOG_BYTES: usize = 16 << 20;

/// How many buffers one write takes.
const SLICES: usize = 64;

/// Timeouts are looked after this often.
const TICK: Duration = Duration::from_millis(200);

/// The cluster and everything around it that has to do with sockets.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    outboxes: BTreeMap<ConnId, Rc<Outbox>>,
    listeners: BTreeMap<Daemon, Listener>,
    frozen: BTreeSet<Daemon>,
    mon_modes: Vec<ConnectionMode>,
    osd_modes: Vec<ConnectionMode>,
    started: std::time::Instant,
    /// Set when something could not be made to last: nothing may be acknowledged from then on.
    pub(crate) failed: bool,
}

struct Listener {
    task: JoinHandle<()>,
    addr: EntityAddr,
}

/// What waits to be sent on one connection.
struct Outbox {
    daemon: Daemon,
    queue: RefCell<VecDeque<ToPeer>>,
    wake: Notify,
    closed: Cell<bool>,
}

pub(crate) type Shared = Rc<RefCell<World>>;

impl World {
    pub(crate) fn new(
        cluster: Cluster,
        mon_modes: Vec<ConnectionMode>,
        osd_modes: Vec<ConnectionMode>,
    ) -> Self {
        Self {
            cluster,
            outboxes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            frozen: BTreeSet::new(),
            mon_modes,
            osd_modes,
            started: std::time::Instant::now(),
            failed: false,
        }
    }

    /// What time it is.
    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { instant: Instant(self.started.elapsed()), wall: UTime::from(wall) }
    }

    /// Makes what has happened last, and hands answers to the connections that they are for. The one that is at work
    /// looks into its outbox anyway and need not be woken.
    pub(crate) fn settle(&mut self, at_work: Option<ConnId>) {
        if let Err(error) = self.cluster.persist() {
            tracing::error!(%error, "nothing can be written any more: the cluster stops");
            self.failed = true;
        }
        for action in self.cluster.actions.0.drain(..) {
            match action {
                Action::Send(conn, message) => {
                    if let Some(outbox) = self.outboxes.get(&conn) {
                        outbox.queue.borrow_mut().push_back(message);
                        if at_work != Some(conn) {
                            outbox.wake.notify_one();
                        }
                    }
                }
                Action::Close(conn) => {
                    if let Some(outbox) = self.outboxes.get(&conn) {
                        outbox.close();
                    }
                }
            }
        }
        if self.failed {
            self.outboxes.values().for_each(|outbox| outbox.close());
        }
    }

    /// Ends connections.
    pub(crate) fn drop_connections(&self, of: Option<Daemon>) -> usize {
        let of = self.outboxes.values().filter(|o| of.is_none_or(|daemon| o.daemon == daemon));
        of.map(|outbox| outbox.close()).count()
    }

    /// Lets a daemon neither read nor write, or lets it go on.
    pub(crate) fn freeze(&mut self, daemon: Daemon, freeze: bool) {
        if freeze {
            self.frozen.insert(daemon);
        } else {
            self.frozen.remove(&daemon);
        }
        for outbox in self.outboxes.values().filter(|outbox| outbox.daemon == daemon) {
            outbox.wake.notify_one();
        }
    }

    /// Stops listening and ends all connections of a daemon.
    pub(crate) fn stop_listening(&mut self, daemon: Daemon) {
        if let Some(listener) = self.listeners.remove(&daemon) {
            listener.task.abort();
        }
        self.drop_connections(Some(daemon));
    }

    /// Where a daemon listens.
    pub(crate) fn addr(&self, daemon: Daemon) -> Option<EntityAddr> {
        self.listeners.get(&daemon).map(|listener| listener.addr)
    }
}

impl Outbox {
    fn close(&self) {
        self.closed.set(true);
        self.wake.notify_one();
    }
}

/// Starts an OSD: it listens and is marked up.
pub(crate) async fn start_osd(world: &Shared, osd: OsdId, at: SocketAddr) -> io::Result<()> {
    let daemon = Daemon::Osd(osd);
    let listener = TcpListener::bind(at).await?;
    // Another nonce at each start tells clients that it is another instance.
    let nonce = world.borrow().started.elapsed().as_nanos() as u32 | 1;
    let addr = EntityAddr::msgr2(listener.local_addr()?, nonce);
    listen(world, daemon, listener, addr);
    let mut world = world.borrow_mut();
    let now = world.now();
    world.cluster.start_osd(now, osd, addr);
    world.settle(None);
    Ok(())
}

/// Accepts connections to a daemon from now on.
pub(crate) fn listen(world: &Shared, daemon: Daemon, listener: TcpListener, addr: EntityAddr) {
    let task_world = Rc::clone(world);
    let task = tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let _ = stream.set_nodelay(true);
                    tokio::task::spawn_local(serve(
                        Rc::clone(&task_world),
                        stream,
                        peer,
                        daemon,
                        addr,
                    ));
                }
                // Too many open files, say: that may pass.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(TICK).await;
                }
            }
        }
    });
    world.borrow_mut().listeners.insert(daemon, Listener { task, addr });
}

/// Looks after timeouts, for ever.
pub(crate) async fn tick(world: Shared) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        let mut world = world.borrow_mut();
        let now = world.now();
        world.cluster.handle_timeout(now);
        world.settle(None);
        // Connections look at the clock when they are woken.
        world.outboxes.values().for_each(|outbox| outbox.wake.notify_one());
    }
}

/// One connection, from the first byte to the last.
async fn serve(
    world: Shared,
    stream: TcpStream,
    peer: SocketAddr,
    daemon: Daemon,
    addr: EntityAddr,
) {
    let (id, outbox, connection, login) = {
        let mut world = world.borrow_mut();
        let id = world.cluster.new_conn();
        let queue = RefCell::default();
        let outbox =
            Rc::new(Outbox { daemon, queue, wake: Notify::new(), closed: Cell::new(false) });
        world.outboxes.insert(id, Rc::clone(&outbox));
        let modes = match daemon {
            Daemon::Monitor => world.mon_modes.clone(),
            Daemon::Osd(_) => world.osd_modes.clone(),
        };
        let (auth, login) = world.cluster.authenticate(daemon, modes);
        let config = ServerConfig {
            name: daemon.name(),
            addrs: EntityAddrs(vec![addr]),
            peer_addr: EntityAddr { kind: AddrType::MSGR2, nonce: 0, addr: Some(peer) },
            global_seq: id.0,
            required: 0,
        };
        let connection = Connection::server(world.now().instant, Timing::default(), config, auth);
        (id, outbox, connection, login)
    };
    let mut link = Link { id, daemon, connection, login, stream, input: BytesMut::new() };
    let error = link.run(&world, &outbox).await.err();
    if let Some(error) = error {
        tracing::debug!(?daemon, %peer, %error, "connection ended");
    }
    let mut world = world.borrow_mut();
    world.outboxes.remove(&id);
    world.cluster.closed(id);
    world.settle(None);
}

struct Link {
    id: ConnId,
    daemon: Daemon,
    connection: Connection,
    login: crate::cluster::Login,
    stream: TcpStream,
    input: BytesMut,
}

impl Link {
    async fn run(&mut self, world: &Shared, outbox: &Outbox) -> io::Result<()> {
        loop {
            if outbox.closed.get() {
                return Ok(());
            }
            if world.borrow().frozen.contains(&self.daemon) {
                outbox.wake.notified().await;
                continue;
            }
            let more = self.read(world, outbox)?;
            self.fill(outbox);
            self.write()?;
            if outbox.closed.get() {
                return Ok(());
            }
            let blocked = self.connection.has_transmit();
            if more && self.connection.queued() < BACKLOG_BYTES {
                // Others get their turn.
                tokio::task::yield_now().await;
                continue;
            }
            let interest = match (blocked, self.connection.queued() < BACKLOG_BYTES) {
                (false, _) => Interest::READABLE,
                (true, true) => Interest::READABLE | Interest::WRITABLE,
                (true, false) => Interest::WRITABLE,
            };
            tokio::select! {
                biased;
                ready = self.stream.ready(interest) => { ready?; }
                () = outbox.wake.notified() => {}
            }
            let now = world.borrow().now().instant;
            if self.connection.poll_timeout().is_some_and(|due| due <= now) {
                self.connection.handle_timeout(now).map_err(io::Error::other)?;
            }
        }
    }

    /// Reads what is there and handles it. Returns whether there may be more.
    fn read(&mut self, world: &Shared, outbox: &Outbox) -> io::Result<bool> {
        let mut turn = 0;
        while turn < TURN_BYTES && self.connection.queued() < BACKLOG_BYTES {
            let wanted = self.connection.wanted(self.input.len());
            if self.input.capacity() - self.input.len() < wanted.max(READ_BYTES / 8) {
                // Once all messages are handled, this is the same memory again.
                self.input.reserve(wanted.max(READ_BYTES));
            }
            let room = self.input.capacity() - self.input.len();
            let read = match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => {
                    outbox.close();
                    return Ok(false);
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            turn += read;
            let mut world = world.borrow_mut();
            let now = world.now();
            let handled = self.connection.handle_data(now.instant, &mut self.input);
            while let Some(event) = self.connection.poll_event() {
                match event {
                    Event::Ready(session) => {
                        world.cluster.connected(self.id, self.daemon, &session, &self.login);
                    }
                    Event::Message(message) => {
                        world.cluster.handle_message(now, self.id, &message);
                    }
                }
            }
            world.settle(Some(self.id));
            drop(world);
            if let Err(error) = handled {
                // What is left to say (why a login was refused, say) is tried once.
                let _ = self.write();
                return Err(io::Error::other(error));
            }
            self.fill(outbox);
            if read < room {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Moves messages from the outbox to the connection.
    fn fill(&mut self, outbox: &Outbox) {
        let mut queue = outbox.queue.borrow_mut();
        while let Some(message) = queue.front() {
            match self.connection.send(message) {
                Ok(()) => {
                    queue.pop_front();
                }
                Err(SendError::Full) => return,
                Err(_) => {
                    outbox.close();
                    return;
                }
            }
        }
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) -> io::Result<()> {
        while self.connection.has_transmit() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let filled = self.connection.transmit_slices(&mut slices);
            match self.stream.try_write_vectored(&slices[..filled]) {
                Ok(written) => self.connection.transmitted(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

//! What arrives where, and when: each connection has two directions, and each lets bytes through in order, when their
//! time has come, unless something is wrong with it. The daemons' ends of all connections are here.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use devcluster::cluster::Login;
use devcluster::wire::{Action, ConnId, Now};
use proto::msg::backoff::Backoff;
use proto::msg::kind;
use proto::msg::object::SpgId;
use proto::msg::osd_map::OsdMaps;
use proto::msgr::{Connection, Event as Said, Message, Outgoing, ServerConfig, Timing};
use proto::types::{AddrType, EntityAddr, EntityAddrs, Epoch};

use crate::network::{Dialled, End, LineId};
use crate::world::{Event, Millis, Place, TICK, World};

/// One direction of a connection.
#[derive(Default)]
pub(crate) struct Way {
    queue: VecDeque<(Millis, Bytes)>,
    /// Nothing gets through any more, and nobody is told.
    pub(crate) lost: bool,
    /// Nothing gets through before.
    pub(crate) held: Millis,
    /// Until then, only a byte now and then.
    pub(crate) trickles: Millis,
    due: Option<Millis>,
}

/// A backoff that a client was told of. As long as it has not said that it heard so, the backoff stays, whatever it was
/// for: what the client has sent before would be dropped, and what it sends after that be carried out.
pub(crate) struct BackingOff {
    pub(crate) backoff: Backoff,
    pub(crate) heard: bool,
    pub(crate) over: bool,
}

/// The daemon's end of a connection.
pub(crate) struct Server {
    pub(crate) conn: ConnId,
    pub(crate) place: Place,
    pub(crate) client: usize,
    connection: Connection,
    login: Login,
    input: BytesMut,
    pub(crate) up: Way,
    pub(crate) down: Way,
    /// Requests that wait to be carried out.
    pub(crate) waiting: usize,
    /// The daemon knows that it is over.
    pub(crate) gone: bool,
    /// How much of what was sent, and of what has arrived, is what the client is told when it is fenced.
    sent: u64,
    arrived: u64,
    fence_told: Option<u64>,
    pub(crate) backoffs: BTreeMap<SpgId, BackingOff>,
}

impl World {
    pub(crate) fn turn(&mut self) {
        self.take_from_clients();
        let now = self.millis();
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happen(event);
        }
    }

    fn take_from_clients(&mut self) {
        for dialled in self.network.take_dialled() {
            let latency = self.latency();
            self.after(latency, Event::Accept(dialled));
        }
        for (line, bytes) in self.network.take_written() {
            self.send_up(line, bytes.freeze());
        }
        for (line, bytes) in self.network.take_dropped() {
            if !bytes.is_empty() {
                self.send_up(line, bytes.freeze());
            }
            let latency = self.latency();
            self.after(latency, Event::Gone(line));
        }
    }

    fn send_up(&mut self, line: LineId, bytes: Bytes) {
        let latency = self.latency();
        let now = self.millis();
        let Some(server) = self.servers.get_mut(&line) else { return };
        let (client, place) = (server.client, server.place);
        if let Some(due) = server.up.put(now + latency, bytes) {
            self.after(due - now, Event::Up(line));
        }
        let known = self.fences.get(&client).and_then(|fence| fence.known);
        if matches!(place, Place::Osd(_)) && known.is_some_and(|known| known < now) {
            self.fail(format!(
                "client {client} sends to {place:?} although it knows that it is fenced"
            ));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Accept(dialled) => self.accept(dialled),
            Event::Up(line) => self.arrive_up(line),
            Event::Down(line) => self.arrive_down(line),
            Event::Gone(line) => self.server_gone(line),
            Event::Over(line, how) => self.network.end(line, how),
            Event::Execute { line, osd, instance, message } => {
                self.execute(line, osd, instance, &message);
            }
            Event::Tick => self.tick(),
            Event::Fault => self.fault(),
            Event::Undo(undo) => self.undo(undo),
        }
    }

    fn accept(&mut self, dialled: Dialled) {
        let Dialled { line, client, addr } = dialled;
        let Some(place) = Place::at(addr) else { return };
        if self.faults.cut_off.contains(&(client, place))
            || self.planted.never_answers(client, place)
        {
            return;
        }
        let up = match place {
            Place::Mon(rank) => self.mon_works(rank),
            Place::Osd(osd) => self.osds.get(&osd).is_some_and(|osd| osd.runs),
        };
        self.note(format_args!("client {client} dials {place:?}: {up}"));
        if !up {
            return self.network.connected(line, Err(io::ErrorKind::ConnectionRefused.into()));
        }
        let conn = self.cluster.new_conn();
        let (auth, login) = self.cluster.authenticate(place.daemon(), self.modes.clone());
        let nonce = match place {
            Place::Mon(_) => 0,
            Place::Osd(osd) => self.osds[&osd].instance,
        };
        let from = SocketAddr::from(([10, 0, 2, client as u8], 40_000));
        let config = ServerConfig {
            name: place.name(),
            addrs: EntityAddrs(vec![EntityAddr::msgr2(addr, nonce)]),
            peer_addr: EntityAddr { kind: AddrType::MSGR2, nonce: 0, addr: Some(from) },
            global_seq: conn.0,
            required: 0,
        };
        let connection = Connection::server(self.now().instant, Timing::default(), config, auth);
        let server = Server {
            conn,
            place,
            client,
            connection,
            login,
            input: BytesMut::new(),
            up: Way::default(),
            down: Way::default(),
            waiting: 0,
            gone: false,
            sent: 0,
            arrived: 0,
            fence_told: None,
            backoffs: BTreeMap::new(),
        };
        self.servers.insert(line, server);
        self.conns.insert(conn, line);
        self.network.connected(line, Ok(()));
        self.transmit(line);
    }

    fn arrive_down(&mut self, line: LineId) {
        let now = self.millis();
        let Some(server) = self.servers.get_mut(&line) else { return };
        let (bytes, next) = server.down.take(now);
        server.arrived += bytes.len() as u64;
        let client = server.client;
        if server.fence_told.is_some_and(|at| at <= server.arrived)
            && let Some(fence) = self.fences.get_mut(&client)
        {
            fence.known.get_or_insert(now);
        }
        self.network.deliver(line, &bytes);
        if let Some(due) = next {
            self.after(due - now, Event::Down(line));
        }
    }

    fn arrive_up(&mut self, line: LineId) {
        let now = self.now();
        let millis = self.millis();
        let Some(server) = self.servers.get_mut(&line) else { return };
        let (bytes, next) = server.up.take(millis);
        self.network.read_by_peer(line, bytes.len());
        server.input.extend_from_slice(&bytes);
        let handled = match server.gone {
            true => Ok(()),
            false => server.connection.handle_data(now.instant, &mut server.input),
        };
        while let Some(said) = self.servers.get_mut(&line).and_then(|s| s.connection.poll_event()) {
            self.heard(now, line, said);
        }
        self.settle();
        self.transmit(line);
        if handled.is_err() {
            self.note(format_args!("{line:?} ends: {handled:?}"));
            self.hang_up(line);
        }
        if let Some(due) = next {
            self.after(due - millis, Event::Up(line));
        }
    }

    fn heard(&mut self, now: Now, line: LineId, said: Said) {
        let Some(server) = self.servers.get_mut(&line) else { return };
        let (conn, place) = (server.conn, server.place);
        match said {
            Said::Ready(session) => {
                if let Some(addr) = session.peer_addrs.0.first() {
                    self.addrs.insert(server.client, *addr);
                }
                self.cluster.connected(conn, place.daemon(), &session, &server.login);
            }
            Said::Message(message) => match place {
                Place::Mon(_) => self.cluster.handle_message(now, conn, &message),
                Place::Osd(osd) => self.request(line, osd, message),
            },
        }
    }

    /// The daemon ends a connection.
    pub(crate) fn hang_up(&mut self, line: LineId) {
        self.server_gone(line);
        let latency = self.latency();
        let how = if self.random.one_in(2) { End::Closed } else { End::Reset };
        self.after(latency, Event::Over(line, how));
    }

    /// The daemon learns that a connection is over. What it was asked before may still be carried out.
    pub(crate) fn server_gone(&mut self, line: LineId) {
        let drops = self.random.one_in(2);
        let Some(server) = self.servers.get_mut(&line) else { return };
        server.gone = true;
        if drops {
            server.waiting = 0;
        }
        if server.waiting == 0 {
            self.forget(line);
        }
    }

    pub(crate) fn forget(&mut self, line: LineId) {
        if let Some(server) = self.servers.remove(&line) {
            self.conns.remove(&server.conn);
            self.cluster.closed(server.conn);
        }
    }

    /// Hands what daemons want to say to their connections.
    pub(crate) fn settle(&mut self) {
        while !self.cluster.actions.0.is_empty() {
            for action in std::mem::take(&mut self.cluster.actions.0) {
                match action {
                    Action::Send(conn, message) => self.say(conn, &message),
                    Action::Close(conn) => {
                        if let Some(line) = self.conns.get(&conn) {
                            self.hang_up(*line);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn say(&mut self, conn: ConnId, message: &dyn Outgoing) {
        let Some(&line) = self.conns.get(&conn) else { return };
        let Some(server) = self.servers.get_mut(&line) else { return };
        let message = message_of(message);
        if let Some(fence) = self.fences.get(&server.client)
            && message.header.kind == kind::OSD_MAP
            && OsdMaps::decode(&message).is_ok_and(|maps| newest_in(&maps) >= fence.epoch)
        {
            // All of it has arrived when this many bytes have, and what is sent with it.
            server.fence_told.get_or_insert(u64::MAX);
        }
        for message in self.planted.passes_down(line, message) {
            let _ = server.connection.send(&message);
        }
        self.transmit(line);
    }

    fn transmit(&mut self, line: LineId) {
        let latency = self.latency();
        let now = self.millis();
        let Some(server) = self.servers.get_mut(&line) else { return };
        let mut bytes = BytesMut::new();
        while server.connection.has_transmit() {
            let mut slices = [io::IoSlice::new(&[]); 16];
            let filled = server.connection.transmit_slices(&mut slices);
            let count: usize = slices[..filled].iter().map(|slice| slice.len()).sum();
            slices[..filled].iter().for_each(|slice| bytes.extend_from_slice(slice));
            server.connection.transmitted(count);
        }
        if bytes.is_empty() {
            return;
        }
        server.sent += bytes.len() as u64;
        if server.fence_told == Some(u64::MAX) {
            server.fence_told = Some(server.sent);
        }
        if let Some(due) = server.down.put(now + latency, bytes.freeze()) {
            self.after(due - now, Event::Down(line));
        }
    }

    fn tick(&mut self) {
        let now = self.now();
        self.cluster.handle_timeout(now);
        let lines: Vec<_> = self.servers.keys().copied().collect();
        for line in lines {
            let Some(server) = self.servers.get_mut(&line) else { continue };
            if server.connection.poll_timeout().is_some_and(|due| due <= now.instant) {
                match server.connection.handle_timeout(now.instant) {
                    Ok(()) => self.transmit(line),
                    Err(_) => self.hang_up(line),
                }
            }
        }
        self.settle();
        self.after(TICK, Event::Tick);
    }
}

impl Way {
    /// Lets something arrive. Says when, if nothing else is to arrive before.
    fn put(&mut self, due: Millis, bytes: Bytes) -> Option<Millis> {
        if self.lost {
            return None;
        }
        let due = self.queue.back().map_or(due, |(last, _)| due.max(*last));
        self.queue.push_back((due, bytes));
        match self.due {
            Some(_) => None,
            None => {
                self.due = Some(due);
                self.due
            }
        }
    }

    /// What arrives now, and when the next comes.
    fn take(&mut self, now: Millis) -> (BytesMut, Option<Millis>) {
        let mut taken = BytesMut::new();
        self.due = None;
        if self.lost {
            self.queue.clear();
            return (taken, None);
        }
        if self.held > now {
            self.due = Some(self.held);
            return (taken, self.due);
        }
        let trickles = self.trickles > now;
        while let Some((due, bytes)) = self.queue.front_mut() {
            if *due > now {
                self.due = Some(*due);
                break;
            }
            if trickles {
                taken.extend_from_slice(&bytes.split_to(1));
                if bytes.is_empty() {
                    self.queue.pop_front();
                }
                if !self.queue.is_empty() {
                    self.due = Some(now + 1000);
                }
                break;
            }
            taken.extend_from_slice(bytes);
            self.queue.pop_front();
        }
        (taken, self.due)
    }
}

/// A message as its receiver sees it.
pub(crate) fn message_of(outgoing: &dyn Outgoing) -> Message {
    let mut front = BytesMut::new();
    outgoing.encode_front(&mut front);
    let mut data = BytesMut::new();
    outgoing.data(&mut |piece| data.extend_from_slice(piece));
    let (front, data) = (front.freeze(), data.freeze());
    Message { header: outgoing.header(), front, middle: Bytes::new(), data }
}

fn newest_in(maps: &OsdMaps) -> Epoch {
    let full = maps.full.last_key_value().map(|(epoch, _)| *epoch);
    let incremental = maps.incremental.last_key_value().map(|(epoch, _)| *epoch);
    full.max(incremental).unwrap_or_default()
}

//! A client against a server in memory, and both against bytes of real Ceph.

mod captured;
mod faults;
mod sessions;

use std::io::IoSlice;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};

use super::auth::{
    AuthError, AuthRequest, ClientAuth, ConnectionMode, Established, ServerAuth, ServerStep, method,
};
use super::{
    ClientConfig, Connection, Error, Event, Header, Message, ServerConfig, Session, Timing,
};
use crate::types::{AddrType, EntityAddr, EntityAddrs, EntityName, EntityType, Instant};

const KEY: &[u8] = b"a session key of any length";

fn established(mode: ConnectionMode) -> Established {
    let secret = match mode {
        ConnectionMode::Crc => Vec::new(),
        ConnectionMode::Secure => (0..64).collect(),
    };
    Established { session_key: KEY.to_vec(), connection_secret: secret }
}

/// Authentication by shouting: the server asks `rounds` times, then believes.
struct StubClient {
    modes: Vec<ConnectionMode>,
    key: Vec<u8>,
}

impl ClientAuth for StubClient {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        let payload = Bytes::from_static(b"let me in");
        Ok(AuthRequest { method: method::CEPHX, modes: self.modes.clone(), payload })
    }

    fn bad_method(
        &mut self,
        result: i32,
        methods: &[u32],
        modes: &[u32],
    ) -> Result<AuthRequest, AuthError> {
        if result == -95 && modes == [2] {
            self.modes = vec![ConnectionMode::Secure];
            return self.request();
        }
        Err(AuthError::Refused(format!("{result}: {methods:?} {modes:?}")))
    }

    fn reply_more(&mut self, payload: &[u8]) -> Result<Bytes, AuthError> {
        Ok(Bytes::from([payload, b"!"].concat()))
    }

    fn done(
        &mut self,
        _global_id: u64,
        mode: ConnectionMode,
        payload: &[u8],
    ) -> Result<Established, AuthError> {
        assert_eq!(payload, b"welcome");
        Ok(Established { session_key: self.key.clone(), ..established(mode) })
    }
}

struct StubServer {
    modes: Vec<ConnectionMode>,
    rounds: usize,
}

impl StubServer {
    fn step(&mut self, mode: ConnectionMode) -> ServerStep {
        if self.rounds > 0 {
            self.rounds -= 1;
            // Longer than what fits inline, so that every part of a control frame is there.
            return ServerStep::More(Bytes::from(vec![b'?'; 100 + self.rounds]));
        }
        ServerStep::Done {
            global_id: 4711,
            mode,
            payload: Bytes::from_static(b"welcome"),
            established: established(mode),
        }
    }
}

impl ServerAuth for StubServer {
    fn request(&mut self, request: &AuthRequest) -> Result<ServerStep, AuthError> {
        assert_eq!(request.payload, "let me in");
        match self.modes.iter().find(|mode| request.modes.contains(mode)) {
            Some(&mode) => {
                self.modes = vec![mode];
                Ok(self.step(mode))
            }
            None => Ok(ServerStep::BadMethod {
                result: -95,
                methods: vec![method::CEPHX],
                modes: self.modes.clone(),
            }),
        }
    }

    fn request_more(&mut self, payload: &[u8]) -> Result<ServerStep, AuthError> {
        assert!(payload.ends_with(b"?!"));
        Ok(self.step(self.modes[0]))
    }
}

fn osd_addr() -> EntityAddr {
    EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], 6800)), 99)
}

fn client_config() -> ClientConfig {
    ClientConfig {
        peer: EntityType::OSD,
        target: osd_addr(),
        local: EntityAddr { nonce: 7, ..EntityAddr::default() },
        global_seq: 1,
    }
}

fn server_config() -> ServerConfig {
    ServerConfig {
        name: EntityName { kind: EntityType::OSD, num: 3 },
        addrs: EntityAddrs(vec![osd_addr()]),
        peer_addr: EntityAddr::msgr2(SocketAddr::from(([10, 1, 2, 3], 40_000)), 0),
        global_seq: 1,
        required: 0,
    }
}

/// One end with its receive buffer.
struct End {
    connection: Connection,
    input: BytesMut,
    events: Vec<Event>,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self { connection, input: BytesMut::new(), events: Vec::new() }
    }

    fn receive(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.input.extend_from_slice(bytes);
        let result = self.connection.handle_data(Instant::default(), &mut self.input);
        self.events.extend(std::iter::from_fn(|| self.connection.poll_event()));
        result
    }

    /// All that it has to transmit.
    fn transmit(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.connection.has_transmit() {
            let mut slices = [IoSlice::new(&[]); 3];
            let count = self.connection.transmit_slices(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            // A socket may take less than it is given.
            let taken = bytes.len().div_ceil(2);
            all.extend_from_slice(&bytes[..taken]);
            self.connection.transmitted(taken);
        }
        all
    }

    fn session(&self) -> &Session {
        match &self.events[0] {
            Event::Ready(session) => session,
            event => panic!("{event:?} before the session"),
        }
    }

    fn messages(&self) -> Vec<&Message> {
        let mut messages = Vec::new();
        for event in &self.events {
            match event {
                Event::Message(message) => messages.push(message),
                Event::Ready(_) => {}
            }
        }
        messages
    }
}

fn client(config: ClientConfig, modes: &[ConnectionMode]) -> End {
    let auth = StubClient { modes: modes.to_vec(), key: KEY.to_vec() };
    End::new(Connection::client(Instant::default(), Timing::default(), config, Box::new(auth)))
}

fn server(config: ServerConfig, modes: &[ConnectionMode], rounds: usize) -> End {
    let auth = StubServer { modes: modes.to_vec(), rounds };
    End::new(Connection::server(Instant::default(), Timing::default(), config, Box::new(auth)))
}

fn pair(mode: ConnectionMode) -> (End, End) {
    (client(client_config(), &[mode]), server(server_config(), &[mode], 2))
}

/// Lets both talk until neither has anything to say. Returns what each has said.
fn talk(client: &mut End, server: &mut End) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let (mut from_client, mut from_server) = (Vec::new(), Vec::new());
    loop {
        let bytes = client.transmit();
        server.receive(&bytes)?;
        from_client.extend_from_slice(&bytes);
        let answer = server.transmit();
        client.receive(&answer)?;
        from_server.extend_from_slice(&answer);
        if bytes.is_empty() && answer.is_empty() {
            return Ok((from_client, from_server));
        }
    }
}

fn message(tid: u64, front: usize, data: usize) -> Message {
    let fill = |len: usize, salt: u64| -> Bytes {
        (0..len).map(|i| (i as u64 * 31 + tid * 7 + salt) as u8).collect()
    };
    Message {
        header: Header { tid, kind: 42, priority: 63, version: 8, compat: 3 },
        front: fill(front, 1),
        middle: Bytes::new(),
        data: fill(data, 2),
    }
}

const MODES: [ConnectionMode; 2] = [ConnectionMode::Crc, ConnectionMode::Secure];

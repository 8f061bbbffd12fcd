//! Frames of an established connection, in either mode, to either side.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proto::msgr::auth::{
    AuthError, AuthRequest, ClientAuth, ConnectionMode, Established, ServerAuth, ServerStep, method,
};
use proto::msgr::{ClientConfig, Connection, Event, ServerConfig, Timing};
use proto::types::{EntityAddr, EntityAddrs, EntityName, EntityType, Instant};

use super::Pieces;
use super::wire::{Sealer, connection_secret};

/// What the first byte of an input says.
pub(crate) mod how {
    /// Secure mode.
    pub(crate) const SECURE: u8 = 1;
    /// To a server.
    pub(crate) const SERVER: u8 = 2;
    /// The rest goes on the wire as it is.
    pub(crate) const RAW: u8 = 4;
}

pub(super) const NOW: Instant = Instant(Duration::ZERO);

/// Blocks that each side seals in a handshake: its signature, and in two its identity.
const SEALED: u64 = 3;

pub(super) fn run(input: &[u8]) {
    received(input);
}

/// The messages that come of an input.
pub(crate) fn received(input: &[u8]) -> usize {
    let mut plain = Pieces(input);
    let how = plain.byte();
    let is_server = how & how::SERVER != 0;
    let mode = match how & how::SECURE {
        0 => ConnectionMode::Crc,
        _ => ConnectionMode::Secure,
    };
    let mut wire = Vec::new();
    if how & how::RAW != 0 {
        wire.extend(plain.0);
    } else {
        let mut sealer = match mode {
            ConnectionMode::Crc => Sealer::crc(),
            ConnectionMode::Secure => Sealer::secure(!is_server, SEALED),
        };
        while !plain.0.is_empty() {
            sealer.frame(&mut plain, &mut wire);
        }
    }
    let whole = receive(established(mode, is_server), &wire, wire.len().max(1));
    let torn = receive(established(mode, is_server), &wire, 1 + usize::from(how >> 3) * 5);
    assert_eq!(whole, torn, "a stream means something else when it is torn");
    whole.0.len()
}

/// The messages that come of a stream that is received in pieces, and how it ended.
fn receive(mut connection: Connection, wire: &[u8], piece: usize) -> (Vec<Event>, Option<String>) {
    let mut buffer = BytesMut::new();
    let mut error = None;
    for piece in wire.chunks(piece) {
        buffer.extend_from_slice(piece);
        if let Err(why) = connection.handle_data(NOW, &mut buffer) {
            error = Some(why.to_string());
            break;
        }
        // As much is made room for as a frame is said to take.
        assert!(connection.wanted(buffer.len()) <= proto::limits::RECEIVE_AHEAD_BYTES);
    }
    (std::iter::from_fn(|| connection.poll_event()).collect(), error)
}

/// A connection whose handshake is done, with a peer that has been forgotten since.
fn established(mode: ConnectionMode, is_server: bool) -> Connection {
    let mut client = client(EntityType::OSD, Box::new(Stub(mode)));
    let mut server = server(EntityType::OSD, Box::new(Stub(mode)));
    let (mut to_client, mut to_server) = (BytesMut::new(), BytesMut::new());
    while client.has_transmit() || server.has_transmit() {
        transmit(&mut client, &mut to_server);
        server.handle_data(NOW, &mut to_server).unwrap();
        transmit(&mut server, &mut to_client);
        client.handle_data(NOW, &mut to_client).unwrap();
    }
    let mut connection = if is_server { server } else { client };
    assert!(matches!(connection.poll_event(), Some(Event::Ready(_))));
    connection
}

pub(super) fn client(peer: EntityType, auth: Box<dyn ClientAuth>) -> Connection {
    let config = ClientConfig {
        peer,
        target: addr(peer),
        local: EntityAddr { nonce: 7, ..EntityAddr::default() },
        global_seq: 1,
    };
    Connection::client(NOW, Timing::default(), config, auth)
}

pub(super) fn server(kind: EntityType, auth: Box<dyn ServerAuth>) -> Connection {
    let config = ServerConfig {
        name: EntityName { kind, num: 0 },
        addrs: EntityAddrs(vec![addr(kind)]),
        peer_addr: EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], 40_000)), 0),
        global_seq: 1,
        required: 0,
    };
    Connection::server(NOW, Timing::default(), config, auth)
}

/// Where the monitor and the OSD were whose connections are in `fixtures/msgr`.
fn addr(kind: EntityType) -> EntityAddr {
    let (port, nonce) = if kind == EntityType::MON { (22000, 0) } else { (22010, 32291) };
    EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], port)), nonce)
}

fn transmit(from: &mut Connection, to: &mut BytesMut) {
    while from.has_transmit() {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = from.transmit_slices(&mut slices);
        let before = to.len();
        slices[..count].iter().for_each(|slice| to.extend_from_slice(slice));
        from.transmitted(to.len() - before);
    }
}

/// Authentication that believes everybody. Without a session key signatures are zeros, which an input can have.
pub(super) struct Stub(pub(super) ConnectionMode);

impl Stub {
    fn established(&self) -> Established {
        let connection_secret = match self.0 {
            ConnectionMode::Crc => Vec::new(),
            ConnectionMode::Secure => connection_secret(),
        };
        Established { session_key: Vec::new(), connection_secret }
    }
}

impl ClientAuth for Stub {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        Ok(AuthRequest { method: method::CEPHX, modes: vec![self.0], payload: Bytes::new() })
    }

    fn bad_method(&mut self, _: i32, _: &[u32], _: &[u32]) -> Result<AuthRequest, AuthError> {
        ClientAuth::request(self)
    }

    fn reply_more(&mut self, payload: &[u8]) -> Result<Bytes, AuthError> {
        Ok(Bytes::copy_from_slice(payload))
    }

    fn done(&mut self, _: u64, _: ConnectionMode, _: &[u8]) -> Result<Established, AuthError> {
        Ok(self.established())
    }
}

impl ServerAuth for Stub {
    fn request(&mut self, _: &AuthRequest) -> Result<ServerStep, AuthError> {
        Ok(ServerStep::Done {
            global_id: 1,
            mode: self.0,
            payload: Bytes::new(),
            established: self.established(),
        })
    }

    fn request_more(&mut self, _: &[u8]) -> Result<ServerStep, AuthError> {
        Err(AuthError::Misbehaved("more than was asked for".to_owned()))
    }
}

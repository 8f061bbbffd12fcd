//! A whole connection from the banner on: what a client hears from a server, and what devcluster hears from a client.

use std::sync::Arc;

use bytes::BytesMut;
use proto::cephx::{Entity, Login, Tickets};
use proto::msgr::auth::{ConnectionMode, method};
use proto::types::EntityType;

use super::Pieces;
use super::cephx::{Zeros, key};
use super::frames::{NOW, Stub, client, server};
use super::wire::Sealer;

/// What the first byte of an input says.
pub(crate) mod how {
    /// Secure mode once authentication is done.
    pub(crate) const SECURE: u8 = 1;
    /// To a server.
    pub(crate) const SERVER: u8 = 2;
    /// The rest goes on the wire as it is.
    pub(crate) const RAW: u8 = 4;
    /// A client that authenticates with cephx.
    pub(crate) const CEPHX: u8 = 8;
    /// … with a key of the newer type.
    pub(crate) const AES256K: u8 = 16;
    /// The server is a monitor, not an OSD.
    pub(crate) const MON: u8 = 32;
}

const BANNER: &[u8] = b"ceph v2\n\x10\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const AUTH_REQUEST: u8 = 2;
const AUTH_DONE: u8 = 6;

pub(super) fn run(input: &[u8]) {
    received(input);
}

/// How many events come of an input: a session that is ready, and messages.
pub(crate) fn received(input: &[u8]) -> usize {
    let mut plain = Pieces(input);
    let how = plain.byte();
    let is_server = how & how::SERVER != 0;
    let mode = match how & how::SECURE {
        0 => ConnectionMode::Crc,
        _ => ConnectionMode::Secure,
    };
    let kind = if how & how::MON != 0 { EntityType::MON } else { EntityType::OSD };
    let mut connection = match how & how::CEPHX {
        _ if is_server => server(kind, Box::new(Stub(mode))),
        0 => client(kind, Box::new(Stub(mode))),
        _ => {
            let login = Login {
                entity: Entity::client("admin"),
                key: Some(key(how & how::AES256K != 0)),
                methods: vec![method::CEPHX],
                modes: vec![mode],
                services: vec![EntityType::OSD],
            };
            client(kind, Box::new(Tickets::new(Arc::new(login)).mon_auth(&mut Zeros).0))
        }
    };
    let mut wire = Vec::new();
    if how & how::RAW != 0 {
        wire.extend(plain.0);
    } else {
        wire.extend(BANNER);
        let mut sealer = Sealer::crc();
        let last = if is_server { AUTH_REQUEST } else { AUTH_DONE };
        let mut is_done = false;
        while !plain.0.is_empty() {
            let tag = sealer.frame(&mut plain, &mut wire);
            if tag == last && !is_done && mode == ConnectionMode::Secure {
                is_done = true;
                sealer = Sealer::secure(!is_server, 0);
            }
        }
    }
    let mut buffer = BytesMut::new();
    for piece in wire.chunks(1 + usize::from(how >> 6) * 700) {
        buffer.extend_from_slice(piece);
        if connection.handle_data(NOW, &mut buffer).is_err() {
            // It has ended, whatever comes.
            assert!(connection.handle_data(NOW, &mut buffer).is_err());
            assert!(connection.poll_timeout().is_none());
            break;
        }
    }
    std::iter::from_fn(|| connection.poll_event()).count()
}

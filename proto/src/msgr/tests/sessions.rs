//! What works.

use std::sync::{Arc, Mutex};

use super::*;
use crate::cephx::server::{KeyServer, MonServerAuth, Policy};
use crate::cephx::{Entity, Key, KeyType, Keyring, Login, Tickets};
use crate::types::{Entropy, UTime};

#[test]
fn both_ends_learn_who_the_other_is() {
    for mode in MODES {
        let (mut client, mut server) = pair(mode);
        talk(&mut client, &mut server).unwrap();
        let (at_client, at_server) = (client.session(), server.session());
        assert_eq!(at_client.peer.to_string(), "osd.3");
        assert_eq!(at_server.peer.to_string(), "client.4711");
        assert_eq!(at_client.peer_addrs, EntityAddrs(vec![osd_addr()]));
        // The client had no address of its own: it is the one the server saw, without a port.
        let addr = Some(SocketAddr::from(([10, 1, 2, 3], 0)));
        assert_eq!(at_client.local, EntityAddr { kind: AddrType::ANY, nonce: 7, addr });
        assert_eq!(at_server.peer_addrs, EntityAddrs(vec![at_client.local]));
        assert_eq!((at_client.global_id, at_server.global_id), (4711, 4711));
        assert_eq!((at_client.mode, at_server.mode), (mode, mode));
        assert!(at_client.lossy && at_server.lossy);
    }
}

#[test]
fn messages_of_all_shapes_arrive_in_order() {
    let shapes = [0, 1, 15, 16, 17, 48, 4096, 8191, 8192, 100_000];
    let all: Vec<(usize, usize)> =
        shapes.iter().flat_map(|&front| shapes.iter().map(move |&data| (front, data))).collect();
    for mode in MODES {
        let (mut client, mut server) = pair(mode);
        let sent: Vec<Message> =
            (1..).zip(&all).map(|(tid, &(front, data))| message(tid, front, data)).collect();
        // The first half before there is a session.
        let (early, late) = sent.split_at(sent.len() / 2);
        early.iter().for_each(|message| client.connection.send(message).unwrap());
        talk(&mut client, &mut server).unwrap();
        late.iter().for_each(|message| client.connection.send(message).unwrap());
        sent.iter().for_each(|message| server.connection.send(message).unwrap());
        talk(&mut client, &mut server).unwrap();
        assert!(server.messages().into_iter().eq(&sent));
        assert!(client.messages().into_iter().eq(&sent));
    }
}

#[test]
fn the_server_asks_for_another_mode() {
    let mut client = client(client_config(), &[ConnectionMode::Crc]);
    let mut server = server(server_config(), &[ConnectionMode::Secure], 0);
    talk(&mut client, &mut server).unwrap();
    assert_eq!(client.session().mode, ConnectionMode::Secure);
}

/// Different bytes each time, the same ones in each run.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(5).wrapping_add(17);
            *byte = self.0;
        }
    }
}

#[test]
fn with_cephx() {
    for (kind, mode) in [KeyType::Aes, KeyType::Aes256k].into_iter().zip(MODES) {
        let key = Key::generate(kind, UTime::default(), &mut Counting(1));
        let text = format!(
            "[client.a]\nkey = {}\ncaps mon = \"allow r\"\ncaps osd = \"allow *\"\n",
            key.to_base64()
        );
        let keyring = Keyring::parse(&text).unwrap();
        let time = UTime { sec: 1_700_000_000, nsec: 0 };
        let keys = KeyServer::new(keyring, Policy::default(), 4100, time, Box::new(Counting(2)));
        let (server, _) = MonServerAuth::new(Arc::new(Mutex::new(keys)), MODES.to_vec());
        let login = Login {
            entity: Entity::client("a"),
            key: Some(key),
            methods: vec![method::CEPHX],
            modes: vec![mode],
            services: vec![EntityType::OSD],
        };
        let (client, outcome) = Tickets::new(Arc::new(login)).mon_auth(&mut Counting(3));
        let (now, timing) = (Instant::default(), Timing::default());
        let mut client =
            End::new(Connection::client(now, timing, client_config(), Box::new(client)));
        let mut server =
            End::new(Connection::server(now, timing, server_config(), Box::new(server)));
        let sent = message(1, 100, 9000);
        client.connection.send(&sent).unwrap();
        talk(&mut client, &mut server).unwrap();
        assert_eq!((client.session().mode, client.session().global_id), (mode, 4100));
        assert_eq!(outcome.get().map(|outcome| outcome.global_id), Some(4100));
        assert_eq!(server.messages(), [&sent]);
    }
}

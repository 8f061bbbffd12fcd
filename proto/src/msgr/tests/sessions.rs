//! What works.

use super::*;

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

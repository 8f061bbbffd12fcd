//! What goes wrong: torn streams, flipped bits, wrong peers, silence.

use std::time::Duration;

use bytes::BufMut;

use super::super::SendError;
use super::super::control::{Banner, MESSAGE_HEADER_LEN, Word};
use super::super::frame::{
    CRC_EPILOGUE_LEN, Decoder, LATE_STATUS_ABORTED, PREAMBLE_LEN, SECURE_EPILOGUE_LEN, Tag,
    head_len, tail_len,
};
use super::super::secure::{Gcm, TAG_LEN};
use super::super::transmit::Transmit;
use super::*;
use crate::crc::crc32c;
use crate::denc::{Encode, decode};
use crate::limits;
use crate::types::UTime;

/// A whole conversation with three messages each way: what the client said, what the server said, the messages.
fn conversation(mode: ConnectionMode) -> (Vec<u8>, Vec<u8>, Vec<Message>) {
    let (mut client, mut server) = pair(mode);
    let messages = vec![message(1, 0, 0), message(2, 20, 0), message(3, 33, 70)];
    for message in &messages {
        client.connection.send(message).unwrap();
        server.connection.send(message).unwrap();
    }
    let (from_client, from_server) = talk(&mut client, &mut server).unwrap();
    (from_client, from_server, messages)
}

#[test]
fn torn_at_every_offset() {
    for mode in MODES {
        let (_, from_server, messages) = conversation(mode);
        for at in 0..=from_server.len() {
            let (mut client, _) = pair(mode);
            let (first, second) = from_server.split_at(at);
            client.receive(first).unwrap();
            client.receive(second).unwrap();
            assert!(client.messages().into_iter().eq(&messages), "torn at {at} in {mode:?}");
        }
    }
}

#[test]
fn byte_by_byte_it_never_wants_more_than_the_rest_of_a_frame() {
    for mode in MODES {
        let (_, from_server, messages) = conversation(mode);
        let (mut client, _) = pair(mode);
        for (i, byte) in from_server.iter().enumerate() {
            let wanted = client.connection.wanted(client.input.len());
            assert!(wanted <= from_server.len() - i, "{wanted} at {i} of {}", from_server.len());
            client.receive(std::slice::from_ref(byte)).unwrap();
        }
        assert!(client.messages().into_iter().eq(&messages));
        assert!(client.input.is_empty());
    }
}

#[test]
fn a_flipped_bit_is_an_error_or_changes_nothing() {
    for mode in MODES {
        let (_, from_server, messages) = conversation(mode);
        let (mut whole, _) = pair(mode);
        whole.receive(&from_server).unwrap();
        let mut unnoticed = 0;
        for at in 0..from_server.len() {
            let mut flipped = from_server.clone();
            flipped[at] ^= 1 << (at % 8);
            let (mut client, _) = pair(mode);
            let result = client.receive(&flipped);
            if let Some(Event::Ready(_)) = client.events.first() {
                assert_eq!(client.session(), whole.session(), "byte {at} in {mode:?}");
            }
            let got = client.messages();
            assert!(got.iter().zip(&messages).all(|(got, sent)| *got == sent), "byte {at}");
            // Nothing wrong has come out; and with nothing noticed, all that is right has, or more bytes are awaited.
            if result.is_ok() && got.len() == messages.len() {
                unnoticed += 1;
            }
        }
        // Bytes that mean nothing: the banner, which the server's check of the signature covers; in crc mode also
        // checksums of segments that are not there, and half of the late status.
        let expected = match mode {
            ConnectionMode::Crc => 26 + 8 + 2,
            ConnectionMode::Secure => 26,
        };
        assert!(unnoticed <= expected, "{unnoticed} flips unnoticed in {mode:?}");
    }
}

/// A frame of a message whose sender has given up on it.
fn aborted(mode: ConnectionMode, gcm: impl Fn() -> Gcm) -> Vec<u8> {
    let lens = [20, 0, 100];
    let head = head_len(mode, MESSAGE_HEADER_LEN);
    let len = head + tail_len(mode, lens);
    let mut tx = Transmit::new();
    if mode == ConnectionMode::Secure {
        tx.secure(gcm());
    }
    let header =
        super::super::control::MessageHeader { seq: 1, ack_seq: 0, header: Header::default() };
    tx.message(&header, &message(9, lens[0], lens[2]));
    let mut slices = [IoSlice::new(&[]); 1];
    tx.slices(&mut slices);
    let mut bytes = slices[0].to_vec();
    assert_eq!(bytes.len(), len);
    match mode {
        ConnectionMode::Crc => bytes[len - CRC_EPILOGUE_LEN] = LATE_STATUS_ABORTED,
        ConnectionMode::Secure => {
            let (mut open, mut seal) = (gcm(), gcm());
            open.open(&mut bytes[..head]).unwrap();
            open.open(&mut bytes[head..]).unwrap();
            bytes[len - TAG_LEN - SECURE_EPILOGUE_LEN] = LATE_STATUS_ABORTED;
            seal.seal(&mut bytes[..head]);
            seal.seal(&mut bytes[head..]);
        }
    }
    bytes
}

#[test]
fn an_aborted_frame_is_dropped() {
    let gcm = || Gcm::pair(&established(ConnectionMode::Secure).connection_secret).unwrap().0;
    for mode in MODES {
        let mut rx = Decoder::new();
        if mode == ConnectionMode::Secure {
            rx.secure(gcm());
        }
        let mut input = BytesMut::from(aborted(mode, gcm).as_slice());
        assert!(rx.next(&mut input).unwrap().is_none());
        assert!(input.is_empty());
    }
    let mut neither = aborted(ConnectionMode::Crc, gcm);
    let at = neither.len() - CRC_EPILOGUE_LEN;
    neither[at] = 0;
    assert!(Decoder::new().next(&mut BytesMut::from(neither.as_slice())).is_err());
}

fn misbehaved(result: Result<impl std::fmt::Debug, Error>, part: &str) {
    match result {
        Err(Error::Misbehaved(what)) if what.contains(part) => {}
        result => panic!("{result:?} instead of {part:?}"),
    }
}

fn incompatible(result: Result<impl std::fmt::Debug, Error>, part: &str) {
    match result {
        Err(error @ Error::Incompatible(_)) if error.to_string().contains(part) => {
            assert!(!error.retryable());
        }
        result => panic!("{result:?} instead of {part:?}"),
    }
}

#[test]
fn other_protocols() {
    let receive = |bytes: &[u8]| pair(ConnectionMode::Crc).0.receive(bytes);
    incompatible(receive(b"ceph v027\0\0\0"), "messenger v1");
    incompatible(receive(b"HTTP/1.1 400 Bad Request"), "no Ceph messenger");
    incompatible(receive(b"c3"), "no Ceph messenger");
    assert_eq!(receive(b"ceph v"), Ok(()));
    let banner = |supported: u64, required: u64| {
        let mut w = b"ceph v2\n".to_vec();
        w.put_u16_le(16);
        w.put_u64_le(supported);
        w.put_u64_le(required);
        w
    };
    incompatible(receive(&banner(0, 0)), "2.1 is needed");
    incompatible(receive(&banner(3, 2)), "requires messenger features 0x2");
    assert_eq!(receive(&banner(3, 1)), Ok(()));
    misbehaved(receive(b"ceph v2\n\xff\xff"), "a banner of 65535 bytes");
}

#[test]
fn the_wrong_peer() {
    let modes = &[ConnectionMode::Crc];
    let against = |config: ClientConfig, server_config: ServerConfig| {
        let (mut client, mut server) = (client(config, modes), server(server_config, modes, 0));
        talk(&mut client, &mut server)
    };
    let config = ClientConfig { peer: EntityType::MON, ..client_config() };
    misbehaved(against(config, server_config()), "is a osd, not a mon");
    // The OSD was restarted, or another one has got its port. The server notices first.
    let target = EntityAddr { nonce: 98, ..osd_addr() };
    let config = ClientConfig { target, ..client_config() };
    misbehaved(against(config, server_config()), "looks for v2:127.0.0.1:6800/98");
}

#[test]
fn a_server_that_wants_more() {
    let modes = &[ConnectionMode::Crc];
    let config = ServerConfig { required: 1 << 52, ..server_config() };
    let (mut client, mut server) = (client(client_config(), modes), server(config, modes, 0));
    incompatible(talk(&mut client, &mut server), "bit 52");
}

#[test]
fn a_handshake_changed_on_the_way() {
    for mode in MODES {
        // Another key than the server's.
        let auth = StubClient { modes: vec![mode], key: b"another".to_vec() };
        let (now, timing) = (Instant::default(), Timing::default());
        let mut client = End::new(Connection::client(now, timing, client_config(), Box::new(auth)));
        let mut server = server(server_config(), &[mode], 0);
        misbehaved(talk(&mut client, &mut server), "the signature is wrong");
        // The server's banner says something else than it was.
        let (mut client, mut server) = pair(mode);
        server.receive(&client.transmit()).unwrap();
        let mut answer = server.transmit();
        answer[10] |= 2;
        client.receive(&answer).unwrap();
        misbehaved(talk(&mut client, &mut server), "the signature is wrong");
    }
}

#[test]
fn a_mode_that_was_not_offered() {
    struct Downgrade;
    impl ServerAuth for Downgrade {
        fn request(&mut self, _: &AuthRequest) -> Result<ServerStep, AuthError> {
            let mode = ConnectionMode::Crc;
            let (payload, established) = (Bytes::from_static(b"welcome"), established(mode));
            Ok(ServerStep::Done { global_id: 1, mode, payload, established })
        }
        fn request_more(&mut self, _: &[u8]) -> Result<ServerStep, AuthError> {
            panic!("one round")
        }
    }
    let mut client = client(client_config(), &[ConnectionMode::Secure]);
    let (now, timing) = (Instant::default(), Timing::default());
    let mut server =
        End::new(Connection::server(now, timing, server_config(), Box::new(Downgrade)));
    let error = talk(&mut client, &mut server).unwrap_err();
    assert!(matches!(error, Error::Refused(AuthError::Misbehaved(_))), "{error}");
}

struct Raw(Vec<u8>);

impl Encode for Raw {
    fn encode(&self, w: &mut BytesMut) {
        w.put_slice(&self.0);
    }
}

fn control(tag: Tag, payload: &dyn Encode) -> Vec<u8> {
    let mut tx = Transmit::new();
    tx.control(tag, payload).unwrap();
    let mut slices = [IoSlice::new(&[]); 1];
    tx.slices(&mut slices);
    slices[0].to_vec()
}

/// Both ends of a crc session up to the client's ident, which is handed over.
fn before_ident() -> (End, End, Vec<u8>) {
    let (mut client, mut server) = pair(ConnectionMode::Crc);
    let ident_len = head_len(ConnectionMode::Crc, 123);
    for _ in 0..10 {
        let mut bytes = client.transmit();
        // It comes together with the signature.
        let at = bytes.len().saturating_sub(ident_len);
        if bytes[at..].first() == Some(&(Tag::ClientIdent as u8)) {
            let ident = bytes.split_off(at);
            server.receive(&bytes).unwrap();
            return (client, server, ident);
        }
        server.receive(&bytes).unwrap();
        client.receive(&server.transmit()).unwrap();
    }
    panic!("the client does not identify itself")
}

#[test]
fn a_reconnecting_client_is_told_to_start_over() {
    let (mut client, mut server, ident) = before_ident();
    let mut w = BytesMut::new();
    EntityAddrs(vec![osd_addr()]).encode(&mut w);
    for _ in 0..5 {
        w.put_u64_le(17); // cookies of both, global seq, connect seq, message seq
    }
    server.receive(&control(Tag::SessionReconnect, &Raw(w.to_vec()))).unwrap();
    assert_eq!(server.transmit(), control(Tag::SessionReset, &Raw(vec![1])));
    server.receive(&ident).unwrap();
    client.receive(&server.transmit()).unwrap();
    assert_eq!(client.session().peer.num, 3);
}

#[test]
fn a_client_is_told_to_wait() {
    let (mut client, ..) = before_ident();
    let result = client.receive(&control(Tag::Wait, &Raw(Vec::new())));
    assert!(matches!(&result, Err(error @ Error::Lost(_)) if error.retryable()), "{result:?}");
    // It has ended, and stays so.
    assert!(client.receive(b"").is_err());
    assert_eq!(client.connection.send(&message(1, 1, 1)), Err(SendError::Closed));
    assert_eq!(client.connection.poll_timeout(), None);
}

#[test]
fn frames_out_of_turn() {
    let (mut client, mut server, ident) = before_ident();
    // Among them what only a session that is to be resumed is told: ours never are.
    let resumed = [Tag::SessionReset, Tag::SessionRetry, Tag::SessionRetryGlobal];
    for tag in resumed.into_iter().chain([Tag::Keepalive2, Tag::Hello, Tag::AuthDone]) {
        let (mut client, ..) = before_ident();
        misbehaved(client.receive(&control(tag, &Raw(vec![0; 8]))), "instead of an ident");
    }
    server.receive(&ident).unwrap();
    client.receive(&server.transmit()).unwrap();
    misbehaved(client.receive(&control(Tag::ServerIdent, &Word(1))), "ServerIdent in a session");
}

#[test]
fn messages_come_once_and_in_order() {
    let (mut client, mut server) = pair(ConnectionMode::Crc);
    talk(&mut client, &mut server).unwrap();
    let mut frames = Vec::new();
    for tid in 1..4 {
        client.connection.send(&message(tid, 9, 0)).unwrap();
        server.connection.send(&message(tid, 9, 0)).unwrap();
        frames.push((client.transmit(), server.transmit()));
    }
    client.receive(&frames[0].1).unwrap();
    server.receive(&frames[0].0).unwrap();
    // The kernel's client leaves gaps, Ceph's servers do not.
    server.receive(&frames[2].0).unwrap();
    misbehaved(server.receive(&frames[1].0), "message 2 after message 3");
    misbehaved(client.receive(&frames[2].1), "message 3 after message 1");
    assert_eq!((client.messages().len(), server.messages().len()), (1, 2));
}

/// A preamble with these lengths and a right checksum.
fn preamble(tag: u8, segments: u8, lens: [u32; 4], flags: u8) -> Vec<u8> {
    let mut w = vec![tag, segments];
    for len in lens {
        w.put_u32_le(len);
        w.put_u16_le(8);
    }
    w.put_u8(flags);
    w.put_u8(0);
    let crc = crc32c(0, &w);
    w.put_u32_le(crc);
    assert_eq!(w.len(), PREAMBLE_LEN);
    w
}

#[test]
fn lengths_that_lie_are_refused_at_once() {
    let message = Tag::Message as u8;
    let refused = |trusted: bool, bytes: Vec<u8>, part: &str| {
        let mut rx = Decoder::new();
        if trusted {
            rx.trust();
        }
        misbehaved(rx.next(&mut BytesMut::from(bytes.as_slice())), part);
    };
    let big = limits::FRAME_SEGMENT_BYTES as u32;
    let large = limits::HANDSHAKE_SEGMENT_BYTES as u32 + 1;
    refused(false, preamble(1, 1, [large, 0, 0, 0], 0), "too long");
    refused(false, preamble(message, 4, [41, 0, 0, large], 0), "too long");
    refused(true, preamble(message, 4, [41, 0, 0, big + 1], 0), "too long");
    refused(true, preamble(message, 4, [large, 0, 0, 1], 0), "too long");
    refused(true, preamble(message, 1, [41, 1, 0, 0], 0), "of 1 segments");
    refused(true, preamble(message, 3, [41, 1, 0, 0], 0), "of 3 segments");
    refused(true, preamble(message, 0, [0; 4], 0), "of 0 segments");
    refused(true, preamble(message, 5, [1; 4], 0), "of 5 segments");
    refused(true, preamble(1, 2, [1, 1, 0, 0], 0), "of 2 segments");
    refused(true, preamble(99, 1, [1, 0, 0, 0], 0), "unknown frame tag 99");
    refused(true, preamble(message, 1, [41, 0, 0, 0], 1), "compressed");
    // A large one is announced, not taken on trust.
    let mut rx = Decoder::new();
    rx.trust();
    let mut input = BytesMut::from(preamble(message, 4, [41, 0, 0, big], 0).as_slice());
    assert!(rx.next(&mut input).unwrap().is_none());
    assert!(input.capacity() < 1 << 20);
    assert!(rx.frame_len() > limits::FRAME_SEGMENT_BYTES);
}

#[test]
fn an_endless_handshake_ends() {
    struct Never;
    impl ServerAuth for Never {
        fn request(&mut self, _: &AuthRequest) -> Result<ServerStep, AuthError> {
            Ok(ServerStep::More(Bytes::from_static(b"?")))
        }
        fn request_more(&mut self, _: &[u8]) -> Result<ServerStep, AuthError> {
            self.request(&StubClient { modes: Vec::new(), key: Vec::new() }.request()?)
        }
    }
    let (now, timing) = (Instant::default(), Timing::default());
    let mut server = End::new(Connection::server(now, timing, server_config(), Box::new(Never)));
    server.receive(&pair(ConnectionMode::Crc).0.transmit()).unwrap();
    let (mut client, _) = pair(ConnectionMode::Crc);
    client.receive(&Banner::ours()).unwrap();
    let hello = client.transmit().split_off(26);
    server.receive(&hello).unwrap();
    let request = StubClient { modes: Vec::new(), key: Vec::new() }.request().unwrap();
    server.receive(&control(Tag::AuthRequest, &request)).unwrap();
    let more = vec![0; limits::HANDSHAKE_SEGMENT_BYTES - 4];
    let more = control(Tag::AuthRequestMore, &super::super::control::Blob(&more));
    let mut rounds = 0;
    let result = loop {
        rounds += 1;
        if let Err(error) = server.receive(&more) {
            break Err::<(), _>(error);
        }
    };
    misbehaved(result, "does not end");
    assert!(rounds <= limits::HANDSHAKE_BYTES / limits::HANDSHAKE_SEGMENT_BYTES + 1);
}

fn at(seconds: u64) -> Instant {
    Instant(Duration::from_secs(seconds))
}

#[test]
fn a_silent_peer() {
    for mode in MODES {
        let (mut client, mut server) = pair(mode);
        // During the handshake.
        assert_eq!(client.connection.poll_timeout(), Some(at(10)));
        assert_eq!(client.connection.handle_timeout(at(9)), Ok(()));
        talk(&mut client, &mut server).unwrap();
        // After it: asked at 10 s, heard then.
        assert_eq!(client.connection.poll_timeout(), Some(at(10)));
        client.connection.handle_timeout(at(10)).unwrap();
        let asked = client.transmit();
        server.receive(&asked).unwrap();
        let answer = server.transmit();
        client.input.extend_from_slice(&answer);
        client.connection.handle_data(at(12), &mut client.input).unwrap();
        assert!(client.input.is_empty() && !answer.is_empty());
        // Asked again at 22 s, once, and given up at 42 s.
        assert_eq!(client.connection.poll_timeout(), Some(at(22)));
        client.connection.handle_timeout(at(22)).unwrap();
        assert!(client.connection.has_transmit());
        client.transmit();
        assert_eq!(client.connection.poll_timeout(), Some(at(42)));
        client.connection.handle_timeout(at(41)).unwrap();
        assert!(!client.connection.has_transmit());
        let lost = client.connection.handle_timeout(at(42));
        assert!(matches!(&lost, Err(error @ Error::Lost(_)) if error.retryable()), "{lost:?}");
    }
    let (mut client, _) = pair(ConnectionMode::Crc);
    assert!(client.connection.handle_timeout(at(10)).is_err());
}

#[test]
fn a_handshake_of_one_byte_a_second_takes_too_long() {
    let (mut client, mut server) = pair(ConnectionMode::Crc);
    for (second, byte) in (1..10).zip(server.transmit()) {
        client.input.extend_from_slice(&[byte]);
        client.connection.handle_data(at(second), &mut client.input).unwrap();
        client.connection.handle_timeout(at(second)).unwrap();
    }
    assert!(client.connection.handle_timeout(at(10)).is_err());
}

#[test]
fn a_peer_that_says_one_byte_a_second_is_as_good_as_silent() {
    for mode in MODES {
        let (mut client, mut server) = pair(mode);
        talk(&mut client, &mut server).unwrap();
        server.connection.send(&message(1, 10, 4 << 20)).unwrap();
        let bytes = server.transmit();
        let mut given_up = None;
        for second in 1..60 {
            client.input.extend_from_slice(&bytes[second - 1..second]);
            client.connection.handle_data(at(second as u64), &mut client.input).unwrap();
            if client.connection.handle_timeout(at(second as u64)).is_err() {
                given_up = Some(second);
                break;
            }
        }
        assert_eq!(given_up, Some(30));
    }
}

#[test]
fn a_large_frame_may_take_its_time() {
    for mode in MODES {
        let (mut client, mut server) = pair(mode);
        talk(&mut client, &mut server).unwrap();
        server.connection.send(&message(1, 10, 4 << 20)).unwrap();
        let bytes = server.transmit();
        // Seven minutes, at 10 KiB per second.
        let mut second = 0;
        for chunk in bytes.chunks(10 << 10) {
            second += 1;
            client.input.extend_from_slice(chunk);
            client.connection.handle_data(at(second), &mut client.input).unwrap();
            client.connection.handle_timeout(at(second)).unwrap();
        }
        let mut events = std::iter::from_fn(|| client.connection.poll_event());
        assert!(second > 400 && events.any(|event| matches!(event, Event::Message(_))));
    }
}

#[test]
fn a_keepalive_is_answered_with_its_own_time() {
    let (mut client, mut server) = pair(ConnectionMode::Crc);
    talk(&mut client, &mut server).unwrap();
    client.connection.handle_timeout(at(11)).unwrap();
    server.receive(&client.transmit()).unwrap();
    let mut input = BytesMut::from(server.transmit().as_slice());
    let frame = Decoder::new().next(&mut input).unwrap().unwrap();
    assert_eq!(frame.tag, Tag::Keepalive2Ack);
    assert_eq!(decode::<UTime>(frame.first(), "time"), Ok(UTime { sec: 11, nsec: 0 }));
}

#[test]
fn the_send_queue_is_bounded() {
    let large = message(1, 0, 1 << 20);
    let count = limits::SEND_QUEUE_BYTES >> 20;
    let (mut client, mut server) = pair(ConnectionMode::Crc);
    let fill =
        |end: &mut End| (0..=count).take_while(|_| end.connection.send(&large).is_ok()).count();
    // Before the session, and with it.
    assert_eq!(fill(&mut client), count);
    assert_eq!(client.connection.send(&message(1, 1, 0)), Err(SendError::Full));
    talk(&mut client, &mut server).unwrap();
    assert_eq!(server.messages().len(), count);
    assert_eq!(fill(&mut client), count);
    assert_eq!(client.connection.send(&message(1, 1, 0)), Err(SendError::Full));
    // A peer that asks but does not read gets no answers without end.
    let queued = client.connection.queued();
    client.receive(&control(Tag::Keepalive2, &Raw(vec![0; 8]))).unwrap();
    assert_eq!(client.connection.queued(), queued);
    talk(&mut client, &mut server).unwrap();
    assert_eq!(client.connection.queued(), 0);
}

//! Bytes of real Ceph: see fixtures/README.md. Each frame of Ceph's is decoded, encoded again and has to come out the
//! same, encrypted or not; and whole connections are replayed through both roles.

use bytes::BufMut;

use super::super::control::{
    AuthBadMethod, AuthDone, Banner, Blob, ClientIdent, Hello, Keepalive, MessageHeader,
    ServerIdent,
};
use super::super::frame::{Decoder, Tag, head_len};
use super::super::secure::Gcm;
use super::super::transmit::Transmit;
use super::*;
use crate::denc::{Encode, Reader, decode};

struct Capture {
    c2s: &'static [u8],
    s2c: &'static [u8],
    /// Session key and connection secret.
    keys: &'static [u8],
}

macro_rules! capture {
    ($name:literal) => {
        capture!($name, b"")
    };
    ($name:literal, $keys:expr) => {
        Capture {
            c2s: include_bytes!(concat!("../../../../fixtures/msgr/", $name, ".c2s")),
            s2c: include_bytes!(concat!("../../../../fixtures/msgr/", $name, ".s2c")),
            keys: $keys,
        }
    };
}

const NONE_MON: Capture = capture!("none-crc-mon");
const NONE_PUT: Capture = capture!("none-crc-osd-put");
const NONE_GET: Capture = capture!("none-crc-osd-get");
const SECURE_MON: Capture =
    capture!("cephx-secure-mon", include_bytes!("../../../../fixtures/msgr/cephx-secure-mon.keys"));
const SECURE_OSD: Capture =
    capture!("cephx-secure-osd", include_bytes!("../../../../fixtures/msgr/cephx-secure-osd.keys"));
/// What the monitor sent: monmap, config, monmap again, mgr map, OSD map.
const MON_KINDS: [u16; 5] = [4, 62, 4, 1796, 41];
const OBJECT: &[u8] = include_bytes!("../../../../fixtures/msgr/object");

impl Capture {
    fn session_key(&self) -> Vec<u8> {
        self.keys.get(..16).unwrap_or_default().to_vec()
    }

    fn connection_secret(&self) -> Vec<u8> {
        self.keys.get(16..).unwrap_or_default().to_vec()
    }
}

struct Raw<'a>(&'a [u8]);

impl Encode for Raw<'_> {
    fn encode(&self, w: &mut BytesMut) {
        w.put_slice(self.0);
    }
}

/// Decodes a control payload into our structures and encodes those.
fn encoded_again(tag: Tag, payload: &[u8]) -> Bytes {
    let mut r = Reader::new(payload, "payload");
    match tag {
        Tag::Hello => decode::<Hello>(payload, "").unwrap().to_bytes(),
        Tag::AuthRequest => decode::<AuthRequest>(payload, "").unwrap().to_bytes(),
        Tag::AuthBadMethod => decode::<AuthBadMethod>(payload, "").unwrap().to_bytes(),
        Tag::AuthReplyMore | Tag::AuthRequestMore => Blob(r.blob().unwrap()).to_bytes(),
        Tag::AuthDone => AuthDone::decode(&mut r).unwrap().to_bytes(),
        Tag::AuthSignature => Raw(payload).to_bytes(),
        Tag::ClientIdent => decode::<ClientIdent>(payload, "").unwrap().to_bytes(),
        Tag::ServerIdent => decode::<ServerIdent>(payload, "").unwrap().to_bytes(),
        Tag::Keepalive2 | Tag::Keepalive2Ack => {
            decode::<Keepalive>(payload, "").unwrap().to_bytes()
        }
        tag => panic!("{tag:?} in a capture"),
    }
}

/// Reads a stream and writes all of it again. Returns tags and messages. After `plain` frames it is encrypted.
fn again(stream: &[u8], plain: usize, gcm: impl Fn() -> Option<Gcm>) -> (Vec<Tag>, Vec<Message>) {
    assert_eq!(stream[..26], Banner::ours(), "all speak 2.1 and require nothing");
    let mut input = BytesMut::from(&stream[26..]);
    let (mut rx, mut tx) = (Decoder::new(), Transmit::new());
    let (mut tags, mut messages) = (Vec::new(), Vec::new());
    loop {
        if tags.len() == plain
            && let (Some(open), Some(seal)) = (gcm(), gcm())
        {
            rx.secure(open);
            tx.secure(seal);
        }
        let at = stream.len() - input.len();
        let Some(frame) = rx.next(&mut input).unwrap() else { break };
        tags.push(frame.tag);
        if frame.tag == Tag::Message {
            let header: MessageHeader = decode(frame.first(), "header").unwrap();
            let [front, middle, data] = frame.rest();
            let message = Message { header: header.header, front, middle, data };
            tx.message(&header, &message);
            messages.push(message);
        } else {
            assert_eq!(encoded_again(frame.tag, frame.first()), frame.first(), "{:?}", frame.tag);
            tx.control(frame.tag, &Raw(frame.first())).unwrap();
        }
        let mut slices = [IoSlice::new(&[]); 8];
        let count = tx.slices(&mut slices);
        let bytes = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect::<Vec<u8>>();
        assert!(bytes == stream[at..stream.len() - input.len()], "{:?}", frame.tag);
        tx.transmitted(bytes.len());
    }
    assert!(input.is_empty());
    (tags, messages)
}

fn kinds(messages: &[Message]) -> Vec<u16> {
    messages.iter().map(|message| message.header.kind).collect()
}

#[test]
fn frames_of_librados_and_ceph_in_crc_mode() {
    let none = || None;
    let (tags, messages) = again(NONE_MON.c2s, 0, none);
    assert_eq!(tags[..4], [Tag::Hello, Tag::AuthRequest, Tag::AuthSignature, Tag::ClientIdent]);
    assert_eq!(kinds(&messages), [5, 15, 15, 15]);
    let (tags, messages) = again(NONE_MON.s2c, 0, none);
    assert_eq!(tags[..4], [Tag::Hello, Tag::AuthDone, Tag::AuthSignature, Tag::ServerIdent]);
    assert_eq!(kinds(&messages), MON_KINDS);
    let (_, messages) = again(NONE_PUT.c2s, 0, none);
    let header = Header { tid: 1, kind: 42, priority: 63, version: 8, compat: 3 };
    assert_eq!((messages[0].header, messages[0].front.len()), (header, 212));
    assert_eq!(messages[0].data, OBJECT);
    assert_eq!(kinds(&again(NONE_PUT.s2c, 0, none).1), [43]);
    assert_eq!(kinds(&again(NONE_GET.c2s, 0, none).1), [42]);
    assert_eq!(again(NONE_GET.s2c, 0, none).1[0].data, OBJECT);
}

#[test]
fn frames_of_ceph_in_secure_mode() {
    let (tags, messages) = again(SECURE_MON.s2c, 3, || {
        Gcm::pair(&SECURE_MON.connection_secret()).ok().map(|(rx, _)| rx)
    });
    let expected = [Tag::Hello, Tag::AuthReplyMore, Tag::AuthDone, Tag::AuthSignature];
    assert_eq!(tags[..4], expected);
    assert_eq!(kinds(&messages), [62, 41]);
    let (tags, messages) = again(SECURE_OSD.s2c, 3, || {
        Gcm::pair(&SECURE_OSD.connection_secret()).ok().map(|(rx, _)| rx)
    });
    assert_eq!(tags[..4], expected);
    assert_eq!(kinds(&messages), [43, 43]);
    assert_eq!(messages[1].data, OBJECT);
}

/// Says what was said in a capture.
struct Recorded {
    request: AuthRequest,
    more: Vec<Bytes>,
    established: Established,
}

impl Recorded {
    fn of(capture: &Capture) -> Self {
        let mut input = BytesMut::from(&capture.c2s[26..]);
        let mut rx = Decoder::new();
        let (mut request, mut more) = (None, Vec::new());
        while request.is_none() || (!capture.keys.is_empty() && more.is_empty()) {
            let frame = rx.next(&mut input).unwrap().unwrap();
            match frame.tag {
                Tag::AuthRequest => request = decode(frame.first(), "request").ok(),
                Tag::AuthRequestMore => {
                    let blob = Reader::new(frame.first(), "more").blob().unwrap();
                    more.push(Bytes::copy_from_slice(blob));
                }
                _ => {}
            }
        }
        let established = Established {
            session_key: capture.session_key(),
            connection_secret: capture.connection_secret(),
        };
        Self { request: request.unwrap(), more, established }
    }
}

impl ClientAuth for Recorded {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        Ok(self.request.clone())
    }

    fn bad_method(&mut self, _: i32, _: &[u32], _: &[u32]) -> Result<AuthRequest, AuthError> {
        panic!("no bad method in the captures")
    }

    fn reply_more(&mut self, _: &[u8]) -> Result<Bytes, AuthError> {
        Ok(self.more.remove(0))
    }

    fn done(&mut self, _: u64, _: ConnectionMode, _: &[u8]) -> Result<Established, AuthError> {
        Ok(self.established.clone())
    }
}

/// Our client hears what Ceph said.
fn client_of(capture: &Capture, peer: EntityType, port: u16, nonce: u32) -> End {
    let target = EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], port)), nonce);
    let config = ClientConfig { peer, target, ..client_config() };
    let auth = Box::new(Recorded::of(capture));
    End::new(Connection::client(Instant::default(), Timing::default(), config, auth))
}

#[test]
fn our_client_hears_monitors_and_osds() {
    let mut client = client_of(&NONE_MON, EntityType::MON, 22000, 0);
    client.receive(NONE_MON.s2c).unwrap();
    let session = client.session();
    assert_eq!((session.peer.to_string().as_str(), session.global_id), ("mon.0", 4122));
    assert_eq!(session.peer_addrs.to_string(), "[v2:127.0.0.1:22000/0]");
    assert!(session.lossy && session.mode == ConnectionMode::Crc);
    assert_eq!(client.messages().len(), MON_KINDS.len());

    // In secure mode Ceph's signature of the handshake counts, and so what we sent must be the same to the byte.
    for (capture, peer, port, nonce, messages) in [
        (&SECURE_MON, EntityType::MON, 22000, 0, 2),
        (&SECURE_OSD, EntityType::OSD, 22010, 4825, 2),
    ] {
        let mut client = client_of(capture, peer, port, nonce);
        client.receive(capture.s2c).unwrap();
        assert_eq!(client.session().mode, ConnectionMode::Secure);
        assert_eq!(client.messages().len(), messages);
        let sent = client.transmit();
        // All but the last frame, the ident, which has this client's nonce.
        let before = sent.len() - head_len(ConnectionMode::Secure, 123);
        assert!(sent[..before] == capture.c2s[..before]);
    }
}

/// Believes everybody.
struct Gullible;

impl ServerAuth for Gullible {
    fn request(&mut self, request: &AuthRequest) -> Result<ServerStep, AuthError> {
        assert_eq!(request.method, method::NONE);
        Ok(ServerStep::Done {
            global_id: 4122,
            mode: request.modes[0],
            payload: Bytes::new(),
            established: Established::default(),
        })
    }

    fn request_more(&mut self, _: &[u8]) -> Result<ServerStep, AuthError> {
        panic!("none has one round")
    }
}

#[test]
fn our_server_hears_librados() {
    for (capture, kind, port, nonce, messages) in [
        (&NONE_MON, EntityType::MON, 22000, 0, 4),
        (&NONE_PUT, EntityType::OSD, 22010, 32291, 1),
        (&NONE_GET, EntityType::OSD, 22010, 32291, 1),
    ] {
        let addr = EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], port)), nonce);
        let config = ServerConfig {
            name: EntityName { kind, num: 0 },
            addrs: EntityAddrs(vec![addr]),
            ..server_config()
        };
        let (now, timing) = (Instant::default(), Timing::default());
        let mut server = End::new(Connection::server(now, timing, config, Box::new(Gullible)));
        server.receive(capture.c2s).unwrap();
        assert_eq!(server.session().peer.kind, EntityType::CLIENT);
        assert_eq!(server.session().peer_addrs.0[0].kind, AddrType::ANY);
        assert_eq!(server.messages().len(), messages);
    }
}

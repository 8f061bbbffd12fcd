//! What the protocols cost without any I/O: placement, frames in both modes, extents of an image. Times are CPU time.
//!
//! `cargo bench --bench protocol`; with `-- --test` everything is run once, to see that it works.

#[path = "support/crushtool.rs"]
mod crushtool;
#[path = "support/maps.rs"]
mod maps;
#[path = "../examples/crushtool.rs"]
mod ours;
mod support;

use std::hint::black_box;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput};
use proto::crush::Scratch;
use proto::msg::object::{Locator, SpgId};
use proto::msg::op::{Op, code};
use proto::msg::osd_op::{
    OpReply, Operation, Reply, ReqId, Request, Routing, decode_request, flag,
};
use proto::msgr::auth::{
    AuthError, AuthRequest, ClientAuth, ConnectionMode, Established, ServerAuth, ServerStep, method,
};
use proto::msgr::{
    ClientConfig, Connection, Event, Message, Outgoing, ServerConfig, Timing, features,
};
use proto::osdmap::{OsdMap, WEIGHT_ONE};
use proto::rbd::layout::Layout;
use proto::types::{
    EVersion, EntityAddr, EntityAddrs, EntityName, EntityType, Epoch, PgId, PoolId, Tid,
};

use support::{CpuTime, thread_cpu};

/// How many frames are encoded or decoded at a time: what one system call moves at depth 32.
const BATCH: u64 = 32;

fn main() {
    let mut c = support::criterion();
    crush(&mut c);
    crushtool::beside(std::env::args().any(|arg| arg == "--test"));
    osdmap(&mut c);
    frames(&mut c);
    extents(&mut c);
    c.final_summary();
}

/// Placements of three copies.
fn crush(c: &mut Criterion<CpuTime>) {
    let mut group = c.benchmark_group("crush");
    group.throughput(Throughput::Elements(1));
    for (name, map) in
        [("12 OSDs, 2 levels", maps::small()), ("10,000 OSDs, 5 levels", maps::large())]
    {
        let weights = vec![WEIGHT_ONE; map.max_devices as usize];
        let mut scratch = Scratch::default();
        let mut x = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                x += 1;
                assert_eq!(map.do_rule(0, x, 3, &weights, None, &mut scratch).len(), 3);
            });
        });
    }
}

/// From an object's name to its OSD, and from one epoch to the next, in a cluster as large as they come.
fn osdmap(c: &mut Criterion<CpuTime>) {
    let mut map = maps::huge();
    let bytes = map.encode(features::SUPPORTED);
    let mut group = c.benchmark_group("osdmap");
    group.sample_size(10);
    group.bench_function("decode", |b| b.iter(|| OsdMap::decode(&bytes).expect("our own")));
    let names = maps::Names::default();
    let mut object = 0;
    let mut look_up = |map: &OsdMap| {
        object += 1;
        let target = names.look_up(map, object);
        assert!(target.primary.is_some());
    };
    group.throughput(Throughput::Elements(1));
    group.bench_function("object to OSD, group unknown", |b| {
        b.iter_batched(
            || OsdMap::decode(&bytes).expect("our own"),
            // The map goes back: to free it takes a thousand times as long, and is not what is asked for.
            |map| {
                look_up(&map);
                map
            },
            criterion::BatchSize::LargeInput,
        );
    });
    (0..4_000_000).for_each(|_| look_up(&map)); // places every group
    group.bench_function("object to OSD, group known", |b| b.iter(|| look_up(&map)));
    // An epoch after the other, as they come: OSDs down and up again, and some upmaps.
    let mut number = 0;
    group.bench_function("apply an epoch: an OSD down or up, 100 upmaps", |b| {
        b.iter(|| {
            number += 1;
            let change = maps::change(&map, number);
            map.apply(&change).expect("a change that fits");
        });
    });
}

/// Both ends of a connection.
struct Pair {
    client: Connection,
    server: Connection,
    to_client: BytesMut,
    to_server: BytesMut,
}

/// An authentication that has both sides know the same keys from the start.
struct Keys(ConnectionMode);

impl Keys {
    fn established(&self) -> Established {
        let connection_secret = match self.0 {
            ConnectionMode::Crc => Vec::new(),
            ConnectionMode::Secure => (0..64).collect(),
        };
        Established { session_key: b"session".to_vec(), connection_secret }
    }
}

impl ClientAuth for Keys {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        let payload = Bytes::new();
        Ok(AuthRequest { method: method::CEPHX, modes: vec![self.0], payload })
    }

    fn bad_method(&mut self, _: i32, _: &[u32], _: &[u32]) -> Result<AuthRequest, AuthError> {
        Err(AuthError::Refused("not agreed on beforehand".to_owned()))
    }

    fn reply_more(&mut self, _: &[u8]) -> Result<Bytes, AuthError> {
        Ok(Bytes::new())
    }

    fn done(&mut self, _: u64, _: ConnectionMode, _: &[u8]) -> Result<Established, AuthError> {
        Ok(self.established())
    }
}

impl ServerAuth for Keys {
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

const NOW: proto::types::Instant = proto::types::Instant(Duration::ZERO);

impl Pair {
    fn new(mode: ConnectionMode) -> Self {
        let addr = EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], 6800)), 1);
        let client = ClientConfig {
            peer: EntityType::OSD,
            target: addr,
            local: EntityAddr { nonce: 7, ..EntityAddr::default() },
            global_seq: 1,
        };
        let server = ServerConfig {
            name: EntityName { kind: EntityType::OSD, num: 0 },
            addrs: EntityAddrs(vec![addr]),
            peer_addr: EntityAddr::msgr2(SocketAddr::from(([127, 0, 0, 1], 40_000)), 0),
            global_seq: 1,
            required: 0,
        };
        let timing = Timing::default();
        let mut pair = Self {
            client: Connection::client(NOW, timing, client, Box::new(Keys(mode))),
            server: Connection::server(NOW, timing, server, Box::new(Keys(mode))),
            to_client: BytesMut::new(),
            to_server: BytesMut::new(),
        };
        while pair.client.has_transmit() || pair.server.has_transmit() {
            copy(&mut pair.client, &mut pair.to_server);
            pair.server.handle_data(NOW, &mut pair.to_server).expect("handshake");
            copy(&mut pair.server, &mut pair.to_client);
            pair.client.handle_data(NOW, &mut pair.to_client).expect("handshake");
        }
        for end in [&mut pair.client, &mut pair.server] {
            assert!(
                matches!(end.poll_event(), Some(Event::Ready(session)) if session.mode == mode)
            );
        }
        pair
    }
}

/// What a socket does.
fn copy(from: &mut Connection, to: &mut BytesMut) {
    while from.has_transmit() {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = from.transmit_slices(&mut slices);
        let before = to.len();
        slices[..count].iter().for_each(|slice| to.extend_from_slice(slice));
        let len = to.len() - before;
        from.transmitted(len);
    }
}

/// A read of 4 KiB, its reply, and a write of as much, as messages and on the wire.
fn frames(c: &mut Criterion<CpuTime>) {
    let routing = routing();
    let read = operation(Op::Read { offset: 8192, length: 4096 });
    let data = Bytes::from(vec![0xa5; 4096]);
    let write = operation(Op::Write { offset: 8192, data: data.clone() });
    let reply = reply(data);
    let is_read = |message: &Message| assert_eq!(decode_request(message).unwrap().1.ops.len(), 1);
    let is_reply = |message: &Message| {
        assert_eq!(Reply::decode(message).unwrap().ops[0].data.len(), 4096);
    };
    for mode in [ConnectionMode::Crc, ConnectionMode::Secure] {
        let mut group = c.benchmark_group(format!("frames, {mode:?}").to_lowercase());
        group.throughput(Throughput::Elements(1));
        let mut pair = Pair::new(mode);
        let read = Request { routing: &routing, operation: &read };
        let write = Request { routing: &routing, operation: &write };
        let Pair { client, server, to_client, to_server } = &mut pair;
        group.bench_function("encode a read request", |b| {
            b.iter_custom(|n| many(n, client, server, to_server, &read, is_read).0);
        });
        group.bench_function("decode the reply to it", |b| {
            b.iter_custom(|n| many(n, server, client, to_client, &reply, is_reply).1);
        });
        group.bench_function("encode a write request", |b| {
            b.iter_custom(|n| many(n, client, server, to_server, &write, is_read).0);
        });
        group.bench_function("encode a read's reply (a server)", |b| {
            b.iter_custom(|n| many(n, server, client, to_client, &reply, is_reply).0);
        });
        group.bench_function("decode a write request (a server)", |b| {
            b.iter_custom(|n| many(n, client, server, to_server, &write, is_read).1);
        });
    }
}

/// Sends a message `n` times, in batches. Returns how long encoding took, and decoding.
fn many(
    n: u64,
    from: &mut Connection,
    to: &mut Connection,
    wire: &mut BytesMut,
    message: &impl Outgoing,
    decode: impl Fn(&Message),
) -> (Duration, Duration) {
    let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
    let mut left = n;
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let begun = thread_cpu();
        for _ in 0..batch {
            from.send(black_box(message)).expect("room");
        }
        encoding += thread_cpu() - begun;
        wire.reserve(256 << 10);
        copy(from, wire);
        let begun = thread_cpu();
        to.handle_data(NOW, wire).expect("whole frames");
        while let Some(event) = to.poll_event() {
            match event {
                Event::Message(message) => decode(&message),
                Event::Ready(_) => unreachable!("it is ready already"),
            }
        }
        decoding += thread_cpu() - begun;
    }
    (encoding, decoding)
}

fn pg() -> PgId {
    PgId { pool: PoolId(1), seed: 7 }
}

fn routing() -> Routing {
    Routing {
        tid: Tid(1),
        pgid: SpgId { pg: pg(), shard: SpgId::NO_SHARD },
        hash: 0x1234_5678,
        epoch: Epoch(12),
        flags: flag::READ | flag::ACK,
        reqid: ReqId {
            client: EntityName { kind: EntityType::CLIENT, num: 4100 },
            tid: Tid(1),
            incarnation: 0,
        },
        attempt: 0,
        features: features::SUPPORTED,
    }
}

fn operation(op: Op) -> Operation {
    Operation::new(
        Locator::of_pool(PoolId(1)),
        "rbd_data.1f2e3d4c5b6a.0000000000000007",
        vec![op.into()],
    )
}

fn reply(data: Bytes) -> Reply {
    Reply {
        tid: Tid(1),
        object: Bytes::from_static(b"rbd_data.1f2e3d4c5b6a.0000000000000007"),
        pgid: pg(),
        flags: flag::ACK,
        result: 0,
        epoch: Epoch(12),
        attempt: 0,
        version: EVersion::default(),
        user_version: 42,
        ops: vec![OpReply { code: code::READ, result: 0, data }],
        redirect: None,
    }
}

/// From a range of an image to ranges of objects.
fn extents(c: &mut Criterion<CpuTime>) {
    let plain = Layout::plain(22).expect("a layout");
    let striped = Layout::new(22, 64 << 10, 16).expect("a layout");
    let mut group = c.benchmark_group("extents");
    group.throughput(Throughput::Elements(1));
    for (name, layout, len) in [
        ("plain, 4 KiB", plain, 4 << 10),
        ("plain, 16 MiB", plain, 16 << 20),
        ("16 stripes of 64 KiB, 4 KiB", striped, 4 << 10),
        ("16 stripes of 64 KiB, 1 MiB", striped, 1 << 20),
        ("16 stripes of 64 KiB, 16 MiB", striped, 16 << 20),
    ] {
        let mut at = 0u64;
        group.bench_function(name, |b| {
            b.iter(|| {
                at = (at + 0x9e37_7000) % (1 << 40);
                layout.extents(black_box(at), len).map(|extent| extent.len).sum::<u64>()
            });
        });
    }
}

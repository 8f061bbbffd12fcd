//! Clients that leave early, read slowly, speak nonsense or come apart in pieces, and a server that is told to stop.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nbd::device::{Completion, Device, Geometry, Outcome, Queue, ReadData, Request, Segment};
use nbd::memory::MemoryDevice;
use nbd::{Export, Exports, Server, limits};
use support::{Folder, Raw, Served, Wayward, request};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const GRACE: Duration = Duration::from_secs(10);

fn wayward(size: u64) -> (Served, Wayward) {
    let device = Wayward::new(size);
    (Served::new(vec![Export::new("disk", device.clone())]), device)
}

fn write(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(WRITE, cookie, offset, data.len() as u32);
    bytes.extend_from_slice(data);
    bytes
}

#[test]
fn requests_may_come_byte_by_byte_or_all_at_once() {
    let served = Served::memory(1 << 20);
    let mut raw = Raw::connect(&served.socket());
    let mut all = Vec::new();
    for cookie in 0..200 {
        all.extend(write(cookie, cookie * 512, &[cookie as u8; 512]));
    }
    all.extend(request(FLUSH, 1000, 0, 0));
    for byte in &all[..3000] {
        raw.send(std::slice::from_ref(byte));
    }
    raw.send(&all[3000..]);
    let mut cookies: Vec<_> = (0..201).map(|_| raw.reply()).collect();
    cookies.sort_unstable();
    let expected: Vec<_> = (0..200).chain([1000]).map(|cookie| (0, cookie)).collect();
    assert_eq!(cookies, expected);
    raw.send(&request(READ, 7, 100 * 512 - 1, 514));
    assert_eq!(raw.reply(), (0, 7));
    let data: [u8; 514] = raw.read();
    assert_eq!((data[0], data[1], data[512], data[513]), (99, 100, 100, 101));
}

#[test]
fn a_device_that_is_full_leaves_requests_in_the_sockets_of_all_connections() {
    const ROOM: u64 = 5;
    const BLOCK: usize = 64 << 10;

    let (served, device) = wayward(16 << 20);
    device.manner.lock().unwrap().room = ROOM;
    device.hold();
    let mut clients: Vec<_> = (0..3).map(|_| Raw::connect(&served.socket())).collect();
    let writers: Vec<_> = clients
        .iter_mut()
        .map(|client| {
            let mut stream = client.0.try_clone().unwrap();
            // More than a receive buffer and the socket hold: only a server that reads on lets it finish.
            std::thread::spawn(move || {
                for cookie in 0..100 {
                    stream.write_all(&write(cookie, cookie << 16, &[1; BLOCK])).unwrap();
                }
                stream.shutdown(Shutdown::Write).unwrap();
            })
        })
        .collect();
    device.wait_for(ROOM);
    // Time to read more than it should.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(device.in_flight.load(Ordering::SeqCst), ROOM);
    assert!(writers.iter().all(|writer| !writer.is_finished()));
    device.let_go();
    for client in &mut clients {
        let mut cookies: Vec<_> = (0..100).map(|_| client.reply()).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..100).map(|cookie| (0, cookie)).collect::<Vec<_>>());
        assert!(client.is_over());
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

#[test]
fn a_client_that_closed_its_half_gets_its_answers() {
    let (served, device) = wayward(1 << 20);
    device.hold();
    let mut raw = Raw::connect(&served.socket());
    for cookie in 0..10 {
        raw.send(&write(cookie, cookie * 4096, &[7; 4096]));
    }
    // A last request that is not complete is nothing.
    raw.send(&request(READ, 99, 0, 512)[..27]);
    raw.0.shutdown(Shutdown::Write).unwrap();
    device.wait_for(10);
    device.let_go();
    let mut cookies: Vec<_> = (0..10).map(|_| raw.reply()).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..10).map(|cookie| (0, cookie)).collect::<Vec<_>>());
    assert!(raw.is_over());
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    let (served, device) = wayward(1 << 20);
    device.hold();
    let mut raw = Raw::connect(&served.socket());
    raw.send(&write(1, 0, &[7; 512]));
    raw.send(&request(DISC, 2, 0, 0));
    device.wait_for(1);
    device.let_go();
    assert_eq!(raw.reply(), (0, 1));
    assert!(raw.is_over());
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let served = Served::memory(1 << 20);
    let socket = served.socket();
    let mut good = Raw::connect(&socket);
    for garbage in [
        &[0; 28][..],
        b"\x12\x56\x09\x53aaaaaaaaaaaaaaaaaaaaaaaa",
        b"\x25\x60\x95\x14aaaaaaaaaaaaaaaaaaaaaaaa",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut bad = Raw::connect(&socket);
        bad.send(&request(READ, 5, 0, 16));
        bad.send(garbage);
        // What came before the garbage is answered.
        assert_eq!(bad.reply(), (0, 5));
        bad.read::<16>();
        assert!(bad.is_over());
        let mut worse = Raw::dial(&socket);
        worse.send(garbage);
        assert!(worse.is_over());
        good.send(&request(READ, 6, 0, 16));
        assert_eq!(good.reply(), (0, 6));
        good.read::<16>();
    }
    // Gone in the middle of everything.
    let mut handshake = Raw::dial(&socket);
    handshake.send(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0");
    drop(handshake);
    let mut payload = Raw::connect(&socket);
    payload.send(&write(1, 0, &[1; 5000])[..3000]);
    drop(payload);
    good.send(&request(READ, 8, 0, 16));
    assert_eq!((good.reply(), good.read()), ((0, 8), [0; 16]));
}

#[test]
fn writes_of_a_client_that_vanished_still_happen() {
    let (served, device) = wayward(1 << 20);
    device.hold();
    let mut raw = Raw::connect(&served.socket());
    raw.send(&write(1, 0, &[9; 512]));
    device.wait_for(1);
    drop(raw);
    device.let_go();
    let mut other = Raw::connect(&served.socket());
    other.send(&request(READ, 1, 0, 512));
    assert_eq!((other.reply(), other.read()), ((0, 1), [9; 512]));
}

#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    const LEN: u32 = 1 << 20;
    // More than the server takes, and few enough that the rest fits into the socket: this thread sends before it reads.
    const READS: u64 = 150;
    let (served, device) = wayward(1 << 30);
    let mut slow = Raw::connect(&served.socket());
    slow.send(&write(0, 0, &[3; 512]));
    assert_eq!(slow.reply(), (0, 0));
    let before = device.bytes.load(Ordering::SeqCst);
    for cookie in 0..READS {
        slow.send(&request(READ, cookie, 0, LEN));
    }
    let mut good = Raw::connect(&served.socket());
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(4));
        good.send(&request(READ, 1, 0, 1));
        assert_eq!((good.reply(), good.read()), ((0, 1), [3]));
    }
    let taken = device.bytes.load(Ordering::SeqCst) - before;
    let most = limits::BYTES_IN_FLIGHT + 2 * u64::from(LEN);
    assert!(taken <= most, "{taken} bytes were read for a client that takes none");
    assert!(taken >= limits::BYTES_IN_FLIGHT / 2, "{taken} bytes are too timid");
    let mut data = vec![0; LEN as usize];
    for _ in 0..READS {
        assert_eq!(slow.reply().0, 0);
        slow.0.read_exact(&mut data).unwrap();
        assert_eq!((data[511], data[512]), (3, 0));
    }
}

#[test]
fn requests_in_flight_are_bounded() {
    let (served, device) = wayward(1 << 20);
    device.hold();
    let mut raw = Raw::connect(&served.socket());
    let many = limits::REQUESTS_IN_FLIGHT as u64 + 100;
    let all: Vec<u8> = (0..many).flat_map(|cookie| request(READ, cookie, 0, 1)).collect();
    raw.send(&all);
    // What was received is answered, although the end is known before there is room for all of it.
    raw.0.shutdown(Shutdown::Write).unwrap();
    device.wait_for(limits::REQUESTS_IN_FLIGHT as u64);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(device.in_flight.load(Ordering::SeqCst), limits::REQUESTS_IN_FLIGHT as u64);
    device.let_go();
    for _ in 0..many {
        assert_eq!(raw.reply().0, 0);
        raw.read::<1>();
    }
    assert!(raw.is_over());
}

#[test]
fn large_writes_arrive_whole() {
    let served = Served::memory(1 << 30);
    let mut raw = Raw::connect(&served.socket());
    let lens = [1, 4096, (256 << 10) - 28, (256 << 10) - 27, 256 << 10, 3 << 20, 32 << 20, 5];
    let mut all = Vec::new();
    for (i, len) in lens.into_iter().enumerate() {
        let data: Vec<u8> = (0..len).map(|at| (at % 251) as u8 ^ i as u8).collect();
        all.extend(write(i as u64, (i as u64) << 26, &data));
    }
    raw.send(&all);
    for _ in lens {
        assert_eq!(raw.reply().0, 0);
    }
    for (i, len) in lens.into_iter().enumerate() {
        raw.send(&request(READ, 1, (i as u64) << 26, len as u32));
        assert_eq!(raw.reply(), (0, 1));
        let mut data = vec![0; len];
        raw.0.read_exact(&mut data).unwrap();
        assert!(data.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8 ^ i as u8));
    }
}

/// A device whose size changes, and whose answers are what it is told to give.
#[derive(Clone, Default)]
struct Odd {
    size: Arc<AtomicU64>,
    answer: Arc<Mutex<Vec<Outcome>>>,
}

impl Device for Odd {
    fn geometry(&self) -> Geometry {
        Geometry::new(self.size.load(Ordering::SeqCst))
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(OddQueue(self.clone(), Vec::new()))
    }
}

struct OddQueue(Odd, Vec<Completion>);

impl Queue for OddQueue {
    fn submit(&mut self, request: Request) {
        let answer = self.0.answer.lock().unwrap().pop().unwrap_or(Outcome::Done);
        self.1.push(Completion { token: request.token, result: Ok(answer) });
    }

    fn kick(&mut self) {}

    fn poll_completions(&mut self, _: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()> {
        out.append(&mut self.1);
        Poll::Ready(())
    }
}

#[test]
fn a_resize_is_seen_by_connections_that_are_open() {
    let device = Odd::default();
    device.size.store(4096, Ordering::SeqCst);
    let served = Served::new(vec![Export::new("disk", device.clone())]);
    let mut raw = Raw::connect(&served.socket());
    for (size, error) in [(4096, 28), (8192, 0), (8191, 28)] {
        device.size.store(size, Ordering::SeqCst);
        raw.send(&write(size, 4096, &[1; 4096]));
        assert_eq!(raw.reply(), (error, size));
    }
}

#[test]
fn a_device_that_answers_nonsense_is_an_error_and_not_a_broken_stream() {
    let device = Odd::default();
    device.size.store(4096, Ordering::SeqCst);
    let served = Served::new(vec![Export::new("disk", device.clone())]);
    let mut raw = Raw::connect(&served.socket());
    let nonsense = [
        Outcome::Done,
        Bytes::from_static(b"short").into(),
        Bytes::from_static(&[0; 513]).into(),
        Outcome::Read(ReadData::Segments(vec![Segment::Hole(511)])),
        Outcome::Extents(vec![]),
    ];
    for answer in nonsense {
        device.answer.lock().unwrap().push(answer);
        raw.send(&request(READ, 3, 0, 512));
        assert_eq!(raw.reply(), (5, 3));
    }
    device.answer.lock().unwrap().push(Bytes::from_static(&[8; 512]).into());
    raw.send(&request(READ, 4, 0, 512));
    assert_eq!((raw.reply(), raw.read()), ((0, 4), [8; 512]));
}

#[test]
fn stopping_finishes_what_is_in_flight_and_begins_nothing() {
    let (served, device) = wayward(1 << 20);
    let socket = served.socket();
    device.hold();
    let mut raw = Raw::connect(&socket);
    let mut idle = Raw::connect(&socket);
    let mut undecided = Raw::dial(&socket);
    for cookie in 0..3 {
        raw.send(&write(cookie, cookie * 512, &[1; 512]));
    }
    device.wait_for(3);
    let stopping = served.stopping(GRACE);
    assert!(idle.is_over());
    assert!(undecided.is_over());
    drop((idle, undecided));
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_err());
    raw.send(&write(9, 8192, &[1; 512]));
    device.let_go();
    let mut cookies: Vec<_> = (0..3).map(|_| raw.reply()).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, [(0, 0), (0, 1), (0, 2)]);
    assert!(raw.is_over());
    drop(raw);
    let report = stopping.join().unwrap();
    assert_eq!((report.connections, report.requests), (2, 3));
    assert_eq!((report.drained, report.abandoned), (3, 0));
    assert!(report.unflushed.is_empty());
    assert!(!socket.exists());
}

#[test]
fn stopping_does_not_wait_longer_than_it_may() {
    let (served, device) = wayward(1 << 20);
    device.hold();
    let mut raw = Raw::connect(&served.socket());
    raw.send(&request(READ, 1, 0, 512));
    device.wait_for(1);
    let began = Instant::now();
    let report = served.stop(Duration::from_millis(300));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!((report.drained, report.abandoned), (0, 1));
    // The flush is held as well.
    assert_eq!(report.unflushed, ["disk: not flushed in time"]);
    assert!(raw.is_over());
}

#[test]
fn socket_files_are_replaced_only_when_nobody_listens() {
    let folder = Folder::new();
    let path = folder.0.join("socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let server = || {
        let disk = MemoryDevice::new(Geometry::new(4096));
        Server::new(Exports::new(vec![Export::new("disk", disk)]).unwrap())
    };
    // A listener of std leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let first = server();
    first.listen_unix(&path, 0o640).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let second = server();
    assert_eq!(second.listen_unix(&path, 0o600).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(second);
    assert!(path.exists(), "a server that was refused leaves the other's socket alone");
    drop(first);
    assert!(!path.exists());
    std::fs::File::create(&path).unwrap().write_all(b"precious").unwrap();
    assert_eq!(server().listen_unix(&path, 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

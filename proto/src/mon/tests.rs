//! Faults of every kind, without sockets. The monitors here are the server's side of cephx and nothing else.

use std::net::SocketAddr;
use std::sync::Mutex;

use super::*;
use crate::cephx::server::{KeyServer, MonServerAuth, MonSession, Policy};
use crate::cephx::tests::{Seeded, at, now, talk};
use crate::cephx::{Entity, Key, KeyType, Keyring, Login};
use crate::denc::Encode;
use crate::monmap;
use crate::msg::mon as body;
use crate::msgr::auth::ConnectionMode::Crc;
use crate::msgr::{Header, Outgoing};
use crate::types::{EntityAddrs, UTime};

/// A client, and monitors that do as they are told.
struct Lab {
    mon: Mon,
    keys: Arc<Mutex<KeyServer>>,
    dialled: BTreeMap<ConnId, (EntityAddr, Box<dyn ClientAuth>)>,
    closed: Vec<ConnId>,
    sent: Vec<(ConnId, Request)>,
    events: Vec<Event>,
}

const FSID: Fsid = Fsid([7; 16]);

fn addr(port: u16) -> EntityAddr {
    EntityAddr::msgr2(SocketAddr::from(([10, 0, 0, 1], port)), 0)
}

impl Lab {
    fn new(mons: u16) -> Self {
        Self::with(mons, Policy::default(), KeyType::Aes)
    }

    fn with(mons: u16, policy: Policy, kind: KeyType) -> Self {
        let key = Key::generate(kind, UTime::default(), &mut Seeded(3));
        let text = format!(
            "[client.a]\nkey = {}\ncaps mon = \"allow r\"\ncaps osd = \"allow *\"",
            key.to_base64()
        );
        let keyring = Keyring::parse(&text).unwrap();
        let server = KeyServer::new(keyring, policy, 4100, now(0), Box::new(Seeded(5)));
        let config = Config {
            candidates: (1..=mons).map(addr).map(Candidate::new).collect(),
            login: Login {
                entity: Entity::client("a"),
                key: Some(key),
                methods: vec![method::CEPHX],
                modes: vec![Crc],
                services: vec![EntityType::OSD],
            },
            service_modes: vec![Crc],
            hostname: "host".to_owned(),
            wants_options: true,
            connect_timeout: Duration::from_secs(10),
        };
        let mut lab = Self {
            mon: Mon::new(at(0), config, Box::new(Seeded(9))),
            keys: Arc::new(Mutex::new(server)),
            dialled: BTreeMap::new(),
            closed: Vec::new(),
            sent: Vec::new(),
            events: Vec::new(),
        };
        lab.drain();
        lab
    }

    fn drain(&mut self) {
        while let Some(action) = self.mon.poll_action() {
            match action {
                Action::Dial { conn, addr, auth } => {
                    self.dialled.insert(conn, (addr, auth));
                }
                Action::Close(conn) => {
                    self.dialled.remove(&conn);
                    self.closed.push(conn);
                }
                Action::Send(conn, request) => self.sent.push((conn, request)),
                Action::Event(event) => self.events.push(event),
            }
        }
    }

    fn dialled(&self) -> Vec<ConnId> {
        self.dialled.keys().copied().collect()
    }

    fn answer(&mut self, seconds: u64, conn: ConnId) -> Option<MonSession> {
        let (_, mut auth) = self.dialled.remove(&conn).unwrap();
        let (mut server, session) = MonServerAuth::new(Arc::clone(&self.keys), vec![Crc]);
        match talk(&mut *auth, &mut server, &mut |_, _| {}) {
            Ok(_) => self.mon.handle_connected(at(seconds), conn),
            Err(error) => self.mon.handle_lost(at(seconds), conn, Loss::Auth(error)),
        }
        self.drain();
        session.get().cloned()
    }

    fn lose(&mut self, seconds: u64, conn: ConnId) {
        self.dialled.remove(&conn);
        let loss = Loss::Connection("connection refused".to_owned());
        self.mon.handle_lost(at(seconds), conn, loss);
        self.drain();
    }

    fn connect(&mut self, seconds: u64) -> (ConnId, MonSession) {
        let conn = self.dialled()[0];
        let session = self.answer(seconds, conn).unwrap();
        self.sent.retain(|(to, _)| *to == conn);
        (conn, session)
    }

    fn say(&mut self, seconds: u64, conn: ConnId, message: &dyn Outgoing) -> bool {
        let mut front = bytes::BytesMut::new();
        message.encode_front(&mut front);
        let mut data = Bytes::new();
        message.data(&mut |piece| data = piece.clone());
        let (header, front, middle) = (message.header(), front.freeze(), Bytes::new());
        let message = Message { header, front, middle, data };
        let ours = self.mon.handle_message(at(seconds), conn, &message);
        self.drain();
        ours
    }

    fn say_map(&mut self, seconds: u64, conn: ConnId, map: &MonMap) {
        assert!(self.say(seconds, conn, &body::MonMap { map: map.to_bytes() }));
    }

    /// Lets time pass until something is sent, dialled, closed or told, at the latest until then.
    fn sleep(&mut self, until: Duration) -> Duration {
        let busy = |lab: &Self| {
            [&lab.closed.len(), &lab.sent.len(), &lab.events.len(), &lab.dialled.len()].map(|n| *n)
        };
        let before = busy(self);
        loop {
            let Some(due) = self.mon.poll_timeout().filter(|due| due.0 <= until) else {
                return until;
            };
            self.mon.handle_timeout(due);
            self.drain();
            if busy(self) != before {
                return due.0;
            }
            assert!(self.mon.poll_timeout() > Some(due), "a timeout that comes back at once");
        }
    }

    fn sleep_s(&mut self, until: u64) -> u64 {
        self.sleep(Duration::from_secs(until)).as_secs()
    }
}

fn map(epoch: u32, ports: &[u16]) -> MonMap {
    let mon = |port: &u16| monmap::Mon {
        name: format!("m{port}"),
        addrs: EntityAddrs(vec![addr(*port)]),
        priority: 0,
        weight: 0,
    };
    MonMap {
        epoch: Epoch(epoch),
        fsid: FSID,
        last_changed: UTime::default(),
        created: UTime::default(),
        persistent_features: 0,
        optional_features: 0,
        mons: ports.iter().map(mon).collect(),
        min_release: 16,
        auth: None,
    }
}

#[test]
fn three_are_tried_at_once_and_the_first_to_authenticate_wins() {
    let mut lab = Lab::new(5);
    let [a, b, c] = lab.dialled()[..] else { panic!("{:?}", lab.dialled()) };
    lab.answer(1, b).unwrap();
    assert_eq!(lab.closed, [a, c]);
    let [Event::Connected { global_id: 4100, .. }] = lab.events[..] else { panic!() };
    assert_eq!(lab.mon.global_id(), 4100);
    let Request::Subscribe(subscribe) = &lab.sent[0].1 else { panic!() };
    assert_eq!(subscribe.what["monmap"], Subscription { start: 0, onetime: false });
    // The losers' last words change nothing.
    lab.lose(1, a);
    lab.mon.handle_connected(at(1), c);
    lab.drain();
    assert_eq!((lab.events.len(), lab.dialled()), (1, vec![]));
}

#[test]
fn the_order_is_drawn() {
    let first = |seed: u64| {
        let mut mon = Mon::new(at(0), Lab::new(9).mon.config, Box::new(Seeded(seed)));
        let Some(Action::Dial { addr, .. }) = mon.poll_action() else { panic!() };
        addr
    };
    let mut drawn: Vec<_> = (1..100).map(first).collect();
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 9);
}

#[test]
fn priority_goes_before_weight_and_weight_before_none() {
    let first = |seed: u64| {
        let mut config = Lab::new(4).mon.config;
        for (candidate, (priority, weight)) in
            config.candidates.iter_mut().zip([(20, 100), (10, 0), (10, 30), (10, 10)])
        {
            (candidate.priority, candidate.weight) = (priority, weight);
        }
        let mut mon = Mon::new(at(0), config, Box::new(Seeded(seed)));
        let Some(Action::Dial { addr: dialled, .. }) = mon.poll_action() else { panic!() };
        (1..=4).position(|port| addr(port) == dialled).unwrap()
    };
    let mut times = [0; 4];
    (1..=400).for_each(|seed| times[first(seed)] += 1);
    let [preferred_not, weightless, heavy, light] = times;
    assert_eq!((preferred_not, weightless), (0, 0));
    assert!((250..350).contains(&heavy) && light == 400 - heavy, "{times:?}");
}

#[test]
fn the_next_one_is_tried_when_one_is_not_there() {
    let mut lab = Lab::new(5);
    let tried = lab.dialled();
    lab.lose(0, tried[0]);
    assert_eq!(lab.dialled().len(), 3);
    assert!(!lab.dialled().contains(&tried[0]));
    // After three seconds of silence the rest has its turn.
    assert_eq!(lab.sleep_s(10), 3);
    assert_eq!(lab.dialled().len(), 1);
    lab.connect(4);
}

#[test]
fn silence_is_reported_in_time_with_all_addresses() {
    let mut lab = Lab::new(4);
    let refused = lab.dialled()[0];
    let gone = lab.dialled[&refused].0;
    lab.lose(0, refused);
    let mut time = 0;
    while lab.events.is_empty() {
        time = lab.sleep_s(60);
        for conn in lab.dialled() {
            if lab.dialled[&conn].0 == gone {
                lab.lose(time, conn);
            }
        }
    }
    assert_eq!(time, 10);
    let [Event::Failed(error)] = &lab.events[..] else { panic!() };
    let text = error.to_string();
    assert!(text.starts_with("no monitor answers after 10 s: v2:10.0.0.1:1/0 ("), "{text}");
    for port in 1..=4 {
        let reason = if addr(port) == gone { "connection refused" } else { "no answer" };
        assert!(text.contains(&format!("v2:10.0.0.1:{port}/0 ({reason})")), "{text}");
    }
    assert_eq!(lab.mon.poll_timeout(), None);
    assert!(lab.dialled().is_empty());
}

#[test]
fn no_address_is_an_error() {
    let lab = Lab::new(0);
    assert_eq!(lab.events, [Event::Failed(ConnectError::NoAddress)]);
}

#[test]
fn a_wrong_key_is_reported_after_a_second_try() {
    let mut lab = Lab::new(3);
    lab.keys.lock().unwrap().keyring.entries.clear();
    for _ in 0..2 {
        assert_eq!(lab.events, []);
        for conn in lab.dialled() {
            assert!(lab.answer(0, conn).is_none());
        }
        let rested = lab.sleep(Duration::from_secs(5));
        assert!(rested < Duration::from_secs(1) || !lab.events.is_empty());
    }
    let [Event::Failed(ConnectError::Refused(error))] = &lab.events[..] else {
        panic!("{:?}", lab.events)
    };
    assert!(error.to_string().starts_with("the monitors refuse client.a"));
}

#[test]
fn one_that_refuses_does_not_speak_for_those_that_are_slow() {
    let mut lab = Lab::new(3);
    let entries = std::mem::take(&mut lab.keys.lock().unwrap().keyring.entries);
    let [a, b, _] = lab.dialled()[..] else { panic!() };
    assert!(lab.answer(0, a).is_none());
    lab.keys.lock().unwrap().keyring.entries = entries;
    assert!(lab.answer(2, b).is_some());
    assert!(matches!(lab.events[..], [Event::Connected { .. }]));
}

#[test]
fn a_lost_session_is_replaced_and_what_was_asked_is_asked_again() {
    let mut lab = Lab::new(3);
    lab.mon.want_osdmap(Epoch(0), false);
    let early = lab.mon.command(vec!["{}".to_owned()], Bytes::new());
    let version = lab.mon.get_version("osdmap");
    let (conn, _) = lab.connect(0);
    // The command must name the cluster, which is not known yet.
    let kinds = |lab: &Lab| lab.sent.iter().map(|(_, r)| r.header().kind).collect::<Vec<_>>();
    assert_eq!(kinds(&lab), [kind::MON_SUBSCRIBE, kind::MON_GET_VERSION]);
    lab.say_map(0, conn, &map(5, &[1, 2, 3]));
    let Request::Command(command) = &lab.sent[2].1 else { panic!() };
    assert_eq!((command.tid, command.fsid), (early, FSID));
    lab.mon.got_osdmap(Epoch(31));

    let reply = GetVersionReply { handle: version.0, version: 31, oldest: 1 };
    assert!(lab.say(0, conn, &reply));
    assert_eq!(lab.events.last(), Some(&Event::Version(reply)));
    assert!(lab.say(0, conn, &reply));
    assert_eq!(lab.events.len(), 3, "an answer that nobody waits for");

    lab.sent.clear();
    lab.lose(1, conn);
    assert!(matches!(lab.events.last(), Some(Event::Lost { .. })));
    let (again, _) = lab.connect(2);
    assert_eq!(lab.mon.global_id(), 4100);
    assert_eq!(kinds(&lab), [kind::MON_SUBSCRIBE, kind::MON_COMMAND]);
    let Request::Subscribe(subscribe) = &lab.sent[0].1 else { panic!() };
    assert_eq!(subscribe.what["osdmap"], Subscription { start: 32, onetime: false });
    assert_eq!(subscribe.what["monmap"], Subscription { start: 6, onetime: false });

    let ack = CommandAck {
        tid: early,
        result: -2,
        status: "no".to_owned(),
        command: vec!["{}".to_owned()],
        output: Bytes::from_static(b"x"),
    };
    assert!(lab.say(3, conn, &ack), "from the session before");
    assert!(matches!(lab.events.last(), Some(Event::Connected { .. })));
    assert!(lab.say(3, again, &ack));
    assert_eq!(lab.events.last(), Some(&Event::Command(ack)));
}

#[test]
fn a_one_time_subscription_ends() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    lab.mon.want_osdmap(Epoch(7), true);
    lab.drain();
    let Request::Subscribe(subscribe) = &lab.sent.last().unwrap().1 else { panic!() };
    let wanted = Subscription { start: 7, onetime: true };
    assert_eq!(subscribe.what, BTreeMap::from([("osdmap".to_owned(), wanted)]));
    lab.mon.got_osdmap(Epoch(9));
    lab.lose(1, conn);
    lab.sent.clear();
    lab.connect(2);
    let Request::Subscribe(subscribe) = &lab.sent[0].1 else { panic!() };
    assert!(!subscribe.what.contains_key("osdmap"));
}

#[test]
fn options_are_asked_for_in_each_session() {
    let mut lab = Lab::new(1);
    let told = |value: &str| {
        let options = [("rbd_default_order".to_owned(), value.to_owned())];
        body::Config { options: options.into() }
    };
    let mut conn = lab.connect(0).0;
    for order in ["20", "21"] {
        let Request::Subscribe(subscribe) = &lab.sent[0].1 else { panic!() };
        assert_eq!(subscribe.what["config"], Subscription { start: 0, onetime: false });
        assert_eq!(subscribe.what.keys().next().unwrap(), "config", "answered before maps");
        assert!(lab.say(1, conn, &told(order)));
        assert_eq!(lab.events.last(), Some(&Event::Options(told(order))));
        assert_eq!(format!("{:?}", told("secret")), r#"{"rbd_default_order"}"#);
        lab.sent.clear();
        lab.lose(2, conn);
        conn = lab.connect(3).0;
    }

    // Who does without gets none.
    lab.mon.config.wants_options = false;
    let events = lab.events.len();
    assert!(!lab.say(4, conn, &told("22")));
    assert_eq!(lab.events.len(), events);
    let mon = Mon::new(at(0), lab.mon.config.clone(), Box::new(Seeded(1)));
    assert!(!mon.wanted.contains_key("config"));
}

#[test]
fn osd_maps_are_for_somebody_else() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    let header = Header { kind: kind::OSD_MAP, ..Header::default() };
    let message = Message { header, ..Message::default() };
    assert!(!lab.mon.handle_message(at(0), conn, &message));
}

#[test]
fn hunting_never_ends_once_we_are_known() {
    let mut lab = Lab::new(3);
    let (conn, _) = lab.connect(0);
    lab.lose(0, conn);
    let mut waits = Vec::new();
    let mut time = 0;
    while time < 1000 {
        for conn in lab.dialled() {
            lab.lose(time, conn);
        }
        let woken = lab.sleep_s(10_000);
        waits.push(woken - time);
        time = woken;
    }
    assert_eq!(waits[..4], [3, 4, 7, 10], "three seconds, and half as much again each time");
    assert_eq!(waits.last(), Some(&30));
    lab.connect(time);
    assert!(!lab.events.iter().any(|event| matches!(event, Event::Failed(_))));
}

#[test]
fn a_refusal_later_on_is_told_once_and_borne() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    let entries = std::mem::take(&mut lab.keys.lock().unwrap().keyring.entries);
    lab.lose(0, conn);
    let mut time = 0;
    while time < 600 {
        for conn in lab.dialled() {
            lab.answer(time, conn);
        }
        time = lab.sleep_s(1000);
    }
    let refusals = lab.events.iter().filter(|event| matches!(event, Event::Refused(_))).count();
    assert_eq!(refusals, 1);
    lab.keys.lock().unwrap().keyring.entries = entries;
    lab.connect(time);
    assert_eq!(lab.mon.global_id(), 4100);
}

/// Another key for `client.a`, which the monitors know at once.
fn change_key(lab: &Lab, kind: KeyType) -> Key {
    let key = Key::generate(kind, UTime::default(), &mut Seeded(77));
    let keys = &mut lab.keys.lock().unwrap().keyring;
    keys.entries.get_mut(&Entity::client("a")).unwrap().key = key.clone();
    key
}

#[test]
fn a_changed_key_is_taken_up_at_once() {
    let mut lab = Lab::new(2);
    let (conn, _) = lab.connect(0);
    let old = lab.mon.config.login.key.clone().unwrap();
    let new = change_key(&lab, KeyType::Aes256k);
    lab.lose(1, conn);
    for conn in lab.dialled() {
        lab.answer(1, conn);
    }
    let told = |lab: &Lab| lab.events.iter().filter(|e| **e == Event::KeyRefused).count();
    assert_eq!(told(&lab), 1, "once for each round");
    assert!(!lab.mon.set_key(at(1), old));
    assert!(lab.dialled.is_empty(), "the old one was not worth another attempt");
    assert!(lab.mon.set_key(at(1), new));
    lab.drain();
    lab.connect(1);
    assert_eq!(lab.mon.global_id(), 4100, "we are who we were");
}

#[test]
fn a_changed_key_renews_what_the_old_one_could_not() {
    let policy = Policy { auth_ttl: Duration::from_secs(40), ..Policy::default() };
    let mut lab = Lab::with(1, policy, KeyType::Aes);
    let (conn, session) = lab.connect(0);
    lab.sent.clear();
    let new = change_key(&lab, KeyType::Aes);
    let renew = |lab: &mut Lab, seconds| {
        let Some((_, Request::Auth(auth))) = lab.sent.pop() else { panic!("nothing is renewed") };
        let (result, payload) = session.renew(&auth.payload);
        let (protocol, global_id, status) = (2, 4100, String::new());
        lab.say(seconds, conn, &AuthReply { protocol, result, global_id, payload, status });
        result
    };
    assert_eq!(lab.sleep_s(100), 30);
    assert_eq!(renew(&mut lab, 30), -13);
    assert!(lab.events.contains(&Event::KeyRefused));
    assert!(lab.mon.set_key(at(31), new));
    lab.drain();
    assert_eq!(renew(&mut lab, 31), 0);
    assert_eq!(lab.events.last(), Some(&Event::TicketsRenewed));
    assert!(lab.mon.poll_timeout() > Some(at(60)));
}

#[test]
fn a_key_of_a_type_that_is_no_longer_allowed_is_called_that() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    let allowed = |allowed_ciphers| MonMap {
        auth: Some(monmap::AuthPolicy {
            epoch: Epoch(1),
            service_cipher: 2,
            allowed_ciphers,
            preferred_cipher: 2,
        }),
        ..map(1, &[1])
    };
    let said = |lab: &mut Lab, conn| {
        change_key(lab, KeyType::Aes);
        lab.lose(0, conn);
        lab.answer(0, lab.dialled()[0]);
        lab.sleep_s(2);
        lab.answer(2, lab.dialled()[0]);
        let Some(Event::Refused(error)) = lab.events.last() else { panic!("{:?}", lab.events) };
        error.to_string()
    };
    lab.mon.new_map(at(0), allowed(vec![2]));
    assert_eq!(
        said(&mut lab, conn),
        "the cluster does not allow aes keys any more, only aes256k: client.a needs a new key"
    );
}

#[test]
fn a_new_map_moves_us_to_where_the_monitors_are() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    lab.say_map(0, conn, &map(1, &[1, 2]));
    assert!(lab.closed.is_empty());
    // An older one is not believed.
    lab.say_map(0, conn, &map(0, &[3]));
    assert_eq!(lab.mon.monmap().unwrap().epoch, Epoch(1));
    lab.say_map(1, conn, &map(2, &[7, 8]));
    assert_eq!(lab.closed, [conn]);
    let mut ports: Vec<_> = lab.dialled.values().map(|(addr, _)| *addr).collect();
    ports.sort();
    assert_eq!(ports, [addr(7), addr(8)]);
    lab.connect(2);
}

#[test]
fn monitors_of_a_better_priority_come_first() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    let mut six = map(1, &[1, 2, 3, 4, 5, 6]);
    six.mons[..3].iter_mut().for_each(|mon| mon.priority = 1);
    lab.say_map(0, conn, &six);
    lab.lose(1, conn);
    let mut first: Vec<_> = lab.dialled.values().map(|(addr, _)| *addr).collect();
    first.sort();
    assert_eq!(first, [addr(4), addr(5), addr(6)]);
}

#[test]
fn another_cluster_is_not_ours() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    lab.say_map(0, conn, &map(1, &[1]));
    let other = MonMap { fsid: Fsid([8; 16]), ..map(2, &[1]) };
    lab.say_map(1, conn, &other);
    let Some(Event::Lost { reason, .. }) = lab.events.last() else { panic!() };
    assert!(reason.contains("another cluster"));
    assert_eq!(lab.mon.fsid(), Some(FSID));
}

#[test]
fn garbage_costs_the_session() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    let header = Header { kind: kind::MON_MAP, ..Header::default() };
    let message = Message { header, front: Bytes::from_static(&[1, 2, 3]), ..Message::default() };
    assert!(lab.mon.handle_message(at(0), conn, &message));
    lab.drain();
    assert_eq!(lab.closed, [conn]);
    lab.connect(1);
}

#[test]
fn tickets_are_renewed_all_the_time() {
    let service_ttl = Duration::from_secs(4);
    let auth_ttl = Duration::from_secs(60);
    let policy =
        Policy { service_ttl, auth_ttl, service_keys: KeyType::Aes256k, ..Policy::default() };
    let mut lab = Lab::with(1, policy, KeyType::Aes256k);
    let (conn, session) = lab.connect(0);
    let mut renewals = 0;
    let mut time = Duration::ZERO;
    lab.sent.clear();
    while time < Duration::from_secs(600) {
        time = lab.sleep(Duration::from_secs(600));
        lab.keys.lock().unwrap().tick(now(time.as_secs()));
        for (_, request) in std::mem::take(&mut lab.sent) {
            let Request::Auth(auth) = request else { continue };
            let (result, payload) = session.renew(&auth.payload);
            assert_eq!(result, 0);
            let (protocol, global_id, status) = (2, 4100, String::new());
            let reply = AuthReply { protocol, result, global_id, payload, status };
            lab.say(time.as_secs(), conn, &reply);
            renewals += 1;
        }
        assert!(lab.mon.authorizer(EntityType::OSD).is_ok());
    }
    // Every three seconds.
    assert!((190..=210).contains(&renewals), "{renewals}");
    let renewed = lab.events.iter().filter(|event| **event == Event::TicketsRenewed).count();
    assert_eq!(renewed, renewals);
    assert!(!lab.events.iter().any(|event| matches!(event, Event::Refused(_))));
}

#[test]
fn an_unanswered_renewal_is_asked_again() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    lab.sent.clear();
    lab.mon.handle_authorizer_refused(at(1), EntityType::OSD);
    lab.mon.handle_authorizer_refused(at(1), EntityType::OSD);
    lab.drain();
    assert_eq!(lab.sent.len(), 1);
    assert_eq!(lab.sleep_s(9), 6);
    assert_eq!(lab.sent.len(), 2);
    let refusal = AuthReply {
        protocol: 2,
        result: -13,
        global_id: 4100,
        payload: Bytes::new(),
        status: String::new(),
    };
    lab.say(7, conn, &refusal);
    assert!(matches!(lab.events.last(), Some(Event::Refused(_))));
}

#[test]
fn wiped_service_keys_are_fetched_anew() {
    let mut lab = Lab::new(1);
    let (conn, _) = lab.connect(0);
    // Only the newest encoding has the field, and ours is Ceph 16's: so the map is handed over decoded.
    let with = |epoch: u32, auth_epoch: u32| MonMap {
        auth: Some(monmap::AuthPolicy {
            epoch: Epoch(auth_epoch),
            service_cipher: 2,
            allowed_ciphers: vec![2],
            preferred_cipher: 2,
        }),
        ..map(epoch, &[1])
    };
    lab.mon.new_map(at(0), with(1, 4));
    lab.mon.new_map(at(0), with(2, 4));
    lab.drain();
    lab.sent.clear();
    lab.mon.new_map(at(1), with(3, 5));
    lab.drain();
    assert!(matches!(lab.sent[..], [(to, Request::Auth(_))] if to == conn));
}

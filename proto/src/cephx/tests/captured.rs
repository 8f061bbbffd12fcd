//! Logins of Ceph's own clients, replayed: ours must say the same bytes and come to the same keys.

use super::*;
use crate::cephx::crypto::{self, Usage};
use crate::cephx::wire::{Authorize, AuthorizerHead, Challenge};
use crate::denc::{Reader, decode};

const CAPTURED: [(&str, &str); 3] = [
    ("16.2.15 aes", include_str!("../../../../fixtures/cephx/ceph-16.2.15-aes.txt")),
    ("20.2.4 aes256k", include_str!("../../../../fixtures/cephx/ceph-20.2.4-aes256k.txt")),
    ("20.2.4 mixed", include_str!("../../../../fixtures/cephx/ceph-20.2.4-mixed.txt")),
];

/// Gives out what another client drew, and zeros after it.
struct Drawn(Vec<u8>);

impl Entropy for Drawn {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = if self.0.is_empty() { 0 } else { self.0.remove(0) };
        }
    }
}

struct Exchange {
    modes: Vec<ConnectionMode>,
    request: Vec<u8>,
    challenge: Vec<u8>,
    answer: Vec<u8>,
    global_id: u64,
    mode: ConnectionMode,
    done: Vec<u8>,
}

impl Exchange {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Self {
        let mut word = || words.next().unwrap();
        let mode = |code: &str| ConnectionMode::from_code(code.parse().unwrap()).unwrap();
        Self {
            modes: word().split(',').map(mode).collect(),
            request: hex(word()),
            challenge: hex(word()),
            answer: hex(word()),
            global_id: word().parse().unwrap(),
            mode: mode(word()),
            done: hex(word()),
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn captured_logins_are_understood_and_repeated() {
    for (name, text) in CAPTURED {
        let (mut entity, mut key, mut tickets, mut count) = (None, None, None, 0);
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next().unwrap() {
                "entity" => entity = words.next(),
                "key" => key = words.next(),
                "mon" => {
                    let exchange = Exchange::parse(words);
                    let login = Login {
                        entity: entity.unwrap().parse().unwrap(),
                        key: Some(key.unwrap().parse().unwrap()),
                        methods: vec![method::CEPHX],
                        modes: exchange.modes.clone(),
                        // Ceph asks for an AUTH ticket here as well.
                        services: vec![
                            EntityType::AUTH,
                            EntityType::MON,
                            EntityType::OSD,
                            EntityType::MGR,
                        ],
                    };
                    tickets = Some(mon(name, login, &exchange));
                    count += 1;
                }
                "osd" => {
                    osd(name, tickets.as_ref().unwrap(), &Exchange::parse(words));
                    count += 1;
                }
                _ => {}
            }
        }
        assert_eq!(count, 4, "{name}");
    }
}

fn mon(name: &str, login: Login, exchange: &Exchange) -> Tickets {
    let mut tickets = Tickets::new(Arc::new(login));
    let mut drawn = Drawn(exchange.answer[3..11].to_vec());
    let (mut auth, outcome) = tickets.mon_auth(&mut drawn);
    let request = auth.request().unwrap();
    assert_eq!((request.method, &request.modes), (method::CEPHX, &exchange.modes));
    assert_eq!(request.payload, exchange.request, "{name}");
    assert_eq!(auth.reply_more(&exchange.challenge).unwrap(), exchange.answer, "{name}");
    let done = auth.done(exchange.global_id, exchange.mode, &exchange.done).unwrap();
    let secret = if exchange.mode == Secure { 64 } else { 0 };
    assert_eq!(done.connection_secret.len(), secret, "{name}");
    tickets.logged_in(at(0), outcome.get().unwrap());
    let ticket = tickets.get(EntityType::OSD).unwrap();
    assert_eq!(ticket.validity, Duration::from_secs(3600), "{name}");
    let kind = tickets.login().key.as_ref().unwrap().kind();
    assert_eq!((ticket.key_type(), done.session_key.len()), (kind, kind_len(kind)), "{name}");
    tickets
}

fn kind_len(kind: KeyType) -> usize {
    if kind == KeyType::Aes { 16 } else { 32 }
}

fn osd(name: &str, tickets: &Tickets, exchange: &Exchange) {
    // What the client drew stands in its request, which our ticket opens.
    let session_key = &tickets.get(EntityType::OSD).unwrap().session_key;
    let read = |payload: &[u8]| {
        let mut r = Reader::new(payload, "authorizer");
        let head: AuthorizerHead = r.get().unwrap();
        assert_eq!(head.ticket, tickets.get(EntityType::OSD).unwrap().blob);
        let opened = crypto::open(session_key, Usage::Authorize, r.blob().unwrap()).unwrap();
        decode::<Authorize>(&opened, "CephXAuthorize").unwrap()
    };
    let nonce = read(&exchange.request).nonce;

    let mut drawn = Drawn(nonce.to_le_bytes().to_vec());
    let modes = exchange.modes.clone();
    let mut auth = tickets.authorizer(EntityType::OSD, modes, &mut drawn).unwrap();
    let request = auth.request().unwrap();
    let answer = auth.reply_more(&exchange.challenge).unwrap();
    if session_key.kind() == KeyType::Aes {
        // The other type has a confounder in it, which nobody but Ceph's client knows.
        assert_eq!(request.payload, exchange.request, "{name}");
        assert_eq!(answer, exchange.answer, "{name}");
    }
    let challenge =
        crypto::open(session_key, Usage::AuthorizeChallenge, &exchange.challenge).unwrap();
    let Challenge(challenge) = decode(&challenge, "CephXAuthorizeChallenge").unwrap();
    assert_eq!(read(&answer).challenge_plus_one, Some(challenge.wrapping_add(1)), "{name}");
    assert_eq!(read(&exchange.answer).challenge_plus_one, Some(challenge.wrapping_add(1)));
    let done = auth.done(exchange.global_id, exchange.mode, &exchange.done).unwrap();
    assert_eq!(done.session_key, session_key.secret());
    let secret = if exchange.mode == Secure { 64 } else { 0 };
    assert_eq!(done.connection_secret.len(), secret, "{name}");
}

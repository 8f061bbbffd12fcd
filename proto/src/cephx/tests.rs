//! Our client against our server, in memory: every mixture of key types, modes and methods, and every refusal.

mod captured;

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::server::{Caps, KeyServer, MonServerAuth, MonSession, Peer, Policy, ServiceServerAuth};
use super::*;
use crate::msgr::auth::ConnectionMode::{Crc, Secure};
use crate::msgr::auth::{
    AuthError, ClientAuth, ConnectionMode, Established, ServerAuth, ServerStep, method,
};
use crate::types::{EntityType, Entropy, Instant, UTime};

/// xorshift64*: different bytes each time, the same ones in each run.
pub(crate) struct Seeded(pub(crate) u64);

impl Entropy for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            *byte = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8;
        }
    }
}

struct Lab {
    keys: Arc<Mutex<KeyServer>>,
    tickets: Tickets,
    entropy: Seeded,
    modes: Vec<ConnectionMode>,
}

impl Lab {
    fn new(client: KeyType, service: KeyType) -> Self {
        let policy = Policy { service_keys: service, ..Policy::default() };
        Self::with(client, policy, vec![method::CEPHX], vec![Crc, Secure])
    }

    fn with(
        client: KeyType,
        policy: Policy,
        methods: Vec<u32>,
        modes: Vec<ConnectionMode>,
    ) -> Self {
        let mut entropy = Seeded(7);
        let key = Key::generate(client, UTime::default(), &mut entropy);
        let text = format!(
            "[client.a]\n\tkey = {}\n\tcaps mon = \"allow r\"\n\tcaps osd = \"allow *\"\n",
            key.to_base64()
        );
        let keyring = Keyring::parse(&text).unwrap();
        let server = KeyServer::new(keyring, policy, 4100, now(0), Box::new(Seeded(11)));
        let login = Login {
            entity: Entity::client("a"),
            key: Some(key),
            methods,
            modes: modes.clone(),
            services: vec![EntityType::OSD],
        };
        let tickets = Tickets::new(Arc::new(login));
        Self { keys: Arc::new(Mutex::new(server)), tickets, entropy, modes }
    }

    fn mon(
        &mut self,
    ) -> (MonAuth, Arc<OnceLock<LoggedIn>>, MonServerAuth, Arc<OnceLock<MonSession>>) {
        let (client, outcome) = self.tickets.mon_auth(&mut self.entropy);
        let (server, session) = MonServerAuth::new(Arc::clone(&self.keys), vec![Crc, Secure]);
        (client, outcome, server, session)
    }

    fn login(&mut self) -> Result<(Both, MonSession), AuthError> {
        let (mut client, outcome, mut server, session) = self.mon();
        let both = talk(&mut client, &mut server, &mut |_, _| {})?;
        self.tickets.logged_in(at(0), outcome.get().unwrap());
        Ok((both, session.get().unwrap().clone()))
    }

    fn osd(&mut self) -> (Box<dyn ClientAuth>, ServiceServerAuth, Arc<OnceLock<Peer>>) {
        let (modes, entropy) = (self.modes.clone(), &mut self.entropy);
        let client = self.tickets.authorizer(EntityType::OSD, modes, entropy).unwrap();
        let (server, peer) =
            ServiceServerAuth::new(Arc::clone(&self.keys), EntityType::OSD, vec![Crc, Secure]);
        (client, server, peer)
    }

    fn authorize(&mut self) -> Result<(Both, Peer), AuthError> {
        let (mut client, mut server, peer) = self.osd();
        let both = talk(&mut *client, &mut server, &mut |_, _| {})?;
        Ok((both, peer.get().unwrap().clone()))
    }

    fn tick(&self, seconds: u64) {
        self.keys.lock().unwrap().tick(now(seconds));
    }

    /// Says which kind of request it took.
    fn renew(&mut self, session: &MonSession, seconds: u64) -> u8 {
        let request = self.tickets.renewal_request(at(seconds), &mut self.entropy).unwrap();
        let (result, reply) = session.renew(&request);
        assert_eq!(result, 0);
        self.tickets.renewal_reply(at(seconds), result, &reply).unwrap();
        request[1]
    }
}

pub(crate) fn at(seconds: u64) -> Instant {
    Instant(Duration::from_secs(seconds))
}

pub(crate) fn now(seconds: u64) -> UTime {
    UTime::from(Duration::from_secs(1_700_000_000 + seconds))
}

pub(crate) struct Both {
    client: Established,
    server: Established,
    mode: ConnectionMode,
}

/// Carries payloads back and forth, as the messenger does; `tamper` may change each, which it is told the number of.
pub(crate) fn talk(
    client: &mut dyn ClientAuth,
    server: &mut dyn ServerAuth,
    tamper: &mut dyn FnMut(usize, &mut Vec<u8>),
) -> Result<Both, AuthError> {
    let mut count = 0;
    let mut pass = |payload: Bytes| {
        let mut payload = payload.to_vec();
        tamper(count, &mut payload);
        count += 1;
        Bytes::from(payload)
    };
    let mut request = client.request()?;
    request.payload = pass(request.payload);
    let mut step = server.request(&request)?;
    for _ in 0..10 {
        step = match step {
            ServerStep::More(payload) => {
                let more = client.reply_more(&pass(payload))?;
                server.request_more(&pass(more))?
            }
            ServerStep::BadMethod { result, methods, modes } => {
                let modes: Vec<u32> = modes.iter().map(|mode| mode.code()).collect();
                let mut request = client.bad_method(result, &methods, &modes)?;
                request.payload = pass(request.payload);
                server.request(&request)?
            }
            ServerStep::Done { global_id, mode, payload, established } => {
                let client = client.done(global_id, mode, &pass(payload))?;
                return Ok(Both { client, server: established, mode });
            }
        };
    }
    panic!("they never come to an end");
}

const TYPES: [(KeyType, KeyType); 4] = [
    (KeyType::Aes, KeyType::Aes),
    (KeyType::Aes, KeyType::Aes256k),
    (KeyType::Aes256k, KeyType::Aes),
    (KeyType::Aes256k, KeyType::Aes256k),
];

#[test]
fn all_mixtures_log_in_and_reach_an_osd() {
    for (client, service) in TYPES {
        for mode in [Crc, Secure] {
            let mut lab = Lab::new(client, service);
            lab.modes = vec![mode];
            let login = Login { modes: vec![mode], ..lab.tickets.login().clone() };
            lab.tickets = Tickets::new(Arc::new(login));

            let (both, session) = lab.login().unwrap();
            check(&both, mode);
            assert_eq!(lab.tickets.global_id(), 4100);
            let caps = Caps::Only("allow r".to_owned());
            let peer = Peer { entity: Entity::client("a"), global_id: 4100, caps };
            assert_eq!(session.peer, peer);
            let ticket = lab.tickets.get(EntityType::OSD).unwrap();
            assert_eq!(ticket.key_type(), client.min(service));
            assert_eq!(ticket.validity, Duration::from_secs(3600));

            let (both, peer) = lab.authorize().unwrap();
            check(&both, mode);
            let caps = Caps::Only("allow *".to_owned());
            assert_eq!(peer, Peer { entity: Entity::client("a"), global_id: 4100, caps });
        }
    }
}

fn check(both: &Both, mode: ConnectionMode) {
    assert!(both.client == both.server);
    assert_eq!(both.mode, mode);
    assert!(both.client.session_key.len() >= 16);
    let secret = if mode == Secure { 64 } else { 0 };
    assert_eq!(both.client.connection_secret.len(), secret);
}

#[test]
fn the_clients_preference_among_the_servers_modes_counts() {
    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    lab.login().unwrap();
    for modes in [vec![Crc, Secure], vec![Secure, Crc]] {
        lab.modes = modes.clone();
        assert_eq!(lab.authorize().unwrap().0.mode, modes[0]);
    }
}

#[test]
fn a_global_id_is_claimed_with_its_ticket() {
    for (client, service) in TYPES {
        let mut lab = Lab::new(client, service);
        lab.login().unwrap();
        let old = lab.tickets.get(EntityType::OSD).unwrap().clone();
        let (_, session) = lab.login().unwrap();
        assert_eq!((lab.tickets.global_id(), session.peer.global_id), (4100, 4100));
        assert_ne!(lab.tickets.get(EntityType::OSD), Some(&old));
        lab.authorize().unwrap();

        // Somebody else of the same name cannot take it over.
        let login = Arc::new(lab.tickets.login().clone());
        let (mut thief, _) = MonAuth::new(login, 4100, None, &mut lab.entropy);
        let (mut server, _) = MonServerAuth::new(Arc::clone(&lab.keys), vec![Crc]);
        let refused = talk(&mut thief, &mut server, &mut |_, _| {});
        assert!(matches!(refused, Err(AuthError::Refused(_))));
    }
}

#[test]
fn service_tickets_are_renewed_before_they_end() {
    for (client, service) in TYPES {
        let mut lab = Lab::new(client, service);
        let (_, session) = lab.login().unwrap();
        let due = Duration::from_secs(2700);
        assert_eq!(lab.tickets.renewal_due(), Some(Instant(due)));
        assert_eq!(lab.tickets.renewal_request(at(2699), &mut lab.entropy), None);
        let mut before = lab.osd();
        lab.tick(2700);
        lab.renew(&session, 2700);
        assert_eq!(lab.tickets.renewal_due(), Some(at(5400)));
        // An authorizer made from the old ticket still works, and so do new ones.
        talk(&mut *before.0, &mut before.1, &mut |_, _| {}).unwrap();
        lab.authorize().unwrap();
    }
}

#[test]
fn a_client_that_renews_lives_for_ever() {
    for (client, service) in TYPES {
        let mut lab = Lab::new(client, service);
        let (_, session) = lab.login().unwrap();
        let mut auth_renewals = 0;
        for _ in 0..400 {
            let due = lab.tickets.renewal_due().unwrap().0.as_secs();
            lab.tick(due);
            auth_renewals += u32::from(lab.renew(&session, due) == 1);
            lab.authorize().unwrap();
        }
        // 400 renewals are 12.5 days; an AUTH ticket is renewed after 2.25 days.
        assert_eq!(auth_renewals, 5);
        assert_eq!(lab.tickets.global_id(), 4100);
    }
}

#[test]
fn a_ticket_that_has_had_its_time_is_refused_and_renewed() {
    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    let (_, session) = lab.login().unwrap();
    lab.keys.lock().unwrap().wipe_rotating();
    let Err(AuthError::Refused(refused)) = lab.authorize() else { panic!() };
    assert!(refused.contains("does not take our ticket"), "{refused}");

    assert_eq!(lab.tickets.renewal_due(), Some(at(2700)));
    lab.tickets.refused(EntityType::OSD);
    assert_eq!(lab.tickets.renewal_due(), Some(at(0)));
    lab.renew(&session, 1);
    assert_eq!(lab.tickets.renewal_due(), Some(at(2701)));
    lab.authorize().unwrap();
}

#[test]
fn a_refused_renewal_waits() {
    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    let (_, session) = lab.login().unwrap();
    // Ten days on, the AUTH ticket's secret is gone.
    for day in 1..10 {
        lab.tick(day * 86_400);
    }
    lab.tickets.refused(EntityType::OSD);
    let request = lab.tickets.renewal_request(at(1), &mut lab.entropy).unwrap();
    let (result, reply) = session.renew(&request);
    let refused = lab.tickets.renewal_reply(at(1), result, &reply);
    assert!(matches!(refused, Err(AuthError::Refused(_))));
    lab.tickets.postpone(at(11));
    assert_eq!(lab.tickets.renewal_due(), Some(at(2700)));
}

#[test]
fn auth_none_needs_no_key() {
    let policy = Policy { methods: vec![method::NONE], ..Policy::default() };
    let modes = vec![Secure, Crc];
    let mut lab = Lab::with(KeyType::Aes, policy, vec![method::CEPHX, method::NONE], modes);
    let (both, session) = lab.login().unwrap();
    assert_eq!((both.mode, &session.peer.caps), (Crc, &Caps::All));
    assert!(both.client == Established::default() && both.server == Established::default());
    let (both, peer) = lab.authorize().unwrap();
    assert_eq!(both.mode, Crc);
    assert_eq!(peer, Peer { entity: Entity::client("a"), global_id: 4100, caps: Caps::All });
    lab.login().unwrap();
    assert_eq!(lab.tickets.global_id(), 4100);
}

/// What the user reads when it does not work.
fn refusal(mut lab: Lab) -> String {
    match lab.login() {
        Ok(_) => panic!("it works"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn refusals_are_told_in_words() {
    let cephx = || Policy::default();
    let none = || Policy { methods: vec![method::NONE], ..Policy::default() };

    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    let other = Key::generate(KeyType::Aes, UTime::default(), &mut Seeded(99));
    let login = Login { key: Some(other), ..lab.tickets.login().clone() };
    lab.tickets = Tickets::new(Arc::new(login));
    assert!(refusal(lab).starts_with(
        "the monitors refuse client.a and its aes key (permission denied): the key is wrong"
    ));

    let mut lab = Lab::new(KeyType::Aes256k, KeyType::Aes);
    let login = Login { entity: Entity::client("b"), ..lab.tickets.login().clone() };
    lab.tickets = Tickets::new(Arc::new(login));
    assert!(refusal(lab).starts_with("the monitors refuse client.b and its aes256k key"));

    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    let login = Login { key: None, ..lab.tickets.login().clone() };
    lab.tickets = Tickets::new(Arc::new(login));
    assert_eq!(refusal(lab), "no key for client.a: cephx needs a keyring");

    let both = vec![method::CEPHX, method::NONE];
    let mut lab = Lab::with(KeyType::Aes, cephx(), both, vec![Crc]);
    let login = Login { key: None, ..lab.tickets.login().clone() };
    lab.tickets = Tickets::new(Arc::new(login));
    assert_eq!(refusal(lab), "no key for client.a: cephx needs a keyring");

    let lab = Lab::with(KeyType::Aes, none(), vec![method::CEPHX], vec![Crc]);
    assert_eq!(refusal(lab), "the cluster authenticates with none, we may use cephx");

    let lab = Lab::with(KeyType::Aes, cephx(), vec![method::NONE], vec![Crc]);
    assert_eq!(refusal(lab), "the cluster authenticates with cephx, we may use none");

    let methods = vec![method::CEPHX, method::NONE];
    let lab = Lab::with(KeyType::Aes, none(), methods, vec![Secure]);
    assert_eq!(refusal(lab), "the cluster authenticates with none, we may use cephx");

    let mut lab = Lab::with(KeyType::Aes, cephx(), vec![method::CEPHX], vec![Secure]);
    let (mut client, _) = lab.tickets.mon_auth(&mut lab.entropy);
    let (mut server, _) = MonServerAuth::new(Arc::clone(&lab.keys), vec![Crc]);
    let Err(error) = talk(&mut client, &mut server, &mut |_, _| {}) else { panic!() };
    assert_eq!(
        error.to_string(),
        "the monitors allow connections in crc mode, we in secure (ms_client_mode, ms_mon_client_mode)"
    );

    let lab = Lab::new(KeyType::Aes, KeyType::Aes);
    lab.keys.lock().unwrap().keyring.entries.values_mut().for_each(|e| e.caps.clear());
    assert!(refusal(lab).contains("it has no mon caps"));
}

/// Cuts each payload short at each place, and changes each byte: both sides must come to the same secrets, or to none.
#[test]
fn tampering_and_truncation_never_split_the_two_sides() {
    for (client, service) in [(KeyType::Aes, KeyType::Aes), (KeyType::Aes256k, KeyType::Aes256k)] {
        let mut lab = Lab::new(client, service);
        lab.modes = vec![Secure];
        lab.login().unwrap();
        let mut lens = Vec::new();
        let (mut client, _, mut server, _) = lab.mon();
        talk(&mut client, &mut server, &mut |_, payload| lens.push(payload.len())).unwrap();
        assert_eq!(lens.len(), 4);
        attack(&lens, &mut |tamper| {
            let (mut client, _, mut server, _) = lab.mon();
            talk(&mut client, &mut server, tamper)
        });

        lens.clear();
        let (mut client, mut server, _) = lab.osd();
        talk(&mut *client, &mut server, &mut |_, payload| lens.push(payload.len())).unwrap();
        assert_eq!(lens.len(), 4);
        attack(&lens, &mut |tamper| {
            let (mut client, mut server, _) = lab.osd();
            talk(&mut *client, &mut server, tamper)
        });
    }
}

type Tamper<'a> = &'a mut dyn FnMut(usize, &mut Vec<u8>);

fn attack(lens: &[usize], run: &mut dyn FnMut(Tamper<'_>) -> Result<Both, AuthError>) {
    for (at, len) in lens.iter().enumerate() {
        for cut in 0..*len {
            let cut_short = run(&mut |n, payload| {
                if n == at {
                    payload.truncate(cut);
                }
            });
            assert!(cut_short.is_err(), "payload {at} may end after {cut} of {len} bytes");
            let changed = run(&mut |n, payload| {
                if n == at {
                    payload[cut] ^= 1 << (cut % 8);
                }
            });
            if let Ok(both) = changed {
                assert!(both.client.session_key == both.server.session_key);
            }
        }
    }
}

#[test]
fn a_stolen_authorizer_is_worthless() {
    let mut lab = Lab::new(KeyType::Aes, KeyType::Aes);
    lab.login().unwrap();
    let mut overheard = Vec::new();
    let (mut client, mut server, _) = lab.osd();
    talk(&mut *client, &mut server, &mut |_, payload| overheard.push(payload.clone())).unwrap();

    let (mut client, mut server, _) = lab.osd();
    let mut request = client.request().unwrap();
    request.payload = overheard[0].clone().into();
    assert!(matches!(server.request(&request), Ok(ServerStep::More(_))));
    let again = server.request_more(&overheard[2]);
    assert!(matches!(again, Ok(ServerStep::BadMethod { result: -13, .. })));
}

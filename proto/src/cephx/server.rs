//! The cluster's side of cephx and of `auth none`, for devcluster and for tests: keys of entities, rotating secrets of
//! services, and the answers of monitors and services (`src/auth/cephx/CephxServiceHandler.cc`, `CephxKeyServer.cc`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::crypto::{self, Usage, challenge_response, put_sealed, value};
use super::key::random;
use super::keyring::{Entry, Keyring};
use super::wire::{
    Authenticate, Authorize, AuthorizeReply, AuthorizerHead, CONNECTION_SECRET_BYTES, Challenge,
    GET_AUTH_TICKET, GET_SERVICE_TICKETS, MODE_AUTHORIZER, MODE_MON, MonRequest, ReplyHeader,
    ServiceTicket, TicketBlob, TicketInfo,
};
use super::{Entity, Key, KeyType};
use crate::denc::{DecodeError, Encode, Put, Reader, decode};
use crate::msgr::auth::{
    AuthError, AuthRequest, ConnectionMode, Established, ServerAuth, ServerStep, method,
};
use crate::types::{EntityType, Entropy, UTime};

const EPERM: i32 = -1;
const EACCES: i32 = -13;
const EINVAL: i32 = -22;
const EOPNOTSUPP: i32 = -95;

/// What a cluster asks of those who log in.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `auth service required`: one or more of [`method`].
    pub methods: Vec<u32>,
    /// The type of tickets' session keys and of rotating secrets (`auth_service_cipher`).
    pub service_keys: KeyType,
    /// How long an AUTH ticket is good for (`auth mon ticket ttl`).
    pub auth_ttl: Duration,
    /// How long a ticket for a service is good for (`auth service ticket ttl`).
    pub service_ttl: Duration,
}

impl Default for Policy {
    /// Ceph 16's.
    fn default() -> Self {
        Self {
            methods: vec![method::CEPHX],
            service_keys: KeyType::Aes,
            auth_ttl: Duration::from_secs(3 * 24 * 3600),
            service_ttl: Duration::from_secs(3600),
        }
    }
}

/// Everybody's keys. One is shared by all monitors and services of a cluster; each connection locks it for the time of
/// one answer.
pub struct KeyServer {
    /// The entities that exist. Changes count from the next login.
    pub keyring: Keyring,
    policy: Policy,
    rotating: BTreeMap<EntityType, Rotating>,
    next_global_id: u64,
    now: UTime,
    entropy: Box<dyn Entropy>,
}

/// The services that tickets are for.
const SERVICES: [EntityType; 5] =
    [EntityType::AUTH, EntityType::MON, EntityType::OSD, EntityType::MDS, EntityType::MGR];

impl KeyServer {
    /// `first_global_id` is the first client's; it must be above all that were given before.
    pub fn new(
        keyring: Keyring,
        policy: Policy,
        first_global_id: u64,
        now: UTime,
        entropy: Box<dyn Entropy>,
    ) -> Self {
        let rotating = BTreeMap::new();
        let next_global_id = first_global_id;
        let mut server = Self { keyring, policy, rotating, next_global_id, now, entropy };
        server.tick(now);
        server
    }

    /// Tells the time; rotates secrets that have had theirs. To be called every few seconds.
    pub fn tick(&mut self, now: UTime) {
        self.now = now;
        for service in SERVICES {
            let ttl = self.ttl(service);
            let rotating = self.rotating.entry(service).or_default();
            while rotating.secrets.len() < 3
                || rotating.current().is_none_or(|(_, c)| c.expires <= now)
            {
                let secret = Key::generate(self.policy.service_keys, now, &mut *self.entropy);
                rotating.add(secret, now, ttl);
            }
        }
    }

    /// Makes all tickets for services worthless (`ceph auth wipe-rotating-service-keys`). AUTH tickets stay good, so
    /// that clients can get new ones.
    pub fn wipe_rotating(&mut self) {
        for (service, rotating) in &mut self.rotating {
            if *service != EntityType::AUTH {
                rotating.secrets.clear();
            }
        }
        self.tick(self.now);
    }

    fn ttl(&self, service: EntityType) -> Duration {
        match service {
            EntityType::AUTH => self.policy.auth_ttl,
            _ => self.policy.service_ttl,
        }
    }

    fn entry(&self, entity: &Entity) -> Option<&Entry> {
        self.keyring.entries.get(entity)
    }

    fn caps(&self, entity: &Entity, service: EntityType) -> Option<String> {
        self.entry(entity)?.caps.get(service.name()).cloned()
    }

    fn random_u64(&mut self) -> u64 {
        u64::from_le_bytes(random(&mut *self.entropy)).max(1)
    }

    fn connection_secret(&mut self, mode: ConnectionMode) -> Vec<u8> {
        match mode {
            ConnectionMode::Crc => Vec::new(),
            ConnectionMode::Secure => {
                random::<CONNECTION_SECRET_BYTES>(&mut *self.entropy).to_vec()
            }
        }
    }

    /// What a ticket's blob holds, if this is one of ours that is still good.
    fn open_ticket(&self, service: EntityType, blob: &TicketBlob) -> Option<TicketInfo> {
        let secret = &self.rotating.get(&service)?.secrets.get(&blob.secret_id)?.key;
        let opened = crypto::open(secret, Usage::TicketInfo, &blob.sealed).ok()?;
        decode(&opened, "CephXServiceTicketInfo").ok()
    }

    /// Appends a ticket: one half sealed to `asker`, the other one to the service. `old` is the session key of the AUTH
    /// ticket that this one follows.
    fn put_ticket(
        &mut self,
        w: &mut BytesMut,
        service: EntityType,
        asker: &Key,
        old: Option<&Key>,
        (entity, global_id): (&Entity, u64),
    ) -> Result<Key, i32> {
        // An AUTH ticket is of the client's own type: that is the one it knows for sure.
        let kind = match service {
            EntityType::AUTH => asker.kind(),
            _ => asker.kind().min(self.policy.service_keys),
        };
        let ttl = self.ttl(service);
        let session_key = Key::generate(kind, self.now, &mut *self.entropy);
        let info = TicketInfo {
            entity: entity.clone(),
            global_id,
            created: self.now,
            expires: (Duration::from(self.now) + ttl).into(),
            caps: match service {
                EntityType::AUTH => None,
                service => self.caps(entity, service),
            },
            session_key: session_key.clone(),
        };
        let confounder = random(&mut *self.entropy);
        let (secret_id, secret) =
            self.rotating.get(&service).and_then(Rotating::current).ok_or(EPERM)?;
        let sealed = crypto::seal(&secret.key, Usage::TicketInfo, &confounder, value(&info)).into();
        let blob = TicketBlob { secret_id, sealed };

        w.put_u32_le(service.0.into());
        w.put_u8(1);
        let ours = ServiceTicket { session_key: session_key.clone(), validity: ttl.into() };
        let confounder = random(&mut *self.entropy);
        put_sealed(w, asker, Usage::TicketSessionKey, &confounder, value(&ours));
        w.put_bool(old.is_some());
        match old {
            None => w.put_sized(value(&blob)),
            Some(old) => {
                let confounder = random(&mut *self.entropy);
                put_sealed(w, old, Usage::TicketBlob, &confounder, |w| w.put_sized(value(&blob)));
            }
        }
        Ok(session_key)
    }

    /// Appends a list of tickets, for the services of `bits` that there are.
    fn put_service_tickets(
        &mut self,
        w: &mut BytesMut,
        bits: u32,
        session_key: &Key,
        who: (&Entity, u64),
    ) -> Result<(), i32> {
        // An AUTH ticket cannot be had this way (CVE-2021-20288).
        let wanted: Vec<_> = (SERVICES.into_iter())
            .filter(|s| *s != EntityType::AUTH && bits & u32::from(s.0) != 0)
            .collect();
        w.put_u8(1);
        w.put_count(wanted.len());
        for service in wanted {
            self.put_ticket(w, service, session_key, None, who)?;
        }
        Ok(())
    }
}

/// The previous, the current and the next secret of a kind of service.
#[derive(Default)]
struct Rotating {
    secrets: BTreeMap<u64, Expiring>,
    last: u64,
}

struct Expiring {
    key: Key,
    expires: UTime,
}

impl Rotating {
    fn current(&self) -> Option<(u64, &Expiring)> {
        self.secrets.iter().nth(1).map(|(id, secret)| (*id, secret))
    }

    fn add(&mut self, key: Key, now: UTime, ttl: Duration) {
        let now = Duration::from(now);
        let begins = match self.secrets.values().next_back() {
            None => now,
            Some(next) => (now + ttl).max(next.expires.into()),
        };
        self.last += 1;
        self.secrets.insert(self.last, Expiring { key, expires: (begins + ttl).into() });
        if self.secrets.len() > 3 {
            self.secrets.pop_first();
        }
    }
}

fn lock(keys: &Mutex<KeyServer>) -> MutexGuard<'_, KeyServer> {
    keys.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub entity: Entity,
    /// Its number.
    pub global_id: u64,
    /// What it may do here.
    pub caps: Caps,
}

/// What a peer may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caps {
    /// Anything: nobody has asked who it is (`auth none`).
    All,
    /// What its keyring entry says about this service; nothing if that is empty.
    Only(String),
}

/// An authenticated session with a monitor.
#[derive(Clone)]
pub struct MonSession {
    /// The client.
    pub peer: Peer,
    server_challenge: u64,
    keys: Arc<Mutex<KeyServer>>,
}

impl MonSession {
    /// Answers an `MAuth`: the result and the payload of the `MAuthReply`.
    pub fn renew(&self, payload: &[u8]) -> (i32, Bytes) {
        let answer = Login {
            entity: self.peer.entity.clone(),
            global_id: self.peer.global_id,
            reclaims: true,
            server_challenge: self.server_challenge,
        };
        match answer.tickets(&mut lock(&self.keys), payload, None) {
            Ok(answer) => (0, answer.payload),
            Err(errno) => (errno, Bytes::new()),
        }
    }
}

/// A login under way, or the one behind a session.
struct Login {
    entity: Entity,
    global_id: u64,
    /// The client says that the global id is its own.
    reclaims: bool,
    server_challenge: u64,
}

struct Answer {
    payload: Bytes,
    established: Established,
}

impl Login {
    /// Answers a request for tickets: for all of them during the handshake, when the connection's mode is decided, and
    /// for either kind later.
    fn tickets(
        &self,
        keys: &mut KeyServer,
        payload: &[u8],
        mode: Option<ConnectionMode>,
    ) -> Result<Answer, i32> {
        let mut r = Reader::new(payload, "cephx request");
        match r.u16().map_err(garbage)? {
            GET_AUTH_TICKET => self.auth_ticket(keys, r.get().map_err(garbage)?, mode),
            GET_SERVICE_TICKETS if mode.is_none() => self.service_tickets(keys, &mut r),
            _ => Err(EINVAL),
        }
    }

    fn auth_ticket(
        &self,
        keys: &mut KeyServer,
        request: Authenticate,
        mode: Option<ConnectionMode>,
    ) -> Result<Answer, i32> {
        let key = keys.entry(&self.entity).ok_or(EACCES)?.key.clone();
        let expected = challenge_response(&key, self.server_challenge, request.client_challenge);
        if request.response != expected {
            return Err(EACCES);
        }
        let old = self.old_session_key(keys, &request)?;
        if keys.caps(&self.entity, EntityType::MON).is_none_or(|caps| caps.is_empty()) {
            return Err(EACCES);
        }
        let who = (&self.entity, self.global_id);
        let mut w = BytesMut::new();
        w.put_value(&ReplyHeader { request: GET_AUTH_TICKET, status: 0 });
        w.put_u8(1);
        w.put_count(1);
        let session_key = keys.put_ticket(&mut w, EntityType::AUTH, &key, old.as_ref(), who)?;
        let connection_secret = mode.map(|mode| keys.connection_secret(mode));
        if request.services != 0 {
            w.put_sized(|w| {
                // Also in crc mode, where it is empty.
                if let Some(secret) = &connection_secret {
                    let confounder = random(&mut *keys.entropy);
                    put_sealed(w, &session_key, Usage::ConnectionSecret, &confounder, |w| {
                        w.put_blob(secret);
                    });
                }
            });
            let mut services = BytesMut::new();
            keys.put_service_tickets(&mut services, request.services, &session_key, who)?;
            w.put_blob(&services);
        }
        let session_key = session_key.secret().to_vec();
        let connection_secret = connection_secret.unwrap_or_default();
        let established = Established { session_key, connection_secret };
        Ok(Answer { payload: w.freeze(), established })
    }

    /// Whoever claims a global id shows the AUTH ticket that came with it (secure global id reclaim, CVE-2021-20288).
    fn old_session_key(
        &self,
        keys: &KeyServer,
        request: &Authenticate,
    ) -> Result<Option<Key>, i32> {
        if !self.reclaims {
            return if request.old_ticket.sealed.is_empty() { Ok(None) } else { Err(EINVAL) };
        }
        let info = keys.open_ticket(EntityType::AUTH, &request.old_ticket).ok_or(EACCES)?;
        if info.global_id != self.global_id {
            return Err(EACCES);
        }
        Ok(Some(info.session_key))
    }

    fn service_tickets(&self, keys: &mut KeyServer, r: &mut Reader<'_>) -> Result<Answer, i32> {
        let head: AuthorizerHead = r.get().map_err(garbage)?;
        let info = keys.open_ticket(EntityType::AUTH, &head.ticket).ok_or(EPERM)?;
        let sealed = r.blob().map_err(garbage)?;
        crypto::open(&info.session_key, Usage::Authorize, sealed).map_err(|_| EPERM)?;
        if info.global_id != head.global_id || info.global_id != self.global_id {
            return Err(EPERM);
        }
        r.skip(1).map_err(garbage)?; // CephXServiceTicketRequest's version
        let services = r.u32().map_err(garbage)?;
        let mut w = BytesMut::new();
        w.put_value(&ReplyHeader { request: GET_SERVICE_TICKETS, status: 0 });
        let who = (&info.entity, info.global_id);
        keys.put_service_tickets(&mut w, services, &info.session_key, who)?;
        Ok(Answer { payload: w.freeze(), established: Established::default() })
    }
}

fn garbage(_: DecodeError) -> i32 {
    EPERM
}

/// What is agreed on before anybody proves anything: the method, and the first mode of the client's that we allow.
fn agree(
    methods: &[u32],
    modes: &[ConnectionMode],
    request: &AuthRequest,
) -> Result<ConnectionMode, ServerStep> {
    let refusal = || ServerStep::BadMethod {
        result: EOPNOTSUPP,
        methods: methods.to_vec(),
        modes: modes.to_vec(),
    };
    if !methods.contains(&request.method) {
        return Err(refusal());
    }
    let fits = |mode: &&ConnectionMode| {
        modes.contains(mode) && (request.method != method::NONE || **mode != ConnectionMode::Secure)
    };
    request.modes.iter().find(fits).copied().ok_or_else(refusal)
}

/// A monitor's side of one connection.
pub struct MonServerAuth {
    keys: Arc<Mutex<KeyServer>>,
    modes: Vec<ConnectionMode>,
    login: Option<(Login, ConnectionMode)>,
    outcome: Arc<OnceLock<MonSession>>,
}

impl MonServerAuth {
    /// For one new connection. The session will be found in the second part.
    pub fn new(
        keys: Arc<Mutex<KeyServer>>,
        modes: Vec<ConnectionMode>,
    ) -> (Self, Arc<OnceLock<MonSession>>) {
        let outcome = Arc::new(OnceLock::new());
        (Self { keys, modes, login: None, outcome: Arc::clone(&outcome) }, outcome)
    }

    fn done(
        &self,
        login: &Login,
        caps: Caps,
        mode: ConnectionMode,
        answer: Answer,
    ) -> Result<ServerStep, AuthError> {
        let Login { entity, global_id, server_challenge, .. } = login;
        let session = MonSession {
            peer: Peer { entity: entity.clone(), global_id: *global_id, caps },
            server_challenge: *server_challenge,
            keys: Arc::clone(&self.keys),
        };
        self.outcome.set(session).map_err(|_| twice())?;
        let Answer { payload, established } = answer;
        Ok(ServerStep::Done { global_id: *global_id, mode, payload, established })
    }
}

fn twice() -> AuthError {
    AuthError::Misbehaved("the client authenticates twice".to_owned())
}

fn out_of_turn() -> AuthError {
    AuthError::Misbehaved("the client speaks out of turn".to_owned())
}

impl ServerAuth for MonServerAuth {
    fn request(&mut self, request: &AuthRequest) -> Result<ServerStep, AuthError> {
        let mut keys = lock(&self.keys);
        let mode = match agree(&keys.policy.methods, &self.modes, request) {
            Ok(mode) => mode,
            Err(refusal) => return Ok(refusal),
        };
        if request.payload.first() != Some(&MODE_MON) {
            return Err(AuthError::Misbehaved("a monitor takes no authorizer".to_owned()));
        }
        let MonRequest { entity, global_id } = decode(&request.payload, "AUTH_REQUEST")?;
        let reclaims = global_id != 0;
        let global_id = if reclaims { global_id } else { keys.next_global_id };
        if !reclaims {
            keys.next_global_id += 1;
        }
        let server_challenge = keys.random_u64();
        drop(keys);
        let login = Login { entity, global_id, reclaims, server_challenge };
        if request.method == method::NONE {
            let answer = Answer { payload: Bytes::new(), established: Established::default() };
            return self.done(&login, Caps::All, mode, answer);
        }
        self.login = Some((login, mode));
        Ok(ServerStep::More(Challenge(server_challenge).to_bytes()))
    }

    fn request_more(&mut self, payload: &[u8]) -> Result<ServerStep, AuthError> {
        let (login, mode) = self.login.take().ok_or_else(out_of_turn)?;
        let mut keys = lock(&self.keys);
        match login.tickets(&mut keys, payload, Some(mode)) {
            Ok(answer) => {
                let caps = keys.caps(&login.entity, EntityType::MON).unwrap_or_default();
                drop(keys);
                self.done(&login, Caps::Only(caps), mode, answer)
            }
            Err(result) => Ok(ServerStep::BadMethod {
                result,
                methods: keys.policy.methods.clone(),
                modes: self.modes.clone(),
            }),
        }
    }
}

/// A service's side of one connection: an OSD's, say.
pub struct ServiceServerAuth {
    keys: Arc<Mutex<KeyServer>>,
    service: EntityType,
    modes: Vec<ConnectionMode>,
    challenge: Option<(u64, ConnectionMode)>,
    outcome: Arc<OnceLock<Peer>>,
}

impl ServiceServerAuth {
    /// For one new connection to a service of this kind. The client will be found in the second part.
    pub fn new(
        keys: Arc<Mutex<KeyServer>>,
        service: EntityType,
        modes: Vec<ConnectionMode>,
    ) -> (Self, Arc<OnceLock<Peer>>) {
        let outcome = Arc::new(OnceLock::new());
        let auth = Self { keys, service, modes, challenge: None, outcome: Arc::clone(&outcome) };
        (auth, outcome)
    }

    /// Reads an authorizer; `None` if the ticket is not good here.
    fn authorizer(
        &self,
        keys: &KeyServer,
        payload: &[u8],
    ) -> Result<Option<(TicketInfo, Authorize)>, AuthError> {
        let mut r = Reader::new(payload, "authorizer");
        let head: AuthorizerHead = r.get()?;
        let sealed = r.blob()?;
        let read = || {
            let info = keys.open_ticket(self.service, &head.ticket)?;
            let opened = crypto::open(&info.session_key, Usage::Authorize, sealed).ok()?;
            let ours =
                head.service == u32::from(self.service.0) && head.global_id == info.global_id;
            ours.then_some((info, opened))
        };
        let Some((info, opened)) = read() else { return Ok(None) };
        Ok(Some((info, decode(&opened, "CephXAuthorize")?)))
    }

    fn refusal(&self, keys: &KeyServer) -> ServerStep {
        ServerStep::BadMethod {
            result: EACCES,
            methods: keys.policy.methods.clone(),
            modes: self.modes.clone(),
        }
    }

    fn done(
        &self,
        peer: Peer,
        mode: ConnectionMode,
        payload: Bytes,
        established: Established,
    ) -> Result<ServerStep, AuthError> {
        let global_id = peer.global_id;
        self.outcome.set(peer).map_err(|_| twice())?;
        Ok(ServerStep::Done { global_id, mode, payload, established })
    }
}

impl ServerAuth for ServiceServerAuth {
    fn request(&mut self, request: &AuthRequest) -> Result<ServerStep, AuthError> {
        let mut keys = lock(&self.keys);
        let mode = match agree(&keys.policy.methods, &self.modes, request) {
            Ok(mode) => mode,
            Err(refusal) => return Ok(refusal),
        };
        if request.payload.first() != Some(&MODE_AUTHORIZER) {
            return Err(AuthError::Misbehaved("a service takes only authorizers".to_owned()));
        }
        if request.method == method::NONE {
            let mut r = Reader::new(&request.payload, "authorizer");
            r.skip(1)?;
            let peer = Peer { entity: r.get()?, global_id: r.u64()?, caps: Caps::All };
            return self.done(peer, mode, Bytes::new(), Established::default());
        }
        let Some((info, _)) = self.authorizer(&keys, &request.payload)? else {
            return Ok(self.refusal(&keys));
        };
        let challenge = keys.random_u64();
        let confounder = random(&mut *keys.entropy);
        let sealed = crypto::seal(
            &info.session_key,
            Usage::AuthorizeChallenge,
            &confounder,
            value(&Challenge(challenge)),
        );
        self.challenge = Some((challenge, mode));
        Ok(ServerStep::More(sealed.into()))
    }

    fn request_more(&mut self, payload: &[u8]) -> Result<ServerStep, AuthError> {
        let (challenge, mode) = self.challenge.take().ok_or_else(out_of_turn)?;
        let mut keys = lock(&self.keys);
        let Some((info, authorize)) = self.authorizer(&keys, payload)? else {
            return Ok(self.refusal(&keys));
        };
        if authorize.challenge_plus_one != Some(challenge.wrapping_add(1)) {
            return Ok(self.refusal(&keys));
        }
        let connection_secret = keys.connection_secret(mode);
        let reply = AuthorizeReply {
            nonce_plus_one: authorize.nonce.wrapping_add(1),
            connection_secret: connection_secret.clone(),
        };
        let confounder = random(&mut *keys.entropy);
        let mut w = BytesMut::new();
        put_sealed(&mut w, &info.session_key, Usage::AuthorizeReply, &confounder, value(&reply));
        drop(keys);
        let peer = Peer {
            entity: info.entity,
            global_id: info.global_id,
            caps: Caps::Only(info.caps.unwrap_or_default()),
        };
        let session_key = info.session_key.secret().to_vec();
        self.done(peer, mode, w.freeze(), Established { session_key, connection_secret })
    }
}

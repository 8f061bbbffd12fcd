//! The client's side: logging in to a monitor, and with a ticket to a service (`src/auth/cephx/CephxClientHandler.cc`,
//! `src/mon/MonClient.cc`).

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};

use super::crypto::{self, Confounder, Usage, challenge_response, put_sealed, value};
use super::key::random;
use super::wire::{
    self, Authenticate, Authorize, AuthorizeReply, AuthorizerHead, CONNECTION_SECRET_BYTES,
    Challenge, GET_AUTH_TICKET, MonRequest, ReplyHeader,
};
use super::{Entity, Key, Ticket};
use crate::denc::{Encode, Put, Reader, decode};
use crate::msgr::auth::{AuthError, AuthRequest, ClientAuth, ConnectionMode, Established, method};
use crate::types::{EntityType, Entropy};

/// What a login needs to know: `auth client required`, `ms mon client mode`, and the key from the keyring.
#[derive(Clone, Debug)]
pub struct Login {
    /// Who we are.
    pub entity: Entity,
    /// Our key; without one only [`method::NONE`] is left.
    pub key: Option<Key>,
    /// How we would authenticate, preferred first ([`method`]).
    pub methods: Vec<u32>,
    /// The modes of a connection to a monitor, preferred first.
    pub modes: Vec<ConnectionMode>,
    /// The services to get tickets for.
    pub services: Vec<EntityType>,
}

impl Login {
    /// The methods that we can really use, and the modes that are possible with them: `none` has no key to encrypt
    /// with.
    fn usable(&self) -> impl Iterator<Item = (u32, Vec<ConnectionMode>)> + '_ {
        self.methods.iter().filter_map(|&method| {
            let modes = match method {
                method::CEPHX if self.key.is_some() => self.modes.clone(),
                method::NONE => without_secure(&self.modes),
                _ => return None,
            };
            (!modes.is_empty()).then_some((method, modes))
        })
    }

    fn key(&self) -> Result<&Key, AuthError> {
        self.key.as_ref().ok_or_else(|| {
            AuthError::Incompatible(format!("no key for {}: cephx needs a keyring", self.entity))
        })
    }

    /// The monitors' refusal in words. They don't say why, lest a stranger learns which names exist.
    pub(super) fn refused(&self, result: i32) -> AuthError {
        let Self { entity, key, .. } = self;
        let kind = key.as_ref().map_or("cephx", |key| key.kind().name());
        AuthError::Refused(format!(
            "the monitors refuse {entity} and its {kind} key ({}): the key is wrong or out of date, or there is no \
             {entity}, or it has no mon caps, or the cluster does not allow {kind} keys (`ceph mon dump` lists \
             auth_allowed_ciphers)",
            errno(result)
        ))
    }
}

pub(super) fn without_secure(modes: &[ConnectionMode]) -> Vec<ConnectionMode> {
    modes.iter().copied().filter(|mode| *mode != ConnectionMode::Secure).collect()
}

fn errno(result: i32) -> String {
    match result {
        -1 => "operation not permitted".to_owned(),
        -2 => "not found".to_owned(),
        -5 => "input/output error".to_owned(),
        -13 => "permission denied".to_owned(),
        -22 => "invalid argument".to_owned(),
        -95 => "not supported".to_owned(),
        result => format!("error {result}"),
    }
}

fn method_names(methods: &[u32]) -> String {
    let name = |method: &u32| match *method {
        method::NONE => "none".to_owned(),
        method::CEPHX => "cephx".to_owned(),
        4 => "gss".to_owned(),
        method => format!("method {method}"),
    };
    if methods.is_empty() {
        return "nothing".to_owned();
    }
    methods.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn mode_names(modes: &[ConnectionMode]) -> String {
    let name = |mode: &ConnectionMode| match mode {
        ConnectionMode::Crc => "crc",
        ConnectionMode::Secure => "secure",
    };
    modes.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// What a login brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// How.
    pub method: u32,
    /// Who we are to the cluster.
    pub global_id: u64,
    /// The AUTH ticket first, then those for the services.
    pub(super) tickets: Vec<Ticket>,
    /// Renewals of the AUTH ticket answer the same challenge again.
    pub(super) server_challenge: u64,
}

/// A login to a monitor, with cephx or without anything.
#[derive(Debug)]
pub struct MonAuth {
    login: Arc<Login>,
    global_id: u64,
    /// Proves that the global id is ours.
    old: Option<Ticket>,
    client_challenge: u64,
    /// What is being tried: an index into what [`Login::usable`] gives.
    attempt: usize,
    server_challenge: Option<u64>,
    outcome: Arc<OnceLock<LoggedIn>>,
}

impl MonAuth {
    pub(super) fn new(
        login: Arc<Login>,
        global_id: u64,
        old: Option<Ticket>,
        entropy: &mut dyn Entropy,
    ) -> (Self, Arc<OnceLock<LoggedIn>>) {
        let outcome = Arc::new(OnceLock::new());
        let auth = Self {
            login,
            global_id,
            old,
            client_challenge: u64::from_le_bytes(random(entropy)),
            attempt: 0,
            server_challenge: None,
            outcome: Arc::clone(&outcome),
        };
        (auth, outcome)
    }

    fn trying(&self) -> Option<(u32, Vec<ConnectionMode>)> {
        self.login.usable().nth(self.attempt)
    }
}

impl ClientAuth for MonAuth {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        let Some((method, modes)) = self.trying() else {
            if self.login.methods.contains(&method::CEPHX) {
                self.login.key()?;
            }
            return Err(AuthError::Incompatible(format!(
                "no way to authenticate is left: allowed are {} in {} mode",
                method_names(&self.login.methods),
                mode_names(&self.login.modes)
            )));
        };
        self.server_challenge = None;
        let request = MonRequest { entity: self.login.entity.clone(), global_id: self.global_id };
        Ok(AuthRequest { method, modes, payload: request.to_bytes() })
    }

    fn bad_method(
        &mut self,
        result: i32,
        allowed_methods: &[u32],
        allowed_modes: &[u32],
    ) -> Result<AuthRequest, AuthError> {
        let Some((tried, modes)) = self.trying() else { return self.request() };
        // Ceph's rule: the next one of ours that the server would take.
        let next = (self.login.usable().enumerate().skip(self.attempt + 1))
            .find(|(_, (method, _))| allowed_methods.contains(method));
        if let Some((attempt, _)) = next {
            self.attempt = attempt;
            return self.request();
        }
        if !allowed_methods.contains(&tried) {
            if allowed_methods.contains(&method::CEPHX)
                && self.login.methods.contains(&method::CEPHX)
            {
                self.login.key()?;
            }
            return Err(AuthError::Incompatible(format!(
                "the cluster authenticates with {}, we may use {}",
                method_names(allowed_methods),
                method_names(&self.login.usable().map(|(method, _)| method).collect::<Vec<_>>())
            )));
        }
        if !modes.iter().any(|mode| allowed_modes.contains(&mode.code())) {
            return Err(no_common_mode("monitors", &modes, allowed_modes));
        }
        Err(self.login.refused(result))
    }

    fn reply_more(&mut self, payload: &[u8]) -> Result<Bytes, AuthError> {
        if self.trying().is_none_or(|(tried, _)| tried != method::CEPHX)
            || self.server_challenge.is_some()
        {
            return Err(AuthError::Misbehaved("the monitor challenges out of turn".to_owned()));
        }
        let Challenge(server_challenge) = decode(payload, "CephXServerChallenge")?;
        self.server_challenge = Some(server_challenge);
        let mut w = BytesMut::new();
        let challenges = (server_challenge, self.client_challenge);
        put_authenticate(&mut w, &self.login, challenges, self.old.as_ref())?;
        Ok(w.freeze())
    }

    fn done(
        &mut self,
        global_id: u64,
        mode: ConnectionMode,
        payload: &[u8],
    ) -> Result<Established, AuthError> {
        let (tried, modes) = self.trying().unwrap_or_default();
        if !modes.contains(&mode) {
            return Err(unoffered());
        }
        if self.global_id != 0 && self.global_id != global_id {
            // Ops and watches carry our global id: under another one they would be somebody else's.
            return Err(AuthError::Misbehaved(format!(
                "the monitor turned client {} into {global_id}",
                self.global_id
            )));
        }
        let mut outcome =
            LoggedIn { method: tried, global_id, tickets: Vec::new(), server_challenge: 0 };
        let mut established = Established::default();
        if tried == method::CEPHX {
            let out_of_turn = || AuthError::Misbehaved("the monitor asked for no proof".to_owned());
            outcome.server_challenge = self.server_challenge.ok_or_else(out_of_turn)?;
            let mut r = Reader::new(payload, "AUTH_DONE");
            let header: ReplyHeader = r.get()?;
            if header.request != GET_AUTH_TICKET {
                return Err(AuthError::Misbehaved("no AUTH ticket in AUTH_DONE".to_owned()));
            }
            if header.status < 0 {
                return Err(self.login.refused(header.status));
            }
            let old = self.old.as_ref().map(|ticket| &ticket.session_key);
            let (tickets, secret) = read_auth_reply(&mut r, &self.login, old)?;
            let session = tickets.first().map(|auth| auth.session_key.secret().to_vec());
            established.session_key = session.unwrap_or_default();
            established.connection_secret = connection_secret(mode, secret)?;
            outcome.tickets = tickets;
        }
        self.outcome
            .set(outcome)
            .map_err(|_| AuthError::Misbehaved("the monitor is done twice".to_owned()))?;
        Ok(established)
    }
}

/// The request for an AUTH ticket that answers the monitor's challenge: on a new connection and, with the same
/// server challenge again, in renewals.
pub(super) fn put_authenticate(
    w: &mut BytesMut,
    login: &Login,
    (server_challenge, client_challenge): (u64, u64),
    old: Option<&Ticket>,
) -> Result<(), AuthError> {
    w.put_u16_le(GET_AUTH_TICKET);
    w.put_value(&Authenticate {
        client_challenge,
        response: challenge_response(login.key()?, server_challenge, client_challenge),
        old_ticket: old.map(|ticket| ticket.blob.clone()).unwrap_or_default(),
        services: login.services.iter().fold(0, |bits, service| bits | u32::from(service.0)),
    });
    Ok(())
}

/// Reads the reply to [`put_authenticate`]: the AUTH ticket and the tickets for services, and the connection's secret.
/// `old` is the session key of the AUTH ticket that was presented.
pub(super) fn read_auth_reply(
    r: &mut Reader<'_>,
    login: &Login,
    old: Option<&Key>,
) -> Result<(Vec<Ticket>, Vec<u8>), AuthError> {
    let mut tickets = wire::read_tickets(r, login.key()?, old)?;
    let [Ticket { service: EntityType::AUTH, session_key, .. }] = tickets.as_slice() else {
        return Err(AuthError::Misbehaved("the monitor sent no AUTH ticket".to_owned()));
    };
    let (mut secret, mut services) = (Vec::new(), Vec::new());
    let wrapped = r.blob()?;
    if !wrapped.is_empty() {
        let sealed = Reader::new(wrapped, "connection secret").blob()?;
        let opened = crypto::open(session_key, Usage::ConnectionSecret, sealed);
        let opened = opened.map_err(|_| wrong_session_key("monitor"))?;
        secret = Reader::new(&opened, "connection secret").blob()?.to_vec();
    }
    let extra = r.blob()?;
    if !extra.is_empty() {
        services =
            wire::read_tickets(&mut Reader::new(extra, "service tickets"), session_key, None)?;
    }
    // The monitors of old gave a second AUTH ticket here to whoever asked for one (CVE-2021-20288). We don't ask.
    services.retain(|ticket| ticket.service != EntityType::AUTH);
    tickets.extend(services);
    Ok((tickets, secret))
}

/// A login to a service with a ticket.
#[derive(Debug)]
pub struct Authorizer {
    global_id: u64,
    ticket: Ticket,
    modes: Vec<ConnectionMode>,
    nonce: u64,
    confounders: [Confounder; 2],
    challenged: bool,
}

impl Authorizer {
    pub(super) fn new(
        global_id: u64,
        ticket: Ticket,
        modes: Vec<ConnectionMode>,
        entropy: &mut dyn Entropy,
    ) -> Self {
        Self {
            global_id,
            ticket,
            modes,
            nonce: u64::from_le_bytes(random(entropy)),
            confounders: [random(entropy), random(entropy)],
            challenged: false,
        }
    }

    fn payload(&self, challenge: Option<u64>, confounder: &Confounder) -> Bytes {
        let mut w = BytesMut::new();
        put_authorizer(&mut w, self.global_id, &self.ticket, self.nonce, challenge, confounder);
        w.freeze()
    }
}

impl ClientAuth for Authorizer {
    fn request(&mut self) -> Result<AuthRequest, AuthError> {
        let payload = self.payload(None, &self.confounders[0]);
        Ok(AuthRequest { method: method::CEPHX, modes: self.modes.clone(), payload })
    }

    fn bad_method(
        &mut self,
        result: i32,
        allowed_methods: &[u32],
        allowed_modes: &[u32],
    ) -> Result<AuthRequest, AuthError> {
        let service = self.ticket.service.name();
        Err(service_refusal(
            service,
            method::CEPHX,
            &self.modes,
            result,
            allowed_methods,
            allowed_modes,
        ))
    }

    /// Always answered: without it, whoever has overheard an authorizer could use it again (CVE-2018-1128).
    fn reply_more(&mut self, payload: &[u8]) -> Result<Bytes, AuthError> {
        if std::mem::replace(&mut self.challenged, true) {
            return Err(AuthError::Misbehaved("the service challenges us twice".to_owned()));
        }
        let key = &self.ticket.session_key;
        let opened = crypto::open(key, Usage::AuthorizeChallenge, payload)
            .map_err(|_| wrong_session_key(self.ticket.service.name()))?;
        let Challenge(challenge) = decode(&opened, "CephXAuthorizeChallenge")?;
        Ok(self.payload(Some(challenge), &self.confounders[1]))
    }

    fn done(
        &mut self,
        _global_id: u64,
        mode: ConnectionMode,
        payload: &[u8],
    ) -> Result<Established, AuthError> {
        if !self.modes.contains(&mode) {
            return Err(unoffered());
        }
        let key = &self.ticket.session_key;
        let sealed = Reader::new(payload, "authorizer reply").blob()?;
        let opened = crypto::open(key, Usage::AuthorizeReply, sealed)
            .map_err(|_| wrong_session_key(self.ticket.service.name()))?;
        let reply: AuthorizeReply = decode(&opened, "CephXAuthorizeReply")?;
        if reply.nonce_plus_one != self.nonce.wrapping_add(1) {
            return Err(AuthError::Misbehaved("the service's reply is not to us".to_owned()));
        }
        Ok(Established {
            session_key: key.secret().to_vec(),
            connection_secret: connection_secret(mode, reply.connection_secret)?,
        })
    }
}

/// Ticket and proof that we can read its session key, for a service or, with an AUTH ticket, for a monitor.
pub(super) fn put_authorizer(
    w: &mut BytesMut,
    global_id: u64,
    ticket: &Ticket,
    nonce: u64,
    challenge: Option<u64>,
    confounder: &Confounder,
) {
    w.put_value(&AuthorizerHead {
        global_id,
        service: ticket.service.0.into(),
        ticket: ticket.blob.clone(),
    });
    let challenge_plus_one = challenge.map(|challenge| challenge.wrapping_add(1));
    let authorize = Authorize { nonce, challenge_plus_one };
    put_sealed(w, &ticket.session_key, Usage::Authorize, confounder, value(&authorize));
}

/// Why a service does not take us.
pub(super) fn service_refusal(
    service: &str,
    tried: u32,
    modes: &[ConnectionMode],
    result: i32,
    allowed_methods: &[u32],
    allowed_modes: &[u32],
) -> AuthError {
    if !allowed_methods.contains(&tried) {
        let (theirs, ours) = (method_names(allowed_methods), method_names(&[tried]));
        return AuthError::Incompatible(format!(
            "the {service} authenticates with {theirs}, the monitors with {ours}"
        ));
    }
    if !modes.iter().any(|mode| allowed_modes.contains(&mode.code())) {
        return no_common_mode(&format!("{service}s"), modes, allowed_modes);
    }
    AuthError::Refused(format!("the {service} does not take our ticket: {}", errno(result)))
}

fn no_common_mode(who: &str, ours: &[ConnectionMode], theirs: &[u32]) -> AuthError {
    let theirs: Vec<_> =
        theirs.iter().filter_map(|mode| ConnectionMode::from_code(*mode)).collect();
    AuthError::Incompatible(format!(
        "the {who} allow connections in {} mode, we in {} (ms_client_mode, ms_mon_client_mode)",
        mode_names(&theirs),
        mode_names(ours)
    ))
}

fn unoffered() -> AuthError {
    AuthError::Misbehaved("the peer chose a connection mode that was not offered".to_owned())
}

fn wrong_session_key(peer: &str) -> AuthError {
    AuthError::Misbehaved(format!("the {peer} does not know the session key"))
}

fn connection_secret(mode: ConnectionMode, secret: Vec<u8>) -> Result<Vec<u8>, AuthError> {
    match mode {
        ConnectionMode::Crc => Ok(Vec::new()),
        ConnectionMode::Secure if secret.len() == CONNECTION_SECRET_BYTES => Ok(secret),
        ConnectionMode::Secure => Err(AuthError::Misbehaved(format!(
            "a secure connection needs a secret of {CONNECTION_SECRET_BYTES} bytes, the peer sent {}",
            secret.len()
        ))),
    }
}

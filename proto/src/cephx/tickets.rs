//! The tickets that a client holds, and their renewal over an established session with a monitor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::client::{self, Authorizer, LoggedIn, Login, MonAuth, put_authenticate};
use super::key::random;
use super::none::NoneAuthorizer;
use super::wire::{self, GET_AUTH_TICKET, GET_SERVICE_TICKETS, ReplyHeader, TicketBlob};
use super::{Key, KeyType};
use crate::denc::Reader;
use crate::msgr::auth::{AuthError, ClientAuth, ConnectionMode, method};
use crate::types::{EntityType, Entropy, Instant};

/// What proves to one kind of service who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The kind of service; [`EntityType::AUTH`] for the monitors' own.
    pub service: EntityType,
    /// How long it is good for; zero is for ever.
    pub validity: Duration,
    pub(super) session_key: Key,
    pub(super) blob: TicketBlob,
}

impl Ticket {
    /// The type of its session key, whatever the types of our own key and of the service's secret.
    pub fn key_type(&self) -> KeyType {
        self.session_key.kind()
    }
}

/// All tickets of one client, with its identity: the global id.
#[derive(Debug)]
pub struct Tickets {
    login: Arc<Login>,
    global_id: u64,
    method: u32,
    server_challenge: u64,
    auth: Option<Held>,
    services: BTreeMap<EntityType, Held>,
    /// Refused by a service before their time.
    refused: BTreeSet<EntityType>,
    /// What was due when a renewal was refused is due again then.
    postponed: Option<Instant>,
}

#[derive(Debug)]
struct Held {
    ticket: Ticket,
    /// When to ask for the next one; `None` is never.
    renew_after: Option<Instant>,
}

impl Held {
    /// As Ceph does: a ticket is renewed when three quarters of its time are over, counted from when it came.
    fn new(now: Instant, ticket: Ticket) -> Self {
        let renew_after =
            (!ticket.validity.is_zero()).then(|| now + (ticket.validity - ticket.validity / 4));
        Self { ticket, renew_after }
    }

    fn due(&self, now: Instant) -> bool {
        self.renew_after.is_some_and(|renew_after| renew_after <= now)
    }
}

impl Tickets {
    /// None yet.
    pub fn new(login: Arc<Login>) -> Self {
        Self {
            login,
            global_id: 0,
            method: method::CEPHX,
            server_challenge: 0,
            auth: None,
            services: BTreeMap::new(),
            refused: BTreeSet::new(),
            postponed: None,
        }
    }

    /// The number that the cluster knows us by, 0 before the first login. It stays the same when we log in again.
    pub fn global_id(&self) -> u64 {
        self.global_id
    }

    /// Who logs in, and how.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// From now on another key proves who we are. What was put off because the last one was refused is due at once.
    pub fn set_login(&mut self, login: Arc<Login>, now: Instant) {
        self.login = login;
        if let Some(postponed) = self.postponed.take() {
            for held in self.auth.iter_mut().chain(self.services.values_mut()) {
                if held.renew_after == Some(postponed) {
                    held.renew_after = Some(now);
                }
            }
        }
    }

    /// The ticket for a kind of service.
    pub fn get(&self, service: EntityType) -> Option<&Ticket> {
        self.services.get(&service).map(|held| &held.ticket)
    }

    /// A login to a monitor, and where its outcome will be found: pass that to [`Tickets::logged_in`]. If we have a
    /// global id, the login claims it with the AUTH ticket.
    pub fn mon_auth(&self, entropy: &mut dyn Entropy) -> (MonAuth, Arc<OnceLock<LoggedIn>>) {
        let old = self.auth.as_ref().map(|held| held.ticket.clone());
        MonAuth::new(Arc::clone(&self.login), self.global_id, old, entropy)
    }

    /// Takes over what a login brought. A login that was still under way when another one won must be dropped: its
    /// global id would be another one.
    pub fn logged_in(&mut self, now: Instant, outcome: &LoggedIn) {
        self.global_id = outcome.global_id;
        self.method = outcome.method;
        self.server_challenge = outcome.server_challenge;
        for ticket in &outcome.tickets {
            self.keep(now, ticket.clone());
        }
    }

    fn keep(&mut self, now: Instant, ticket: Ticket) {
        self.refused.remove(&ticket.service);
        if ticket.service == EntityType::AUTH {
            self.auth = Some(Held::new(now, ticket));
        } else {
            self.services.insert(ticket.service, Held::new(now, ticket));
        }
    }

    /// What an authorizer made now for a connection to a service would do. An authorizer keeps the ticket it was made
    /// from: renewal never disturbs a connection.
    ///
    /// # Errors
    /// There is no ticket for the service, because our key's caps allow none or we have not logged in.
    pub fn authorizer(
        &self,
        service: EntityType,
        modes: Vec<ConnectionMode>,
        entropy: &mut dyn Entropy,
    ) -> Result<Box<dyn ClientAuth>, AuthError> {
        if self.method == method::NONE {
            let entity = self.login.entity.clone();
            return Ok(Box::new(NoneAuthorizer::new(entity, self.global_id, modes)));
        }
        let Some(ticket) = self.get(service) else {
            return Err(AuthError::Refused(format!(
                "the monitors gave {} no ticket for the {}s",
                self.login.entity,
                service.name()
            )));
        };
        Ok(Box::new(Authorizer::new(self.global_id, ticket.clone(), modes, entropy)))
    }

    /// A service did not take our ticket: it is renewed at once.
    pub fn refused(&mut self, service: EntityType) {
        if self.services.contains_key(&service) {
            self.refused.insert(service);
        }
    }

    /// When the next renewal is due.
    pub fn renewal_due(&self) -> Option<Instant> {
        if !self.refused.is_empty() {
            return Some(Instant::default());
        }
        self.auth.iter().chain(self.services.values()).filter_map(|held| held.renew_after).min()
    }

    /// The payload of an `MAuth` that renews what is due now, if anything is.
    pub fn renewal_request(&self, now: Instant, entropy: &mut dyn Entropy) -> Option<Bytes> {
        let auth = self.auth.as_ref()?;
        let mut w = BytesMut::new();
        if auth.due(now) {
            let challenges = (self.server_challenge, u64::from_le_bytes(random(entropy)));
            put_authenticate(&mut w, &self.login, challenges, Some(&auth.ticket)).ok()?;
            return Some(w.freeze());
        }
        let mut services = 0;
        for (service, held) in &self.services {
            if held.due(now) || self.refused.contains(service) {
                services |= u32::from(service.0);
            }
        }
        if services == 0 {
            return None;
        }
        w.put_u16_le(GET_SERVICE_TICKETS);
        let (nonce, confounder) = (u64::from_le_bytes(random(entropy)), random(entropy));
        client::put_authorizer(&mut w, self.global_id, &auth.ticket, nonce, None, &confounder);
        w.put_u8(1);
        w.put_u32_le(services);
        Some(w.freeze())
    }

    /// The result and the payload of the `MAuthReply`.
    ///
    /// # Errors
    /// The monitors refuse, or the reply makes no sense; the tickets held are as they were.
    pub fn renewal_reply(
        &mut self,
        now: Instant,
        result: i32,
        payload: &[u8],
    ) -> Result<(), AuthError> {
        if result < 0 {
            return Err(self.login.refused(result));
        }
        let mut r = Reader::new(payload, "MAuthReply");
        let header: ReplyHeader = r.get()?;
        if header.status < 0 {
            return Err(self.login.refused(header.status));
        }
        let session = self.auth.as_ref().map(|held| &held.ticket.session_key);
        let tickets = match header.request {
            GET_AUTH_TICKET => client::read_auth_reply(&mut r, &self.login, session)?.0,
            GET_SERVICE_TICKETS => {
                let session = session.ok_or_else(unasked)?;
                wire::read_tickets(&mut r, session, None)?
            }
            _ => return Err(unasked()),
        };
        for ticket in tickets {
            self.keep(now, ticket);
        }
        Ok(())
    }

    /// Puts off what is due, because a renewal has been asked for or refused.
    pub fn postpone(&mut self, until: Instant) {
        self.refused.clear();
        self.postponed = Some(until);
        for held in self.auth.iter_mut().chain(self.services.values_mut()) {
            if held.due(until) {
                held.renew_after = Some(until);
            }
        }
    }
}

fn unasked() -> AuthError {
    AuthError::Misbehaved("the monitor answers what was not asked".to_owned())
}

//! The client's side.

use bytes::Bytes;

use super::{Expected, Role, Session, Step, Wire, payload, unexpected};
use crate::denc::{Reader, decode};
use crate::msgr::Error;
use crate::msgr::auth::{AuthError, AuthRequest, ClientAuth, ConnectionMode};
use crate::msgr::control::{AuthBadMethod, AuthDone, Blob, ClientIdent, Hello, LOSSY, ServerIdent};
use crate::msgr::features;
use crate::msgr::frame::{Frame, Tag};
use crate::types::{AddrType, EntityAddr, EntityAddrs, EntityName, EntityType};

/// What a client needs to know before it connects.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// What should answer.
    pub peer: EntityType,
    /// Where it should be: the address that was dialled, with the nonce that the map has for it (0 for monitors).
    pub target: EntityAddr,
    /// This client. Without a socket address, the one that the server sees is taken (see [`Session::local`]); the nonce
    /// must be given.
    pub local: EntityAddr,
    /// Greater for every connection that the client makes: to a server the greatest is the current one.
    pub global_seq: u64,
}

/// The states of a client, each named after what it expects.
pub(in crate::msgr) enum Client {
    Banner(Setup),
    Hello(Setup),
    Auth(Setup, Vec<ConnectionMode>),
    Signature(Setup, Authenticated, Expected),
    Ident(Setup, Authenticated),
}

/// What is there from the beginning.
pub(in crate::msgr) struct Setup {
    config: ClientConfig,
    auth: Box<dyn ClientAuth>,
}

/// What authentication has given.
pub(in crate::msgr) struct Authenticated {
    global_id: u64,
    mode: ConnectionMode,
}

impl Client {
    pub(in crate::msgr) fn new(config: ClientConfig, auth: Box<dyn ClientAuth>) -> Self {
        Self::Banner(Setup { config, auth })
    }

    pub(super) fn banner(self, wire: &mut Wire<'_>) -> Result<Self, Error> {
        let Self::Banner(setup) = self else { return Ok(self) };
        let hello = Hello { kind: EntityType::CLIENT, peer_addr: setup.config.target };
        wire.send(Tag::Hello, &hello)?;
        Ok(Self::Hello(setup))
    }

    pub(super) fn frame(self, frame: &Frame, wire: &mut Wire<'_>) -> Result<Step<Self>, Error> {
        match self {
            Self::Banner(_) => unexpected(frame, "a banner"),
            Self::Hello(setup) => setup.hello(frame, wire),
            Self::Auth(setup, modes) => setup.auth(modes, frame, wire),
            Self::Signature(setup, authenticated, expected) => {
                if frame.tag != Tag::AuthSignature {
                    return unexpected(frame, "a signature");
                }
                expected.check(frame)?;
                setup.send_ident(&authenticated, wire)?;
                Ok(Step::Next(Self::Ident(setup, authenticated)))
            }
            Self::Ident(setup, authenticated) => setup.ident(&authenticated, frame),
        }
    }
}

impl Setup {
    fn hello(mut self, frame: &Frame, wire: &mut Wire<'_>) -> Result<Step<Client>, Error> {
        if frame.tag != Tag::Hello {
            return unexpected(frame, "a hello");
        }
        let hello: Hello = decode(frame.first(), "hello")?;
        let ClientConfig { peer, target, local, .. } = &mut self.config;
        if hello.kind != *peer {
            let (is, should) = (hello.kind.name(), peer.name());
            return Err(Error::misbehaved(format!("{target} is a {is}, not a {should}")));
        }
        if local.addr.is_none() {
            // As Ceph's clients do: of no protocol in particular, and with no port, since nobody can dial a client.
            local.kind = AddrType::ANY;
            local.addr = hello.peer_addr.addr.map(|mut addr| {
                addr.set_port(0);
                addr
            });
        }
        let request = self.auth.request()?;
        self.request(request, wire)
    }

    fn request(self, request: AuthRequest, wire: &mut Wire<'_>) -> Result<Step<Client>, Error> {
        wire.send(Tag::AuthRequest, &request)?;
        Ok(Step::Next(Client::Auth(self, request.modes)))
    }

    fn auth(
        mut self,
        modes: Vec<ConnectionMode>,
        frame: &Frame,
        wire: &mut Wire<'_>,
    ) -> Result<Step<Client>, Error> {
        match frame.tag {
            Tag::AuthBadMethod => {
                let bad: AuthBadMethod = decode(frame.first(), "bad method")?;
                let request = self.auth.bad_method(bad.result, &bad.methods, &bad.modes)?;
                self.request(request, wire)
            }
            Tag::AuthReplyMore => {
                let answer: Bytes = self.auth.reply_more(payload(frame).blob()?)?;
                wire.send(Tag::AuthRequestMore, &Blob(&answer))?;
                Ok(Step::Next(Client::Auth(self, modes)))
            }
            Tag::AuthDone => {
                let done = AuthDone::decode(&mut payload(frame))?;
                let Some(mode) = ConnectionMode::from_code(done.mode) else {
                    let code = done.mode;
                    return Err(Error::incompatible(format!("it chose connection mode {code}")));
                };
                // A server, or somebody in between, must not talk a client out of encryption.
                if !modes.contains(&mode) {
                    return Err(AuthError::Misbehaved(format!(
                        "the server chose {mode:?} mode, which was not offered"
                    ))
                    .into());
                }
                let established = self.auth.done(done.global_id, mode, done.payload)?;
                let expected = wire.sign(&established, mode, Role::Client)?;
                let authenticated = Authenticated { global_id: done.global_id, mode };
                Ok(Step::Next(Client::Signature(self, authenticated, expected)))
            }
            _ => unexpected(frame, "authentication"),
        }
    }

    fn send_ident(&self, authenticated: &Authenticated, wire: &mut Wire<'_>) -> Result<(), Error> {
        let ident = ClientIdent {
            addrs: EntityAddrs(vec![self.config.local]),
            target: self.config.target,
            num: authenticated.global_id as i64,
            global_seq: self.config.global_seq,
            supported: features::SUPPORTED,
            required: features::REQUIRED,
            flags: LOSSY,
            cookie: 0, // only sessions that outlive their connection have one
        };
        wire.send(Tag::ClientIdent, &ident)
    }

    fn ident(self, authenticated: &Authenticated, frame: &Frame) -> Result<Step<Client>, Error> {
        match frame.tag {
            Tag::ServerIdent => self.server_ident(authenticated, &decode(frame.first(), "ident")?),
            Tag::IdentMissingFeatures => Err(Error::incompatible(format!(
                "it requires features that this client does not have: {}",
                features::names(Reader::new(frame.first(), "missing features").u64()?)
            ))),
            Tag::Wait => Err(Error::Lost("the peer says that it is connecting to this side")),
            _ => unexpected(frame, "an ident"),
        }
    }

    fn server_ident(
        self,
        authenticated: &Authenticated,
        ident: &ServerIdent,
    ) -> Result<Step<Client>, Error> {
        let target = self.config.target;
        let is_target = |addr: &EntityAddr| addr.addr == target.addr && addr.nonce == target.nonce;
        if !ident.addrs.0.iter().any(is_target) {
            let is = &ident.addrs;
            return Err(Error::misbehaved(format!("it is {is}, not {target} as it should be")));
        }
        let missing = ident.required & !features::SUPPORTED;
        if missing != 0 {
            return Err(Error::incompatible(format!(
                "it requires features that this client does not have: {}",
                features::names(missing)
            )));
        }
        let missing = features::REQUIRED & !ident.supported;
        if missing != 0 {
            let names = features::names(missing);
            return Err(Error::incompatible(format!("it does not have features needed: {names}")));
        }
        Ok(Step::Done(Box::new(Session {
            peer: EntityName { kind: self.config.peer, num: ident.num },
            peer_addrs: ident.addrs.clone(),
            local: self.config.local,
            global_id: authenticated.global_id,
            features: ident.supported & features::SUPPORTED,
            mode: authenticated.mode,
            lossy: ident.flags & LOSSY != 0,
        })))
    }
}

//! The server's side, for devcluster and the simulator.

use super::{Expected, Role, Session, Step, Wire, payload, unexpected};
use crate::denc::decode;
use crate::msgr::Error;
use crate::msgr::auth::{AuthRequest, ConnectionMode, ServerAuth, ServerStep};
use crate::msgr::control::{
    AuthBadMethod, AuthDone, Blob, ClientIdent, Hello, LOSSY, Reset, ServerIdent, Word,
};
use crate::msgr::features;
use crate::msgr::frame::{Frame, Tag};
use crate::types::{EntityAddr, EntityAddrs, EntityName, EntityType};

/// What a server needs to know when it accepts a connection.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Who this is.
    pub name: EntityName,
    /// Where this is. A client that looks for another address is refused.
    pub addrs: EntityAddrs,
    /// Where the client is seen.
    pub peer_addr: EntityAddr,
    /// Greater for every connection of the server.
    pub global_seq: u64,
    /// Features that clients must have, besides [`features::REQUIRED`].
    pub required: u64,
}

/// The states of a server, each named after what it expects.
pub(in crate::msgr) enum Server {
    Banner(Setup),
    Hello(Setup),
    Auth(Setup, Client, Asked),
    Signature(Setup, Client, Authenticated, Expected),
    Ident(Setup, Client, Authenticated),
}

/// What is there from the beginning.
pub(in crate::msgr) struct Setup {
    config: ServerConfig,
    auth: Box<dyn ServerAuth>,
}

/// What the client has said that it is.
pub(in crate::msgr) struct Client {
    kind: EntityType,
}

/// What the client has asked for: nothing yet, or a method of authentication that goes on.
pub(in crate::msgr) enum Asked {
    Nothing,
    Method(u32),
}

/// What authentication has given.
pub(in crate::msgr) struct Authenticated {
    global_id: u64,
    mode: ConnectionMode,
}

impl Server {
    pub(in crate::msgr) fn new(config: ServerConfig, auth: Box<dyn ServerAuth>) -> Self {
        Self::Banner(Setup { config, auth })
    }

    pub(super) fn banner(self, wire: &mut Wire<'_>) -> Result<Self, Error> {
        let Self::Banner(setup) = self else { return Ok(self) };
        let hello = Hello { kind: setup.config.name.kind, peer_addr: setup.config.peer_addr };
        wire.send(Tag::Hello, &hello)?;
        Ok(Self::Hello(setup))
    }

    pub(super) fn frame(self, frame: &Frame, wire: &mut Wire<'_>) -> Result<Step<Self>, Error> {
        match self {
            Self::Banner(_) => unexpected(frame, "a banner"),
            Self::Hello(setup) => {
                if frame.tag != Tag::Hello {
                    return unexpected(frame, "a hello");
                }
                let client = Client { kind: decode::<Hello>(frame.first(), "hello")?.kind };
                Ok(Step::Next(Self::Auth(setup, client, Asked::Nothing)))
            }
            Self::Auth(setup, client, asked) => setup.auth(client, &asked, frame, wire),
            Self::Signature(setup, client, authenticated, expected) => {
                if frame.tag != Tag::AuthSignature {
                    return unexpected(frame, "a signature");
                }
                expected.check(frame)?;
                Ok(Step::Next(Self::Ident(setup, client, authenticated)))
            }
            Self::Ident(setup, client, authenticated) => match frame.tag {
                Tag::ClientIdent => setup.ident(client, authenticated, frame, wire),
                Tag::SessionReconnect => {
                    // There is no session to go on with: the client shall forget all of it and start over.
                    wire.send(Tag::SessionReset, &Reset(true))?;
                    Ok(Step::Next(Self::Ident(setup, client, authenticated)))
                }
                _ => unexpected(frame, "an ident"),
            },
        }
    }
}

impl Setup {
    fn auth(
        mut self,
        client: Client,
        asked: &Asked,
        frame: &Frame,
        wire: &mut Wire<'_>,
    ) -> Result<Step<Server>, Error> {
        let (method, step) = match (frame.tag, asked) {
            (Tag::AuthRequest, Asked::Nothing) => {
                let request: AuthRequest = decode(frame.first(), "auth request")?;
                (request.method, self.auth.request(&request)?)
            }
            (Tag::AuthRequestMore, Asked::Method(method)) => {
                (*method, self.auth.request_more(payload(frame).blob()?)?)
            }
            _ => return unexpected(frame, "authentication"),
        };
        match step {
            ServerStep::More(payload) => {
                wire.send(Tag::AuthReplyMore, &Blob(&payload))?;
                Ok(Step::Next(Server::Auth(self, client, Asked::Method(method))))
            }
            ServerStep::BadMethod { result, methods, modes } => {
                let modes = modes.into_iter().map(ConnectionMode::code).collect();
                wire.send(Tag::AuthBadMethod, &AuthBadMethod { method, result, methods, modes })?;
                Ok(Step::Next(Server::Auth(self, client, Asked::Nothing)))
            }
            ServerStep::Done { global_id, mode, payload, established } => {
                let done = AuthDone { global_id, mode: mode.code(), payload: &payload };
                wire.send(Tag::AuthDone, &done)?;
                let expected = wire.sign(&established, mode, Role::Server)?;
                let authenticated = Authenticated { global_id, mode };
                Ok(Step::Next(Server::Signature(self, client, authenticated, expected)))
            }
        }
    }

    fn ident(
        self,
        client: Client,
        authenticated: Authenticated,
        frame: &Frame,
        wire: &mut Wire<'_>,
    ) -> Result<Step<Server>, Error> {
        let ident: ClientIdent = decode(frame.first(), "client ident")?;
        let config = &self.config;
        let is_this =
            |addr: &EntityAddr| addr.addr == ident.target.addr && addr.nonce == ident.target.nonce;
        if !config.addrs.0.iter().any(is_this) {
            let (wanted, is) = (ident.target, &config.addrs);
            return Err(Error::misbehaved(format!("it looks for {wanted}, this is {is}")));
        }
        if ident.addrs.0.iter().all(|addr| addr.addr.is_none()) {
            return Err(Error::misbehaved("it has no address"));
        }
        let required = features::REQUIRED | config.required;
        let missing = required & !ident.supported;
        if missing != 0 {
            wire.send(Tag::IdentMissingFeatures, &Word(missing))?;
            return Ok(Step::Next(Server::Ident(self, client, authenticated)));
        }
        let answer = ServerIdent {
            addrs: config.addrs.clone(),
            num: config.name.num,
            global_seq: config.global_seq,
            supported: features::SUPPORTED,
            required,
            flags: LOSSY,
            cookie: 0,
        };
        wire.send(Tag::ServerIdent, &answer)?;
        Ok(Step::Done(Box::new(Session {
            peer: EntityName { kind: client.kind, num: ident.num },
            peer_addrs: ident.addrs,
            local: config.addrs.msgr2().unwrap_or(ident.target),
            global_id: authenticated.global_id,
            features: ident.supported & features::SUPPORTED,
            mode: authenticated.mode,
            lossy: true,
        })))
    }
}

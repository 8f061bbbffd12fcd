//! What goes into the monitor client, and what comes out.

use std::fmt::Write;
use std::time::Duration;

use thiserror::Error;

#[cfg(doc)]
use super::Mon;
use super::Request;
use crate::cephx::Login;
use crate::monmap::MonMap;
use crate::msg::mon::{CommandAck, Config as Options, GetVersionReply, PoolOpReply, StatfsReply};
use crate::msgr::auth::{AuthError, ClientAuth, ConnectionMode};
use crate::types::EntityAddr;

/// What the monitor client needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the monitors are said to be (`mon_host`, DNS). The monitor map, once there, knows better.
    pub candidates: Vec<Candidate>,
    /// Who we are.
    pub login: Login,
    /// The modes of connections to services (`ms_client_mode`), preferred first.
    pub service_modes: Vec<ConnectionMode>,
    /// Our host's name, for the monitors' logs.
    pub hostname: String,
    /// Whether the monitors are asked for the options that they have for this client (`ceph config`).
    pub wants_options: bool,
    /// How long the first login may take in all. Once it has worked, hunting never ends.
    pub connect_timeout: Duration,
}

/// A monitor that can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its address for messenger v2.
    pub addr: EntityAddr,
    /// Those of the lowest value are tried first (RFC 2782, and the monitor map).
    pub priority: u16,
    /// How likely it goes before others of its priority, in proportion. Where all have none, each is as likely.
    pub weight: u16,
}

impl Candidate {
    /// One that is neither preferred nor avoided.
    pub fn new(addr: EntityAddr) -> Self {
        Self { addr, priority: 0, weight: 0 }
    }
}

/// One connection to a monitor, past or present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What is to be done.
pub enum Action {
    /// Connect and authenticate, then say [`Mon::handle_connected`] or [`Mon::handle_lost`].
    Dial {
        /// The name of the connection from now on.
        conn: ConnId,
        /// Where to.
        addr: EntityAddr,
        /// How to authenticate.
        auth: Box<dyn ClientAuth>,
    },
    /// Close; nothing more is to be said about it.
    Close(ConnId),
    /// Send a message.
    Send(ConnId, Request),
    /// Tell the user of this client.
    Event(Event),
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// There is a session with a monitor: the first one, or a new one.
    Connected {
        /// The monitor.
        addr: EntityAddr,
        /// Who we are to the cluster.
        global_id: u64,
    },
    /// The session is gone; the hunt for another one has begun.
    Lost {
        /// The monitor.
        addr: EntityAddr,
        /// Why.
        reason: String,
    },
    /// A new monitor map.
    MonMap(MonMap),
    /// The options that the monitors have for this client: all of them, whatever was told before.
    Options(Options),
    /// A command is done.
    Command(CommandAck),
    /// The newest version of a map.
    Version(GetVersionReply),
    /// An operation on a pool is done.
    PoolOp(PoolOpReply),
    /// The size of the cluster or of a pool.
    Statfs(StatfsReply),
    /// Fresh tickets have come.
    TicketsRenewed,
    /// The monitors refuse us although they have known us before: somebody should hear of it. The client goes on
    /// trying, and what it has goes on working while tickets last.
    Refused(AuthError),
    /// Our key was refused although the monitors have known us before: if there is another one by now, it is for
    /// [`Mon::set_key`]. Told anew whenever it is refused again.
    KeyRefused,
    /// The first login has failed. This is the end.
    Failed(ConnectError),
}

/// Why there was no first login.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no address to try.
    #[error(
        "no monitor address of messenger v2 is known (v2:ADDRESS:3300); v1 addresses cannot be used"
    )]
    NoAddress,
    /// Every monitor that answers refuses us.
    #[error("{0}")]
    Refused(#[source] AuthError),
    /// No monitor answers, or none as it should.
    #[error("no monitor answers after {} s: {}", after.as_secs(), list(tried))]
    Unreachable {
        /// How long it was tried.
        after: Duration,
        /// All addresses tried, and what was wrong with each.
        tried: Vec<(EntityAddr, String)>,
    },
}

fn list(tried: &[(EntityAddr, String)]) -> String {
    let mut text = String::new();
    for (i, (addr, reason)) in tried.iter().enumerate() {
        let comma = if i == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{addr} ({reason})");
    }
    text
}

/// Why a connection is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The network, or a peer that does not speak the protocol.
    Connection(String),
    /// Authentication.
    Auth(AuthError),
}

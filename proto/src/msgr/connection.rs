//! One connection of messenger v2, without its socket.
//!
//! Inputs: [`Connection::handle_data`], [`Connection::handle_timeout`], and [`Connection::send`]. Outputs, in this
//! order after each input: [`Connection::poll_event`], [`Connection::transmit_slices`], [`Connection::poll_timeout`].
//! When an input returns an error the connection is over: what events are left still hold, what is left to transmit
//! should be tried once, and the socket be closed. Nothing is resent here: whoever sent messages decides what becomes
//! of them.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::Error;
use super::auth::{ClientAuth, ServerAuth};
use super::control::{Banner, Keepalive, MessageHeader, Word};
use super::error::SendError;
use super::frame::{Decoder, Frame, Tag};
use super::handshake::{
    Client, ClientConfig, Handshake, Server, ServerConfig, Session, Step, Wire, take_banner,
};
use super::message::{Message, Outgoing};
use super::transmit::Transmit;
use crate::denc::decode;
use crate::limits;
use crate::types::{Instant, UTime};

/// How long a connection waits for its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the beginning until the session is there.
    pub handshake: Duration,
    /// When nothing has come for this long, the peer is asked whether it is there (`KEEPALIVE2`).
    pub keepalive: Duration,
    /// When nothing has come for this long, the connection is lost.
    pub dead: Duration,
}

impl Default for Timing {
    /// A keepalive after 10 s, as Ceph's monitor client sends them (`mon_client_ping_interval`), and the end after 30 s
    /// (`mon_client_ping_timeout`).
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            keepalive: Duration::from_secs(10),
            dead: Duration::from_secs(30),
        }
    }
}

/// What a connection has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done. Comes once, before all messages.
    Ready(Box<Session>),
    /// The peer has sent a message.
    Message(Message),
}

/// One connection; see the [module](self).
pub struct Connection {
    rx: Decoder,
    tx: Transmit,
    state: State,
    role: Role,
    timing: Timing,
    events: VecDeque<Event>,
    /// Messages sent before the session is there.
    early: VecDeque<Message>,
    early_bytes: usize,
    /// The last message sent.
    out_seq: u64,
    /// The last message received.
    in_seq: u64,
    /// When the peer was last heard of; during the handshake, when that began.
    heard: Instant,
    /// Whether it was asked to say something since.
    asked: bool,
    /// How much of a frame was there when it was last heard of.
    unfinished: usize,
}

enum State {
    ExpectBanner(Handshake),
    Handshake(Handshake),
    Ready { lossy: bool },
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

impl Connection {
    /// A connection that this side has dialled.
    pub fn client(
        now: Instant,
        timing: Timing,
        config: ClientConfig,
        auth: Box<dyn ClientAuth>,
    ) -> Self {
        let handshake = Handshake::Client(Client::new(config, auth));
        Self::new(now, timing, Role::Client, handshake)
    }

    /// A connection that this side has accepted.
    pub fn server(
        now: Instant,
        timing: Timing,
        config: ServerConfig,
        auth: Box<dyn ServerAuth>,
    ) -> Self {
        let handshake = Handshake::Server(Server::new(config, auth));
        Self::new(now, timing, Role::Server, handshake)
    }

    fn new(now: Instant, timing: Timing, role: Role, handshake: Handshake) -> Self {
        let mut tx = Transmit::new();
        tx.raw(&Banner::ours());
        Self {
            rx: Decoder::new(),
            tx,
            state: State::ExpectBanner(handshake),
            role,
            timing,
            events: VecDeque::new(),
            early: VecDeque::new(),
            early_bytes: 0,
            out_seq: 0,
            in_seq: 0,
            heard: now,
            asked: false,
            unfinished: 0,
        }
    }

    /// Takes all whole frames from the front of `input` and leaves what is not whole yet. It must be the same buffer
    /// each time, with new bytes only ever appended: what is left may be decrypted already. Messages are slices of it.
    pub fn handle_data(&mut self, now: Instant, input: &mut BytesMut) -> Result<(), Error> {
        let result = self.take_frames(now, input);
        if result.is_err() {
            self.state = State::Ended;
        }
        result
    }

    fn take_frames(&mut self, now: Instant, input: &mut BytesMut) -> Result<(), Error> {
        let before = self.in_seq;
        loop {
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Ready { lossy } => {
                    self.state = State::Ready { lossy };
                    // Drops of a frame that does not come to its end count for nothing.
                    let mut heard = input.len() >= self.unfinished + limits::FRAME_PROGRESS_BYTES;
                    while let Some(frame) = self.rx.next(input)? {
                        heard = true;
                        self.frame(&frame)?;
                    }
                    if heard {
                        (self.heard, self.asked, self.unfinished) = (now, false, input.len());
                    }
                    if !lossy && self.in_seq != before {
                        self.tx.control(Tag::Ack, &Word(self.in_seq))?;
                    }
                    return Ok(());
                }
                State::ExpectBanner(handshake) => {
                    if take_banner(input, &mut self.rx)?.is_none() {
                        self.state = State::ExpectBanner(handshake);
                        return Ok(());
                    }
                    self.state = State::Handshake(handshake.banner(&mut self.wire())?);
                }
                State::Handshake(handshake) => {
                    let Some(frame) = self.rx.next(input)? else {
                        self.state = State::Handshake(handshake);
                        return Ok(());
                    };
                    match handshake.frame(&frame, &mut self.wire())? {
                        Step::Next(handshake) => self.state = State::Handshake(handshake),
                        Step::Done(session) => {
                            (self.heard, self.asked) = (now, false);
                            self.ready(session);
                        }
                    }
                }
                State::Ended => return Err(Error::Lost("it has ended already")),
            }
        }
    }

    fn wire(&mut self) -> Wire<'_> {
        Wire { rx: &mut self.rx, tx: &mut self.tx }
    }

    fn ready(&mut self, session: Box<Session>) {
        self.state = State::Ready { lossy: session.lossy };
        self.rx.trust();
        self.events.push_back(Event::Ready(session));
        self.early_bytes = 0;
        for message in std::mem::take(&mut self.early) {
            self.put_message(&message);
        }
    }

    /// A frame of the session.
    #[inline]
    fn frame(&mut self, frame: &Frame) -> Result<(), Error> {
        match frame.tag {
            Tag::Message => self.message(frame),
            Tag::Keepalive2 => {
                // A peer that asks but does not read gets no more answers than fit.
                if self.tx.len() < limits::SEND_QUEUE_BYTES {
                    let asked: Keepalive = decode(frame.first(), "keepalive")?;
                    self.tx.control(Tag::Keepalive2Ack, &asked)?;
                }
                Ok(())
            }
            // That something has come is all there is to know: sent messages are not kept.
            Tag::Keepalive2Ack | Tag::Ack => Ok(()),
            tag => Err(Error::misbehaved(format!("{tag:?} in a session"))),
        }
    }

    #[inline]
    fn message(&mut self, frame: &Frame) -> Result<(), Error> {
        let MessageHeader { seq, header, .. } = decode(frame.first(), "message header")?;
        // Ceph's servers number messages one by one; the kernel's client takes some back, which leaves gaps.
        if seq != self.in_seq + 1 && (seq <= self.in_seq || self.role == Role::Client) {
            let last = self.in_seq;
            return Err(Error::misbehaved(format!("message {seq} after message {last}")));
        }
        self.in_seq = seq;
        let [front, middle, data] = frame.rest();
        self.events.push_back(Event::Message(Message { header, front, middle, data }));
        Ok(())
    }

    /// How many bytes more [`Connection::handle_data`] needs before it can do anything, as far as is known and up to
    /// [`limits::RECEIVE_AHEAD_BYTES`]: what to reserve in the receive buffer, which holds `input` bytes.
    pub fn wanted(&self, input: usize) -> usize {
        let frame = match self.state {
            State::ExpectBanner(_) => Banner::ours().len(),
            _ => self.rx.frame_len(),
        };
        frame.saturating_sub(input).clamp(1, limits::RECEIVE_AHEAD_BYTES)
    }

    /// What has happened, oldest first.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Sends a message, or keeps it until the session is there.
    #[inline]
    pub fn send(&mut self, message: &(impl Outgoing + ?Sized)) -> Result<(), SendError> {
        if self.tx.len() + self.early_bytes >= limits::SEND_QUEUE_BYTES {
            return Err(SendError::Full);
        }
        match self.state {
            State::Ready { .. } => self.put_message(message),
            State::ExpectBanner(_) | State::Handshake(_) => self.keep(message),
            State::Ended => return Err(SendError::Closed),
        }
        Ok(())
    }

    #[inline]
    fn put_message(&mut self, message: &(impl Outgoing + ?Sized)) {
        self.out_seq += 1;
        let header = message.header();
        self.tx
            .message(&MessageHeader { seq: self.out_seq, ack_seq: self.in_seq, header }, message);
    }

    /// Whether it will be encrypted is not known yet, so only the parts are encoded.
    fn keep(&mut self, message: &(impl Outgoing + ?Sized)) {
        let mut front = BytesMut::new();
        message.encode_front(&mut front);
        let mut pieces: Vec<Bytes> = Vec::new();
        message.data(&mut |piece| pieces.push(piece.clone()));
        let data = match pieces.as_slice() {
            [piece] => piece.clone(),
            pieces => pieces.concat().into(),
        };
        // The header counts as well, or empty messages would be kept without end.
        self.early_bytes += size_of::<Message>() + front.len() + data.len();
        let (header, front) = (message.header(), front.freeze());
        self.early.push_back(Message { header, front, middle: Bytes::new(), data });
    }

    /// Whether there is anything to transmit.
    #[inline]
    pub fn has_transmit(&self) -> bool {
        self.tx.len() > 0
    }

    /// How many bytes there are to transmit.
    pub fn queued(&self) -> usize {
        self.tx.len() + self.early_bytes
    }

    /// Fills `slices` from the front with what is to be transmitted next, for one vectored write. Returns how many it
    /// filled.
    pub fn transmit_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.tx.slices(slices)
    }

    /// The first `len` bytes have been transmitted.
    pub fn transmitted(&mut self, len: usize) {
        self.tx.transmitted(len);
    }

    /// When [`Connection::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let after = match self.state {
            State::ExpectBanner(_) | State::Handshake(_) => self.timing.handshake,
            State::Ready { .. } if self.asked => self.timing.dead,
            State::Ready { .. } => self.timing.keepalive,
            State::Ended => return None,
        };
        Some(self.heard + after)
    }

    /// Looks whether the peer has been silent for too long. May be called at any time.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        let silent = now.since(self.heard);
        let error = match self.state {
            State::Ready { .. } if silent >= self.timing.dead => "the peer is silent",
            State::Ready { .. } if silent >= self.timing.keepalive && !self.asked => {
                self.asked = true;
                return self.tx.control(Tag::Keepalive2, &Keepalive(UTime::from(now.0)));
            }
            State::ExpectBanner(_) | State::Handshake(_) if silent >= self.timing.handshake => {
                "the peer did not finish the handshake in time"
            }
            _ => return Ok(()),
        };
        self.state = State::Ended;
        Err(Error::Lost(error))
    }
}

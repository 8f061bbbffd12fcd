//! What a connection has to send: frames are encoded here, in place, and leave in vectored writes.
//!
//! Everything is appended to one buffer, `tail`. Only large payloads of crc mode are queued as they are, uncopied; the
//! frames around them are split off `tail` into the queue. In secure mode the cipher wants front and data contiguous,
//! so payloads are copied once and encrypted where they then are.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Error;
use super::auth::ConnectionMode;
use super::control::{MESSAGE_HEADER_LEN, MessageHeader};
use super::frame::{
    CRC_LEN, INLINE_LEN, LATE_STATUS_COMPLETE, PREAMBLE_LEN, Preamble, SECURE_EPILOGUE_LEN, Tag,
    head_len, padded, remember,
};
use super::message::Outgoing;
use super::secure::{Gcm, TAG_LEN};
use crate::crc::crc32c;
use crate::denc::Encode;

/// From which size on a payload is not copied: below, copying costs less than one more element of a vectored write.
const UNCOPIED: usize = 8 << 10;
/// How large a buffer may stay when there is nothing to send.
const IDLE_CAPACITY: usize = 1 << 20;

/// Frames to send.
pub(super) struct Transmit {
    queue: VecDeque<Bytes>,
    tail: BytesMut,
    /// The longest that `tail` has been since it was last empty.
    longest: usize,
    /// All bytes in `queue`.
    queued: usize,
    gcm: Option<Gcm>,
    /// All bytes sent so far, until they are signed.
    pub(super) transcript: Option<Vec<u8>>,
}

impl Transmit {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            tail: BytesMut::new(),
            longest: 0,
            queued: 0,
            gcm: None,
            transcript: Some(Vec::new()),
        }
    }

    /// What is sent from here on is encrypted.
    pub(super) fn secure(&mut self, gcm: Gcm) {
        self.gcm = Some(gcm);
    }

    /// Bytes to send.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.queued + self.tail.len()
    }

    /// Fills `slices` with what is to be sent next. Returns how many it filled.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(self.tail.as_ref());
        let parts = self.queue.iter().map(Bytes::as_ref).chain(tail);
        slices.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    /// The first `len` bytes have been sent.
    pub(super) fn transmitted(&mut self, mut len: usize) {
        while let Some(first) = self.queue.front_mut() {
            let part = len.min(first.len());
            first.advance(part);
            self.queued -= part;
            len -= part;
            if !first.is_empty() {
                return;
            }
            self.queue.pop_front();
        }
        self.longest = self.longest.max(self.tail.len());
        self.tail.advance(len.min(self.tail.len()));
        if self.tail.is_empty() {
            if self.longest > IDLE_CAPACITY {
                self.tail = BytesMut::new();
            }
            self.longest = 0;
        }
    }

    /// Queues bytes that are no frame: the banner.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.tail.put_slice(bytes);
        if let Some(transcript) = &mut self.transcript {
            transcript.extend_from_slice(bytes);
        }
    }

    /// Queues a control frame.
    pub(super) fn control(&mut self, tag: Tag, payload: &dyn Encode) -> Result<(), Error> {
        let at = self.tail.len();
        self.tail.put_bytes(0, PREAMBLE_LEN);
        payload.encode(&mut self.tail);
        let first = self.tail.len() - at - PREAMBLE_LEN;
        let preamble = Preamble { tag, first, rest: [0; 3] };
        self.put_preamble(at, &preamble);
        match &mut self.gcm {
            None if first == 0 => {}
            None => put_crc(&mut self.tail, at + PREAMBLE_LEN),
            Some(gcm) => {
                let inline_end = at + PREAMBLE_LEN + INLINE_LEN;
                let end = at + head_len(ConnectionMode::Secure, first);
                // The first tag goes between what is inline and the rest.
                let rest = inline_end.min(self.tail.len())..self.tail.len();
                self.tail.resize(end, 0);
                if first > INLINE_LEN {
                    let (from, len) = (rest.start, rest.len());
                    self.tail.copy_within(rest, from + TAG_LEN);
                    let padding = from + TAG_LEN + len;
                    self.tail.get_mut(padding..end).unwrap_or_default().fill(0);
                }
                let (head, rest) = (self.tail.get_mut(at..).unwrap_or_default())
                    .split_at_mut(PREAMBLE_LEN + INLINE_LEN + TAG_LEN);
                gcm.seal(head);
                if !rest.is_empty() {
                    gcm.seal(rest);
                }
            }
        }
        self.remember(at)
    }

    /// Queues a message.
    #[inline]
    pub(super) fn message(&mut self, header: &MessageHeader, message: &(impl Outgoing + ?Sized)) {
        match self.gcm.is_some() {
            false => self.crc_message(header, message),
            true => self.secure_message(header, message),
        }
    }

    fn crc_message(&mut self, header: &MessageHeader, message: &(impl Outgoing + ?Sized)) {
        let at = self.tail.len();
        self.tail.put_bytes(0, PREAMBLE_LEN);
        self.tail.put_slice(&header.encode());
        put_crc(&mut self.tail, at + PREAMBLE_LEN);
        let front_at = self.tail.len();
        message.encode_front(&mut self.tail);
        let front = self.tail.len() - front_at;
        let front_crc = crc32c(!0, self.tail.get(front_at..).unwrap_or_default());
        let (mut data, mut data_crc) = (0, !0);
        message.data(&mut |piece| {
            data += piece.len();
            data_crc = crc32c(data_crc, piece);
        });
        let preamble =
            Preamble { tag: Tag::Message, first: MESSAGE_HEADER_LEN, rest: [front, 0, data] };
        self.put_preamble(at, &preamble);
        if front == 0 && data == 0 {
            return;
        }
        if data > 0 {
            message.data(&mut |piece| self.put_piece(piece));
        }
        self.tail.put_u8(LATE_STATUS_COMPLETE);
        self.tail.put_u32_le(front_crc);
        // Checksums of segments that are not counted are zero, those of empty ones that are counted the seed.
        self.tail.put_u32_le(if data > 0 { !0 } else { 0 });
        self.tail.put_u32_le(if data > 0 { data_crc } else { 0 });
    }

    fn put_piece(&mut self, piece: &Bytes) {
        if piece.len() < UNCOPIED {
            return self.tail.put_slice(piece);
        }
        let before = self.tail.split();
        self.queued += before.len() + piece.len();
        self.queue.push_back(before.freeze());
        self.queue.push_back(piece.clone());
    }

    fn secure_message(&mut self, header: &MessageHeader, message: &(impl Outgoing + ?Sized)) {
        let at = self.tail.len();
        self.tail.put_bytes(0, PREAMBLE_LEN);
        self.tail.put_slice(&header.encode());
        let front_at = at + head_len(ConnectionMode::Secure, MESSAGE_HEADER_LEN);
        self.tail.resize(front_at, 0);
        message.encode_front(&mut self.tail);
        let front = self.tail.len() - front_at;
        self.tail.resize(front_at + padded(front), 0);
        let data_at = self.tail.len();
        message.data(&mut |piece| self.tail.put_slice(piece));
        let data = self.tail.len() - data_at;
        let preamble =
            Preamble { tag: Tag::Message, first: MESSAGE_HEADER_LEN, rest: [front, 0, data] };
        self.put_preamble(at, &preamble);
        if front > 0 || data > 0 {
            self.tail.resize(data_at + padded(data), 0);
            self.tail.put_u8(LATE_STATUS_COMPLETE);
            self.tail.put_bytes(0, SECURE_EPILOGUE_LEN - 1 + TAG_LEN);
        }
        let Some(gcm) = &mut self.gcm else { return };
        let (head, tail) = self.tail.get_mut(at..).unwrap_or_default().split_at_mut(front_at - at);
        gcm.seal(head);
        if !tail.is_empty() {
            gcm.seal(tail);
        }
    }

    fn put_preamble(&mut self, at: usize, preamble: &Preamble) {
        let block = self.tail.get_mut(at..).unwrap_or_default();
        if let Some(place) = block.first_chunk_mut::<PREAMBLE_LEN>() {
            *place = preamble.encode();
        }
    }

    fn remember(&mut self, at: usize) -> Result<(), Error> {
        match &mut self.transcript {
            Some(transcript) => remember(transcript, self.tail.get(at..).unwrap_or_default()),
            None => Ok(()),
        }
    }
}

fn put_crc(w: &mut BytesMut, at: usize) {
    let crc = crc32c(!0, w.get(at..).unwrap_or_default());
    debug_assert_eq!(crc.to_le_bytes().len(), CRC_LEN);
    w.put_u32_le(crc);
}

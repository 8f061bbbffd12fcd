//! Frames of messenger v2.1 (`doc/dev/msgr2.rst`, "Frame format").
//!
//! ```text
//! crc      head: preamble 32 | segment 0 | crc 4 (none if it is empty)
//!          tail: segments 1..4 | late status 1, crcs 3 * 4              (no tail if there is one segment)
//! secure   head: [preamble 32 | segment 0, first 48, padded] tag 16 | [rest of it, padded to 16] tag 16
//!          tail: [segments 1..4, each padded to 16 | late status 1, zeros 15] tag 16
//! ```
//!
//! Brackets are what one AES-GCM tag covers. Control frames have one segment. A message has its header, front, middle
//! and data; trailing empty ones are not counted. [`head_len`] and [`tail_len`] alone know how long things are on the
//! wire; the encoder (`transmit`) and the [`Decoder`] both use them.

use bytes::{BufMut, Bytes, BytesMut};

use super::Error;
use super::auth::ConnectionMode;
use super::secure::{Gcm, TAG_LEN};
use crate::crc::{crc32c, crc32c_from_zero};
use crate::denc::Reader;
use crate::limits;

/// A preamble on the wire.
pub(super) const PREAMBLE_LEN: usize = 32;
/// A preamble without its checksum.
const PREAMBLE_FIELDS_LEN: usize = PREAMBLE_LEN - CRC_LEN;
/// How much of segment 0 is encrypted together with the preamble.
pub(super) const INLINE_LEN: usize = 48;
/// A checksum on the wire.
pub(super) const CRC_LEN: usize = 4;
/// The epilogue before its tag, in secure mode.
pub(super) const SECURE_EPILOGUE_LEN: usize = 16;
/// The epilogue in crc mode: the late status and a checksum for each segment but the first.
pub(super) const CRC_EPILOGUE_LEN: usize = 1 + 3 * CRC_LEN;

/// The late status of a frame that is whole. Its low four bits differ in all positions from those of
/// [`LATE_STATUS_ABORTED`], so that no single flipped bit turns one into the other.
pub(super) const LATE_STATUS_COMPLETE: u8 = 0xe;
/// The late status of a frame that its sender gave up on; it is dropped.
pub(super) const LATE_STATUS_ABORTED: u8 = 0x1;
const LATE_STATUS_MASK: u8 = 0xf;

/// What control segments, headers, fronts and middles are aligned to, for a receiver that allocates them one by one.
const ALIGN: u16 = 8;
/// What data is aligned to.
const DATA_ALIGN: u16 = 4096;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Tag {
    Hello = 1,
    AuthRequest = 2,
    AuthBadMethod = 3,
    AuthReplyMore = 4,
    AuthRequestMore = 5,
    AuthDone = 6,
    AuthSignature = 7,
    ClientIdent = 8,
    ServerIdent = 9,
    IdentMissingFeatures = 10,
    SessionReconnect = 11,
    SessionReset = 12,
    SessionRetry = 13,
    SessionRetryGlobal = 14,
    SessionReconnectOk = 15,
    Wait = 16,
    Message = 17,
    Keepalive2 = 18,
    Keepalive2Ack = 19,
    Ack = 20,
}

impl Tag {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Hello,
            2 => Self::AuthRequest,
            3 => Self::AuthBadMethod,
            4 => Self::AuthReplyMore,
            5 => Self::AuthRequestMore,
            6 => Self::AuthDone,
            7 => Self::AuthSignature,
            8 => Self::ClientIdent,
            9 => Self::ServerIdent,
            10 => Self::IdentMissingFeatures,
            11 => Self::SessionReconnect,
            12 => Self::SessionReset,
            13 => Self::SessionRetry,
            14 => Self::SessionRetryGlobal,
            15 => Self::SessionReconnectOk,
            16 => Self::Wait,
            17 => Self::Message,
            18 => Self::Keepalive2,
            19 => Self::Keepalive2Ack,
            20 => Self::Ack,
            _ => return None,
        })
    }
}

/// A length rounded up to the cipher's block.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(16)
}

/// How many bytes a segment of the tail takes.
pub(super) fn segment_len(mode: ConnectionMode, len: usize) -> usize {
    match mode {
        ConnectionMode::Crc => len,
        ConnectionMode::Secure => padded(len),
    }
}

/// How many bytes the preamble and segment 0, of `first` bytes, take.
pub(super) fn head_len(mode: ConnectionMode, first: usize) -> usize {
    match mode {
        ConnectionMode::Crc if first == 0 => PREAMBLE_LEN,
        ConnectionMode::Crc => PREAMBLE_LEN + first + CRC_LEN,
        ConnectionMode::Secure if first <= INLINE_LEN => PREAMBLE_LEN + INLINE_LEN + TAG_LEN,
        ConnectionMode::Secure => {
            PREAMBLE_LEN + INLINE_LEN + TAG_LEN + padded(first - INLINE_LEN) + TAG_LEN
        }
    }
}

/// How many bytes the segments after the first and the epilogue take.
pub(super) fn tail_len(mode: ConnectionMode, rest: [usize; 3]) -> usize {
    if rest == [0; 3] {
        return 0;
    }
    let segments: usize = rest.into_iter().map(|len| segment_len(mode, len)).sum();
    match mode {
        ConnectionMode::Crc => segments + CRC_EPILOGUE_LEN,
        ConnectionMode::Secure => segments + SECURE_EPILOGUE_LEN + TAG_LEN,
    }
}

/// What a frame starts with: its tag and the lengths of its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preamble {
    pub(super) tag: Tag,
    pub(super) first: usize,
    pub(super) rest: [usize; 3],
}

impl Preamble {
    pub(super) fn head_len(&self, mode: ConnectionMode) -> usize {
        head_len(mode, self.first)
    }

    pub(super) fn wire_len(&self, mode: ConnectionMode) -> usize {
        self.head_len(mode) + tail_len(mode, self.rest)
    }

    /// How many segments there are: all up to the last that is not empty, but at least one.
    fn segments(&self) -> u8 {
        match self.rest {
            [0, 0, 0] => 1,
            [_, 0, 0] => 2,
            [_, _, 0] => 3,
            [_, _, _] => 4,
        }
    }

    pub(super) fn encode(&self) -> [u8; PREAMBLE_LEN] {
        let mut bytes = [0; PREAMBLE_LEN];
        let mut w = bytes.as_mut_slice();
        let segments = self.segments();
        w.put_u8(self.tag as u8);
        w.put_u8(segments);
        let lens = [self.first].into_iter().chain(self.rest);
        for (i, len) in lens.enumerate().take(segments.into()) {
            w.put_u32_le(len as u32);
            w.put_u16_le(if i == 3 { DATA_ALIGN } else { ALIGN });
        }
        if let Some((fields, crc)) = bytes.split_first_chunk_mut::<PREAMBLE_FIELDS_LEN>() {
            crc.copy_from_slice(&crc32c_from_zero(*fields).to_le_bytes());
        }
        bytes
    }

    /// Checks everything that a preamble says before any of it is used. No segment may be longer than `limit`.
    fn decode(bytes: &[u8], limit: usize) -> Result<Self, Error> {
        let mut r = Reader::new(bytes, "preamble");
        let fields: [u8; PREAMBLE_FIELDS_LEN] = r.array()?;
        check_crc("the preamble", crc32c_from_zero(fields), r.u32()?)?;
        let mut r = Reader::new(&fields, "preamble");
        let code = r.u8()?;
        let segments = r.u8()?;
        let mut lens = [0; 4];
        for len in &mut lens {
            *len = r.u32()? as usize;
            r.skip(2)?; // alignment: an allocation hint, and everything here is a slice of one buffer
        }
        let flags = r.u8()?;
        let Some(tag) = Tag::from_code(code) else {
            return Err(Error::misbehaved(format!("unknown frame tag {code}")));
        };
        let [first, rest @ ..] = lens;
        let preamble = Self { tag, first, rest };
        // Fields of segments beyond the last are zero, and the last is not empty, or they would not be ours to skip.
        if preamble.segments() != segments || (segments > 1 && tag != Tag::Message) {
            return Err(Error::misbehaved(format!(
                "{tag:?} frame of {segments} segments {lens:?}"
            )));
        }
        if flags != 0 {
            return Err(Error::misbehaved("a compressed frame, which was not agreed on"));
        }
        // A control frame carries handshake payloads at most.
        let control = limit.min(limits::HANDSHAKE_SEGMENT_BYTES);
        if first > control || rest.into_iter().any(|len| len > limit) {
            return Err(Error::misbehaved(format!(
                "{tag:?} frame with a segment too long: {lens:?}"
            )));
        }
        Ok(preamble)
    }
}

/// A frame as received: its bytes, checked and in the clear.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) tag: Tag,
    preamble: Preamble,
    mode: ConnectionMode,
    bytes: Bytes,
}

impl Frame {
    /// Segment 0: a control payload or a message header.
    pub(super) fn first(&self) -> &[u8] {
        self.bytes.get(PREAMBLE_LEN..PREAMBLE_LEN + self.preamble.first).unwrap_or_default()
    }

    /// Front, middle and data of a message, without copying them.
    pub(super) fn rest(&self) -> [Bytes; 3] {
        let mut at = self.preamble.head_len(self.mode);
        self.preamble.rest.map(|len| {
            if len == 0 {
                return Bytes::new();
            }
            let part = self.bytes.slice(at..at + len);
            at += segment_len(self.mode, len);
            part
        })
    }
}

/// Takes frames from the receive buffer.
pub(super) struct Decoder {
    /// The preamble of a frame that is not there as a whole. In secure mode it is already decrypted in the buffer.
    pending: Option<Preamble>,
    /// Decrypts, in secure mode.
    gcm: Option<Gcm>,
    /// The longest segment that is accepted.
    limit: usize,
    /// All bytes received so far, until they are signed.
    pub(super) transcript: Option<Vec<u8>>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            pending: None,
            gcm: None,
            limit: limits::HANDSHAKE_SEGMENT_BYTES,
            transcript: Some(Vec::new()),
        }
    }

    /// What comes next is encrypted.
    pub(super) fn secure(&mut self, gcm: Gcm) {
        self.gcm = Some(gcm);
    }

    /// The peer is who it says: frames may be large from here on.
    pub(super) fn trust(&mut self) {
        self.limit = limits::FRAME_SEGMENT_BYTES;
    }

    fn mode(&self) -> ConnectionMode {
        if self.gcm.is_some() { ConnectionMode::Secure } else { ConnectionMode::Crc }
    }

    /// How many bytes the frame at the front of the buffer has in all, as far as is known.
    pub(super) fn frame_len(&self) -> usize {
        match &self.pending {
            Some(preamble) => preamble.wire_len(self.mode()),
            None => head_len(self.mode(), 0),
        }
    }

    /// Takes the next whole frame from `input`, which must be the same buffer in each call.
    #[inline]
    pub(super) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, Error> {
        let mode = self.mode();
        loop {
            let preamble = match self.pending {
                Some(preamble) => preamble,
                None => match self.preamble(input)? {
                    Some(preamble) => preamble,
                    None => return Ok(None),
                },
            };
            let len = preamble.wire_len(mode);
            if input.len() < len {
                self.pending = Some(preamble);
                return Ok(None);
            }
            self.pending = None;
            let mut bytes = input.split_to(len);
            let status = match &mut self.gcm {
                None => check(&preamble, &bytes)?,
                Some(gcm) => decrypt(&preamble, gcm, &mut bytes)?,
            };
            if let Some(transcript) = &mut self.transcript {
                remember(transcript, &bytes)?;
            }
            match status & LATE_STATUS_MASK {
                LATE_STATUS_COMPLETE => {
                    return Ok(Some(Frame {
                        tag: preamble.tag,
                        preamble,
                        mode,
                        bytes: bytes.freeze(),
                    }));
                }
                LATE_STATUS_ABORTED => {}
                _ => return Err(Error::misbehaved(format!("late status {status:#x}"))),
            }
        }
    }

    fn preamble(&mut self, input: &mut BytesMut) -> Result<Option<Preamble>, Error> {
        let Some(head) = input.get_mut(..head_len(self.mode(), 0)) else { return Ok(None) };
        if let Some(gcm) = &mut self.gcm {
            gcm.open(head)?;
        }
        let preamble = head.get(..PREAMBLE_LEN).unwrap_or_default();
        Preamble::decode(preamble, self.limit).map(Some)
    }
}

/// Appends handshake bytes to a transcript, which a peer that is not authenticated cannot make long.
pub(super) fn remember(transcript: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Error> {
    if transcript.len() + bytes.len() > limits::HANDSHAKE_BYTES {
        return Err(Error::misbehaved("the handshake does not end"));
    }
    transcript.extend_from_slice(bytes);
    Ok(())
}

fn check_crc(what: &str, computed: u32, expected: u32) -> Result<(), Error> {
    if computed == expected {
        return Ok(());
    }
    Err(Error::misbehaved(format!(
        "the checksum of {what} is {computed:#010x}, should be {expected:#010x}"
    )))
}

/// Checks a frame of crc mode. Returns the late status.
fn check(preamble: &Preamble, bytes: &[u8]) -> Result<u8, Error> {
    let mut r = Reader::new(bytes, "frame");
    r.skip(PREAMBLE_LEN)?;
    if preamble.first > 0 {
        let crc = crc32c(!0, r.bytes(preamble.first)?);
        check_crc("segment 0", crc, r.u32()?)?;
    }
    let [front, middle, data] = preamble.rest;
    if preamble.rest == [0; 3] {
        return Ok(LATE_STATUS_COMPLETE);
    }
    let parts = [r.bytes(front)?, r.bytes(middle)?, r.bytes(data)?];
    let status = r.u8()?;
    for (i, part) in (1..preamble.segments()).zip(parts) {
        // An empty segment before the last is checked as well: its checksum is the seed.
        if part.is_empty() {
            check_crc("an empty segment", !0, r.u32()?)?;
        } else {
            let crc = r.u32()?;
            check_crc(
                ["front", "middle", "data"].get(usize::from(i) - 1).unwrap_or(&""),
                crc32c(!0, part),
                crc,
            )?;
        }
    }
    Ok(status)
}

/// Decrypts what follows the preamble's block, in place, and makes segment 0 contiguous. Returns the late status.
fn decrypt(preamble: &Preamble, gcm: &mut Gcm, bytes: &mut BytesMut) -> Result<u8, Error> {
    let inline_end = PREAMBLE_LEN + INLINE_LEN;
    let remainder = inline_end + TAG_LEN;
    let head = preamble.head_len(ConnectionMode::Secure);
    if head > remainder {
        gcm.open(bytes.get_mut(remainder..head).unwrap_or_default())?;
        bytes.copy_within(remainder..head - TAG_LEN, inline_end);
    }
    let Some(tail) = bytes.get_mut(head..).filter(|tail| !tail.is_empty()) else {
        return Ok(LATE_STATUS_COMPLETE);
    };
    gcm.open(tail)?;
    let status = tail.len().checked_sub(SECURE_EPILOGUE_LEN + TAG_LEN).and_then(|at| tail.get(at));
    Ok(status.copied().unwrap_or_default())
}

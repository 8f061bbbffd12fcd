//! Puts frames on the wire whose checksums or tags are right, whatever they say.
//!
//! In an input a frame is its preamble without the checksum (28 bytes), its segments as long as the preamble says or as
//! the input is, and, if it has more than one, the late status.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, KeyInit};
use proto::crc::crc32c;

use super::Pieces;

pub(crate) const PREAMBLE_LEN: usize = 28;
const INLINE_LEN: usize = 48;

/// The secret of the connection, from which both directions have their keys and nonces.
pub(super) fn connection_secret() -> Vec<u8> {
    (0..64).collect()
}

/// One side's way of sending.
pub(super) struct Sealer {
    /// In secure mode: the cipher, the constant part of the nonce, and its counter.
    gcm: Option<(Aes128Gcm, [u8; 4], u64)>,
}

impl Sealer {
    pub(super) fn crc() -> Self {
        Self { gcm: None }
    }

    /// A server's or a client's, when `sent` blocks have been sealed.
    pub(super) fn secure(is_server: bool, sent: u64) -> Self {
        let secret = connection_secret();
        let (key, nonces) = secret.split_at(16);
        let nonce = &nonces[if is_server { 0 } else { 12 }..];
        let counter = u64::from_le_bytes(*nonce[4..].first_chunk().unwrap());
        let cipher = Aes128Gcm::new(key.first_chunk::<16>().unwrap().into());
        let gcm = (cipher, *nonce.first_chunk().unwrap(), counter.wrapping_add(sent));
        Self { gcm: Some(gcm) }
    }

    /// Appends the next frame of `plain` as it is on the wire; returns its tag.
    pub(super) fn frame(&mut self, plain: &mut Pieces<'_>, out: &mut Vec<u8>) -> u8 {
        let mut preamble = [0; PREAMBLE_LEN];
        let fields = plain.bytes(PREAMBLE_LEN);
        preamble[..fields.len()].copy_from_slice(fields);
        let crc = crc32c(0, &preamble);
        let lens = lens(&preamble);
        let [first, rest @ ..] = lens.map(|len| plain.bytes(len));
        let has_tail = lens[1..] != [0; 3];
        let status = if has_tail { plain.byte() } else { 0 };
        let preamble = [&preamble[..], &crc.to_le_bytes()].concat();
        if self.gcm.is_none() {
            out.extend_from_slice(&preamble);
            if lens[0] > 0 {
                out.extend(first);
                out.extend(crc32c(!0, first).to_le_bytes());
            }
            if has_tail {
                rest.iter().for_each(|segment| out.extend(*segment));
                out.push(status);
                rest.iter().for_each(|segment| out.extend(crc32c(!0, segment).to_le_bytes()));
            }
            return preamble[0];
        }
        let (inline, remainder) = first.split_at(first.len().min(INLINE_LEN));
        let tag = preamble[0];
        let mut block = preamble;
        block.extend(inline);
        block.resize(PREAMBLE_LEN + 4 + INLINE_LEN, 0);
        self.seal(block, out);
        if !remainder.is_empty() {
            self.seal(padded(remainder), out);
        }
        if has_tail {
            let mut block = rest.map(padded).concat();
            block.push(status);
            block.extend([0; 15]);
            self.seal(block, out);
        }
        tag
    }

    fn seal(&mut self, mut block: Vec<u8>, out: &mut Vec<u8>) {
        let Some((cipher, fixed, counter)) = &mut self.gcm else { return };
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(fixed);
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        *counter = counter.wrapping_add(1);
        let tag = cipher.encrypt_inout_detached(&nonce.into(), &[], block.as_mut_slice().into());
        out.extend(block);
        out.extend(tag.unwrap());
    }
}

fn padded(segment: &[u8]) -> Vec<u8> {
    let mut padded = segment.to_vec();
    padded.resize(segment.len().next_multiple_of(16), 0);
    padded
}

/// The lengths of the segments.
fn lens(preamble: &[u8; PREAMBLE_LEN]) -> [usize; 4] {
    [2, 8, 14, 20].map(|at| {
        let len = preamble[at..].first_chunk().copied().unwrap();
        u32::from_le_bytes(len) as usize
    })
}

/// The other way round: the frames of a captured stream in crc mode, without its banner, as they are in inputs.
pub(crate) fn plain_frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((preamble, rest)) = stream.split_first_chunk::<PREAMBLE_LEN>() {
        let mut rest = Pieces(&rest[4..]);
        let lens = lens(preamble);
        let mut frame = preamble.to_vec();
        frame.extend(rest.bytes(lens[0]));
        if lens[0] > 0 {
            rest.bytes(4);
        }
        if lens[1..] != [0; 3] {
            lens[1..].iter().for_each(|len| frame.extend(rest.bytes(*len)));
            frame.push(rest.byte());
            rest.bytes(12);
        }
        frames.push(frame);
        stream = rest.0;
    }
    frames
}

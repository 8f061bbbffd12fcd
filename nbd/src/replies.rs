//! Replies on their way out: headers in one buffer, payloads beside it uncopied, all sent with vectored writes.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

use crate::device::{Allocation, Errno, Extent, ReadData, Segment};
use crate::limits::EXTENTS;
use crate::request::{Pending, Refusal};
use crate::wire::{self, chunk, command_flag, state};

/// What stands for a hole where zeros have to be sent.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Bytes to be sent, in order.
#[derive(Default)]
pub(crate) struct Replies {
    /// The bytes of all [`Piece::Head`]s.
    heads: BytesMut,
    pieces: VecDeque<Piece>,
    bytes: u64,
}

enum Piece {
    /// So many bytes of `heads`.
    Head(usize),
    Data(Bytes),
}

impl Replies {
    /// How much there is to send.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Fills `slices` with what is to be sent next, and says how many it filled.
    pub(crate) fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut heads: &[u8] = &self.heads;
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(match piece {
                Piece::Head(len) => {
                    let (head, rest) = heads.split_at(*len);
                    heads = rest;
                    head
                }
                Piece::Data(data) => data,
            });
            filled += 1;
        }
        filled
    }

    /// Forgets `sent` bytes.
    pub(crate) fn advance(&mut self, mut sent: usize) {
        self.bytes -= sent as u64;
        while let Some(piece) = self.pieces.front_mut() {
            let len = match piece {
                Piece::Head(len) => *len,
                Piece::Data(data) => data.len(),
            };
            let now = len.min(sent);
            sent -= now;
            if let Piece::Head(_) = piece {
                self.heads.advance(now);
            }
            if now < len {
                match piece {
                    Piece::Head(len) => *len -= now,
                    Piece::Data(data) => data.advance(now),
                }
                return;
            }
            self.pieces.pop_front();
        }
    }

    /// The reply to a request that succeeded and has nothing to bring back: simple, also where structured replies were
    /// agreed on, because it is shorter and allowed.
    pub(crate) fn done(&mut self, cookie: u64) {
        self.head(&wire::simple_reply(cookie, None));
    }

    /// The reply to a request that failed.
    pub(crate) fn error(&mut self, cookie: u64, (errno, message): Refusal, structured: bool) {
        if !structured {
            return self.head(&wire::simple_reply(cookie, Some(errno)));
        }
        let len = message.len() as u16;
        self.head(&wire::chunk_header(cookie, chunk::DONE, chunk::ERROR, 6 + u32::from(len)));
        self.head(&errno.number().to_be_bytes());
        self.head(&len.to_be_bytes());
        self.head(message.as_bytes());
    }

    /// The reply to a read. The data is as long as was asked.
    pub(crate) fn read(&mut self, request: &Pending, data: ReadData, structured: bool) {
        match data {
            _ if !structured => {
                self.head(&wire::simple_reply(request.cookie, None));
                self.content(data);
            }
            ReadData::Segments(segments) if !request.has(command_flag::DF) => {
                self.chunks(request, segments);
            }
            data => {
                self.data_chunk(request.cookie, chunk::DONE, request.offset, request.len);
                self.content(data);
            }
        }
    }

    /// One chunk per hole and per run of data.
    fn chunks(&mut self, request: &Pending, segments: Vec<Segment>) {
        let mut offset = request.offset;
        let mut rest = segments.as_slice();
        while let Some(first) = rest.first() {
            let is_same =
                |other: &&Segment| std::mem::discriminant(*other) == std::mem::discriminant(first);
            let run = rest.iter().take_while(is_same).count();
            let (segments, after) = rest.split_at(run);
            rest = after;
            let len = segments.iter().map(Segment::len).sum::<u64>() as u32;
            let flags = if rest.is_empty() { chunk::DONE } else { 0 };
            match first {
                Segment::Data(_) => {
                    self.data_chunk(request.cookie, flags, offset, len);
                    for segment in segments {
                        if let Segment::Data(data) = segment {
                            self.data(data.clone());
                        }
                    }
                }
                Segment::Hole(_) => {
                    let kind = chunk::OFFSET_HOLE;
                    self.head(&wire::chunk_header(request.cookie, flags, kind, 12));
                    self.head(&offset.to_be_bytes());
                    self.head(&len.to_be_bytes());
                }
            }
            offset += u64::from(len);
        }
    }

    fn data_chunk(&mut self, cookie: u64, flags: u16, offset: u64, len: u32) {
        self.head(&wire::chunk_header(cookie, flags, chunk::OFFSET_DATA, 8 + len));
        self.head(&offset.to_be_bytes());
    }

    /// The reply to a block status request: extents cut to what was asked, neighbours of one state made one.
    pub(crate) fn extents(&mut self, request: &Pending, extents: &[Extent]) {
        let most = if request.has(command_flag::REQ_ONE) { 1 } else { EXTENTS };
        let mut left = request.len;
        let mut descriptors: Vec<(u32, u32)> = Vec::new();
        for extent in extents {
            let len = left.min(u32::try_from(extent.len).unwrap_or(u32::MAX));
            let flags = match extent.state {
                Allocation::Data => 0,
                Allocation::Zeroes => state::ZERO,
                Allocation::Hole => state::HOLE | state::ZERO,
            };
            if len == 0 {
                break;
            }
            let more = descriptors.len() < most;
            match descriptors.last_mut() {
                Some((last, same)) if *same == flags => *last += len,
                _ if more => descriptors.push((len, flags)),
                _ => break,
            }
            left -= len;
        }
        let len = 4 + 8 * descriptors.len() as u32;
        self.head(&wire::chunk_header(request.cookie, chunk::DONE, chunk::BLOCK_STATUS, len));
        self.head(&wire::BASE_ALLOCATION_ID.to_be_bytes());
        for (len, flags) in descriptors {
            self.head(&len.to_be_bytes());
            self.head(&flags.to_be_bytes());
        }
    }

    /// Content without a header, holes as zeros.
    fn content(&mut self, data: ReadData) {
        let segments = match data {
            ReadData::Whole(data) => return self.data(data),
            ReadData::Segments(segments) => segments,
        };
        for segment in segments {
            match segment {
                Segment::Data(data) => self.data(data),
                Segment::Hole(len) => {
                    let mut left = len as usize;
                    while left > 0 {
                        let zeroes = Bytes::from_static(&ZEROES[..left.min(ZEROES.len())]);
                        left -= zeroes.len();
                        self.data(zeroes);
                    }
                }
            }
        }
    }

    #[inline]
    fn head(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.heads.extend_from_slice(bytes);
        match self.pieces.back_mut() {
            Some(Piece::Head(len)) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Head(bytes.len())),
        }
    }

    #[inline]
    fn data(&mut self, data: Bytes) {
        self.bytes += data.len() as u64;
        self.pieces.push_back(Piece::Data(data));
    }
}

/// What a failed request of the device is answered with.
pub(crate) fn refusal(request: &Pending, errno: Errno) -> Refusal {
    // ENOTSUP and EOVERFLOW have a meaning for few requests only: proto.md, "Error values".
    let errno = match errno {
        Errno::ENOTSUP if !request.has(command_flag::FAST_ZERO) => Errno::EINVAL,
        Errno::EOVERFLOW => Errno::EINVAL,
        errno => errno,
    };
    (errno, errno.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::WRITE_PIECES;
    use crate::wire::command;

    fn pending(command: u16, flags: u16, offset: u64, len: u32) -> Pending {
        Pending { cookie: 0x0a0b, offset, len, command, flags }
    }

    /// Sends everything in writes of at most `most` bytes.
    fn sent(mut replies: Replies, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut slices = [IoSlice::new(&[]); WRITE_PIECES];
            let filled = replies.fill(&mut slices);
            let bytes: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let now = bytes.len().min(most);
            if now == 0 {
                assert_eq!(replies.bytes(), 0);
                return all;
            }
            all.extend_from_slice(&bytes[..now]);
            replies.advance(now);
        }
    }

    fn mixed() -> ReadData {
        ReadData::Segments(vec![
            Segment::Data(Bytes::from_static(b"ab")),
            Segment::Data(Bytes::from_static(b"cd")),
            Segment::Hole(3),
            Segment::Hole(2),
            Segment::Data(Bytes::from_static(b"e")),
        ])
    }

    #[test]
    fn a_structured_read_has_a_chunk_per_run() {
        let mut expected = Vec::new();
        expected.extend_from_slice(b"\x66\x8e\x33\xef\0\0\0\x01\0\0\0\0\0\0\x0a\x0b\0\0\0\x0c");
        expected.extend_from_slice(b"\0\0\0\0\0\0\x10\0abcd");
        expected.extend_from_slice(b"\x66\x8e\x33\xef\0\0\0\x02\0\0\0\0\0\0\x0a\x0b\0\0\0\x0c");
        expected.extend_from_slice(b"\0\0\0\0\0\0\x10\x04\0\0\0\x05");
        expected.extend_from_slice(b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\x0a\x0b\0\0\0\x09");
        expected.extend_from_slice(b"\0\0\0\0\0\0\x10\x09e");
        for most in [1, 3, 28, 1000] {
            let mut replies = Replies::default();
            replies.read(&pending(command::READ, 0, 4096, 10), mixed(), true);
            assert_eq!(sent(replies, most), expected, "{most} bytes a time");
        }
    }

    #[test]
    fn an_unfragmented_read_has_its_zeros() {
        let mut replies = Replies::default();
        replies.read(&pending(command::READ, command_flag::DF, 4096, 10), mixed(), true);
        let expected = b"\x66\x8e\x33\xef\0\x01\0\x01\0\0\0\0\0\0\x0a\x0b\0\0\0\x12\
            \0\0\0\0\0\0\x10\0abcd\0\0\0\0\0e";
        assert_eq!(sent(replies, 1000), expected);
    }

    #[test]
    fn a_simple_read_has_its_zeros() {
        let mut replies = Replies::default();
        replies.done(1);
        replies.read(&pending(command::READ, 0, 4096, 10), mixed(), false);
        let expected = b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x01\
            \x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\x0a\x0babcd\0\0\0\0\0e";
        assert_eq!(sent(replies, 7), expected);
    }

    #[test]
    fn errors_have_a_message_where_there_is_room_for_it() {
        let mut replies = Replies::default();
        replies.error(0x0a0b, (Errno::ENOSPC, "full"), false);
        replies.error(0x0a0b, (Errno::ENOSPC, "full"), true);
        let expected = b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\x0a\x0b\
            \x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\x0a\x0b\0\0\0\x0a\0\0\0\x1c\0\x04full";
        assert_eq!(sent(replies, 1000), expected);
    }

    #[test]
    fn extents_are_merged_and_cut() {
        let extents = [
            Extent { len: 10, state: Allocation::Data },
            Extent { len: 10, state: Allocation::Data },
            Extent { len: 5, state: Allocation::Zeroes },
            Extent { len: u64::MAX, state: Allocation::Hole },
            Extent { len: 5, state: Allocation::Data },
        ];
        let mut replies = Replies::default();
        replies.extents(&pending(command::BLOCK_STATUS, 0, 4096, 100), &extents);
        let expected = b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\x0a\x0b\0\0\0\x1c\0\0\0\x01\
            \0\0\0\x14\0\0\0\0\0\0\0\x05\0\0\0\x02\0\0\0\x4b\0\0\0\x03";
        assert_eq!(sent(replies, 1000), expected);
        let mut replies = Replies::default();
        let one = pending(command::BLOCK_STATUS, command_flag::REQ_ONE, 4096, 15);
        replies.extents(&one, &extents);
        let expected = b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\x0a\x0b\0\0\0\x0c\0\0\0\x01\
            \0\0\0\x0f\0\0\0\0";
        assert_eq!(sent(replies, 1000), expected);
    }

    #[test]
    fn more_pieces_than_one_write_takes() {
        let mut replies = Replies::default();
        for cookie in 0..100 {
            replies.done(cookie);
            let read = Pending { cookie, offset: 0, len: 1, command: 0, flags: 0 };
            replies.read(&read, ReadData::Whole(Bytes::from_static(b"x")), false);
        }
        assert_eq!(sent(replies, 10_000).len(), 100 * (16 + 17));
    }

    #[test]
    fn rare_errors_stay_where_they_have_a_meaning() {
        let zeroes = |flags| pending(command::WRITE_ZEROES, flags, 0, 1);
        assert_eq!(refusal(&zeroes(command_flag::FAST_ZERO), Errno::ENOTSUP).0, Errno::ENOTSUP);
        assert_eq!(refusal(&zeroes(0), Errno::ENOTSUP).0, Errno::EINVAL);
        assert_eq!(refusal(&zeroes(0), Errno::EPERM).0, Errno::EPERM);
    }
}

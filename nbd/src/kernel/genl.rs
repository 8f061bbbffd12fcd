//! Generic netlink, as bytes: messages of attributes, some of which hold attributes themselves
//! (`include/uapi/linux/netlink.h`, `genetlink.h`). In the host's byte order.

use bytes::{Buf, BufMut};

/// A whole message's header, and the one that generic netlink has below it.
const HEADER_BYTES: usize = 16;
const GENERIC_BYTES: usize = 4;

/// Flags of a request: it is one, and it wants to be acknowledged.
const REQUEST_ACK: u16 = 0x1 | 0x4;

/// Set in the type of attributes that hold attributes, and in those of network byte order.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// The type of a message that acknowledges, or says what went wrong.
const ERROR: u16 = 2;

/// A message that is being made.
#[derive(Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A request of a family.
    pub(super) fn new(family: u16, sequence: u32, command: u8, version: u8) -> Self {
        let mut bytes = Vec::with_capacity(128);
        // The length, which is known at the end.
        bytes.put_u32_ne(0);
        bytes.put_u16_ne(family);
        bytes.put_u16_ne(REQUEST_ACK);
        bytes.put_u32_ne(sequence);
        // Whom it is from: the kernel knows.
        bytes.put_u32_ne(0);
        bytes.put_slice(&[command, version, 0, 0]);
        Self(bytes)
    }

    pub(super) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, |bytes| bytes.put_u32_ne(value));
    }

    pub(super) fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, |bytes| bytes.put_u64_ne(value));
    }

    /// Text, with the NUL that ends it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |bytes| {
            bytes.put_slice(value.as_bytes());
            bytes.put_u8(0);
        });
    }

    /// Attributes within an attribute.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.begin(kind | NESTED);
        fill(self);
        self.end(at);
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        let at = self.begin(kind);
        fill(&mut self.0);
        self.end(at);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let at = self.0.len();
        self.0.put_u16_ne(0);
        self.0.put_u16_ne(kind);
        at
    }

    /// Its length is without the padding that follows.
    fn end(&mut self, at: usize) {
        let len = self.0.len() - at;
        (&mut self.0[at..at + 2]).put_u16_ne(len as u16);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        (&mut self.0[..4]).put_u32_ne(len);
        self.0
    }
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done, or an errno, positive.
    End(Result<(), i32>),
    /// Attributes.
    Attributes(Vec<u8>),
}

/// Takes the answers to one request out of what was received; others are passed over.
pub(super) fn answers(mut received: &[u8], sequence: u32) -> Vec<Answer> {
    let mut answers = Vec::new();
    while let Some(message) = take_message(&mut received) {
        let mut header = message;
        header.advance(4);
        let kind = header.get_u16_ne();
        header.advance(2);
        let its = header.get_u32_ne();
        header.advance(4);
        if its != sequence {
            continue;
        }
        if kind == ERROR {
            let Ok(errno) = header.try_get_i32_ne() else { continue };
            answers.push(Answer::End(if errno == 0 { Ok(()) } else { Err(-errno) }));
        } else if let Some(attributes) = header.get(GENERIC_BYTES..) {
            answers.push(Answer::Attributes(attributes.to_vec()));
        }
    }
    answers
}

fn take_message<'a>(received: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = received.get(..4)?.try_get_u32_ne().ok()? as usize;
    if len < HEADER_BYTES || len > received.len() {
        return None;
    }
    let (message, rest) = received.split_at(len);
    *received = rest.get(len.next_multiple_of(4) - len..).unwrap_or_default();
    Some(message)
}

/// The attributes of a message or of an attribute: type and content. What is cut short is left out.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let mut header = bytes.get(..4)?;
        let (len, kind) = (usize::from(header.get_u16_ne()), header.get_u16_ne());
        let content = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, content))
    })
}

/// The content of the first attribute of a type.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, content)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut message = Message::new(0x1c, 7, 1, 1);
        message.u32(1, 3);
        message.u64(2, 1 << 20);
        message.nested(7, |items| items.nested(1, |item| item.u32(1, 9)));
        message.text(10, "ab");
        let bytes = message.finish();
        #[cfg(target_endian = "little")]
        assert_eq!(
            bytes,
            [
                &[64, 0, 0, 0, 0x1c, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0][..],
                &[8, 0, 1, 0, 3, 0, 0, 0],
                &[12, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0],
                &[16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0],
                &[7, 0, 10, 0, b'a', b'b', 0, 0],
            ]
            .concat()
        );
        assert_eq!(bytes.len() % 4, 0);
    }

    fn received(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u32_ne((HEADER_BYTES + body.len()) as u32);
        bytes.put_u16_ne(kind);
        bytes.put_u16_ne(0);
        bytes.put_u32_ne(sequence);
        bytes.put_u32_ne(0);
        bytes.put_slice(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn answers_are_those_to_the_request() {
        let mut message = Message::new(0, 0, 0, 0);
        message.u32(1, 5);
        message.text(2, "nbd");
        let body = &message.finish()[HEADER_BYTES..];
        let bytes = [
            received(ERROR, 6, &[0; 4]),
            received(0x1c, 7, body),
            received(ERROR, 7, &(-16i32).to_le_bytes()),
            received(ERROR, 7, &[0; 20]),
        ]
        .concat();
        let found = answers(&bytes, 7);
        let [Answer::Attributes(attributes), refused, done] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(attribute(attributes, 1), Some(&[5, 0, 0, 0][..]));
        assert_eq!(attribute(attributes, 2), Some(&b"nbd\0"[..]));
        assert_eq!(attribute(attributes, 3), None);
        assert_eq!((refused, done), (&Answer::End(Err(16)), &Answer::End(Ok(()))));
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let bytes = received(0x1c, 7, &[1, 1, 0, 0, 8, 0, 1, 0, 5, 0, 0, 0]);
        for len in 0..bytes.len() {
            assert_eq!(answers(&bytes[..len], 7), [], "{len}");
        }
        for attribute in [&[8, 0, 1, 0, 5][..], &[3, 0, 1, 0], &[0, 0, 1, 0], &[8]] {
            assert_eq!(attributes(attribute).count(), 0, "{attribute:?}");
        }
    }
}

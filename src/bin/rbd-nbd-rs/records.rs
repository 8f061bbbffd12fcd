//! Streams of `export-diff`, and of whole images with their snapshots (`--export-format 2`), which are several of them
//! after a header (`doc/dev/rbd-diff.rst`, `rbd-export.rst`).

use std::collections::BTreeMap;
use std::io::{self, Read};

use bytes::{BufMut as _, Bytes, BytesMut};
use ceph_native::error::{Error, Kind};
use ceph_native::image::Segment;
use ceph_native::image::transfer::{CHUNK, nonzero};

use crate::import::failed;

/// In the second version records say how long they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// How a stream of changes begins, by version.
const MAGIC: [&[u8; 12]; 2] = [b"rbd diff v1\n", b"rbd diff v2\n"];

/// How a whole image begins, and how its snapshots and the head follow.
const IMAGE_MAGIC: &[u8; 13] = b"rbd image v2\n";
const DIFFS_MAGIC: &[u8; 19] = b"rbd image diffs v2\n";

const EBADMSG: i32 = 74;

/// No name of a snapshot is longer, and no note of an image.
const LONGEST_NAME: u64 = 64 << 10;

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The snapshot that it begins at.
    From(String),
    /// The snapshot that it ends at.
    To(String),
    /// Whether that is protected.
    Protected(bool),
    /// The size of the image at its end.
    Size(u64),
    /// What is there now.
    Data { offset: u64, data: Bytes },
    /// What is zeros now.
    Zero { offset: u64, length: u64 },
    /// The end: what has none was cut short.
    End,
}

impl Version {
    /// How a stream begins.
    pub(crate) fn magic(self) -> Bytes {
        Bytes::from_static(MAGIC[self as usize])
    }
}

impl Record {
    /// As it is written.
    pub(crate) fn encode(&self, version: Version) -> Bytes {
        let mut content = BytesMut::new();
        let tag = match self {
            Self::From(snap) => put_text(&mut content, snap.as_bytes(), b'f'),
            Self::To(snap) => put_text(&mut content, snap.as_bytes(), b't'),
            Self::Protected(protected) => {
                content.put_u8(u8::from(*protected));
                b'p'
            }
            Self::Size(size) => {
                content.put_u64_le(*size);
                b's'
            }
            Self::Data { offset, data } => {
                content.put_u64_le(*offset);
                content.put_u64_le(data.len() as u64);
                content.put_slice(data);
                b'w'
            }
            Self::Zero { offset, length } => {
                content.put_u64_le(*offset);
                content.put_u64_le(*length);
                b'z'
            }
            Self::End => return Bytes::from_static(b"e"),
        };
        let mut out = BytesMut::with_capacity(content.len() + 9);
        out.put_u8(tag);
        if version == Version::Two {
            out.put_u64_le(content.len() as u64);
        }
        out.put_slice(&content);
        out.freeze()
    }
}

fn put_text(out: &mut BytesMut, text: &[u8], tag: u8) -> u8 {
    out.put_u32_le(text.len() as u32);
    out.put_slice(text);
    tag
}

/// What was read, with blocks of zeros told apart.
pub(crate) fn records(at: u64, segment: Segment, block: usize) -> Vec<Record> {
    let length = segment.len();
    let Segment::Data(data) = segment else {
        return vec![Record::Zero { offset: at, length }];
    };
    let (mut told, end) = (at, at + length);
    let mut records = Vec::new();
    for (begin, data) in nonzero(&data, block) {
        let offset = at + begin;
        if offset > told {
            records.push(Record::Zero { offset: told, length: offset - told });
        }
        told = offset + data.len() as u64;
        records.push(Record::Data { offset, data });
    }
    if told < end {
        records.push(Record::Zero { offset: told, length: end - told });
    }
    records
}

/// Reads a stream until its end, or until nobody wants more of it. Data come in pieces.
pub(crate) fn parse(
    source: &mut dyn Read,
    found: &mut dyn FnMut(Record) -> bool,
) -> io::Result<()> {
    let magic: [u8; 12] = bytes(source)?;
    let version = MAGIC.iter().position(|known| **known == magic);
    let with_lengths = version.ok_or_else(|| corrupt("this is no stream of export-diff"))? == 1;
    loop {
        let [tag] = bytes(source)?;
        if tag == b'e' {
            found(Record::End);
            return Ok(());
        }
        let length = if with_lengths { Some(number(source)?) } else { None };
        let wanted = match tag {
            b'f' => found(Record::From(name(source)?)),
            b't' => found(Record::To(name(source)?)),
            b's' => found(Record::Size(number(source)?)),
            b'p' if with_lengths => found(Record::Protected(bytes(source)? != [0])),
            b'z' => found(Record::Zero { offset: number(source)?, length: number(source)? }),
            b'w' => {
                let (mut offset, mut left) = (number(source)?, number(source)?);
                let mut wanted = true;
                while left > 0 && wanted {
                    let data = exactly(source, left.min(CHUNK))?;
                    left -= data.len() as u64;
                    let next = offset.checked_add(data.len() as u64);
                    let next =
                        next.ok_or_else(|| corrupt("the stream has data beyond all ends"))?;
                    wanted = found(Record::Data { offset, data });
                    offset = next;
                }
                wanted
            }
            // Of a newer version.
            _ => match length {
                Some(length) if io::copy(&mut source.take(length), &mut io::sink())? == length => {
                    true
                }
                _ => return Err(corrupt("the stream has a part that is not known")),
            },
        };
        if !wanted {
            return Ok(());
        }
    }
}

fn bytes<const N: usize>(source: &mut dyn Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn number(source: &mut dyn Read) -> io::Result<u64> {
    bytes(source).map(u64::from_le_bytes)
}

fn name(source: &mut dyn Read) -> io::Result<String> {
    let name = text(source)?;
    String::from_utf8(name.to_vec()).map_err(|_| corrupt("a name in the stream is no UTF-8"))
}

fn text(source: &mut dyn Read) -> io::Result<Bytes> {
    let length = u64::from(u32::from_le_bytes(bytes(source)?));
    if length > LONGEST_NAME {
        return Err(corrupt("the stream has a name or a note of too great length"));
    }
    exactly(source, length)
}

/// So many bytes; no more are set aside than there are.
fn exactly(source: &mut dyn Read, length: u64) -> io::Result<Bytes> {
    let mut data = Vec::new();
    source.take(length).read_to_end(&mut data)?;
    match data.len() as u64 == length {
        true => Ok(Bytes::from(data)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What a whole image is like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageHeader {
    pub(crate) order: Option<u64>,
    pub(crate) features: Option<u64>,
    pub(crate) stripe_unit: u64,
    pub(crate) stripe_count: u64,
    pub(crate) notes: BTreeMap<String, Bytes>,
    /// How many streams of changes follow: one to each snapshot, and one to the head.
    pub(crate) streams: u64,
}

impl ImageHeader {
    /// As it is written.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::from(&IMAGE_MAGIC[..]);
        let mut number = |tag, number: u64| {
            out.put_u8(tag);
            out.put_u64_le(8);
            out.put_u64_le(number);
        };
        for (tag, value) in [(b'O', self.order), (b'T', self.features)] {
            if let Some(value) = value {
                number(tag, value);
            }
        }
        number(b'U', self.stripe_unit);
        number(b'C', self.stripe_count);
        for (name, value) in &self.notes {
            out.put_u8(b'M');
            out.put_u64_le((name.len() + value.len() + 8) as u64);
            put_text(&mut out, name.as_bytes(), b'M');
            put_text(&mut out, value, b'M');
        }
        out.put_u8(b'E');
        out.put_slice(DIFFS_MAGIC);
        out.put_u64_le(self.streams);
        out.freeze()
    }

    /// Reads one, until the first of the streams.
    pub(crate) fn parse(source: &mut dyn Read) -> io::Result<Self> {
        if bytes(source)? != *IMAGE_MAGIC {
            return Err(corrupt("this is no image of export format 2"));
        }
        let mut header = Self::default();
        loop {
            let [tag] = bytes(source)?;
            if tag == b'E' {
                break;
            }
            let length = number(source)?;
            match tag {
                b'O' => header.order = Some(number(source)?),
                b'T' => header.features = Some(number(source)?),
                b'U' => header.stripe_unit = number(source)?,
                b'C' => header.stripe_count = number(source)?,
                b'M' => {
                    let name = name(source)?;
                    header.notes.insert(name, text(source)?);
                }
                // Of a newer version.
                _ if io::copy(&mut source.take(length), &mut io::sink())? == length => {}
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if bytes(source)? != *DIFFS_MAGIC {
            return Err(corrupt("the content of the image is missing"));
        }
        header.streams = number(source)?;
        Ok(header)
    }
}

/// What kept a stream from being read.
pub(crate) fn unreadable(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidData => Error::new(Kind::Invalid, error.to_string()),
        io::ErrorKind::UnexpectedEof => {
            Error::new(Kind::Os(EBADMSG), "the stream was cut short").with_source(error)
        }
        _ => failed("reading", error),
    }
}

fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(mut bytes: &[u8]) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        parse(&mut bytes, &mut |record| {
            records.push(record);
            true
        })?;
        Ok(records)
    }

    fn some() -> Vec<Record> {
        vec![
            Record::From("a".to_owned()),
            Record::To("β".to_owned()),
            Record::Size(1 << 40),
            Record::Zero { offset: 5, length: 7 },
            Record::Data { offset: 12, data: Bytes::from_static(b"data") },
            Record::End,
        ]
    }

    fn written(version: Version) -> Vec<u8> {
        let mut stream = version.magic().to_vec();
        some().iter().for_each(|record| stream.extend_from_slice(&record.encode(version)));
        stream
    }

    #[test]
    fn what_is_written_is_read_and_cut_short_is_refused() {
        for version in [Version::One, Version::Two] {
            let stream = written(version);
            assert_eq!(parsed(&stream).unwrap(), some());
            for end in 0..stream.len() {
                let error = parsed(&stream[..end]).unwrap_err();
                assert_eq!(unreadable(error).errno(), EBADMSG, "{end}");
            }
        }
        let mut beyond =
            [&MAGIC[0][..], b"w", &u64::MAX.to_le_bytes(), &[2, 0, 0, 0, 0, 0, 0, 0]].concat();
        beyond.extend_from_slice(b"xye");
        assert_eq!(unreadable(parsed(&beyond).unwrap_err()).errno(), 22);
    }

    #[test]
    fn the_second_version_has_lengths_and_may_have_more() {
        let mut stream = written(Version::Two);
        assert_eq!(stream.pop(), Some(b'e'));
        stream.extend_from_slice(&Record::Protected(true).encode(Version::Two));
        stream.extend_from_slice(b"?\x02\0\0\0\0\0\0\0xye");
        let mut expected = some();
        expected.insert(expected.len() - 1, Record::Protected(true));
        assert_eq!(parsed(&stream).unwrap(), expected);
        stream[11] = b'?';
        assert!(parsed(&stream).is_err());
    }

    #[test]
    fn the_header_of_an_image_is_read_as_it_is_written() {
        let header = ImageHeader {
            order: Some(22),
            features: Some(61),
            stripe_unit: 65536,
            stripe_count: 3,
            notes: BTreeMap::from([("key".to_owned(), Bytes::from_static(b"\xffvalue"))]),
            streams: 2,
        };
        let written = header.encode();
        assert_eq!(ImageHeader::parse(&mut &written[..]).unwrap(), header);
        for end in 0..written.len() {
            let error = ImageHeader::parse(&mut &written[..end]).unwrap_err();
            assert_eq!(unreadable(error).errno(), EBADMSG, "{end}");
        }
        assert!(ImageHeader::parse(&mut &MAGIC[0].repeat(2)[..]).is_err());
    }

    #[test]
    fn zeros_are_told_apart() {
        const SPARSE: usize = 4096;

        let mut data = vec![0; 3 * SPARSE];
        data[SPARSE] = 1;
        let records = records(100, Segment::Data(Bytes::from(data)), SPARSE);
        let [zero, Record::Data { offset, data }, last] = &records[..] else {
            panic!("{records:?}")
        };
        assert_eq!(*zero, Record::Zero { offset: 100, length: 4096 });
        assert_eq!((*offset, data.len()), (100 + 4096, 4096));
        assert_eq!(*last, Record::Zero { offset: 100 + 2 * 4096, length: 4096 });
    }
}

//! The fixed newstyle handshake, without I/O: bytes of the client in, bytes for it out, until it is agreed which
//! export is served and how (NBD's `doc/proto.md`, "Handshake phase").

use bytes::{Buf, BufMut, BytesMut};

use crate::device::Geometry;
use crate::exports::{Export, Exports, transmission_flags};
use crate::limits::{OPTION_BYTES, STRING_BYTES, TRANSFER_BYTES};
use crate::wire::{self, Fields, handshake, info, option, reply};

/// What was agreed on.
#[derive(Clone)]
pub(crate) struct Agreed {
    /// What is served.
    pub(crate) export: Export,
    /// Reads are answered in chunks.
    pub(crate) structured: bool,
    /// Block status may be asked for.
    pub(crate) extents: bool,
}

/// How far the handshake is.
pub(crate) enum Step {
    /// More bytes are needed.
    More,
    /// One option was answered; there may be more in the input. One at a time, so that a client which sends many
    /// at once has to read the answers.
    Answered,
    /// It is over: requests follow.
    Agreed(Agreed),
    /// The client gave up in good order.
    Aborted,
}

/// Why a handshake ends without agreement, and without an answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Violation {
    #[error("the client set handshake flags {0:#x} that were not offered")]
    ClientFlags(u32),
    #[error("{0:#018x} stands where an option should begin")]
    OptionMagic(u64),
    #[error("option {0} from a client that does not speak fixed newstyle")]
    NotFixed(u32),
    #[error("the client asked in the old way for an export that is not there")]
    UnknownExport,
}

/// A handshake in progress.
pub(crate) struct Negotiation {
    exports: Exports,
    state: State,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which `base:allocation` was selected last.
    context: Option<String>,
}

enum State {
    /// The client's flags come next.
    Flags,
    /// An option comes next.
    Option,
    /// The data of an option that is too long, of which so many bytes are still to come.
    Skip { option: u32, left: usize },
}

impl Negotiation {
    /// Begins with the server's greeting.
    pub(crate) fn new(exports: Exports, out: &mut BytesMut) -> Self {
        out.put_u64(wire::INIT_MAGIC);
        out.put_u64(wire::OPTION_MAGIC);
        out.put_u16(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        Self {
            exports,
            state: State::Flags,
            fixed: false,
            no_zeroes: false,
            structured: false,
            context: None,
        }
    }

    /// Takes what is complete off the front of `input`, and appends the answers to `out`.
    pub(crate) fn handle(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Step, Violation> {
        loop {
            match self.state {
                State::Flags => {
                    let Some(flags) = Fields(input).u32() else { return Ok(Step::More) };
                    input.advance(4);
                    self.client_flags(flags)?;
                }
                State::Option => {
                    let mut header = Fields(input);
                    let Some(magic) = header.u64() else { return Ok(Step::More) };
                    if magic != wire::OPTION_MAGIC {
                        return Err(Violation::OptionMagic(magic));
                    }
                    let (Some(option), Some(len)) = (header.u32(), header.u32()) else {
                        return Ok(Step::More);
                    };
                    let len = len as usize;
                    if !self.fixed && option != option::EXPORT_NAME {
                        return Err(Violation::NotFixed(option));
                    }
                    if option == option::EXPORT_NAME && len > STRING_BYTES {
                        return Err(Violation::UnknownExport);
                    }
                    if len > OPTION_BYTES {
                        input.advance(16);
                        self.state = State::Skip { option, left: len };
                        continue;
                    }
                    if input.len() < 16 + len {
                        return Ok(Step::More);
                    }
                    input.advance(16);
                    let data = input.split_to(len);
                    return self.option(option, &data, out);
                }
                State::Skip { option, left } => {
                    let now = left.min(input.len());
                    input.advance(now);
                    if now < left {
                        self.state = State::Skip { option, left: left - now };
                        return Ok(Step::More);
                    }
                    answer(out, option, reply::ERR_TOO_BIG, b"the option's data is too long");
                    self.state = State::Option;
                    return Ok(Step::Answered);
                }
            }
        }
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), Violation> {
        let (fixed, no_zeroes) =
            (u32::from(handshake::FIXED_NEWSTYLE), u32::from(handshake::NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;
        self.state = State::Option;
        Ok(())
    }

    fn option(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Result<Step, Violation> {
        let answered = match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                answer(out, option, reply::ACK, b"");
                return Ok(Step::Aborted);
            }
            option::LIST => self.list(data, out),
            option::STARTTLS if !data.is_empty() => Err(NO_DATA),
            option::STARTTLS => Err((reply::ERR_UNSUP, "TLS is not supported")),
            option::INFO | option::GO => match self.info(option, data, out) {
                Ok(export) if option == option::GO => {
                    answer(out, option, reply::ACK, b"");
                    return Ok(self.agree(export));
                }
                other => other.map(drop),
            },
            option::STRUCTURED_REPLY if !data.is_empty() => Err(NO_DATA),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                Ok(())
            }
            option::LIST_META_CONTEXT => self.meta_context(option, data, out),
            option::SET_META_CONTEXT => {
                // A selection ends the one before, "including when this command fails".
                self.context = None;
                self.meta_context(option, data, out)
            }
            _ => Err((reply::ERR_UNSUP, "unknown option")),
        };
        match answered {
            Ok(()) => answer(out, option, reply::ACK, b""),
            Err((kind, message)) => answer(out, option, kind, message.as_bytes()),
        }
        Ok(Step::Answered)
    }

    fn agree(&self, export: Export) -> Step {
        // Both names may say the same export differently: the default one.
        let extents = self.context.as_ref().is_some_and(|name| *name == export.name);
        Step::Agreed(Agreed { export, structured: self.structured, extents })
    }

    /// The old way to choose an export, which has no way to say no.
    fn export_name(&self, data: &[u8], out: &mut BytesMut) -> Result<Step, Violation> {
        let export = wire::string(data).and_then(|name| self.exports.find(name));
        let export = export.ok_or(Violation::UnknownExport)?.clone();
        let geometry = export.device.geometry();
        out.put_u64(geometry.size);
        out.put_u16(transmission_flags(&geometry, self.structured));
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        Ok(self.agree(export))
    }

    fn list(&self, data: &[u8], out: &mut BytesMut) -> Answered {
        if !data.is_empty() {
            return Err(NO_DATA);
        }
        for export in self.exports.iter() {
            let mut item = BytesMut::new();
            item.put_u32(export.name.len() as u32);
            item.put_slice(export.name.as_bytes());
            item.put_slice(export.description.as_bytes());
            answer(out, option::LIST, reply::SERVER, &item);
        }
        Ok(())
    }

    fn info(&self, option: u32, data: &[u8], out: &mut BytesMut) -> Result<Export, Refusal> {
        let (name, wanted) = parse_info(data).ok_or(MALFORMED)?;
        let export = self.exports.find(name).ok_or(UNKNOWN_EXPORT)?;
        let geometry = export.device.geometry();
        let mut item = BytesMut::new();
        item.put_u16(info::EXPORT);
        item.put_u64(geometry.size);
        item.put_u16(transmission_flags(&geometry, self.structured));
        answer(out, option, reply::INFO, &item);
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if wanted.contains(kind) && !(kind == info::DESCRIPTION && text.is_empty()) {
                item.clear();
                item.put_u16(kind);
                item.put_slice(text.as_bytes());
                answer(out, option, reply::INFO, &item);
            }
        }
        // Clients ignore what they don't know, so this goes to all, as from other servers.
        item.clear();
        put_block_sizes(&mut item, &geometry);
        answer(out, option, reply::INFO, &item);
        Ok(export.clone())
    }

    fn meta_context(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Answered {
        if !self.structured {
            return Err((reply::ERR_INVALID, "structured replies have to be agreed on first"));
        }
        let (name, queries) = parse_queries(data).ok_or(MALFORMED)?;
        let export = self.exports.find(name).ok_or(UNKNOWN_EXPORT)?;
        let setting = option == option::SET_META_CONTEXT;
        let matches =
            |query: &str| query == wire::BASE_ALLOCATION || (!setting && query == "base:");
        // Listing without a query means everything; selecting without one, nothing.
        let everything = queries.is_empty() && !setting;
        if !everything && !queries.iter().any(|query| matches(query)) {
            return Ok(());
        }
        let mut item = BytesMut::new();
        item.put_u32(if setting { wire::BASE_ALLOCATION_ID } else { 0 });
        item.put_slice(wire::BASE_ALLOCATION.as_bytes());
        answer(out, option, reply::META_CONTEXT, &item);
        if setting {
            self.context = Some(export.name.clone());
        }
        Ok(())
    }
}

/// The type of an error reply, and a message for people.
type Refusal = (u32, &'static str);
/// Whether an option ends with an acknowledgement.
type Answered = Result<(), Refusal>;

const NO_DATA: Refusal = (reply::ERR_INVALID, "this option has no data");
const MALFORMED: Refusal = (reply::ERR_INVALID, "the option's data is malformed");
const UNKNOWN_EXPORT: Refusal = (reply::ERR_UNKNOWN, "there is no such export");

/// Appends one reply to an option.
fn answer(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(wire::OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// The information requests of a client.
struct Wanted<'a>(&'a [u8]);

impl Wanted<'_> {
    fn contains(&self, kind: u16) -> bool {
        self.0.chunks_exact(2).any(|item| item == kind.to_be_bytes())
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Wanted<'_>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    (fields.0.len() == usize::from(count) * 2).then_some((name, Wanted(fields.0)))
}

/// The export's name and the queries; each query has to name a namespace.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.string().filter(|query| query.contains(':'))?);
    }
    fields.0.is_empty().then_some((name, queries))
}

fn put_block_sizes(out: &mut BytesMut, geometry: &Geometry) {
    out.put_u16(info::BLOCK_SIZE);
    out.put_u32(geometry.minimum_block);
    out.put_u32(geometry.preferred_block);
    out.put_u32(geometry.maximum_transfer.min(TRANSFER_BYTES));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::MemoryDevice;

    const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";
    /// The size of the first export, and its flags without and with structured replies.
    const SIZE: &[u8] = b"\0\0\0\0\0\x10\0\0";
    const FLAGS: &[u8] = b"\x0d\x6d";
    const STRUCTURED_FLAGS: &[u8] = b"\x0d\xed";

    fn exports() -> Exports {
        let export = |name: &str, text: &str, size| Export {
            description: text.into(),
            ..Export::new(name, MemoryDevice::new(Geometry::new(size)))
        };
        Exports::new(vec![export("one", "the first", 1 << 20), export("two", "", 4096)]).unwrap()
    }

    /// A client's words in the order it says them.
    #[derive(Clone, Default)]
    struct Words(Vec<u8>);

    impl Words {
        fn hello() -> Self {
            Self(b"\0\0\0\x03".to_vec())
        }

        fn option(mut self, option: u32, data: &[u8]) -> Self {
            self.0.extend_from_slice(b"IHAVEOPT");
            self.0.extend_from_slice(&option.to_be_bytes());
            self.0.extend_from_slice(&(data.len() as u32).to_be_bytes());
            self.0.extend_from_slice(data);
            self
        }
    }

    fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
        let mut all = b"\0\x03\xe8\x89\x04\x55\x65\xa9".to_vec();
        all.extend_from_slice(&option.to_be_bytes());
        all.extend_from_slice(&kind.to_be_bytes());
        all.extend_from_slice(&(data.len() as u32).to_be_bytes());
        all.extend_from_slice(data);
        all
    }

    fn refused(option: u32, error: u32, message: &str) -> Vec<u8> {
        reply(option, 1 << 31 | error, message.as_bytes())
    }

    fn block_sizes(option: u32) -> Vec<u8> {
        reply(option, 3, b"\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0")
    }

    /// The answers after the greeting, what the handshake ended with, and what it left of the input.
    fn talk(words: &[u8], piece: usize) -> (Vec<u8>, Result<Step, Violation>, usize) {
        let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
        let mut negotiation = Negotiation::new(exports(), &mut out);
        assert_eq!(out.split(), GREETING);
        let mut pieces = words.chunks(piece.max(1));
        loop {
            match negotiation.handle(&mut input, &mut out) {
                Ok(Step::More) => match pieces.next() {
                    Some(piece) => input.extend_from_slice(piece),
                    None => return (out.to_vec(), Ok(Step::More), input.len()),
                },
                Ok(Step::Answered) => {}
                end => {
                    let left = input.len() + pieces.map(<[u8]>::len).sum::<usize>();
                    return (out.to_vec(), end, left);
                }
            }
        }
    }

    /// Says one option after the hello; it must be answered so, and haggling goes on.
    fn expect(words: Words, answers: &[Vec<u8>]) {
        let (out, end, left) = talk(&words.0, usize::MAX);
        assert_eq!(out, answers.concat(), "{:?}", String::from_utf8_lossy(&out));
        assert!(matches!(end, Ok(Step::More)));
        assert_eq!(left, 0);
    }

    fn go(name: &str, wanted: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(wanted.len() as u16).to_be_bytes());
        data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
        data
    }

    fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    }

    #[test]
    fn go_ends_the_handshake_and_leaves_what_follows() {
        let mut words = Words::hello().option(7, &go("one", &[])).0;
        words.extend_from_slice(b"requests");
        let (out, end, left) = talk(&words, usize::MAX);
        let export = [b"\0\0", SIZE, FLAGS].concat();
        assert_eq!(out, [reply(7, 3, &export), block_sizes(7), reply(7, 1, b"")].concat());
        let Ok(Step::Agreed(agreed)) = end else { panic!("agreed") };
        assert_eq!((agreed.export.name.as_str(), agreed.structured), ("one", false));
        assert_eq!(left, 8);
    }

    #[test]
    fn info_gives_what_is_asked_for() {
        let export = reply(6, 3, &[b"\0\0", SIZE, FLAGS].concat());
        let name = reply(6, 3, b"\0\x01one");
        let description = reply(6, 3, b"\0\x02the first");
        expect(
            Words::hello().option(6, &go("", &[1, 2, 3, 77])),
            &[export, name, description, block_sizes(6), reply(6, 1, b"")],
        );
        for option in [6, 7] {
            expect(
                Words::hello().option(option, &go("three", &[])),
                &[refused(option, 6, "there is no such export")],
            );
        }
    }

    #[test]
    fn malformed_options_are_invalid_and_haggling_goes_on() {
        let malformed = "the option's data is malformed";
        for option in [6, 7] {
            let whole = go("one", &[1, 3]);
            for len in 0..whole.len() {
                let words = Words::hello().option(option, &whole[..len]);
                expect(words, &[refused(option, 3, malformed)]);
            }
            for data in [&b"\0\0\0\x03one\0\0x"[..], b"\0\0\0\x01\0\0\0", b"\0\0\0\x01\xff\0\0"] {
                let words = Words::hello().option(option, data);
                expect(words, &[refused(option, 3, malformed)]);
            }
            let words = Words::hello().option(option, &go(&"x".repeat(4097), &[]));
            expect(words, &[refused(option, 3, malformed)]);
        }
        for option in [9, 10] {
            let whole = queries("one", &["base:allocation", "x:y"]);
            for len in 0..whole.len() {
                let words = Words::hello().option(8, b"").option(option, &whole[..len]);
                expect(words, &[reply(8, 1, b""), refused(option, 3, malformed)]);
            }
            for data in [queries("one", &["base"]), b"\0\0\0\0\xff\xff\xff\xff".to_vec()] {
                let words = Words::hello().option(8, b"").option(option, &data);
                expect(words, &[reply(8, 1, b""), refused(option, 3, malformed)]);
            }
        }
        for option in [3, 5, 8] {
            let words = Words::hello().option(option, b"x");
            expect(words, &[refused(option, 3, "this option has no data")]);
        }
    }

    #[test]
    fn the_list_has_names_and_descriptions() {
        let list = [
            reply(3, 2, b"\0\0\0\x03onethe first"),
            reply(3, 2, b"\0\0\0\x03two"),
            reply(3, 1, b""),
        ];
        expect(Words::hello().option(3, b""), &list);
    }

    #[test]
    fn unknown_options_and_tls_are_unsupported() {
        let words = Words::hello().option(5, b"");
        expect(words, &[refused(5, 1, "TLS is not supported")]);
        for option in [0, 4, 11, 12, u32::MAX] {
            for data in [&b""[..], b"whatever", &[0; 65536]] {
                let words = Words::hello().option(option, data);
                expect(words, &[refused(option, 1, "unknown option")]);
            }
        }
    }

    #[test]
    fn too_long_options_are_skipped() {
        for option in [3, 6, 7, 10, 99] {
            let words = Words::hello().option(option, &[7; 65537]).option(8, b"");
            for piece in [1000, usize::MAX] {
                let (out, end, _) = talk(&words.0, piece);
                let too_big = refused(option, 9, "the option's data is too long");
                assert_eq!(out, [too_big, reply(8, 1, b"")].concat());
                assert!(matches!(end, Ok(Step::More)));
            }
        }
    }

    #[test]
    fn abort_is_acknowledged() {
        for data in [&b""[..], b"ignored"] {
            let (out, end, _) = talk(&Words::hello().option(2, data).0, usize::MAX);
            assert_eq!(out, reply(2, 1, b""));
            assert!(matches!(end, Ok(Step::Aborted)));
        }
    }

    #[test]
    fn export_name_answers_in_the_old_way() {
        for (hello, zeroes, name) in [(3, 0, "one"), (1, 124, ""), (0, 124, "one"), (2, 0, "one")] {
            let words = Words(u32::to_be_bytes(hello).to_vec()).option(1, name.as_bytes());
            let (out, end, _) = talk(&words.0, usize::MAX);
            assert_eq!(out, [SIZE, FLAGS, &vec![0; zeroes]].concat());
            assert!(matches!(end, Ok(Step::Agreed(_))));
        }
        for name in [b"three".to_vec(), vec![b'x'; 4097], b"\xff".to_vec(), vec![b'x'; 70_000]] {
            let (out, end, _) = talk(&Words::hello().option(1, &name).0, usize::MAX);
            assert!(out.is_empty());
            assert_eq!(end.err(), Some(Violation::UnknownExport));
        }
    }

    #[test]
    fn violations_end_the_session() {
        let error = |words: &[u8]| talk(words, usize::MAX).1.err();
        assert_eq!(error(b"\0\0\0\x04"), Some(Violation::ClientFlags(4)));
        assert_eq!(error(b"\x80\0\0\x03"), Some(Violation::ClientFlags(0x8000_0003)));
        let magic = u64::from_be_bytes(*b"IHAVEOPS");
        assert_eq!(error(b"\0\0\0\x03IHAVEOPS"), Some(Violation::OptionMagic(magic)));
        let words = Words(b"\0\0\0\x02".to_vec()).option(3, b"");
        assert_eq!(error(&words.0), Some(Violation::NotFixed(3)));
    }

    #[test]
    fn contexts_are_listed_and_selected() {
        let structured = || Words::hello().option(8, b"");
        let ack = |option| reply(option, 1, b"");
        let context = |option: u32| {
            let id: &[u8] = if option == 10 { b"\0\0\0\x01" } else { b"\0\0\0\0" };
            reply(option, 4, &[id, b"base:allocation"].concat())
        };
        let all = |option| vec![ack(8), context(option), ack(option)];
        let none = |option| vec![ack(8), ack(option)];
        expect(structured().option(9, &queries("one", &[])), &all(9));
        expect(structured().option(9, &queries("one", &["base:"])), &all(9));
        expect(structured().option(9, &queries("", &["x:", "base:allocation"])), &all(9));
        expect(structured().option(9, &queries("one", &["base:more", "qemu:x"])), &none(9));
        expect(structured().option(10, &queries("one", &[])), &none(10));
        expect(structured().option(10, &queries("one", &["base:"])), &none(10));
        expect(structured().option(10, &queries("one", &["x:y", "base:allocation"])), &all(10));
        let missing = refused(10, 6, "there is no such export");
        expect(structured().option(10, &queries("three", &[])), &[ack(8), missing]);
        for option in [9, 10] {
            let early = refused(option, 3, "structured replies have to be agreed on first");
            expect(Words::hello().option(option, &queries("one", &[])), &[early]);
        }
    }

    #[test]
    fn a_context_counts_for_its_export_until_the_next_selection() {
        let selected = |words: Words, name| {
            let (out, end, _) = talk(&words.option(7, &go(name, &[])).0, usize::MAX);
            let Ok(Step::Agreed(agreed)) = end else { panic!("agreed") };
            assert!(out.windows(2).any(|flags| flags == STRUCTURED_FLAGS));
            assert!(agreed.structured);
            agreed.extents
        };
        let context = queries("one", &["base:allocation"]);
        let words = Words::hello().option(8, b"").option(10, &context);
        assert!(selected(words.clone(), "one"));
        assert!(selected(words.clone(), ""));
        assert!(!selected(words.clone(), "two"));
        assert!(!selected(words.clone().option(10, &queries("one", &[])), "one"));
        assert!(!selected(words.clone().option(10, b"garbage"), "one"));
        assert!(selected(words.option(9, &queries("two", &[])), "one"));
    }

    #[test]
    fn words_may_come_in_any_pieces() {
        let words = Words::hello()
            .option(8, b"")
            .option(10, &queries("one", &["base:allocation"]))
            .option(99, &[1; 300])
            .option(6, &go("two", &[1, 2, 3]))
            .option(7, &go("one", &[3]));
        let (whole, _, _) = talk(&words.0, usize::MAX);
        for piece in 1..64 {
            let (out, end, left) = talk(&words.0, piece);
            assert!(matches!(end, Ok(Step::Agreed(_))));
            assert_eq!((out, left), (whole.clone(), 0), "pieces of {piece}");
        }
        for len in 0..words.0.len() {
            assert!(matches!(talk(&words.0[..len], 7).1, Ok(Step::More)), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn garbage_neither_panics_nor_asks_for_memory(
            option in 0u32..13,
            data in prop::collection::vec(any::<u8>(), 0..200),
            rest in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let mut words = Words::hello().option(8, b"").option(option, &data).0;
            words.extend_from_slice(&rest);
            let _ = talk(&words, 11);
            let _ = talk(&data, 3);
        }
    }
}

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

//! What is fuzzed: one function for each kind of bytes that come from others. Each takes any bytes, must not panic,
//! must end soon, and must not take more memory than the bytes are worth. Some hold more: what was read is written and
//! read again, a stream means the same however it is torn, a placement that was kept is the one found anew.
//!
//! Checksums, signatures and encryption would keep a fuzzer out, so the targets put them right where they can.

pub(crate) mod cephx;
pub(crate) mod classes;
mod crush;
pub(crate) mod frames;
pub(crate) mod handshake;
pub(crate) mod messages;
mod monmap;
pub(crate) mod osdmap;
pub(crate) mod wire;

use crate::memory;

/// A kind of bytes.
pub(crate) struct Target {
    /// Its name, and that of its folder in `fixtures/fuzz`.
    pub(crate) name: &'static str,
    run: fn(&[u8]),
    /// What it may allocate whatever the input is.
    spare: usize,
}

/// How many bytes may be allocated for each byte of input: an empty string takes 4 bytes on the wire and 24 in memory,
/// and a list that grows is there twice for a moment.
const PER_BYTE: usize = 48;

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    // What is sent back, and frames that are kept for the whole and for the torn stream.
    Target { name: "frames", run: frames::run, spare: 256 << 10 },
    Target { name: "handshake", run: handshake::run, spare: 256 << 10 },
    Target { name: "cephx", run: cephx::run, spare: 64 << 10 },
    Target { name: "monmap", run: monmap::run, spare: 16 << 10 },
    // The map that incrementals change, and how many OSDs there may be by their word without more said of each.
    Target { name: "osdmap", run: osdmap::run, spare: 20 << 20 },
    Target { name: "crush", run: crush::run, spare: 64 << 10 },
    Target { name: "messages", run: messages::run, spare: 64 << 10 },
    Target { name: "classes", run: classes::run, spare: 16 << 10 },
];

/// One that takes more than it may.
pub(crate) const WASTEFUL: Target =
    Target { name: "wasteful", run: |input| drop(vec![input.len(); 1000]), spare: 1000 };

impl Target {
    /// The target of this name.
    pub(crate) fn named(name: &str) -> &'static Self {
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("no target {name}"))
    }

    /// Runs it once; panics if it fails.
    pub(crate) fn check(&self, input: &[u8]) {
        let allowed = self.spare + PER_BYTE * input.len();
        let peak = memory::peak(|| (self.run)(input));
        assert!(peak <= allowed, "{}: {peak} bytes for an input of {}", self.name, input.len());
    }
}

/// Takes pieces off the front of an input; what is not there is empty or 0.
struct Pieces<'a>(&'a [u8]);

impl<'a> Pieces<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A piece with its length, 16 bits, before it.
    fn piece(&mut self) -> &'a [u8] {
        let len = [self.byte(), self.byte()];
        self.bytes(u16::from_le_bytes(len).into())
    }
}

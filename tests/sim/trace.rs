//! What happens, in order: a hash by which two runs can be compared, and lines for whoever wants to read them.

use std::fmt;

use crate::world::Millis;

/// The events of one simulation.
#[derive(Default)]
pub(crate) struct Trace {
    hash: u64,
    line: String,
    prints: bool,
}

impl Trace {
    /// A trace that is also printed, if that is wanted.
    pub(crate) fn new(prints: bool) -> Self {
        Self { prints, ..Self::default() }
    }

    pub(crate) fn note(&mut self, now: Millis, what: fmt::Arguments<'_>) {
        self.line.clear();
        let _ = fmt::Write::write_fmt(&mut self.line, format_args!("{now:>7} {what}"));
        if self.prints {
            eprintln!("{}", self.line);
        }
        // FNV-1a.
        for byte in self.line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

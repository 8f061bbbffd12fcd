//! The bytes of one object: a sparse map from offsets to buffers. What is in no buffer is a hole and reads as zeros.
//!
//! Buffers are shared, never copied: a read hands out slices of them, and a snapshot of an object shares them all.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Writes are stored in buffers of at most this many bytes, so that a small rest that survives an overwrite
/// never keeps a large buffer alive.
const BUFFER_BYTES: usize = 1 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A sparse run of bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents {
    /// Never empty buffers, never overlapping.
    map: BTreeMap<u64, Bytes>,
}

impl Extents {
    /// Writes a copy of `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut at = offset;
        for piece in data.chunks(BUFFER_BYTES) {
            let len = piece.len() as u64;
            match self.map.get_mut(&at) {
                // The commonest write replaces exactly one buffer.
                Some(buffer) if buffer.len() as u64 == len => {
                    *buffer = Bytes::copy_from_slice(piece);
                }
                _ => {
                    self.punch(at, len);
                    self.map.insert(at, Bytes::copy_from_slice(piece));
                }
            }
            at += len;
        }
    }

    /// Makes a hole.
    pub fn punch(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let end = offset.saturating_add(len);
        // A buffer that starts before the hole may reach into it, or beyond it.
        if let Some((&start, buffer)) = self.map.range_mut(..offset).next_back() {
            let buffer_end = start + buffer.len() as u64;
            if buffer_end > offset {
                let tail = (buffer_end > end).then(|| buffer.slice((end - start) as usize..));
                buffer.truncate((offset - start) as usize);
                if let Some(tail) = tail {
                    self.map.insert(end, tail);
                    return;
                }
            }
        }
        while let Some((&start, buffer)) = self.map.range(offset..end).next() {
            let buffer_end = start + buffer.len() as u64;
            let tail = (buffer_end > end).then(|| buffer.slice((end - start) as usize..));
            self.map.remove(&start);
            if let Some(tail) = tail {
                self.map.insert(end, tail);
            }
        }
    }

    /// Forgets everything from `size` on.
    pub fn truncate(&mut self, size: u64) {
        self.punch(size, u64::MAX - size);
    }

    /// Hands over the bytes from `offset` on, piece by piece; holes as zeros.
    pub fn read(&self, offset: u64, len: u64, mut piece: impl FnMut(Bytes)) {
        let end = offset.saturating_add(len);
        let mut at = offset;
        self.each(offset, len, |start, bytes| {
            zeros(start - at, &mut piece);
            at = start + bytes.len() as u64;
            piece(bytes);
        });
        zeros(end - at, &mut piece);
    }

    /// Hands over what is not a hole, in order, with its offset.
    pub fn each(&self, offset: u64, len: u64, mut piece: impl FnMut(u64, Bytes)) {
        let end = offset.saturating_add(len);
        let first = self.map.range(..=offset).next_back().map_or(offset, |(&start, _)| start);
        for (&start, buffer) in self.map.range(first..end) {
            let from = offset.max(start);
            let to = end.min(start + buffer.len() as u64);
            if from < to {
                piece(from, buffer.slice((from - start) as usize..(to - start) as usize));
            }
        }
    }

    /// Where data is, as offsets and lengths; neighbours are joined.
    pub fn allocated(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let mut found: Vec<(u64, u64)> = Vec::new();
        self.each(offset, len, |start, bytes| {
            let len = bytes.len() as u64;
            match found.last_mut() {
                Some(last) if last.0 + last.1 == start => last.1 += len,
                _ => found.push((start, len)),
            }
        });
        found
    }

    /// How many bytes are not holes.
    pub fn bytes(&self) -> u64 {
        self.map.values().map(|buffer| buffer.len() as u64).sum()
    }

    /// Whether there is nothing but holes.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

fn zeros(mut len: u64, piece: &mut impl FnMut(Bytes)) {
    while len > 0 {
        let part = len.min(ZEROS.len() as u64);
        piece(Bytes::from_static(&ZEROS[..part as usize]));
        len -= part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(extents: &Extents, offset: u64, len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        extents.read(offset, len, |piece| out.extend_from_slice(&piece));
        out
    }

    #[test]
    fn a_hole_in_the_middle_leaves_both_ends() {
        let mut extents = Extents::default();
        extents.write(10, &[7; 30]);
        extents.punch(20, 10);
        assert_eq!(extents.allocated(0, 100), vec![(10, 10), (30, 10)]);
        assert_eq!(read(&extents, 18, 14), [7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        Punch(u64, u64),
        Truncate(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..200u64, proptest::collection::vec(1..=255u8, 1..60))
                .prop_map(|(offset, data)| Step::Write(offset, data)),
            (0..200u64, 0..60u64).prop_map(|(offset, len)| Step::Punch(offset, len)),
            (0..250u64).prop_map(Step::Truncate),
        ]
    }

    proptest! {
        /// Against a plain array in which 0 stands for a hole.
        #[test]
        fn behaves_like_an_array(
            steps in proptest::collection::vec(step(), 0..40),
            offset in 0..260u64,
            len in 0..100u64,
        ) {
            let mut extents = Extents::default();
            let mut model = vec![0u8; 400];
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        model[offset as usize..][..data.len()].copy_from_slice(&data);
                        extents.write(offset, &data);
                    }
                    Step::Punch(offset, len) => {
                        model[offset as usize..][..len as usize].fill(0);
                        extents.punch(offset, len);
                    }
                    Step::Truncate(size) => {
                        model[size as usize..].fill(0);
                        extents.truncate(size);
                    }
                }
            }
            prop_assert_eq!(read(&extents, offset, len), &model[offset as usize..][..len as usize]);
            let held = model.iter().filter(|byte| **byte != 0).count() as u64;
            prop_assert_eq!(extents.bytes(), held);
            for (start, len) in extents.allocated(offset, len) {
                prop_assert!(model[start as usize..][..len as usize].iter().all(|byte| *byte != 0));
            }
        }
    }
}

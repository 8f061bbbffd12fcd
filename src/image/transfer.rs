//! Whole images, from their beginning to their end: read ahead and written behind by a bounded number of requests.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Completion, Image, Io, Outcome, Queue, Segment};
use crate::error::{Error, Kind, Result};

/// How much one request reads or writes, in bytes.
pub const CHUNK: u64 = 4 << 20;

/// How much one request zeroes, in bytes: it becomes a request for each object.
const ZEROS: u64 = 256 << 20;

/// Reads an image in order.
#[derive(Debug)]
pub struct Reader {
    queue: Queue,
    window: u64,
    /// What is still to be asked for: begin and end.
    ranges: VecDeque<(u64, u64)>,
    /// What was asked for, by where it begins.
    asked: VecDeque<u64>,
    /// What came out of order, by where it begins.
    ready: BTreeMap<u64, Vec<Segment>>,
    done: Vec<Completion>,
}

impl Reader {
    /// Reads the image as it is opened, as long as it is now.
    pub fn new(image: &Image) -> Self {
        Self::of(image, [(0, image.size())])
    }

    /// Reads these parts of it, each given by offset and length, in this order. They must not overlap.
    pub fn of(image: &Image, parts: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let ranges = parts.into_iter().filter(|(_, length)| *length > 0);
        Self {
            queue: image.queue(),
            window: window(image),
            ranges: ranges.map(|(offset, length)| (offset, offset + length)).collect(),
            asked: VecDeque::new(),
            ready: BTreeMap::new(),
            done: Vec::new(),
        }
    }

    /// What is next: where it begins, and its content. Nothing at the end.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// What keeps it from being read.
    pub async fn next(&mut self) -> Result<Option<(u64, Vec<Segment>)>> {
        loop {
            self.ask();
            let Some(first) = self.asked.front() else { return Ok(None) };
            if let Some(segments) = self.ready.remove(first) {
                return Ok(self.asked.pop_front().map(|at| (at, segments)));
            }
            self.queue.kick();
            poll_fn(|cx| self.queue.poll_completions(cx, &mut self.done)).await;
            for done in self.done.drain(..) {
                self.ready.insert(done.token, content(done.result?)?);
            }
        }
    }

    /// Asks for as much as may be under way.
    fn ask(&mut self) {
        while (self.asked.len() as u64) < self.window {
            let Some((begin, end)) = self.ranges.front_mut() else { return };
            let (offset, length) = (*begin, CHUNK.min(*end - *begin));
            *begin += length;
            if begin == end {
                self.ranges.pop_front();
            }
            self.queue.submit(offset, Io::Read { offset, length });
            self.asked.push_back(offset);
        }
    }
}

/// Writes to an image.
#[derive(Debug)]
pub struct Writer {
    queue: Queue,
    window: u64,
    in_flight: u64,
    done: Vec<Completion>,
}

impl Writer {
    /// Writes to an image that is open for writing.
    pub fn new(image: &Image) -> Self {
        Self { queue: image.queue(), window: window(image), in_flight: 0, done: Vec::new() }
    }

    /// Writes what is in the journal already, before anybody else may write.
    pub(super) fn replaying(image: &Image) -> Self {
        let queue = Queue::replaying(image);
        Self { queue, window: window(image), in_flight: 0, done: Vec::new() }
    }

    /// Writes, once fewer than enough writes are under way.
    ///
    /// # Errors
    /// What keeps this or an earlier one from being written.
    pub async fn write(&mut self, offset: u64, data: Bytes) -> Result<()> {
        self.change(offset, Io::Write { offset, data }).await
    }

    /// The same with zeros, which take no space where that is possible.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub async fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.saturating_add(length);
        let mut offset = offset;
        while offset < end {
            let length = ZEROS.min(end - offset);
            self.change(offset, Io::WriteZeroes { offset, length, may_free: true }).await?;
            offset += length;
        }
        Ok(())
    }

    /// Gives space back, in whole grains of so many bytes; of none, what is left of a grain is zeroed.
    pub(super) async fn discard(&mut self, offset: u64, length: u64, grain: u64) -> Result<()> {
        if grain == 0 {
            return self.zero(offset, length).await;
        }
        self.queue.set_granularity(grain);
        // In pieces that end where objects do.
        let (mut offset, end) = (offset, offset.saturating_add(length));
        while offset < end {
            let length = (ZEROS - offset % ZEROS).min(end - offset);
            self.change(offset, Io::Discard { offset, length }).await?;
            offset += length;
        }
        Ok(())
    }

    /// Reads what was written before.
    pub(super) async fn read(&mut self, offset: u64, length: u64) -> Result<Bytes> {
        self.finish().await?;
        self.queue.submit(offset, Io::Read { offset, length });
        self.queue.kick();
        poll_fn(|cx| self.queue.poll_completions(cx, &mut self.done)).await;
        let read = self.done.drain(..).next();
        let nothing = || Err(Error::new(Kind::Closed, "nothing was read"));
        let read = read.map_or_else(nothing, |done| done.result)?;
        let mut bytes = BytesMut::new();
        for segment in content(read)? {
            match segment {
                Segment::Data(data) => bytes.extend_from_slice(&data),
                Segment::Hole(length) => bytes.put_bytes(0, length as usize),
            }
        }
        Ok(bytes.freeze())
    }

    pub(super) async fn change(&mut self, offset: u64, io: Io) -> Result<()> {
        while self.in_flight >= self.window {
            self.complete().await?;
        }
        self.queue.submit(offset, io);
        self.queue.kick();
        self.in_flight += 1;
        Ok(())
    }

    /// Returns when everything is on stable storage.
    ///
    /// # Errors
    /// What keeps it from being written.
    pub async fn finish(&mut self) -> Result<()> {
        while self.in_flight > 0 {
            self.complete().await?;
        }
        Ok(())
    }

    async fn complete(&mut self) -> Result<()> {
        poll_fn(|cx| self.queue.poll_completions(cx, &mut self.done)).await;
        self.in_flight -= self.done.len() as u64;
        self.done.drain(..).try_for_each(|done| done.result.map(drop))
    }
}

fn content(read: Outcome) -> Result<Vec<Segment>> {
    match read {
        Outcome::ReadWhole(data) => Ok(vec![Segment::Data(data)]),
        Outcome::Read(segments) => Ok(segments),
        _ => Err(Error::new(Kind::Corrupt, "a read without content")),
    }
}

fn window(image: &Image) -> u64 {
    image.cluster().config().rbd.concurrent_management_ops
}

/// The parts of `data` that are not zeros, as long as they can be in whole blocks: where each begins, and its content.
pub fn nonzero(data: &Bytes, block: usize) -> Vec<(u64, Bytes)> {
    let block = block.max(1);
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for (i, piece) in data.chunks(block).enumerate() {
        if piece.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (begin, end) = (i * block, i * block + piece.len());
        match parts.last_mut() {
            Some((_, last)) if *last == begin => *last = end,
            _ => parts.push((begin, end)),
        }
    }
    parts.into_iter().map(|(begin, end)| (begin as u64, data.slice(begin..end))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_in_whole_blocks() {
        let data = Bytes::from_static(b"ab\0\0\0\0\0c\0\0d");
        let parts: Vec<_> = nonzero(&data, 2);
        assert_eq!(
            parts,
            [
                (0, Bytes::from_static(b"ab")),
                (6, Bytes::from_static(b"\0c")),
                (10, Bytes::from_static(b"d"))
            ]
        );
        assert!(nonzero(&Bytes::from_static(&[0; 9]), 4).is_empty());
        assert!(nonzero(&Bytes::new(), 4).is_empty());
        // No block is shorter than a byte.
        assert_eq!(nonzero(&data, 0), nonzero(&data, 1));
    }
}

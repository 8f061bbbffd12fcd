//! Reading a journal in the order in which it was written, and doing what it says.
//!
//! Each place of the set has objects of its own, one after the other; the entries of a tag go through the places by
//! turns. What was not appended when its writer died leaves a gap, and nothing behind that was done.

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};
use proto::denc::decode;
use proto::rbd::cls::{CommitPosition, ObjectPosition};
use proto::rbd::journal::{Entry, Event, EventEntry};

use super::{Place, advance};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::image::io::Io;
use crate::image::transfer::Writer;

/// How much of an object is read at a time, in bytes.
const FETCH: u64 = 1 << 20;

/// How much of the same bytes is written at a time, in bytes.
const REPEATED: usize = 1 << 20;

/// What is left to be read of a journal.
pub(super) struct Player<'a> {
    place: &'a Place,
    /// The last entry that is done, or was read: its tag and number.
    last: Option<(u64, u64)>,
    /// One for each place of the set.
    turns: Vec<Turn>,
    /// The last set of objects.
    active_set: u64,
    /// How many entries were behind a gap.
    skipped: u64,
}

/// What is left of the objects of one place.
struct Turn {
    object: u64,
    /// How far that has been read, in bytes.
    offset: u64,
    /// What of it was not yet taken for an entry.
    bytes: Bytes,
    next: Option<Entry>,
    /// The last entry in it that is done: tag and number.
    done: Option<(u64, u64)>,
}

impl<'a> Player<'a> {
    pub(super) fn new(
        place: &'a Place,
        position: &CommitPosition,
        minimum_set: u64,
        active_set: u64,
    ) -> Self {
        let turns = (0..place.width).map(|turn| {
            let done = position.objects.iter().find(|done| done.object % place.width == turn);
            let object = done.map_or(minimum_set * place.width + turn, |done| done.object);
            let done = done.map(|done| (done.tag, done.entry));
            Turn { object, offset: 0, bytes: Bytes::new(), next: None, done }
        });
        let last = position.objects.first().map(|done| (done.tag, done.entry));
        Self { place, last, turns: turns.collect(), active_set, skipped: 0 }
    }

    /// Does all that is not done, and notes that. How many entries there were.
    ///
    /// # Errors
    /// [`Kind::Corrupt`]; whatever keeps the journal from being read, or the image from being written.
    pub(super) async fn replay(
        &mut self,
        image: &Image,
        position: &mut CommitPosition,
    ) -> Result<u64> {
        let mut writer = Writer::replaying(image);
        let (mut replayed, mut operations) = (0, 0);
        for turn in 0..self.turns.len() {
            self.seek(turn).await?;
        }
        while let Some((object, entry)) = self.next().await? {
            let EventEntry { event, .. } =
                decode(&entry.event, "journal event").context(self.place.object(object))?;
            operations += u64::from(matches!(event, Event::Begin { .. }));
            apply(&mut writer, event, image).await.context("replaying the journal")?;
            let done = ObjectPosition { object, tag: entry.tag, entry: entry.number };
            advance(position, done, self.place.width);
            replayed += 1;
        }
        writer.finish().await.context("replaying the journal")?;
        let skipped = self.skipped;
        if skipped > 0 || operations > 0 {
            let image = image.spec();
            tracing::warn!(image, skipped, operations, "of the journal, not all was done again");
        }
        Ok(replayed)
    }

    /// Goes on behind what is done of a place. That is where it stands, whatever its number: those of tags that `rbd
    /// journal import` has appended are another image's.
    async fn seek(&mut self, turn: usize) -> Result<()> {
        let place = self.place;
        let turn = &mut self.turns[turn];
        let Some(done) = turn.done else { return Ok(()) };
        loop {
            while let Some(entry) = turn.entry(place)? {
                if (entry.tag, entry.number) == done {
                    return Ok(());
                }
            }
            if !turn.fetch(place).await? {
                // It is not there any more: by their numbers, then.
                (turn.offset, turn.bytes) = (0, Bytes::new());
                return Ok(());
            }
        }
    }

    /// The next entry, and which object it is in.
    async fn next(&mut self) -> Result<Option<(u64, Entry)>> {
        if let Some((tag, number)) = self.last
            && let Some(found) = self.take(tag, number.saturating_add(1)).await?
        {
            return Ok(Some(found));
        }
        // What is left of that tag is behind a gap.
        let (mut tags, last) = (BTreeSet::new(), self.last);
        for turn in 0..self.turns.len() {
            while let Some(entry) = self.peek(turn).await? {
                if last.is_none_or(|(tag, _)| entry.tag > tag) {
                    tags.insert(entry.tag);
                    break;
                }
                let is_behind = last.is_some_and(|last| (entry.tag, entry.number) > last);
                self.skipped += u64::from(is_behind);
                self.turns[turn].next = None;
            }
        }
        for tag in tags {
            if let Some(found) = self.take(tag, 0).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Takes this entry, if it is there.
    async fn take(&mut self, tag: u64, number: u64) -> Result<Option<(u64, Entry)>> {
        let turn = (number % self.place.width) as usize;
        let last = self.last;
        while let Some(entry) = self.peek(turn).await? {
            let at = (entry.tag, entry.number);
            if last.is_some_and(|last| at <= last) || at < (tag, number) {
                self.turns[turn].next = None;
                continue;
            }
            if at != (tag, number) {
                return Ok(None);
            }
            self.last = Some(at);
            let turn = &mut self.turns[turn];
            return Ok(turn.next.take().map(|entry| (turn.object, entry)));
        }
        Ok(None)
    }

    /// The next entry of a place.
    async fn peek(&mut self, turn: usize) -> Result<Option<&Entry>> {
        let (place, active_set) = (self.place, self.active_set);
        let turn = &mut self.turns[turn];
        while turn.next.is_none() {
            turn.next = turn.entry(place)?;
            if turn.next.is_none() && !turn.fetch(place).await? {
                if turn.object / place.width >= active_set {
                    return Ok(None);
                }
                (turn.object, turn.offset) = (turn.object + place.width, 0);
            }
        }
        Ok(turn.next.as_ref())
    }
}

impl Turn {
    /// Takes the next entry off what was read.
    fn entry(&mut self, place: &Place) -> Result<Option<Entry>> {
        Entry::take(&mut self.bytes).map_err(|error| {
            Error::new(Kind::Corrupt, format!("{}: {error}", place.object(self.object)))
                .with_hint("`rbd journal reset` forgets what is in it")
        })
    }

    /// Reads on; false at the end of the object.
    async fn fetch(&mut self, place: &Place) -> Result<bool> {
        let name = place.object(self.object);
        let fetched = match place.objects.read(&name, self.offset, FETCH).await {
            Err(error) if error.kind() == Kind::NotFound => Bytes::new(),
            fetched => fetched?,
        };
        if fetched.is_empty() {
            return match self.bytes.is_empty() {
                true => Ok(false),
                false => Err(Error::new(Kind::Corrupt, format!("{name} ends within an entry"))),
            };
        }
        self.offset += fetched.len() as u64;
        let mut bytes = BytesMut::from(&self.bytes[..]);
        bytes.put(fetched);
        self.bytes = bytes.freeze();
        Ok(true)
    }
}

/// Does what an event says to the image, as far as that still reaches. Operations are not done: what was done before
/// one began is not replayed, and one that was not finished failed for whoever wanted it.
async fn apply(writer: &mut Writer, event: Event, image: &Image) -> Result<()> {
    let size = image.size();
    let within = |offset: u64, length: u64| length.min(size.saturating_sub(offset));
    match event {
        Event::Write { offset, mut data } => {
            data.truncate(within(offset, data.len() as u64) as usize);
            match data.is_empty() {
                true => Ok(()),
                false => writer.write(offset, data).await,
            }
        }
        Event::Discard { offset, length, granularity } => match within(offset, length) {
            0 => Ok(()),
            length => writer.discard(offset, length, granularity.into()).await,
        },
        Event::WriteSame { offset, length, data } if data.is_empty() => {
            let what = format!("{length} bytes at {offset} of nothing");
            Err(Error::new(Kind::Corrupt, what))
        }
        Event::WriteSame { offset, length, data } => {
            let (mut at, end) = (offset, offset + within(offset, length));
            if at == end {
                return Ok(());
            }
            if data.iter().all(|byte| *byte == 0) {
                let io = Io::WriteZeroes { offset, length: end - at, may_free: false };
                return writer.change(offset, io).await;
            }
            let mut repeated = BytesMut::from(&data[..]);
            while repeated.len() + data.len() <= REPEATED && (repeated.len() as u64) < end - at {
                repeated.extend_from_slice(&data);
            }
            let repeated = repeated.freeze();
            while at < end {
                let length = (end - at).min(repeated.len() as u64);
                writer.write(at, repeated.slice(..length as usize)).await?;
                at += length;
            }
            Ok(())
        }
        Event::CompareAndWrite { offset, compare, data } => {
            if offset.checked_add(data.len() as u64).is_none_or(|end| end > size) {
                return Ok(());
            }
            match writer.read(offset, compare.len() as u64).await? == compare {
                true => writer.write(offset, data).await,
                false => Ok(()),
            }
        }
        Event::Flush | Event::Begin { .. } | Event::Finish { .. } | Event::Other(_) => Ok(()),
    }
}

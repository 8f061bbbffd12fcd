//! A sparse device in memory: for tests and benches, and the smallest complete example of a [`Device`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::device::{
    Allocation, Completion, Device, Errno, Extent, Geometry, Op, Outcome, Queue, ReadData, Request,
    Segment,
};

/// The unit of allocation, in bytes.
const PAGE: u64 = 64 << 10;

/// A device whose bytes live in memory and are allocated as they are written. Nothing is durable, of course.
#[derive(Clone)]
pub struct MemoryDevice {
    geometry: Geometry,
    pages: Arc<Mutex<Pages>>,
}

impl MemoryDevice {
    /// A device that reads as zeros.
    pub fn new(geometry: Geometry) -> Self {
        Self { geometry, pages: Arc::default() }
    }

    /// How much memory is allocated for content, in bytes.
    pub fn allocated(&self) -> u64 {
        lock(&self.pages).0.len() as u64 * PAGE
    }
}

impl Device for MemoryDevice {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn queue(&self) -> Box<dyn Queue> {
        Box::new(MemoryQueue {
            geometry: self.geometry,
            pages: self.pages.clone(),
            submitted: Vec::new(),
            done: Vec::new(),
            waiting: None,
        })
    }
}

struct MemoryQueue {
    geometry: Geometry,
    pages: Arc<Mutex<Pages>>,
    submitted: Vec<Request>,
    done: Vec<Completion>,
    waiting: Option<Waker>,
}

impl Queue for MemoryQueue {
    fn submit(&mut self, request: Request) {
        self.submitted.push(request);
    }

    fn kick(&mut self) {
        let mut pages = lock(&self.pages);
        for Request { token, op } in self.submitted.drain(..) {
            self.done.push(Completion { token, result: pages.execute(&self.geometry, op) });
        }
        drop(pages);
        if !self.done.is_empty()
            && let Some(waker) = self.waiting.take()
        {
            waker.wake();
        }
    }

    fn poll_completions(&mut self, cx: &mut Context<'_>, out: &mut Vec<Completion>) -> Poll<()> {
        if self.done.is_empty() {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        out.append(&mut self.done);
        Poll::Ready(())
    }
}

/// A panic while the lock was held cannot have left a page half there: pages are changed in place, byte by byte.
fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pages that are there, by number.
#[derive(Default)]
struct Pages(BTreeMap<u64, Box<[u8]>>);

impl Pages {
    fn execute(&mut self, geometry: &Geometry, op: Op) -> Result<Outcome, Errno> {
        let (offset, len) = match &op {
            Op::Write { offset, data, .. } => (*offset, data.len() as u64),
            Op::Read { offset, len }
            | Op::Discard { offset, len, .. }
            | Op::WriteZeroes { offset, len, .. }
            | Op::Extents { offset, len }
            | Op::Prefetch { offset, len } => (*offset, u64::from(*len)),
            Op::Flush => (0, 0),
        };
        if offset.checked_add(len).is_none_or(|end| end > geometry.size) {
            return Err(Errno::EINVAL);
        }
        match op {
            Op::Read { .. } => return Ok(Outcome::Read(self.read(offset, len))),
            Op::Extents { .. } => return Ok(Outcome::Extents(self.extents(offset, len))),
            Op::Write { data, .. } => self.write(offset, &data),
            Op::Discard { .. } => self.discard(offset, len),
            Op::WriteZeroes { may_discard: true, .. } => self.zero(offset, len),
            // Allocating pages and filling them is what a write does: not faster.
            Op::WriteZeroes { fast: true, .. } => return Err(Errno::ENOTSUP),
            Op::WriteZeroes { .. } => self.write_zeroes(offset, len),
            Op::Flush | Op::Prefetch { .. } => {}
        }
        Ok(Outcome::Done)
    }

    fn read(&self, offset: u64, len: u64) -> ReadData {
        let mut segments = Vec::new();
        for part in Parts::new(offset, len) {
            segments.push(match self.0.get(&part.page) {
                Some(page) => Segment::Data(Bytes::copy_from_slice(&page[part.start..part.end])),
                None => Segment::Hole((part.end - part.start) as u32),
            });
        }
        match segments.as_mut_slice() {
            [Segment::Data(data)] => ReadData::Whole(std::mem::take(data)),
            _ => ReadData::Segments(segments),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut rest = data;
        for part in Parts::new(offset, data.len() as u64) {
            let (head, tail) = rest.split_at(part.end - part.start);
            self.page(part.page)[part.start..part.end].copy_from_slice(head);
            rest = tail;
        }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64) {
        for part in Parts::new(offset, len) {
            self.page(part.page)[part.start..part.end].fill(0);
        }
    }

    /// Frees whole pages, and clears what is there of others.
    fn zero(&mut self, offset: u64, len: u64) {
        for part in Parts::new(offset, len) {
            if part.is_whole() {
                self.0.remove(&part.page);
            } else if let Some(page) = self.0.get_mut(&part.page) {
                page[part.start..part.end].fill(0);
            }
        }
    }

    fn discard(&mut self, offset: u64, len: u64) {
        for part in Parts::new(offset, len) {
            if part.is_whole() {
                self.0.remove(&part.page);
            }
        }
    }

    fn extents(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for part in Parts::new(offset, len) {
            let len = (part.end - part.start) as u64;
            let state = match self.0.contains_key(&part.page) {
                true => Allocation::Data,
                false => Allocation::Hole,
            };
            match extents.last_mut() {
                Some(last) if last.state == state => last.len += len,
                _ => extents.push(Extent { len, state }),
            }
        }
        extents
    }

    fn page(&mut self, page: u64) -> &mut [u8] {
        self.0.entry(page).or_insert_with(|| vec![0; PAGE as usize].into())
    }
}

/// The part of a range that lies on one page.
struct Part {
    page: u64,
    start: usize,
    end: usize,
}

impl Part {
    fn is_whole(&self) -> bool {
        self.start == 0 && self.end == PAGE as usize
    }
}

/// Cuts a range of the device into parts of pages.
struct Parts {
    offset: u64,
    end: u64,
}

impl Parts {
    fn new(offset: u64, len: u64) -> Self {
        Self { offset, end: offset + len }
    }
}

impl Iterator for Parts {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        if self.offset >= self.end {
            return None;
        }
        let page = self.offset / PAGE;
        let start = self.offset % PAGE;
        let len = (PAGE - start).min(self.end - self.offset);
        self.offset += len;
        Some(Part { page, start: start as usize, end: (start + len) as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(device: &MemoryDevice, op: Op) -> Result<Outcome, Errno> {
        let mut queue = device.queue();
        queue.submit(Request { token: 7, op });
        queue.kick();
        let mut out = Vec::new();
        let poll = queue.poll_completions(&mut Context::from_waker(Waker::noop()), &mut out);
        assert!(poll.is_ready());
        assert_eq!(out.len(), 1);
        assert_eq!(out[0].token, 7);
        out.remove(0).result
    }

    #[test]
    fn reads_what_was_written_across_pages_and_holes_elsewhere() {
        let device = MemoryDevice::new(Geometry::new(1 << 20));
        let data = Bytes::from(vec![0xab; 100]);
        run(&device, Op::Write { offset: PAGE - 40, data, durable: false }).unwrap();
        assert_eq!(device.allocated(), 2 * PAGE);
        let Ok(Outcome::Read(data)) = run(&device, Op::Read { offset: 0, len: 4 * PAGE as u32 })
        else {
            panic!("a read gives data");
        };
        assert_eq!(data.len(), 4 * PAGE);
        let ReadData::Segments(segments) = data else { panic!("several pages") };
        let Segment::Data(first) = &segments[0] else { panic!("allocated") };
        assert_eq!(first[PAGE as usize - 41], 0);
        assert_eq!(first[PAGE as usize - 40], 0xab);
        assert_eq!(segments[3], Segment::Hole(PAGE as u32));
    }

    #[test]
    fn zeroing_frees_whole_pages_only_when_it_may() {
        let device = MemoryDevice::new(Geometry::new(1 << 20));
        let zero = |may_discard, fast| {
            let (offset, len, durable) = (0, PAGE as u32 + 1, false);
            run(&device, Op::WriteZeroes { offset, len, may_discard, durable, fast })
        };
        let data = Bytes::from(vec![1; 2 * PAGE as usize]);
        run(&device, Op::Write { offset: 0, data, durable: false }).unwrap();
        assert_eq!(zero(false, true), Err(Errno::ENOTSUP));
        zero(false, false).unwrap();
        assert_eq!(device.allocated(), 2 * PAGE);
        zero(true, true).unwrap();
        assert_eq!(device.allocated(), PAGE);
        let extents = run(&device, Op::Extents { offset: 10, len: 2 * PAGE as u32 });
        assert_eq!(
            extents,
            Ok(Outcome::Extents(vec![
                Extent { len: PAGE - 10, state: Allocation::Hole },
                Extent { len: PAGE, state: Allocation::Data },
                Extent { len: 10, state: Allocation::Hole },
            ]))
        );
        let after = run(&device, Op::Read { offset: PAGE, len: 2 });
        assert_eq!(after, Ok(Bytes::from_static(&[0, 1]).into()));
    }

    #[test]
    fn leaving_the_device_is_refused() {
        let device = MemoryDevice::new(Geometry::new(1 << 20));
        assert_eq!(run(&device, Op::Read { offset: 1 << 20, len: 1 }), Err(Errno::EINVAL));
        assert_eq!(run(&device, Op::Read { offset: u64::MAX, len: 2 }), Err(Errno::EINVAL));
    }

    #[test]
    fn a_waiting_task_is_woken_by_a_completion() {
        struct Woken(std::sync::atomic::AtomicBool);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(false.into()));
        let mut queue = MemoryDevice::new(Geometry::new(4096)).queue();
        let waker = Waker::from(woken.clone());
        let mut out = Vec::new();
        assert!(queue.poll_completions(&mut Context::from_waker(&waker), &mut out).is_pending());
        queue.submit(Request { token: 1, op: Op::Flush });
        queue.kick();
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
    }
}

//! The way to the driver: commands go in by an io_uring, and what it asks for is in memory that it shares with us.
//! `unsafe` for both is here and nowhere else.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use io_uring::opcode::UringCmd80;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, types};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::pread;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::io::unix::AsyncFd;

use super::wire::{DEPTH, Descriptor};
use crate::limits;

/// How long the kernel is left alone that is short of memory.
const PAUSE: Duration = Duration::from_millis(1);

/// An io_uring for commands to the driver.
pub(super) struct Ring {
    uring: IoUring<Entry128>,
}

impl Ring {
    /// One for the thread that makes it, which is only told of what is done when it asks: nothing interrupts it, and
    /// [`enter`](Ring::enter) does all that there is to do.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)?;
        Ok(Self { uring })
    }

    /// What wakes a task of the runtime it is made in when there is something for [`enter`](Ring::enter) to do, as long
    /// as the ring [rings](Ring::ring_bell). (To poll the ring itself is of no use: it does not tell of work that is
    /// deferred.)
    pub(super) fn bell(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.uring.submitter().register_eventfd(bell.as_raw_fd())?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        #[expect(unsafe_code, reason = "tokio cannot know that of just any type")]
        unsafe { AsyncFd::register(bell) }.map_err(io::Error::from)
    }

    /// Whether the bell is rung from now on. What was there before is not told of.
    pub(super) fn ring_bell(&mut self, rings: bool) {
        // Elsewhere the kernel may look whether to ring it before others see what there is: it always rings.
        if !cfg!(target_arch = "x86_64") {
            return;
        }
        let completions = self.uring.completion();
        match rings {
            true => completions.enable_eventfd(),
            false => completions.disable_eventfd(),
        }
        // The kernel first notes that there is something, then looks at this.
        fence(Ordering::SeqCst);
    }

    /// Has a command sent with the next [`enter`](Ring::enter). `false` if there is no room for it before that.
    ///
    /// What `command` has the address of must be there until its completion.
    pub(super) fn push(&mut self, file: &File, opcode: u32, command: &[u8], tag: u64) -> bool {
        let mut bytes = [0; 80];
        for (byte, value) in bytes.iter_mut().zip(command) {
            *byte = *value;
        }
        let entry = UringCmd80::new(types::Fd(file.as_raw_fd()), opcode).cmd(bytes).build();
        // SAFETY: the command itself is copied into the entry. The one kind of command that has an address in it (to
        // `/dev/ublk-control`) is sent and waited for by `Control::ask`, which holds the buffer meanwhile.
        #[expect(unsafe_code, reason = "io_uring takes addresses")]
        unsafe {
            self.uring.submission().push(&entry.user_data(tag)).is_ok()
        }
    }

    /// Whether there is something for [`enter`](Ring::enter) to do.
    pub(super) fn has_work(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Sends the commands, and takes in what the kernel has for us.
    pub(super) fn enter(&self) -> io::Result<()> {
        self.enter_and_wait(0)
    }

    /// The same, until so many commands are completed. What the kernel has no memory for at the moment (`EAGAIN`,
    /// `EBUSY`, `ENOMEM`) is tried again.
    pub(super) fn enter_and_wait(&self, wanted: usize) -> io::Result<()> {
        loop {
            match self.uring.submit_and_wait(wanted) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.raw_os_error(), Some(11 | 12 | 16)) => {
                    std::thread::sleep(PAUSE);
                }
                entered => return entered.map(drop),
            }
        }
    }

    /// Has the kernel keep the ring until the process ends, with the commands that wait in it.
    pub(super) fn outlive(&self) -> io::Result<()> {
        // SAFETY: a ring has an open descriptor for as long as it lives.
        #[expect(unsafe_code, reason = "the crate does not lend it")]
        let fd = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
        std::mem::forget(rustix::io::dup(fd)?);
        Ok(())
    }

    /// A command that is completed: its tag and its result.
    pub(super) fn completed(&mut self) -> Option<(u64, i32)> {
        self.uring.completion().next().map(|entry| (entry.user_data(), entry.result()))
    }
}

/// Reads `len` bytes of a file into memory that was not touched yet: of `spare`, which is replaced when it is used up.
pub(super) fn read_at(
    file: &File,
    spare: &mut BytesMut,
    len: usize,
    offset: u64,
) -> io::Result<Bytes> {
    // What is left of one that failed.
    spare.clear();
    if spare.capacity() < len && !spare.try_reclaim(len) {
        *spare = BytesMut::with_capacity(len.max(limits::WRITE_BUFFER_BYTES));
    }
    while spare.len() < len {
        let done = spare.len();
        let rest = spare.spare_capacity_mut().get_mut(..len - done);
        let rest = rest.ok_or(io::ErrorKind::OutOfMemory)?;
        let read = pread(file, rest, offset + done as u64)?.0.len();
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: these are the bytes that `pread` has filled.
        #[expect(unsafe_code, reason = "memory that was not touched yet")]
        unsafe {
            spare.set_len(done + read);
        }
    }
    Ok(spare.split_to(len).freeze())
}

/// What the kernel asks for, by tag: memory that it writes and we read.
pub(super) struct Descriptors {
    address: NonNull<u8>,
}

// SAFETY: it is memory of the process, of no thread's in particular, and is only read.
#[expect(unsafe_code, reason = "an address is not Send by itself")]
unsafe impl Send for Descriptors {}

impl Descriptors {
    /// In bytes; what the driver maps is whole pages.
    const BYTES: usize = (DEPTH as usize * Descriptor::BYTES).next_multiple_of(4096);

    pub(super) fn map(device: &File) -> io::Result<Self> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        #[expect(unsafe_code, reason = "mapping memory")]
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::POPULATE,
                device,
                0,
            )
        }?;
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address })
    }

    /// What is asked for under a tag whose command is completed.
    pub(super) fn get(&self, tag: u16) -> Descriptor {
        let tag = usize::from(tag % DEPTH);
        // SAFETY: the mapping has a descriptor for each tag below `DEPTH`, on an address that is a multiple of 8. The
        // kernel writes it before it completes the command, and not again before the next one is sent.
        #[expect(unsafe_code, reason = "memory shared with the kernel")]
        let [ops, sectors, low, high, ..] = unsafe {
            self.address.as_ptr().add(tag * Descriptor::BYTES).cast::<[u32; 6]>().read_volatile()
        };
        let start_sector = match cfg!(target_endian = "big") {
            true => u64::from(low) << 32 | u64::from(high),
            false => u64::from(high) << 32 | u64::from(low),
        };
        Descriptor { op_flags: ops, sectors, start_sector }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nobody has a reference into it.
        #[expect(unsafe_code, reason = "unmapping memory")]
        let _ = unsafe { munmap(self.address.as_ptr().cast(), Self::BYTES) };
    }
}

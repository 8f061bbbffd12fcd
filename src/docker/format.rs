//! Makes file systems on images, without a device: on a sparse file first, whose data are then written to the image.
//!
//! Nothing has to be mapped, a file system of any size costs its few megabytes of structure, and the superblock is
//! written last: an image has a file system, or it has none that anybody would take for one.

use std::fs::File;
use std::future::poll_fn;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::SeekFrom;

use super::files::{self, failed};
use super::options::FsType;
use super::probe::{self, Content, HEAD, TAIL};
use super::run::{must, run};
use crate::error::{Error, Kind, Result};
use crate::image::{Image, Io, Outcome, Queue, Segment};

/// How much is written at a time.
const CHUNK: u64 = 1 << 20;

/// What is left out if it is all zeros.
const BLOCK: u64 = 64 << 10;

/// Writes in flight.
const WINDOW: usize = 16;

/// Looks at what is on an image.
///
/// # Errors
/// Whatever keeps it from being read.
pub(crate) async fn look(image: &Image) -> Result<Content> {
    let size = image.size();
    let head = read(image, 0, HEAD.min(size)).await?;
    let tail = read(image, size.saturating_sub(TAIL), TAIL.min(size)).await?;
    Ok(probe::probe(&head, &tail))
}

/// Makes a file system on an image that has nothing but zeros, or the rest of an attempt that was cut short.
///
/// # Errors
/// What `mkfs` says; whatever keeps the image from being written.
pub(crate) async fn format(
    image: &Image,
    fstype: FsType,
    options: &str,
    scratch: &Path,
    limit: Duration,
) -> Result<()> {
    if look(image).await? != Content::Blank {
        wipe(image).await?;
    }
    files::make_folder(scratch)?;
    let file = Scratch::new(scratch.join(format!("{}.img", image.id())))?;
    file.1.set_len(image.size()).map_err(|error| failed(&file.0, error))?;
    mkfs(fstype, options, &file.0, limit).await?;
    copy(&file, image).await
}

/// A file that goes when nobody needs it any more.
struct Scratch(std::path::PathBuf, File);

impl Scratch {
    fn new(path: std::path::PathBuf) -> Result<Self> {
        let options =
            File::options().read(true).write(true).create(true).truncate(true).open(&path);
        options.map_err(|error| failed(&path, error)).map(|file| Self(path, file))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn mkfs(fstype: FsType, options: &str, file: &Path, limit: Duration) -> Result<()> {
    let program = format!("mkfs.{fstype}");
    let file = file.display().to_string();
    let mut words = vec![program.as_str()];
    match fstype {
        // A new image reads as zeros, so that neither mkfs nor later the kernel has to write them.
        FsType::Ext4 => {
            words.extend(["-q", "-F", "-E", "nodiscard,assume_storage_prezeroed=1"]);
        }
        FsType::Xfs => words.extend(["-q", "-f", "-K"]),
        FsType::Btrfs => words.extend(["-q", "-f", "-K"]),
    }
    let given = words.len();
    words.extend(options.split_ascii_whitespace());
    words.push(&file);
    let ran = run(&words, limit).await?;
    if ran.code == 0 {
        return Ok(());
    }
    if fstype == FsType::Ext4 && ran.err.contains("assume_storage_prezeroed") {
        // Before e2fsprogs 1.47.
        words.drain(given - 2..given);
        return must(&words, limit).await.map(drop);
    }
    Err(Error::new(Kind::Invalid, format!("{program}: {}", ran.reason())))
}

/// Writes what the file holds to the image: everything else first, then what makes it a file system.
async fn copy(file: &Scratch, image: &Image) -> Result<()> {
    let mut chunks = Vec::new();
    let size = image.size();
    let mut at = 0;
    while let Some((start, end)) = data(file, at, size)? {
        // Whole blocks, so that none is written twice in part.
        let (start, end) = (start / BLOCK * BLOCK, end.next_multiple_of(BLOCK).min(size));
        let mut offset = start.max(at);
        while offset < end {
            // The head is a chunk of its own.
            let border = if offset < HEAD { HEAD } else { offset / CHUNK * CHUNK + CHUNK };
            let next = border.min(end);
            chunks.push((offset, next - offset));
            offset = next;
        }
        at = end;
    }
    let (head, rest): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|(offset, _)| *offset < HEAD);
    for part in [rest, head] {
        let mut writer = Writer::new(image);
        for (offset, length) in part {
            let mut bytes = vec![0; length as usize];
            file.1.read_exact_at(&mut bytes, offset).map_err(|error| failed(&file.0, error))?;
            let bytes = Bytes::from(bytes);
            for from in (0..length).step_by(BLOCK as usize) {
                let to = (from + BLOCK).min(length);
                let block = bytes.slice(from as usize..to as usize);
                if block.iter().any(|byte| *byte != 0) {
                    writer.submit(Io::Write { offset: offset + from, data: block }).await?;
                }
            }
        }
        writer.finish().await?;
    }
    Ok(())
}

/// The next part of the file that is not a hole.
fn data(file: &Scratch, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let seek = |to| rustix::fs::seek(&file.1, to);
    let error = |error: rustix::io::Errno| failed(&file.0, error.into());
    let start = match seek(SeekFrom::Data(at)) {
        Ok(start) => start,
        // Nothing but a hole up to the end.
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(error(errno)),
    };
    Ok(Some((start, seek(SeekFrom::Hole(start)).map_err(error)?)))
}

/// Makes all of an image zeros.
async fn wipe(image: &Image) -> Result<()> {
    let size = image.size();
    let step = image.header().layout.object_size().max(CHUNK);
    let mut writer = Writer::new(image);
    for offset in (0..size).step_by(step as usize) {
        let length = step.min(size - offset);
        writer.submit(Io::WriteZeroes { offset, length, may_free: true }).await?;
    }
    writer.finish().await
}

/// Reads a part of an image.
///
/// # Errors
/// Whatever keeps it from being read.
pub(crate) async fn read(image: &Image, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut queue = image.queue();
    queue.submit(0, Io::Read { offset, length });
    queue.kick();
    let mut done = Vec::new();
    while done.is_empty() {
        poll_fn(|cx| queue.poll_completions(cx, &mut done)).await;
    }
    let mut bytes = Vec::with_capacity(length as usize);
    for completion in done {
        match completion.result? {
            Outcome::ReadWhole(data) => bytes.extend_from_slice(&data),
            Outcome::Read(segments) => {
                for segment in segments {
                    match segment {
                        Segment::Data(data) => bytes.extend_from_slice(&data),
                        Segment::Hole(length) => bytes.resize(bytes.len() + length as usize, 0),
                    }
                }
            }
            Outcome::Done | Outcome::Extents(_) => {}
        }
    }
    Ok(bytes)
}

/// Some requests at a time, until all are done or one fails.
struct Writer {
    queue: Queue,
    in_flight: usize,
}

impl Writer {
    fn new(image: &Image) -> Self {
        Self { queue: image.queue(), in_flight: 0 }
    }

    async fn submit(&mut self, io: Io) -> Result<()> {
        self.queue.submit(0, io);
        self.in_flight += 1;
        if self.in_flight >= WINDOW { self.wait().await } else { Ok(()) }
    }

    async fn wait(&mut self) -> Result<()> {
        self.queue.kick();
        let mut done = Vec::new();
        poll_fn(|cx| self.queue.poll_completions(cx, &mut done)).await;
        self.in_flight -= done.len();
        done.into_iter().try_for_each(|completion| completion.result.map(drop))
    }

    async fn finish(&mut self) -> Result<()> {
        while self.in_flight > 0 {
            self.wait().await?;
        }
        Ok(())
    }
}

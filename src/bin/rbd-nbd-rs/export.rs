//! `export`: writes an image to a file or to standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::transfer::{Reader, nonzero};
use ceph_native::image::{Image, Segment};
use tokio::sync::mpsc;

use crate::progress::Progress;
use crate::snap::closed;
use crate::spec::SnapArgs;

/// Exports an image or a snapshot to a file. Zeros become holes of the file.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Export {
    #[command(flatten)]
    image: SnapArgs,
    /// The file; "-" for standard output. The image's name if it is left out.
    #[arg(value_name = "PATH")]
    file: Option<String>,
    /// The file, as an option.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Format of the file: only 1, the bare content, is built.
    #[arg(long, value_name = "FORMAT", default_value_t = 1)]
    export_format: u8,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// Blocks of that size that are zeros are left out of a file.
const SPARSE: usize = 4096;

/// How many pieces wait to be written.
const WAITING: usize = 4;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Export {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        if self.export_format != 1 {
            let what = format!("export format {} is not built yet", self.export_format);
            return Err(Error::new(Kind::Unsupported, what));
        }
        let spec = self.image.spec()?.with_image()?;
        let path = self.path.as_ref().or(self.file.as_ref()).unwrap_or(&spec.image).clone();
        let image = spec.open(cluster, true).await?;
        let progress = Progress::new("Exporting image", !self.no_progress);
        let done = match path.as_str() {
            "-" => export(&image, Sink::Pipe(Box::new(io::stdout())), &progress).await,
            path => match OpenOptions::new().write(true).create_new(true).open(path) {
                Ok(file) => export(&image, Sink::File(file), &progress).await,
                Err(error) => Err(failed(path, error)),
            },
        };
        closed(image, done).await?;
        progress.finish();
        Ok(())
    }
}

/// Where an image goes.
enum Sink {
    /// Where zeros are left out.
    File(File),
    /// Where they are not.
    Pipe(Box<dyn Write + Send>),
}

/// A piece of the image, and the size of the hole before it.
struct Piece {
    hole: u64,
    data: Bytes,
}

impl Sink {
    fn put(&mut self, piece: &Piece) -> io::Result<()> {
        match self {
            Self::File(file) => {
                file.seek(SeekFrom::Current(piece.hole as i64))?;
                file.write_all(&piece.data)
            }
            Self::Pipe(pipe) => {
                let mut left = piece.hole;
                while left > 0 {
                    let some = left.min(ZEROS.len() as u64);
                    pipe.write_all(&ZEROS[..some as usize])?;
                    left -= some;
                }
                pipe.write_all(&piece.data)
            }
        }
    }

    /// The size counts what is only a hole at the end.
    fn end(&mut self, size: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.set_len(size).and_then(|()| file.sync_all()),
            Self::Pipe(pipe) => pipe.flush(),
        }
    }
}

/// Reads the image and has a thread write it, which may wait for whoever reads a pipe.
async fn export(image: &Image, mut sink: Sink, progress: &Progress) -> Result<()> {
    let size = image.size();
    let (pieces, mut waiting) = mpsc::channel::<Piece>(WAITING);
    let writer = tokio::task::spawn_blocking(move || -> io::Result<()> {
        while let Some(piece) = waiting.blocking_recv() {
            sink.put(&piece)?;
        }
        sink.end(size)
    });
    let read = send(image, &pieces, progress).await;
    drop(pieces);
    let written = writer.await.map_err(|error| {
        Error::new(Kind::Closed, "the thread that writes ended").with_source(error)
    })?;
    written.map_err(|error| failed("writing", error))?;
    read
}

async fn send(image: &Image, pieces: &mpsc::Sender<Piece>, progress: &Progress) -> Result<()> {
    let mut reader = Reader::new(image);
    let (mut written, size) = (0, image.size());
    while let Some((mut at, segments)) = reader.next().await? {
        for segment in segments {
            let length = segment.len();
            if let Segment::Data(data) = segment {
                for (offset, data) in nonzero(&data, SPARSE) {
                    let begin = at + offset;
                    let hole = begin - written;
                    written = begin + data.len() as u64;
                    // The writer has failed, and says why.
                    if pieces.send(Piece { hole, data }).await.is_err() {
                        return Ok(());
                    }
                }
            }
            at += length;
        }
        progress.set(at, size);
    }
    let last = Piece { hole: size - written, data: Bytes::new() };
    let _ = pieces.send(last).await;
    Ok(())
}

fn failed(what: &str, error: io::Error) -> Error {
    Error::new(Kind::from_errno(error.raw_os_error().unwrap_or(5)), what).with_source(error)
}

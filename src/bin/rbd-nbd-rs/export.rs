//! `export`: writes an image to a file or to standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{Details, Notes};
use ceph_native::image::transfer::{Reader, nonzero};
use ceph_native::image::{Image, OpenOptions as OpenImage, Segment, Version};
use tokio::sync::mpsc;

use crate::diff_stream::{Changes, to_stream};
use crate::import::failed;
use crate::progress::Progress;
use crate::records::{self, ImageHeader};
use crate::snap::closed;
use crate::spec::{FileArgs, Spec};

/// Exports an image or a snapshot to a file. Zeros become holes of the file.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Export {
    /// The image or snapshot, then the file ("-" for standard output; the image's name if it is left out).
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE[@SNAP], PATH", num_args = 0..=2)]
    words: Vec<String>,
    #[command(flatten)]
    names: FileArgs,
    /// Format of the file: 1, the bare content, or 2, an image with all its snapshots.
    #[arg(long, value_name = "FORMAT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=2))]
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
        let (spec, path) = self.names.image_then_file(&self.words)?;
        let path = path.unwrap_or_else(|| spec.image.clone());
        let progress = Progress::new("Exporting image", !self.no_progress);
        match self.export_format {
            1 => {
                let image = spec.open(cluster, true).await?;
                let done = match path.as_str() {
                    "-" => export(&image, Sink::Pipe(Box::new(io::stdout())), &progress).await,
                    path => {
                        to_file(path, async |file| {
                            export(&image, Sink::File(file), &progress).await
                        })
                        .await
                    }
                };
                closed(image, done).await?;
            }
            _ => export_whole(cluster, spec, &path, &progress).await?,
        }
        progress.finish();
        Ok(())
    }
}

/// Has a new file filled, and removes it if that fails.
pub(crate) async fn to_file(path: &str, fill: impl AsyncFnOnce(File) -> Result<()>) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = file.map_err(|error| failed(path, error))?;
    fill(file).await.inspect_err(|_| drop(fs::remove_file(path)))
}

/// Has a thread write what is sent, which may wait for whoever reads a pipe. It is told of the end by `None`, unless
/// what is sent ends with an error.
pub(crate) async fn written<T: Send + 'static>(
    mut put: impl FnMut(Option<T>) -> io::Result<()> + Send + 'static,
    send: impl AsyncFnOnce(&mpsc::Sender<T>) -> Result<()>,
) -> Result<()> {
    let (pieces, mut waiting) = mpsc::channel::<T>(WAITING);
    let writer = tokio::task::spawn_blocking(move || -> io::Result<()> {
        while let Some(piece) = waiting.blocking_recv() {
            put(Some(piece))?;
        }
        put(None)
    });
    let sent = send(&pieces).await;
    drop(pieces);
    let written = writer.await.map_err(|error| gone().with_source(error))?;
    // If that failed, it is why nothing more was sent.
    written.map_err(|error| failed("writing", error))?;
    sent
}

/// What is sent has nobody who takes it.
pub(crate) fn gone() -> Error {
    Error::new(Kind::Closed, "the thread that writes ended")
}

/// Writes an image with its users' snapshots, one after the other, and its notes.
async fn export_whole(
    cluster: &Cluster,
    spec: Spec,
    path: &str,
    progress: &Progress,
) -> Result<()> {
    if spec.snap.is_some() {
        let what = "export format 2 is for an image with all its snapshots";
        return Err(Error::new(Kind::Invalid, what).with_hint("--export-format 1"));
    }
    let image = spec.open(cluster, true).await?;
    let done = to_stream(path, async |pieces| {
        let details = Details::read(image.pool(), image.id()).await?;
        let snapshots = details.snapshots(image.pool()).await?;
        let layout = details.header.layout;
        let header = ImageHeader {
            order: Some(layout.order().into()),
            features: Some(details.header.features.0),
            stripe_unit: layout.stripe_unit(),
            stripe_count: layout.stripe_count(),
            notes: Notes::Image(image.id()).list(image.pool()).await?,
            streams: snapshots.len() as u64 + 1,
        };
        pieces.send(header.encode()).await.map_err(|_| gone())?;
        let mut from = None;
        let streams = header.streams;
        for (nth, snapshot) in (0..).zip(&snapshots) {
            let version = Version::SnapshotId(snapshot.info.id);
            let options = OpenImage { read_only: true, version, ..OpenImage::default() };
            let at = Image::open_by_id(image.pool(), image.id(), &options).await?;
            let name = snapshot.info.name.clone();
            let to = Some((name.clone(), snapshot.protected));
            let since = from.replace(name);
            let done = send_whole(&at, since, to, pieces, (nth, streams), progress).await;
            closed(at, done).await?;
        }
        send_whole(&image, from, None, pieces, (streams - 1, streams), progress).await
    })
    .await;
    closed(image, done).await
}

/// Sends one of so many streams of an image.
async fn send_whole(
    image: &Image,
    from: Option<String>,
    to: Option<(String, bool)>,
    pieces: &mpsc::Sender<Bytes>,
    (nth, streams): (u64, u64),
    progress: &Progress,
) -> Result<()> {
    let version = records::Version::Two;
    let changes = Changes { from, to, whole_objects: false, version };
    let mut tell = |done, total| progress.set_part((nth, streams), (done, total));
    changes.send(image, pieces, &mut tell).await
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

async fn export(image: &Image, mut sink: Sink, progress: &Progress) -> Result<()> {
    let size = image.size();
    let put = move |piece: Option<Piece>| match piece {
        Some(piece) => sink.put(&piece),
        None => sink.end(size),
    };
    written(put, async |pieces| send(image, pieces, progress).await).await
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
                    pieces.send(Piece { hole, data }).await.map_err(|_| gone())?;
                }
            }
            at += length;
        }
        progress.set(at, size);
    }
    let last = Piece { hole: size - written, data: Bytes::new() };
    pieces.send(last).await.map_err(|_| gone())
}

//! `export-diff` and `import-diff`: what has changed of an image, as a stream for another one.

use std::io::{self, Read};

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, DiffOptions};
use ceph_native::image::transfer::{Reader, Writer};
use ceph_native::image::{Image, Maintenance, Segment};
use clap::Args;
use proto::rbd::cls::SnapshotNamespace;
use tokio::sync::mpsc;

use crate::export::{gone, to_file, written};
use crate::import::open;
use crate::progress::Progress;
use crate::records::{Record, Version, parse, records, unreadable};
use crate::size;
use crate::snap::closed;
use crate::spec::FileArgs;

/// Writes what has changed of an image since a snapshot, or since it was made, to a file.
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportDiff {
    /// The image or snapshot, then the file ("-" for standard output).
    #[arg(value_name = "[POOL/[NAMESPACE/]]IMAGE[@SNAP], PATH", num_args = 0..=2)]
    words: Vec<String>,
    #[command(flatten)]
    names: FileArgs,
    /// Since that snapshot.
    #[arg(long, value_name = "SNAP")]
    from_snap: Option<String>,
    /// Compare whole objects: fast, where object maps can be relied on.
    #[arg(long)]
    whole_object: bool,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// Changes an image as a file of `export-diff` says.
#[derive(Args, Clone, Debug)]
pub(crate) struct ImportDiff {
    /// The file ("-" for standard input), then the image.
    #[arg(value_name = "PATH, [POOL/[NAMESPACE/]]IMAGE", num_args = 0..=2)]
    words: Vec<String>,
    #[command(flatten)]
    names: FileArgs,
    /// Blocks of that size that are zeros take no space.
    #[arg(long, value_name = "SIZE", value_parser = size::block, default_value = "4K")]
    sparse_size: u64,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// How many pieces wait for an image.
const WAITING: usize = 4;

/// What is no longer than an object is told apart in blocks of that size.
const SPARSE: usize = 4096;

impl ExportDiff {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (spec, path) = self.names.image_then_file(&self.words)?;
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let image = spec.open(cluster, true).await?;
        let progress = Progress::new("Exporting image", !self.no_progress);
        let send = async |pieces: &_| self.send(&image, spec.snap, pieces, &progress).await;
        let done = to_stream(&path, send).await;
        closed(image, done).await?;
        progress.finish();
        Ok(())
    }

    async fn send(
        &self,
        image: &Image,
        snap: Option<String>,
        pieces: &mpsc::Sender<Bytes>,
        progress: &Progress,
    ) -> Result<()> {
        let changes = Changes {
            from: self.from_snap.clone(),
            to: snap.map(|name| (name, false)),
            whole_objects: self.whole_object,
            version: Version::One,
        };
        changes.send(image, pieces, &mut |done, total| progress.set(done, total)).await
    }
}

/// Has a thread write pieces in order to a file, which it syncs at the end, or to standard output.
pub(crate) async fn to_stream(
    path: &str,
    send: impl AsyncFnOnce(&mpsc::Sender<Bytes>) -> Result<()>,
) -> Result<()> {
    use io::Write as _;

    if path == "-" {
        let mut out = io::stdout();
        let put = move |piece: Option<Bytes>| match piece {
            Some(piece) => out.write_all(&piece),
            None => out.flush(),
        };
        return written(put, send).await;
    }
    to_file(path, async |mut file| {
        let put = move |piece: Option<Bytes>| match piece {
            Some(piece) => file.write_all(&piece),
            None => file.sync_all(),
        };
        written(put, send).await
    })
    .await
}

/// What is to be told of an image as it is opened.
pub(crate) struct Changes {
    /// The snapshot since which, if not from the beginning.
    pub(crate) from: Option<String>,
    /// The snapshot that is opened, if one is, and whether it is protected.
    pub(crate) to: Option<(String, bool)>,
    pub(crate) whole_objects: bool,
    pub(crate) version: Version,
}

impl Changes {
    /// Sends a stream of them.
    pub(crate) async fn send(
        &self,
        image: &Image,
        pieces: &mpsc::Sender<Bytes>,
        progress: admin::Progress<'_>,
    ) -> Result<()> {
        let version = self.version;
        let from = match &self.from {
            Some(name) => Some(admin::user_snapshot(image, name).await?.id),
            None => None,
        };
        let options = DiffOptions { from, whole_objects: self.whole_objects, with_parent: true };
        let (mut data, mut zeros) = (Vec::new(), Vec::new());
        let mut add = |admin::Difference { offset, length, exists }| {
            match exists {
                true => data.push((offset, length)),
                false => zeros.push((offset, length)),
            }
            Ok(())
        };
        admin::diff(image, options, &mut add).await?;

        // Who is gone says why.
        let put = async |piece: Bytes| pieces.send(piece).await.map_err(|_| gone());
        put(version.magic()).await?;
        if let Some(name) = &self.from {
            put(Record::From(name.clone()).encode(version)).await?;
        }
        if let Some((name, protected)) = &self.to {
            put(Record::To(name.clone()).encode(version)).await?;
            if version == Version::Two {
                put(Record::Protected(*protected).encode(version)).await?;
            }
        }
        put(Record::Size(image.size()).encode(version)).await?;
        let (mut reader, mut zeros) = (Reader::of(image, data), zeros.into_iter().peekable());
        while let Some((mut at, segments)) = reader.next().await? {
            // `rbd merge-diff` wants them in order.
            while let Some((offset, length)) = zeros.next_if(|(offset, _)| *offset < at) {
                put(Record::Zero { offset, length }.encode(version)).await?;
            }
            for segment in segments {
                let length = segment.len();
                for record in records(at, segment, SPARSE) {
                    put(record.encode(version)).await?;
                }
                at += length;
            }
            progress(at, image.size());
        }
        for (offset, length) in zeros {
            put(Record::Zero { offset, length }.encode(version)).await?;
        }
        put(Record::End.encode(version)).await
    }
}

impl ImportDiff {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let (path, spec) = self.names.file_then_image(&self.words)?;
        let spec = spec.without_snap()?;
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let (source, _) = open(&path)?;
        let image = spec.open(cluster, false).await?;
        let progress = Progress::new("Importing image diff", !self.no_progress);
        let mut tell = |done, total| progress.set(done, total);
        let mut stream = read(source, 1);
        let done = apply(&image, &mut stream, self.sparse_size as usize, &mut tell).await;
        closed(image, done).await?;
        progress.finish();
        Ok(())
    }
}

/// Changes an image as one stream says, to its end.
pub(crate) async fn apply(
    image: &Image,
    stream: &mut mpsc::Receiver<io::Result<Record>>,
    block: usize,
    progress: admin::Progress<'_>,
) -> Result<()> {
    let mut writer = Writer::new(image);
    let (mut end, mut protect) = (None, false);
    loop {
        let ended = || Error::new(Kind::Closed, "the thread that reads ended");
        match stream.recv().await.ok_or_else(ended)?.map_err(unreadable)? {
            Record::From(name) => there(image, &name).await?,
            Record::To(name) => {
                not_there(image, &name).await?;
                end = Some(name);
            }
            Record::Protected(protected) => protect = protected,
            Record::Size(size) if size != image.size() => {
                let resize = Maintenance::Resize { size, may_shrink: true };
                image.maintain(&resize, &mut |_, _| {}).await?;
            }
            Record::Size(_) => {}
            Record::Data { offset, data } => {
                within(image, offset, data.len() as u64)?;
                progress(offset, image.size());
                for record in records(offset, Segment::Data(data), block) {
                    match record {
                        Record::Data { offset, data } => writer.write(offset, data).await?,
                        Record::Zero { offset, length } => writer.zero(offset, length).await?,
                        _ => {}
                    }
                }
            }
            Record::Zero { offset, length } => {
                within(image, offset, length)?;
                writer.zero(offset, length).await?;
            }
            Record::End => break,
        }
    }
    writer.finish().await?;
    let Some(name) = end else { return Ok(()) };
    let namespace = SnapshotNamespace::User;
    let take =
        Maintenance::SnapCreate { namespace: namespace.clone(), name: name.clone(), flags: 0 };
    image.maintain(&take, &mut |_, _| {}).await?;
    if protect {
        let protect = Maintenance::SnapProtect { namespace, name };
        image.maintain(&protect, &mut |_, _| {}).await?;
    }
    Ok(())
}

async fn there(image: &Image, name: &str) -> Result<()> {
    match admin::user_snapshot(image, name).await {
        Err(error) if error.kind() == Kind::NotFound => {
            let what = format!("start snapshot '{name}' does not exist in the image");
            Err(Error::new(Kind::Invalid, what))
        }
        found => found.map(drop),
    }
}

async fn not_there(image: &Image, name: &str) -> Result<()> {
    match admin::user_snapshot(image, name).await {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) => {
            let what = format!("snapshot {}@{name} exists already", image.spec());
            Err(Error::new(Kind::Exists, what))
        }
    }
}

fn within(image: &Image, offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= image.size() => Ok(()),
        _ => Err(Error::new(Kind::Invalid, "the stream has data beyond the end of the image")),
    }
}

/// Has a thread read so many streams, which may wait for whoever writes to a pipe.
pub(crate) fn read(
    mut source: Box<dyn Read + Send>,
    streams: u64,
) -> mpsc::Receiver<io::Result<Record>> {
    let (records, waiting) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut found = |record| records.blocking_send(Ok(record)).is_ok();
        let done = (0..streams).try_for_each(|_| parse(&mut source, &mut found));
        if let Err(error) = done {
            let _ = records.blocking_send(Err(error));
        }
    });
    waiting
}

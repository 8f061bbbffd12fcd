//! `import`: makes an image from a file or from standard input.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, CreateOptions, Details};
use ceph_native::image::transfer::{CHUNK, Writer, nonzero};
use ceph_native::image::{Image, Maintenance, OpenOptions};
use proto::rbd::Features;
use tokio::sync::mpsc;

use crate::create::{NewImage, defaults};
use crate::diff_stream::{self, apply};
use crate::progress::Progress;
use crate::records::{ImageHeader, unreadable};
use crate::size;
use crate::snap::closed;
use crate::spec::{NewNameArgs, Spec, all_used};

/// Imports an image from a file. What are zeros there is not written.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Import {
    /// The file ("-" for standard input), then the image; without that, it is named as the file is.
    #[arg(value_name = "PATH, IMAGE", num_args = 0..=2)]
    words: Vec<String>,
    /// The file, as an option.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    #[command(flatten)]
    image: NewNameArgs,
    #[command(flatten)]
    new: NewImage,
    /// Blocks of that size that are zeros are not written.
    #[arg(long, value_name = "SIZE", value_parser = size::block, default_value = "4K")]
    sparse_size: u64,
    /// Format of the file: 1, the bare content, or 2, an image with all its snapshots.
    #[arg(long, value_name = "FORMAT", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=2))]
    export_format: u8,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// How many pieces wait to be written to the image.
const WAITING: usize = 4;

impl Import {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let mut words = self.words.iter().map(String::as_str);
        let path = self.path.as_deref().or_else(|| words.next());
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let mut spec = self.image.spec(words.next())?.without_snap()?;
        all_used(words)?;
        if spec.image.is_empty() && path != "-" {
            let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
            spec.image = name.unwrap_or_default();
        }
        let spec = spec.with_image()?;
        let (source, length) = open(path)?;
        let progress = Progress::new("Importing image", !self.no_progress);
        match self.export_format {
            1 => self.import(cluster, &spec, source, length, &progress).await?,
            _ => self.import_whole(cluster, &spec, source, &progress).await?,
        }
        progress.finish();
        Ok(())
    }

    async fn import(
        &self,
        cluster: &Cluster,
        spec: &Spec,
        source: Box<dyn Read + Send>,
        length: Option<u64>,
        progress: &Progress,
    ) -> Result<()> {
        let mut options = self.new.options(cluster, defaults(cluster, 0).await?).await?;
        // What comes through a pipe shows its length in the end.
        options.size = length.unwrap_or(1 << options.order);
        make(cluster, spec, &options, async |image| {
            self.copy(image, source, length, progress).await
        })
        .await
    }

    async fn import_whole(
        &self,
        cluster: &Cluster,
        spec: &Spec,
        mut source: Box<dyn Read + Send>,
        progress: &Progress,
    ) -> Result<()> {
        let parsed = tokio::task::spawn_blocking(move || {
            ImageHeader::parse(&mut source).map(|header| (header, source))
        });
        let parsed = parsed.await.map_err(|error| ended().with_source(error))?;
        let (header, source) = parsed.map_err(unreadable)?;
        let mut like = defaults(cluster, 0).await?;
        if let Some(order) = header.order {
            let wrong = |_| Error::new(Kind::Invalid, format!("objects of 2^{order} bytes"));
            like.order = u8::try_from(order).map_err(wrong)?;
        }
        // One whole object at a time is no striping, whatever its size.
        let plain = header.stripe_count == 1 && header.stripe_unit == 1 << like.order.min(63);
        let striped = (header.stripe_unit, header.stripe_count);
        (like.stripe_unit, like.stripe_count) = if plain { (0, 0) } else { striped };
        if let Some(features) = header.features {
            like.features = Features(features) - Features::IMPLICIT;
        }
        let options =
            CreateOptions { metadata: header.notes, ..self.new.options(cluster, like).await? };
        make(cluster, spec, &options, async |image| {
            let mut stream = diff_stream::read(source, header.streams);
            for nth in 0..header.streams {
                let part = (nth, header.streams);
                let mut tell = |done, total| progress.set_part(part, (done, total));
                apply(image, &mut stream, self.sparse_size as usize, &mut tell).await?;
            }
            Ok(())
        })
        .await
    }

    async fn copy(
        &self,
        image: &Image,
        source: Box<dyn Read + Send>,
        length: Option<u64>,
        progress: &Progress,
    ) -> Result<()> {
        let mut pieces = read(source, length);
        let mut writer = Writer::new(image);
        let mut at = 0;
        loop {
            let piece = pieces.recv().await.ok_or_else(ended)?;
            let piece = piece.map_err(|error| failed("reading", error))?;
            // The end: what only stops was cut short.
            if piece.is_empty() {
                break;
            }
            let end = at + piece.len() as u64;
            if end > image.size() {
                writer.finish().await?;
                resize(image, end.next_power_of_two()).await?;
            }
            for (offset, part) in nonzero(&piece, self.sparse_size as usize) {
                writer.write(at + offset, part).await?;
            }
            at = end;
            progress.set(at, length.unwrap_or(at).max(at));
        }
        writer.finish().await?;
        if at != image.size() {
            resize(image, at).await?;
        }
        Ok(())
    }
}

/// Makes an image and has it filled. What fails leaves none.
pub(crate) async fn make(
    cluster: &Cluster,
    spec: &Spec,
    options: &CreateOptions,
    fill: impl AsyncFnOnce(&Image) -> Result<()>,
) -> Result<()> {
    let pool = spec.open_pool(cluster).await?;
    admin::create(&pool, &spec.image, options).await?;
    let filled = async {
        let image = Image::open(&pool, &spec.image, &OpenOptions::default()).await?;
        let filled = fill(&image).await;
        if filled.is_err()
            && let Err(error) = remove_snapshots(&image).await
        {
            tracing::warn!(%error, "snapshots of half an image");
        }
        closed(image, filled).await
    };
    let filled = filled.await;
    if filled.is_err()
        && let Err(error) = admin::remove(&pool, &spec.image, &mut |_, _| {}).await
    {
        tracing::warn!(%error, "half an image stays");
    }
    filled
}

async fn remove_snapshots(image: &Image) -> Result<()> {
    image.refresh().await?;
    let details = Details::read(image.pool(), image.id()).await?;
    for snapshot in details.snapshots(image.pool()).await? {
        let (namespace, name) = (snapshot.info.namespace, snapshot.info.name);
        if snapshot.protected {
            let (namespace, name) = (namespace.clone(), name.clone());
            let unprotect = Maintenance::SnapUnprotect { namespace, name };
            image.maintain(&unprotect, &mut |_, _| {}).await?;
        }
        image.maintain(&Maintenance::SnapRemove { namespace, name }, &mut |_, _| {}).await?;
    }
    Ok(())
}

fn ended() -> Error {
    Error::new(Kind::Closed, "the thread that reads ended")
}

pub(crate) async fn resize(image: &Image, size: u64) -> Result<()> {
    admin::resize(image, size, true, &mut |_, _| {}).await
}

/// Opens a file or standard input, and finds out how long it is, if that can be found out.
pub(crate) fn open(path: &str) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == "-" {
        return Ok((Box::new(io::stdin()), None));
    }
    let mut file = File::open(path).map_err(|error| failed(path, error))?;
    let kind = file.metadata().map_err(|error| failed(path, error))?.file_type();
    if kind.is_dir() {
        return Err(Error::new(Kind::Invalid, format!("{path} is a folder")));
    }
    // A block device, too, has an end.
    let Ok(length) = file.seek(SeekFrom::End(0)) else { return Ok((Box::new(file), None)) };
    file.rewind().map_err(|error| failed(path, error))?;
    Ok((Box::new(file), Some(length)))
}

/// Has a thread read, which may wait for whoever writes to a pipe. The last piece is empty.
fn read(
    mut source: Box<dyn Read + Send>,
    length: Option<u64>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, waiting) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut left = length.unwrap_or(u64::MAX);
        loop {
            let mut piece = Vec::new();
            let read = source.by_ref().take(CHUNK.min(left)).read_to_end(&mut piece);
            left = left.saturating_sub(piece.len() as u64);
            let last = read.is_err() || piece.is_empty();
            if pieces.blocking_send(read.map(|_| Bytes::from(piece))).is_err() || last {
                return;
            }
        }
    });
    waiting
}

pub(crate) fn failed(what: &str, error: io::Error) -> Error {
    Error::new(Kind::from_errno(error.raw_os_error().unwrap_or(5)), what).with_source(error)
}

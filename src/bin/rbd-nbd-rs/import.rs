//! `import`: makes an image from a file or from standard input.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::transfer::{CHUNK, Writer, nonzero};
use ceph_native::image::{Image, OpenOptions, admin};
use ceph_native::pool::Pool;
use tokio::sync::mpsc;

use crate::create::{NewImage, defaults};
use crate::progress::Progress;
use crate::size;
use crate::spec::{NewNameArgs, Spec};

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
    /// Format of the file: only 1, the bare content, is built.
    #[arg(long, value_name = "FORMAT", default_value_t = 1)]
    export_format: u8,
    /// Show no progress.
    #[arg(long)]
    no_progress: bool,
}

/// How many pieces wait to be written to the image.
const WAITING: usize = 4;

impl Import {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        if self.export_format != 1 {
            let what = format!("export format {} is not built yet", self.export_format);
            return Err(Error::new(Kind::Unsupported, what));
        }
        let mut words = self.words.iter().map(String::as_str);
        let path = self.path.as_deref().or_else(|| words.next());
        let path = path.ok_or_else(|| Error::new(Kind::Invalid, "path was not specified"))?;
        let mut spec = self.image.spec(words.next())?.without_snap()?;
        if spec.image.is_empty() && path != "-" {
            let name = Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
            spec.image = name.unwrap_or_default();
        }
        let spec = spec.with_image()?;
        let (source, length) = open(path)?;
        self.import(cluster, &spec, source, length).await
    }

    async fn import(
        &self,
        cluster: &Cluster,
        spec: &Spec,
        source: Box<dyn Read + Send>,
        length: Option<u64>,
    ) -> Result<()> {
        let mut options = self.new.options(cluster, defaults(cluster, 0).await?).await?;
        // What comes through a pipe shows its length in the end.
        options.size = length.unwrap_or(1 << options.order);
        let pool = spec.open_pool(cluster).await?;
        admin::create(&pool, &spec.image, &options).await?;
        let progress = Progress::new("Importing image", !self.no_progress);
        let done = self.fill(&pool, &spec.image, source, length, &progress).await;
        if let Err(error) = done {
            if let Err(error) = admin::remove(&pool, &spec.image, &mut |_, _| {}).await {
                tracing::warn!(%error, "half an image stays");
            }
            return Err(error);
        }
        progress.finish();
        Ok(())
    }

    async fn fill(
        &self,
        pool: &Pool,
        name: &str,
        source: Box<dyn Read + Send>,
        length: Option<u64>,
        progress: &Progress,
    ) -> Result<()> {
        let image = Image::open(pool, name, &OpenOptions::default()).await?;
        let filled = self.copy(&image, source, length, progress).await;
        image.close().await;
        filled
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
        while let Some(piece) = pieces.recv().await {
            let piece = piece.map_err(|error| failed("reading", error))?;
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

/// Has a thread read, which may wait for whoever writes to a pipe.
fn read(
    mut source: Box<dyn Read + Send>,
    length: Option<u64>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, waiting) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut left = length.unwrap_or(u64::MAX);
        while left > 0 {
            let mut piece = Vec::new();
            let read = source.by_ref().take(CHUNK.min(left)).read_to_end(&mut piece);
            left = left.saturating_sub(piece.len() as u64);
            let piece = match read {
                Ok(_) if piece.is_empty() => return,
                Ok(_) => Ok(Bytes::from(piece)),
                Err(error) => Err(error),
            };
            let last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || last {
                return;
            }
        }
    });
    waiting
}

pub(crate) fn failed(what: &str, error: io::Error) -> Error {
    Error::new(Kind::from_errno(error.raw_os_error().unwrap_or(5)), what).with_source(error)
}

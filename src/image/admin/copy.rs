//! Copying an image: its content and its notes, without its snapshots and without its parent.

use std::collections::BTreeMap;

use proto::rbd::Features;
use proto::rbd::cls::SetMetadata;
use proto::rbd::names;

use super::create::{CreateOptions, create};
use super::metadata::Notes;
use super::objects::Progress;
use super::remove::remove;
use crate::error::{Context as _, Result};
use crate::image::transfer::{Reader, Writer, nonzero};
use crate::image::{Image, OpenOptions, Segment};
use crate::pool::Pool;

/// What a copy of the image is like unless somebody says otherwise: but that it is kept where other new images are.
pub fn like(image: &Image) -> CreateOptions {
    let header = image.header();
    let striped = header.features.contains(Features::STRIPING);
    let (unit, count) = (header.layout.stripe_unit(), header.layout.stripe_count());
    CreateOptions {
        size: image.size(),
        order: header.layout.order(),
        stripe_unit: if striped { unit } else { 0 },
        stripe_count: if striped { count } else { 0 },
        features: super::supported(header.features - Features::IMPLICIT),
        data_pool: None,
        metadata: BTreeMap::new(),
    }
}

/// Makes a new image with the content of another one, or of a snapshot. Blocks of `sparse` bytes that are zeros are not
/// written.
///
/// # Errors
/// As [`super::create()`]; what keeps it from being read or written. What was made until then is removed.
pub async fn copy(
    source: &Image,
    pool: &Pool,
    name: &str,
    options: &CreateOptions,
    sparse: usize,
    progress: Progress<'_>,
) -> Result<()> {
    let id = create(pool, name, options).await?;
    let copied = async {
        let notes: BTreeMap<_, _> = Notes::Image(source.id()).list(source.pool()).await?;
        if !notes.is_empty() {
            pool.call(&names::header(&id), &SetMetadata { values: notes }).await?;
        }
        let image = Image::open_by_id(pool, &id, &OpenOptions::default()).await?;
        let copied = copy_content(source, &image, sparse, progress).await;
        image.close().await;
        copied
    };
    if let Err(error) = copied.await.context(format!("copying to {name}")) {
        if let Err(error) = remove(pool, name, &mut |_, _| {}).await {
            tracing::warn!(%error, "half a copy stays");
        }
        return Err(error);
    }
    Ok(())
}

async fn copy_content(
    source: &Image,
    dest: &Image,
    sparse: usize,
    progress: Progress<'_>,
) -> Result<()> {
    let (mut reader, mut writer) = (Reader::new(source), Writer::new(dest));
    let total = source.size();
    progress(0, total);
    while let Some((mut at, segments)) = reader.next().await? {
        for segment in segments {
            let length = segment.len();
            if let Segment::Data(data) = segment {
                for (offset, part) in nonzero(&data, sparse) {
                    writer.write(at + offset, part).await?;
                }
            }
            at += length;
        }
        progress(at, total);
    }
    writer.finish().await
}

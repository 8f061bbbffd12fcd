//! Growing and shrinking an image.

use std::sync::Arc;

use proto::msg::op::Op;
use proto::rbd::cls::SetSize;
use proto::rbd::names::{self, DataNames};
use proto::rbd::notify;

use super::objects::{Progress, change};
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;

/// Gives an image another size. When it shrinks, what is beyond the new end goes first, then the size
/// (`librbd/operation/ResizeRequest.cc`): whoever dies in between leaves an image that reads zeros there.
///
/// Other clients that have the image open are told.
///
/// # Errors
/// [`Kind::ReadOnly`] if the image was opened so; [`Kind::Invalid`] if it would shrink and may not.
pub async fn resize(
    image: &Image,
    size: u64,
    may_shrink: bool,
    progress: Progress<'_>,
) -> Result<()> {
    let resizing = format!("image {}", image.spec());
    if image.is_read_only() {
        let what = format!("{resizing} is open for reading only");
        return Err(Error::new(Kind::ReadOnly, what));
    }
    if size == image.size() {
        let what = format!("{resizing}: the new size is the one it has");
        return Err(Error::new(Kind::Invalid, what));
    }
    if size < image.size() {
        if !may_shrink {
            let what = format!("{resizing}: it would shrink, and lose what is beyond the new end");
            return Err(Error::new(Kind::Invalid, what).with_hint("allow it with --allow-shrink"));
        }
        trim(image, size, progress).await.context(&resizing)?;
    }
    let pool = image.pool();
    let header = names::header(image.id());
    pool.call(&header, &SetSize { size }).await.context(&resizing)?;
    progress(1, 1);
    // Whoever does not answer will find out by itself, or is dead.
    pool.notify(&header, notify::header_update()).await.context(resizing).map(drop)
}

/// Removes objects that are beyond the new end, and cuts those that are across it.
async fn trim(image: &Image, size: u64, progress: Progress<'_>) -> Result<()> {
    let header = image.header();
    let layout = header.layout;
    let end = layout.objects(header.size);
    // Of the set of objects that the new end is in, some may keep something.
    let set = layout.object_size() * layout.stripe_count();
    let begin = size / set * layout.stripe_count();
    let mut names = DataNames::new(&header.object_prefix);
    let changes = (begin..end).filter_map(|object| {
        let op = match layout.object_len(object, size) {
            0 => Op::Delete,
            len if len < layout.object_len(object, header.size) => Op::Truncate { size: len },
            _ => return None,
        };
        Some((String::from_utf8_lossy(names.of(object)).into_owned(), op))
    });
    let window = image.cluster().config().rbd.concurrent_management_ops;
    let snaps = Arc::new(header.snap_context.clone());
    let (mut done, total) = (0, end - begin);
    progress(0, total);
    change(image.data_pool(), &snaps, window, changes, || {
        done += 1;
        progress(done, total);
    })
    .await
}

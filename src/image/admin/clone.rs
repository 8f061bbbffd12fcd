//! Cloning a snapshot: a new image that shows it until it is written to.
//!
//! The order is librbd's (`librbd/image/CloneRequest.cc`): the new image, what it is a clone of, and last the parent is
//! told. Who dies before that leaves an image that can be removed.

use std::collections::BTreeMap;

use proto::osdmap::Release;
use proto::rbd::cls::{
    AddChild, AttachChild, AttachParent, Child, GetProtectionStatus, PROTECTED, Parent,
    SetMetadata, SetOpFeatures,
};
use proto::rbd::{Features, OpFeatures, names};
use proto::types::SnapId;

use super::create::{CreateOptions, create};
use super::metadata::Notes;
use super::remove::remove;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Image;
use crate::pool::Pool;

const ENOSYS: i32 = 38;
const EXDEV: i32 = 18;

/// How a parent knows its clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneFormat {
    /// Its snapshot must be protected; the clone is in the parent's namespace.
    V1,
    /// The snapshot may be removed: it is hidden until its last clone goes.
    V2,
}

impl CloneFormat {
    /// What `rbd_default_clone_format` = `auto` means: the second, if no client of before Mimic may come.
    pub fn of_cluster(pool: &Pool) -> Self {
        const MIMIC: Release = Release(13);

        let modern = pool.cluster().with_map(|map| {
            map.require_min_compat_client >= MIMIC || !map.pg_upmap_primaries.is_empty()
        });
        if modern.unwrap_or(false) { Self::V2 } else { Self::V1 }
    }
}

/// What a clone of the snapshot is like unless somebody says otherwise.
pub fn clone_like(parent: &Image, otherwise: CreateOptions) -> CreateOptions {
    let header = parent.header();
    let layout = &header.layout;
    // Unlike librbd's, clones of what is plain are plain with other object sizes, too: the parent's would be a stripe
    // unit then, and smaller objects refused for it.
    let (stripe_unit, stripe_count) = match header.features.contains(Features::STRIPING) {
        true => (layout.stripe_unit(), layout.stripe_count()),
        false => (0, 0),
    };
    CreateOptions {
        size: parent.size(),
        order: layout.order(),
        stripe_unit,
        stripe_count,
        features: super::supported(header.features - Features::IMPLICIT),
        ..otherwise
    }
}

/// Makes a new image that shows a snapshot, which `parent` is open at.
///
/// # Errors
/// [`Kind::Invalid`] if `parent` is no snapshot, or one that must be protected first; errno `ENOSYS` without the
/// feature layering; errno `EXDEV` for a clone of the first version in another namespace; as [`super::create()`]. What
/// was made until then is removed.
pub async fn clone(
    parent: &Image,
    pool: &Pool,
    name: &str,
    options: &CreateOptions,
    format: CloneFormat,
) -> Result<()> {
    let doing = format!("clone of {}", parent.spec());
    check(parent, pool, options, format).await.context(&doing)?;
    let options = CreateOptions { size: parent.size(), ..options.clone() };
    let id = create(pool, name, &options).await?;
    let attached = attach(parent, pool, &id, &options, format).await.context(doing);
    if attached.is_err()
        && let Err(error) = remove(pool, name, &mut |_, _| {}).await
    {
        tracing::warn!(%error, "half a clone stays");
    }
    attached
}

async fn check(
    parent: &Image,
    pool: &Pool,
    options: &CreateOptions,
    format: CloneFormat,
) -> Result<()> {
    if parent.read_snap() == SnapId::HEAD {
        return Err(Error::new(Kind::Invalid, "only snapshots can be cloned"));
    }
    let layering = Features::LAYERING;
    if !parent.header().features.contains(layering) || !options.features.contains(layering) {
        let what = "both images need the feature layering";
        return Err(Error::new(Kind::Os(ENOSYS), what));
    }
    if format == CloneFormat::V1 {
        if parent.pool().namespace() != pool.namespace() {
            let what = "a clone of the first version is in the namespace of its parent";
            return Err(Error::new(Kind::Os(EXDEV), what)
                .with_hint("--rbd-default-clone-format 2 makes one of the second"));
        }
        check_protected(parent).await?;
    }
    Ok(())
}

async fn check_protected(parent: &Image) -> Result<()> {
    let status = GetProtectionStatus { snap: parent.read_snap() };
    match parent.pool().call(&names::header(parent.id()), &status).await? {
        PROTECTED => Ok(()),
        _ => Err(Error::new(Kind::Invalid, "its snapshot is not protected")
            .with_hint("`snap protect` it, or use --rbd-default-clone-format 2")),
    }
}

async fn attach(
    parent: &Image,
    pool: &Pool,
    id: &str,
    options: &CreateOptions,
    format: CloneFormat,
) -> Result<()> {
    let object = names::header(id);
    let snap = parent.read_snap();
    let of = Parent {
        pool: parent.pool().id(),
        namespace: parent.pool().namespace().to_owned(),
        image_id: parent.id().to_owned(),
        snap,
    };
    let attach = AttachParent { parent: of, overlap: parent.size(), reattach: false };
    pool.call(&object, &attach).await?;
    match format {
        CloneFormat::V1 => {
            let child = AddChild {
                pool: parent.pool().id(),
                image_id: parent.id().to_owned(),
                snap,
                child_id: id.to_owned(),
            };
            pool.call(names::CHILDREN, &child).await?;
            // Its protection may have ended just before that.
            check_protected(parent).await?;
        }
        CloneFormat::V2 => {
            let bit = OpFeatures::CLONE_CHILD.0;
            pool.call(&object, &SetOpFeatures { op_features: bit, mask: bit }).await?;
            let (namespace, image_id) = (pool.namespace().to_owned(), id.to_owned());
            let child = Child { pool: pool.id(), namespace, image_id };
            let attach = AttachChild { snap, child };
            parent.pool().call(&names::header(parent.id()), &attach).await?;
        }
    }
    let mut notes: BTreeMap<_, _> = Notes::Image(parent.id()).list(parent.pool()).await?;
    // What it has of its own stays.
    notes.retain(|name, _| !options.metadata.contains_key(name));
    if !notes.is_empty() {
        pool.call(&object, &SetMetadata { values: notes }).await?;
    }
    Ok(())
}

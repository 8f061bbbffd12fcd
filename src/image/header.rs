//! What an image's header object says about it.

use proto::msg::object::SnapContext;
use proto::msg::op::Op;
use proto::rbd::cls::{
    GetDataPool, GetFeatures, GetFlags, GetNameOfId, GetObjectPrefix, GetParent, GetParentOld,
    GetParentOverlap, GetSize, GetSnapContext, GetSnapshot, GetStripeUnitCount, GetTrash, Method,
    Parent, SnapshotInfo,
};
use proto::rbd::layout::Layout;
use proto::rbd::names;
use proto::rbd::{Features, Flags};
use proto::types::{PoolId, SnapId};

use crate::error::{Context as _, Error, Kind, Result};
use crate::image::Boxed;
use crate::pool::Pool;

/// The head of an image, as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its size, in bytes.
    pub size: u64,
    /// How it is laid out over objects.
    pub layout: Layout,
    /// Its features.
    pub features: Features,
    /// Whether its object map can be trusted.
    pub flags: Flags,
    /// What the names of its data objects begin with.
    pub object_prefix: String,
    /// The pool of its data objects, if it is not the header's.
    pub data_pool: Option<PoolId>,
    /// The snapshots that writes must preserve.
    pub snap_context: SnapContext,
    /// What it is a clone of.
    pub parent: Option<ParentLink>,
}

/// The snapshot that an image was cloned from, and how much of it shows through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The snapshot.
    pub parent: Parent,
    /// How many bytes of it are still read, from the beginning.
    pub overlap: u64,
}

/// The id of an image.
///
/// # Errors
/// [`Kind::NotFound`] if there is no image of that name.
pub async fn image_id(pool: &Pool, name: &str) -> Result<String> {
    let id_object = names::id_object(name);
    match pool.call(&id_object, &proto::rbd::cls::GetId {}).await {
        Ok(id) => Ok(id),
        Err(error) if error.kind() == Kind::NotFound => Err(missing(pool, name).await),
        Err(error) => Err(error.context(format!("image {}", spec(pool, name)))),
    }
}

/// The name of an image, or the one it had before it was moved to the trash.
///
/// # Errors
/// [`Kind::NotFound`] if there is no image with that id.
pub async fn image_name(pool: &Pool, id: &str) -> Result<String> {
    match pool.call(names::DIRECTORY, &GetNameOfId { id: id.to_owned() }).await {
        Err(error) if error.kind() == Kind::NotFound => {}
        name => return name,
    }
    match pool.call(names::TRASH, &GetTrash { id: id.to_owned() }).await {
        Ok(image) => Ok(image.name),
        Err(error) if error.kind() == Kind::NotFound => Err(Error::new(
            Kind::NotFound,
            format!("there is no image with the id {id} in pool {}", pool.name()),
        )),
        Err(error) => Err(error),
    }
}

/// The image as people write it: `pool/namespace/name`.
pub fn spec(pool: &Pool, name: &str) -> String {
    match pool.namespace() {
        "" => format!("{}/{name}", pool.name()),
        namespace => format!("{}/{namespace}/{name}", pool.name()),
    }
}

async fn missing(pool: &Pool, name: &str) -> Error {
    // An image of the first format has no id, but a header of another name.
    if pool.stat(&names::old_header(name)).await.is_ok() {
        return Error::new(
            Kind::Unsupported,
            format!("image {} has the first format, which is not supported", spec(pool, name)),
        )
        .with_hint("`rbd migration prepare` moves it to the second");
    }
    Error::new(Kind::NotFound, format!("there is no image {}", spec(pool, name)))
}

impl Header {
    /// Reads the header of the image with this id.
    ///
    /// # Errors
    /// Whatever keeps it from being read; [`Kind::NotFound`] if there is none.
    pub fn read<'a>(pool: &'a Pool, id: &'a str) -> Boxed<'a, Self> {
        Box::pin(Self::read_all(pool, id))
    }

    async fn read_all(pool: &Pool, id: &str) -> Result<Self> {
        let object = names::header(id);
        let head = SnapId::HEAD;
        // What every image has, in one request.
        let replies = pool
            .operate(
                &object,
                vec![
                    call(&GetSize { snap: head }),
                    call(&GetFeatures { snap: head, read_only: true }),
                    call(&GetFlags { snap: head }),
                    call(&GetObjectPrefix {}),
                    call(&GetSnapContext {}),
                    call(&GetParent {}),
                    call(&GetParentOverlap { snap: head }),
                ],
            )
            .await?;
        let [size, features, flags, prefix, snaps, parent, overlap] = replies.as_slice() else {
            return Err(Error::new(Kind::Corrupt, format!("{object}: answers are missing")));
        };
        let size = GetSize::reply(&size.data).context(&object)?;
        let features = Features(GetFeatures::reply(&features.data).context(&object)?.features);
        let (mut unit, mut count) = (0, 0);
        if features.contains(Features::STRIPING) {
            let striping = pool.call(&object, &GetStripeUnitCount {}).await?;
            (unit, count) = (striping.unit, striping.count);
        }
        let parent = GetParent::reply(&parent.data).context(&object)?;
        let overlap = GetParentOverlap::reply(&overlap.data).context(&object)?;
        let overlap = overlap.filter(|_| parent.pool.0 >= 0);
        let data_pool = match features.contains(Features::DATA_POOL) {
            true => Some(pool.call(&object, &GetDataPool {}).await?).filter(|pool| pool.0 >= 0),
            false => None,
        };
        let layout = Layout::new(size.order, unit, count)
            .map_err(|error| Error::new(Kind::Corrupt, object.clone()).with_source(error))?;
        Ok(Self {
            size: size.size,
            layout,
            features,
            flags: Flags(GetFlags::reply(&flags.data).context(&object)?),
            object_prefix: GetObjectPrefix::reply(&prefix.data).context(&object)?,
            data_pool,
            snap_context: GetSnapContext::reply(&snaps.data).context(&object)?,
            parent: overlap.map(|overlap| ParentLink { parent, overlap }),
        })
    }
}

/// What is known about a snapshot of an image.
///
/// # Errors
/// Whatever keeps it from being read; [`Kind::NotFound`] if there is none.
pub async fn snapshot(pool: &Pool, id: &str, snap: SnapId) -> Result<SnapshotInfo> {
    pool.call(&names::header(id), &GetSnapshot { snap }).await
}

/// The parent of an image or of a snapshot of it.
///
/// # Errors
/// Whatever keeps it from being read.
pub async fn parent(pool: &Pool, id: &str, snap: SnapId) -> Result<Option<ParentLink>> {
    let object = names::header(id);
    let parent = match pool.call(&object, &GetParent {}).await {
        Ok(parent) => parent,
        // A cluster of before Nautilus.
        Err(error) if error.kind() == Kind::Unsupported => {
            let old = pool.call(&object, &GetParentOld { snap }).await?;
            let parent = Parent {
                pool: old.pool,
                namespace: String::new(),
                image_id: old.image_id,
                snap: old.snap,
            };
            return Ok((parent.pool.0 >= 0).then_some(ParentLink { parent, overlap: old.overlap }));
        }
        Err(error) => return Err(error),
    };
    if parent.pool.0 < 0 {
        return Ok(None);
    }
    let overlap = pool.call(&object, &GetParentOverlap { snap }).await?;
    Ok(overlap.map(|overlap| ParentLink { parent, overlap }))
}

fn call<M: Method>(method: &M) -> Op {
    Op::call(M::CLASS, M::NAME, method.input())
}

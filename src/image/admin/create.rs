//! Making an image.
//!
//! The order is librbd's (`librbd/image/CreateRequest.cc`): the id object, which reserves the name and is made by one
//! client only; the directory's entry; the header; its striping. Whatever fails takes back what went before, backwards.
//! Who dies in between leaves a name that is taken, and that `rm` removes.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::msg::op::Op;
use proto::osdmap::pool_flag;
use proto::rbd::cls::{
    AddImage, AssertDirectoryState, Create, DIRECTORY_READY, Method, RemoveImage, ResizeObjectMap,
    SetId, SetMetadata, SetStripeUnitCount,
};
use proto::rbd::layout::Layout;
use proto::rbd::{Features, ObjectState, names};
use proto::types::{PoolId, SnapId};

use super::children::or_none;
use super::journal::make_journal;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::WRITABLE;
use crate::image::header::{image_id, spec};
use crate::image::object_map::MAX_OBJECTS;
use crate::pool::Pool;

/// What a new image is like.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its size in bytes.
    pub size: u64,
    /// The size of its objects as a power of two.
    pub order: u8,
    /// Its stripe unit in bytes; 0 for plain objects.
    pub stripe_unit: u64,
    /// How many objects take turns; 0 for plain objects.
    pub stripe_count: u64,
    /// Its features. Those that follow from the rest need not be asked for.
    pub features: Features,
    /// The pool for its data, if it is not the same.
    pub data_pool: Option<Pool>,
    /// Notes that it has from the first moment on.
    pub metadata: BTreeMap<String, Bytes>,
}

impl CreateOptions {
    /// An image of this size with objects of 4 MiB and every feature that is on by default and built here.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            order: 22,
            stripe_unit: 0,
            stripe_count: 0,
            features: supported(Features::DEFAULT),
            data_pool: None,
            metadata: BTreeMap::new(),
        }
    }

    /// The features that the image will have.
    fn all_features(&self, pool: &Pool) -> Features {
        let mut features = self.features - Features::IMPLICIT;
        if self.is_striped() {
            features |= Features::STRIPING;
        }
        if self.elsewhere(pool).is_some() {
            features |= Features::DATA_POOL;
        }
        if features.contains(Features::OBJECT_MAP) {
            features |= Features::FAST_DIFF;
        }
        features
    }

    fn layout(&self) -> Result<Layout> {
        Layout::new(self.order, self.stripe_unit, self.stripe_count).map_err(|error| {
            let kind = match error {
                proto::rbd::layout::LayoutError::Order(_) => Kind::Os(EDOM),
                _ => Kind::Invalid,
            };
            Error::new(kind, error.to_string())
        })
    }

    /// Whether the layout has to be written down. Unlike [`Layout::is_striped`], that is so for small units of a single
    /// object, too, as librbd sees it.
    fn is_striped(&self) -> bool {
        self.stripe_unit != 0 && (self.stripe_count != 1 || self.stripe_unit != 1 << self.order)
    }

    fn elsewhere(&self, pool: &Pool) -> Option<&Pool> {
        self.data_pool.as_ref().filter(|data_pool| data_pool.id() != pool.id())
    }
}

/// Those of the features that an image can be made with.
pub fn supported(features: Features) -> Features {
    features & WRITABLE
}

/// Makes an image and returns its id.
///
/// # Errors
/// [`Kind::Exists`] if the name is taken; [`Kind::Invalid`] or errno `EDOM` if a layout like that is not possible;
/// [`Kind::Unsupported`] for features that are not built yet.
pub async fn create(pool: &Pool, name: &str, options: &CreateOptions) -> Result<String> {
    let image = format!("image {}", spec(pool, name));
    check(name, options).context(&image)?;
    check_data_pool(options.data_pool.as_ref().unwrap_or(pool)).await.context(&image)?;
    match image_id(pool, name).await {
        Ok(_) => return Err(Error::new(Kind::Exists, format!("{image} exists already"))),
        Err(error) if error.kind() == Kind::NotFound => {}
        // One of the first format.
        Err(error) if error.kind() == Kind::Unsupported => {
            return Err(Error::new(Kind::Exists, format!("{image} exists already")));
        }
        Err(error) => return Err(error),
    }

    let id = new_id(pool);
    let id_object = names::id_object(name);
    let reserve = vec![Op::Create { exclusive: true }, call(&SetId { id: id.clone() })];
    pool.operate(&id_object, reserve).await.context(&image)?;
    let made = add_to_directory(pool, name, &id, options).await;
    if let Err(error) = made {
        take_back(pool, &id_object).await;
        return Err(error.context(image));
    }
    Ok(id)
}

async fn add_to_directory(
    pool: &Pool,
    name: &str,
    id: &str,
    options: &CreateOptions,
) -> Result<()> {
    let entry = AddImage { name: name.to_owned(), id: id.to_owned() };
    // A namespace that is being removed takes no images any more.
    let mut ops = Vec::new();
    if !pool.namespace().is_empty() {
        ops.push(call(&AssertDirectoryState { state: DIRECTORY_READY }));
    }
    ops.push(call(&entry));
    pool.operate_write(names::DIRECTORY, ops).await?;
    let made = make_header(pool, id, options).await;
    if made.is_err() {
        let entry = RemoveImage { name: entry.name, id: entry.id };
        if let Err(error) = pool.call(names::DIRECTORY, &entry).await {
            tracing::warn!(%error, "the directory keeps an image that was not made");
        }
    }
    made
}

async fn make_header(pool: &Pool, id: &str, options: &CreateOptions) -> Result<()> {
    let header = names::header(id);
    let data_pool = options.elsewhere(pool);
    let create = Create {
        size: options.size,
        order: options.order,
        features: options.all_features(pool).0,
        object_prefix: names::data_prefix(id, data_pool.map(|_| pool.id())),
        data_pool: data_pool.map_or(PoolId(-1), Pool::id),
    };
    let mut ops = vec![Op::Create { exclusive: true }, call(&create)];
    if !options.metadata.is_empty() {
        ops.push(call(&SetMetadata { values: options.metadata.clone() }));
    }
    pool.operate(&header, ops).await?;
    if options.is_striped() {
        let (unit, count) = (options.stripe_unit, options.stripe_count);
        if let Err(error) = pool.call(&header, &SetStripeUnitCount { unit, count }).await {
            take_back(pool, &header).await;
            return Err(error);
        }
    }
    if options.features.contains(Features::OBJECT_MAP)
        && let Err(error) = make_object_map(pool, id, options).await
    {
        take_back(pool, &header).await;
        return Err(error);
    }
    if options.features.contains(Features::JOURNALING)
        && let Err(error) = make_journal(pool, id).await
    {
        for object in [names::journal(id), names::object_map(id, SnapId::HEAD), header] {
            take_back(pool, &object).await;
        }
        return Err(error);
    }
    Ok(())
}

async fn make_object_map(pool: &Pool, id: &str, options: &CreateOptions) -> Result<()> {
    let layout = options.layout()?;
    let map =
        ResizeObjectMap { objects: layout.objects(options.size), state: ObjectState::Absent as u8 };
    pool.call(&names::object_map(id, SnapId::HEAD), &map).await.map(drop)
}

/// Removes what was made for an image that could not be finished.
async fn take_back(pool: &Pool, object: &str) {
    if let Err(error) = or_none(pool.remove(object).await) {
        tracing::warn!(%error, "an image that was not made leaves this behind");
    }
}

fn check(name: &str, options: &CreateOptions) -> Result<()> {
    if name.is_empty() || name.contains(['/', '@']) {
        return Err(Error::new(Kind::Invalid, "a name must not be empty nor contain / or @"));
    }
    let layout = options.layout()?;
    let has = |features| options.features.contains(features);
    for (feature, needed) in [
        (Features::OBJECT_MAP, Features::EXCLUSIVE_LOCK),
        (Features::FAST_DIFF, Features::OBJECT_MAP),
        (Features::JOURNALING, Features::EXCLUSIVE_LOCK),
    ] {
        if has(feature) && !has(needed) {
            return Err(Error::new(Kind::Invalid, format!("{feature} takes {needed}")));
        }
    }
    let objects = layout.objects(options.size);
    if has(Features::OBJECT_MAP) && objects > MAX_OBJECTS {
        let what = format!("{objects} objects are too many for an object map");
        return Err(Error::new(Kind::Invalid, what));
    }
    let unsupported = options.features - Features::IMPLICIT - WRITABLE;
    if !unsupported.is_empty() {
        let what = format!("features that are not built yet: {unsupported}");
        return Err(Error::new(Kind::Unsupported, what)
            .with_hint("name others with --image-feature, such as layering"));
    }
    Ok(())
}

/// What makes a pool unfit for images (`librbd/image/ValidatePoolRequest.cc`, which tries it out).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    /// Data objects are written in part.
    NoOverwrites,
    /// There can be no snapshots of an image where there are some of the whole pool.
    PoolSnaps,
}

async fn check_data_pool(pool: &Pool) -> Result<()> {
    if !pool.cluster().config().rbd.validate_pool {
        return Ok(());
    }
    let unfit = pool.cluster().with_map(|map| {
        let pool = map.pool(pool.id())?;
        match pool.is_erasure() && !pool.has(pool_flag::EC_OVERWRITES) {
            true => Some(Unfit::NoOverwrites),
            false => pool.has(pool_flag::POOL_SNAPS).then_some(Unfit::PoolSnaps),
        }
    });
    let name = pool.name();
    match unfit.flatten() {
        None => Ok(()),
        Some(Unfit::NoOverwrites) => {
            let what = format!("pool {name} is erasure-coded without overwrites");
            let hint = format!("`ceph osd pool set {name} allow_ec_overwrites true`");
            Err(Error::new(Kind::Invalid, what).with_hint(hint))
        }
        Some(Unfit::PoolSnaps) => {
            // Somebody may have said that it will do all the same.
            let known = pool.with_namespace("").read(names::INFO, 0, 0).await;
            if or_none(known)?.is_some_and(|known| &known[..] == VALIDATED) {
                return Ok(());
            }
            let what =
                format!("pool {name} has snapshots of its own, so that images can have none");
            Err(Error::new(Kind::Invalid, what).with_hint("use another pool"))
        }
    }
}

/// What the pool's `rbd_info` holds once librbd found it fit.
const VALIDATED: &[u8] = b"overwrite validated";

const EDOM: i32 = 33;

fn new_id(pool: &Pool) -> String {
    names::image_id(pool.cluster().global_id(), pool.cluster().random())
}

fn call<M: Method>(method: &M) -> Op {
    Op::call(M::CLASS, M::NAME, method.input())
}

//! Everything about an image that people ask for: what `rbd info` and `rbd ls -l` print.

use proto::msg::op::Op;
use proto::rbd::cls::{
    GetAccessTimestamp, GetCreateTimestamp, GetGroup, GetGroupSnapshot, GetModifyTimestamp,
    GetNameOfId, GetOpFeatures, GetProtectionStatus, Method, PROTECTED, SnapshotInfo,
    SnapshotNamespace, lock,
};
use proto::rbd::names;
use proto::rbd::{Features, OpFeatures};
use proto::types::{SnapId, UTime};

use super::remove::is_mirrored;
use crate::error::{Context as _, Error, Kind, Result};
use crate::image::header::{self, Header};
use crate::pool::Pool;

/// What is known about an image.
#[derive(Clone, Debug)]
pub struct Details {
    /// Its id.
    pub id: String,
    /// What is needed to use it.
    pub header: Header,
    /// What else its clients must know.
    pub op_features: OpFeatures,
    /// When it was made; nothing for images of old releases.
    pub created: Option<UTime>,
    /// When it was last read, about.
    pub accessed: Option<UTime>,
    /// When it was last written, about.
    pub modified: Option<UTime>,
    /// The snapshot that it is a clone of.
    pub parent: Option<ParentName>,
    /// The group of images that it belongs to: `pool/name`.
    pub group: Option<String>,
    /// Whether a mirror is kept of it, if it has a journal.
    pub mirrored: Option<bool>,
}

/// A snapshot of an image.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What its header says.
    pub info: SnapshotInfo,
    /// Whether it may have clones.
    pub protected: bool,
    /// The snapshot that the image was a clone of then.
    pub parent: Option<ParentName>,
}

/// A snapshot that an image was cloned from, by names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentName {
    /// Its pool.
    pub pool: String,
    /// Its namespace.
    pub namespace: String,
    /// Its image.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// Its name.
    pub snapshot: String,
    /// Whether the image is in the trash.
    pub in_trash: bool,
    /// How many bytes of it are still read, from the beginning.
    pub overlap: u64,
}

/// How an image is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// By one client.
    Exclusive,
    /// By several that know of each other.
    Shared,
}

impl Details {
    /// Reads everything about the image with this id.
    ///
    /// # Errors
    /// Whatever keeps it from being read; [`Kind::NotFound`] if there is none.
    pub async fn read(pool: &Pool, id: &str) -> Result<Self> {
        let object = names::header(id);
        let header = Header::read(pool, id).await?;
        let replies = pool
            .operate(
                &object,
                vec![
                    op(&GetOpFeatures {}),
                    op(&GetCreateTimestamp {}),
                    op(&GetAccessTimestamp {}),
                    op(&GetModifyTimestamp {}),
                ],
            )
            .await?;
        let [op_features, created, accessed, modified] = replies.as_slice() else {
            return Err(Error::new(Kind::Corrupt, format!("{object}: answers are missing")));
        };
        let op_features = OpFeatures(GetOpFeatures::reply(&op_features.data).context(&object)?);
        let group = match op_features.names().any(|name| name == "group") {
            true => group_of(pool, &object).await?,
            false => None,
        };
        let mirrored = match header.features.contains(Features::JOURNALING) {
            true => Some(is_mirrored(pool, id).await?),
            false => None,
        };
        let time = |time: UTime| Some(time).filter(|time| time.sec != 0);
        Ok(Self {
            id: id.to_owned(),
            header,
            op_features,
            created: time(GetCreateTimestamp::reply(&created.data).context(&object)?),
            accessed: time(GetAccessTimestamp::reply(&accessed.data).context(&object)?),
            modified: time(GetModifyTimestamp::reply(&modified.data).context(&object)?),
            parent: parent_name(pool, id, SnapId::HEAD).await?,
            group,
            mirrored,
        })
    }

    /// The users' snapshots of the image, oldest first.
    ///
    /// # Errors
    /// Whatever keeps them from being read.
    pub async fn snapshots(&self, pool: &Pool) -> Result<Vec<Snapshot>> {
        let mut snapshots = self.all_snapshots(pool).await?;
        snapshots.retain(|snapshot| snapshot.info.namespace == SnapshotNamespace::User);
        Ok(snapshots)
    }

    /// All snapshots of the image, whatever they are for, oldest first.
    ///
    /// # Errors
    /// Whatever keeps them from being read.
    pub async fn all_snapshots(&self, pool: &Pool) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for snap in self.header.snap_context.snaps.iter().rev() {
            let info = header::snapshot(pool, &self.id, *snap).await?;
            let status = GetProtectionStatus { snap: *snap };
            let status = pool.call(&names::header(&self.id), &status).await?;
            let parent = parent_name(pool, &self.id, *snap).await?;
            snapshots.push(Snapshot { info, protected: status == PROTECTED, parent });
        }
        Ok(snapshots)
    }

    /// How the image is locked, by a user or by a client that writes to it.
    ///
    /// # Errors
    /// Whatever keeps that from being read.
    pub async fn lock(&self, pool: &Pool) -> Result<Option<LockKind>> {
        let get = lock::GetInfo { name: lock::RBD_LOCK.to_owned() };
        let state = pool.call(&names::header(&self.id), &get).await?;
        Ok(match state.kind {
            _ if state.lockers.is_empty() => None,
            lock::SHARED => Some(LockKind::Shared),
            _ => Some(LockKind::Exclusive),
        })
    }
}

async fn group_of(pool: &Pool, header: &str) -> Result<Option<String>> {
    let group = pool.call(header, &GetGroup {}).await?;
    if group.pool.0 < 0 {
        return Ok(None);
    }
    let in_pool = pool.cluster().pool_by_id(group.pool).await?.with_namespace(pool.namespace());
    let name = in_pool.call(names::GROUPS, &GetNameOfId { id: group.id }).await?;
    Ok(Some(header::spec(&in_pool, &name)))
}

/// The names of a group of images and of a snapshot of it.
///
/// # Errors
/// Whatever keeps them from being read.
pub async fn group_names(pool: &Pool, group: &str, snapshot: &str) -> Result<(String, String)> {
    let name = pool.call(names::GROUPS, &GetNameOfId { id: group.to_owned() }).await?;
    let get = GetGroupSnapshot { id: snapshot.to_owned() };
    let snapshot = pool.call(&names::group_header(group), &get).await?;
    Ok((name, snapshot.name))
}

fn op<M: Method>(method: &M) -> Op {
    Op::call(M::CLASS, M::NAME, method.input())
}

async fn parent_name(pool: &Pool, id: &str, snap: SnapId) -> Result<Option<ParentName>> {
    let Some(link) = header::parent(pool, id, snap).await? else { return Ok(None) };
    let parent = link.parent;
    let in_pool = pool.cluster().pool_by_id(parent.pool).await?.with_namespace(&parent.namespace);
    let snapshot = header::snapshot(&in_pool, &parent.image_id, parent.snap).await?;
    let named = GetNameOfId { id: parent.image_id.clone() };
    let (image, in_trash) = match in_pool.call(names::DIRECTORY, &named).await {
        Ok(name) => (name, false),
        Err(error) if error.kind() == Kind::NotFound => (String::new(), true),
        Err(error) => return Err(error),
    };
    Ok(Some(ParentName {
        pool: in_pool.name().to_owned(),
        namespace: parent.namespace,
        image,
        image_id: parent.image_id,
        snapshot: snapshot.name,
        in_trash,
        overlap: link.overlap,
    }))
}

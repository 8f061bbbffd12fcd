//! A pool of objects, and what can be done with one object.

mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proto::msg::object::{HObject, Locator, SnapContext};
use proto::msg::op::{ObjectList, OsdOp};
use proto::msg::osd_op::{OpReply, Operation, Reply, flag};
use proto::msg::snaps::ObjectSnaps;
use proto::msg::watch::{Watcher, decode_watchers};
use proto::rbd::cls::Method;
use proto::types::{Epoch, PoolId, SnapId};

pub use proto::msg::op::{ListedObject, Op};

pub(crate) use self::watch::Acknowledgement;
pub use self::watch::{Notification, Watch, WatchEvent};

use crate::cluster::Cluster;
use crate::error::{Context as _, Error, Kind, Result};

/// A pool, or one namespace of it. Cheap to clone.
///
/// Every future of its methods may be dropped. That takes nothing back that was sent: what it was to do may be done
/// nevertheless, once at most.
#[derive(Clone, Debug)]
pub struct Pool {
    cluster: Cluster,
    id: PoolId,
    name: Arc<str>,
    namespace: Arc<str>,
}

/// Size and time of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectStat {
    /// Its size, in bytes.
    pub size: u64,
}

impl Cluster {
    /// The pool of a name.
    ///
    /// # Errors
    /// [`Kind::NotFound`], after the monitors' newest map was looked at.
    pub async fn pool(&self, name: &str) -> Result<Pool> {
        if let Some(id) = self.pool_id(name) {
            return Ok(Pool::new(self.clone(), id, name));
        }
        // It may be newer than our map.
        self.refresh_map().await?;
        let id = self
            .pool_id(name)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no pool {name}")))?;
        Ok(Pool::new(self.clone(), id, name))
    }

    /// The pool of a number.
    ///
    /// # Errors
    /// [`Kind::NotFound`], after the monitors' newest map was looked at.
    pub async fn pool_by_id(&self, id: PoolId) -> Result<Pool> {
        let name = || self.with_map(|map| map.pool_name(id).map(str::to_owned)).flatten();
        if let Some(name) = name() {
            return Ok(Pool::new(self.clone(), id, name));
        }
        self.refresh_map().await?;
        let name =
            name().ok_or_else(|| Error::new(Kind::NotFound, format!("there is no pool {id}")))?;
        Ok(Pool::new(self.clone(), id, name))
    }

    /// All pools, as far as is known, but for those that are caches of others.
    pub fn pools(&self) -> Vec<Pool> {
        let pools = self.with_map(|map| {
            let base = |id| map.pool(id).is_some_and(|pool| pool.tier_of.is_none());
            let names = map.pool_names.iter().filter(|(id, _)| base(**id));
            names.map(|(id, name)| Pool::new(self.clone(), *id, name.as_str())).collect()
        });
        pools.unwrap_or_default()
    }

    fn pool_id(&self, name: &str) -> Option<PoolId> {
        self.with_map(|map| map.pool_id(name)).flatten()
    }
}

impl Pool {
    /// A pool that is known to exist.
    fn new(cluster: Cluster, id: PoolId, name: impl Into<Arc<str>>) -> Self {
        Self { cluster, id, name: name.into(), namespace: Arc::from("") }
    }

    /// The same pool, in another namespace; the default one is empty.
    #[must_use]
    pub fn with_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Arc::from(namespace), ..self.clone() }
    }

    /// The cluster it belongs to.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its number.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace, empty for the default one.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Where objects of this pool and namespace belong.
    pub(crate) fn locator(&self) -> Locator {
        Locator { namespace: self.namespace.to_string(), ..Locator::of_pool(self.id) }
    }

    /// Applies operations to an object, all or none of them, and returns what each of them did.
    ///
    /// Cancel-safe in this sense: dropping the future does not take back what was sent.
    ///
    /// # Errors
    /// What the OSD answered for the first operation that failed, with the object's name.
    pub async fn operate(&self, object: &str, ops: Vec<Op>) -> Result<Vec<OpReply>> {
        self.submit(self.operation(object, ops)).await.map(|reply| reply.ops)
    }

    fn operation(&self, object: &str, ops: Vec<Op>) -> Operation {
        let ops = ops.into_iter().map(OsdOp::from).collect();
        Operation::new(self.locator(), object, ops)
    }

    /// As [`Pool::operate`], for writes that must preserve snapshots.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn operate_with_snaps(
        &self,
        object: &str,
        ops: Vec<Op>,
        snaps: Arc<SnapContext>,
    ) -> Result<Vec<OpReply>> {
        let mut operation = self.operation(object, ops);
        operation.snap_context = snaps;
        self.submit(operation).await.map(|reply| reply.ops)
    }

    /// As [`Pool::operate_write`], for writes that must preserve snapshots.
    pub(crate) async fn operate_write_with_snaps(
        &self,
        object: &str,
        ops: Vec<Op>,
        snaps: Arc<SnapContext>,
    ) -> Result<Vec<OpReply>> {
        let mut operation = self.operation(object, ops);
        operation.flags |= flag::WRITE;
        operation.snap_context = snaps;
        self.submit(operation).await.map(|reply| reply.ops)
    }

    /// As [`Pool::operate`], where class methods write: an operation that calls one does not show that by itself.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn operate_write(&self, object: &str, ops: Vec<Op>) -> Result<Vec<OpReply>> {
        let mut operation = self.operation(object, ops);
        operation.flags |= flag::WRITE;
        self.submit(operation).await.map(|reply| reply.ops)
    }

    async fn submit(&self, operation: Operation) -> Result<Reply> {
        let what = self.describe(&operation.object);
        let reply = self.cluster.execute(operation).await.context(&what)?;
        if reply.result < 0 {
            let error = Error::from_errno(reply.result, what);
            return Err(match error.kind() {
                Kind::PermissionDenied => error.with_hint(format!(
                    "the caps of {} do not allow this on pool {}",
                    self.cluster.entity(),
                    self.name
                )),
                _ => error,
            });
        }
        Ok(reply)
    }

    fn describe(&self, object: &str) -> String {
        match (object.is_empty(), self.namespace.is_empty()) {
            (true, _) => format!("pool {}", self.name),
            (false, true) => format!("object {}/{object}", self.name),
            (false, false) => format!("object {}/{}/{object}", self.name, self.namespace),
        }
    }

    async fn only(&self, object: &str, op: Op) -> Result<Bytes> {
        let replies = self.operate(object, vec![op]).await?;
        replies.into_iter().next().map(|reply| reply.data).ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("{}: an answer to nothing", self.describe(object)))
        })
    }

    /// Calls a class method, as a write if it is one.
    ///
    /// # Errors
    /// As [`Pool::operate`]; [`Kind::Corrupt`] if the answer makes no sense.
    pub async fn call<M: Method>(&self, object: &str, method: &M) -> Result<M::Reply> {
        let op = Op::call(M::CLASS, M::NAME, method.input());
        let mut operation = Operation::new(self.locator(), object, vec![op.into()]);
        if M::WRITES {
            operation.flags |= flag::WRITE;
        }
        let reply = self.submit(operation).await.context(M::NAME)?;
        let data = reply.ops.into_iter().next().map(|reply| reply.data).unwrap_or_default();
        M::reply(&data).context(format!("{}: {}", M::NAME, self.describe(object)))
    }

    /// Reads up to `length` bytes.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn read(&self, object: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.only(object, Op::Read { offset, length }).await
    }

    /// Replaces an object's content.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn write_full(&self, object: &str, data: Bytes) -> Result<()> {
        self.only(object, Op::WriteFull { data }).await.map(drop)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// As [`Pool::operate`]; [`Kind::NotFound`] if there is none.
    pub async fn remove(&self, object: &str) -> Result<()> {
        self.only(object, Op::Delete).await.map(drop)
    }

    /// The size of an object.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn stat(&self, object: &str) -> Result<ObjectStat> {
        let data = self.only(object, Op::Stat).await?;
        let size = proto::denc::decode(&data, "stat").context(self.describe(object))?;
        Ok(ObjectStat { size })
    }

    /// Some values of an object's omap: those after a key, at most `max` of them, and whether there are more.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn omap_values(
        &self,
        object: &str,
        after: &str,
        max: u64,
    ) -> Result<(BTreeMap<String, Bytes>, bool)> {
        let op = Op::OmapGetValues { after: after.to_owned(), max, prefix: String::new() };
        let data = self.only(object, op).await?;
        let mut r = proto::denc::Reader::new(&data, "omap values");
        let values = r
            .map(8, |r| Ok((r.string()?, data.slice_ref(r.blob()?))))
            .context(self.describe(object))?;
        let more = if r.is_empty() { false } else { r.bool().context(self.describe(object))? };
        Ok((values, more))
    }

    /// The versions of an object, as its snapshots see it; after whatever was sent for it before.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn list_snaps(&self, object: &str) -> Result<ObjectSnaps> {
        let mut operation = Operation::new(self.locator(), object, vec![Op::ListSnaps.into()]);
        operation.snap = SnapId::DIR;
        operation.flags |= flag::RWORDERED;
        let reply = self.submit(operation).await?;
        let data = reply.ops.into_iter().next().map(|reply| reply.data).unwrap_or_default();
        proto::denc::decode(&data, "list-snaps").context(self.describe(object))
    }

    /// Who watches an object.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn watchers(&self, object: &str) -> Result<Vec<Watcher>> {
        let data = self.only(object, Op::ListWatchers).await?;
        decode_watchers(&data).context(self.describe(object))
    }

    /// All objects of this pool and namespace.
    ///
    /// # Errors
    /// As [`Pool::operate`].
    pub async fn list_objects(&self) -> Result<Vec<ListedObject>> {
        let mut listed = Vec::new();
        let mut cursor = HObject::min();
        // A PG's last page ends where the next PG begins, in the order of hashes.
        while !cursor.max {
            let (page, next) = self.list_from(cursor).await?;
            listed.extend(page);
            cursor = next;
        }
        Ok(listed)
    }

    async fn list_from(&self, cursor: HObject) -> Result<(Vec<ListedObject>, HObject)> {
        // Addressed to whichever PG has this hash.
        let locator = Locator { hash: Some(cursor.hash), ..self.locator() };
        let op = Op::ListObjects { max: 1024, start_epoch: Epoch(0), cursor: Box::new(cursor) };
        let reply = self.submit(Operation::new(locator, "", vec![op.into()])).await?;
        let data = reply.ops.into_iter().next().map(|reply| reply.data).unwrap_or_default();
        let list = ObjectList::decode(&data).context(format!("listing pool {}", self.name))?;
        Ok((list.objects, list.cursor))
    }
}

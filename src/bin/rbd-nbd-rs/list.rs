//! `ls`: lists images.

use std::collections::BTreeMap;

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, Details, LockKind, ParentName};
use ceph_native::pool::Pool;
use tokio::task::JoinSet;

use crate::output::{Format, Side, Tree, table};
use crate::size::Bytes;
use crate::spec::PoolArgs;

/// Lists images.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pool: PoolArgs,
    /// Show sizes, snapshots, parents and locks.
    #[arg(short, long)]
    long: bool,
    #[command(flatten)]
    format: Format,
}

/// A line of the long listing: an image or one of its snapshots.
struct Entry {
    image: String,
    id: String,
    snapshot: Option<(String, u64)>,
    size: u64,
    parent: Option<ParentName>,
    protected: bool,
    lock: Option<LockKind>,
}

impl List {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let pool = self.pool.open(cluster).await?;
        let images = admin::list(&pool).await?;
        if !self.long {
            return self.format.print(
                "images",
                || Tree::list("name", images.keys().cloned()),
                || images.keys().map(|name| format!("{name}\n")).collect(),
            );
        }
        let window = cluster.config().rbd.concurrent_management_ops;
        let (entries, failed) = read_all(&pool, images, window).await;
        self.format.print(
            "images",
            || Tree::List(entries.iter().map(Entry::tree).collect()),
            || match entries.as_slice() {
                [] => String::new(),
                entries => plain(entries),
            },
        )?;
        failed.map_or(Ok(()), Err)
    }
}

/// Reads some images at a time. One that cannot be read must not hide the others.
async fn read_all(
    pool: &Pool,
    images: BTreeMap<String, String>,
    window: u64,
) -> (Vec<Entry>, Option<Error>) {
    let mut waiting = images.into_iter();
    let mut in_flight = JoinSet::new();
    let mut read = BTreeMap::new();
    let mut failed = None;
    loop {
        while (in_flight.len() as u64) < window {
            let Some((name, id)) = waiting.next() else { break };
            let pool = pool.clone();
            in_flight.spawn(async move { (Entry::read(&pool, &name, &id).await, name) });
        }
        match in_flight.join_next().await {
            None => return (read.into_values().flatten().collect(), failed),
            Some(Ok((Ok(entries), name))) => drop(read.insert(name, entries)),
            Some(Ok((Err(error), name))) => {
                eprintln!("rbd-nbd-rs: image {name}: {error}");
                failed = Some(error);
            }
            Some(Err(error)) => {
                failed = Some(Error::new(Kind::Closed, "a task ended").with_source(error));
            }
        }
    }
}

impl Entry {
    /// Reads an image and its snapshots.
    async fn read(pool: &Pool, name: &str, id: &str) -> Result<Vec<Self>> {
        let details = Details::read(pool, id).await?;
        let lock = details.lock(pool).await?;
        let mut entries = vec![Self {
            image: name.to_owned(),
            id: id.to_owned(),
            snapshot: None,
            size: details.header.size,
            parent: details.parent.clone(),
            protected: false,
            lock,
        }];
        for snapshot in details.snapshots(pool).await? {
            entries.push(Self {
                image: name.to_owned(),
                id: id.to_owned(),
                snapshot: Some((snapshot.info.name, snapshot.info.id.0)),
                size: snapshot.info.image_size,
                parent: snapshot.parent,
                protected: snapshot.protected,
                lock: None,
            });
        }
        Ok(entries)
    }

    fn tree(&self) -> (&'static str, Tree) {
        let mut fields = vec![("image", self.image.clone().into()), ("id", self.id.clone().into())];
        if let Some((name, id)) = &self.snapshot {
            fields.push(("snapshot", name.clone().into()));
            fields.push(("snapshot_id", (*id).into()));
        }
        fields.push(("size", self.size.into()));
        if let Some(parent) = &self.parent {
            fields.push(("parent", parent_tree(parent)));
        }
        fields.push(("format", 2.into()));
        if self.snapshot.is_some() {
            fields.push(("protected", self.protected.to_string().into()));
        }
        match self.lock {
            Some(LockKind::Exclusive) => fields.push(("lock_type", "exclusive".into())),
            Some(LockKind::Shared) => fields.push(("lock_type", "shared".into())),
            None => {}
        }
        (if self.snapshot.is_some() { "snapshot" } else { "image" }, Tree::Object(fields))
    }
}

fn plain(entries: &[Entry]) -> String {
    let columns = [
        ("NAME", Side::Left),
        ("SIZE", Side::Right),
        ("PARENT", Side::Left),
        ("FMT", Side::Right),
        ("PROT", Side::Left),
        ("LOCK", Side::Left),
    ];
    let rows = entries.iter().map(|entry| {
        let name = match &entry.snapshot {
            Some((snapshot, _)) => format!("{}@{snapshot}", entry.image),
            None => entry.image.clone(),
        };
        let lock = match entry.lock {
            Some(LockKind::Exclusive) => "excl",
            Some(LockKind::Shared) => "shr",
            None => "",
        };
        vec![
            name,
            Bytes(entry.size).to_string(),
            entry.parent.as_ref().map(parent_spec).unwrap_or_default(),
            "2".to_owned(),
            if entry.protected { "yes" } else { "" }.to_owned(),
            lock.to_owned(),
        ]
    });
    table(&columns, &rows.collect::<Vec<_>>())
}

/// A parent as people write it.
pub(crate) fn parent_spec(parent: &ParentName) -> String {
    let ParentName { pool, namespace, image, snapshot, .. } = parent;
    match namespace.as_str() {
        "" => format!("{pool}/{image}@{snapshot}"),
        namespace => format!("{pool}/{namespace}/{image}@{snapshot}"),
    }
}

/// A parent as programs read it.
pub(crate) fn parent_tree(parent: &ParentName) -> Tree {
    Tree::Object(vec![
        ("pool", parent.pool.clone().into()),
        ("pool_namespace", parent.namespace.clone().into()),
        ("image", parent.image.clone().into()),
        ("snapshot", parent.snapshot.clone().into()),
    ])
}

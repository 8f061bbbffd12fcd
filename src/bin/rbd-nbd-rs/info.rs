//! `info`: shows what an image is like.

use std::fmt::Write as _;

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{Details, ParentName, Snapshot};
use ceph_native::image::header::{image_id, image_name};
use proto::rbd::Features;
use proto::types::UTime;

use crate::list::parent_spec;
use crate::output::{Format, Tree, local_time};
use crate::size::Bytes;
use crate::spec::SnapArgs;

/// Shows information about image size, striping, etc.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Info {
    #[command(flatten)]
    image: SnapArgs,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    #[command(flatten)]
    format: Format,
}

struct Shown {
    name: String,
    data_pool: Option<String>,
    details: Details,
    /// If it is a snapshot that is shown.
    snapshot: Option<Snapshot>,
}

impl Info {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let mut spec = self.image.spec()?;
        let (pool, name, id) = match self.image_id {
            Some(id) => {
                let pool = spec.open_pool(cluster).await?;
                let name = image_name(&pool, &id).await?;
                (pool, name, id)
            }
            None => {
                spec = spec.with_image()?;
                let pool = spec.open_pool(cluster).await?;
                let id = image_id(&pool, &spec.image).await?;
                (pool, spec.image.clone(), id)
            }
        };
        let details = Details::read(&pool, &id).await?;
        let snapshot = match &spec.snap {
            None => None,
            Some(wanted) => {
                let snapshots = details.snapshots(&pool).await?;
                let found = snapshots.into_iter().find(|snapshot| snapshot.info.name == *wanted);
                Some(found.ok_or_else(|| {
                    // The words that scripts know.
                    let what = "error setting snapshot context: (2) No such file or directory";
                    Error::new(Kind::NotFound, what)
                        .with_hint(format!("image {name} has no snapshot {wanted}"))
                })?)
            }
        };
        let data_pool = match details.header.data_pool {
            Some(id) => Some(cluster.pool_by_id(id).await?.name().to_owned()),
            None => None,
        };
        let shown = Shown { name, data_pool, details, snapshot };
        self.format.print("image", || shown.tree(), || shown.plain())
    }
}

impl Shown {
    fn size(&self) -> u64 {
        self.snapshot.as_ref().map_or(self.details.header.size, |snapshot| snapshot.info.image_size)
    }

    fn parent(&self) -> Option<&ParentName> {
        match &self.snapshot {
            Some(snapshot) => snapshot.parent.as_ref(),
            None => self.details.parent.as_ref(),
        }
    }

    fn timestamps(&self) -> impl Iterator<Item = (&'static str, UTime)> {
        let Details { created, accessed, modified, .. } = &self.details;
        [
            ("create_timestamp", *created),
            ("access_timestamp", *accessed),
            ("modify_timestamp", *modified),
        ]
        .into_iter()
        .filter_map(|(name, time)| Some((name, time?)))
    }

    /// Stripe unit and count, of an image that has them written down.
    fn striping(&self) -> Option<(u64, u64)> {
        let header = &self.details.header;
        let striped = header.features.contains(Features::STRIPING);
        striped.then(|| (header.layout.stripe_unit(), header.layout.stripe_count()))
    }

    fn tree(&self) -> Tree {
        let Details { id, header, op_features, .. } = &self.details;
        let mut fields: Vec<(&'static str, Tree)> = vec![
            ("name", self.name.clone().into()),
            ("id", id.clone().into()),
            ("size", self.size().into()),
            ("objects", header.layout.objects(self.size()).into()),
            ("order", u64::from(header.layout.order()).into()),
            ("object_size", header.layout.object_size().into()),
            ("snapshot_count", (header.snap_context.snaps.len() as u64).into()),
        ];
        if let Some(pool) = &self.data_pool {
            fields.push(("data_pool", pool.clone().into()));
        }
        fields.extend([
            ("block_name_prefix", header.object_prefix.clone().into()),
            ("format", 2.into()),
            ("features", Tree::list("feature", header.features.names())),
            ("op_features", Tree::list("op_feature", op_features.names())),
            ("flags", Tree::list("flag", header.flags.names())),
        ]);
        if let Some(group) = &self.details.group {
            fields.push(("group", group.clone().into()));
        }
        fields.extend(self.timestamps().map(|(name, time)| (name, local_time(time).into())));
        if let Some(snapshot) = &self.snapshot {
            fields.push(("protected", snapshot.protected.to_string().into()));
        }
        if let Some(parent) = self.parent() {
            let parent = vec![
                ("pool", parent.pool.clone().into()),
                ("pool_namespace", parent.namespace.clone().into()),
                ("image", parent.image.clone().into()),
                ("id", parent.image_id.clone().into()),
                ("snapshot", parent.snapshot.clone().into()),
                ("trash", Tree::Truth(parent.in_trash)),
                ("overlap", parent.overlap.into()),
            ];
            fields.push(("parent", Tree::Object(parent)));
        }
        if let Some((unit, count)) = self.striping() {
            fields.extend([("stripe_unit", unit.into()), ("stripe_count", count.into())]);
        }
        if header.features.contains(Features::JOURNALING) {
            fields.push(("journal", id.clone().into()));
        }
        if self.details.mirrored == Some(false) {
            let mode = ("mode", "journal".to_owned().into());
            let state = ("state", "disabled".to_owned().into());
            fields.push(("mirroring", Tree::Object(vec![mode, state])));
        }
        Tree::Object(fields)
    }

    fn plain(&self) -> String {
        let Details { id, header, op_features, .. } = &self.details;
        let mut out = format!("rbd image '{}':\n", self.name);
        let mut line = |text: String| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "\t{text}");
        };
        let objects = header.layout.objects(self.size());
        line(format!("size {} in {objects} objects", Bytes(self.size())));
        let object_size = Bytes(header.layout.object_size());
        line(format!("order {} ({object_size} objects)", header.layout.order()));
        line(format!("snapshot_count: {}", header.snap_context.snaps.len()));
        line(format!("id: {id}"));
        if let Some(pool) = &self.data_pool {
            line(format!("data_pool: {pool}"));
        }
        line(format!("block_name_prefix: {}", header.object_prefix));
        line("format: 2".to_owned());
        line(format!("features: {}", joined(header.features.names())));
        line(format!("op_features: {}", joined(op_features.names())));
        line(format!("flags: {}", joined(header.flags.names())));
        if let Some(group) = &self.details.group {
            line(format!("group: {group}"));
        }
        for (name, time) in self.timestamps() {
            line(format!("{name}: {}", local_time(time)));
        }
        if let Some(snapshot) = &self.snapshot {
            line(format!("protected: {}", if snapshot.protected { "True" } else { "False" }));
        }
        if let Some(parent) = self.parent() {
            let trash = match parent.in_trash {
                true => format!(" (trash {})", parent.image_id),
                false => String::new(),
            };
            line(format!("parent: {}{trash}", parent_spec(parent)));
            line(format!("overlap: {}", Bytes(parent.overlap)));
        }
        if let Some((unit, count)) = self.striping() {
            line(format!("stripe unit: {}", Bytes(unit)));
            line(format!("stripe count: {count}"));
        }
        if header.features.contains(Features::JOURNALING) {
            line(format!("journal: {id}"));
        }
        if self.details.mirrored == Some(false) {
            line("mirroring state: disabled".to_owned());
        }
        out
    }
}

fn joined(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

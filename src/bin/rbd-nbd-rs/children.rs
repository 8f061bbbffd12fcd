//! `children`: lists the clones of an image or of one of its snapshots.

use std::collections::BTreeSet;

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, ChildImage, Details};
use ceph_native::image::header::image_id;
use proto::types::SnapId;

use crate::output::{Format, Tree};
use crate::spec::SnapArgs;

/// Displays children of an image or its snapshot.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Children {
    #[command(flatten)]
    parent: SnapArgs,
    /// Snapshot id, instead of a name.
    #[arg(long, value_name = "ID")]
    snap_id: Option<u64>,
    /// Image id, instead of a name.
    #[arg(long, value_name = "ID")]
    image_id: Option<String>,
    /// List the children's children, too.
    #[arg(long)]
    descendants: bool,
    /// List all children, those in the trash among them.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

impl Children {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let mut spec = self.parent.spec()?;
        if self.image_id.is_none() {
            spec = spec.with_image()?;
        }
        let pool = spec.open_pool(cluster).await?;
        let id = match &self.image_id {
            Some(id) => id.clone(),
            None => image_id(&pool, &spec.image).await?,
        };
        let details = Details::read(&pool, &id).await?;
        let snaps = match (self.snap_id, &spec.snap) {
            (Some(_), Some(_)) => {
                let what = "trying to access snapshot using both name and id.";
                return Err(Error::new(Kind::Invalid, what));
            }
            (Some(id), None) => vec![SnapId(id)],
            (None, None) => details.header.snap_context.snaps.clone(),
            (None, Some(name)) => {
                let snapshots = details.snapshots(&pool).await?;
                let found = snapshots.into_iter().find(|snapshot| snapshot.info.name == *name);
                let found = found.ok_or_else(|| {
                    let what = format!("image {} has no snapshot {name}", spec.image);
                    Error::new(Kind::NotFound, what)
                })?;
                vec![found.info.id]
            }
        };
        let mut children = admin::children(&pool, &id, &snaps).await?;
        if self.descendants {
            children = descendants(cluster, children).await?;
        }
        children.retain(|child| self.all || !child.in_trash);
        self.format.print(
            "children",
            || Tree::list("child", children.iter().map(|child| tree(child, self.all))),
            || children.iter().map(plain).collect(),
        )
    }
}

/// The children, their children, and so on.
async fn descendants(cluster: &Cluster, children: Vec<ChildImage>) -> Result<Vec<ChildImage>> {
    let (mut all, mut left) = (BTreeSet::new(), children);
    while let Some(child) = left.pop() {
        let pool = cluster.pool(&child.pool).await?.with_namespace(&child.namespace);
        let snaps = Details::read(&pool, &child.id).await?.header.snap_context.snaps;
        left.extend(admin::children(&pool, &child.id, &snaps).await?);
        all.insert(child);
    }
    Ok(all.into_iter().collect())
}

fn tree(child: &ChildImage, all: bool) -> Tree {
    let mut fields = vec![
        ("pool", child.pool.clone().into()),
        ("pool_namespace", child.namespace.clone().into()),
        ("image", child.name.clone().into()),
    ];
    if all {
        fields.extend([("id", child.id.clone().into()), ("trash", Tree::Truth(child.in_trash))]);
    }
    Tree::Object(fields)
}

fn plain(child: &ChildImage) -> String {
    let ChildImage { pool, namespace, name, id, in_trash } = child;
    let namespace = match namespace.as_str() {
        "" => String::new(),
        namespace => format!("{namespace}/"),
    };
    let trash = if *in_trash { format!(" (trash {id})") } else { String::new() };
    format!("{pool}/{namespace}{name}{trash}\n")
}

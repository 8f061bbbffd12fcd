//! `children`: lists the clones of an image or of one of its snapshots.

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
    /// List all children, those in the trash among them.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

impl Children {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.parent.spec()?.with_image()?;
        let pool = spec.open_pool(cluster).await?;
        let id = image_id(&pool, &spec.image).await?;
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
        children.retain(|child| self.all || !child.in_trash);
        self.format.print(
            "children",
            || Tree::list("child", children.iter().map(|child| tree(child, self.all))),
            || children.iter().map(plain).collect(),
        )
    }
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

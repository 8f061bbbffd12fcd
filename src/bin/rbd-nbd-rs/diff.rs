//! `diff`: which parts of an image have changed.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::Image;
use ceph_native::image::admin::{self, DiffOptions, Difference};

use crate::output::{Format, Side, Tree, table};
use crate::snap::closed;
use crate::spec::SnapArgs;

/// Prints the parts of an image that differ since a snapshot, or since it was made.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Diff {
    #[command(flatten)]
    image: SnapArgs,
    /// Since that snapshot.
    #[arg(long, value_name = "SNAP")]
    from_snap: Option<String>,
    /// Compare whole objects: fast, where object maps can be relied on.
    #[arg(long)]
    whole_object: bool,
    #[command(flatten)]
    format: Format,
}

impl Diff {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let image = self.image.spec()?.with_image()?.open(cluster, true).await?;
        let differences = self.differences(&image).await;
        let differences = closed(image, differences).await?;
        self.format.print("extents", || tree(&differences), || plain(&differences))
    }

    async fn differences(&self, image: &Image) -> Result<Vec<Difference>> {
        let from = match &self.from_snap {
            Some(name) => Some(admin::user_snapshot(image, name).await?.id),
            None => None,
        };
        let options = DiffOptions { from, whole_objects: self.whole_object, with_parent: true };
        let mut all = Vec::new();
        let mut add = |difference| {
            all.push(difference);
            Ok(())
        };
        admin::diff(image, options, &mut add).await?;
        Ok(all)
    }
}

fn tree(differences: &[Difference]) -> Tree {
    let parts = differences.iter().map(|difference| {
        Tree::Object(vec![
            ("offset", difference.offset.into()),
            ("length", difference.length.into()),
            ("exists", difference.exists.to_string().into()),
        ])
    });
    Tree::list("extent", parts)
}

fn plain(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return String::new();
    }
    let columns = [("Offset", Side::Left), ("Length", Side::Left), ("Type", Side::Left)];
    let rows = differences.iter().map(|difference| {
        let kind = if difference.exists { "data" } else { "zero" };
        vec![difference.offset.to_string(), difference.length.to_string(), kind.to_owned()]
    });
    table(&columns, &rows.collect::<Vec<_>>())
}

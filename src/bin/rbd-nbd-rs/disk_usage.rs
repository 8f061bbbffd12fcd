//! `du`: how much of images is used.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use ceph_native::image::admin::{self, Details, DiffOptions, Snapshot};
use ceph_native::image::{Image, OpenOptions, Version};
use ceph_native::pool::Pool;
use proto::rbd::{Features, Flags};
use proto::types::SnapId;

use crate::output::{Format, Side, Tree, table};
use crate::size::Bytes;
use crate::snap::closed;
use crate::spec::SnapArgs;

/// Shows how much of an image, of its snapshots or of all images of a pool is used.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DiskUsage {
    #[command(flatten)]
    image: SnapArgs,
    /// Only what has changed since that snapshot.
    #[arg(long, value_name = "SNAP")]
    from_snap: Option<String>,
    /// Count bytes, not objects (slow).
    #[arg(long)]
    exact: bool,
    /// Count snapshots as part of their image.
    #[arg(long)]
    merge_snapshots: bool,
    #[command(flatten)]
    format: Format,
}

/// What is used by one version of an image.
struct Usage {
    image: String,
    id: String,
    snapshot: Option<(String, SnapId)>,
    provisioned: u64,
    used: u64,
}

/// All that is shown.
struct Shown {
    lines: Vec<Usage>,
    /// How many versions were counted.
    count: usize,
    provisioned: u64,
    used: u64,
    of_pool: bool,
}

impl DiskUsage {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let mut images = admin::list(&pool).await?;
        let empty = images.is_empty();
        let of_pool = spec.image.is_empty();
        if !of_pool {
            images.retain(|name, _| *name == spec.image);
            if images.is_empty() {
                let what = format!("there is no image {}", spec.image);
                return Err(Error::new(Kind::NotFound, what));
            }
        }
        let mut shown = Shown { lines: Vec::new(), count: 0, provisioned: 0, used: 0, of_pool };
        for (name, id) in &images {
            match self.look(&pool, name, id, spec.snap.as_deref(), &mut shown).await {
                // It is being removed.
                Err(error) if error.kind() == Kind::NotFound && of_pool => {}
                looked => looked?,
            }
        }
        if empty && self.format.is_plain() {
            return Ok(());
        }
        self.format.print("stats", || shown.tree(), || shown.plain())
    }

    /// Counts what an image uses: each snapshot what it has changed since the one before.
    async fn look(
        &self,
        pool: &Pool,
        name: &str,
        id: &str,
        until: Option<&str>,
        shown: &mut Shown,
    ) -> Result<()> {
        let details = Details::read(pool, id).await?;
        if !details.header.features.contains(Features::FAST_DIFF) {
            eprintln!("warning: fast-diff map is not enabled for {name}. operation may be slow.");
        } else if details.header.flags.0 & Flags::FAST_DIFF_INVALID.0 != 0 {
            eprintln!("warning: fast-diff map is invalid for {name}. operation may be slow.");
        }
        let snapshots = details.snapshots(pool).await?;
        let find = |wanted: &str| {
            let found = snapshots.iter().position(|snapshot| snapshot.info.name == wanted);
            let what = format!("image {name} has no snapshot {wanted}");
            found.ok_or_else(|| Error::new(Kind::NotFound, what))
        };
        let until = until.map(find).transpose()?;
        let after = self.from_snap.as_deref().map(find).transpose()?;
        match (after, until) {
            (Some(after), Some(until)) if after == until => return Ok(()),
            (Some(after), Some(until)) if after > until => {
                return Err(Error::new(Kind::Invalid, "--from-snap is newer than the snapshot"));
            }
            _ => {}
        }
        let first = after.map_or(0, |after| after + 1);
        let last = until.map_or(snapshots.len(), |until| until + 1);
        let mut whole = 0;
        let mut before: Option<&Snapshot> = first.checked_sub(1).map(|at| &snapshots[at]);
        for snapshot in &snapshots[first..last] {
            let info = &snapshot.info;
            let used = self.used(pool, id, Version::SnapshotId(info.id), before).await?;
            before = Some(snapshot);
            whole += used;
            if until.is_some() {
                shown.provisioned += info.image_size;
            }
            let version = Some((info.name.clone(), info.id));
            self.count(shown, (name, id, version), (info.image_size, used), used);
        }
        if until.is_none() {
            let size = details.header.size;
            let used = self.used(pool, id, Version::Head, before).await?;
            let of_line = if self.merge_snapshots { whole + used } else { used };
            shown.provisioned += size;
            self.count(shown, (name, id, None), (size, of_line), used);
        }
        Ok(())
    }

    fn count(
        &self,
        shown: &mut Shown,
        (image, id, snapshot): (&str, &str, Option<(String, SnapId)>),
        (provisioned, used): (u64, u64),
        more: u64,
    ) {
        shown.count += 1;
        shown.used += more;
        if snapshot.is_none() || !self.merge_snapshots {
            let (image, id) = (image.to_owned(), id.to_owned());
            shown.lines.push(Usage { image, id, snapshot, provisioned, used });
        }
    }

    async fn used(
        &self,
        pool: &Pool,
        id: &str,
        version: Version,
        before: Option<&Snapshot>,
    ) -> Result<u64> {
        let open = OpenOptions { read_only: true, version, ..OpenOptions::default() };
        let image = Image::open_by_id(pool, id, &open).await?;
        let from = before.map(|snapshot| snapshot.info.id);
        let options = DiffOptions { from, whole_objects: !self.exact, with_parent: false };
        let mut used = 0;
        let mut add = |part: admin::Difference| {
            used += if part.exists { part.length } else { 0 };
            Ok(())
        };
        let done = admin::diff(&image, options, &mut add).await;
        closed(image, done).await?;
        Ok(used)
    }
}

impl Shown {
    fn tree(&self) -> Tree {
        let images = self.lines.iter().map(|line| {
            let mut fields: Vec<(&'static str, Tree)> =
                vec![("name", line.image.clone().into()), ("id", line.id.clone().into())];
            if let Some((name, id)) = &line.snapshot {
                fields.extend([("snapshot", name.clone().into()), ("snapshot_id", id.0.into())]);
            }
            fields.push(("provisioned_size", line.provisioned.into()));
            fields.push(("used_size", line.used.into()));
            Tree::Object(fields)
        });
        let mut stats = vec![("images", Tree::list("image", images))];
        if self.of_pool {
            stats.push(("total_provisioned_size", self.provisioned.into()));
            stats.push(("total_used_size", self.used.into()));
        }
        Tree::Object(stats)
    }

    fn plain(&self) -> String {
        let mut rows: Vec<_> = self.lines.iter().map(Usage::cells).collect();
        if self.count > 1 {
            let total = |bytes| Bytes(bytes).to_string();
            rows.push(vec!["<TOTAL>".to_owned(), total(self.provisioned), total(self.used)]);
        }
        let columns = [("NAME", Side::Left), ("PROVISIONED", Side::Right), ("USED", Side::Right)];
        table(&columns, &rows)
    }
}

impl Usage {
    fn cells(&self) -> Vec<String> {
        let name = match &self.snapshot {
            Some((snapshot, _)) => format!("{}@{snapshot}", self.image),
            None => self.image.clone(),
        };
        vec![name, Bytes(self.provisioned).to_string(), Bytes(self.used).to_string()]
    }
}

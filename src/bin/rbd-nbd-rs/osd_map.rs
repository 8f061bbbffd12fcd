//! `osd-map`: says where an object is, as `ceph osd map` does.

use ceph_native::cluster::Cluster;
use ceph_native::error::{Error, Kind, Result};
use proto::osdmap::{NO_OSD, OsdMap, PgMapping};
use proto::types::{OsdId, PgId, PoolId};

use crate::output::{Format, Tree};

/// Shows the placement group of an object, whether or not there is one of that name, and the OSDs that have it.
///
/// It is computed here, from the cluster's newest map, as for every request.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct OsdMapOf {
    /// Pool name.
    pool: String,
    /// Object name.
    object: String,
    /// Namespace name.
    #[arg(default_value = "")]
    namespace: String,
    #[command(flatten)]
    format: Format,
}

/// An object's place.
struct Place<'a> {
    epoch: u32,
    pool: PoolId,
    /// The whole hash in place of the group's number.
    raw: PgId,
    pg: PgId,
    mapping: &'a PgMapping,
}

impl OsdMapOf {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        // The answer is about now, not about when this client last needed a map.
        cluster.refresh_map().await?;
        let pool = cluster.pool(&self.pool).await?.id();
        let printed = cluster.with_map(|map| {
            let place = self.place(map, pool)?;
            Some(self.format.print("osd_map", || self.tree(&place), || self.plain(&place)))
        });
        let vanished = || Error::new(Kind::NotFound, format!("pool {} was removed", self.pool));
        printed.flatten().ok_or_else(vanished)?
    }

    fn place<'a>(&self, map: &'a OsdMap, pool: PoolId) -> Option<Place<'a>> {
        let contents = map.pool(pool)?;
        let hash = contents.hash_object(self.namespace.as_bytes(), self.object.as_bytes());
        let pg = PgId { pool, seed: contents.fold(hash) };
        let raw = PgId { pool, seed: hash };
        Some(Place { epoch: map.epoch.0, pool, raw, pg, mapping: map.mapping(pg)? })
    }

    fn name(&self) -> String {
        match self.namespace.as_str() {
            "" => self.object.clone(),
            namespace => format!("{namespace}/{}", self.object),
        }
    }

    fn tree(&self, place: &Place<'_>) -> Tree {
        let Place { epoch, pool, raw, pg, mapping } = place;
        let id = |osd: i32| Tree::Number(osd.into());
        let osds = |osds: &[OsdId]| Tree::list("osd", osds.iter().map(|osd| id(osd.0)));
        let primary = |osd| id(number(osd));
        Tree::Object(vec![
            ("epoch", u64::from(*epoch).into()),
            ("pool", self.pool.as_str().into()),
            ("pool_id", Tree::Number(pool.0.into())),
            ("objname", self.name().into()),
            ("raw_pgid", raw.to_string().into()),
            ("pgid", pg.to_string().into()),
            ("up", osds(&mapping.up)),
            ("up_primary", primary(mapping.up_primary)),
            ("acting", osds(&mapping.acting)),
            ("acting_primary", primary(mapping.acting_primary)),
        ])
    }

    fn plain(&self, place: &Place<'_>) -> String {
        let Place { epoch, pool, raw, pg, mapping } = place;
        format!(
            "osdmap e{epoch} pool '{}' ({pool}) object '{}' -> pg {raw} ({pg}) -> up ({}, p{}) acting ({}, p{})\n",
            self.pool,
            self.name(),
            list(&mapping.up),
            number(mapping.up_primary),
            list(&mapping.acting),
            number(mapping.acting_primary)
        )
    }
}

fn number(osd: Option<OsdId>) -> i32 {
    osd.map_or(-1, |osd| osd.0)
}

fn list(osds: &[OsdId]) -> String {
    let name = |osd: &OsdId| if *osd == NO_OSD { "NONE".to_owned() } else { osd.to_string() };
    format!("[{}]", osds.iter().map(name).collect::<Vec<_>>().join(","))
}

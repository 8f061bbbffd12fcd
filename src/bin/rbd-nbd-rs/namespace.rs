//! `namespace`: namespaces of a pool.

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::admin;
use clap::Subcommand;

use crate::output::{Format, Side, Tree, table};
use crate::spec::PoolArgs;

/// Namespace commands.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum Namespace {
    /// Creates a namespace.
    Create(Create),
    /// Lists the namespaces of a pool.
    #[command(name = "ls", visible_alias = "list")]
    List(List),
    /// Removes a namespace that has no images.
    #[command(name = "rm", visible_alias = "remove")]
    Remove(Create),
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Create {
    #[command(flatten)]
    pool: PoolArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    format: Format,
}

impl Namespace {
    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::Create(create) => {
                let (pool, name) = create.pool.open_unchecked(cluster).await?;
                admin::create_namespace(&pool, &name).await
            }
            Self::Remove(remove) => {
                let (pool, name) = remove.pool.open_unchecked(cluster).await?;
                admin::remove_namespace(&pool, &name).await
            }
            Self::List(list) => list.run(cluster).await,
        }
    }
}

impl List {
    async fn run(self, cluster: &Cluster) -> Result<()> {
        let (pool, _) = self.pool.open_unchecked(cluster).await?;
        let names = admin::list_namespaces(&pool).await?;
        let tree = |name: &String| Tree::Object(vec![("name", name.clone().into())]);
        self.format.print(
            "namespaces",
            || Tree::list("namespace", names.iter().map(tree)),
            || match names.as_slice() {
                [] => String::new(),
                names => {
                    let rows: Vec<_> = names.iter().map(|name| vec![name.clone()]).collect();
                    table(&[("NAME", Side::Left)], &rows)
                }
            },
        )
    }
}

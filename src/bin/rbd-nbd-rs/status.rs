//! `status`: shows who uses an image, or what a process of ours does.

use std::fmt::Write as _;
use std::path::PathBuf;

use ceph_native::cluster::Cluster;
use ceph_native::error::Result;
use ceph_native::image::admin::address_text;
use ceph_native::image::header::image_id;
use ceph_native::telemetry;
use proto::msg::watch::Watcher;
use proto::rbd::names;

use crate::daemon;
use crate::output::{Format, Tree};
use crate::spec::ImageArgs;

/// Shows the status of an image: who has it open. Or, with --daemon, that of a process of ours: its sessions, the
/// operations in flight and what they wait for, its images and what it counted.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    image: ImageArgs,
    /// Ask the process that listens on this admin socket (`--admin-socket`).
    #[arg(long, value_name = "SOCKET")]
    daemon: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

impl Status {
    pub(crate) fn asks_daemon(&self) -> bool {
        self.daemon.is_some()
    }

    pub(crate) fn ask_daemon(self) -> Result<()> {
        let told = telemetry::ask(&self.daemon.unwrap_or_default(), "status")?;
        self.format.print_json(&told, || daemon::plain(&told))
    }

    pub(crate) async fn run(self, cluster: &Cluster) -> Result<()> {
        let spec = self.image.spec()?;
        let pool = spec.open_pool(cluster).await?;
        let id = image_id(&pool, &spec.image).await?;
        let watchers = pool.watchers(&names::header(&id)).await?;
        self.format.print("status", || tree(&watchers), || plain(&watchers))
    }
}

fn tree(watchers: &[Watcher]) -> Tree {
    let watchers = watchers.iter().map(|watcher| {
        Tree::Object(vec![
            ("address", address_text(&watcher.addr).into()),
            ("client", (watcher.name.num as u64).into()),
            ("cookie", watcher.cookie.into()),
        ])
    });
    Tree::Object(vec![("watchers", Tree::list("watcher", watchers))])
}

fn plain(watchers: &[Watcher]) -> String {
    if watchers.is_empty() {
        return "Watchers: none\n".to_owned();
    }
    watchers.iter().fold("Watchers:\n".to_owned(), |mut out, watcher| {
        let (address, client, cookie) =
            (address_text(&watcher.addr), watcher.name.num, watcher.cookie);
        let _ = writeln!(out, "\twatcher={address} client.{client} cookie={cookie}");
        out
    })
}

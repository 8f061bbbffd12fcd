//! `devcluster`: runs a small RADOS cluster until Ctrl-C.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Parser;
use devcluster::{ConnectionMode, DevCluster, Options, PoolOptions};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

/// A whole small RADOS cluster in one process, for trying things out. Real Ceph clients can use it.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// How many OSDs.
    #[arg(long, default_value_t = 1)]
    osds: u32,
    /// A pool to create; may be given several times.
    #[arg(long = "pool", value_name = "NAME", default_value = "rbd")]
    pools: Vec<String>,
    /// How many placement groups each pool has.
    #[arg(long, default_value_t = 32)]
    pg_num: u32,
    /// Where ceph.conf and keyring are written.
    #[arg(long, value_name = "FOLDER", default_value = "devcluster")]
    dir: PathBuf,
    /// Keep everything in this folder, so that it survives a restart.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// The monitor's port; OSDs have the ones after it. Any free ones if not given.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Let everybody in, without keys.
    #[arg(long)]
    no_auth: bool,
    /// Encrypt all connections, rather than those with the monitor only.
    #[arg(long)]
    secure: bool,
    /// Encrypt nothing.
    #[arg(long, conflicts_with = "secure")]
    crc: bool,
    /// Make a key for this client as well (without "client."); may be given several times.
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let asked = std::env::var("RUST_LOG").ok().and_then(|asked| asked.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    let arguments = Arguments::parse();
    let mut options = Options {
        osds: arguments.osds.max(1),
        pools: (arguments.pools.iter())
            .map(|name| PoolOptions { pg_num: arguments.pg_num, ..PoolOptions::new(name) })
            .collect(),
        data: arguments.data,
        auth: !arguments.no_auth,
        clients: arguments.clients,
        port: arguments.port,
        ..Options::default()
    };
    if arguments.secure {
        options.mon_modes = vec![ConnectionMode::Secure];
        options.osd_modes = vec![ConnectionMode::Secure];
    } else if arguments.crc || arguments.no_auth {
        options.mon_modes = vec![ConnectionMode::Crc];
        options.osd_modes = vec![ConnectionMode::Crc];
    }
    let pool = arguments.pools.first().cloned().unwrap_or_default();
    let cluster = DevCluster::start(options).await?;
    let conf = cluster.write_conf(&arguments.dir)?;
    let text = format!(
        "devcluster {} with its monitor at {}.\n\n  export CEPH_CONF={}\n  rados -p {pool} ls\n  \
         rbd create --size 1G {pool}/disk\n\nCtrl-C ends it.\n",
        cluster.fsid(),
        cluster.monitor(),
        conf.display(),
    );
    // Whoever started it may have stopped listening: that is no reason to stop.
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    wait_for_signal().await?;
    cluster.stop().await;
    Ok(())
}

async fn wait_for_signal() -> io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

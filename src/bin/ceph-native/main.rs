//! Ceph volumes for Docker: the plugin, and what Docker has no words for.

mod check;
mod client;
mod plugin;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use ceph_native::docker::{Settings, filesystem, on_host};
use ceph_native::error::{Error, Kind, Result};
use clap::{Parser, Subcommand};
use serde_json::json;

#[derive(Parser, Debug)]
#[command(name = "ceph-native", version, about, max_term_width = 100)]
struct Cli {
    /// Settings [default: /etc/ceph-native/ceph-native.toml, if it is there].
    #[arg(long, global = true, value_name = "FILE", env = "CEPH_NATIVE_SETTINGS")]
    settings: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serves Docker.
    Plugin,
    /// Says what is wrong with settings, host and cluster.
    Check,
    /// Lists the cluster's volumes.
    #[command(visible_alias = "ls")]
    Volumes,
    /// Makes a volume larger, and its file system.
    Resize {
        /// The volume.
        name: String,
        /// Its new size: in GiB, or with a unit.
        size: String,
    },
    /// Takes a snapshot of a volume, mounted or not, of all that was written before; or removes one.
    Snapshot {
        /// The volume.
        name: String,
        /// The snapshot.
        snapshot: String,
        /// Remove it.
        #[arg(long)]
        remove: bool,
    },
    /// Makes a new volume of what another one holds.
    Clone {
        /// The volume, or VOLUME@SNAPSHOT, or an image as POOL/[NAMESPACE/]IMAGE[@SNAPSHOT].
        name: String,
        /// The new volume.
        new: String,
    },
    /// Brings a volume that is mounted nowhere back to a snapshot.
    Restore {
        /// The volume.
        name: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Checks the file system of a volume that is not mounted, and repairs what can be repaired without asking.
    Fsck {
        /// The volume.
        name: String,
    },
    /// Shows who has a volume.
    Who {
        /// The volume.
        name: String,
    },
    /// Fences the host that has a volume, if it is dead for sure: nothing it writes is applied any more.
    Fence {
        /// The volume.
        name: String,
    },
    /// For the plugin's own use.
    #[command(name = filesystem::MOUNT_VERB, hide = true)]
    DoMount {
        device: String,
        target: PathBuf,
        fstype: String,
        options: String,
        root: filesystem::Root,
    },
    /// For the plugin's own use.
    #[command(name = filesystem::UNMOUNT_VERB, hide = true)]
    DoUnmount { target: PathBuf },
    /// For the plugin's own use.
    #[command(name = filesystem::SYNC_VERB, hide = true)]
    DoSync { target: PathBuf },
    /// For the plugin's own use.
    #[command(name = on_host::VERB, hide = true)]
    OnHost {
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    log_to_stderr();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ceph-native: {error}");
            ExitCode::from(u8::try_from(error.errno()).unwrap_or(1))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    // These are run by the plugin, which has read the settings.
    match &cli.command {
        Command::DoMount { device, target, fstype, options, root } => {
            return filesystem::do_mount(device, target, fstype, options, root);
        }
        Command::DoUnmount { target } => return filesystem::do_unmount(target),
        Command::DoSync { target } => return filesystem::do_sync(target),
        Command::OnHost { program, args } => return on_host::run(program, args),
        _ => {}
    }
    let settings = Settings::load(cli.settings.as_deref())?;
    // One thread: everything that could keep it is a process of its own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Os(5), "cannot start").with_source(error))?;
    let done = runtime.block_on(async {
        match &cli.command {
            Command::Plugin => plugin::run(settings.clone()).await,
            Command::Check => check::run(&settings).await,
            Command::Volumes => client::volumes(&settings).await,
            Command::Resize { name, size } => {
                client::verb(&settings, "Resize", name, json!({ "Size": size })).await
            }
            Command::Snapshot { name, snapshot, remove } => {
                let verb = if *remove { "RemoveSnapshot" } else { "Snapshot" };
                client::verb(&settings, verb, name, json!({ "Other": snapshot })).await
            }
            Command::Clone { name, new } => {
                client::verb(&settings, "Clone", name, json!({ "Other": new })).await
            }
            Command::Restore { name, snapshot } => {
                client::verb(&settings, "Restore", name, json!({ "Other": snapshot })).await
            }
            Command::Fsck { name } => client::verb(&settings, "Fsck", name, json!({})).await,
            Command::Who { name } => client::verb(&settings, "Who", name, json!({})).await,
            Command::Fence { name } => client::verb(&settings, "Fence", name, json!({})).await,
            Command::DoMount { .. }
            | Command::DoUnmount { .. }
            | Command::DoSync { .. }
            | Command::OnHost { .. } => Ok(()),
        }
    });
    // A file that is being written on a slow disk is not worth waiting for: the old one is whole.
    runtime.shutdown_background();
    done
}

/// What `RUST_LOG` asks for: levels by target, as in `warn,ceph_native::cluster=debug`.
fn log_to_stderr() {
    use std::io::IsTerminal as _;

    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;

    let asked = std::env::var("RUST_LOG").ok().and_then(|asked| asked.parse::<Targets>().ok());
    let filter = asked.unwrap_or_else(|| {
        let warnings = Targets::new().with_default(LevelFilter::WARN);
        warnings.with_target("ceph_native::docker", LevelFilter::INFO)
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}

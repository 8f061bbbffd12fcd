//! Images of a Ceph cluster as block devices, without librbd.
//!
//! Exit codes are `rbd`'s: 0, 1 for a command line that makes no sense, and otherwise the errno of what went wrong.

mod bench;
mod children;
mod clone;
mod copy;
mod create;
mod daemon;
mod demo;
mod diff;
mod diff_stream;
mod disk_usage;
mod export;
mod feature;
mod image_meta;
mod import;
mod info;
mod list;
mod lock;
mod map;
mod namespace;
mod object_map;
mod osd_map;
mod output;
mod progress;
mod records;
mod remove;
mod rename;
mod resize;
mod serve;
mod size;
mod snap;
mod spec;
mod status;
mod trash;
mod words;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use ceph_native::cluster::Cluster;
use ceph_native::config::{self, Config};
use ceph_native::error::{Error, Kind, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "rbd-nbd-rs", version, about, after_help = config::HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Verb(Box<Verb>),
    #[command(flatten)]
    Map(Box<map::Verb>),
    Demo(demo::Demo),
}

#[derive(Subcommand, Debug)]
enum Verb {
    Create(create::Create),
    #[command(name = "ls", visible_alias = "list")]
    List(list::List),
    Info(info::Info),
    #[command(name = "du", visible_alias = "disk-usage")]
    DiskUsage(disk_usage::DiskUsage),
    Diff(diff::Diff),
    #[command(name = "rm", visible_alias = "remove")]
    Remove(remove::Remove),
    Resize(resize::Resize),
    #[command(visible_alias = "mv")]
    Rename(rename::Rename),
    #[command(subcommand)]
    Feature(feature::Feature),
    #[command(subcommand)]
    Lock(lock::Lock),
    #[command(subcommand)]
    ObjectMap(object_map::ObjectMap),
    Status(status::Status),
    Children(children::Children),
    Clone(clone::Clone),
    Flatten(clone::Flatten),
    #[command(subcommand)]
    Snap(snap::Snap),
    #[command(subcommand)]
    Trash(trash::Trash),
    #[command(subcommand)]
    Namespace(namespace::Namespace),
    #[command(subcommand)]
    ImageMeta(image_meta::ImageMeta),
    #[command(subcommand)]
    Config(image_meta::Config),
    Export(export::Export),
    Import(import::Import),
    ExportDiff(diff_stream::ExportDiff),
    ImportDiff(diff_stream::ImportDiff),
    #[command(name = "cp", visible_alias = "copy")]
    Copy(copy::Copy),
    Bench(bench::Bench),
    Serve(serve::Serve),
    #[command(name = "osd-map")]
    OsdMap(osd_map::OsdMapOf),
}

/// What there is under the name of Ceph's `rbd-nbd`.
#[derive(Parser, Debug)]
#[command(name = "rbd-nbd", version, about, after_help = config::HELP, max_term_width = 100)]
struct DropIn {
    #[command(subcommand)]
    verb: map::Verb,
}

/// As [`main`], but with the verb anywhere on the line, and one exit code for all failures.
fn drop_in(mut words: Vec<String>) -> ExitCode {
    let failed = |error: &dyn std::fmt::Display| {
        eprintln!("rbd-nbd: {error}");
        ExitCode::FAILURE
    };
    map::translate(words.get_mut(1..).unwrap_or_default());
    let ceph = match config::Args::take(&mut words) {
        Ok(ceph) => ceph,
        Err(error) => return failed(&error),
    };
    match DropIn::try_parse_from(words) {
        Ok(DropIn { verb }) => {
            log_to_stderr();
            match map::run(verb, &ceph) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&error),
            }
        }
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

fn main() -> ExitCode {
    let mut words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if map::is_drop_in() {
        return drop_in(words);
    }
    let ceph = match config::Args::take(&mut words) {
        Ok(ceph) => ceph,
        Err(error) => return usage(&error.to_string()),
    };
    let words = words::in_order(words, &Cli::command());
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) if !error.use_stderr() => {
            // --help and --version.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            if let Some(what) = not_built(&words, &error) {
                eprintln!("rbd-nbd-rs: {what} is not built yet");
                return exit_code(Kind::Unsupported.errno());
            }
            let _ = error.print();
            // Like `rbd`: what is missing is an invalid argument, what is not understood is not.
            return match error.kind() {
                ErrorKind::MissingRequiredArgument => exit_code(Kind::Invalid.errno()),
                _ => ExitCode::FAILURE,
            };
        }
    };
    log_to_stderr();
    let done = match cli.command {
        Command::Verb(verb) => match *verb {
            // It asks a process, not a cluster.
            Verb::Status(status) if status.asks_daemon() => status.ask_daemon(),
            verb => run(verb, &ceph),
        },
        Command::Map(verb) => map::run(*verb, &ceph),
        // It brings its own cluster.
        Command::Demo(demo) => demo.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rbd-nbd-rs: {error}");
            exit_code(error.errno())
        }
    }
}

/// Verbs of `rbd` that are to come.
const TO_COME: [&str; 8] =
    ["deep", "encryption", "group", "journal", "merge-diff", "migration", "mirror", "sparsify"];

/// What was not understood, if it is something that `rbd` knows and that is to come.
fn not_built<'a>(words: &'a [String], error: &'a clap::Error) -> Option<&'a str> {
    // Of options before a verb that it does not know clap would complain first.
    let verb = words::verb(words).filter(|verb| TO_COME.contains(verb));
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => Some(option.as_str()),
        _ => None,
    };
    verb.or_else(|| option.filter(|option| option.starts_with("--encryption-")))
}

fn exit_code(errno: i32) -> ExitCode {
    ExitCode::from(u8::try_from(errno).unwrap_or(1))
}

fn usage(error: &str) -> ExitCode {
    eprintln!("rbd-nbd-rs: {error}");
    ExitCode::FAILURE
}

/// What `RUST_LOG` asks for: levels by target, as in `warn,ceph_native::cluster=debug`.
fn log_to_stderr() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;

    let asked = std::env::var("RUST_LOG").ok().and_then(|asked| asked.parse::<Targets>().ok());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let filter = asked.unwrap_or_else(|| Targets::new().with_default(LevelFilter::WARN));
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}

fn run(verb: Verb, ceph: &config::Args) -> Result<()> {
    let config = Config::load(ceph, &config::Process)
        .map_err(|error| Error::new(Kind::Invalid, error.to_string()))?;
    // One thread: it does everything for all images, and never waits for another.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Os(5), "cannot start").with_source(error))?;
    runtime.block_on(async {
        let cluster = Cluster::connect(config).await?;
        match verb {
            Verb::Create(create) => create.run(&cluster).await,
            Verb::List(list) => list.run(&cluster).await,
            Verb::Info(info) => info.run(&cluster).await,
            Verb::DiskUsage(usage) => usage.run(&cluster).await,
            Verb::Diff(diff) => diff.run(&cluster).await,
            Verb::Remove(remove) => remove.run(&cluster).await,
            Verb::Resize(resize) => resize.run(&cluster).await,
            Verb::Rename(rename) => rename.run(&cluster).await,
            Verb::Feature(feature) => feature.run(&cluster).await,
            Verb::Lock(lock) => lock.run(&cluster).await,
            Verb::ObjectMap(object_map) => object_map.run(&cluster).await,
            Verb::Status(status) => status.run(&cluster).await,
            Verb::Children(children) => children.run(&cluster).await,
            Verb::Clone(clone) => clone.run(&cluster).await,
            Verb::Flatten(flatten) => flatten.run(&cluster).await,
            Verb::Snap(snap) => snap.run(&cluster).await,
            Verb::Trash(trash) => trash.run(&cluster).await,
            Verb::Namespace(namespace) => namespace.run(&cluster).await,
            Verb::ImageMeta(notes) => notes.run(&cluster).await,
            Verb::Config(settings) => settings.run(&cluster).await,
            Verb::Export(export) => export.run(&cluster).await,
            Verb::Import(import) => import.run(&cluster).await,
            Verb::ExportDiff(export) => export.run(&cluster).await,
            Verb::ImportDiff(import) => import.run(&cluster).await,
            Verb::Copy(copy) => copy.run(&cluster).await,
            Verb::Bench(bench) => bench.run(&cluster).await,
            Verb::Serve(serve) => serve.run(&cluster).await,
            Verb::OsdMap(osd_map) => osd_map.run(&cluster).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_come_is_refused_by_name_wherever_it_stands() {
        for (line, expected) in [
            ("group ls", Some("group")),
            ("-p rbd group ls", Some("group")),
            ("--pool=rbd --image group mirror status", Some("mirror")),
            ("info image --encryption-format luks1", Some("--encryption-format")),
            ("-p group nothing", None),
            ("snap group", None),
            ("nothing", None),
            ("-p rbd", None),
        ] {
            let line = format!("rbd-nbd-rs {line}");
            let words = line.split(' ').map(str::to_owned).collect();
            let words = words::in_order(words, &Cli::command());
            let error = Cli::try_parse_from(&words).expect_err(&line);
            assert_eq!(not_built(&words, &error), expected, "{line}");
        }
    }
}

//! `list-mapped`: shows which images are mapped, as `rbd-nbd` shows it.

use ceph_native::error::Result;

use super::state::{Found, Mapping};
use super::unmap::is_there;
use crate::output::{Format, Side, Tree, table};

/// Lists the images that are mapped.
///
/// Devices that wait for somebody to serve them, or never will be served again, are shown with --all, with 0 in place
/// of the process.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ListMapped {
    /// Those that nobody serves, too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

impl ListMapped {
    pub(super) fn run(self) -> Result<()> {
        let mut all = Found::all()?;
        all.retain(|found| found.alive || (self.all && is_there(&found.mapping)));
        let text = self.format.render("devices", || tree(&all), || plain(&all))?;
        // `rbd-nbd` ends JSON and XML without a line's end.
        crate::output::print(match self.format.is_plain() {
            true => &text,
            false => text.trim_end(),
        })
    }
}

/// The process that serves it; none if there is none.
fn pid(found: &Found) -> u32 {
    if found.alive { found.mapping.pid } else { 0 }
}

/// The snapshot, by name or by number.
fn snap(mapping: &Mapping) -> String {
    match mapping.snap_id {
        Some(id) => format!("@{id}"),
        None => mapping.snap.clone(),
    }
}

fn tree(all: &[Found]) -> Tree {
    let devices = all.iter().map(|found| {
        let mapping = &found.mapping;
        Tree::Object(vec![
            ("id", u64::from(pid(found)).into()),
            ("pool", mapping.pool.as_str().into()),
            ("namespace", mapping.namespace.as_str().into()),
            ("image", mapping.image.as_str().into()),
            ("snap", snap(mapping).into()),
            ("device", mapping.device.to_string_lossy().into_owned().into()),
            ("cookie", mapping.cookie.as_str().into()),
        ])
    });
    Tree::list("device", devices)
}

fn plain(all: &[Found]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let columns = ["id", "pool", "namespace", "image", "snap", "device", "cookie"];
    let rows: Vec<_> = all
        .iter()
        .map(|found| {
            let mapping = &found.mapping;
            let snap = Some(snap(mapping)).filter(|snap| !snap.is_empty());
            vec![
                pid(found).to_string(),
                mapping.pool.clone(),
                mapping.namespace.clone(),
                mapping.image.clone(),
                snap.unwrap_or_else(|| "-".to_owned()),
                mapping.device.display().to_string(),
                mapping.cookie.clone(),
            ]
        })
        .collect();
    table(&columns.map(|name| (name, Side::Left)), &rows)
}

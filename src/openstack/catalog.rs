//! Where services are.

use serde::Deserialize;

use super::clouds::{Cloud, Interface};
use crate::error::{Error, Kind, Result};

/// How Cinder is called in catalogues, the best name first.
const CINDER: &[&str] = &["block-storage", "volumev3", "block-store", "volume"];

/// A service of the catalogue.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Service {
    /// What it is: `volumev3`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Where it is.
    #[serde(default)]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// An address of a service.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Endpoint {
    /// For whom: `public`, `internal` or `admin`.
    pub(crate) interface: String,
    /// In which region.
    pub(crate) region_id: Option<String>,
    /// The same, as older Keystones say it.
    pub(crate) region: Option<String>,
    /// The address.
    pub(crate) url: String,
}

impl Endpoint {
    fn region(&self) -> Option<&str> {
        self.region_id.as_deref().or(self.region.as_deref())
    }
}

/// Cinder's address for a project: what the settings say, or the catalogue.
///
/// # Errors
/// [`Kind::NotFound`], with what there is.
pub(crate) fn cinder(catalog: &[Service], cloud: &Cloud, project: &str) -> Result<String> {
    if let Some(url) = &cloud.cinder {
        let url = url.trim_end_matches('/');
        // As OpenStack's programs take it: with or without the project.
        return Ok(match url.ends_with(project) {
            true => url.to_owned(),
            false => format!("{url}/{project}"),
        });
    }
    let services = CINDER.iter().filter_map(|kind| catalog.iter().find(|one| one.kind == *kind));
    let services: Vec<_> = services.collect();
    for service in &services {
        if let Some(url) = address(service, cloud.region.as_deref(), cloud.interface) {
            return Ok(url.trim_end_matches('/').to_owned());
        }
    }
    let mut there: Vec<_> = services
        .iter()
        .flat_map(|service| &service.endpoints)
        .map(|one| format!("{} in {}", one.interface, one.region().unwrap_or("no region")))
        .collect();
    there.sort();
    there.dedup();
    let what = match there.is_empty() {
        true => "the cloud has no block storage (Cinder), or not for this project".to_owned(),
        false => format!(
            "Cinder has no {} address in region {}: there are {}",
            cloud.interface.name(),
            cloud.region.as_deref().unwrap_or("that is the only one"),
            there.join(", ")
        ),
    };
    Err(Error::new(Kind::NotFound, what))
}

/// A service's address. If no region is said, there must be only one.
fn address<'a>(
    service: &'a Service,
    region: Option<&str>,
    interface: Interface,
) -> Option<&'a str> {
    let mut fitting = service.endpoints.iter().filter(|one| {
        one.interface.trim_end_matches("URL") == interface.name()
            && (region.is_none() || one.region() == region)
    });
    let first = fitting.next()?;
    fitting.all(|other| other.region() == first.region()).then_some(first.url.as_str())
}

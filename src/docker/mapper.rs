//! Devices of images: `rbd-nbd-rs map`, a process of its own for each, so that neither an end nor a new version of the
//! plugin is noticed by who uses them.

use std::time::Duration;

use serde::Deserialize;

use super::run::{must, run};
use super::store::Place;
use crate::error::{Context as _, Error, Kind, Result};
use crate::openstack::cinder::Connection;

/// What `unmap` says of what is not mapped.
const NOT_MAPPED: i32 = 22;

/// The program, and how it finds the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Mapper {
    program: Vec<String>,
    ceph: Vec<String>,
    limit: Duration,
}

/// One mapping, as `list-mapped --format json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Mapping {
    /// The pool.
    pub(crate) pool: String,
    /// The namespace in it.
    #[serde(default)]
    pub(crate) namespace: String,
    /// The image.
    pub(crate) image: String,
    /// The device.
    pub(crate) device: String,
}

impl Mapper {
    /// A mapper that runs this program with these options for Ceph.
    pub(crate) fn new(program: Vec<String>, ceph: Vec<String>, limit: Duration) -> Self {
        Self { program, ceph, limit }
    }

    /// Maps an image, if need be with the monitors and as the user that Cinder says; the device.
    ///
    /// # Errors
    /// What the program says.
    pub(crate) async fn map(
        &self,
        place: &Place,
        read_only: bool,
        connection: Option<&Connection>,
    ) -> Result<String> {
        let spec = place.spec();
        let mut words = vec!["map", &spec];
        if read_only {
            words.push("--read-only");
        }
        let other = connection.map(|connection| self.as_told(connection));
        let mapper = other.as_ref().unwrap_or(self);
        let words = mapper.words(&words);
        let out = must(&words, self.limit).await.context(format!("mapping {spec}"))?;
        match out.lines().map(str::trim).find(|line| line.starts_with("/dev/")) {
            Some(device) => Ok(device.to_owned()),
            None => Err(Error::new(Kind::Invalid, format!("mapping {spec}: no device: {out:?}"))),
        }
    }

    /// Ends the mapping of an image, and clears away what is left of one whose process has died. That there is
    /// none is no error.
    ///
    /// # Errors
    /// What the program says.
    pub(crate) async fn unmap(&self, spec: &str) -> Result<()> {
        let ran = run(&self.words(&["unmap", spec]), self.limit).await?;
        match ran.code {
            0 | NOT_MAPPED => Ok(()),
            code => {
                let what = format!("unmapping {spec}: {}", ran.reason());
                Err(Error::new(Kind::from_errno(code), what))
            }
        }
    }

    /// Gives an image another size, by way of whoever has its lock.
    ///
    /// # Errors
    /// What the program says.
    pub(crate) async fn resize(&self, place: &Place, size: u64) -> Result<()> {
        let (spec, size) = (place.spec(), format!("{size}B"));
        let words = ["resize", &spec, "--size", &size, "--no-progress"];
        must(&self.words(&words), self.limit).await.map(drop)
    }

    /// Everything that is mapped here.
    ///
    /// # Errors
    /// What the program says.
    pub(crate) async fn list(&self) -> Result<Vec<Mapping>> {
        let out = must(&self.words(&["list-mapped", "--format", "json"]), self.limit).await?;
        if out.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&out).map_err(|error| {
            Error::new(Kind::Corrupt, "what is mapped cannot be read").with_source(error)
        })
    }

    /// The device of an image, if it is mapped here.
    ///
    /// # Errors
    /// As [`Mapper::list`].
    pub(crate) async fn device(&self, spec: &str) -> Result<Option<String>> {
        let same = |mapping: &Mapping| {
            Place::new(&mapping.pool, &mapping.namespace, &mapping.image).spec() == spec
        };
        Ok(self.list().await?.into_iter().find(same).map(|mapping| mapping.device))
    }

    /// The same, with the monitors and as the user that Cinder says. The key is this host's: Cinder tells none.
    fn as_told(&self, connection: &Connection) -> Self {
        let mut mapper = self.clone();
        let user = connection.user.as_ref().map(|user| format!("client.{user}"));
        let (mut own, mut ceph) = ("client.admin".to_owned(), Vec::new());
        for word in &self.ceph {
            match word.split_once('=') {
                Some(("--name", value)) => value.clone_into(&mut own),
                Some(("--mon_host", _)) => {}
                _ => ceph.push(word.clone()),
            }
        }
        let name = match user {
            Some(user) if user != own => {
                // Keys that were named are the other user's.
                let keys = ["--keyring=", "--keyfile=", "--key="];
                ceph.retain(|word| !keys.iter().any(|key| word.starts_with(key)));
                user
            }
            _ => own,
        };
        ceph.push(format!("--name={name}"));
        ceph.push(format!("--mon_host={}", connection.monitors.join(",")));
        mapper.ceph = ceph;
        mapper
    }

    fn words<'a>(&'a self, rest: &[&'a str]) -> Vec<&'a str> {
        let first = self.program.iter().map(String::as_str);
        first.chain(rest.iter().copied()).chain(self.ceph.iter().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cinder_says_where_and_as_whom() {
        let words = ["--conf=/c", "--name=client.docker", "--keyring=/k", "--mon_host=m"];
        let own: Vec<String> = words.map(str::to_owned).to_vec();
        let mapper = Mapper::new(vec!["m".to_owned()], own, Duration::from_secs(1));
        let told = |user: Option<&str>| {
            let connection = Connection {
                pool: "volumes".to_owned(),
                image: "volume-1".to_owned(),
                monitors: vec!["1.2.3.4:3300".to_owned(), "[fd00::1]:6789".to_owned()],
                user: user.map(str::to_owned),
                writable: true,
            };
            mapper.as_told(&connection).ceph.join(" ")
        };
        let monitors = "--mon_host=1.2.3.4:3300,[fd00::1]:6789";
        assert_eq!(told(Some("cinder")), format!("--conf=/c --name=client.cinder {monitors}"));
        let same = format!("--conf=/c --keyring=/k --name=client.docker {monitors}");
        assert_eq!((told(Some("docker")), told(None)), (same.clone(), same));
    }
}

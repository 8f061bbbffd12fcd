//! What this host remembers on disk: the volumes that there are, for when the cluster is away, and what is mounted here
//! for whom. Every change is a new file in the place of the old one, synced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::cinder::Held;
use super::files;
use super::names;
use super::store::Found;
use crate::error::Result;

/// What is mounted here, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attached {
    /// The volume.
    pub(crate) name: String,
    /// Its image: `pool/namespace/image`.
    pub(crate) image: String,
    /// The boot in which it was mounted: the next has nothing of it.
    pub(crate) boot: String,
    /// The device; nothing before there is one.
    pub(crate) device: Option<String>,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// Whether it is never written.
    pub(crate) read_only: bool,
    /// Who uses it, by the ids that Docker gives, and since when.
    pub(crate) users: BTreeMap<String, String>,
    /// What Cinder has noted, or may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cinder: Option<Held>,
}

/// The journal. All of it is in memory, too.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    known: BTreeMap<String, Found>,
    attached: BTreeMap<String, Attached>,
}

impl Journal {
    /// Reads the journal in a folder, which is made if it is missing.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let attached_folder = folder.join("attached");
        files::make_folder(&attached_folder)?;
        let known = files::read(&folder.join("known.json"))?.unwrap_or_default();
        let mut content = Content { known, ..Content::default() };
        let entries = std::fs::read_dir(&attached_folder)
            .map_err(|error| files::failed(&attached_folder, error))?;
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "json")
                && let Some(attached) = files::read::<Attached>(&path)?
            {
                content.attached.insert(attached.name.clone(), attached);
            }
        }
        Ok(Self { folder: folder.to_owned(), content: Mutex::new(content) })
    }

    /// What was known of a volume when the cluster was last asked.
    pub(crate) fn known(&self, name: &str) -> Option<Found> {
        self.lock().known.get(name).cloned()
    }

    /// All volumes that there were when the cluster was last asked.
    pub(crate) fn all_known(&self) -> Vec<Found> {
        self.lock().known.values().cloned().collect()
    }

    /// Notes all volumes that there are.
    ///
    /// # Errors
    /// Whatever keeps the file from being written.
    pub(crate) fn learn_all(&self, found: &[Found]) -> Result<()> {
        let known = found.iter().map(|found| (found.name.clone(), found.clone())).collect();
        self.change_known(|old| *old = known)
    }

    /// Notes one volume.
    ///
    /// # Errors
    /// Whatever keeps the file from being written.
    pub(crate) fn learn(&self, found: &Found) -> Result<()> {
        self.change_known(|known| {
            known.insert(found.name.clone(), found.clone());
        })
    }

    /// Notes that a volume is no more.
    ///
    /// # Errors
    /// Whatever keeps the file from being written.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        self.change_known(|known| {
            known.remove(name);
        })
    }

    fn change_known(&self, change: impl FnOnce(&mut BTreeMap<String, Found>)) -> Result<()> {
        let mut content = self.lock();
        let mut known = content.known.clone();
        change(&mut known);
        if known != content.known {
            files::write(&self.folder.join("known.json"), &known)?;
            content.known = known;
        }
        Ok(())
    }

    /// What is mounted here of a volume.
    pub(crate) fn attached(&self, name: &str) -> Option<Attached> {
        self.lock().attached.get(name).cloned()
    }

    /// Everything that is mounted here.
    pub(crate) fn all_attached(&self) -> Vec<Attached> {
        self.lock().attached.values().cloned().collect()
    }

    /// Notes what is mounted of a volume.
    ///
    /// # Errors
    /// Whatever keeps the file from being written: then it is not noted.
    pub(crate) fn attach(&self, attached: &Attached) -> Result<()> {
        let mut content = self.lock();
        files::write(&self.file(&attached.name)?, attached)?;
        content.attached.insert(attached.name.clone(), attached.clone());
        Ok(())
    }

    /// Notes that nothing is mounted of a volume.
    ///
    /// # Errors
    /// Whatever keeps the file from being removed.
    pub(crate) fn detach(&self, name: &str) -> Result<()> {
        let mut content = self.lock();
        files::remove(&self.file(name)?)?;
        content.attached.remove(name);
        Ok(())
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        let name = names::image_name(name)?;
        Ok(self.folder.join("attached").join(format!("{name}.json")))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name of this host that no other has, made when it is first asked for.
///
/// # Errors
/// Whatever keeps it from being read or written.
pub(crate) fn host_id(folder: &Path) -> Result<String> {
    let file = folder.join("host-id.json");
    if let Some(id) = files::read(&file)? {
        return Ok(id);
    }
    let id = kernel("random/uuid");
    files::make_folder(folder)?;
    files::write(&file, &id)?;
    Ok(id)
}

/// What this boot of the machine is called.
pub(crate) fn boot() -> String {
    kernel("random/boot_id")
}

fn kernel(name: &str) -> String {
    let path = Path::new("/proc/sys/kernel").join(name);
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::cinder::InCinder;
    use crate::docker::store::{Description, Place, State};

    fn found(name: &str) -> Found {
        Found {
            name: name.to_owned(),
            place: Place::new("rbd", "", name),
            id: "abc".to_owned(),
            description: Description { state: State::Ready, ..Description::default() },
            flattening: None,
        }
    }

    #[test]
    fn everything_is_there_after_a_restart() {
        let folder = std::env::temp_dir().join(format!("journal-{}", std::process::id()));
        let journal = Journal::open(&folder).unwrap();
        let attached = Attached {
            name: "a/b".to_owned(),
            image: "rbd/a%2Fb".to_owned(),
            boot: boot(),
            device: Some("/dev/loop7".to_owned()),
            mountpoint: "/mnt".into(),
            read_only: false,
            users: [("id".to_owned(), "now".to_owned())].into(),
            cinder: Some(Held::new(InCinder::default(), "h", "/mnt", "id", false)),
        };
        journal.learn_all(&[found("x"), found("a/b")]).unwrap();
        journal.learn(&found("y")).unwrap();
        journal.forget("x").unwrap();
        journal.attach(&attached).unwrap();
        let id = host_id(&folder).unwrap();
        // What a write that was cut short leaves.
        std::fs::write(folder.join("known.new"), "{").unwrap();
        std::fs::write(folder.join("attached/z.new"), "{").unwrap();

        let journal = Journal::open(&folder).unwrap();
        assert_eq!(journal.all_known(), [found("a/b"), found("y")]);
        assert_eq!(journal.all_attached(), [attached]);
        assert_eq!(host_id(&folder).unwrap(), id);
        journal.detach("a/b").unwrap();
        journal.detach("a/b").unwrap();
        assert_eq!(Journal::open(&folder).unwrap().attached("a/b"), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

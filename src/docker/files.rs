//! Files that are either the old or the new one, whatever happens while they are written.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Kind, Result};

/// Replaces a file's content, which only we may read.
///
/// # Errors
/// Whatever keeps it from being written, with the file's name.
pub(crate) fn write(path: &Path, content: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(content).map_err(|error| {
        Error::new(Kind::Invalid, "cannot be written as JSON").with_source(error)
    })?;
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path)
    })();
    written.map_err(|error| failed(path, error))
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// Whatever keeps it from being read; [`Kind::Corrupt`] if it makes no sense.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, error)),
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::new(Kind::Corrupt, path.display().to_string()).with_source(error))
}

/// Removes a file, if it is there.
///
/// # Errors
/// Whatever keeps it from being removed.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path).and_then(|()| sync_folder(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        _ => Ok(()),
    }
}

/// Makes a folder that only we may look into, and those above it.
///
/// # Errors
/// Whatever keeps it from being made.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| failed(path, error))
}

/// An error of the system's about a file.
pub(crate) fn failed(path: &Path, error: io::Error) -> Error {
    let kind = Kind::from_errno(error.raw_os_error().unwrap_or(5));
    Error::new(kind, path.display().to_string()).with_source(error)
}

/// A new name is on disk only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

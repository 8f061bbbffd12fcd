//! The folder that a cluster's state lasts in: the journal of its objects, its map, its keys.
//!
//! `journal.N` is the whole of all objects: what [`Store::replay`](crate::store::Store::replay) makes them from. It
//! only grows; a fresh one takes its place under the next number once it has become much longer than what it says.
//! `osdmap` is the newest map, `keyring` the keys, `runs` how often the cluster has been started. All but the journal
//! are replaced by renaming, and everything is synced before anybody is told of it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::store::Store;

/// A journal is not replaced before it is this long, in bytes.
const COMPACT_BYTES: u64 = 64 << 20;

/// The folder.
pub struct Disk {
    folder: PathBuf,
    /// Held for as long as the cluster runs: a second one in the same folder would destroy everything.
    _lock: File,
    journal: File,
    number: u64,
    written: u64,
    /// How long the journal was when it was fresh.
    fresh: u64,
}

impl Disk {
    /// Opens the folder, creates it if it is not there, and brings back the objects.
    ///
    /// # Errors
    /// If it cannot be read or written, is used by another process, or its journal is damaged.
    pub fn open(folder: &Path, store: &mut Store) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock().map_err(|_| {
            io::Error::other(format!("{} is used by another devcluster", folder.display()))
        })?;
        let number = newest_journal(folder)?;
        let path = folder.join(format!("journal.{number}"));
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut bytes).map(drop)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let whole = store.replay(&bytes).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
        })?;
        if whole < bytes.len() {
            let torn = bytes.len() - whole;
            tracing::warn!(torn, "the journal ends in a record that was not written whole");
        }
        let journal = OpenOptions::new().create(true).append(true).open(&path)?;
        journal.set_len(whole as u64)?;
        let mut this = Self {
            folder: folder.to_owned(),
            _lock: lock,
            journal,
            number,
            written: whole as u64,
            fresh: 0,
        };
        // The end of the process may have come between a fresh journal and the end of the one before.
        for old in 0..number {
            let _ = std::fs::remove_file(folder.join(format!("journal.{old}")));
        }
        this.compact_if_long(store)?;
        sync_folder(folder)?;
        Ok(this)
    }

    /// Appends to the journal. When this returns, it lasts.
    ///
    /// # Errors
    /// If it cannot be written. Nothing that depends on it may be acknowledged then, nor anything after it.
    pub fn append(&mut self, records: &Bytes, store: &Store) -> io::Result<()> {
        self.journal.write_all(records)?;
        self.journal.sync_data()?;
        self.written += records.len() as u64;
        self.compact_if_long(store)
    }

    fn compact_if_long(&mut self, store: &Store) -> io::Result<()> {
        if self.written < COMPACT_BYTES.max(4 * self.fresh) {
            return Ok(());
        }
        let number = self.number + 1;
        let temporary = self.folder.join("journal.new");
        let mut file = io::BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        let mut written = 0;
        store.dump(|record| {
            written += record.len() as u64;
            file.write_all(record)
        })?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        let path = self.folder.join(format!("journal.{number}"));
        std::fs::rename(&temporary, &path)?;
        sync_folder(&self.folder)?;
        self.journal = OpenOptions::new().append(true).open(&path)?;
        std::fs::remove_file(self.folder.join(format!("journal.{}", self.number)))?;
        (self.number, self.written, self.fresh) = (number, written, written);
        Ok(())
    }

    /// Replaces a small file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, name: &str, content: &[u8]) -> io::Result<()> {
        replace(&self.folder.join(name), content)
    }

    /// Reads a small file, if it is there.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn load(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(self.folder.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Writes a file as a whole, readable by its owner only.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("tmp");
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn newest_journal(folder: &Path) -> io::Result<u64> {
    let mut newest = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("journal."));
        newest = newest.max(number.and_then(|number| number.parse().ok()).unwrap_or(0));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Answer, Mutation, ObjectId, ReqId, Transaction};
    use proto::types::{EntityName, EntityType, PgId, PoolId};

    fn write(store: &mut Store, tid: u64, data: Vec<u8>) {
        let object = ObjectId { name: format!("o{}", tid % 10), ..Default::default() };
        let pg = PgId { pool: PoolId(1), seed: 0 };
        let mutations = vec![Mutation::Write { offset: 0, data: data.into() }];
        let after = Some(Default::default());
        let name = EntityName { kind: EntityType::CLIENT, num: 1 };
        let transaction = Transaction { pg, object, mutations, after };
        store.commit(transaction, ReqId { name, inc: 0, tid }, Answer::default());
    }

    #[test]
    fn objects_last_and_the_journal_stays_short() {
        let folder = std::env::temp_dir().join(format!("devcluster-disk-{}", std::process::id()));
        let folder = folder.as_path();
        let mut store = Store::new(true);
        let mut disk = Disk::open(folder, &mut store).unwrap();
        assert!(Disk::open(folder, &mut Store::new(true)).is_err(), "used twice");
        let block = vec![7; 1 << 20];
        for tid in 0..100 {
            write(&mut store, tid, block.clone());
            disk.append(&store.take_journal().unwrap(), &store).unwrap();
        }
        assert!(disk.number > 0, "it was never replaced");
        assert!(disk.written < 80 << 20);
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
        drop(disk);

        let path = folder.join(format!("journal.{}", newest_journal(folder).unwrap()));
        OpenOptions::new().append(true).open(path).unwrap().write_all(b"torn").unwrap();
        let mut again = Store::new(true);
        let mut disk = Disk::open(folder, &mut again).unwrap();
        assert_eq!(again.usage(PoolId(1)), store.usage(PoolId(1)));
        // What is appended after a torn tail is not lost behind it.
        write(&mut again, 10, vec![8; 10]);
        disk.append(&again.take_journal().unwrap(), &again).unwrap();
        drop(disk);
        let mut third = Store::new(true);
        Disk::open(folder, &mut third).unwrap();
        let name = EntityName { kind: EntityType::CLIENT, num: 1 };
        let pg = third.pg(PgId { pool: PoolId(1), seed: 0 });
        assert!(pg.answered(&ReqId { name, inc: 0, tid: 10 }).is_some());
        std::fs::remove_dir_all(folder).unwrap();
    }
}

//! The erasure journal: a file that lists what was erased, by number, so that a restored export revives nobody.
//!
//! The journal copies the table of erasures into a file of its own, so that it can be copied while the server runs.
//! A header of magic and the store's id is followed by entries of 32 bytes: the incarnation, the number, the time in
//! seconds since 1970, a CRC-32 of these, and zeros; all big endian. It names nobody.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Range, Store, StoreError, StoreExt, Table, identity::STORE_KEY, parse_row_key};
use crate::proto::store::{ErasureRecord, StoreRecord};

const MAGIC: &[u8; 8] = b"VISAGEE1";

/// Bytes of the header, and of an entry.
const ENTRY_BYTES: usize = 32;

/// Bytes of an entry before its checksum.
const CHECKED_BYTES: usize = 24;

/// What was erased: faces by incarnation and number, and whole collections by the number 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Erased {
    /// The store whose faces these were; `None` when nothing was erased.
    pub store_id: Option<String>,
    entries: HashSet<(u64, u64)>,
}

impl Erased {
    /// Erasures of a store.
    #[cfg(test)]
    pub(super) fn of(store_id: &str, entries: impl Iterator<Item = (u64, u64)>) -> Self {
        Self { store_id: Some(store_id.to_owned()), entries: entries.collect() }
    }

    /// Returns true if the face, or its collection, was erased.
    #[must_use]
    pub(crate) fn contains(&self, incarnation: u64, number: u64) -> bool {
        self.entries.contains(&(incarnation, number)) || self.contains_collection(incarnation)
    }

    /// Returns true if the collection was erased.
    #[must_use]
    pub(crate) fn contains_collection(&self, incarnation: u64) -> bool {
        self.entries.contains(&(incarnation, 0))
    }

    /// The erased faces and collections.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.entries.iter().copied()
    }

    /// Reads a journal.
    ///
    /// # Errors
    /// [`StoreError::Io`]; [`StoreError::Corrupt`] when the file is not a journal or a whole entry is damaged. A partial
    /// entry at the end is ignored.
    pub(crate) fn read(path: &Path) -> Result<Self, StoreError> {
        let bytes = fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        let damaged = |what: &str| StoreError::Corrupt {
            what: format!("the erasure journal {} ({what})", path.display()),
            affects: "use another copy of it; faces that were deleted after that one was made would be imported"
                .to_owned(),
        };
        let (header, entries) = bytes.split_at_checked(ENTRY_BYTES).ok_or_else(|| damaged("it is too short"))?;
        let store_id = header.strip_prefix(MAGIC).and_then(|id| uuid::Uuid::from_slice(&id[..16]).ok());
        let store_id = store_id.ok_or_else(|| damaged("it does not begin as one"))?;
        let mut found = HashSet::new();
        // A copy that was made during a write may end within an entry.
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            found.insert(parse(entry).ok_or_else(|| damaged("an entry's checksum fails"))?);
        }
        Ok(Self { store_id: Some(store_id.to_string()), entries: found })
    }
}

/// Reads the rows of the table of erasures from its journal: those that can be read, none without a journal.
pub(super) fn read_rows(path: &Path) -> Vec<(Vec<u8>, ErasureRecord)> {
    let bytes = fs::read(path).unwrap_or_default();
    let entries = bytes.get(ENTRY_BYTES..).unwrap_or_default().chunks_exact(ENTRY_BYTES);
    let row = |entry: &[u8]| {
        parse(entry)?;
        let (key, rest) = entry.split_at(16);
        let seconds = i64::from_be_bytes(*rest.first_chunk()?);
        let time = prost_types::Timestamp { seconds, nanos: 0 };
        Some((key.to_vec(), ErasureRecord { time: Some(time) }))
    };
    let rows: BTreeMap<_, _> = entries.filter_map(row).collect();
    rows.into_iter().collect()
}

/// The journal of an open store.
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
}

impl Journal {
    /// Opens the journal of a store, and completes it when it lacks erasures, or has entries that a power cut has spoilt.
    /// What only the journal has stays in it.
    pub(super) fn open(path: PathBuf, store: &dyn Store) -> Self {
        let journal = Self { path, file: None };
        if let Err(error) = journal.complete(store) {
            tracing::error!(journal = %journal.path.display(), %error, "the erasure journal may be incomplete");
        }
        journal
    }

    fn complete(&self, store: &dyn Store) -> Result<(), StoreError> {
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        let bytes = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(io)?,
        };
        let entries = bytes.get(ENTRY_BYTES..).unwrap_or_default();
        let kept: BTreeMap<&[u8], &[u8]> =
            entries.chunks_exact(ENTRY_BYTES).filter(|entry| parse(entry).is_some()).map(|e| (&e[..16], e)).collect();
        let n_entries = entries.len().div_ceil(ENTRY_BYTES);
        let n_expected = store.n_expected(Table::Erasures).unwrap_or(0);
        if kept.len() == n_entries && n_entries as u64 >= n_expected {
            return Ok(());
        }
        let Some(header) = header(store)? else { return Ok(()) };
        let mut all: BTreeMap<Vec<u8>, Vec<u8>> = kept.iter().map(|(key, e)| (key.to_vec(), e.to_vec())).collect();
        // The journal may have entries whose rows in the table cannot be read.
        for row in store.readable_records::<ErasureRecord>(Table::Erasures, Range::default()).map_while(Result::ok) {
            all.entry(row.0.clone()).or_insert_with(|| entry(&row.0, &row.1));
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        all.values().try_for_each(|entry| file.write_all(entry)).map_err(io)?;
        file.as_file().sync_all().map_err(io)?;
        file.persist(&self.path).map_err(|error| io(error.error))?;
        Ok(())
    }

    /// Adds what was just committed. A failure is only logged: the table is the truth, and the next start completes the
    /// journal.
    pub(super) fn add(&mut self, store: &dyn Store, erased: &[(Vec<u8>, Vec<u8>)]) {
        if erased.is_empty() {
            return;
        }
        if let Err(error) = self.try_add(store, erased) {
            self.file = None;
            tracing::error!(journal = %self.path.display(), %error, "the erasure journal is incomplete until the next start");
        }
    }

    fn try_add(&mut self, store: &dyn Store, erased: &[(Vec<u8>, Vec<u8>)]) -> Result<(), StoreError> {
        let io = |source| StoreError::Io { path: self.path.clone(), source };
        let mut bytes = Vec::new();
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path).map_err(io)?;
                if file.metadata().map_err(io)?.len() == 0 {
                    bytes = header(store)?.ok_or_else(|| io(io::Error::other("the store has no identity")))?;
                }
                self.file.insert(file)
            }
        };
        for (key, value) in erased {
            bytes.extend(entry(key, &super::decode_record(Table::Erasures, key, value)?));
        }
        file.write_all(&bytes).map_err(io)
    }
}

fn header(store: &dyn Store) -> Result<Option<Vec<u8>>, StoreError> {
    let identity: Option<StoreRecord> = store.get_record(Table::Meta, STORE_KEY)?;
    let id = identity.and_then(|record| record.store_id.parse::<uuid::Uuid>().ok());
    Ok(id.map(|id| {
        let mut bytes = [MAGIC.as_slice(), id.as_bytes()].concat();
        bytes.resize(ENTRY_BYTES, 0);
        bytes
    }))
}

/// Returns the incarnation and number of an entry; `None` when it is damaged.
fn parse(entry: &[u8]) -> Option<(u64, u64)> {
    let (checked, crc) = entry.split_at_checked(CHECKED_BYTES)?;
    parse_row_key(&checked[..16]).filter(|_| crc.starts_with(&crc32fast::hash(checked).to_be_bytes()))
}

fn entry(key: &[u8], record: &ErasureRecord) -> Vec<u8> {
    let seconds = record.time.map_or(0, |time| time.seconds);
    let mut bytes = [key, &seconds.to_be_bytes()].concat();
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    bytes.resize(ENTRY_BYTES, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Batch, MemoryStore, identity::STORE_KEY, row_key};

    fn erase(store: &dyn Store, journal: &mut Journal, number: u64) {
        let row = row_key(1, number);
        let mut batch = Batch::default();
        batch.put_record(Table::Erasures, &row, &ErasureRecord::default());
        store.commit(batch).unwrap();
        journal.add(store, &[(row.clone(), store.get(Table::Erasures, &row).unwrap().unwrap())]);
    }

    #[test]
    fn a_journal_is_completed_and_never_loses_an_entry() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("erasures");
        let store = MemoryStore::new();
        let identity = StoreRecord { store_id: uuid::Uuid::new_v4().to_string(), ..StoreRecord::default() };
        let mut batch = Batch::default();
        batch.put_record(Table::Meta, STORE_KEY, &identity);
        store.commit(batch).unwrap();
        let mut journal = Journal::open(path.clone(), &store);
        for number in 1..5 {
            erase(&store, &mut journal, number);
        }
        let read = || Erased::read(&path).unwrap();
        assert_eq!(read().store_id, Some(identity.store_id.clone()));
        assert_eq!(read().iter().count(), 4);
        // After a power cut: an entry of zeros, and one that is missing.
        let mut bytes = fs::read(&path).unwrap();
        bytes[2 * ENTRY_BYTES..3 * ENTRY_BYTES].fill(0);
        fs::write(&path, &bytes[..4 * ENTRY_BYTES + 7]).unwrap();
        assert!(Erased::read(&path).is_err());
        // The table has lost the first.
        let mut batch = Batch::default();
        batch.delete(Table::Erasures, &row_key(1, 1));
        store.commit(batch).unwrap();
        Journal::open(path.clone(), &store);
        let mut found: Vec<_> = read().iter().collect();
        found.sort_unstable();
        assert_eq!(found, [(1, 1), (1, 2), (1, 3), (1, 4)]);
        fs::write(&path, b"something else, which is long enough for a header").unwrap();
        assert!(Erased::read(&path).is_err());
    }
}

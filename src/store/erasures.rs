//! The erasure journal: a file that lists what was erased, by number, so that a restored export revives nobody.
//!
//! It is a copy of the table of erasures that can be read, and copied to where the exports are, while the server runs.
//! A header of magic and the store's id is followed by entries of 32 bytes: the incarnation, the number, the time in
//! seconds since 1970, a CRC-32 of these, and zeros; all big endian. It names nobody.

use std::{
    collections::HashSet,
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
    /// [`StoreError::Corrupt`] when the file is no journal, or an entry before the last is damaged.
    pub(crate) fn read(path: &Path) -> Result<Self, StoreError> {
        let bytes = fs::read(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        let damaged = |what: &str| StoreError::Corrupt {
            what: format!("the erasure journal {} ({what})", path.display()),
            affects: "who was erased is not known; use an earlier copy of it".to_owned(),
        };
        let (header, entries) = bytes.split_at_checked(ENTRY_BYTES).ok_or_else(|| damaged("it is too short"))?;
        let store_id = header.strip_prefix(MAGIC).and_then(|id| uuid::Uuid::from_slice(&id[..16]).ok());
        let store_id = store_id.ok_or_else(|| damaged("it does not begin as one"))?;
        let mut found = HashSet::new();
        // A copy that was made during a write may end within an entry.
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let (checked, crc) = entry.split_at(CHECKED_BYTES);
            let key = parse_row_key(&checked[..16]).filter(|_| crc[..4] == crc32fast::hash(checked).to_be_bytes());
            found.insert(key.ok_or_else(|| damaged("an entry's checksum fails"))?);
        }
        Ok(Self { store_id: Some(store_id.to_string()), entries: found })
    }
}

/// The journal of an open store.
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
}

impl Journal {
    /// Opens the journal of a store, and completes it when erasures are missing.
    pub(super) fn open(path: PathBuf, store: &dyn Store) -> Result<Self, StoreError> {
        let mut journal = Self { path, file: None };
        let n_expected = store.n_expected(Table::Erasures).unwrap_or(0);
        let n_bytes = fs::metadata(&journal.path).map_or(0, |found| found.len());
        if n_expected > 0 && n_bytes != (n_expected + 1) * ENTRY_BYTES as u64 {
            journal.rebuild(store)?;
        }
        Ok(journal)
    }

    /// Writes the journal anew.
    fn rebuild(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let Some(mut bytes) = header(store)? else { return Ok(()) };
        for row in store.readable_records::<ErasureRecord>(Table::Erasures, Range::default()) {
            let (key, record) = row?;
            bytes.extend(entry(&key, &record));
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        });
        self.file = None;
        written.map_err(|source| StoreError::Io { path: self.path.clone(), source })
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

fn entry(key: &[u8], record: &ErasureRecord) -> Vec<u8> {
    let seconds = record.time.map_or(0, |time| time.seconds);
    let mut bytes = [key, &seconds.to_be_bytes()].concat();
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    bytes.resize(ENTRY_BYTES, 0);
    bytes
}

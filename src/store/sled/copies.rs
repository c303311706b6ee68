//! Keeps files beside the engine from which it can be built again when it cannot be opened.
//!
//! Faces are in segment files and erasures in the journal. Two more files are written here: a copy of the small tables,
//! and how much the engine held last. The copy is removed before a batch changes one of [`EXACT`] tables and written
//! again after it, so what is in it is never out of date.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use prost::Message;

use super::engine::Engine;
use crate::{
    proto::store::{ExportEntry, ExtentRecord, TablesCopy},
    store::{
        Entry, Range, StoreError, StoreExt, Table, encode_record,
        files::{remove_file, sync_dir, write_complete},
        leftovers::LOG_FILE,
        record_payload,
    },
};

/// Tables whose copy is exact, if there is one.
pub(super) const EXACT: [Table; 5] = [Table::Meta, Table::Models, Table::Versions, Table::Aliases, Table::Collections];

/// Tables whose copy may be older than they are.
const OLDER: [Table; 2] = [Table::Runs, Table::RunEvents];

const TABLES_FILE: &str = "tables";

const EXTENT_FILE: &str = "extent";

/// The files beside the engine, written by the committing thread.
pub(super) struct Copies {
    dir: PathBuf,
    extent: Option<File>,
    /// The copy of the [`OLDER`] tables is out of date.
    is_behind: bool,
}

impl Copies {
    /// Writes the copy of an engine that was opened in a store's folder.
    pub(super) fn open(dir: &Path, engine: &Engine) -> Self {
        let path = dir.join(EXTENT_FILE);
        let extent = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let extent = extent.inspect_err(|error| tracing::warn!(file = %path.display(), %error, "it cannot be written"));
        let mut copies = Self { dir: dir.to_owned(), extent: extent.ok(), is_behind: false };
        copies.write(engine);
        copies
    }

    /// Prepares for a batch that changes these rows, by the engine's key. Returns true if the copy must be written after it.
    ///
    /// # Errors
    /// When the copy cannot be removed.
    pub(super) fn begin<'a>(&mut self, rows: impl Iterator<Item = &'a Vec<u8>>) -> io::Result<bool> {
        let is_in = |tables: &[Table], row: &Vec<u8>| tables.iter().any(|table| row.first() == Some(&(*table as u8)));
        let mut is_exact = false;
        for row in rows {
            is_exact |= is_in(&EXACT, row);
            self.is_behind |= is_in(&OLDER, row);
        }
        if is_exact && remove_file(&self.dir.join(TABLES_FILE))? {
            sync_dir(&self.dir)?;
        }
        Ok(is_exact)
    }

    /// Writes the copy. Without one, only an engine that cannot be opened is worse off.
    pub(super) fn write(&mut self, engine: &Engine) {
        match self.try_write(engine) {
            Ok(()) => self.is_behind = false,
            Err(error) => tracing::warn!(%error, "the copy of the small tables cannot be written"),
        }
    }

    /// Writes the copy if it is older than its tables.
    pub(super) fn end(&mut self, engine: &Engine) {
        if self.is_behind {
            self.write(engine);
        }
    }

    fn try_write(&self, engine: &Engine) -> Result<(), StoreError> {
        let mut copy = TablesCopy::default();
        for table in EXACT.into_iter().chain(OLDER) {
            for entry in engine.entries(table, Range::default()) {
                let (key, value) = entry?;
                copy.rows.push(ExportEntry { table: u32::from(table as u8), key, value });
            }
        }
        let path = self.dir.join(TABLES_FILE);
        let bytes = encode_record(&copy);
        let written = write_complete(&path, 0o600, |file| file.write_all_at(&bytes, 0));
        written.map_err(|source| StoreError::Io { path, source })
    }

    /// Notes how much the engine holds. It is not synced: after a power cut it may be out of date.
    pub(super) fn note(&self, engine: &Engine, sequence: u64, n_vectors: u64) {
        let Some(extent) = &self.extent else { return };
        let n_log_bytes = fs::metadata(engine.dir().join(LOG_FILE)).map_or(0, |found| found.len());
        let bytes = ExtentRecord { sequence, n_vectors, n_log_bytes }.encode_to_vec();
        let crc = crc32fast::hash(&bytes).to_be_bytes();
        let _ = extent.write_all_at(&[&crc[..], &[bytes.len() as u8], &bytes].concat(), 0);
    }
}

/// Reads the copy of the small tables; `None` when there is none that can be used.
pub(super) fn read_tables(dir: &Path) -> Option<Vec<(Table, Entry)>> {
    let bytes = fs::read(dir.join(TABLES_FILE)).ok()?;
    let payload = record_payload(Table::Meta, TABLES_FILE.as_bytes(), &bytes).ok()?;
    let copy = TablesCopy::decode(payload).ok()?;
    let table = |number: u32| Table::ALL.into_iter().find(|table| u32::from(*table as u8) == number);
    copy.rows.into_iter().map(|row| Some((table(row.table)?, (row.key, row.value)))).collect()
}

/// Reads how much the engine held last; `None` when that is not known.
pub(super) fn read_extent(dir: &Path) -> Option<ExtentRecord> {
    let bytes = fs::read(dir.join(EXTENT_FILE)).ok()?;
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first()?;
    let record = rest.get(..usize::from(*length))?;
    (u32::from_be_bytes(*crc) == crc32fast::hash(record)).then(|| ExtentRecord::decode(record).ok()).flatten()
}

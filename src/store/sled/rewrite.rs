//! Writes all rows of a store into a new engine, which then takes the place of the old one.
//!
//! Migrations change the rows on the way; a compaction keeps them and gains the space that sled does not give back. The
//! new engine grows in a folder beside the old one, and keeps with each batch how far it has come, so an interrupted
//! rewrite goes on where it was. When it is complete, the old folder gets another name, the new one its name, and then
//! the old files are overwritten and removed. Whatever comes between, the next opening finds one complete engine.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
    sync::Arc,
};

use prost::Message;

use super::{
    ENGINE_DIR, SledSettings,
    engine::{CURSOR_KEY, Engine, TALLY_KEY, engine_key},
};
use crate::{
    proto::store::CursorRecord,
    store::{
        Keys, Range, Store, StoreError, Table, Write,
        files::{free_bytes, overwrite, sync_dir},
        leftovers::Leftovers,
        tally::{TableTally, Tally},
    },
};

/// The folder in which the new engine grows.
pub(super) const NEXT_DIR: &str = "next";

/// The folder of the old engine, once it is replaced.
const OLD_DIR: &str = "old";

/// Bytes of rows per batch.
const BATCH_BYTES: usize = 4 << 20;

/// Rows that are read at once.
const PAGE: usize = 256;

/// Changes a store's rows one by one.
pub(in crate::store) trait Rewrite {
    /// Returns the writes that take the place of a row. `new` has every row of the earlier tables; the latest rows of this
    /// table may be missing in it.
    ///
    /// # Errors
    /// Ends the rewriting, which can go on later.
    fn row(&mut self, new: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError>;

    /// Returns what [`Rewrite::resume`] needs later.
    fn state(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Continues after the rows that are in `new` already.
    ///
    /// # Errors
    /// When the store fails.
    fn resume(&mut self, _new: &dyn Store, _state: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The result of a rewrite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Rows of the old engine.
    pub n_rows: u64,
    /// Bytes of the old engine's files.
    pub n_bytes_before: u64,
    /// Bytes of the new engine's files.
    pub n_bytes_after: u64,
}

/// Rewrites the engine of a store's folder. `name` tells one kind of rewriting from another, when an interrupted one is
/// found. `progress` receives the rows done and their total.
///
/// # Errors
/// [`StoreError::Corrupt`] when rows are damaged, unless they may be left out; [`StoreError::NoRoom`] when the disk has
/// no room for both engines. Nothing is replaced then.
pub(in crate::store) fn rewrite(
    dir: &Path,
    settings: &SledSettings,
    name: &str,
    leave_out_damage: bool,
    mut changes: impl Rewrite,
    mut progress: impl FnMut(u64, u64),
) -> Result<Rewritten, StoreError> {
    let (sidecar, acknowledged) = super::open_sidecar(dir)?;
    let keys = super::open_keys(dir, settings)?;
    let opened = super::open_past_leftovers(dir, settings, &keys, acknowledged)?;
    for (_, error) in opened.damage {
        if !leave_out_damage {
            return Err(error);
        }
        tracing::error!(%error, "what is damaged is left out of the new engine");
    }
    let (old, tally) = (opened.engine, opened.tally);
    super::require_keys(dir, &old)?;
    let (engine_dir, next_dir) = (dir.join(ENGINE_DIR), dir.join(NEXT_DIR));
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    let n_bytes_before = n_bytes_in(&engine_dir).map_err(io)?;
    let total = Table::ALL.iter().map(|table| tally.of(*table).n_entries).sum();
    let mut new = Growth::open(&next_dir, settings, &keys, name, &tally)?;
    if new.cursor.n_rows > 0 {
        changes.resume(&new.engine, &new.cursor.state)?;
    }
    require_room(dir, settings, n_bytes_before, n_bytes_in(&next_dir).map_err(io)?)?;
    progress(new.cursor.n_rows, total);
    for table in Table::ALL.into_iter().skip(new.cursor.n_tables as usize) {
        let mut range = Range::default();
        let mut found = TableTally::default();
        let mut n_to_skip = new.cursor.n_rows_in_table;
        loop {
            let page = old.scan(table, &range, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            range.after = Some(last.clone());
            for (key, value) in page {
                found.add(&key, &value);
                if n_to_skip > 0 {
                    n_to_skip -= 1;
                    continue;
                }
                let writes = match changes.row(&new.engine, table, key, value) {
                    Err(error @ StoreError::Corrupt { .. }) if leave_out_damage => {
                        tracing::error!(%error, "a damaged row is left out of the new engine");
                        Vec::new()
                    }
                    writes => writes?,
                };
                new.add(writes);
            }
            if new.n_bytes >= BATCH_BYTES {
                new.commit(changes.state())?;
                progress(new.cursor.n_rows, total);
            }
        }
        // A table that is not verified when the store is opened may have lost rows: they would be forgotten here.
        if found != tally.of(table) && !leave_out_damage {
            return Err(StoreError::Corrupt {
                what: format!("the table {table:?}: what is read is not what was written"),
                affects: "nothing is rewritten; visage doctor names what is damaged".to_owned(),
            });
        }
        new.cursor.n_tables += 1;
        new.cursor.n_rows_in_table = 0;
        new.commit(changes.state())?;
    }
    progress(new.cursor.n_rows, total);
    let n_rows = new.cursor.n_rows;
    let sequence = new.close()?;
    drop(old);
    let n_bytes_after = n_bytes_in(&next_dir).map_err(io)?;
    replace(dir).map_err(io)?;
    sidecar.write(sequence)?;
    finish(dir).map_err(io)?;
    Ok(Rewritten { n_rows, n_bytes_before, n_bytes_after })
}

/// The new engine.
pub(super) struct Growth {
    engine: Engine,
    cursor: CursorRecord,
    tally: Tally,
    batch: sled::Batch,
    n_bytes: usize,
}

impl Growth {
    /// Opens what an interrupted rewriting of the same store has left, or begins anew.
    pub(super) fn open(
        dir: &Path,
        settings: &SledSettings,
        keys: &Arc<Keys>,
        name: &str,
        old: &Tally,
    ) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: dir.to_owned(), source };
        if dir.exists() {
            if let Some(left) = Self::left(dir, settings, keys)
                && left.cursor.name == name
                && left.cursor.source_sequence == old.sequence
            {
                tracing::info!(rows = left.cursor.n_rows, "going on where the rewriting of the store was interrupted");
                return Ok(left);
            }
            fs::remove_dir_all(dir).map_err(io)?;
        }
        let engine = Engine::open(dir, settings, keys)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent).map_err(io)?;
        }
        let cursor = CursorRecord { name: name.to_owned(), source_sequence: old.sequence, ..CursorRecord::default() };
        // The sequence goes on, so that the new engine never seems to end early.
        let tally = Tally::empty(old.sequence);
        Ok(Self { engine, cursor, tally, batch: sled::Batch::default(), n_bytes: 0 })
    }

    /// Reads what is left in the folder; `None` when it cannot be used.
    fn left(dir: &Path, settings: &SledSettings, keys: &Arc<Keys>) -> Option<Self> {
        let unfinished = Leftovers::unfinished(dir).ok()?;
        unfinished.set_aside().ok()?;
        let engine = Engine::open(dir, settings, keys).ok()?;
        let cursor = engine.call(|db| db.get(CURSOR_KEY)).ok()??;
        let cursor = CursorRecord::decode(cursor.as_ref()).ok()?;
        let tally = engine.tally().ok()?;
        let is_whole = engine.verify(&tally, |_| true).is_empty();
        is_whole.then(|| Self { engine, cursor, tally, batch: sled::Batch::default(), n_bytes: 0 })
    }

    /// Adds the writes of one row. Every key is new.
    pub(super) fn add(&mut self, writes: Vec<Write>) {
        for write in writes {
            if let Write::Put(table, key, value) = write {
                self.n_bytes += key.len() + value.len();
                self.tally.of_mut(table).add(&key, &value);
                self.batch.insert(engine_key(table, &key), value);
            }
        }
        self.cursor.n_rows += 1;
        self.cursor.n_rows_in_table += 1;
    }

    /// Adds the writes of one row, and commits once enough was added.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn write(&mut self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.add(writes);
        if self.n_bytes >= BATCH_BYTES { self.commit(Vec::new()) } else { Ok(()) }
    }

    pub(super) fn commit(&mut self, state: Vec<u8>) -> Result<(), StoreError> {
        self.tally.sequence += 1;
        self.cursor.state = state;
        let mut batch = std::mem::take(&mut self.batch);
        batch.insert(TALLY_KEY, self.tally.encode());
        batch.insert(CURSOR_KEY, self.cursor.encode_to_vec());
        self.n_bytes = 0;
        self.engine.call(|db| {
            db.apply_batch(batch)?;
            db.flush()
        })?;
        Ok(())
    }

    /// Closes the complete engine; returns its last sequence.
    pub(super) fn close(self) -> Result<u64, StoreError> {
        self.engine.call(|db| {
            db.remove(CURSOR_KEY)?;
            db.flush()
        })?;
        Ok(self.tally.sequence)
    }
}

/// Both engines are on the disk until the new one is complete.
pub(super) fn require_room(dir: &Path, settings: &SledSettings, n_bytes: u64, n_there: u64) -> Result<(), StoreError> {
    let free_bytes = free_bytes(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    // sled needs up to a third more while it writes than in the end.
    let needed = (n_bytes + n_bytes / 3).saturating_sub(n_there);
    if free_bytes < needed + settings.reserve_bytes {
        return Err(StoreError::NoRoom {
            path: dir.to_owned(),
            free_bytes,
            needed_bytes: needed + settings.reserve_bytes,
        });
    }
    Ok(())
}

/// Puts the complete new engine in the place of the old one.
fn replace(dir: &Path) -> io::Result<()> {
    // Between the two renames there is no engine of the usual name: see `finish`.
    fs::rename(dir.join(ENGINE_DIR), dir.join(OLD_DIR))?;
    sync_dir(dir)?;
    fs::rename(dir.join(NEXT_DIR), dir.join(ENGINE_DIR))?;
    sync_dir(dir)
}

/// Ends a replacement that was interrupted: the old engine's files are overwritten, because they hold what the new one
/// no longer has, and removed.
pub(super) fn finish(dir: &Path) -> io::Result<()> {
    let (engine_dir, next_dir, old_dir) = (dir.join(ENGINE_DIR), dir.join(NEXT_DIR), dir.join(OLD_DIR));
    if !old_dir.exists() {
        return Ok(());
    }
    if !engine_dir.exists() && next_dir.exists() {
        fs::rename(&next_dir, &engine_dir)?;
        sync_dir(dir)?;
    }
    if !engine_dir.try_exists()? {
        let why = format!("{} is missing, and {} is still there", engine_dir.display(), old_dir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    for entry in walkdir::WalkDir::new(&old_dir) {
        let entry = entry?;
        if entry.file_type().is_file() {
            overwrite(&OpenOptions::new().write(true).open(entry.path())?)?;
        }
    }
    fs::remove_dir_all(&old_dir)?;
    sync_dir(dir)
}

/// Removes what an interrupted rewriting left, when it will not go on.
pub(super) fn abandon(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(NEXT_DIR)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the bytes of all files in a folder.
fn n_bytes_in(dir: &Path) -> io::Result<u64> {
    let mut n_bytes = 0;
    for entry in walkdir::WalkDir::new(dir) {
        let found = entry?.metadata()?;
        if found.is_file() {
            n_bytes += found.len();
        }
    }
    Ok(n_bytes)
}

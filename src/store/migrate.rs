//! Store migrations. Each is numbered and has a file in `migrations/`, which also describes the format.
//!
//! A migration writes the rows of the old format, changed, into a new engine, which takes the old one's place when it
//! is complete: see [`rewrite`].

use std::path::Path;

use super::{
    SledSettings, SledStore, Store, StoreError, Table, Write,
    identity::{STORE_KEY, identity},
    records::encode_record,
    sled::{Rewrite, abandon_rewrite, rewrite},
};
use crate::proto::store::StoreRecord;

#[path = "../../migrations/m0001_initial.rs"]
mod m0001_initial;
#[path = "../../migrations/m0002_sealed_faces.rs"]
mod m0002_sealed_faces;

/// A step from one format to the next.
pub(super) struct Migration {
    /// The resulting format.
    pub(super) format: u32,
    /// A name for people.
    pub(super) name: &'static str,
    /// Changes the rows of a store of the format before.
    pub(super) changes: fn() -> Box<dyn Rewrite>,
}

const MIGRATIONS: &[Migration] = &[m0001_initial::MIGRATION, m0002_sealed_faces::MIGRATION];

/// The newest format that this program supports.
#[must_use]
pub(crate) fn newest_format() -> u32 {
    MIGRATIONS.last().map_or(0, |m| m.format)
}

/// The result of a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Migrated {
    /// The format found; 0 for an empty store.
    pub from: u32,
    /// The format now.
    pub to: u32,
    /// The names of the migrations applied.
    pub applied: Vec<&'static str>,
}

/// Opens a store and applies the missing migrations; `progress` receives the rows done and their total.
///
/// # Errors
/// [`StoreError::NewerFormat`] for a store that a newer program wrote, and those of [`rewrite`]; the store is as before
/// then.
pub(super) fn open_migrated(
    dir: &Path,
    settings: &SledSettings,
    leave_out_damage: bool,
    progress: impl FnMut(u64, u64),
) -> Result<(SledStore, Migrated), StoreError> {
    open_with(dir, settings, leave_out_damage, MIGRATIONS, progress)
}

fn open_with(
    dir: &Path,
    settings: &SledSettings,
    leave_out_damage: bool,
    migrations: &[Migration],
    mut progress: impl FnMut(u64, u64),
) -> Result<(SledStore, Migrated), StoreError> {
    let newest = migrations.last().map_or(0, |m| m.format);
    let mut store = SledStore::open(dir, settings)?;
    let from = initialise(&store, newest)?;
    let mut applied = Vec::new();
    if from == 0 || from == newest {
        abandon_rewrite(dir)?;
        return Ok((store, Migrated { from, to: newest, applied }));
    }
    for migration in migrations.iter().filter(|m| m.format > from) {
        drop(store);
        tracing::info!(migration = migration.name, "migrating the store");
        let changes = ToFormat { format: migration.format, changes: (migration.changes)() };
        let done = rewrite(dir, settings, migration.name, leave_out_damage, changes, &mut progress)?;
        tracing::info!(
            migration = migration.name,
            format = migration.format,
            rows = done.n_rows,
            bytes_before = done.n_bytes_before,
            bytes_after = done.n_bytes_after,
            "migrated the store"
        );
        applied.push(migration.name);
        store = SledStore::open(dir, settings)?;
    }
    Ok((store, Migrated { from, to: newest, applied }))
}

/// Gives an empty store its identity; returns the format found, 0 for an empty store.
///
/// # Errors
/// [`StoreError::NewerFormat`] for a store that a newer program wrote.
fn initialise(store: &dyn Store, newest: u32) -> Result<u32, StoreError> {
    let found = identity(store)?.format;
    if found > newest {
        return Err(StoreError::NewerFormat { found, supported: newest });
    }
    if found == 0 {
        let record =
            StoreRecord { format: newest, store_id: uuid::Uuid::new_v4().to_string(), ..StoreRecord::default() };
        let mut batch = super::Batch::default();
        batch.put_record(Table::Meta, STORE_KEY, &record);
        store.commit(batch)?;
    }
    Ok(found)
}

/// Returns the format of a store, 0 for an empty one.
///
/// # Errors
/// [`StoreError::NewerFormat`] for a store that a newer program wrote.
pub(crate) fn format(store: &dyn Store) -> Result<u32, StoreError> {
    let found = identity(store)?.format;
    let supported = newest_format();
    if found > supported { Err(StoreError::NewerFormat { found, supported }) } else { Ok(found) }
}

/// A migration's changes, and the new format in the store's identity.
struct ToFormat {
    format: u32,
    changes: Box<dyn Rewrite>,
}

impl Rewrite for ToFormat {
    fn row(&mut self, new: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError> {
        if table == Table::Meta && key == STORE_KEY {
            let record: StoreRecord = super::decode_record(table, &key, &value)?;
            let record = StoreRecord { format: self.format, ..record };
            return Ok(vec![Write::Put(table, key, encode_record(&record))]);
        }
        self.changes.row(new, table, key, value)
    }

    fn state(&self) -> Vec<u8> {
        self.changes.state()
    }

    fn resume(&mut self, new: &dyn Store, state: &[u8]) -> Result<(), StoreError> {
        self.changes.resume(new, state)
    }
}

/// Keeps every row; only the engine is new.
pub(super) struct Unchanged;

impl Rewrite for Unchanged {
    fn row(&mut self, _: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError> {
        Ok(vec![Write::Put(table, key, value)])
    }
}

#[cfg(test)]
mod tests;

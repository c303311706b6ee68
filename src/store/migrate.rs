//! Migrates a store to the format of this program, in numbered steps.
//!
//! Each migration and its new format number are one commit, so a crash leaves the store at one format or the next.

use std::sync::Arc;

use super::{Batch, Range, Store, StoreError, StoreExt, Table};
use crate::proto::store::StoreRecord;

#[path = "../../migrations/m0001_initial.rs"]
mod m0001_initial;

/// A step from one format to the next.
pub(super) struct Migration {
    /// The resulting format.
    pub(super) format: u32,
    /// A name for people.
    pub(super) name: &'static str,
    /// Returns the writes of the migration, without the format number.
    pub(super) writes: fn(&dyn Store) -> Result<Batch, StoreError>,
}

const MIGRATIONS: &[Migration] = &[m0001_initial::MIGRATION];

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

pub(super) const STORE_KEY: &[u8] = b"store";

/// The key of `SecretsRecord`.
pub(crate) const SECRETS_KEY: &[u8] = b"secrets";

/// Applies the missing migrations.
///
/// # Errors
/// [`StoreError::NewerFormat`] for a store that a newer program wrote; nothing is changed then.
pub(crate) fn migrate(store: &Arc<dyn Store>) -> Result<Migrated, StoreError> {
    run(store, MIGRATIONS)
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

/// Reads the store's identity; the default for an empty one.
fn identity(store: &dyn Store) -> Result<StoreRecord, StoreError> {
    if let Some(record) = store.get_record(Table::Meta, STORE_KEY)? {
        return Ok(record);
    }
    // An import writes the identity last.
    for table in Table::ALL {
        if !store.scan(table, &Range::default(), 1)?.is_empty() {
            return Err(StoreError::Corrupt {
                what: "the store has records but no identity".to_owned(),
                affects: "an import into it did not finish; import again, into an empty folder".to_owned(),
            });
        }
    }
    Ok(StoreRecord::default())
}

fn run(store: &Arc<dyn Store>, migrations: &[Migration]) -> Result<Migrated, StoreError> {
    let supported = migrations.last().map_or(0, |m| m.format);
    let mut record = identity(&**store)?;
    let from = record.format;
    if from > supported {
        return Err(StoreError::NewerFormat { found: from, supported });
    }
    let mut applied = Vec::new();
    for migration in migrations.iter().filter(|m| m.format > from) {
        let mut batch = (migration.writes)(&**store)?;
        record.format = migration.format;
        if record.store_id.is_empty() {
            record.store_id = uuid::Uuid::new_v4().to_string();
        }
        batch.put_record(Table::Meta, STORE_KEY, &record);
        store.commit(batch)?;
        tracing::info!(migration = migration.name, format = migration.format, "migrated the store");
        applied.push(migration.name);
    }
    Ok(Migrated { from, to: record.format, applied })
}

#[cfg(test)]
mod tests;

//! A store in memory, for tests and for data that need not survive.

use std::{collections::BTreeMap, ops::Bound};

use parking_lot::RwLock;

use super::{Batch, Condition, Entry, Keys, Range, Store, StoreError, Table, Write, printable};

/// Values by table and key.
type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A store that ends with its process.
pub(crate) struct MemoryStore {
    tables: RwLock<Rows>,
    keys: Keys,
}

impl MemoryStore {
    /// Creates an empty store.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { tables: RwLock::default(), keys: Keys::in_memory() }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let tables = self.tables.read();
        Ok(tables.get(&(table, key.to_vec())).cloned())
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let tables = self.tables.read();
        let Some((low, high)) = range.bounds() else { return Ok(Vec::new()) };
        let of_table = |bound: Bound<Vec<u8>>, unbounded| match bound {
            Bound::Included(key) => Bound::Included((table, key)),
            Bound::Excluded(key) => Bound::Excluded((table, key)),
            Bound::Unbounded => unbounded,
        };
        let low = of_table(low, Bound::Included((table, Vec::new())));
        let high = of_table(high, Bound::Unbounded);
        let rows = tables
            .range((low, high))
            .take_while(|((t, _), _)| range.descending || *t == table)
            .filter(|((t, _), _)| *t == table)
            .map(|((_, key), value)| (key.clone(), value.clone()));
        if range.descending {
            let mut rows: Vec<_> = rows.collect();
            rows.reverse();
            rows.truncate(limit);
            Ok(rows)
        } else {
            Ok(rows.take(limit).collect())
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut tables = self.tables.write();
        for condition in &batch.conditions {
            let (table, key, wanted) = match condition {
                Condition::Absent(table, key) => (*table, key, None),
                Condition::Equals(table, key, value) => (*table, key, Some(value)),
            };
            if tables.get(&(table, key.clone())) != wanted {
                return Err(StoreError::Conflict { table, key: printable(key) });
            }
        }
        for write in batch.writes {
            match write {
                Write::Put(table, key, value) => tables.insert((table, key), value),
                Write::Delete(table, key) => tables.remove(&(table, key)),
            };
        }
        Ok(())
    }
}

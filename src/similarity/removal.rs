//! The rows of collections and faces as a whole: which are there, and how those of deleted ones are removed.

use std::{collections::BTreeSet, time::SystemTime};

use crate::{
    proto::store::{CollectionRecord, ErasureRecord, FaceIdRecord, SealedRecord},
    store::{
        Batch, Entry, LOST_NUMBERS, Range, Segments, Store, StoreError, StoreExt, Table, decode_record, incarnation_of,
        incarnation_prefix, parse_row_key, reserved_numbers, row_key,
    },
};

/// The tables of faces. Their keys begin with the incarnation of the collection.
const TABLES: [Table; 3] = [Table::FaceVectors, Table::Faces, Table::FaceIds];

/// Rows that are removed with one commit.
const PIECE: usize = 512;

/// Returns the incarnations that have rows in the tables of faces.
pub(super) fn incarnations(store: &dyn Store) -> Result<BTreeSet<u64>, StoreError> {
    let mut found = BTreeSet::new();
    for table in TABLES {
        for incarnation in incarnations_in(store, table)? {
            found.insert(incarnation);
        }
    }
    Ok(found)
}

fn incarnations_in(store: &dyn Store, table: Table) -> Result<Vec<u64>, StoreError> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let range = Range { after, ..Range::default() };
        let first = match store.scan(table, &range, 1) {
            // The collections that are known are loaded past the damage.
            Err(StoreError::Corrupt { .. }) => return Ok(found),
            rows => rows?.pop(),
        };
        let Some(incarnation) = first.and_then(|(key, _)| incarnation_of(&key)) else {
            return Ok(found);
        };
        found.push(incarnation);
        after = Some(row_key(incarnation, u64::MAX));
    }
}

/// Returns the highest number that a collection or a face may have had; new ones count up from it.
pub(super) fn highest_number(store: &dyn Store) -> Result<u64, StoreError> {
    let mut last = 0;
    let mut may_be_lost = false;
    for row in store.readable_records::<CollectionRecord>(Table::Collections, Range::default()) {
        last = last.max(row?.1.incarnation);
    }
    for table in [Table::Faces, Table::FaceVectors, Table::Erasures] {
        may_be_lost |= store.state().borrow().is_damaged(table);
        for incarnation in incarnations_in(store, table)? {
            let of_incarnation =
                Range { prefix: incarnation_prefix(incarnation), descending: true, ..Range::default() };
            match store.scan(table, &of_incarnation, 1) {
                Err(StoreError::Corrupt { .. }) => may_be_lost = true,
                rows => {
                    let number = rows?.first().and_then(|(key, _)| parse_row_key(key)).map_or(0, |(_, number)| number);
                    last = last.max(incarnation).max(number);
                }
            }
        }
    }
    last = last.max(store.segments().map_or(0, Segments::last_number));
    let floor = reserved_numbers(store)?;
    Ok(last.max(floor) + if may_be_lost { LOST_NUMBERS } else { 0 })
}

/// Removes the record of a collection whose key was wiped.
pub(super) fn remove_collection(store: &dyn Store, key: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
    let record: CollectionRecord = decode_record(Table::Collections, key, bytes)?;
    tracing::warn!(collection = record.id, "finishing the deletion of a collection");
    store.commit(deletion(key, bytes.to_vec(), record.incarnation))
}

/// Returns the writes that delete a collection, whose record must be unchanged.
pub(super) fn deletion(key: &[u8], bytes: Vec<u8>, incarnation: u64) -> Batch {
    let mut batch = Batch::default();
    batch.require_equals(Table::Collections, key, bytes).delete(Table::Collections, key).put_record(
        Table::Erasures,
        &row_key(incarnation, 0),
        &erased_now(),
    );
    batch
}

/// The entry of the journal for an erasure at this time.
pub(super) fn erased_now() -> ErasureRecord {
    ErasureRecord { time: Some(SystemTime::now().into()) }
}

/// Removes some rows of a deleted collection; returns true if there may be more. Wipes the keys of its faces, unless
/// their slots may have been given to others since.
pub(super) fn remove_some(store: &dyn Store, incarnation: u64, wipe_keys: bool) -> Result<bool, StoreError> {
    let range = Range { prefix: incarnation_prefix(incarnation), ..Range::default() };
    for table in TABLES {
        let rows = store.scan(table, &range, PIECE)?;
        if rows.is_empty() {
            continue;
        }
        let mut batch = Batch::default();
        let mut slots = Vec::new();
        for (key, value) in &rows {
            batch.delete(table, key);
            if table == Table::FaceVectors {
                // Together with the vector: each row that is left has a slot that is not wiped.
                batch.delete(Table::Faces, key);
                slots.extend(decode_record::<SealedRecord>(table, key, value).ok().map(|row| row.key_slot));
            }
        }
        store.commit(batch)?;
        if wipe_keys {
            store.keys().wipe(slots)?;
        }
        return Ok(true);
    }
    Ok(false)
}

/// Removes the rows of faces whose keys were wiped.
pub(super) fn remove_erased(store: &dyn Store, rows: &[Vec<u8>]) -> Result<(), StoreError> {
    let numbers: BTreeSet<_> = rows.iter().filter_map(|row| parse_row_key(row)).collect();
    let incarnations: BTreeSet<u64> = numbers.iter().map(|(incarnation, _)| *incarnation).collect();
    let mut writes = Batch::default();
    for row in rows {
        writes.delete(Table::FaceVectors, row).delete(Table::Faces, row);
    }
    for incarnation in incarnations {
        let range = Range { prefix: incarnation_prefix(incarnation), ..Range::default() };
        for row in store.readable_records::<FaceIdRecord>(Table::FaceIds, range) {
            let (key, FaceIdRecord { number }) = row?;
            if numbers.contains(&(incarnation, number)) {
                writes.delete(Table::FaceIds, &key);
            }
        }
    }
    for piece in writes.writes.chunks(PIECE) {
        store.commit(Batch { writes: piece.to_vec(), ..Batch::default() })?;
    }
    Ok(())
}

/// Rows of a collection, read past pages of the engine that cannot be read.
pub(super) struct Rows<'a> {
    store: &'a dyn Store,
    table: Table,
    incarnation: u64,
    /// The number of the last row.
    last: Option<u64>,
    page: std::vec::IntoIter<Entry>,
    has_ended: bool,
    /// Ranges of rows that could not be read.
    pub(super) n_gaps: usize,
}

impl<'a> Rows<'a> {
    /// The rows after a number, or all.
    pub(super) fn after(store: &'a dyn Store, table: Table, incarnation: u64, last: Option<u64>) -> Self {
        Self { store, table, incarnation, last, page: Vec::new().into_iter(), has_ended: false, n_gaps: 0 }
    }

    fn scan_after(&self, last: Option<u64>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let range = Range {
            prefix: incarnation_prefix(self.incarnation),
            after: last.map(|number| row_key(self.incarnation, number)),
            descending: false,
        };
        self.store.scan(self.table, &range, limit)
    }

    /// Finds rows behind a page that cannot be read: first in steps that double, then in steps that halve.
    fn scan_past_damage(&mut self) -> Result<Vec<Entry>, StoreError> {
        let start = self.last.unwrap_or(0);
        let is_readable = |after: u64| match self.scan_after(Some(after), 1) {
            Ok(_) => Ok(true),
            Err(StoreError::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        let mut step = 1_u64;
        while !is_readable(start.saturating_add(step))? {
            if start.saturating_add(step) == u64::MAX {
                return Ok(Vec::new());
            }
            step = step.saturating_mul(2);
        }
        let (mut unreadable, mut readable) = (start + step / 2, start.saturating_add(step));
        while readable - unreadable > 1 {
            let middle = unreadable + (readable - unreadable) / 2;
            if is_readable(middle)? { readable = middle } else { unreadable = middle }
        }
        self.scan_after(Some(readable), 1)
    }
}

/// Rows per page.
const PAGE: usize = 256;

impl Iterator for Rows<'_> {
    type Item = Result<Entry, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.page.next() {
                self.last = parse_row_key(&key).map(|(_, number)| number).or(self.last);
                return Some(Ok((key, value)));
            }
            if self.has_ended {
                return None;
            }
            let page = match self.scan_after(self.last, PAGE) {
                // A smaller page may end before the damage.
                Err(StoreError::Corrupt { .. }) => match self.scan_after(self.last, 1) {
                    Err(StoreError::Corrupt { what, affects }) => {
                        tracing::error!(what, affects, incarnation = self.incarnation, "faces cannot be read");
                        self.n_gaps += 1;
                        self.scan_past_damage()
                    }
                    page => page,
                },
                page => page,
            };
            match page {
                Ok(page) if page.is_empty() => self.has_ended = true,
                Ok(page) => self.page = page.into_iter(),
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

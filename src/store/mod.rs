//! Durable bytes: records, blobs, migrations.
//!
//! Owns durability, atomicity and checksums. Seals faces and answers under keys that a deletion wipes; knows the meaning
//! of no other record, except in `doctor`, and no transport. A [`Store`]
//! holds ordered tables of byte keys and values. `Records` adds protobuf messages with a format version and a checksum.
//! [`Blobs`] keeps large values by their SHA-256, in chunks of the store, with mapped files in front. `SledStore` is a
//! server's store, `MemoryStore` that of small tests; both pass one test suite. Only `sled/` names the engine. [`Segments`]
//! are files with copies of faces' rows, from which a start reads and a damaged engine is built again.

mod answers;
mod blobs;
mod cached;
mod doctor;
mod erasures;
mod error;
mod export;
mod face_rows;
mod files;
mod identity;
mod keys;
mod leftovers;
#[cfg(test)]
mod memory;
mod migrate;
mod records;
mod sealing;
mod segments;
mod sidecar;
mod sled;
mod store_key;
mod table;
mod tally;

use std::{
    ops::Bound,
    path::Path,
    sync::{Arc, LazyLock},
};

use tokio::sync::watch;

pub(crate) use answers::{Day, Days, StoredAnswer};
pub(crate) use blobs::{Blobs, StoreBlobs, SweepReport};
pub(crate) use cached::CachedBlobs;

pub(crate) use self::sled::{Rewritten, STORE_KEY_FILE, SledSettings, SledStore, change_store_key, panic_is_guarded};
pub(crate) use doctor::{ErasedFace, Finding, examine, find_in_files, find_in_store};
pub(crate) use erasures::Erased;
pub(crate) use error::StoreError;
pub(crate) use export::{ENCRYPTED_MAGIC, export, import, verify_export};
pub(crate) use face_rows::{
    CollectionKey, FaceKey, Unsealed, incarnation_of, incarnation_prefix, parse_row_key, row_key,
};
pub(crate) use identity::{LOST_NUMBERS, SECRETS_KEY, reserved_numbers};
pub(crate) use keys::{Keys, SlotKey, SlotKeys};
#[cfg(test)]
pub(crate) use memory::MemoryStore;
use migrate::open_migrated;
pub(crate) use migrate::{Migrated, format, newest_format};
pub(crate) use records::{StoreExt, decode_record, decode_vector, encode_record, join_key, printable, record_payload};
pub(crate) use segments::{SegmentFile, SegmentReader, Segments};
pub(crate) use table::Table;

pub(crate) use crate::digest::Digest;

/// A key and its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

/// The keys that a scan visits, in key order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Range {
    /// Only keys with this prefix.
    pub prefix: Vec<u8>,
    /// Only keys after this one, in the direction of the scan.
    pub after: Option<Vec<u8>>,
    /// From the last key to the first.
    pub descending: bool,
}

/// The bounds of a range of keys.
pub(crate) type KeyBounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

impl Range {
    /// Returns the bounds of the keys visited, or `None` when there can be none.
    pub(crate) fn bounds(&self) -> Option<KeyBounds> {
        let mut low = Bound::Included(self.prefix.clone());
        let mut high = successor(&self.prefix).map_or(Bound::Unbounded, Bound::Excluded);
        if let Some(after) = &self.after {
            if self.descending {
                if *after <= self.prefix {
                    return None;
                }
                if !matches!(&high, Bound::Excluded(end) if end <= after) {
                    high = Bound::Excluded(after.clone());
                }
            } else if *after >= self.prefix {
                if matches!(&high, Bound::Excluded(end) if end <= after) {
                    return None;
                }
                low = Bound::Excluded(after.clone());
            }
        }
        Some((low, high))
    }
}

/// Returns the first key after all with this prefix, or `None` when there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.iter().rposition(|b| *b != u8::MAX)?;
    let mut next = prefix[..=kept].to_vec();
    next[kept] += 1;
    Some(next)
}

/// A condition for applying a batch.
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// The key has no value.
    Absent(Table, Vec<u8>),
    /// The key has exactly this value.
    Equals(Table, Vec<u8>, Vec<u8>),
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Write {
    /// Sets the key's value.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Removes the key, if it is there.
    Delete(Table, Vec<u8>),
}

/// Changes applied together or not at all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    /// Checked first, atomically with the writes.
    pub conditions: Vec<Condition>,
    /// Applied in order.
    pub writes: Vec<Write>,
}

/// The condition of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoreState {
    /// Why writes are refused at the moment; `None` when they are taken.
    pub writes_refused: Option<Arc<str>>,
    /// The damage found when the store was opened and since, by table. Everything else is served.
    pub damage: Arc<[(Table, String)]>,
    /// True once the tables that are verified after the opening have been read, so that their damage is known.
    pub is_checked: bool,
}

impl StoreState {
    /// Returns true if records of this table were lost or altered.
    pub(crate) fn is_damaged(&self, table: Table) -> bool {
        self.damage.iter().any(|(damaged, _)| *damaged == table)
    }
}

/// Ordered tables of bytes.
///
/// Calls block and belong on blocking threads.
pub(crate) trait Store: Send + Sync + 'static {
    /// The keys that seal some of its values.
    fn keys(&self) -> &Keys;

    /// The segment files, if the store keeps any.
    fn segments(&self) -> Option<&Segments> {
        None
    }

    /// Returns the key's value.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the engine finds damage, [`StoreError::Io`] when the disk fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Returns up to `limit` entries of the range.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Applies a batch; once it returns, the batch survives a power cut.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a condition does not hold, [`StoreError::Full`] and [`StoreError::WritesFail`] when
    /// the disk takes nothing; nothing was changed.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Returns a receiver of the store's condition. A store without a disk is always healthy.
    fn state(&self) -> watch::Receiver<StoreState> {
        static HEALTHY: LazyLock<watch::Sender<StoreState>> = LazyLock::new(watch::Sender::default);
        HEALTHY.subscribe()
    }

    /// Returns the number of entries that a table should have, if the store keeps count.
    fn n_expected(&self, _: Table) -> Option<u64> {
        None
    }

    /// Returns every difference from the engine's own tally, if it keeps one.
    fn verify_all(&self) -> Vec<StoreError> {
        Vec::new()
    }
}

/// Opens the store of a folder, created if absent: verifies it and migrates it to this program's format.
///
/// # Errors
/// [`StoreError::Locked`], [`StoreError::NewerFormat`], [`StoreError::Key`], or [`StoreError::Corrupt`] naming what is
/// damaged.
pub(crate) fn open(dir: &Path, settings: &SledSettings) -> Result<Arc<dyn Store>, StoreError> {
    let (store, _) = open_migrated(dir, settings, false, |_, _| {})?;
    Ok(Arc::new(store))
}

/// Migrates the store of a folder to this program's format; `progress` receives the rows done and their total.
///
/// # Errors
/// As [`open`].
pub(crate) fn migrate(
    dir: &Path,
    settings: &SledSettings,
    leave_out_damage: bool,
    progress: impl FnMut(u64, u64),
) -> Result<Migrated, StoreError> {
    Ok(open_migrated(dir, settings, leave_out_damage, progress)?.1)
}

/// Writes a store into a new engine without the space that the old one no longer uses.
///
/// # Errors
/// As [`open`]; [`StoreError::NoRoom`].
pub(crate) fn compact(
    dir: &Path,
    settings: &SledSettings,
    progress: impl FnMut(u64, u64),
) -> Result<Rewritten, StoreError> {
    sled::rewrite(dir, settings, "compaction", false, migrate::Unchanged, progress)
}

#[cfg(test)]
pub(crate) mod tests;

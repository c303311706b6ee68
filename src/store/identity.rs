//! The facts of the store itself, in the table of facts.

use super::{Range, Store, StoreError, StoreExt, Table};
use crate::proto::store::StoreRecord;

/// The first format whose faces are sealed.
pub(super) const FIRST_SEALED_FORMAT: u32 = 2;

/// The key of `StoreRecord`.
pub(super) const STORE_KEY: &[u8] = b"store";

/// The numbers that new collections and faces do not get when rows are lost, because lost ones may have had them.
pub(crate) const LOST_NUMBERS: u64 = 1 << 32;

/// The key of `SecretsRecord`.
pub(crate) const SECRETS_KEY: &[u8] = b"secrets";

/// The key of `DaysRecord`.
pub(super) const DAYS_KEY: &[u8] = b"days";

/// Returns the format that a store's identity names; `None` without one.
pub(super) fn stored_format(store: &dyn Store) -> Result<Option<u32>, StoreError> {
    Ok(store.get_record::<StoreRecord>(Table::Meta, STORE_KEY)?.map(|record| record.format))
}

/// Returns the highest number that new collections and faces must not use, because the exported store may have used it.
pub(crate) fn reserved_numbers(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(store.get_record::<StoreRecord>(Table::Meta, STORE_KEY)?.map_or(0, |record| record.reserved_up_to))
}

/// Reads the store's identity; the default for an empty one.
pub(super) fn identity(store: &dyn Store) -> Result<StoreRecord, StoreError> {
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

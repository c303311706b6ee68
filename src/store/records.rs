//! Protobuf records in tables, each in an envelope of format, checksum and payload.

use prost::Message;

use super::{Batch, Condition, Entry, Range, Store, StoreError, Table, Write};
use crate::digest::Hex;

/// The envelope's own format.
const FORMAT: u8 = 1;

/// The size of the format byte and the CRC-32.
const HEADER_BYTES: usize = 5;

/// Encodes a message in its envelope: format, CRC-32 of the payload (big endian), payload.
#[must_use]
pub(crate) fn encode_record<M: Message>(message: &M) -> Vec<u8> {
    let payload = message.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&crc32fast::hash(&payload).to_be_bytes());
    bytes.extend_from_slice(&payload);
    bytes
}

/// Verifies an envelope's checksum and decodes its message.
///
/// # Errors
/// [`StoreError::Corrupt`] naming the record.
pub(crate) fn decode_record<M: Message + Default>(table: Table, key: &[u8], value: &[u8]) -> Result<M, StoreError> {
    let payload = record_payload(table, key, value)?;
    M::decode(payload).map_err(|_| damaged(table, key, "it is no such message"))
}

/// Verifies an envelope's checksum and returns the encoded message.
///
/// # Errors
/// [`StoreError::Corrupt`] naming the record.
pub(crate) fn record_payload<'a>(table: Table, key: &[u8], value: &'a [u8]) -> Result<&'a [u8], StoreError> {
    let corrupt = |why: &str| damaged(table, key, why);
    let (header, payload) = value.split_at_checked(HEADER_BYTES).ok_or_else(|| corrupt("too short"))?;
    if header[0] != FORMAT {
        return Err(corrupt("its envelope has an unknown format"));
    }
    if header[1..] != crc32fast::hash(payload).to_be_bytes() {
        return Err(corrupt("its checksum fails"));
    }
    Ok(payload)
}

fn damaged(table: Table, key: &[u8], why: &str) -> StoreError {
    StoreError::Corrupt {
        what: format!("the record {table:?}/{} ({why})", printable(key)),
        affects: "its content cannot be used; restore it from an export".to_owned(),
    }
}

/// Rounding may move the squared length of a stored vector this far from one.
const MAX_ROUNDING: f64 = 1e-3;

/// Decodes a `FaceRecord`'s vector: `dimensions` little-endian f32, finite, of length one.
///
/// # Errors
/// Returns what is wrong with the bytes.
pub(crate) fn decode_vector(bytes: &[u8], dimensions: usize) -> Result<Vec<f32>, String> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() || numbers.len() != dimensions {
        return Err(format!("its vector has {} bytes, not {}", bytes.len(), 4 * dimensions));
    }
    let values: Vec<f32> = numbers.iter().map(|n| f32::from_le_bytes(*n)).collect();
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    // A number that is not finite makes the sum so.
    if (squares - 1.0).abs() <= MAX_ROUNDING { Ok(values) } else { Err("its vector is not of length one".to_owned()) }
}

/// Formats a key for people: zero bytes separate its parts, and bytes that are not text are in hex.
#[must_use]
pub(crate) fn printable(key: &[u8]) -> String {
    let part = |part: &[u8]| match std::str::from_utf8(part) {
        Ok(text) if !text.is_empty() && !text.contains(char::is_control) => text.to_owned(),
        _ => Hex(part).to_string(),
    };
    // A number's eight bytes may contain zeros, so only the first separator splits.
    match key.iter().position(|b| *b == 0) {
        None => part(key),
        Some(at) => format!("{}/{}", part(&key[..at]), part(&key[at + 1..])),
    }
}

/// Joins the parts of a key with zero bytes; only the last part may contain one.
#[must_use]
pub(crate) fn join_key(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&0)
}

/// Entries per page.
const PAGE: usize = 256;

/// Adds whole ranges, and records, to a store.
pub(crate) trait StoreExt: Store {
    /// Returns the entries of a range in pages, none of them empty; ends with the first error.
    fn pages(&self, table: Table, mut range: Range) -> impl Iterator<Item = Result<Vec<Entry>, StoreError>> {
        let mut has_ended = false;
        std::iter::from_fn(move || {
            if has_ended {
                return None;
            }
            // A short page is not the end, only an empty one is; see the scan of `SledStore`.
            let page = self.scan(table, &range, PAGE);
            match page.as_ref().map(|rows| rows.last()) {
                Ok(Some((last, _))) => range.after = Some(last.clone()),
                Ok(None) | Err(_) => has_ended = true,
            }
            Some(page).filter(|page| !page.as_ref().is_ok_and(Vec::is_empty))
        })
    }

    /// Returns the entries of a range, read in pages; ends with the first error.
    fn entries(&self, table: Table, range: Range) -> impl Iterator<Item = Result<Entry, StoreError>> {
        self.pages(table, range).flat_map(|page| {
            let (rows, failure) = page.map_or_else(|error| (Vec::new(), Some(error)), |rows| (rows, None));
            rows.into_iter().map(Ok).chain(failure.map(Err))
        })
    }

    /// Returns the records of a range with their keys, read in pages; ends when the store fails. A damaged record is an
    /// error but does not end the iteration.
    fn records<M: Message + Default>(
        &self,
        table: Table,
        range: Range,
    ) -> impl Iterator<Item = Result<(Vec<u8>, M), StoreError>> {
        self.entries(table, range).map(move |entry| {
            let (key, value) = entry?;
            decode_record(table, &key, &value).map(|record| (key, record))
        })
    }

    /// Returns the records of a range without the damaged ones, which are only logged; ends with the first error of the
    /// store.
    fn readable_records<M: Message + Default>(
        &self,
        table: Table,
        range: Range,
    ) -> impl Iterator<Item = Result<(Vec<u8>, M), StoreError>> {
        self.entries(table, range).filter_map(move |entry| {
            let (key, value) = match entry {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            match decode_record(table, &key, &value) {
                Ok(record) => Some(Ok((key, record))),
                Err(error) => {
                    tracing::error!(%error, "a damaged record is set aside");
                    None
                }
            }
        })
    }

    /// Deletes the entries of a range for which `is_unwanted` is true, one page per commit; returns their number.
    ///
    /// # Errors
    /// Those of `is_unwanted`; errors of the store. Earlier pages are deleted then.
    fn delete_where(
        &self,
        table: Table,
        range: Range,
        mut is_unwanted: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<usize, StoreError> {
        let mut n_deleted = 0;
        for page in self.pages(table, range) {
            let mut batch = Batch::default();
            for (key, value) in page? {
                if is_unwanted(&key, &value)? {
                    batch.delete(table, &key);
                }
            }
            if !batch.writes.is_empty() {
                n_deleted += batch.writes.len();
                self.commit(batch)?;
            }
        }
        Ok(n_deleted)
    }

    /// Waits until a value that was read is durable. Returns false if the key has another value by then: the write was
    /// undone because the disk failed, or another one followed.
    ///
    /// # Errors
    /// Errors of the store; the disk may have failed.
    fn is_durable(&self, table: Table, key: &[u8], value: Vec<u8>) -> Result<bool, StoreError> {
        let mut batch = Batch::default();
        batch.require_equals(table, key, value);
        match self.commit(batch) {
            Ok(()) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the record of a key.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is damaged.
    fn get_record<M: Message + Default>(&self, table: Table, key: &[u8]) -> Result<Option<M>, StoreError> {
        self.get(table, key)?.map(|value| decode_record(table, key, &value)).transpose()
    }

    /// Returns up to `limit` records of a range, with their keys.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for the first damaged one.
    fn scan_records<M: Message + Default>(
        &self,
        table: Table,
        range: &Range,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, M)>, StoreError> {
        let decode = |(key, value): (Vec<u8>, Vec<u8>)| decode_record(table, &key, &value).map(|record| (key, record));
        self.scan(table, range, limit)?.into_iter().map(decode).collect()
    }
}

impl<S: Store + ?Sized> StoreExt for S {}

impl Batch {
    /// Sets a record.
    pub(crate) fn put_record<M: Message>(&mut self, table: Table, key: &[u8], record: &M) -> &mut Self {
        self.writes.push(Write::Put(table, key.to_vec(), encode_record(record)));
        self
    }

    /// Sets a key's value.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> &mut Self {
        self.writes.push(Write::Put(table, key.to_vec(), value));
        self
    }

    /// Removes a key.
    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> &mut Self {
        self.writes.push(Write::Delete(table, key.to_vec()));
        self
    }

    /// Requires that the key has no value.
    pub(crate) fn require_absent(&mut self, table: Table, key: &[u8]) -> &mut Self {
        self.conditions.push(Condition::Absent(table, key.to_vec()));
        self
    }

    /// Requires that the key has exactly this value, as returned by [`Store::get`].
    pub(crate) fn require_equals(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> &mut Self {
        self.conditions.push(Condition::Equals(table, key.to_vec(), value));
        self
    }

    /// Adds another batch's conditions and writes.
    pub(crate) fn extend(&mut self, other: Self) -> &mut Self {
        self.conditions.extend(other.conditions);
        self.writes.extend(other.writes);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::store::AliasRecord;

    #[test]
    fn keys_are_shown_with_their_parts() {
        assert_eq!(printable(&join_key(&[b"face", b"champion"])), "face/champion");
        assert_eq!(printable(&join_key(&[b"face", &3u64.to_be_bytes()])), "face/0000000000000003");
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(version in 1u64.., at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let record = AliasRecord { version, update_time: None };
            let mut bytes = encode_record(&record);
            prop_assert_eq!(decode_record::<AliasRecord>(Table::Aliases, b"k", &bytes).unwrap(), record);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_record::<AliasRecord>(Table::Aliases, b"k", &bytes).is_err());
        }
    }
}

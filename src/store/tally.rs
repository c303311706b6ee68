//! The number of entries of each table, and a sum of their hashes, to show that nothing is lost.
//!
//! An engine that loses a page in the middle of its log answers as if its keys had never existed. The tally is written
//! atomically with every batch, so it reveals such a loss.

use super::{StoreError, Table};

/// The store's counts and sums after the batch of this sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Increases by one with every batch.
    pub(super) sequence: u64,
    /// By the table's number.
    tables: [TableTally; Table::ALL.len()],
}

/// The count and sum of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TableTally {
    pub(super) n_entries: u64,
    sum: u64,
}

impl TableTally {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.n_entries = self.n_entries.wrapping_add(1);
        self.sum = self.sum.wrapping_add(entry_hash(key, value));
    }

    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.n_entries = self.n_entries.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(entry_hash(key, value));
    }
}

/// Combines two CRCs: of the key, and of key and value together.
fn entry_hash(key: &[u8], value: &[u8]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    let of_key = u64::from(hasher.clone().finalize());
    hasher.update(value);
    of_key << 32 | u64::from(hasher.finalize())
}

impl Tally {
    /// The tally of an empty store, after so many batches.
    pub(super) fn empty(sequence: u64) -> Self {
        Self { sequence, ..Self::default() }
    }

    pub(super) fn of(&self, table: Table) -> TableTally {
        self.tables[table as usize]
    }

    pub(super) fn of_mut(&mut self, table: Table) -> &mut TableTally {
        &mut self.tables[table as usize]
    }

    /// Encodes the sequence, then count and sum for each table, then CRC-32.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.sequence.to_be_bytes().to_vec();
        for table in &self.tables {
            bytes.extend(table.n_entries.to_be_bytes());
            bytes.extend(table.sum.to_be_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = || StoreError::Corrupt {
            what: "the store's tally".to_owned(),
            affects: "records may be missing; import the last export".to_owned(),
        };
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(corrupt)?;
        // A newer program may have written more tables, an older one fewer: tables are only ever added.
        let (numbers, rest) = body.as_chunks::<8>();
        if *crc != crc32fast::hash(body).to_be_bytes() || !rest.is_empty() || numbers.len() % 2 == 0 {
            return Err(corrupt());
        }
        let mut numbers = numbers.iter().map(|n| u64::from_be_bytes(*n));
        let mut next = || numbers.next().unwrap_or_default();
        let mut tally = Self { sequence: next(), ..Self::default() };
        for table in &mut tally.tables {
            *table = TableTally { n_entries: next(), sum: next() };
        }
        Ok(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_comes_back_and_its_damage_is_found() {
        let mut tally = Tally { sequence: 9, ..Tally::default() };
        tally.of_mut(Table::BlobChunks).add(b"k", b"v");
        tally.of_mut(Table::Faces).add(b"k", b"v");
        tally.of_mut(Table::Faces).remove(b"k", b"v");
        assert_eq!(tally.of(Table::Faces), TableTally::default());
        let mut bytes = tally.encode();
        assert_eq!(Tally::decode(&bytes).unwrap(), tally);
        let mut longer = bytes[..bytes.len() - 4].to_vec();
        longer.extend([1; 16]);
        longer.extend(crc32fast::hash(&longer).to_be_bytes());
        assert_eq!(Tally::decode(&longer).unwrap(), tally, "a later program's tables are its own");
        for i in 0..bytes.len() {
            bytes[i] ^= 4;
            assert!(Tally::decode(&bytes).is_err());
            bytes[i] ^= 4;
        }
    }
}

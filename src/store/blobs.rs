//! Large values by their SHA-256: the trait [`Blobs`], and the implementation in the store.
//!
//! Chunks are at most 16 KiB, because sled takes several times the size of larger values on disk and in memory. A blob
//! exists once its [`BlobRecord`] does, which is written after its chunks; chunks that a crash leaves before that are
//! swept.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;

use super::{Batch, Digest, Range, Store, StoreError, StoreExt, Table, Write};
use crate::proto::store::BlobRecord;

/// The maximum size of a chunk.
const CHUNK_BYTES: usize = 7 * 1024;

/// Chunks per commit.
const CHUNKS_PER_COMMIT: usize = 256;

/// The size of the CRC-32 before a chunk's bytes.
const CRC_BYTES: usize = 4;

/// The result of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SweepReport {
    /// Removed blobs that nothing refers to.
    pub n_blobs: usize,
    /// Removed chunks, including those of unfinished blobs.
    pub n_chunks: usize,
}

/// Large values by their SHA-256.
///
/// Calls block and belong on blocking threads. One implementation is the store's own chunks; [`super::CachedBlobs`]
/// puts files in front of another. A third is planned: an object store with the digest as the object's name, where
/// `put` returns once the object store has acknowledged, and `sweep` lists the bucket. If several servers share the
/// blobs, such a `sweep` must spare objects younger than the longest registration, because its caller knows only the
/// registrations of its own server.
pub(crate) trait Blobs: Send + Sync + 'static {
    /// Stores bytes under their digest; once it returns, they survive a kill. Existing bytes are not written again.
    ///
    /// # Errors
    /// Fails when they cannot be written.
    fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError>;

    /// Returns the verified bytes of a digest. They may be a mapped file: call [`crate::mapped::is_intact`] after
    /// reading.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] naming the blob when it is missing or damaged.
    fn get(&self, digest: &Digest) -> Result<Bytes, StoreError>;

    /// Removes every blob that is not in `live`, and the remains of unfinished blobs.
    ///
    /// The caller ensures that it writes no blob meanwhile.
    ///
    /// # Errors
    /// Fails when something cannot be removed; earlier removals remain.
    fn sweep(&self, live: &HashSet<Digest>) -> Result<SweepReport, StoreError>;
}

/// The blobs of a store, in chunks.
#[derive(Clone)]
pub(crate) struct StoreBlobs {
    store: Arc<dyn Store>,
}

impl StoreBlobs {
    /// Opens the blobs of `store`.
    #[must_use]
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

impl Blobs for StoreBlobs {
    fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if let Some(record) = self.store.get(Table::Blobs, digest.as_bytes())?
            && self.store.is_durable(Table::Blobs, digest.as_bytes(), record)?
        {
            return Ok(digest);
        }
        let chunks: Vec<&[u8]> = bytes.chunks(CHUNK_BYTES).collect();
        for (group_idx, group) in chunks.chunks(CHUNKS_PER_COMMIT).enumerate() {
            let mut batch = Batch::default();
            for (i, chunk) in group.iter().enumerate() {
                let key = chunk_key(&digest, (group_idx * CHUNKS_PER_COMMIT + i) as u32);
                let mut value = crc32fast::hash(chunk).to_be_bytes().to_vec();
                value.extend_from_slice(chunk);
                batch.writes.push(Write::Put(Table::BlobChunks, key, value));
            }
            self.store.commit(batch)?;
        }
        let record = BlobRecord { length: bytes.len() as u64, n_chunks: chunks.len() as u32 };
        let mut batch = Batch::default();
        batch.put_record(Table::Blobs, digest.as_bytes(), &record);
        self.store.commit(batch)?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        let corrupt = |why: String| StoreError::Corrupt {
            what: format!("the blob {digest} ({why})"),
            affects: "whatever needs it cannot be loaded; restore it from an export".to_owned(),
        };
        let record = self
            .store
            .get_record::<BlobRecord>(Table::Blobs, digest.as_bytes())?
            .ok_or_else(|| corrupt("it is missing".to_owned()))?;
        let range = Range { prefix: digest.as_bytes().to_vec(), ..Range::default() };
        let chunks = self.store.scan(Table::BlobChunks, &range, record.n_chunks as usize + 1)?;
        let mut bytes = Vec::with_capacity(chunks.len() * CHUNK_BYTES);
        for (i, (key, value)) in chunks.iter().enumerate() {
            let (crc, chunk) =
                value.split_at_checked(CRC_BYTES).ok_or_else(|| corrupt(format!("chunk {i} is cut short")))?;
            if *key != chunk_key(digest, i as u32) {
                return Err(corrupt(format!("chunk {i} is missing")));
            }
            if crc != crc32fast::hash(chunk).to_be_bytes() {
                return Err(corrupt(format!("the checksum of chunk {i} fails")));
            }
            bytes.extend_from_slice(chunk);
        }
        if chunks.len() != record.n_chunks as usize || bytes.len() as u64 != record.length {
            return Err(corrupt(format!("{} of {} bytes are present", bytes.len(), record.length)));
        }
        if Digest::of(&bytes) != *digest {
            return Err(corrupt("its SHA-256 is another".to_owned()));
        }
        Ok(bytes.into())
    }

    fn sweep(&self, live: &HashSet<Digest>) -> Result<SweepReport, StoreError> {
        let is_live =
            |key: &[u8]| key.get(..32).and_then(|k| Digest::try_from(k).ok()).is_some_and(|d| live.contains(&d));
        let sweep = |table| self.store.delete_where(table, Range::default(), |key, _| Ok(!is_live(key)));
        // Records first: a crash in between leaves chunks without a record, which the next sweep removes.
        let n_blobs = sweep(Table::Blobs)?;
        Ok(SweepReport { n_blobs, n_chunks: sweep(Table::BlobChunks)? })
    }
}

fn chunk_key(digest: &Digest, chunk_idx: u32) -> Vec<u8> {
    [digest.as_bytes().as_slice(), &chunk_idx.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn blobs() -> (Arc<MemoryStore>, StoreBlobs) {
        let store = Arc::new(MemoryStore::new());
        (Arc::clone(&store), StoreBlobs::new(store))
    }

    #[test]
    fn blobs_of_every_size_come_back() {
        let (_, blobs) = blobs();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 300 * CHUNK_BYTES + 5] {
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let digest = blobs.put(&bytes).unwrap();
            assert_eq!(blobs.get(&digest).unwrap(), bytes, "{length} bytes");
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }

    #[test]
    fn damage_and_loss_name_the_blob() {
        let (store, blobs) = blobs();
        let digest = blobs.put(&vec![7; 3 * CHUNK_BYTES]).unwrap();
        let key = chunk_key(&digest, 1);
        let value = store.get(Table::BlobChunks, &key).unwrap().unwrap();
        for damaged in [Some([&value[..9], &[8], &value[10..]].concat()), Some(value[..2].to_vec()), None] {
            let mut batch = Batch::default();
            match damaged {
                Some(bytes) => batch.writes.push(Write::Put(Table::BlobChunks, key.clone(), bytes)),
                None => batch.writes.push(Write::Delete(Table::BlobChunks, key.clone())),
            }
            store.commit(batch).unwrap();
            let error = blobs.get(&digest).unwrap_err().to_string();
            assert!(error.contains(&digest.to_string()) && error.contains("chunk 1"), "{error}");
        }
    }

    #[test]
    fn a_sweep_takes_what_nothing_names_and_no_more() {
        let (store, blobs) = blobs();
        let kept = blobs.put(b"kept").unwrap();
        let gone = blobs.put(b"gone").unwrap();
        let unfinished = chunk_key(&Digest::of(b"unfinished"), 0);
        store
            .commit(Batch { writes: vec![Write::Put(Table::BlobChunks, unfinished, vec![0; 9])], ..Batch::default() })
            .unwrap();
        let report = blobs.sweep(&HashSet::from([kept])).unwrap();
        assert_eq!(report, SweepReport { n_blobs: 1, n_chunks: 2 });
        assert_eq!(blobs.get(&kept).unwrap(), &b"kept"[..]);
        assert!(blobs.get(&gone).is_err());
    }
}

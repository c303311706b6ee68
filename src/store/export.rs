//! Exports a whole store as one stream, and imports it.
//!
//! The stream is a header of magic and format, every entry as a length-delimited [`ExportEntry`], an empty entry as the
//! end, and the SHA-256 of all before it. It does not depend on the engine: any store can import what sled wrote.

use std::io::{Read, Write as IoWrite};

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{
    Batch, Range, Store, StoreError, StoreExt, Table, Write, decode_record, decode_vector, migrate, printable,
};
use crate::proto::store::{ExportEntry, FaceRecord, StoreRecord};

const MAGIC: &[u8; 8] = b"VISAGE\x00E";

/// The maximum length of an entry, well above the longest written.
const MAX_ENTRY_BYTES: u64 = 16 << 20;

/// Bytes of entries per commit.
const COMMIT_BYTES: usize = 4 << 20;

/// A reader or writer that hashes what passes through it.
struct Hashed<T> {
    inner: T,
    hasher: Sha256,
}

impl<W: IoWrite> Hashed<W> {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Hashed<R> {
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), StoreError> {
        self.inner.read_exact(bytes).map_err(|e| bad(format!("it ends early ({e})")))?;
        self.hasher.update(&*bytes);
        Ok(())
    }

    fn entry(&mut self) -> Result<ExportEntry, StoreError> {
        let mut length = [0; 4];
        self.take(&mut length)?;
        let length = u64::from(u32::from_be_bytes(length));
        if length > MAX_ENTRY_BYTES {
            return Err(bad(format!("it has an entry of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.take(&mut bytes)?;
        ExportEntry::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))
    }
}

fn bad(why: String) -> StoreError {
    StoreError::BadExport(why)
}

/// Writes every entry of a store; `progress` receives the number written so far.
///
/// # Errors
/// Fails when the store cannot be read or the stream cannot be written.
pub(crate) fn export(store: &dyn Store, to: impl IoWrite, mut progress: impl FnMut(u64)) -> Result<u64, StoreError> {
    let io = |source| StoreError::Io { path: "the export".into(), source };
    let mut to = Hashed { inner: to, hasher: Sha256::new() };
    to.put(MAGIC).map_err(io)?;
    to.put(&migrate::newest_format().to_be_bytes()).map_err(io)?;
    let mut n_entries = 0;
    for table in Table::ALL {
        for page in store.pages(table, Range::default()) {
            for (key, value) in page? {
                let entry = ExportEntry { table: table as u32 + 1, key, value }.encode_to_vec();
                to.put(&(entry.len() as u32).to_be_bytes()).map_err(io)?;
                to.put(&entry).map_err(io)?;
                n_entries += 1;
            }
            progress(n_entries);
        }
    }
    to.put(&0u32.to_be_bytes()).map_err(io)?;
    let digest = to.hasher.finalize();
    to.inner.write_all(&digest).and_then(|()| to.inner.flush()).map_err(io)?;
    Ok(n_entries)
}

/// Verifies a whole export without writing anything.
///
/// # Errors
/// [`StoreError::BadExport`], [`StoreError::NewerFormat`].
pub(crate) fn verify_export(from: impl Read, mut progress: impl FnMut(u64)) -> Result<u64, StoreError> {
    read(from, |_, n| {
        progress(n);
        Ok(())
    })
}

/// Fills an empty store from an export.
///
/// The caller verifies the export first ([`verify_export`]), since entries are written as they are read.
///
/// # Errors
/// [`StoreError::NotEmpty`], or [`StoreError::BadExport`] for an incomplete export.
pub(crate) fn import(store: &dyn Store, from: impl Read, mut progress: impl FnMut(u64)) -> Result<u64, StoreError> {
    for table in Table::ALL {
        if !store.scan(table, &Range::default(), 1)?.is_empty() {
            return Err(StoreError::NotEmpty);
        }
    }
    let (mut batch, mut n_bytes, mut facts) = (Batch::default(), 0, Vec::new());
    let n_entries = read(from, |entry, n| {
        let Some(table) = Table::ALL.into_iter().find(|t| *t as u32 + 1 == entry.table) else {
            return Err(bad(format!("it has an entry of the unknown table {}", entry.table)));
        };
        n_bytes += entry.key.len() + entry.value.len();
        let write = Write::Put(table, entry.key, entry.value);
        if table == Table::Meta {
            // Written last: a store without its identity has an unfinished import.
            facts.push(write);
            return Ok(());
        }
        batch.writes.push(write);
        if n_bytes > COMMIT_BYTES {
            store.commit(std::mem::take(&mut batch))?;
            n_bytes = 0;
            progress(n);
        }
        Ok(())
    })?;
    batch.writes.extend(facts);
    store.commit(batch)?;
    progress(n_entries);
    match store.get_record::<StoreRecord>(Table::Meta, migrate::STORE_KEY)? {
        Some(_) => Ok(n_entries),
        None => Err(bad("it has no identity of a store".to_owned())),
    }
}

fn read(from: impl Read, mut each: impl FnMut(ExportEntry, u64) -> Result<(), StoreError>) -> Result<u64, StoreError> {
    let mut from = Hashed { inner: from, hasher: Sha256::new() };
    let mut magic = [0; 8];
    from.take(&mut magic)?;
    if magic != *MAGIC {
        return Err(bad("it does not begin as one".to_owned()));
    }
    let mut format = [0; 4];
    from.take(&mut format)?;
    let (found, supported) = (u32::from_be_bytes(format), migrate::newest_format());
    if found > supported {
        return Err(StoreError::NewerFormat { found, supported });
    }
    let mut n_entries = 0;
    loop {
        let entry = from.entry()?;
        if entry == ExportEntry::default() {
            break;
        }
        n_entries += 1;
        check_vector(&entry)?;
        each(entry, n_entries)?;
    }
    let expected = from.hasher.clone().finalize();
    let mut digest = [0; 32];
    from.inner.read_exact(&mut digest).map_err(|e| bad(format!("it ends early ({e})")))?;
    if digest != *expected {
        return Err(bad("its SHA-256 is another".to_owned()));
    }
    if from.inner.read(&mut [0]).map_err(|e| bad(e.to_string()))? > 0 {
        return Err(bad("something follows its end".to_owned()));
    }
    Ok(n_entries)
}

/// Refuses a face whose record is intact but whose vector cannot be compared. A damaged record passes: it was damaged in
/// the store that was exported, and will be set aside.
fn check_vector(entry: &ExportEntry) -> Result<(), StoreError> {
    if entry.table != Table::Faces as u32 + 1 {
        return Ok(());
    }
    let Ok(face) = decode_record::<FaceRecord>(Table::Faces, &entry.key, &entry.value) else { return Ok(()) };
    match decode_vector(&face.vector, face.vector.len() / 4) {
        Ok(_) => Ok(()),
        Err(why) => Err(bad(format!("the face {}: {why}", printable(&entry.key)))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::store::{Blobs, MemoryStore, StoreBlobs};

    fn filled() -> Arc<dyn Store> {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        migrate::migrate(&store).unwrap();
        StoreBlobs::new(Arc::clone(&store)).put(&vec![3; 50_000]).unwrap();
        let mut batch = Batch::default();
        batch.writes.push(Write::Put(Table::Faces, b"c\0f".to_vec(), b"value".to_vec()));
        store.commit(batch).unwrap();
        store
    }

    fn exported() -> Vec<u8> {
        let mut bytes = Vec::new();
        export(&*filled(), &mut bytes, |_| {}).unwrap();
        bytes
    }

    fn all(store: &dyn Store) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
        Table::ALL.iter().map(|t| store.scan(*t, &Range::default(), usize::MAX).unwrap()).collect()
    }

    #[test]
    fn an_import_is_what_was_exported() {
        let (source, target) = (filled(), MemoryStore::new());
        let mut bytes = Vec::new();
        let n = export(&*source, &mut bytes, |_| {}).unwrap();
        assert_eq!(verify_export(bytes.as_slice(), |_| {}).unwrap(), n);
        assert_eq!(import(&target, bytes.as_slice(), |_| {}).unwrap(), n);
        assert_eq!(all(&target), all(&*source));
        assert!(import(&target, bytes.as_slice(), |_| {}).is_err(), "only into an empty store");
        bytes.push(0);
        assert!(verify_export(bytes.as_slice(), |_| {}).is_err(), "something follows its end");
    }

    #[test]
    fn a_vector_that_cannot_be_compared_is_refused_by_name() {
        let source = filled();
        let vector = [f32::NAN, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let face = FaceRecord { id: "f1".to_owned(), vector, ..FaceRecord::default() };
        let mut batch = Batch::default();
        batch.put_record(Table::Faces, b"c\0f1", &face);
        source.commit(batch).unwrap();
        let mut bytes = Vec::new();
        export(&*source, &mut bytes, |_| {}).unwrap();
        let refused = verify_export(bytes.as_slice(), |_| {}).unwrap_err().to_string();
        assert!(refused.contains("c/f1"), "{refused}");
    }

    proptest! {
        #[test]
        fn a_damaged_export_is_refused(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let mut bytes = exported();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
            let refused = verify_export(bytes.as_slice(), |_| ()).is_err();
            prop_assert!(refused);
        }
    }
}

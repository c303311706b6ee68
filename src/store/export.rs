//! Exports a whole store as one stream, and imports it.
//!
//! The stream is a header of magic and format, the keys of all slots, every entry as a length-delimited [`ExportEntry`],
//! an empty entry as the end, and the SHA-256 of all before it. It does not depend on the engine: any store can import
//! what sled wrote. Whoever has it can read the faces in it: keep it as safe as the store, or encrypt it.

use std::{
    collections::{HashMap, HashSet},
    io::{Read, Write as IoWrite},
};

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{
    Batch, CollectionKey, Erased, Range, SlotKey, Store, StoreError, StoreExt, Table, Unsealed, Write, decode_record,
    decode_vector,
    face_rows::incarnation_of,
    identity, migrate, parse_row_key, printable, row_key,
    sealing::{KEY_BYTES, Key},
};
use crate::proto::store::{
    AnswerRecord, CollectionRecord, DaysRecord, ErasureRecord, ExportEntry, FaceIdRecord, FaceRecord, FaceVector,
    SealedRecord, StoreRecord,
};

/// The beginning of every export.
pub(super) const MAGIC: &[u8; 8] = b"VISAGE\x00E";

/// The beginning of an export that age has encrypted.
pub(crate) const ENCRYPTED_MAGIC: &[u8] = b"age-encryption.org/";

/// The maximum length of an entry, well above the longest written.
const MAX_ENTRY_BYTES: u64 = 16 << 20;

/// The number of the entries that are keys; no table has it. Their key is the slot's number, big endian.
const KEYS: u32 = u8::MAX as u32;

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
    let format = identity::stored_format(store)?.unwrap_or_else(migrate::newest_format);
    to.put(&format.to_be_bytes()).map_err(io)?;
    let mut n_entries = 0;
    for SlotKey { slot, key } in store.keys().all()? {
        let entry = ExportEntry { table: KEYS, key: slot.to_be_bytes().to_vec(), value: key.bytes().to_vec() };
        let entry = zeroize::Zeroizing::new(entry.encode_to_vec());
        to.put(&(entry.len() as u32).to_be_bytes()).and_then(|()| to.put(&entry)).map_err(io)?;
    }
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

/// Fills an empty store from an export, without what was erased since.
///
/// The caller verifies the export first ([`verify_export`]), since entries are written as they are read.
///
/// # Errors
/// [`StoreError::NotEmpty`], or [`StoreError::BadExport`] for an incomplete export, or erasures of another store.
pub(crate) fn import(
    store: &dyn Store,
    from: impl Read,
    erased: &Erased,
    mut progress: impl FnMut(u64),
) -> Result<Imported, StoreError> {
    for table in Table::ALL {
        if !store.scan(table, &Range::default(), 1)?.is_empty() {
            return Err(StoreError::NotEmpty);
        }
    }
    let (mut batch, mut n_bytes, mut facts) = (Batch::default(), 0, Vec::new());
    let (mut keys, mut used) = (HashMap::new(), HashSet::new());
    let (mut identity, mut last_number) = (None, 0);
    let mut n_left_out = 0;
    let n_entries = read(from, |entry, n| {
        if entry.table == KEYS {
            keys.extend(slot_key(&entry));
            return Ok(());
        }
        let table = table_of(&entry)?;
        if table == Table::Meta && entry.key == identity::STORE_KEY {
            // It comes before anything is written.
            let record: StoreRecord = decode_record(table, &entry.key, &entry.value)?;
            let store_id = &record.store_id;
            if let Some(other) = erased.store_id.as_ref().filter(|other| *other != store_id) {
                return Err(bad(format!("it is of the store {store_id}, the erasures are of the store {other}")));
            }
            if erased.store_id.is_some() && record.format < identity::FIRST_SEALED_FORMAT {
                let why = "its faces have no numbers, which the erasures list: it is of an earlier format";
                return Err(bad(why.to_owned()));
            }
            identity = Some(record);
            return Ok(());
        }
        last_number = last_number.max(number_of(table, &entry.key));
        if is_erased(erased, table, &entry)? {
            n_left_out += u64::from(table == Table::Faces);
            return Ok(());
        }
        used.extend(slots_of(table, &entry));
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
    // The new store keeps the erasures, so that its own exports revive nobody either.
    let time = Some(std::time::SystemTime::now().into());
    for (incarnation, number) in erased.iter() {
        let row = row_key(incarnation, number);
        if store.get(Table::Erasures, &row)?.is_none() {
            batch.put_record(Table::Erasures, &row, &ErasureRecord { time });
        }
    }
    let keys = used.into_iter().map(|slot| (slot, keys.remove(&slot))).collect();
    store.keys().restore(&keys)?;
    batch.writes.extend(facts);
    let mut identity: StoreRecord = identity.ok_or_else(|| bad("it has no identity of a store".to_owned()))?;
    // The exported store may have given further numbers since, which a journal of it lists.
    let last_erased = erased.iter().map(|(incarnation, number)| incarnation.max(number)).max().unwrap_or(0);
    identity.reserved_up_to = identity.reserved_up_to.max(last_number).max(last_erased) + RESERVED_AFTER_IMPORT;
    batch.put_record(Table::Meta, identity::STORE_KEY, &identity);
    store.commit(batch)?;
    progress(n_entries);
    Ok(Imported { n_entries, n_left_out })
}

/// Returns the highest number in a key.
fn number_of(table: Table, key: &[u8]) -> u64 {
    match table {
        Table::Faces | Table::FaceVectors | Table::Erasures => {
            parse_row_key(key).map_or(0, |(incarnation, number)| incarnation.max(number))
        }
        _ => 0,
    }
}

/// More numbers than a store gives between an export and its import.
const RESERVED_AFTER_IMPORT: u64 = 1 << 40;

/// The result of an import.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Imported {
    /// Entries of the export.
    pub n_entries: u64,
    /// Faces that were left out, because they were erased after the export.
    pub n_left_out: u64,
}

fn table_of(entry: &ExportEntry) -> Result<Table, StoreError> {
    let table = Table::ALL.into_iter().find(|t| *t as u32 + 1 == entry.table);
    table.ok_or_else(|| bad(format!("it has an entry of the unknown table {}", entry.table)))
}

fn slot_key(entry: &ExportEntry) -> Option<(u64, Key)> {
    let slot = entry.key.as_slice().try_into().map(u64::from_be_bytes).ok()?;
    let key: [u8; KEY_BYTES] = entry.value.as_slice().try_into().ok()?;
    Some((slot, Key::from_bytes(key)))
}

/// Returns true if an entry is of something that was erased. Damaged entries are kept: they were damaged in the store
/// that was exported, and will be set aside.
fn is_erased(erased: &Erased, table: Table, entry: &ExportEntry) -> Result<bool, StoreError> {
    let (key, value) = (entry.key.as_slice(), entry.value.as_slice());
    Ok(match table {
        Table::Collections => decode_record::<CollectionRecord>(table, key, value)
            .is_ok_and(|record| record.incarnation > 0 && erased.contains_collection(record.incarnation)),
        Table::Faces | Table::FaceVectors => {
            parse_row_key(key).is_some_and(|(incarnation, number)| erased.contains(incarnation, number))
        }
        Table::FaceIds => decode_record::<FaceIdRecord>(table, key, value)
            .is_ok_and(|row| incarnation_of(key).is_some_and(|of| erased.contains(of, row.number))),
        Table::Requests => decode_record::<AnswerRecord>(table, key, value)
            .is_ok_and(|answer| answer.face.is_some_and(|face| erased.contains(face.incarnation, face.number))),
        _ => false,
    })
}

/// Returns the slots of the keys that an entry needs.
fn slots_of(table: Table, entry: &ExportEntry) -> Vec<u64> {
    let (key, value) = (entry.key.as_slice(), entry.value.as_slice());
    match table {
        Table::Collections => {
            decode_record::<CollectionRecord>(table, key, value).map_or(Vec::new(), |record| vec![record.key_slot])
        }
        Table::Faces | Table::FaceVectors => {
            decode_record::<SealedRecord>(table, key, value).map_or(Vec::new(), |record| vec![record.key_slot])
        }
        Table::Meta if key == identity::DAYS_KEY => decode_record::<DaysRecord>(table, key, value)
            .map_or(Vec::new(), |record| record.days.iter().map(|day| day.key_slot).collect()),
        _ => Vec::new(),
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
    let mut vectors = Vectors { is_sealed: found >= identity::FIRST_SEALED_FORMAT, ..Vectors::default() };
    loop {
        let entry = from.entry()?;
        if entry == ExportEntry::default() {
            break;
        }
        vectors.check(&entry)?;
        n_entries += u64::from(entry.table != KEYS);
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

/// Refuses faces whose rows are intact but whose vectors cannot be compared. A damaged row passes: it was damaged in the
/// store that was exported, and will be set aside.
#[derive(Default)]
struct Vectors {
    is_sealed: bool,
    keys: HashMap<u64, Key>,
    /// Key, dimensions and id, by incarnation.
    collections: HashMap<u64, (CollectionKey, usize, String)>,
}

impl Vectors {
    fn check(&mut self, entry: &ExportEntry) -> Result<(), StoreError> {
        if entry.table == KEYS {
            let (slot, key) = slot_key(entry).ok_or_else(|| bad("it has an entry that is no key".to_owned()))?;
            self.keys.insert(slot, key);
            return Ok(());
        }
        let (key, value) = (entry.key.as_slice(), entry.value.as_slice());
        let refuse = |name: String, why: String| Err(bad(format!("the face {name}: {why}")));
        match table_of(entry) {
            Ok(Table::Collections) if self.is_sealed => {
                if let Ok(record) = decode_record::<CollectionRecord>(Table::Collections, key, value)
                    && let Ok(Some(key)) = CollectionKey::of(&self.keys, &record)
                {
                    self.collections.insert(record.incarnation, (key, record.dimensions as usize, record.id));
                }
            }
            Ok(Table::FaceVectors) => {
                let of = parse_row_key(key).and_then(|(incarnation, _)| self.collections.get(&incarnation));
                let Some((collection_key, dimensions, id)) = of else { return Ok(()) };
                let read = collection_key.unseal_row::<FaceVector>(&self.keys, Table::FaceVectors, key, value);
                if let Ok((_, Unsealed::Whole(face))) = read
                    && let Err(why) = decode_vector(&face.vector, *dimensions)
                {
                    return refuse(format!("{id}/{}", face.id), why);
                }
            }
            Ok(Table::Faces) if !self.is_sealed => {
                if let Ok(face) = decode_record::<FaceRecord>(Table::Faces, key, value)
                    && let Err(why) = decode_vector(&face.vector, face.vector.len() / 4)
                {
                    return refuse(printable(key), why);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        proto::store::FaceFacts,
        store::{
            Blobs, MemoryStore, StoreBlobs,
            face_rows::for_tests::{store_collection, store_face},
        },
    };

    /// A store with a blob and a collection of two faces; returns it and the rows of the faces.
    fn filled(vector: [f32; 2]) -> (Arc<dyn Store>, Vec<Vec<u8>>) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        StoreBlobs::new(Arc::clone(&store)).put(&vec![3; 50_000]).unwrap();
        let mut batch = Batch::default();
        let identity =
            StoreRecord { format: migrate::newest_format(), store_id: "s".to_owned(), ..StoreRecord::default() };
        batch.put_record(Table::Meta, identity::STORE_KEY, &identity);
        store.commit(batch).unwrap();
        let record =
            CollectionRecord { id: "c".to_owned(), dimensions: 2, incarnation: 1, ..CollectionRecord::default() };
        let key = store_collection(&*store, record);
        for (number, id) in [(2, "f1"), (3, "f2")] {
            let facts = FaceFacts { id: id.to_owned(), ..FaceFacts::default() };
            store_face(&*store, &key, number, &facts, &vector);
        }
        (Arc::clone(&store), vec![key.row(2), key.row(3)])
    }

    fn exported() -> Vec<u8> {
        let mut bytes = Vec::new();
        export(&*filled([1.0, 0.0]).0, &mut bytes, |_| {}).unwrap();
        bytes
    }

    fn all(store: &dyn Store) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
        Table::ALL.iter().map(|t| store.scan(*t, &Range::default(), usize::MAX).unwrap()).collect()
    }

    #[test]
    fn an_import_is_what_was_exported() {
        let ((source, _), target) = (filled([1.0, 0.0]), MemoryStore::new());
        let mut bytes = Vec::new();
        let n = export(&*source, &mut bytes, |_| {}).unwrap();
        assert_eq!(verify_export(bytes.as_slice(), |_| {}).unwrap(), n);
        let imported = import(&target, bytes.as_slice(), &Erased::default(), |_| {}).unwrap();
        assert_eq!((imported.n_entries, imported.n_left_out), (n, 0));
        let without_identity = |store: &dyn Store| all(store).split_off(1);
        assert_eq!(without_identity(&target), without_identity(&*source));
        let identity: StoreRecord = target.get_record(Table::Meta, identity::STORE_KEY).unwrap().unwrap();
        assert_eq!(identity.store_id, "s");
        assert!(identity.reserved_up_to > 1 << 32, "numbers given since the export are not given again");
        assert_eq!(target.keys().all().unwrap().len(), 3, "no key that nothing needs");
        let again = import(&target, bytes.as_slice(), &Erased::default(), |_| {});
        assert!(again.is_err(), "only into an empty store");
        bytes.push(0);
        assert!(verify_export(bytes.as_slice(), |_| {}).is_err(), "something follows its end");
    }

    #[test]
    fn who_was_erased_after_the_export_is_not_imported() {
        let (source, rows) = filled([1.0, 0.0]);
        let mut bytes = Vec::new();
        export(&*source, &mut bytes, |_| {}).unwrap();
        let erased = |store_id: &str, entries: &[(u64, u64)]| Erased::of(store_id, entries.iter().copied());
        let target = MemoryStore::new();
        let imported = import(&target, bytes.as_slice(), &erased("s", &[(1, 2)]), |_| {}).unwrap();
        assert_eq!(imported.n_left_out, 1);
        for table in [Table::Faces, Table::FaceVectors] {
            assert_eq!(target.get(table, &rows[0]).unwrap(), None);
            assert!(target.get(table, &rows[1]).unwrap().is_some());
        }
        assert_eq!(target.scan(Table::FaceIds, &Range::default(), 9).unwrap().len(), 1);
        assert_eq!(target.keys().all().unwrap().len(), 2, "its key is not there either");
        assert!(target.get(Table::Erasures, &rows[0]).unwrap().is_some(), "it stays erased");
        let target = MemoryStore::new();
        let imported = import(&target, bytes.as_slice(), &erased("s", &[(1, 0)]), |_| {}).unwrap();
        assert_eq!(imported.n_left_out, 2);
        assert_eq!(target.scan(Table::Collections, &Range::default(), 9).unwrap(), []);
        let target = MemoryStore::new();
        assert!(import(&target, bytes.as_slice(), &erased("other", &[(1, 2)]), |_| {}).is_err());
        assert_eq!(all(&target).concat(), [], "nothing is written");
    }

    #[test]
    fn a_vector_that_cannot_be_compared_is_refused_by_name() {
        for vector in [[f32::NAN, 1.0], [0.5, 0.5]] {
            let mut bytes = Vec::new();
            export(&*filled(vector).0, &mut bytes, |_| {}).unwrap();
            let refused = verify_export(bytes.as_slice(), |_| {}).unwrap_err().to_string();
            assert!(refused.contains("c/f1"), "{refused}");
        }
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

//! A stored collection, and how it comes into memory.

use std::collections::{BTreeSet, HashMap, HashSet};

use parking_lot::{Mutex, MutexGuard};
use rayon::prelude::*;

use super::{
    CollectionId, Embedding, FaceId, SimilarityError, SimilaritySettings,
    collection::LoadedFaces,
    removal::{self, Rows},
    segment_files::{Counted, SegmentFiles},
};
use crate::{
    error::Kind,
    names::EmbeddingSpace,
    proto::store::{CollectionRecord, FaceFacts, FaceVector, SealedRecord, SegmentFace},
    store::{
        CollectionKey, Days, Range, SegmentFile, Store, StoreError, Table, Unsealed, decode_record, parse_row_key,
    },
    wiping::wipe_stack,
};

/// A collection in memory.
pub(super) struct Collection {
    pub(super) record: CollectionRecord,
    pub(super) space: EmbeddingSpace,
    /// The stored record; a new face requires that it is unchanged.
    pub(super) bytes: Vec<u8>,
    pub(super) key: CollectionKey,
    pub(super) faces: LoadedFaces,
    pub(super) files: SegmentFiles,
    pub(super) locks: FaceLocks,
}

/// The number of locks that a collection's faces share.
const N_FACE_LOCKS: usize = 64;

/// Locks a face from before a change is stored until memory agrees with the store.
pub(super) struct FaceLocks([Mutex<()>; N_FACE_LOCKS]);

impl FaceLocks {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    pub(super) fn lock(&self, face: &FaceId) -> MutexGuard<'_, ()> {
        let shard = crc32fast::hash(face.as_str().as_bytes()) as usize % N_FACE_LOCKS;
        self.0[shard].lock()
    }

    /// Waits for all changes that have begun.
    pub(super) fn wait_for_all(&self) {
        self.0.iter().for_each(|lock| drop(lock.lock()));
    }
}

/// Faces' facts with their numbers.
type FactsIter<'a> = Box<dyn Iterator<Item = Result<(u64, FaceFacts), StoreError>> + 'a>;

/// Adds the face's name to an error about damage.
pub(super) fn named(collection: &CollectionId, id: &str, error: StoreError) -> StoreError {
    match error {
        StoreError::Corrupt { what, affects } => {
            StoreError::Corrupt { what: format!("the face collections/{collection}/faces/{id}: {what}"), affects }
        }
        other => other,
    }
}

impl Collection {
    /// A collection without faces.
    pub(super) fn empty(record: CollectionRecord, space: EmbeddingSpace, bytes: Vec<u8>, key: CollectionKey) -> Self {
        let faces = LoadedFaces::new(record.dimensions as usize);
        Self { record, space, bytes, key, faces, files: SegmentFiles::default(), locks: FaceLocks::new() }
    }

    /// Returns a face's facts and the slot of its key; `None` when it is erased. What the store has lost is read from
    /// segment files.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when neither has them.
    pub(super) fn facts(&self, store: &dyn Store, number: u64) -> Result<Option<(u64, FaceFacts)>, StoreError> {
        let row = self.key.row(number);
        let unseal = |value: &[u8]| match self.unseal(store, Table::Faces, &row, value)? {
            (key_slot, Unsealed::Whole(facts)) => Ok(Some((key_slot, facts))),
            (_, Unsealed::Erased) => Ok(None),
        };
        let damage = match store.get(Table::Faces, &row).and_then(|value| value.as_deref().map(unseal).transpose()) {
            Ok(Some(facts)) => return Ok(facts),
            // A deletion adds this with the same commit that removes the facts.
            Ok(None) if store.get(Table::Erasures, &row)?.is_some() => return Ok(None),
            Ok(None) => StoreError::Corrupt {
                what: format!("the face {number} of collections/{} (it has no facts)", self.record.id),
                affects: "it cannot be read; delete it and enrol it again".to_owned(),
            },
            Err(error @ StoreError::Corrupt { .. }) => error,
            Err(error) => return Err(error),
        };
        match self.files.face(number) {
            Ok(Some(copied)) => unseal(&copied.facts).map_err(|_| damage),
            Ok(None) | Err(_) => Err(damage),
        }
    }

    /// Reads a row of facts or a vector.
    pub(super) fn unseal<M: prost::Message + Default>(
        &self,
        store: &dyn Store,
        table: Table,
        row: &[u8],
        value: &[u8],
    ) -> Result<(u64, Unsealed<M>), StoreError> {
        self.key.unseal_row(store.keys(), table, row, value)
    }

    /// Reads the vector of a face in a segment file.
    fn unseal_segment_row(&self, store: &dyn Store, face: &SegmentFace) -> SegmentRow {
        let row = self.key.row(face.number);
        match self.unseal::<FaceVector>(store, Table::FaceVectors, &row, &face.vector) {
            Ok((_, Unsealed::Erased)) => SegmentRow::Erased,
            Ok((key_slot, Unsealed::Whole(read))) => {
                match Embedding::from_bytes(&read.vector, self.record.dimensions as usize) {
                    Ok(embedding) => SegmentRow::Whole(key_slot, embedding),
                    Err(_) => SegmentRow::Unreadable,
                }
            }
            // Damaged, or another face has its slot now.
            Err(_) => SegmentRow::Unreadable,
        }
    }

    /// Returns the slot of a face's key from its row in the table of vectors, or from its segment file.
    pub(super) fn key_slot(&self, store: &dyn Store, number: u64) -> Option<u64> {
        let row = self.key.row(number);
        let slot_of =
            |value: &[u8]| decode_record::<SealedRecord>(Table::FaceVectors, &row, value).ok().map(|r| r.key_slot);
        let stored = store.get(Table::FaceVectors, &row).ok().flatten();
        let copied = || self.files.face(number).ok().flatten().and_then(|face| slot_of(&face.vector));
        stored.as_deref().and_then(slot_of).or_else(copied)
    }

    /// Returns the facts of all faces with their numbers, in order, after a number. Damaged ones are only logged.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn all_facts<'a>(
        &'a self,
        store: &'a dyn Store,
        after: Option<u64>,
    ) -> Result<FactsIter<'a>, StoreError> {
        if store.state().borrow().is_damaged(Table::Faces) {
            return self.all_known_facts(store, after);
        }
        let rows = Rows::after(store, Table::Faces, self.key.incarnation, after);
        let rows = rows.filter_map(move |entry| {
            let (row, value) = match entry {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let (_, number) = parse_row_key(&row)?;
            let read = match self.unseal(store, Table::Faces, &row, &value) {
                Ok((_, Unsealed::Whole(facts))) => Ok(Some(facts)),
                Ok((_, Unsealed::Erased)) => Ok(None),
                Err(_) => self.facts(store, number).map(|found| found.map(|(_, facts)| facts)),
            };
            self.readable(number, read)
        });
        Ok(Box::new(rows))
    }

    /// As [`Collection::all_facts`], also with faces whose facts only memory and segment files still know: a scan does not
    /// find rows that are lost.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn all_known_facts<'a>(
        &'a self,
        store: &'a dyn Store,
        after: Option<u64>,
    ) -> Result<FactsIter<'a>, StoreError> {
        let mut numbers: BTreeSet<u64> = self.faces.numbers_after(after).into_iter().collect();
        for entry in Rows::after(store, Table::Faces, self.key.incarnation, after) {
            numbers.extend(parse_row_key(&entry?.0).map(|(_, number)| number));
        }
        Ok(Box::new(numbers.into_iter().filter_map(move |number| {
            self.readable(number, self.facts(store, number).map(|found| found.map(|(_, facts)| facts)))
        })))
    }

    /// Leaves out erased faces, and damaged ones with a line in the log.
    fn readable(
        &self,
        number: u64,
        read: Result<Option<FaceFacts>, StoreError>,
    ) -> Option<Result<(u64, FaceFacts), StoreError>> {
        match read {
            Ok(facts) => Some(Ok((number, facts?))),
            Err(StoreError::Corrupt { what, affects }) => {
                tracing::error!(collection = %self.record.id, what, affects, "a damaged face is left out of a list");
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

/// Counts and slots that are collected while collections are loaded.
#[derive(Default)]
pub(super) struct Loading {
    pub(super) n_damaged: usize,
    /// The slots of keys that are needed.
    used: HashSet<u64>,
    n_vectors: u64,
    /// Ranges of rows that could not be read.
    n_gaps: usize,
    /// The rows of faces whose key was wiped.
    erased: Vec<Vec<u8>>,
    /// The rows that were counted without loading a face.
    set_aside: HashSet<Vec<u8>>,
}

/// The source from which faces are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In segment files, and in the rows of those that are in no file.
    SegmentFiles,
    Rows,
}

/// Blocks of a segment file that are unsealed at once, by all cores.
const PIECE: usize = 32;

/// A face of a segment file.
enum SegmentRow {
    /// Its slot and vector.
    Whole(u64, Embedding),
    Erased,
    /// It cannot be read: if it is still in the store, the row there says why.
    Unreadable,
}

impl Loading {
    /// Loads all collections, and removes those whose key was wiped.
    ///
    /// # Errors
    /// [`SimilarityError::Store`] naming the first damaged record of a collection.
    pub(super) fn all(
        store: &dyn Store,
        settings: &SimilaritySettings,
    ) -> Result<(Self, HashMap<CollectionId, Collection>), SimilarityError> {
        let (loading, collections) = Self::all_from(store, settings, Source::SegmentFiles)?;
        let n_expected = store.n_expected(Table::FaceVectors);
        if n_expected.is_none_or(|n_expected| loading.n_vectors <= n_expected) {
            return Ok((loading, collections));
        }
        // They must not bring back what the store no longer has.
        tracing::error!("segment files have faces that the store does not have: they are removed");
        if let Some(segments) = store.segments() {
            segments.remove_all_but(&HashSet::new());
        }
        Self::all_from(store, settings, Source::Rows)
    }

    fn all_from(
        store: &dyn Store,
        settings: &SimilaritySettings,
        from: Source,
    ) -> Result<(Self, HashMap<CollectionId, Collection>), SimilarityError> {
        let mut loading = Self::default();
        let mut collections = HashMap::new();
        for (key, bytes) in store.scan(Table::Collections, &Range::default(), usize::MAX)? {
            let record: CollectionRecord = decode_record(Table::Collections, &key, &bytes)?;
            let id = CollectionId::parse("id", &record.id)?;
            match loading.collection(store, settings, from, &id, record, bytes.clone())? {
                Some(collection) => drop(collections.insert(id, collection)),
                // Its key was wiped: the record must go, too.
                None => match removal::remove_collection(store, &key, &bytes) {
                    Err(error) if error.is_refusal() => {
                        tracing::error!(collection = %id, %error, "its deletion is finished at a later start");
                    }
                    removed => removed?,
                },
            }
        }
        Ok((loading, collections))
    }

    /// Loads a collection with its faces; `None` when its key was wiped.
    fn collection(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        from: Source,
        id: &CollectionId,
        record: CollectionRecord,
        bytes: Vec<u8>,
    ) -> Result<Option<Collection>, SimilarityError> {
        let space = EmbeddingSpace::parse("embedding_space", &record.embedding_space);
        let space = space.map_err(|error| StoreError::Corrupt {
            what: format!("{}: {error}", id.name()),
            affects: "the embedding space of its faces is unknown; import the last export".to_owned(),
        })?;
        let Some(key) = CollectionKey::of(store.keys(), &record)? else { return Ok(None) };
        self.used.insert(key.slot);
        let mut collection = Collection::empty(record, space, bytes, key);
        let files = match from {
            Source::SegmentFiles => self.segment_files(store, settings, id, &collection)?,
            Source::Rows => Vec::new(),
        };
        let covered = files.last().map(|counted| counted.file.last());
        let n_new = self.rows(store, settings, id, &collection, (covered, u64::MAX))?;
        collection.files = SegmentFiles::loaded(files, n_new);
        Ok(Some(collection))
    }

    /// Loads the faces after a number and up to another from the store, but those that are there already; returns how many
    /// rows there are.
    fn rows(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        id: &CollectionId,
        collection: &Collection,
        (after, last): (Option<u64>, u64),
    ) -> Result<usize, SimilarityError> {
        let mut n_rows = 0;
        let mut rows = Rows::after(store, Table::FaceVectors, collection.key.incarnation, after);
        for entry in rows.by_ref() {
            let (row, value) = entry?;
            let number = parse_row_key(&row).map(|(_, number)| number);
            if number.is_some_and(|number| number > last) {
                break;
            }
            n_rows += 1;
            let is_loaded = number.is_some_and(|number| collection.faces.has(number));
            if is_loaded || self.set_aside.contains(&row) {
                continue;
            }
            self.row(store, settings, id, collection, row, &value)?;
        }
        self.n_gaps += rows.n_gaps;
        Ok(n_rows)
    }

    /// Loads a face from its row in the store.
    fn row(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        id: &CollectionId,
        collection: &Collection,
        row: Vec<u8>,
        value: &[u8],
    ) -> Result<(), SimilarityError> {
        self.n_vectors += 1;
        let dimensions = collection.record.dimensions as usize;
        let read = collection.unseal::<FaceVector>(store, Table::FaceVectors, &row, value);
        let read = read.and_then(|(key_slot, read)| {
            self.used.insert(key_slot);
            match read {
                Unsealed::Erased => Ok(None),
                Unsealed::Whole(face) => match Embedding::from_bytes(&face.vector, dimensions) {
                    Ok(embedding) => Ok(Some(embedding)),
                    Err(why) => Err(named(
                        id,
                        &face.id,
                        StoreError::Corrupt {
                            what: why,
                            affects: "no search finds it; delete it and enrol it again".to_owned(),
                        },
                    )),
                },
            }
        });
        match (read, parse_row_key(&row)) {
            (Ok(Some(embedding)), Some((_, number))) => {
                collection.faces.insert(number, embedding.values(), settings);
            }
            (Ok(None), _) => {
                self.set_aside.insert(row.clone());
                self.erased.push(row);
            }
            (Err(error @ StoreError::Corrupt { .. }), _) => {
                let number = parse_row_key(&row).map(|(_, number)| number);
                let error = match number.and_then(|number| collection.facts(store, number).ok()?) {
                    Some((_, facts)) => named(id, &facts.id, error),
                    None => error,
                };
                tracing::error!(collection = %id, %error, "a damaged face is set aside: no search finds it");
                self.n_damaged += 1;
                self.set_aside.insert(row);
            }
            (Err(error), _) => return Err(error.into()),
            (Ok(_), None) => self.n_damaged += 1,
        }
        Ok(())
    }

    /// Loads the faces that are in segment files; returns the files.
    fn segment_files(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        id: &CollectionId,
        collection: &Collection,
    ) -> Result<Vec<Counted>, SimilarityError> {
        let Some(segments) = store.segments() else { return Ok(Vec::new()) };
        let files = match segments.of(collection.key.incarnation) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(collection = %id, %error, "its segment files cannot be read; the store has the same faces");
                return Ok(Vec::new());
            }
        };
        // The key of a face whose deletion was interrupted may still be there.
        let mut erasures = Rows::after(store, Table::Erasures, collection.key.incarnation, None);
        let mut erased = Vec::new();
        if !files.is_empty() {
            for entry in erasures.by_ref() {
                erased.extend(parse_row_key(&entry?.0).map(|(_, number)| number));
            }
        }
        if erasures.n_gaps > 0 || store.state().borrow().is_damaged(Table::Erasures) {
            return Ok(Vec::new());
        }
        files.into_iter().map(|file| self.segment_file(store, settings, id, collection, &erased, file)).collect()
    }

    /// Loads the faces of a segment file, and what damaged blocks had from the store. `erased` has the numbers of erased
    /// faces, in order.
    fn segment_file(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        id: &CollectionId,
        collection: &Collection,
        erased: &[u64],
        file: SegmentFile,
    ) -> Result<Counted, SimilarityError> {
        let reader = file.reader()?;
        let (mut n_erased, mut lost) = (0, Vec::new());
        let blocks: Vec<usize> = (0..file.n_blocks()).collect();
        let unseal = |face: SegmentFace| {
            let row = match erased.binary_search(&face.number) {
                Ok(_) => SegmentRow::Erased,
                Err(_) => collection.unseal_segment_row(store, &face),
            };
            (face.number, row)
        };
        for piece in blocks.chunks(PIECE) {
            let read: Vec<Result<Vec<_>, StoreError>> = piece
                .par_iter()
                .map(|idx| {
                    let rows = reader.block(*idx)?.into_iter().map(unseal).collect();
                    // Ciphers have worked on vectors there, and this thread goes on to other work.
                    wipe_stack();
                    Ok(rows)
                })
                .collect();
            let damaged = piece.iter().zip(&read).filter(|(_, rows)| rows.is_err());
            lost.extend(damaged.filter_map(|(idx, _)| reader.numbers_lost(*idx)));
            for error in read.iter().filter_map(|rows| rows.as_ref().err()) {
                tracing::warn!(collection = %id, %error, "a block of a segment file is damaged");
            }
            for (number, row) in read.into_iter().flatten().flatten() {
                match row {
                    SegmentRow::Whole(key_slot, embedding) => {
                        self.n_vectors += 1;
                        self.used.insert(key_slot);
                        collection.faces.insert(number, embedding.values(), settings);
                    }
                    SegmentRow::Erased => n_erased += 1,
                    SegmentRow::Unreadable => {
                        let row = collection.key.row(number);
                        match store.get(Table::FaceVectors, &row)? {
                            Some(value) => self.row(store, settings, id, collection, row, &value)?,
                            None => n_erased += 1,
                        }
                    }
                }
            }
        }
        drop(reader);
        for (first, last) in &lost {
            self.rows(store, settings, id, collection, (first.checked_sub(1), *last))?;
        }
        Ok(Counted { file, n_erased, is_damaged: !lost.is_empty() })
    }

    /// Ends the loading: removes what was erased, and wipes the keys that nothing needs. `deleted` are the incarnations of
    /// collections whose rows are still to be removed.
    ///
    /// While anything is damaged or lost, no key is wiped: the face that needs it may not be known.
    pub(super) fn finish<'a>(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
        collections: impl Iterator<Item = (&'a CollectionId, &'a Collection)>,
        deleted: impl Iterator<Item = u64>,
    ) -> Result<(), SimilarityError> {
        for incarnation in deleted {
            let mut rows = Rows::after(store, Table::FaceVectors, incarnation, None);
            for row in rows.by_ref() {
                row?;
                self.n_vectors += 1;
            }
            self.n_gaps += rows.n_gaps;
        }
        let n_lost = |n_found: u64| store.n_expected(Table::FaceVectors).map_or(0, |n| n.saturating_sub(n_found));
        if n_lost(self.n_vectors) > 0 {
            // Segment files leave out faces whose rows the store still has without a key.
            for (id, collection) in collections {
                self.rows(store, settings, id, collection, (None, u64::MAX))?;
            }
        }
        let n_lost = n_lost(self.n_vectors);
        if n_lost > 0 {
            tracing::error!(n_lost, "vectors of faces are lost; visage doctor names the faces that are known");
            self.n_damaged += n_lost as usize;
        }
        let is_damaged = {
            let (state, tables) = (store.state(), [Table::Faces, Table::FaceIds, Table::FaceVectors, Table::Erasures]);
            let is_damaged = tables.iter().any(|table| state.borrow().is_damaged(*table));
            is_damaged || self.n_damaged > 0 || self.n_gaps > 0
        };
        if is_damaged {
            tracing::warn!("faces are damaged, so keys that nothing needs are kept until the damage is mended");
            return Ok(());
        }
        self.used.extend(Days::slots(store)?);
        let cleaned = removal::remove_erased(store, &self.erased).and_then(|()| store.keys().sweep(&self.used));
        match cleaned {
            Err(error) if error.is_refusal() || error.kind() == Kind::Corrupt => {
                tracing::error!(%error, "keys that nothing needs are wiped at a later start");
                Ok(())
            }
            cleaned => Ok(cleaned?),
        }
    }
}

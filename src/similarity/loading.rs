//! A stored collection, and how it comes into memory.

use std::collections::HashSet;

use parking_lot::{Mutex, MutexGuard};

use super::{
    CollectionId, Embedding, FaceId, SimilarityError, SimilaritySettings,
    collection::LoadedFaces,
    removal::{self, Rows},
};
use crate::{
    error::Kind,
    names::EmbeddingSpace,
    proto::store::{CollectionRecord, FaceFacts, FaceVector},
    store::{CollectionKey, Days, Range, Store, StoreError, StoreExt, Table, Unsealed, parse_row_key},
};

/// A collection in memory.
pub(super) struct Collection {
    pub(super) record: CollectionRecord,
    pub(super) space: EmbeddingSpace,
    /// The stored record; a new face requires that it is unchanged.
    pub(super) bytes: Vec<u8>,
    pub(super) key: CollectionKey,
    pub(super) faces: LoadedFaces,
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
    /// Returns a face's id from its facts, if they can be read.
    fn id_of(&self, store: &dyn Store, row: &[u8]) -> Option<String> {
        let value = store.get(Table::Faces, row).ok()??;
        match self.unseal::<FaceFacts>(store, Table::Faces, row, &value) {
            Ok((_, Unsealed::Whole(facts))) => Some(facts.id),
            _ => None,
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

    /// Returns the facts of all faces with their numbers, in order, after a row key. Damaged ones are only logged.
    pub(super) fn all_facts(
        &self,
        store: &dyn Store,
        after: Option<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(u64, FaceFacts), StoreError>> {
        let range = Range { prefix: self.key.prefix(), after, descending: false };
        store.entries(Table::Faces, range).filter_map(move |entry| {
            let (row, value) = match entry {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            match self.unseal(store, Table::Faces, &row, &value) {
                Ok((_, Unsealed::Whole(facts))) => Some(Ok((parse_row_key(&row)?.1, facts))),
                Ok((_, Unsealed::Erased)) => None,
                Err(StoreError::Corrupt { what, affects }) => {
                    tracing::error!(collection = %self.record.id, what, affects, "a damaged face is left out of a list");
                    None
                }
                Err(error) => Some(Err(error)),
            }
        })
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
}

impl Loading {
    /// Loads a collection with its faces; `None` when its key was wiped.
    pub(super) fn collection(
        &mut self,
        store: &dyn Store,
        settings: &SimilaritySettings,
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
        let dimensions = record.dimensions as usize;
        let faces = LoadedFaces::new(dimensions);
        let collection = Collection { record, space, bytes, key, faces, locks: FaceLocks::new() };
        let mut rows = Rows::new(store, Table::FaceVectors, collection.key.incarnation);
        for entry in rows.by_ref() {
            let (row, value) = entry?;
            self.n_vectors += 1;
            let read = collection.unseal::<FaceVector>(store, Table::FaceVectors, &row, &value);
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
                (Ok(None), _) => self.erased.push(row),
                (Err(error @ StoreError::Corrupt { .. }), _) => {
                    let error = match collection.id_of(store, &row) {
                        Some(face) => named(id, &face, error),
                        None => error,
                    };
                    tracing::error!(collection = %id, %error, "a damaged face is set aside: no search finds it");
                    self.n_damaged += 1;
                }
                (Err(error), _) => return Err(error.into()),
                (Ok(_), None) => self.n_damaged += 1,
            }
        }
        self.n_gaps += rows.n_gaps;
        Ok(Some(collection))
    }

    /// Removes what was erased, and wipes the keys that nothing needs. `deleted` are the incarnations of collections
    /// whose rows are still to be removed.
    ///
    /// While anything is damaged or lost, no key is wiped: the face that needs it may not be known.
    pub(super) fn finish(
        &mut self,
        store: &dyn Store,
        deleted: impl Iterator<Item = u64>,
    ) -> Result<(), SimilarityError> {
        let mut n_found = self.n_vectors;
        for incarnation in deleted {
            let mut rows = Rows::new(store, Table::FaceVectors, incarnation);
            for row in rows.by_ref() {
                row?;
                n_found += 1;
            }
            self.n_gaps += rows.n_gaps;
        }
        let n_lost = store.n_expected(Table::FaceVectors).map_or(0, |n| n.saturating_sub(n_found));
        if n_lost > 0 {
            tracing::error!(n_lost, "vectors of faces are lost; visage doctor names the faces that are known");
            self.n_damaged += n_lost as usize;
        }
        let is_damaged = {
            let (state, tables) = (store.state(), [Table::Faces, Table::FaceIds, Table::Erasures]);
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

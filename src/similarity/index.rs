//! The collections of a store, which are written there first and then searched here.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    CollectionId, Embedding, FaceId, FaceName, Score, SimilarityError, SimilaritySettings,
    loading::{Collection, Loading, named},
    removal,
    segment_files::{Sources, When},
};
use crate::{
    names::EmbeddingSpace,
    proto::store::{CollectionRecord, FaceFacts, FaceIdRecord, FaceVector},
    store::{
        Batch, CollectionKey, FaceKey, LOST_NUMBERS, Range, Store, StoreError, StoreExt, Table, decode_record,
        encode_record,
    },
    threads::yield_to_calls,
};

/// The time for writing segment files when the program ends.
const LAST_FILES: Duration = Duration::from_millis(300);

/// A collection to create.
#[derive(Clone, Debug)]
pub(crate) struct NewCollection {
    /// Its id.
    pub id: CollectionId,
    /// The only embedding space that it accepts.
    pub space: EmbeddingSpace,
    /// The length of its vectors.
    pub dimensions: usize,
    /// Free text for people.
    pub display_name: String,
}

/// A face to enrol.
#[derive(Clone, Debug)]
pub(crate) struct NewFace {
    /// Chosen by the caller, or generated here.
    pub id: Option<FaceId>,
    /// The caller's key of the person.
    pub subject: String,
    /// Small facts for filtering and display.
    pub labels: BTreeMap<String, String>,
}

/// The target of a search.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// Faces near a vector.
    Vector(Embedding),
    /// Faces near an enrolled face, except itself.
    Face(FaceId),
}

/// A search.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// The target.
    pub target: Target,
    /// The maximum number of matches, 1 to the settings' limit.
    pub k: usize,
    /// Matches below this score are left out.
    pub min_score: Option<f32>,
    /// Compare with every face.
    pub exact: bool,
}

/// The result of a search.
#[derive(Clone, Debug)]
pub(crate) struct SearchResult {
    /// Best first.
    pub matches: Vec<(FaceFacts, Score)>,
    /// Whether every face was compared.
    pub exact: bool,
    /// The space of the scores.
    pub space: EmbeddingSpace,
}

struct Shared {
    store: Arc<dyn Store>,
    settings: SimilaritySettings,
    collections: RwLock<HashMap<CollectionId, Arc<Collection>>>,
    /// Held while a collection is created or deleted, so that neither sees the other half done.
    changing: Mutex<()>,
    /// Passes of the thread that removes rows, merges segments and builds graphs.
    passes: Passes,
    /// Passes of the thread that writes segment files, which must not wait for graphs.
    file_passes: Passes,
    /// Ends background work early.
    stopping: AtomicBool,
    /// Damaged faces met so far, at the opening or by a search.
    n_damaged: AtomicUsize,
    /// The last number that a collection or a face got.
    last_number: AtomicU64,
    /// Deleted collections whose rows are still to be removed.
    deleted: Mutex<Vec<Deleted>>,
}

/// A deleted collection.
struct Deleted {
    incarnation: u64,
    /// What was in memory when it was deleted; `None` if an earlier process did it.
    loaded: Option<Arc<Collection>>,
    /// The keys of its faces are still in their slots. At a start, they are wiped with all others that nothing needs.
    has_keys: bool,
}

/// Starts the passes of a background thread.
struct Passes {
    work: Mutex<Work>,
    wake: Condvar,
}

impl Passes {
    /// The first pass is requested at once.
    fn new() -> Self {
        Self { work: Mutex::new(Work { is_waiting: true, is_running: false }), wake: Condvar::new() }
    }

    /// Requests a pass.
    fn request(&self) {
        self.work.lock().is_waiting = true;
        self.wake.notify_all();
    }

    /// Ends a pass, and begins the next as soon as it is requested or the time `due` has come.
    fn next(&self, due: impl Fn() -> Option<Instant>) {
        let mut work = self.work.lock();
        work.is_running = false;
        while !work.is_waiting {
            match due() {
                None => self.wake.wait(&mut work),
                Some(due) if self.wake.wait_until(&mut work, due).timed_out() => break,
                Some(_) => {}
            }
        }
        // A change during the pass sets it again.
        *work = Work { is_waiting: false, is_running: true };
    }

    #[cfg(test)]
    fn are_over(&self) -> bool {
        let work = self.work.lock();
        !work.is_waiting && !work.is_running
    }
}

/// The state of a background thread.
struct Work {
    /// Set by every change that may need background work, cleared before the pass that looks for it.
    is_waiting: bool,
    /// A pass is running.
    is_running: bool,
}

/// The collections of a store. Its calls block.
pub(crate) struct SimilarityIndex {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// A face as its rows have it.
struct Stored {
    number: u64,
    /// The value of the row that leads to it; `None` when that is lost.
    id_value: Option<Vec<u8>>,
    /// The slot of its key; `None` when no row can be read.
    key_slot: Option<u64>,
    facts: Result<FaceFacts, StoreError>,
}

impl SimilarityIndex {
    /// Loads every collection; graphs are built in the background, and until then faces are scanned.
    ///
    /// # Errors
    /// [`SimilarityError::Store`] naming the first damaged record.
    pub(crate) fn open(store: Arc<dyn Store>, settings: SimilaritySettings) -> Result<Self, SimilarityError> {
        let started = Instant::now();
        let last_number = AtomicU64::new(removal::highest_number(&*store)?);
        let (mut loading, collections) = Loading::all(&*store, &settings)?;
        let live: HashSet<u64> = collections.values().map(|collection| collection.key.incarnation).collect();
        let deleted: Vec<Deleted> = removal::incarnations(&*store)?
            .into_iter()
            .filter(|incarnation| !live.contains(incarnation))
            .map(|incarnation| Deleted { incarnation, loaded: None, has_keys: false })
            .collect();
        loading.finish(&*store, &settings, collections.iter(), deleted.iter().map(|deleted| deleted.incarnation))?;
        if let Some(segments) = store.segments() {
            segments.remove_all_but(&live);
        }
        tracing::info!(
            collections = collections.len(),
            faces = collections.values().map(|collection| collection.faces.len()).sum::<usize>(),
            elapsed_ms = started.elapsed().as_millis(),
            "loaded the collections"
        );
        let collections = collections.into_iter().map(|(id, collection)| (id, Arc::new(collection))).collect();
        if loading.n_damaged > 0 {
            // Lost faces may have had higher numbers than those that are there.
            last_number.fetch_add(LOST_NUMBERS, Ordering::Relaxed);
        }
        let deleted = Mutex::new(deleted);
        let shared = Arc::new(Shared {
            store,
            settings,
            collections: RwLock::new(collections),
            changing: Mutex::default(),
            passes: Passes::new(),
            file_passes: Passes::new(),
            stopping: AtomicBool::new(false),
            n_damaged: AtomicUsize::new(loading.n_damaged),
            last_number,
            deleted,
        });
        let mut index = Self { shared, workers: Vec::new() };
        for (name, work) in [("similarity", Shared::maintain as fn(&Shared)), ("segment-files", Shared::write_files)] {
            let shared = Arc::clone(&index.shared);
            let worker = thread::Builder::new().name(name.to_owned()).spawn(move || work(&shared));
            index.workers.push(worker.map_err(|source| StoreError::Io { path: "a thread".into(), source })?);
        }
        Ok(index)
    }

    fn collection(&self, id: &CollectionId) -> Result<Arc<Collection>, SimilarityError> {
        let collections = self.shared.collections.read();
        collections.get(id).cloned().ok_or_else(|| SimilarityError::CollectionNotFound { name: id.name() })
    }

    /// Creates a collection; `extra` adds writes to the same commit.
    ///
    /// # Errors
    /// [`SimilarityError::AlreadyExists`].
    pub(crate) fn create_collection(
        &self,
        new: NewCollection,
        extra: impl FnOnce(&CollectionRecord) -> Batch,
    ) -> Result<CollectionRecord, SimilarityError> {
        let _lock = self.shared.changing.lock();
        let store = &*self.shared.store;
        let key = CollectionKey::new(self.shared.next_number(), store.keys().take()?);
        let record = CollectionRecord {
            id: new.id.to_string(),
            create_time: Some(SystemTime::now().into()),
            embedding_space: new.space.to_string(),
            dimensions: new.dimensions as u32,
            display_name: new.display_name,
            incarnation: key.incarnation,
            key_slot: key.slot,
        };
        let row = new.id.as_str().as_bytes();
        let mut batch = Batch::default();
        batch.require_absent(Table::Collections, row).put_record(Table::Collections, row, &record);
        batch.extend(extra(&record));
        if let Err(error) = store.commit(batch) {
            store.keys().discard(key.slot);
            return Err(match error {
                StoreError::Conflict { table: Table::Collections, .. } => {
                    SimilarityError::AlreadyExists { name: new.id.name() }
                }
                error => error.into(),
            });
        }
        let collection = Collection::empty(record.clone(), new.space, encode_record(&record), key);
        self.shared.collections.write().insert(new.id, Arc::new(collection));
        Ok(record)
    }

    /// Returns the embedding space of a collection.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`].
    pub(crate) fn space_of(&self, id: &CollectionId) -> Result<EmbeddingSpace, SimilarityError> {
        Ok(self.collection(id)?.space.clone())
    }

    /// Returns a collection and its number of faces.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`].
    pub(crate) fn get_collection(&self, id: &CollectionId) -> Result<(CollectionRecord, usize), SimilarityError> {
        let collection = self.collection(id)?;
        Ok((collection.record.clone(), collection.faces.len()))
    }

    /// Lists up to `limit` collections by id, after the id `after`, with their numbers of faces.
    ///
    /// # Errors
    /// Fails when the store fails.
    pub(crate) fn list_collections(
        &self,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(CollectionRecord, usize)>, SimilarityError> {
        let range = Range { after: after.map(<[u8]>::to_vec), ..Range::default() };
        let rows = self.shared.store.scan_records::<CollectionRecord>(Table::Collections, &range, limit)?;
        let with_faces = |record: CollectionRecord| {
            let id = CollectionId::parse("id", &record.id).ok();
            let n_faces = id.and_then(|id| self.collection(&id).ok()).map_or(0, |c| c.faces.len());
            (record, n_faces)
        };
        Ok(rows.into_iter().map(|(_, record)| with_faces(record)).collect())
    }

    /// Deletes a collection with its faces. Once it returns, its key is wiped, and with it nobody can read any of its
    /// faces. Their rows are removed in the background, also after a crash.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`]. When the key cannot be wiped, the collection is gone, and its key is
    /// wiped later.
    pub(crate) fn delete_collection(&self, id: &CollectionId) -> Result<(), SimilarityError> {
        let _lock = self.shared.changing.lock();
        let collection = match self.collection(id) {
            Ok(collection) => collection,
            Err(missing) => {
                // An earlier call may have deleted it, and failed to make that durable or to wipe its key.
                self.confirm_absent(&[(Table::Collections, id.as_str().as_bytes())])?;
                return Err(missing);
            }
        };
        let (key, incarnation) = (id.as_str().as_bytes(), collection.key.incarnation);
        self.shared.store.commit(removal::deletion(key, collection.bytes.clone(), incarnation))?;
        let wiped = self.shared.store.keys().wipe([collection.key.slot]);
        self.shared.collections.write().remove(id);
        collection.faces.wipe();
        self.shared.deleted.lock().push(Deleted { incarnation, loaded: Some(collection), has_keys: true });
        self.shared.passes.request();
        Ok(wiped?)
    }

    /// Returns the collections with their embedding spaces.
    #[must_use]
    pub(crate) fn spaces(&self) -> Vec<(CollectionId, EmbeddingSpace)> {
        let collections = self.shared.collections.read();
        collections.iter().map(|(id, collection)| (id.clone(), collection.space.clone())).collect()
    }

    /// Stores a face; `extra` adds writes to the same commit, and may seal them with the face's key. Once it returns,
    /// every search finds the face, after a crash too.
    ///
    /// # Errors
    /// [`SimilarityError::AlreadyExists`] for a taken id, [`SimilarityError::SpaceMismatch`].
    pub(crate) fn enroll(
        &self,
        id: &CollectionId,
        new: NewFace,
        embedding: &Embedding,
        space: &EmbeddingSpace,
        extra: impl FnOnce(&FaceFacts, &FaceKey) -> Batch,
    ) -> Result<FaceFacts, SimilarityError> {
        let collection = self.collection(id)?;
        if *space != collection.space {
            return Err(SimilarityError::SpaceMismatch {
                got: space.to_string(),
                expected: collection.record.embedding_space.clone(),
            });
        }
        self.shared.settings.check_labels(&new)?;
        let face = new.id.unwrap_or_else(FaceId::generate);
        let facts = FaceFacts {
            id: face.to_string(),
            create_time: Some(SystemTime::now().into()),
            subject: new.subject,
            labels: new.labels,
            embedding_space: collection.record.embedding_space.clone(),
        };
        let vector = FaceVector { vector: embedding.to_bytes(), id: facts.id.clone() };
        let store = &*self.shared.store;
        let _lock = collection.locks.lock(&face);
        let number = self.shared.next_number();
        let slot_key = store.keys().take()?;
        let key = collection.key.face_key(number, &slot_key);
        let (row, id_row) = (collection.key.row(number), collection.key.id_row(&facts.id));
        let mut batch = Batch::default();
        batch
            .require_equals(Table::Collections, id.as_str().as_bytes(), collection.bytes.clone())
            .require_absent(Table::FaceIds, &id_row)
            .put_record(Table::FaceIds, &id_row, &FaceIdRecord { number })
            .put(Table::Faces, &row, key.seal_row(Table::Faces, &facts))
            .put(Table::FaceVectors, &row, key.seal_row(Table::FaceVectors, &vector))
            .extend(extra(&facts, &key));
        if let Err(error) = store.commit(batch) {
            store.keys().discard(slot_key.slot);
            return Err(match error {
                StoreError::Conflict { table: Table::FaceIds, .. } => {
                    SimilarityError::AlreadyExists { name: FaceName { collection: id.clone(), face }.to_string() }
                }
                StoreError::Conflict { table: Table::Collections, .. } => {
                    SimilarityError::CollectionNotFound { name: id.name() }
                }
                error => error.into(),
            });
        }
        let is_full = collection.faces.insert(number, embedding.values(), &self.shared.settings);
        if is_full {
            self.shared.passes.request();
        }
        if collection.files.add() {
            self.shared.file_passes.request();
        }
        Ok(facts)
    }

    /// Finds the rows of a face by its id. `known` is its number, if the caller has it: the row that leads to it may be
    /// lost.
    fn stored(
        &self,
        id: &CollectionId,
        collection: &Collection,
        face: &FaceId,
        known: Option<u64>,
    ) -> Result<Stored, SimilarityError> {
        let store = &*self.shared.store;
        let id_row = collection.key.id_row(face.as_str());
        let id_value = match store.get(Table::FaceIds, &id_row) {
            // A damaged page: a deletion cannot change it either.
            Err(StoreError::Corrupt { .. }) => Some(Vec::new()),
            value => value?,
        };
        let may_be_lost = {
            let state = store.state();
            let state = state.borrow();
            [Table::FaceIds, Table::FaceVectors].iter().any(|table| state.is_damaged(*table))
        };
        let number = match id_value.as_deref().map(|value| decode_record(Table::FaceIds, &id_row, value)) {
            Some(Ok(FaceIdRecord { number })) => Some(number),
            None if known.is_none() && !may_be_lost => None,
            // No row leads to it, but others have the id.
            Some(Err(_)) | None => {
                known.map_or_else(|| self.number_by_facts(collection, face), |number| Ok(Some(number)))?
            }
        };
        let number = number.ok_or_else(|| not_found(id, face))?;
        match collection.facts(store, number) {
            Ok(None) => Err(not_found(id, face)),
            Ok(Some((key_slot, facts))) => Ok(Stored { number, id_value, key_slot: Some(key_slot), facts: Ok(facts) }),
            Err(error @ StoreError::Corrupt { .. }) => {
                let key_slot = collection.key_slot(store, number);
                Ok(Stored { number, id_value, key_slot, facts: Err(named(id, face.as_str(), error)) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Finds a face's number by reading the facts of all.
    fn number_by_facts(&self, collection: &Collection, face: &FaceId) -> Result<Option<u64>, StoreError> {
        for row in collection.all_known_facts(&*self.shared.store, None)? {
            let (number, facts) = row?;
            if facts.id == face.as_str() {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Returns an enrolled face.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`], [`SimilarityError::FaceNotFound`].
    pub(crate) fn get_face(&self, id: &CollectionId, face: &FaceId) -> Result<FaceFacts, SimilarityError> {
        let collection = self.collection(id)?;
        Ok(self.stored(id, &collection, face, None)?.facts?)
    }

    /// Lists up to `limit` faces with their numbers, in the order of their enrolment, after the number `after`. Damaged
    /// ones are only logged.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`].
    pub(crate) fn list_faces(
        &self,
        id: &CollectionId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, FaceFacts)>, SimilarityError> {
        let collection = self.collection(id)?;
        let rows = collection.all_facts(&*self.shared.store, after)?;
        Ok(rows.take(limit).collect::<Result<_, _>>()?)
    }

    /// Deletes a face. Once it returns, no search finds the face, and its key is wiped, so nobody can read what was
    /// stored of it.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`], [`SimilarityError::FaceNotFound`]. When the key cannot be wiped, the face
    /// is deleted, and its key is wiped later.
    pub(crate) fn delete_face(&self, id: &CollectionId, face: &FaceId) -> Result<(), SimilarityError> {
        let deleted = self.delete_numbered(id, face, None);
        if matches!(deleted, Err(SimilarityError::FaceNotFound { .. })) {
            // An earlier call may have deleted it, and failed to make that durable or to wipe its key.
            let collection = self.collection(id)?;
            let _lock = collection.locks.lock(face);
            let id_row = collection.key.id_row(face.as_str());
            self.confirm_absent(&[(Table::FaceIds, &id_row)])?;
        }
        deleted
    }

    /// Returns once an earlier deletion of these rows is durable and its keys are wiped. Without it, a repeated deletion
    /// could be confirmed that the store later undoes.
    ///
    /// # Errors
    /// When the disk takes no writes.
    fn confirm_absent(&self, rows: &[(Table, &[u8])]) -> Result<(), SimilarityError> {
        let mut batch = Batch::default();
        for (table, key) in rows {
            batch.require_absent(*table, key);
        }
        match self.shared.store.commit(batch) {
            // It is there again: it was enrolled anew.
            Ok(()) | Err(StoreError::Conflict { .. }) => Ok(self.shared.store.keys().wipe([])?),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the faces of a subject, one by one; returns their number. Reads every face of the collection.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`]; errors of the store. Earlier faces are deleted then.
    pub(crate) fn delete_subject(&self, id: &CollectionId, subject: &str) -> Result<usize, SimilarityError> {
        let collection = self.collection(id)?;
        let is_of_subject = |facts: &FaceFacts| facts.subject == subject;
        let mut n_deleted = 0;
        for row in collection.all_known_facts(&*self.shared.store, None)? {
            let (number, facts) = row?;
            if !is_of_subject(&facts) {
                continue;
            }
            // Between the scan and the deletion the id may have become another person's.
            match self.delete_numbered(id, &FaceId::parse("id", &facts.id)?, Some(number)) {
                Ok(()) => n_deleted += 1,
                Err(SimilarityError::FaceNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Also waits for deletions by other calls, so that none of them can be undone after this one.
        collection.locks.wait_for_all();
        self.confirm_absent(&[])?;
        Ok(n_deleted)
    }

    /// Deletes a face, only if it has this number, where one is given.
    fn delete_numbered(&self, id: &CollectionId, face: &FaceId, known: Option<u64>) -> Result<(), SimilarityError> {
        let collection = self.collection(id)?;
        let store = &*self.shared.store;
        let _lock = collection.locks.lock(face);
        let stored = self.stored(id, &collection, face, known)?;
        let number = stored.number;
        if known.is_some_and(|known| known != number) {
            return Err(not_found(id, face));
        }
        let (row, id_row) = (collection.key.row(number), collection.key.id_row(face.as_str()));
        let hidden = collection.faces.hide(number);
        let mut batch = Batch::default();
        batch
            .require_equals(Table::Collections, id.as_str().as_bytes(), collection.bytes.clone())
            .delete(Table::FaceIds, &id_row)
            .delete(Table::Faces, &row)
            .delete(Table::FaceVectors, &row)
            .put_record(Table::Erasures, &row, &removal::erased_now());
        match stored.id_value {
            // The row may have been read before it was durable: if it is undone, another face may get its slot.
            Some(value) => batch.require_equals(Table::FaceIds, &id_row, value),
            None => batch.require_absent(Table::FaceIds, &id_row),
        };
        match store.commit(batch) {
            Ok(()) => {
                let wiped = store.keys().wipe(stored.key_slot);
                collection.faces.forget(number);
                collection.files.erase(number);
                self.shared.passes.request();
                self.shared.file_passes.request();
                Ok(wiped?)
            }
            // The whole collection was deleted meanwhile.
            Err(StoreError::Conflict { .. }) => Err(not_found(id, face)),
            Err(error) => {
                if hidden {
                    collection.faces.show(number);
                }
                Err(error.into())
            }
        }
    }

    /// Checks a query as [`SimilarityIndex::search`] does, before a photo is decoded for it.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`] for a `k` or threshold out of range.
    pub(crate) fn check_query(&self, k: usize, min_score: Option<f32>) -> Result<(), SimilarityError> {
        let max_k = self.shared.settings.max_k;
        if !(1..=max_k).contains(&k) {
            return Err(SimilarityError::invalid("k", format!("must be 1 to {max_k}, not {k}")));
        }
        if min_score.is_some_and(|score| !(-1.0..=1.0).contains(&score)) {
            return Err(SimilarityError::invalid("min_score", "must be -1 to 1"));
        }
        Ok(())
    }

    /// Returns the faces nearest to a target.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`] for a `k` or threshold out of range, [`SimilarityError::CollectionNotFound`],
    /// [`SimilarityError::FaceNotFound`].
    ///
    /// [`SimilarityError::Void`] soon after `is_void` becomes true: nobody waits for the result any more.
    pub(crate) fn search(
        &self,
        id: &CollectionId,
        query: &Query,
        is_void: &dyn Fn() -> bool,
    ) -> Result<SearchResult, SimilarityError> {
        self.check_query(query.k, query.min_score)?;
        let settings = &self.shared.settings;
        let collection = self.collection(id)?;
        let store = &*self.shared.store;
        let (vector, itself) = match &query.target {
            Target::Vector(embedding) => (embedding.values().to_vec(), None),
            Target::Face(face) => {
                let number = self.stored(id, &collection, face, None)?.number;
                let vector = collection.faces.vector(number).ok_or_else(|| not_found(id, face))?;
                (vector, Some(number))
            }
        };
        let k = query.k + usize::from(itself.is_some());
        let found = collection.faces.search(&vector, (k, query.min_score), query.exact, settings, is_void);
        let (hits, exact) = found.ok_or(SimilarityError::Void)?;
        let mut matches = Vec::with_capacity(hits.len());
        for hit in hits.iter().filter(|hit| Some(hit.number) != itself).take(query.k) {
            match collection.facts(store, hit.number) {
                Ok(Some((_, facts))) => matches.push((facts, Score::from_cosine(hit.score))),
                // Deleted meanwhile.
                Ok(None) => {}
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(collection = %id, %error, "a damaged face is left out of a search");
                    self.shared.n_damaged.fetch_add(1, Ordering::Relaxed);
                    collection.faces.hide(hit.number);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(SearchResult { matches, exact, space: collection.space.clone() })
    }

    /// The number of damaged faces met so far. They are in no answer; all others are.
    #[must_use]
    pub(crate) fn n_damaged(&self) -> usize {
        self.shared.n_damaged.load(Ordering::Relaxed)
    }

    /// Waits until no background work is left.
    #[cfg(test)]
    pub(crate) fn settle(&self) {
        loop {
            if self.shared.passes.are_over() && self.shared.file_passes.are_over() {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for SimilarityIndex {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.passes.request();
        self.shared.file_passes.request();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs the background thread: sleeps until woken, then works until nothing is left.
    fn maintain(&self) {
        yield_to_calls("building graphs");
        loop {
            self.passes.next(|| None);
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            let collections: Vec<_> = {
                let collections = self.collections.read();
                collections.values().cloned().collect()
            };
            // One piece for each collection by turns, so that a large one does not keep the others waiting.
            let mut is_work_left = self.remove_deleted();
            for collection in &collections {
                is_work_left |= collection.faces.maintain(&self.settings, &self.stopping);
            }
            if is_work_left {
                self.passes.request();
            }
        }
    }

    /// Returns when the next segment file is to be written for faces that wait for others.
    fn files_due(&self) -> Option<Instant> {
        self.store.segments()?;
        self.collections.read().values().filter_map(|collection| collection.files.due()).min()
    }

    /// Runs the thread that writes segment files: it sleeps until woken, or until faces have waited long enough.
    fn write_files(&self) {
        yield_to_calls("writing segment files");
        loop {
            self.file_passes.next(|| self.files_due());
            if self.stopping.load(Ordering::Relaxed) {
                return self.write_last_files();
            }
            let collections: Vec<_> = self.collections.read().values().cloned().collect();
            let mut is_work_left = false;
            for collection in &collections {
                is_work_left |= self.maintain_files(collection, When::Due, &self.stopping);
            }
            if is_work_left {
                self.file_passes.request();
            }
        }
    }

    fn maintain_files(&self, collection: &Collection, when: When, stop: &AtomicBool) -> bool {
        let Some(segments) = self.store.segments() else { return false };
        let settled = || {
            // Numbers are given while a face is locked: whoever has one of these has ended once all locks were free.
            let last = self.last_number.load(Ordering::Acquire);
            collection.locks.wait_for_all();
            // Fails as long as refused writes may still be there.
            self.store.commit(Batch::default())?;
            Ok(last)
        };
        let (store, incarnation) = (&*self.store, collection.key.incarnation);
        let sources = Sources { store, incarnation, faces: &collection.faces, settled: &settled };
        let is_work_left = collection.files.maintain(segments, &sources, when, stop);
        let is_there = self.collections.read().values().any(|other| other.key.incarnation == incarnation);
        if !is_there {
            // It was deleted meanwhile.
            segments.remove_collection(incarnation);
        }
        is_work_left && is_there
    }

    /// Writes the segment files of what was enrolled last, as far as there is time.
    fn write_last_files(&self) {
        let until = Instant::now() + LAST_FILES;
        let collections: Vec<_> = self.collections.read().values().cloned().collect();
        for collection in collections {
            if Instant::now() > until {
                return;
            }
            self.maintain_files(&collection, When::Now, &AtomicBool::new(false));
        }
    }

    /// Removes some rows of a deleted collection; returns true if there may be more.
    fn remove_deleted(&self) -> bool {
        let Some(Deleted { incarnation, loaded, has_keys }) = self.deleted.lock().pop() else { return false };
        // The memory of a million faces takes a while to be given back.
        drop(loaded);
        match removal::remove_some(&*self.store, incarnation, has_keys) {
            Ok(true) => self.deleted.lock().push(Deleted { incarnation, loaded: None, has_keys }),
            Ok(false) => drop(self.store.segments().map(|segments| segments.remove_collection(incarnation))),
            Err(error) => {
                // The next start tries again.
                tracing::error!(%error, "rows of a deleted collection, which nobody can read, are not removed yet");
            }
        }
        !self.deleted.lock().is_empty()
    }

    fn next_number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::AcqRel) + 1
    }
}

fn not_found(collection: &CollectionId, face: &FaceId) -> SimilarityError {
    let name = FaceName { collection: collection.clone(), face: face.clone() }.to_string();
    SimilarityError::FaceNotFound { name }
}

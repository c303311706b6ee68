//! The collections of a store, which are written there first and then searched here.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::SystemTime,
};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::{
    CollectionId, Embedding, FaceId, FaceName, Score, SimilarityError, SimilaritySettings, collection::LoadedFaces,
    segment::Hit,
};
use crate::{
    names::EmbeddingSpace,
    proto::store::{CollectionRecord, FaceRecord},
    store::{Batch, Range, Store, StoreError, StoreExt, Table, decode_record, encode_record, join_key, printable},
    threads::yield_to_calls,
};

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
    pub matches: Vec<(FaceRecord, Score)>,
    /// Whether every face was compared.
    pub exact: bool,
    /// The space of the scores.
    pub space: EmbeddingSpace,
}

struct Collection {
    record: CollectionRecord,
    space: EmbeddingSpace,
    /// The stored record; a new face requires that it is unchanged.
    bytes: Vec<u8>,
    faces: LoadedFaces,
    locks: FaceLocks,
}

/// The number of locks that a collection's faces share.
const N_FACE_LOCKS: usize = 64;

/// Locks a face from before a change is stored until memory agrees with the store.
struct FaceLocks([Mutex<()>; N_FACE_LOCKS]);

impl FaceLocks {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::default()))
    }

    fn lock(&self, face: &FaceId) -> MutexGuard<'_, ()> {
        let shard = crc32fast::hash(face.as_str().as_bytes()) as usize % N_FACE_LOCKS;
        self.0[shard].lock()
    }
}

struct Shared {
    store: Arc<dyn Store>,
    settings: SimilaritySettings,
    collections: RwLock<HashMap<CollectionId, Arc<Collection>>>,
    /// Held while a collection is created or deleted, so that neither sees the other half done.
    changing: Mutex<()>,
    work: Mutex<Work>,
    wake: Condvar,
    /// Ends background work early.
    stopping: AtomicBool,
    /// Damaged faces met so far, at the opening or by a search.
    n_damaged: AtomicUsize,
}

/// The state of the background thread.
#[derive(Default)]
struct Work {
    /// Set by every change that may need background work, cleared before the pass that looks for it.
    is_waiting: bool,
    /// A pass is running.
    is_running: bool,
}

/// The collections of a store. Its calls block.
pub(crate) struct SimilarityIndex {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

fn face_key(collection: &CollectionId, face: &str) -> Vec<u8> {
    join_key(&[collection.as_str().as_bytes(), face.as_bytes()])
}

fn faces_of(collection: &str) -> Vec<u8> {
    join_key(&[collection.as_bytes(), b""])
}

/// Returns the vector of a stored face.
///
/// # Errors
/// [`StoreError::Corrupt`] naming the face, when it is no vector of length one.
fn vector_of(key: &[u8], face: &FaceRecord, dimensions: usize) -> Result<Embedding, StoreError> {
    Embedding::from_bytes(&face.vector, dimensions).map_err(|why| StoreError::Corrupt {
        what: format!("the face {} ({why})", printable(key)),
        affects: "no search finds it; delete it and enrol it again".to_owned(),
    })
}

impl SimilarityIndex {
    /// Loads every collection; graphs are built in the background, and until then faces are scanned.
    ///
    /// # Errors
    /// [`SimilarityError::Store`] naming the first damaged record.
    pub(crate) fn open(store: Arc<dyn Store>, settings: SimilaritySettings) -> Result<Self, SimilarityError> {
        let mut collections = HashMap::new();
        let mut n_damaged = 0;
        let rows = store.scan(Table::Collections, &Range::default(), usize::MAX)?;
        for (key, bytes) in rows {
            let record: CollectionRecord = decode_record(Table::Collections, &key, &bytes)?;
            let id = CollectionId::parse("id", &record.id)?;
            let space = EmbeddingSpace::parse("embedding_space", &record.embedding_space);
            let space = space.map_err(|error| StoreError::Corrupt {
                what: format!("{}: {error}", id.name()),
                affects: "the embedding space of its faces is unknown; import the last export".to_owned(),
            })?;
            let dimensions = record.dimensions as usize;
            let faces = LoadedFaces::new(dimensions);
            let range = Range { prefix: faces_of(id.as_str()), ..Range::default() };
            for row in store.records::<FaceRecord>(Table::Faces, range) {
                match row.and_then(|(key, face)| Ok((vector_of(&key, &face, dimensions)?, face))) {
                    Ok((embedding, face)) => drop(faces.insert(&face.id, embedding.values(), &settings)),
                    Err(error @ StoreError::Corrupt { .. }) => {
                        tracing::error!(collection = %id, %error, "a damaged face is set aside: no search finds it");
                        n_damaged += 1;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            collections.insert(id, Arc::new(Collection { record, space, bytes, faces, locks: FaceLocks::new() }));
        }
        let shared = Arc::new(Shared {
            store,
            settings,
            collections: RwLock::new(collections),
            changing: Mutex::default(),
            work: Mutex::new(Work { is_waiting: true, is_running: false }),
            wake: Condvar::new(),
            stopping: AtomicBool::new(false),
            n_damaged: AtomicUsize::new(n_damaged),
        });
        shared.finish_deletions()?;
        let of_worker = Arc::clone(&shared);
        let worker = thread::Builder::new().name("similarity".to_owned()).spawn(move || of_worker.maintain());
        let worker = worker.map_err(|source| StoreError::Io { path: "a thread".into(), source })?;
        Ok(Self { shared, worker: Some(worker) })
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
        let record = CollectionRecord {
            id: new.id.to_string(),
            create_time: Some(SystemTime::now().into()),
            embedding_space: new.space.to_string(),
            dimensions: new.dimensions as u32,
            display_name: new.display_name,
        };
        let key = new.id.as_str().as_bytes();
        if self.shared.store.get(Table::Collections, key)?.is_none() {
            // The deletion of an earlier collection may have failed midway.
            remove_faces(&*self.shared.store, new.id.as_str())?;
        }
        let mut batch = Batch::default();
        batch.require_absent(Table::Collections, key).put_record(Table::Collections, key, &record);
        batch.extend(extra(&record));
        match self.shared.store.commit(batch) {
            Ok(()) => {}
            Err(StoreError::Conflict { table: Table::Collections, .. }) => {
                return Err(SimilarityError::AlreadyExists { name: new.id.name() });
            }
            Err(error) => return Err(error.into()),
        }
        let (bytes, faces) = (encode_record(&record), LoadedFaces::new(new.dimensions));
        let collection =
            Arc::new(Collection { record: record.clone(), space: new.space, bytes, faces, locks: FaceLocks::new() });
        self.shared.collections.write().insert(new.id, collection);
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

    /// Deletes a collection with its faces. It is gone with the first commit; faces that a crash leaves are removed at
    /// the next start, before a collection with the same id can be created.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`].
    pub(crate) fn delete_collection(&self, id: &CollectionId) -> Result<(), SimilarityError> {
        let _lock = self.shared.changing.lock();
        let collection = self.collection(id)?;
        let key = id.as_str().as_bytes();
        let mut batch = Batch::default();
        batch.require_equals(Table::Collections, key, collection.bytes.clone()).delete(Table::Collections, key);
        self.shared.store.commit(batch)?;
        self.shared.collections.write().remove(id);
        Ok(remove_faces(&*self.shared.store, id.as_str())?)
    }

    /// Returns the collections with their embedding spaces.
    #[must_use]
    pub(crate) fn spaces(&self) -> Vec<(CollectionId, EmbeddingSpace)> {
        let collections = self.shared.collections.read();
        collections.iter().map(|(id, collection)| (id.clone(), collection.space.clone())).collect()
    }

    /// Stores a face; `extra` adds writes to the same commit. Once it returns, every search finds the face, after a
    /// crash too.
    ///
    /// # Errors
    /// [`SimilarityError::AlreadyExists`] for a taken id, [`SimilarityError::SpaceMismatch`].
    pub(crate) fn enroll(
        &self,
        id: &CollectionId,
        new: NewFace,
        embedding: &Embedding,
        space: &EmbeddingSpace,
        extra: impl FnOnce(&FaceRecord) -> Batch,
    ) -> Result<FaceRecord, SimilarityError> {
        let collection = self.collection(id)?;
        if *space != collection.space {
            return Err(SimilarityError::SpaceMismatch {
                got: space.to_string(),
                expected: collection.record.embedding_space.clone(),
            });
        }
        self.shared.settings.check_labels(&new)?;
        let face = new.id.unwrap_or_else(FaceId::generate);
        let record = FaceRecord {
            id: face.to_string(),
            create_time: Some(SystemTime::now().into()),
            subject: new.subject,
            labels: new.labels,
            embedding_space: collection.record.embedding_space.clone(),
            vector: embedding.to_bytes(),
        };
        let key = face_key(id, face.as_str());
        let _lock = collection.locks.lock(&face);
        let mut batch = Batch::default();
        batch
            .require_equals(Table::Collections, id.as_str().as_bytes(), collection.bytes.clone())
            .require_absent(Table::Faces, &key)
            .put_record(Table::Faces, &key, &record)
            .extend(extra(&record));
        match self.shared.store.commit(batch) {
            Ok(()) => {}
            Err(StoreError::Conflict { table: Table::Faces, .. }) => {
                let name = FaceName { collection: id.clone(), face }.to_string();
                return Err(SimilarityError::AlreadyExists { name });
            }
            Err(StoreError::Conflict { table: Table::Collections, .. }) => {
                return Err(SimilarityError::CollectionNotFound { name: id.name() });
            }
            Err(error) => return Err(error.into()),
        }
        let full = collection.faces.insert(face.as_str(), embedding.values(), &self.shared.settings);
        if full {
            self.shared.wake();
        }
        Ok(record)
    }

    /// Returns an enrolled face.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`], [`SimilarityError::FaceNotFound`].
    pub(crate) fn get_face(&self, id: &CollectionId, face: &FaceId) -> Result<FaceRecord, SimilarityError> {
        self.collection(id)?;
        let record = self.shared.store.get_record(Table::Faces, &face_key(id, face.as_str()))?;
        record.ok_or_else(|| not_found(id, face))
    }

    /// Lists up to `limit` faces by id, after the id `after`.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`].
    pub(crate) fn list_faces(
        &self,
        id: &CollectionId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<FaceRecord>, SimilarityError> {
        self.collection(id)?;
        let prefix = faces_of(id.as_str());
        let after = after.map(|after| [prefix.as_slice(), after].concat());
        let range = Range { prefix, after, descending: false };
        let rows = self.shared.store.readable_records(Table::Faces, range).take(limit);
        Ok(rows.map(|row| row.map(|(_, record)| record)).collect::<Result<_, _>>()?)
    }

    /// Deletes a face. Once it returns, no search finds the face.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`], [`SimilarityError::FaceNotFound`].
    pub(crate) fn delete_face(&self, id: &CollectionId, face: &FaceId) -> Result<(), SimilarityError> {
        self.delete_face_if(id, face, |_| true)
    }

    /// Deletes the faces of a subject, one by one; returns their number. Reads every face of the collection.
    ///
    /// # Errors
    /// [`SimilarityError::CollectionNotFound`]; errors of the store. Earlier faces are deleted then.
    pub(crate) fn delete_subject(&self, id: &CollectionId, subject: &str) -> Result<usize, SimilarityError> {
        self.collection(id)?;
        let range = Range { prefix: faces_of(id.as_str()), ..Range::default() };
        let is_of_subject = |face: &FaceRecord| face.subject == subject;
        let mut n_deleted = 0;
        for row in self.shared.store.readable_records::<FaceRecord>(Table::Faces, range) {
            let (_, face) = row?;
            if !is_of_subject(&face) {
                continue;
            }
            // Between the scan and the deletion the id may have become another person's.
            let is_still =
                |bytes: &[u8]| decode_record(Table::Faces, &[], bytes).is_ok_and(|face| is_of_subject(&face));
            match self.delete_face_if(id, &FaceId::parse("id", &face.id)?, is_still) {
                Ok(()) => n_deleted += 1,
                Err(SimilarityError::FaceNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(n_deleted)
    }

    /// Deletes a face if `condition` holds for its stored record.
    fn delete_face_if(
        &self,
        id: &CollectionId,
        face: &FaceId,
        condition: impl Fn(&[u8]) -> bool,
    ) -> Result<(), SimilarityError> {
        let collection = self.collection(id)?;
        let key = face_key(id, face.as_str());
        let _lock = collection.locks.lock(face);
        let stored = self.shared.store.get(Table::Faces, &key)?.filter(|bytes| condition(bytes));
        let bytes = stored.ok_or_else(|| not_found(id, face))?;
        let hidden = collection.faces.hide(face.as_str());
        let mut batch = Batch::default();
        batch
            .require_equals(Table::Collections, id.as_str().as_bytes(), collection.bytes.clone())
            .require_equals(Table::Faces, &key, bytes)
            .delete(Table::Faces, &key);
        match self.shared.store.commit(batch) {
            Ok(()) => {
                collection.faces.forget(face.as_str());
                self.shared.wake();
                Ok(())
            }
            // The whole collection was deleted meanwhile.
            Err(StoreError::Conflict { .. }) => Err(not_found(id, face)),
            Err(error) => {
                if hidden {
                    collection.faces.show(face.as_str());
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
        let (vector, itself) = match &query.target {
            Target::Vector(embedding) => (embedding.values().to_vec(), None),
            Target::Face(face) => {
                let vector = collection.faces.vector(face.as_str()).ok_or_else(|| not_found(id, face))?;
                (vector, Some(face.as_str()))
            }
        };
        let k = query.k + usize::from(itself.is_some());
        let found = collection.faces.search(&vector, (k, query.min_score), query.exact, settings, is_void);
        let (hits, exact) = found.ok_or(SimilarityError::Void)?;
        let mut matches = Vec::with_capacity(hits.len());
        for hit in hits.iter().filter(|hit| Some(&*hit.id) != itself).take(query.k) {
            match self.record_of(id, &collection, hit, &vector) {
                Ok(Some(record)) => matches.push((record, Score::from_cosine(hit.score))),
                // Deleted meanwhile.
                Ok(None) => {}
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(collection = %id, %error, "a damaged face is left out of a search");
                    self.shared.n_damaged.fetch_add(1, Ordering::Relaxed);
                    // It is hidden unless it was deleted and enrolled anew meanwhile.
                    let face = FaceId::parse("id", &hit.id)?;
                    let _lock = collection.locks.lock(&face);
                    if matches!(self.record_of(id, &collection, hit, &vector), Err(StoreError::Corrupt { .. })) {
                        collection.faces.hide(&hit.id);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(SearchResult { matches, exact, space: collection.space.clone() })
    }

    /// Returns the record that a hit's score belongs to; `None` when the face was deleted meanwhile, even if another has
    /// been enrolled under its id.
    fn record_of(
        &self,
        id: &CollectionId,
        collection: &Collection,
        hit: &Hit,
        vector: &[f32],
    ) -> Result<Option<FaceRecord>, StoreError> {
        let key = face_key(id, &hit.id);
        let Some(record) = self.shared.store.get_record::<FaceRecord>(Table::Faces, &key)? else { return Ok(None) };
        let stored = vector_of(&key, &record, collection.record.dimensions as usize)?;
        let is_of_record = Score::of(vector, stored.values()) == Score::from_cosine(hit.score);
        Ok(is_of_record.then_some(record))
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
            {
                let work = self.shared.work.lock();
                if !work.is_waiting && !work.is_running {
                    return;
                }
            }
            thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for SimilarityIndex {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.shared.wake();
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        self.work.lock().is_waiting = true;
        self.wake.notify_all();
    }

    /// Runs the background thread: sleeps until woken, then works until nothing is left.
    fn maintain(&self) {
        yield_to_calls("building graphs");
        loop {
            let mut work = self.work.lock();
            work.is_running = false;
            while !work.is_waiting {
                self.wake.wait(&mut work);
            }
            if self.stopping.load(Ordering::Relaxed) {
                return;
            }
            // A change during the pass sets it again.
            *work = Work { is_waiting: false, is_running: true };
            drop(work);
            let collections: Vec<_> = {
                let collections = self.collections.read();
                collections.values().cloned().collect()
            };
            // One piece for each collection by turns, so that a large one does not keep the others waiting.
            let mut is_work_left = false;
            for collection in &collections {
                is_work_left |= collection.faces.maintain(&self.settings, &self.stopping);
            }
            if is_work_left {
                self.work.lock().is_waiting = true;
            }
        }
    }

    /// Removes the faces of collections whose deletion was interrupted by a crash.
    fn finish_deletions(&self) -> Result<(), SimilarityError> {
        let mut after = None;
        loop {
            let range = Range { after, ..Range::default() };
            let Some((key, _)) = self.store.scan(Table::Faces, &range, 1)?.pop() else { return Ok(()) };
            let collection = String::from_utf8_lossy(key.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
            if self.store.get(Table::Collections, collection.as_bytes())?.is_none() {
                tracing::warn!(%collection, "finishing the deletion of a collection");
                match remove_faces(&*self.store, &collection) {
                    Err(error) if error.is_refusal() => {
                        tracing::error!(%collection, %error, "its faces are deleted at a later start");
                    }
                    removed => removed?,
                }
            }
            // Skips to the next collection: no id has a byte of 1 where this one ends.
            after = Some([collection.as_bytes(), &[1]].concat());
        }
    }
}

fn not_found(collection: &CollectionId, face: &FaceId) -> SimilarityError {
    let name = FaceName { collection: collection.clone(), face: face.clone() }.to_string();
    SimilarityError::FaceNotFound { name }
}

fn remove_faces(store: &dyn Store, collection: &str) -> Result<(), StoreError> {
    let range = Range { prefix: faces_of(collection), ..Range::default() };
    store.delete_where(Table::Faces, range, |_, _| Ok(true)).map(drop)
}

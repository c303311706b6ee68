//! Collections and enrolled faces, and the search in them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    AppError, Call, Caller, Idempotent, Models, Page, Paged, Photos, Wants, blocking,
    fair_semaphore::FairSemaphore,
    idempotency::Answer,
    models::Pin,
    photos::{Outcome, Reading, notes_to_proto, proto_duration},
};
use crate::{
    names::{EmbeddingSpace, ModelRef, SpaceRef},
    proto::{
        store::{CollectionRecord, FaceFacts},
        v1::{self, FaceSelection},
    },
    similarity::{
        CollectionId, Embedding, FaceId, FaceName, NewCollection, NewFace, Query, SimilarityError, SimilarityIndex,
        Target, identity_evidence,
    },
    store::Store,
    vision::PhotoNote,
};

/// The collections of a server.
#[derive(Clone)]
pub(crate) struct Faces {
    store: Arc<dyn Store>,
    index: Arc<SimilarityIndex>,
    models: Models,
    photos: Photos,
    /// Limits concurrent searches to the number of cores; more would only compete for them.
    searches: FairSemaphore<Caller>,
    /// Keeps the versions of the collections' spaces loaded.
    pins: Arc<Mutex<HashMap<CollectionId, Pin>>>,
}

/// The longest display name of a collection, in bytes.
const MAX_DISPLAY_NAME_BYTES: usize = 256;

/// The photo or vector that identifies a face.
#[derive(Clone, Debug)]
pub(crate) enum FaceSource {
    /// An encoded photo, and which of its faces to use.
    Image(Bytes, FaceSelection),
    /// A vector, and the space it claims to be from (empty: the collection's).
    Vector {
        /// The components, one per dimension.
        values: Vec<f32>,
        /// The space's name, or empty.
        space: String,
    },
}

/// A face to enrol.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    /// The collection.
    pub collection: CollectionId,
    /// The face's id; the server makes one if absent.
    pub face: Option<FaceId>,
    /// The photo or vector.
    pub source: FaceSource,
    /// The caller's key for the person.
    pub subject: String,
    /// Short key-value pairs from the caller.
    pub labels: BTreeMap<String, String>,
}

/// The target of a search.
#[derive(Clone, Debug)]
pub(crate) enum SearchTarget {
    /// Faces similar to this photo or vector.
    Probe(FaceSource),
    /// Faces similar to this enrolled one.
    Enrolled(FaceId),
}

impl Faces {
    /// Serves the collections of `index`.
    #[must_use]
    pub(super) fn new(store: Arc<dyn Store>, index: Arc<SimilarityIndex>, models: Models, photos: Photos) -> Self {
        let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pin = |(id, space): (CollectionId, EmbeddingSpace)| {
            let pin = models.hold_for_collection(&space.version, id.to_string());
            (id, pin)
        };
        let pins = Arc::new(Mutex::new(index.spaces().into_iter().map(pin).collect()));
        Self { store, index, models, photos, searches: FairSemaphore::new(n_cores), pins }
    }

    /// The number of damaged faces met so far.
    pub(super) fn n_damaged(&self) -> usize {
        self.index.n_damaged()
    }

    /// Creates a collection in the space that `space` resolves to now.
    ///
    /// # Errors
    /// When the id is taken, or there is no such version or layer.
    pub(crate) async fn create_collection(
        &self,
        _: &Call,
        id: CollectionId,
        space: SpaceRef,
        display_name: String,
        once: Idempotent,
    ) -> Result<v1::Collection, AppError> {
        if display_name.len() > MAX_DISPLAY_NAME_BYTES {
            let rule = format!("must be at most {MAX_DISPLAY_NAME_BYTES} bytes, not {}", display_name.len());
            return Err(AppError::field("display_name", rule));
        }
        let prepare = async {
            let space = self.models.resolve_space(&space).await?;
            // The version is loaded before the first search, and the collection keeps it loaded.
            let held = self.models.hold(Some(&ModelRef::Version(space.version.clone()))).await?;
            self.models.ensure_loaded(&space.version).await?;
            let dimensions = self.models.dimensions(&space).await?;
            Ok((NewCollection { id, space, dimensions, display_name }, held))
        };
        let (models, pins) = (self.models.clone(), Arc::clone(&self.pins));
        let index = Arc::clone(&self.index);
        let commit = move |(new, _held): (NewCollection, _), once: &Idempotent| {
            let (id, version) = (new.id.clone(), new.space.version.clone());
            // Locked around both, so that a concurrent deletion of this collection comes before or after.
            let mut pins = pins.lock();
            let record = index.create_collection(new, |record| once.remember(&collection_to_proto(record, 0)))?;
            // Until then, the call's own pin keeps the version loaded.
            pins.insert(id.clone(), models.hold_for_collection(&version, id.to_string()));
            Ok(collection_to_proto(&record, 0))
        };
        Ok(once.run(&self.store, prepare, commit).await?.into_inner())
    }

    /// Returns a collection with its number of faces.
    ///
    /// # Errors
    /// When there is no such collection.
    pub(crate) async fn get_collection(&self, _: &Call, id: &CollectionId) -> Result<v1::Collection, AppError> {
        // All of it is in memory, so this needs no blocking thread.
        let (record, n_faces) = self.index.get_collection(id)?;
        Ok(collection_to_proto(&record, n_faces))
    }

    /// Returns a page of the collections, by id.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) async fn list_collections(&self, _: &Call, page: Page) -> Result<Paged<v1::Collection>, AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || {
            let rows = index.list_collections(page.after.as_deref(), page.limit())?;
            let paged = page.finish(rows, |(record, _)| record.id.clone().into_bytes());
            Ok(paged.map(|(record, n_faces)| collection_to_proto(&record, n_faces)))
        })
        .await
    }

    /// Deletes a collection and its faces.
    ///
    /// # Errors
    /// When there is no such collection.
    pub(crate) async fn delete_collection(&self, _: &Call, id: CollectionId) -> Result<(), AppError> {
        let (index, pins) = (Arc::clone(&self.index), Arc::clone(&self.pins));
        blocking(move || {
            let pin = {
                let mut pins = pins.lock();
                let deleted = index.delete_collection(&id);
                // It may be gone although its key could not be wiped yet.
                let pin = if index.get_collection(&id).is_err() { pins.remove(&id) } else { None };
                deleted.map(|()| pin)?
            };
            drop(pin);
            Ok(())
        })
        .await
    }

    /// Stores a face. Once acknowledged, it survives any crash.
    ///
    /// # Errors
    /// When there is no such collection, the id is taken, or the photo or vector cannot be used.
    pub(crate) async fn enroll(&self, call: &Call, new: Enrolment, once: Idempotent) -> Result<v1::Face, AppError> {
        let Enrolment { collection, face, source, subject, labels } = new;
        let prepare = self.embed(call, &collection, source);
        let (index, id) = (Arc::clone(&self.index), collection.clone());
        let commit = move |(embedding, space, _), once: &Idempotent| {
            let new = NewFace { id: face, subject, labels };
            let facts = index.enroll(&id, new, &embedding, &space, |facts, key| {
                // The face itself is read again, because it is stored once and sealed under its own key.
                let name = face_to_proto(&id, facts).name;
                once.remember_of(key, &v1::Face { name, ..v1::Face::default() })
            })?;
            Ok(face_to_proto(&id, &facts))
        };
        match once.run::<_, _, v1::Face>(&self.store, prepare, commit).await? {
            Answer::New(face) => Ok(face),
            Answer::Stored(enrolled) => {
                // An answer can be read only as long as its face is the one that was enrolled.
                let FaceName { collection, face } = FaceName::parse("name", &enrolled.name)?;
                self.get(call, collection, face).await
            }
        }
    }

    /// Returns the vector that an enrolment of this photo would store.
    ///
    /// # Errors
    /// When there is no such collection, or the photo cannot be used.
    pub(crate) async fn vector_of(
        &self,
        call: &Call,
        collection: &CollectionId,
        photo: Bytes,
    ) -> Result<Vec<f32>, AppError> {
        let source = FaceSource::Image(photo, FaceSelection::Largest);
        let (embedding, ..) = self.embed(call, collection, source).await?;
        Ok(embedding.values().to_vec())
    }

    /// Returns an enrolled face.
    ///
    /// # Errors
    /// When there is no such collection or face.
    pub(crate) async fn get(&self, _: &Call, collection: CollectionId, face: FaceId) -> Result<v1::Face, AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(face_to_proto(&collection, &index.get_face(&collection, &face)?))).await
    }

    /// Returns a page of a collection's faces, in the order of their enrolment.
    ///
    /// # Errors
    /// When there is no such collection.
    pub(crate) async fn list(
        &self,
        _: &Call,
        collection: CollectionId,
        page: Page,
    ) -> Result<Paged<v1::Face>, AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || {
            let after = page.after.as_deref().and_then(|number| number.try_into().ok()).map(u64::from_be_bytes);
            let rows = index.list_faces(&collection, after, page.limit())?;
            let paged = page.finish(rows, |(number, _)| number.to_be_bytes().to_vec());
            Ok(paged.map(|(_, facts)| face_to_proto(&collection, &facts)))
        })
        .await
    }

    /// Deletes a face. Once acknowledged, it is never returned again, and nobody can read what was stored of it.
    ///
    /// # Errors
    /// When there is no such collection or face.
    pub(crate) async fn delete(&self, _: &Call, collection: CollectionId, face: FaceId) -> Result<(), AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(index.delete_face(&collection, &face)?)).await
    }

    /// Deletes every face of a subject, in one collection or in all; returns their number.
    ///
    /// # Errors
    /// When the subject is empty, or there is no such collection. Earlier faces are deleted then.
    pub(crate) async fn delete_subject(
        &self,
        _: &Call,
        collection: Option<CollectionId>,
        subject: String,
    ) -> Result<usize, AppError> {
        // Faces without a subject are of many people.
        if subject.is_empty() {
            return Err(AppError::field("subject", "must not be empty"));
        }
        let index = Arc::clone(&self.index);
        blocking(move || {
            let collections =
                collection.map_or_else(|| index.spaces().into_iter().map(|(id, _)| id).collect(), |id| vec![id]);
            let mut n_deleted = 0;
            for id in collections {
                n_deleted += index.delete_subject(&id, &subject)?;
            }
            Ok(n_deleted)
        })
        .await
    }

    /// Returns the faces of a collection nearest to the target.
    ///
    /// # Errors
    /// When there is no such collection or face, the photo or vector cannot be used, or `k` is out of range.
    pub(crate) async fn find_similar(
        &self,
        call: &Call,
        collection: CollectionId,
        target: SearchTarget,
        k: usize,
        min_score: Option<f32>,
        exact: bool,
    ) -> Result<v1::FindSimilarResponse, AppError> {
        self.index.check_query(k, min_score)?;
        let (target, notes) = match target {
            SearchTarget::Probe(source) => {
                let (embedding, _, notes) = self.embed(call, &collection, source).await?;
                (Target::Vector(embedding), notes)
            }
            SearchTarget::Enrolled(face) => (Target::Face(face), Vec::new()),
        };
        let index = Arc::clone(&self.index);
        let id = collection.clone();
        let permit = self.searches.acquire(call.caller.clone()).await;
        let of_call = call.clone();
        let caller_left = CancellationToken::new();
        // If the caller leaves, this future is dropped, and the search must not hold its core any longer.
        let _guard = caller_left.clone().drop_guard();
        let found = blocking(move || {
            let _permit = permit;
            let is_late = || of_call.time_left().is_some_and(|left| left.is_zero());
            if is_late() {
                return Err(AppError::DeadlineExceeded { during: "the wait for a search" });
            }
            let is_void = || caller_left.is_cancelled() || is_late();
            Ok(index.search(&id, &Query { target, k, min_score, exact }, &is_void)?)
        })
        .await?;
        let version = self.models.version(&found.space.version).await?;
        let evidence = |score| version.identity.as_ref().map(|calibration| identity_evidence(calibration, score));
        let matches = found
            .matches
            .iter()
            .map(|(record, score)| v1::SimilarFace {
                face: Some(face_to_proto(&collection, record)),
                score: score.value(),
                identity: evidence(score.value()),
            })
            .collect();
        Ok(v1::FindSimilarResponse {
            matches,
            exact: found.exact,
            embedding_space: found.space.to_string(),
            timing: Some(v1::Timing { total: proto_duration(call.arrived.elapsed()), ..v1::Timing::default() }),
            photo_notes: notes_to_proto(&notes),
        })
    }

    /// Computes the embedding of a photo or vector in the collection's space; also returns the notes on the photo's
    /// file.
    async fn embed(
        &self,
        call: &Call,
        collection: &CollectionId,
        source: FaceSource,
    ) -> Result<(Embedding, EmbeddingSpace, Vec<PhotoNote>), AppError> {
        let (record, _) = self.index.get_collection(collection)?;
        let own = self.index.space_of(collection)?;
        let (values, notes) = match source {
            FaceSource::Vector { values, space } => {
                if !space.is_empty() && space != record.embedding_space {
                    return Err(SimilarityError::SpaceMismatch { got: space, expected: record.embedding_space }.into());
                }
                (values, Vec::new())
            }
            FaceSource::Image(image, selection) => {
                let wants = single_face("face_selection", selection)?;
                let plan = self.photos.plan(call, Some(&ModelRef::Version(own.version.clone())), &wants).await?;
                let read = self.photos.read(&plan, image).await?;
                let notes = read.notes.clone();
                (embedding_of("image", read, &own)?, notes)
            }
        };
        Ok((Embedding::new("embedding", values, record.dimensions as usize)?, own, notes))
    }
}

/// Returns the options for reading a single face of a photo.
pub(super) fn single_face(field: &str, selection: FaceSelection) -> Result<Wants, AppError> {
    match selection {
        FaceSelection::All => Err(AppError::field(field, "must be LARGEST or SINGLE: only one face can be compared")),
        selection => Ok(Wants { selection, ..Wants::default() }),
    }
}

/// Returns the embedding of a photo's one face, or of the whole photo if the space's version reads whole photos.
///
/// # Errors
/// [`AppError::FaceUnusable`]; a field error for a photo that is too small.
pub(super) fn embedding_of(field: &'static str, read: Reading, space: &EmbeddingSpace) -> Result<Vec<f32>, AppError> {
    let mut output = match read.outcome {
        Outcome::Answered(output) => output,
        Outcome::TooSmall { width, height, min_side_px } => {
            let rule = format!("{width}x{height} pixels are too few to compare; the shorter side needs {min_side_px}");
            return Err(AppError::field(field, rule));
        }
        Outcome::Faces(found) => {
            let reasons = found.reasons();
            let Some(face) = found.faces.into_iter().next() else {
                return Err(AppError::FaceUnusable { field, reasons });
            };
            match face.output {
                Some(output) => output,
                None => return Err(AppError::FaceUnusable { field, reasons: face.reasons }),
            }
        }
    };
    output.embeddings.remove(&*space.layer).ok_or_else(|| AppError::UnsupportedByModel {
        version: read.facts.version.to_string(),
        what: format!("returned no embedding {}", space.layer),
    })
}

fn collection_to_proto(record: &CollectionRecord, n_faces: usize) -> v1::Collection {
    v1::Collection {
        name: format!("collections/{}", record.id),
        create_time: record.create_time,
        embedding_space: record.embedding_space.clone(),
        dimensions: record.dimensions as i32,
        n_faces: n_faces as i64,
        display_name: record.display_name.clone(),
    }
}

fn face_to_proto(collection: &CollectionId, record: &FaceFacts) -> v1::Face {
    v1::Face {
        name: format!("collections/{collection}/faces/{}", record.id),
        create_time: record.create_time,
        subject: record.subject.clone(),
        labels: record.labels.clone(),
        embedding_space: record.embedding_space.clone(),
    }
}

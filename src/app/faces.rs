//! Collections and enrolled faces, and the search among them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{
    AppError, Call, Idempotent, Models, Page, Paged, Photos, Wants, blocking,
    idempotency::Answer,
    models::Pin,
    photos::{Outcome, Reading, notes_to_proto, proto_duration},
};
use crate::{
    names::{EmbeddingSpace, ModelRef, SpaceRef},
    proto::{
        store::{CollectionRecord, FaceRecord},
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
    /// Searches at once, as many as there are cores: more would only fight over them.
    searches: Arc<Semaphore>,
    /// Keeps the versions loaded in whose spaces the collections compare.
    pins: Arc<Mutex<HashMap<CollectionId, Pin>>>,
}

/// The longest display name of a collection, in bytes.
const MAX_DISPLAY_NAME_BYTES: usize = 256;

/// What a face is found or enrolled by.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// An encoded photo, and which of its faces.
    Image(Bytes, FaceSelection),
    /// A vector, and the space it claims to be of (empty: the collection's).
    Vector {
        /// One number a dimension.
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
    /// Chosen by the caller, or made by the server.
    pub face: Option<FaceId>,
    /// The photo or vector.
    pub source: Source,
    /// The caller's key of the person.
    pub subject: String,
    /// Small facts to find it by.
    pub labels: BTreeMap<String, String>,
}

/// What to look for.
#[derive(Clone, Debug)]
pub(crate) enum Wanted {
    /// Faces like this photo or vector.
    Like(Source),
    /// Faces like this enrolled one.
    LikeFace(FaceId),
}

impl Faces {
    /// The collections of `index`.
    #[must_use]
    pub(super) fn new(store: Arc<dyn Store>, index: Arc<SimilarityIndex>, models: Models, photos: Photos) -> Self {
        let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let pin = |(id, space): (CollectionId, EmbeddingSpace)| {
            let pin = models.hold_for_collection(&space.version, id.to_string());
            (id, pin)
        };
        let pins = Arc::new(Mutex::new(index.spaces().into_iter().map(pin).collect()));
        Self { store, index, models, photos, searches: Arc::new(Semaphore::new(n_cores)), pins }
    }

    /// Makes a collection that compares in the space that `space` means now.
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
            // Loaded before anybody searches the collection, and from then on for its sake.
            let held = self.models.hold(Some(&ModelRef::Version(space.version.clone()))).await?;
            self.models.ensure_loaded(&space.version).await?;
            let dimensions = self.models.dimensions(&space).await?;
            Ok((NewCollection { id, space, dimensions, display_name }, held))
        };
        let (models, pins) = (self.models.clone(), Arc::clone(&self.pins));
        let index = Arc::clone(&self.index);
        let commit = move |(new, _held): (NewCollection, _), once: &Idempotent| {
            let (id, version) = (new.id.clone(), new.space.version.clone());
            // Locked over both, so that a deletion of the same collection comes before or after.
            let mut pins = pins.lock();
            let record = index.create_collection(new, |record| once.remember(&collection_to_proto(record, 0)))?;
            // The call's own pin keeps the version until then.
            pins.insert(id.clone(), models.hold_for_collection(&version, id.to_string()));
            Ok(collection_to_proto(&record, 0))
        };
        Ok(once.run(&self.store, prepare, commit).await?.into_inner())
    }

    /// A collection and how many faces it has.
    ///
    /// # Errors
    /// When there is no such collection.
    pub(crate) async fn get_collection(&self, _: &Call, id: &CollectionId) -> Result<v1::Collection, AppError> {
        // All of it is in memory.
        let (record, n_faces) = self.index.get_collection(id)?;
        Ok(collection_to_proto(&record, n_faces))
    }

    /// A page of the collections, by id.
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

    /// Forgets a collection with its faces.
    ///
    /// # Errors
    /// When there is no such collection.
    pub(crate) async fn delete_collection(&self, _: &Call, id: CollectionId) -> Result<(), AppError> {
        let (index, pins) = (Arc::clone(&self.index), Arc::clone(&self.pins));
        blocking(move || {
            let pin = {
                let mut pins = pins.lock();
                index.delete_collection(&id)?;
                pins.remove(&id)
            };
            drop(pin);
            Ok(())
        })
        .await
    }

    /// Stores a face; acknowledged means found after any crash.
    ///
    /// # Errors
    /// When there is no such collection, the id is taken, or the photo or vector cannot be used.
    pub(crate) async fn enroll(&self, call: &Call, new: Enrolment, once: Idempotent) -> Result<v1::Face, AppError> {
        let Enrolment { collection, face, source, subject, labels } = new;
        let prepare = self.embed(call, &collection, source);
        let (index, id) = (Arc::clone(&self.index), collection.clone());
        let commit = move |(embedding, space, _), once: &Idempotent| {
            let new = NewFace { id: face, subject, labels };
            let record = index.enroll(&id, new, &embedding, &space, |record| {
                // The name alone: what is deleted with the face shall not be kept by its request.
                let name = face_to_proto(&id, record).name;
                once.remember(&v1::Face { name, ..v1::Face::default() })
            })?;
            Ok(face_to_proto(&id, &record))
        };
        match once.run::<_, _, v1::Face>(&self.store, prepare, commit).await? {
            Answer::New(face) => Ok(face),
            Answer::Stored(enrolled) => {
                let FaceName { collection, face } = FaceName::parse("name", &enrolled.name)?;
                self.get(call, collection, face).await
            }
        }
    }

    /// An enrolled face.
    ///
    /// # Errors
    /// When there is no such collection or face.
    pub(crate) async fn get(&self, _: &Call, collection: CollectionId, face: FaceId) -> Result<v1::Face, AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(face_to_proto(&collection, &index.get_face(&collection, &face)?))).await
    }

    /// A page of a collection's faces, by id.
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
            let rows = index.list_faces(&collection, page.after.as_deref(), page.limit())?;
            let paged = page.finish(rows, |record| record.id.clone().into_bytes());
            Ok(paged.map(|record| face_to_proto(&collection, &record)))
        })
        .await
    }

    /// Forgets a face; acknowledged means never returned again.
    ///
    /// # Errors
    /// When there is no such collection or face.
    pub(crate) async fn delete(&self, _: &Call, collection: CollectionId, face: FaceId) -> Result<(), AppError> {
        let index = Arc::clone(&self.index);
        blocking(move || Ok(index.delete_face(&collection, &face)?)).await
    }

    /// The faces of a collection nearest to what is wanted.
    ///
    /// # Errors
    /// When there is no such collection or face, the photo or vector cannot be used, or `k` is out of range.
    pub(crate) async fn find_similar(
        &self,
        call: &Call,
        collection: CollectionId,
        wanted: Wanted,
        k: usize,
        min_score: Option<f32>,
        exact: bool,
    ) -> Result<v1::FindSimilarResponse, AppError> {
        self.index.check_query(k, min_score)?;
        let (target, notes) = match wanted {
            Wanted::Like(source) => {
                let (embedding, _, notes) = self.embed(call, &collection, source).await?;
                (Target::Vector(embedding), notes)
            }
            Wanted::LikeFace(face) => (Target::Face(face), Vec::new()),
        };
        let index = Arc::clone(&self.index);
        let id = collection.clone();
        let place = Arc::clone(&self.searches).acquire_owned().await.map_err(|_| AppError::Stopping)?;
        let of_call = call.clone();
        let found = blocking(move || {
            let _place = place;
            if of_call.time_left().is_some_and(|left| left.is_zero()) {
                return Err(AppError::DeadlineExceeded { during: "the wait for a search" });
            }
            Ok(index.search(&id, &Query { target, k, min_score, exact })?)
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

    /// A photo's or vector's embedding in the collection's space, and what was odd about the photo's file.
    async fn embed(
        &self,
        call: &Call,
        collection: &CollectionId,
        source: Source,
    ) -> Result<(Embedding, EmbeddingSpace, Vec<PhotoNote>), AppError> {
        let (record, _) = self.index.get_collection(collection)?;
        let own = self.index.space_of(collection)?;
        let (values, notes) = match source {
            Source::Vector { values, space } => {
                if !space.is_empty() && space != record.embedding_space {
                    return Err(SimilarityError::SpaceMismatch { got: space, expected: record.embedding_space }.into());
                }
                (values, Vec::new())
            }
            Source::Image(image, selection) => {
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

/// What is wanted of a photo of which one face counts.
pub(super) fn single_face(field: &str, selection: FaceSelection) -> Result<Wants, AppError> {
    match selection {
        FaceSelection::All => Err(AppError::field(field, "must be LARGEST or SINGLE: only one face can be compared")),
        selection => Ok(Wants { selection, ..Wants::default() }),
    }
}

/// The embedding of the one face of a photo, or of a whole photo where the space's version reads those.
///
/// # Errors
/// [`AppError::FaceUnusable`]; a field error for a photo that is too small.
pub(super) fn embedding_of(field: &'static str, read: Reading, space: &EmbeddingSpace) -> Result<Vec<f32>, AppError> {
    let mut output = match read.outcome {
        Outcome::Answered(output) => output,
        Outcome::TooSmall { width, height, min_side_px } => {
            let rule =
                format!("{width}x{height} pixels are too few to compare; the shorter side must have {min_side_px}");
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
        what: format!("gave no embedding {}", space.layer),
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

fn face_to_proto(collection: &CollectionId, record: &FaceRecord) -> v1::Face {
    v1::Face {
        name: format!("collections/{collection}/faces/{}", record.id),
        create_time: record.create_time,
        subject: record.subject.clone(),
        labels: record.labels.clone(),
        embedding_space: record.embedding_space.clone(),
    }
}

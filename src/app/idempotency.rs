//! Request ids (AIP-155). The same id and body get the same answer; the same id with another body is refused.
//!
//! The answer is stored in the commit that makes the change, so no crash can separate them.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use bytes::{BufMut, buf::UninitSlice};
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{AppError, Call, blocking};
use crate::{
    proto::store::{AnswerRecord, RequestRecord},
    store::{Batch, Days, FaceKey, Range, Store, StoreError, StoreExt, StoredAnswer, Table, decode_record, join_key},
};

/// How long an answer is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Deletes answers older than [`KEPT_FOR`] at `now`; returns how many.
///
/// # Errors
/// When the store fails.
pub(super) fn forget_old(store: &dyn Store, now: SystemTime) -> Result<usize, AppError> {
    let oldest = now.checked_sub(KEPT_FOR).unwrap_or(SystemTime::UNIX_EPOCH);
    let oldest_stored = prost_types::Timestamp::from(oldest);
    let is_old = |key: &[u8], value: &[u8]| {
        let record = match decode_record::<AnswerRecord>(Table::Requests, key, value) {
            Ok(record) => record,
            Err(error) => {
                // It answers no request, and its age is unknown. Kept, it would never be deleted.
                tracing::error!(%error, "a damaged answer of a request id is deleted");
                return Ok(true);
            }
        };
        let is_older = |t: prost_types::Timestamp| (t.seconds, t.nanos) < (oldest_stored.seconds, oldest_stored.nanos);
        Ok(record.create_time.is_none_or(is_older))
    };
    let n_forgotten = store.delete_where(Table::Requests, Range::default(), is_old)?;
    Days::forget_before(store, oldest)?;
    Ok(n_forgotten)
}

/// The longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A change, with its request id if it has one.
#[derive(Debug)]
pub(crate) struct Idempotent(Option<Key>);

struct Key {
    request_id: String,
    /// Method, caller and request id.
    name: Vec<u8>,
    /// The days whose answers are kept, under whose newest key the answer will be stored; set before the change is made.
    days: Option<Days>,
    /// Hashed lazily, on a blocking thread.
    body_digest: LazyLock<Vec<u8>, Box<dyn FnOnce() -> Vec<u8> + Send>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.request_id)
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq)]
pub(super) enum Answer<T, M = T> {
    /// The change was made.
    New(T),
    /// An equal request was answered before; this is what was stored of its answer.
    Stored(M),
}

impl<T> Answer<T> {
    /// Returns the answer, if all of it is stored.
    pub(super) fn into_inner(self) -> T {
        match self {
            Self::New(answer) | Self::Stored(answer) => answer,
        }
    }
}

impl Idempotent {
    /// A change without a request id.
    #[must_use]
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// A change by `request` of `method`. Without a `request_id`, it never equals another.
    ///
    /// # Errors
    /// [`AppError::FieldInvalid`] for an id that is too long.
    pub(crate) fn new<M>(call: &Call, method: &str, request_id: &str, request: &M) -> Result<Self, AppError>
    where
        M: Message + Clone + 'static,
    {
        if request_id.is_empty() {
            return Ok(Self::never());
        }
        if request_id.len() > MAX_REQUEST_ID_BYTES || request_id.contains('\0') {
            return Err(AppError::field(
                "request_id",
                format!("must be at most {MAX_REQUEST_ID_BYTES} bytes, without a zero byte"),
            ));
        }
        // This clone shares the photo's bytes.
        let request = request.clone();
        Ok(Self(Some(Key {
            request_id: request_id.to_owned(),
            name: join_key(&[method.as_bytes(), call.caller.id.as_bytes(), request_id.as_bytes()]),
            days: None,
            body_digest: LazyLock::new(Box::new(move || digest(&request))),
        })))
    }

    /// Returns the stored answer of an earlier, equal request. Otherwise runs `prepare`, then `commit` on a blocking
    /// thread. `commit` must add [`Idempotent::remember`] to its own batch.
    ///
    /// If an equal request commits first, its answer is returned. If the caller leaves, `prepare` is dropped, but not
    /// `commit`.
    ///
    /// # Errors
    /// Those of `prepare` and `commit`, and [`AppError::RequestIdReused`] when the body differs.
    pub(super) async fn run<P, T, M>(
        mut self,
        store: &Arc<dyn Store>,
        prepare: impl Future<Output = Result<P, AppError>>,
        commit: impl FnOnce(P, &Self) -> Result<T, AppError> + Send + 'static,
    ) -> Result<Answer<T, M>, AppError>
    where
        P: Send + 'static,
        T: Send + 'static,
        M: Message + Default + 'static,
    {
        if self.0.is_some() {
            let store = Arc::clone(store);
            let asked = blocking(move || Ok((self.stored_answer(&*store)?, self))).await?;
            match asked {
                (Some(answer), _) => return Ok(Answer::Stored(answer)),
                (None, once) => self = once,
            }
        }
        let prepared = prepare.await?;
        let store = Arc::clone(store);
        blocking(move || {
            if let Some(key) = &mut self.0 {
                key.days = Some(Days::begin(&*store, SystemTime::now())?);
            }
            match commit(prepared, &self) {
                Ok(answer) => Ok(Answer::New(answer)),
                // Whatever the error, an equal request may have committed first.
                Err(error) => self.stored_answer(&*store)?.map(Answer::Stored).ok_or(error),
            }
        })
        .await
    }

    fn stored_answer<M: Message + Default>(&self, store: &dyn Store) -> Result<Option<M>, AppError> {
        let Some(key) = &self.0 else { return Ok(None) };
        for day in Days::read(store)?.all {
            let row = day.row(&key.name);
            let Some(stored) = store.get(Table::Requests, &row)? else { continue };
            let answer = match day.unseal(store, &row, &stored)? {
                StoredAnswer::Erased => return Err(AppError::FaceErased { request_id: key.request_id.clone() }),
                StoredAnswer::Kept(answer) => answer,
            };
            if answer.body_digest != *key.body_digest {
                return Err(AppError::RequestIdReused { request_id: key.request_id.clone() });
            }
            if !store.is_durable(Table::Requests, &row, stored)? {
                return Ok(None);
            }
            return M::decode(answer.response.as_slice()).map(Some).map_err(|e| {
                AppError::Store(StoreError::Corrupt {
                    what: format!("the stored answer of request id {:?}", key.request_id),
                    affects: format!("the request cannot be answered again ({e}); choose a new request id"),
                })
            });
        }
        Ok(None)
    }

    /// Returns the writes that store `answer`, for the change's own commit.
    #[must_use]
    pub(super) fn remember(&self, answer: &impl Message) -> Batch {
        self.remember_sealed(answer, None)
    }

    /// As [`Idempotent::remember`], for an answer that names a face: it can be read no longer than the face.
    #[must_use]
    pub(super) fn remember_of(&self, face: &FaceKey, answer: &impl Message) -> Batch {
        self.remember_sealed(answer, Some(face))
    }

    fn remember_sealed(&self, answer: &impl Message, face: Option<&FaceKey>) -> Batch {
        let mut batch = Batch::default();
        if let Some(key) = &self.0
            && let Some(days) = &key.days
            && let Some(day) = days.all.first()
        {
            let record = RequestRecord {
                body_digest: key.body_digest.clone(),
                response: answer.encode_to_vec(),
                create_time: Some(SystemTime::now().into()),
            };
            let row = day.row(&key.name);
            // If a day begins meanwhile, an equal request may be answered under its key.
            days.require_same(&mut batch);
            for day in &days.all {
                batch.require_absent(Table::Requests, &day.row(&key.name));
            }
            batch.put_record(Table::Requests, &row, &day.seal(&row, &record, face));
        }
        batch
    }
}

/// Hashes an encoded message in pieces while encoding it, so a photo is never copied whole.
fn digest(message: &impl Message) -> Vec<u8> {
    let mut sink = HashSink { hasher: Sha256::new(), piece: [0; 4096] };
    // It fails only when the sink is full, and this one never is.
    let _ = message.encode(&mut sink);
    sink.hasher.finalize().to_vec()
}

/// A sink that hashes what is written to it.
struct HashSink {
    hasher: Sha256,
    /// The buffer for the next piece; always initialised.
    piece: [u8; 4096],
}

// SAFETY: `chunk_mut` returns this value's own initialised buffer; `advance_mut` stays within it or panics.
unsafe impl BufMut for HashSink {
    fn remaining_mut(&self) -> usize {
        usize::MAX
    }

    unsafe fn advance_mut(&mut self, n_bytes: usize) {
        self.hasher.update(&self.piece[..n_bytes]);
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::new(&mut self.piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::v1::{DeleteFaceRequest, EnrollFaceRequest, Face, enroll_face_request::Source},
        store::MemoryStore,
    };

    fn store() -> Arc<dyn Store> {
        Arc::new(MemoryStore::new())
    }

    fn asked(caller: &str, body: &str) -> Idempotent {
        let mut call = Call::local();
        call.caller.id = caller.to_owned();
        Idempotent::new(&call, "Enroll", "id-1", &DeleteFaceRequest { name: body.to_owned() }).unwrap()
    }

    fn named(name: &str) -> Face {
        Face { name: name.to_owned(), ..Face::default() }
    }

    /// Enrols a face by storing this name.
    async fn enroll(store: &Arc<dyn Store>, asked: Idempotent, name: &'static str) -> Result<Answer<Face>, AppError> {
        let kept = Arc::clone(store);
        asked
            .run(store, async { Ok(named(name)) }, move |face, once| {
                kept.commit(once.remember(&face))?;
                Ok(face)
            })
            .await
    }

    #[tokio::test]
    async fn the_same_request_is_carried_out_once() {
        let store = store();
        assert_eq!(enroll(&store, asked("a", "x"), "first").await.unwrap(), Answer::New(named("first")));
        for _ in 0..2 {
            assert_eq!(enroll(&store, asked("a", "x"), "again").await.unwrap(), Answer::Stored(named("first")));
        }
        let reused = enroll(&store, asked("a", "y"), "other body").await;
        assert!(matches!(reused, Err(AppError::RequestIdReused { .. })));
        assert_eq!(enroll(&store, asked("b", "y"), "b's").await.unwrap(), Answer::New(named("b's")));
        assert_eq!(enroll(&store, Idempotent::never(), "no id").await.unwrap(), Answer::New(named("no id")));
    }

    #[tokio::test]
    async fn an_answer_is_forgotten_after_a_day() {
        let store = store();
        enroll(&store, asked("a", "x"), "first").await.unwrap();
        let now = SystemTime::now();
        assert_eq!(forget_old(&*store, now).unwrap(), 0);
        assert_eq!(enroll(&store, asked("a", "x"), "again").await.unwrap(), Answer::Stored(named("first")));
        assert_eq!(forget_old(&*store, now + KEPT_FOR + Duration::from_secs(60)).unwrap(), 1);
        assert_eq!(enroll(&store, asked("a", "x"), "again").await.unwrap(), Answer::New(named("again")));
    }

    /// Regression: one damaged answer kept all others for ever.
    #[tokio::test]
    async fn a_damaged_answer_is_deleted_and_keeps_no_other() {
        let store = store();
        enroll(&store, asked("a", "x"), "first").await.unwrap();
        let damaged = crate::store::Write::Put(Table::Requests, b"A damaged one".to_vec(), b"damaged".to_vec());
        store.commit(Batch { writes: vec![damaged], ..Batch::default() }).unwrap();
        assert_eq!(forget_old(&*store, SystemTime::now() + KEPT_FOR + Duration::from_secs(60)).unwrap(), 2);
    }

    #[tokio::test]
    async fn the_loser_of_a_race_gets_the_winners_answer_whatever_it_meets() {
        for is_refused in [false, true] {
            let store = store();
            let (kept, winning) = (Arc::clone(&store), Arc::clone(&store));
            // The winner commits between the loser's check for an answer and its commit.
            let prepare = async move {
                enroll(&winning, asked("a", "x"), "winner").await?;
                Ok(named("loser"))
            };
            let lost = asked("a", "x").run(&store, prepare, move |face, once| {
                if is_refused {
                    return Err(AppError::field("face_id", "is taken"));
                }
                kept.commit(once.remember(&face))?;
                Ok(face)
            });
            assert_eq!(lost.await.unwrap().into_inner(), named("winner"));
        }
    }

    #[test]
    fn a_body_is_hashed_as_it_always_was() {
        let photo = bytes::Bytes::from((0..100_000_u32).map(|i| i as u8).collect::<Vec<_>>());
        let request = EnrollFaceRequest {
            parent: "collections/policies".repeat(20),
            source: Some(Source::Image(photo)),
            labels: (0..9).map(|i| (format!("k{i}"), "v".repeat(i * 50))).collect(),
            ..EnrollFaceRequest::default()
        };
        // Servers have stored the digests of answered requests, so the hash must not change.
        assert_eq!(digest(&request), Sha256::digest(request.encode_to_vec()).to_vec());
        let known = "fbc601aefa01f8692f1ee4ca767d28f0ee54083d0bbee08bcee1f2bb3b75e3b7";
        assert_eq!(
            digest(&DeleteFaceRequest { name: "x".to_owned() })
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>(),
            known
        );
    }
}

//! Request ids (AIP-155): the same id and body answer the same, the same id with another body is refused.
//!
//! The answer is stored in the very commit that makes the change, so that a crash between the two is impossible.

use std::time::{Duration, SystemTime};

use prost::Message;
use sha2::{Digest as _, Sha256};

use super::AppError;
use crate::{
    proto::store::RequestRecord,
    store::{Batch, Condition, Range, Store, StoreError, StoreExt, Table, decode_record, encode_record, join_key},
};

/// How long an answered request id is remembered.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 3600);

/// Forgets the answers that were given more than [`KEPT_FOR`] before `now`; says how many these were.
///
/// # Errors
/// When the store fails.
pub(super) fn forget_old(store: &dyn Store, now: SystemTime) -> Result<usize, AppError> {
    let oldest = prost_types::Timestamp::from(now.checked_sub(KEPT_FOR).unwrap_or(SystemTime::UNIX_EPOCH));
    let mut n_forgotten = 0;
    for page in store.pages(Table::Requests, Range::default()) {
        let mut batch = Batch::default();
        for (key, value) in page? {
            let record = decode_record::<RequestRecord>(Table::Requests, &key, &value)?;
            if record.create_time.is_none_or(|t| (t.seconds, t.nanos) < (oldest.seconds, oldest.nanos)) {
                batch.delete(Table::Requests, &key);
            }
        }
        if !batch.writes.is_empty() {
            n_forgotten += batch.writes.len();
            store.commit(batch)?;
        }
    }
    Ok(n_forgotten)
}

/// The longest request id in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// A request that changes something, with its caller's key if it has one.
#[derive(Clone, Debug)]
pub struct Idempotent {
    key: Option<Key>,
}

#[derive(Clone, Debug)]
struct Key {
    request_id: String,
    table_key: Vec<u8>,
    body_digest: Vec<u8>,
}

impl Idempotent {
    /// A change that nobody asks for twice.
    #[must_use]
    pub fn never() -> Self {
        Self { key: None }
    }

    /// A change that `request` asks for through `method`; without a `request_id` it is never the same as another.
    ///
    /// # Errors
    /// [`AppError::FieldInvalid`] for an id that is too long.
    pub fn new(caller: &str, method: &str, request_id: &str, request: &impl Message) -> Result<Self, AppError> {
        if request_id.is_empty() {
            return Ok(Self { key: None });
        }
        if request_id.len() > MAX_REQUEST_ID_BYTES || request_id.contains('\0') {
            return Err(AppError::field(
                "request_id",
                format!("must be at most {MAX_REQUEST_ID_BYTES} bytes, without a zero byte"),
            ));
        }
        Ok(Self {
            key: Some(Key {
                request_id: request_id.to_owned(),
                table_key: join_key(&[method.as_bytes(), caller.as_bytes(), request_id.as_bytes()]),
                body_digest: Sha256::digest(request.encode_to_vec()).to_vec(),
            }),
        })
    }

    /// The answer given earlier, if this request was carried out before.
    ///
    /// # Errors
    /// [`AppError::RequestIdReused`] when the body differs.
    pub fn earlier_answer<M: Message + Default>(&self, store: &dyn Store) -> Result<Option<M>, AppError> {
        let Some(key) = &self.key else { return Ok(None) };
        let Some(record) = store.get_record::<RequestRecord>(Table::Requests, &key.table_key)? else {
            return Ok(None);
        };
        if record.body_digest != key.body_digest {
            return Err(AppError::RequestIdReused { request_id: key.request_id.clone() });
        }
        // What a read sees may still wait for its flush; an empty commit ends after that.
        store.commit(Batch::default())?;
        M::decode(record.response.as_slice()).map(Some).map_err(|e| {
            AppError::Store(StoreError::Corrupt {
                what: format!("the stored answer of request id {:?}", key.request_id),
                affects: format!("the request cannot be answered again ({e}); choose a new request id"),
            })
        })
    }

    /// The writes that remember `answer`, for the change's own commit.
    #[must_use]
    pub fn remember(&self, answer: &impl Message) -> Batch {
        let Some(key) = &self.key else { return Batch::default() };
        let record = RequestRecord {
            body_digest: key.body_digest.clone(),
            response: answer.encode_to_vec(),
            create_time: Some(SystemTime::now().into()),
        };
        Batch {
            conditions: vec![Condition::Absent(Table::Requests, key.table_key.clone())],
            writes: vec![crate::store::Write::Put(Table::Requests, key.table_key.clone(), encode_record(&record))],
        }
    }

    /// Answers as before, or carries out `change`, which adds [`Idempotent::remember`] to its own commit.
    ///
    /// When another call with the same id wins the race, its answer is given.
    ///
    /// # Errors
    /// Those of `change`, and [`AppError::RequestIdReused`].
    pub fn once<M: Message + Default>(
        &self,
        store: &dyn Store,
        change: impl FnOnce() -> Result<M, AppError>,
    ) -> Result<M, AppError> {
        if let Some(answer) = self.earlier_answer(store)? {
            return Ok(answer);
        }
        match change() {
            // Whatever it met, a twin of this very request may have been there first.
            Err(error) if self.key.is_some() => self.earlier_answer(store)?.ok_or(error),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        proto::v1::{DeleteFaceRequest, Face},
        store::MemoryStore,
    };

    fn body(name: &str) -> DeleteFaceRequest {
        DeleteFaceRequest { name: name.to_owned() }
    }

    #[test]
    fn the_same_request_is_carried_out_once() {
        let store = MemoryStore::new();
        let mut carried_out = 0;
        for _ in 0..3 {
            let once = Idempotent::new("a", "Enroll", "id-1", &body("x")).unwrap();
            let answer: Face = once
                .once(&store, || {
                    carried_out += 1;
                    let face = Face { name: format!("face-{carried_out}"), ..Face::default() };
                    store.commit(once.remember(&face))?;
                    Ok(face)
                })
                .unwrap();
            assert_eq!(answer.name, "face-1");
        }
        assert_eq!(carried_out, 1);
        let reused = Idempotent::new("a", "Enroll", "id-1", &body("y")).unwrap();
        assert!(matches!(reused.earlier_answer::<Face>(&store), Err(AppError::RequestIdReused { .. })));
        let other_caller = Idempotent::new("b", "Enroll", "id-1", &body("y")).unwrap();
        assert!(other_caller.earlier_answer::<Face>(&store).unwrap().is_none());
    }

    #[test]
    fn an_answer_is_forgotten_after_a_day() {
        let store = MemoryStore::new();
        let once = Idempotent::new("a", "Enroll", "id-1", &body("x")).unwrap();
        store.commit(once.remember(&Face::default())).unwrap();
        let now = SystemTime::now();
        assert_eq!(forget_old(&store, now).unwrap(), 0);
        assert!(once.earlier_answer::<Face>(&store).unwrap().is_some());
        assert_eq!(forget_old(&store, now + KEPT_FOR + Duration::from_secs(60)).unwrap(), 1);
        assert!(once.earlier_answer::<Face>(&store).unwrap().is_none());
    }

    #[test]
    fn a_twin_that_meets_the_change_itself_gets_its_answer() {
        let store = MemoryStore::new();
        let once = Idempotent::new("a", "Enroll", "id-1", &body("x")).unwrap();
        let answer: Face = once
            .once(&store, || {
                let winner = Face { name: "winner".to_owned(), ..Face::default() };
                store.commit(once.remember(&winner))?;
                Err(AppError::field("face_id", "is taken"))
            })
            .unwrap();
        assert_eq!(answer.name, "winner");
    }

    #[test]
    fn the_loser_of_a_race_gets_the_winners_answer() {
        let store = MemoryStore::new();
        let once = Idempotent::new("a", "Enroll", "id-1", &body("x")).unwrap();
        let answer: Face = once
            .once(&store, || {
                let winner = Face { name: "winner".to_owned(), ..Face::default() };
                store.commit(once.remember(&winner))?;
                store.commit(once.remember(&Face::default()))?;
                Ok(Face::default())
            })
            .unwrap();
        assert_eq!(answer.name, "winner");
    }
}

//! Stores the answers of request ids sealed, under keys that are wiped a day later.
//!
//! The table key is an HMAC of the request id, so the table names nobody. The answer of an enrolment is sealed under the
//! key of its face and cannot be read once the face is erased; any other under the key of the day.

use std::time::{Duration, SystemTime};

use prost::Message;

use super::{
    Batch, FaceKey, SlotKey, SlotKeys as _, Store, StoreError, Table, decode_record, encode_record, face_rows::row_key,
    identity::DAYS_KEY,
};
use crate::proto::store::{AnswerRecord, DayKey, DaysRecord, FacePlace, RequestRecord};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The bytes of a request id's HMAC in the table key.
const ID_BYTES: usize = 16;

/// The key of a day's answers.
#[derive(Clone, Debug)]
pub(crate) struct Day {
    number: u64,
    key: SlotKey,
}

/// The days whose answers are kept.
#[derive(Clone, Debug)]
pub(crate) struct Days {
    /// The newest first.
    pub all: Vec<Day>,
    /// The stored record.
    bytes: Option<Vec<u8>>,
}

impl Days {
    /// Reads the keys of the days. Answers of a day whose key is damaged cannot be given again.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn read(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self::read_with_record(store)?.0)
    }

    fn read_with_record(store: &dyn Store) -> Result<(Self, DaysRecord), StoreError> {
        let (bytes, record) = stored_days(store)?;
        let mut all = Vec::new();
        for DayKey { day, key_slot: slot } in record.days.iter().rev().copied() {
            match store.keys().get(slot) {
                Err(error @ StoreError::Corrupt { .. }) => {
                    tracing::error!(%error, "the answers of a day cannot be read");
                }
                key => all.extend(key?.map(|key| Day::new(day, SlotKey { slot, key }))),
            }
        }
        Ok((Self { all, bytes }, record))
    }

    /// Makes the key of the day of `now` if it is missing; returns the keys of all days, never none.
    ///
    /// # Errors
    /// When the store fails, or refuses writes and has no key of an earlier day.
    pub(crate) fn begin(store: &dyn Store, now: SystemTime) -> Result<Self, StoreError> {
        let today = Day::number(now);
        loop {
            let (mut days, mut record) = Self::read_with_record(store)?;
            // A clock that was set back for a moment needs no new key.
            if days.all.first().is_some_and(|day| (today..=today + 1).contains(&day.number)) {
                return Ok(days);
            }
            let or_earlier = |days: Self, error| if days.all.is_empty() { Err(error) } else { Ok(days) };
            let made = match store.keys().take() {
                Ok(made) => made,
                Err(error) => return or_earlier(days, error),
            };
            // Days of a clock that was far ahead would be kept for ever.
            record.days.retain(|day| day.day <= today + 1);
            record.days.push(DayKey { day: today, key_slot: made.slot });
            let mut batch = Batch::default();
            match &days.bytes {
                Some(bytes) => batch.require_equals(Table::Meta, DAYS_KEY, bytes.clone()),
                None => batch.require_absent(Table::Meta, DAYS_KEY),
            };
            batch.put_record(Table::Meta, DAYS_KEY, &record);
            match store.commit(batch) {
                Ok(()) => {
                    days.all.insert(0, Day::new(today, made));
                    return Ok(Self { bytes: Some(encode_record(&record)), ..days });
                }
                Err(error) => {
                    store.keys().discard(made.slot);
                    // Another call has begun the day.
                    if !matches!(error, StoreError::Conflict { .. }) {
                        return or_earlier(days, error);
                    }
                }
            }
        }
    }

    /// Wipes the keys of the days before that of `oldest`.
    ///
    /// # Errors
    /// When the store fails or refuses writes.
    pub(crate) fn forget_before(store: &dyn Store, oldest: SystemTime) -> Result<(), StoreError> {
        let (bytes, mut record) = stored_days(store)?;
        let Some(bytes) = bytes else { return Ok(()) };
        let (old, kept): (Vec<_>, Vec<_>) = record.days.into_iter().partition(|day| day.day < Day::number(oldest));
        if old.is_empty() {
            return Ok(());
        }
        record = DaysRecord { days: kept };
        let mut batch = Batch::default();
        batch.require_equals(Table::Meta, DAYS_KEY, bytes).put_record(Table::Meta, DAYS_KEY, &record);
        match store.commit(batch) {
            // A new day has begun meanwhile: the next call forgets.
            Err(StoreError::Conflict { .. }) => Ok(()),
            done => done.and_then(|()| store.keys().wipe(old.iter().map(|day| day.key_slot))),
        }
    }

    /// Returns the slots of the days' keys.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn slots(store: &dyn Store) -> Result<Vec<u64>, StoreError> {
        Ok(stored_days(store)?.1.days.iter().map(|day| day.key_slot).collect())
    }

    /// Requires that no day has begun or was forgotten since they were read.
    pub(crate) fn require_same(&self, batch: &mut Batch) {
        if let Some(bytes) = &self.bytes {
            batch.require_equals(Table::Meta, DAYS_KEY, bytes.clone());
        }
    }
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StoredAnswer {
    /// It can be given again.
    Kept(RequestRecord),
    /// It was the enrolment of a face that has been erased since.
    Erased,
}

impl Day {
    /// The day of this number and key.
    #[must_use]
    pub(crate) fn new(number: u64, key: SlotKey) -> Self {
        Self { number, key }
    }

    /// Days from 1970-01-01 to a time, in UTC.
    #[must_use]
    pub(crate) fn number(time: SystemTime) -> u64 {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / DAY.as_secs()
    }

    /// The key in [`Table::Requests`] of a request by its full name.
    #[must_use]
    pub(crate) fn row(&self, name: &[u8]) -> Vec<u8> {
        self.key.key.mac("request id", name)[..ID_BYTES].to_vec()
    }

    /// Returns the value of an answer's row: sealed under the key of the enrolled face, or else of the day.
    #[must_use]
    pub(crate) fn seal(&self, row: &[u8], answer: &RequestRecord, face: Option<&FaceKey>) -> AnswerRecord {
        let plain = zeroize::Zeroizing::new(answer.encode_to_vec());
        let sealed = match face {
            Some(face) => face.seal(Table::Requests, row, &plain),
            None => self.key.key.seal(row, &plain),
        };
        AnswerRecord { create_time: answer.create_time, face: face.map(|face| face.place), sealed }
    }

    /// Reads an answer's row.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is damaged.
    pub(crate) fn unseal(&self, store: &dyn Store, row: &[u8], value: &[u8]) -> Result<StoredAnswer, StoreError> {
        let AnswerRecord { face, sealed, .. } = decode_record(Table::Requests, row, value)?;
        let plain = match face {
            None => self.key.key.unseal(row, &sealed),
            Some(place) => {
                // A slot of an erased face may be damaged, or not be there in an imported store.
                let key = FaceKey::at(store.keys(), place);
                let plain = key
                    .as_ref()
                    .ok()
                    .and_then(Option::as_ref)
                    .and_then(|key| key.unseal(Table::Requests, row, &sealed));
                if plain.is_none() && is_erased(store, place)? {
                    return Ok(StoredAnswer::Erased);
                }
                key?;
                plain
            }
        };
        let answer = plain.and_then(|plain| RequestRecord::decode(plain.as_slice()).ok());
        answer.map(StoredAnswer::Kept).ok_or_else(|| StoreError::Corrupt {
            what: "the stored answer of a request id".to_owned(),
            affects: "the request cannot be answered again; choose a new request id".to_owned(),
        })
    }
}

/// Returns true if there is no such face any more. Its slots may have the keys of others by now.
fn is_erased(store: &dyn Store, place: FacePlace) -> Result<bool, StoreError> {
    let is_in = |table, number| -> Result<bool, StoreError> {
        Ok(store.get(table, &row_key(place.incarnation, number))?.is_some())
    };
    Ok(is_in(Table::Erasures, 0)? || is_in(Table::Erasures, place.number)? || !is_in(Table::Faces, place.number)?)
}

fn stored_days(store: &dyn Store) -> Result<(Option<Vec<u8>>, DaysRecord), StoreError> {
    let bytes = store.get(Table::Meta, DAYS_KEY)?;
    let record = bytes.as_ref().map(|bytes| decode_record(Table::Meta, DAYS_KEY, bytes)).transpose()?;
    Ok((bytes, record.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    #[test]
    fn a_day_has_one_key_which_ends_when_it_is_forgotten() {
        let store = MemoryStore::new();
        let now = SystemTime::now();
        let begin = |now| Days::begin(&store, now).unwrap().all.swap_remove(0);
        let n_days = || Days::read(&store).unwrap().all.len();
        let today = begin(now);
        assert_eq!(begin(now).row(b"r"), today.row(b"r"));
        let tomorrow = begin(now + DAY);
        assert_ne!(tomorrow.row(b"r"), today.row(b"r"));
        assert_eq!(begin(now).row(b"r"), tomorrow.row(b"r"), "a clock that was set back");
        assert_eq!(n_days(), 2);
        Days::forget_before(&store, now).unwrap();
        assert_eq!(n_days(), 2);
        Days::forget_before(&store, now + DAY).unwrap();
        assert_eq!(n_days(), 1);
        assert!(store.keys().get(today.key.slot).unwrap().is_none(), "its key is gone");
    }
}

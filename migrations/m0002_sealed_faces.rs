//! Format 2: what names or shows a person is sealed.
//!
//! A collection gets an incarnation and a key, a face a number and a key. The face's row is divided: its facts and its
//! vector are sealed in rows of their own, and a third row leads from an HMAC of its id to its number. The answers of
//! request ids are sealed under the key of the enrolled face, or of the day of the migration.

use std::{collections::HashMap, time::SystemTime};

use prost::Message;

use super::{Migration, Rewrite};
use crate::{
    proto::{
        store::{CollectionRecord, DayKey, DaysRecord, FaceFacts, FaceIdRecord, FaceRecord, FaceVector, RequestRecord},
        v1,
    },
    store::{
        CollectionKey, Day, Days, FaceKey, Store, StoreError, StoreExt, Table, Unsealed, Write, decode_record,
        encode_record, identity::DAYS_KEY,
    },
};

pub(super) const MIGRATION: Migration =
    Migration { format: 2, name: "0002 sealed faces", changes: || Box::new(SealedFaces::default()) };

#[derive(Default)]
struct SealedFaces {
    /// The last incarnation or number given.
    last_number: u64,
    /// By id.
    collections: HashMap<String, CollectionKey>,
    /// The key of the answers.
    day: Option<Day>,
}

impl SealedFaces {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn collection(&mut self, new: &dyn Store, key: Vec<u8>, value: &[u8]) -> Result<Vec<Write>, StoreError> {
        let old: CollectionRecord = decode_record(Table::Collections, &key, value)?;
        let slot_key = new.keys().take()?;
        let record = CollectionRecord { incarnation: self.next_number(), key_slot: slot_key.slot, ..old };
        self.collections.insert(record.id.clone(), CollectionKey::new(record.incarnation, slot_key));
        Ok(vec![Write::Put(Table::Collections, key, encode_record(&record))])
    }

    fn face(&mut self, new: &dyn Store, key: &[u8], value: &[u8]) -> Result<Vec<Write>, StoreError> {
        let FaceRecord { id, create_time, subject, labels, embedding_space, vector } =
            decode_record(Table::Faces, key, value)?;
        let collection = String::from_utf8_lossy(key.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        let number = self.next_number();
        // The collection was deleted, and the process ended before its faces were.
        let Some(collection) = self.collections.get(&collection) else { return Ok(Vec::new()) };
        let face = collection.face_key(number, &new.keys().take()?);
        let (row, id_row) = (collection.row(number), collection.id_row(&id));
        let facts = FaceFacts { id: id.clone(), create_time, subject, labels, embedding_space };
        Ok(vec![
            Write::Put(Table::FaceIds, id_row, encode_record(&FaceIdRecord { number })),
            Write::Put(Table::Faces, row.clone(), face.seal_row(Table::Faces, &facts)),
            Write::Put(Table::FaceVectors, row, face.seal_row(Table::FaceVectors, &FaceVector { vector, id })),
        ])
    }

    fn answer(&mut self, new: &dyn Store, key: &[u8], value: &[u8]) -> Result<Vec<Write>, StoreError> {
        let answer: RequestRecord = decode_record(Table::Requests, key, value)?;
        let mut writes = Vec::new();
        let day = match &self.day {
            Some(day) => day.clone(),
            None => {
                let made = new.keys().take()?;
                let today = Day::number(SystemTime::now());
                let days = DaysRecord { days: vec![DayKey { day: today, key_slot: made.slot }] };
                writes.push(Write::Put(Table::Meta, DAYS_KEY.to_vec(), encode_record(&days)));
                self.day.insert(Day::new(today, made)).clone()
            }
        };
        let is_enrolment = key.starts_with(b"EnrollFace\0");
        let face = if is_enrolment { self.enrolled(new, &answer)? } else { None };
        // The face was deleted since: nothing can be answered.
        if !is_enrolment || face.is_some() {
            let row = day.row(key);
            let sealed = day.seal(&row, &answer, face.as_ref());
            writes.push(Write::Put(Table::Requests, row, encode_record(&sealed)));
        }
        Ok(writes)
    }

    /// Returns the key of the face that an answer names, if it is still enrolled.
    fn enrolled(&self, new: &dyn Store, answer: &RequestRecord) -> Result<Option<FaceKey>, StoreError> {
        let Ok(face) = v1::Face::decode(answer.response.as_slice()) else { return Ok(None) };
        let parts = face.name.strip_prefix("collections/").and_then(|rest| rest.split_once("/faces/"));
        let Some((collection, id)) = parts.and_then(|(collection, id)| Some((self.collections.get(collection)?, id)))
        else {
            return Ok(None);
        };
        let Some(FaceIdRecord { number }) = new.get_record(Table::FaceIds, &collection.id_row(id))? else {
            return Ok(None);
        };
        let row = collection.row(number);
        let Some(value) = new.get(Table::Faces, &row)? else { return Ok(None) };
        let (key_slot, Unsealed::Whole(facts)) =
            collection.unseal_row::<FaceFacts>(new.keys(), Table::Faces, &row, &value)?
        else {
            return Ok(None);
        };
        // Another face may have been enrolled under the id since. The first servers remembered no time.
        if face.create_time.is_some() && face.create_time != facts.create_time {
            return Ok(None);
        }
        FaceKey::at(new.keys(), collection.place(number, key_slot))
    }
}

impl Rewrite for SealedFaces {
    fn row(&mut self, new: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError> {
        match table {
            Table::Collections => self.collection(new, key, &value),
            Table::Faces => self.face(new, &key, &value),
            Table::Requests => self.answer(new, &key, &value),
            _ => Ok(vec![Write::Put(table, key, value)]),
        }
    }

    fn state(&self) -> Vec<u8> {
        self.last_number.to_be_bytes().to_vec()
    }

    fn resume(&mut self, new: &dyn Store, state: &[u8]) -> Result<(), StoreError> {
        self.last_number = state.try_into().map(u64::from_be_bytes).map_err(|_| StoreError::Corrupt {
            what: "the state of the interrupted migration".to_owned(),
            affects: "remove the folder store/next, and the migration begins anew".to_owned(),
        })?;
        for row in new.records::<CollectionRecord>(Table::Collections, Default::default()) {
            let (_, record) = row?;
            if let Some(key) = CollectionKey::of(new.keys(), &record)? {
                self.collections.insert(record.id, key);
            }
        }
        self.day = Days::read(new)?.all.into_iter().next();
        Ok(())
    }
}

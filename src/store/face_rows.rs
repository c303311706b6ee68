//! Stores each face sealed under a key of its own; table keys hold numbers and name nobody.
//!
//! A face's key is derived from two slots, the face's and its collection's, so wiping either erases the face. A face has
//! a row of facts and a row with its vector, both by the collection's incarnation and the face's number, and a row that
//! leads from an HMAC of its id to its number.

use prost::Message;

use super::{SlotKey, StoreError, Table, decode_record, encode_record, keys::SlotKeys, sealing::Key};
use crate::proto::store::{CollectionRecord, FacePlace, SealedRecord};

/// The bytes of an id's HMAC in a table key.
const ID_BYTES: usize = 16;

/// A collection's key, which seals its faces together with theirs.
#[derive(Clone, Debug)]
pub(crate) struct CollectionKey {
    /// The collection's incarnation.
    pub incarnation: u64,
    /// The slot.
    pub slot: u64,
    key: Key,
}

/// The key of one face, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct FaceKey {
    /// Where the face is.
    pub place: FacePlace,
    key: Key,
}

/// A row that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unsealed<M> {
    /// Its message.
    Whole(M),
    /// Its key has been wiped.
    Erased,
}

impl CollectionKey {
    /// The key of a new collection.
    #[must_use]
    pub(crate) fn new(incarnation: u64, slot_key: SlotKey) -> Self {
        Self { incarnation, slot: slot_key.slot, key: slot_key.key }
    }

    /// Reads the key of a stored collection; `None` when it was wiped.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its slot is damaged.
    pub(crate) fn of(keys: &dyn SlotKeys, record: &CollectionRecord) -> Result<Option<Self>, StoreError> {
        let key = keys.get(record.key_slot)?;
        Ok(key.map(|key| Self { incarnation: record.incarnation, slot: record.key_slot, key }))
    }

    /// The prefix of all its rows.
    #[must_use]
    pub(crate) fn prefix(&self) -> Vec<u8> {
        incarnation_prefix(self.incarnation)
    }

    /// The table key of a face's row of facts, and of its vector.
    #[must_use]
    pub(crate) fn row(&self, number: u64) -> Vec<u8> {
        row_key(self.incarnation, number)
    }

    /// The key in [`Table::FaceIds`] of a face with this id.
    #[must_use]
    pub(crate) fn id_row(&self, id: &str) -> Vec<u8> {
        [&self.incarnation.to_be_bytes()[..], &self.key.mac("face id", id.as_bytes())[..ID_BYTES]].concat()
    }

    /// Derives the secret key that seals a face.
    #[must_use]
    pub(crate) fn face_key(&self, number: u64, slot_key: &SlotKey) -> FaceKey {
        FaceKey { place: self.place(number, slot_key.slot), key: self.key.with("face", &slot_key.key) }
    }

    /// The place of a face of the collection.
    #[must_use]
    pub(crate) fn place(&self, number: u64, key_slot: u64) -> FacePlace {
        FacePlace { incarnation: self.incarnation, collection_key_slot: self.slot, number, key_slot }
    }

    /// Reads a row of [`Table::Faces`] or [`Table::FaceVectors`]; also returns the slot of its face, where it is known.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is damaged.
    pub(crate) fn unseal_row<M: Message + Default>(
        &self,
        keys: &dyn SlotKeys,
        table: Table,
        row: &[u8],
        value: &[u8],
    ) -> Result<(u64, Unsealed<M>), StoreError> {
        let SealedRecord { key_slot, sealed } = decode_record(table, row, value)?;
        let corrupt = |why: &str| StoreError::Corrupt {
            what: format!("the row {table:?}/{} ({why})", shown_row(row)),
            affects: "no search finds the face; delete it and enrol it again".to_owned(),
        };
        let Some(key) = keys.get(key_slot)? else { return Ok((key_slot, Unsealed::Erased)) };
        let key = self.key.with("face", &key);
        let plain = key.unseal(&context(table, row), &sealed).ok_or_else(|| corrupt("its seal is broken"))?;
        let message = M::decode(plain.as_slice()).map_err(|_| corrupt("it is no such message"))?;
        Ok((key_slot, Unsealed::Whole(message)))
    }
}

impl FaceKey {
    /// The key of a stored face; `None` when the face is erased.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when a slot is damaged.
    pub(crate) fn at(keys: &dyn SlotKeys, place: FacePlace) -> Result<Option<Self>, StoreError> {
        let (Some(above), Some(own)) = (keys.get(place.collection_key_slot)?, keys.get(place.key_slot)?) else {
            return Ok(None);
        };
        Ok(Some(Self { place, key: above.with("face", &own) }))
    }

    /// Seals a message as the value of the face's row in a table.
    #[must_use]
    pub(crate) fn seal_row<M: Message>(&self, table: Table, message: &M) -> Vec<u8> {
        let row = row_key(self.place.incarnation, self.place.number);
        let plain = zeroize::Zeroizing::new(message.encode_to_vec());
        let sealed = self.key.seal(&context(table, &row), &plain);
        encode_record(&SealedRecord { key_slot: self.place.key_slot, sealed })
    }

    /// Seals bytes that belong to the face and are stored elsewhere.
    #[must_use]
    pub(crate) fn seal(&self, table: Table, key: &[u8], plain: &[u8]) -> Vec<u8> {
        self.key.seal(&context(table, key), plain)
    }

    /// Returns what [`FaceKey::seal`] sealed; `None` for anything else.
    #[must_use]
    pub(crate) fn unseal(&self, table: Table, key: &[u8], sealed: &[u8]) -> Option<zeroize::Zeroizing<Vec<u8>>> {
        self.key.unseal(&context(table, key), sealed)
    }
}

/// The table key of a face's rows.
#[must_use]
pub(crate) fn row_key(incarnation: u64, number: u64) -> Vec<u8> {
    [incarnation.to_be_bytes(), number.to_be_bytes()].concat()
}

/// The prefix of the rows of all faces of a collection.
#[must_use]
pub(crate) fn incarnation_prefix(incarnation: u64) -> Vec<u8> {
    incarnation.to_be_bytes().to_vec()
}

/// Returns the incarnation of a key in the tables of faces.
#[must_use]
pub(crate) fn incarnation_of(key: &[u8]) -> Option<u64> {
    key.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

/// Returns the incarnation and the number of a row's key.
#[must_use]
pub(crate) fn parse_row_key(key: &[u8]) -> Option<(u64, u64)> {
    let (incarnation, number) = key.split_first_chunk()?;
    Some((u64::from_be_bytes(*incarnation), u64::from_be_bytes(number.try_into().ok()?)))
}

fn shown_row(key: &[u8]) -> String {
    parse_row_key(key).map_or_else(
        || super::printable(key),
        |(incarnation, number)| format!("incarnation {incarnation}, face {number}"),
    )
}

/// Returns the associated data of a sealed value: its table and row.
fn context(table: Table, key: &[u8]) -> Vec<u8> {
    [&[table as u8], key].concat()
}

/// Makes collections and faces for the tests of this module's users.
#[cfg(test)]
pub(in crate::store) mod for_tests {
    use super::*;
    use crate::{
        proto::store::{FaceFacts, FaceIdRecord, FaceVector},
        store::{Batch, Store},
    };

    /// Stores a collection of this incarnation.
    pub(in crate::store) fn store_collection(store: &dyn Store, record: CollectionRecord) -> CollectionKey {
        let key = CollectionKey::new(record.incarnation, store.keys().take().unwrap());
        let mut batch = Batch::default();
        let record = CollectionRecord { key_slot: key.slot, ..record };
        batch.put_record(Table::Collections, record.id.as_bytes(), &record);
        store.commit(batch).unwrap();
        key
    }

    /// Stores a face under the id of its facts.
    pub(in crate::store) fn store_face(
        store: &dyn Store,
        collection: &CollectionKey,
        number: u64,
        facts: &FaceFacts,
        vector: &[f32],
    ) {
        let face = collection.face_key(number, &store.keys().take().unwrap());
        let row = collection.row(number);
        let vector = FaceVector { vector: vector.iter().flat_map(|v| v.to_le_bytes()).collect(), id: facts.id.clone() };
        let mut batch = Batch::default();
        batch
            .put_record(Table::FaceIds, &collection.id_row(&facts.id), &FaceIdRecord { number })
            .put(Table::Faces, &row, face.seal_row(Table::Faces, facts))
            .put(Table::FaceVectors, &row, face.seal_row(Table::FaceVectors, &vector));
        store.commit(batch).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::store::FaceFacts, store::Keys};

    #[test]
    fn a_row_is_read_in_its_own_place_until_a_key_above_it_is_wiped() {
        let keys = Keys::in_memory();
        let collection = CollectionKey::new(7, keys.take().unwrap());
        let [own, other] = [keys.take().unwrap(), keys.take().unwrap()];
        let facts = FaceFacts { id: "anna".to_owned(), ..FaceFacts::default() };
        let key = collection.face_key(3, &own);
        let value = key.seal_row(Table::Faces, &facts);
        assert!(!value.windows(4).any(|part| part == b"anna"));
        let read = |row: &[u8], table| collection.unseal_row::<FaceFacts>(&keys, table, row, &value);
        assert_eq!(read(&collection.row(3), Table::Faces).unwrap(), (own.slot, Unsealed::Whole(facts)));
        assert!(read(&collection.row(4), Table::Faces).is_err(), "moved to another face");
        assert!(read(&collection.row(3), Table::FaceVectors).is_err(), "moved to another table");
        assert_ne!(collection.id_row("anna"), collection.id_row("annb"));
        assert_ne!(collection.id_row("anna"), CollectionKey::new(7, other).id_row("anna"));

        let answer = key.seal(Table::Requests, b"r", b"digest");
        let again = FaceKey::at(&keys, key.place).unwrap().unwrap();
        assert_eq!(again.unseal(Table::Requests, b"r", &answer).unwrap().as_slice(), b"digest");
        keys.wipe([own.slot]).unwrap();
        assert_eq!(read(&collection.row(3), Table::Faces).unwrap().1, Unsealed::Erased);
        assert!(FaceKey::at(&keys, key.place).unwrap().is_none());

        let second = collection.face_key(5, &keys.take().unwrap());
        keys.wipe([collection.slot]).unwrap();
        assert!(FaceKey::at(&keys, second.place).unwrap().is_none(), "the collection's key is gone");
    }
}

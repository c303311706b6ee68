//! Faces in the doctor's examination: their rows against one another, and what is sealed in them.

use std::collections::{BTreeMap, BTreeSet};

use super::report::DoctorReport;
use crate::{
    proto::store::{CollectionRecord, FaceFacts, FaceIdRecord, FaceVector},
    store::{
        CollectionKey, Store, StoreError, StoreExt, Table, Unsealed, decode_record, decode_vector,
        face_rows::incarnation_of, parse_row_key, printable, row_key,
    },
};

/// The effect of a face's damage.
const AFFECTS: &str = "no search finds it; delete it and enrol it again";

/// Collections and faces that were seen.
#[derive(Default)]
pub(super) struct Faces {
    /// By incarnation.
    collections: BTreeMap<u64, Collection>,
    /// Incarnation and number of every row.
    facts: BTreeSet<(u64, u64)>,
    vectors: BTreeSet<(u64, u64)>,
    ids: BTreeSet<(u64, u64)>,
    /// Rows of collections that there are no longer.
    leftovers: BTreeMap<u64, u64>,
}

struct Collection {
    record: CollectionRecord,
    /// `None` when it cannot be read, which is a finding.
    key: Option<CollectionKey>,
}

impl Faces {
    pub(super) fn add_collection(&mut self, store: &dyn Store, record: CollectionRecord, report: &mut DoctorReport) {
        let key = match CollectionKey::of(store.keys(), &record) {
            Ok(Some(key)) => Some(key),
            Ok(None) => {
                let what = format!("collections/{} has no key", record.id);
                report.find(what, "it was being deleted; the next start finishes that");
                None
            }
            Err(error) => {
                report.damaged(error);
                None
            }
        };
        self.collections.insert(record.incarnation, Collection { record, key });
    }

    /// Examines a row of the tables of faces.
    pub(super) fn add_row(
        &mut self,
        store: &dyn Store,
        table: Table,
        key: &[u8],
        value: &[u8],
        report: &mut DoctorReport,
    ) {
        let Some(incarnation) = incarnation_of(key) else {
            report.find(format!("a key of {table:?} ({})", printable(key)), "its row is used by nothing");
            return;
        };
        let Some(collection) = self.collections.get(&incarnation) else {
            *self.leftovers.entry(incarnation).or_default() += 1;
            return;
        };
        if table == Table::FaceIds {
            match decode_record::<FaceIdRecord>(table, key, value) {
                Ok(FaceIdRecord { number }) => {
                    let shown = || collection.name_of(store, number);
                    if !self.ids.insert((incarnation, number)) {
                        report.find(format!("two ids lead to the face {}", shown()), "one of them is wrong");
                    }
                }
                Err(error) => report.damaged(error),
            }
            return;
        }
        let Some((_, number)) = parse_row_key(key) else {
            report.find(format!("a key of {table:?} ({})", printable(key)), "its row is used by nothing");
            return;
        };
        let seen = if table == Table::Faces { &mut self.facts } else { &mut self.vectors };
        seen.insert((incarnation, number));
        let fault = match table {
            Table::Faces => collection.fault_of_facts(store, number, key, value),
            _ => collection.fault_of_vector(store, key, value),
        };
        match fault {
            Ok(None) => {}
            Ok(Some(why)) => {
                report.find(format!("the face {} ({why})", collection.name_of(store, number)), AFFECTS);
            }
            Err(StoreError::Corrupt { what, .. }) => {
                report.find(format!("the face {} ({what})", collection.name_of(store, number)), AFFECTS);
            }
            Err(error) => report.damaged(error),
        }
    }

    /// Compares the rows with one another. `is_unread` says that a table could not be read to its end.
    pub(super) fn references(&self, store: &dyn Store, is_unread: impl Fn(Table) -> bool, report: &mut DoctorReport) {
        let missing = [
            (&self.facts, Table::Faces, "its facts are missing"),
            (&self.vectors, Table::FaceVectors, "its vector is missing"),
            (&self.ids, Table::FaceIds, "no id leads to it"),
        ];
        let all: BTreeSet<_> = self.facts.iter().chain(&self.vectors).chain(&self.ids).copied().collect();
        for (rows, table, why) in missing {
            for (incarnation, number) in all.difference(rows).filter(|_| !is_unread(table)) {
                if let Some(collection) = self.collections.get(incarnation) {
                    let name = collection.name_of(store, *number);
                    report.find(format!("the face {name} ({why})"), AFFECTS);
                }
            }
        }
        for (incarnation, n_rows) in &self.leftovers {
            match store.get(Table::Erasures, &row_key(*incarnation, 0)) {
                Ok(Some(_)) => report.n_leftover_rows += n_rows,
                _ => report.find(
                    format!("{n_rows} rows of faces whose collection is missing (incarnation {incarnation})"),
                    "nobody can read them; the record of their collection is lost",
                ),
            }
        }
    }
}

impl Collection {
    /// Names a face by whichever of its rows can be read, or by its number.
    fn name_of(&self, store: &dyn Store, number: u64) -> String {
        let row = row_key(self.record.incarnation, number);
        let of_facts = || match self.unseal::<FaceFacts>(store, Table::Faces, &row).ok()?? {
            Unsealed::Whole(facts) => Some(facts.id),
            Unsealed::Erased => None,
        };
        let of_vector = || match self.unseal::<FaceVector>(store, Table::FaceVectors, &row).ok()?? {
            Unsealed::Whole(face) => Some(face.id),
            Unsealed::Erased => None,
        };
        match of_facts().or_else(of_vector) {
            Some(id) => format!("collections/{}/faces/{id}", self.record.id),
            None => format!("number {number} of collections/{}", self.record.id),
        }
    }

    fn unseal<M: prost::Message + Default>(
        &self,
        store: &dyn Store,
        table: Table,
        row: &[u8],
    ) -> Result<Option<Unsealed<M>>, StoreError> {
        let (Some(key), Some(value)) = (&self.key, store.get(table, row)?) else { return Ok(None) };
        Ok(Some(key.unseal_row(store.keys(), table, row, &value)?.1))
    }

    fn fault_of_facts(
        &self,
        store: &dyn Store,
        number: u64,
        row: &[u8],
        value: &[u8],
    ) -> Result<Option<String>, StoreError> {
        let Some(key) = &self.key else { return Ok(None) };
        let facts: FaceFacts = match key.unseal_row(store.keys(), Table::Faces, row, value)?.1 {
            Unsealed::Whole(facts) => facts,
            Unsealed::Erased => return Ok(Some("its key is wiped, but its rows are there".to_owned())),
        };
        if facts.embedding_space != self.record.embedding_space {
            return Ok(Some(format!("it is of the space {}, not its collection's", facts.embedding_space)));
        }
        let found = store.get_record::<FaceIdRecord>(Table::FaceIds, &key.id_row(&facts.id));
        // A damaged or missing row of the id is a finding of its own.
        Ok(match found {
            Ok(Some(FaceIdRecord { number: other })) if other != number => {
                Some(format!("its id leads to the face {other}"))
            }
            _ => None,
        })
    }

    fn fault_of_vector(&self, store: &dyn Store, row: &[u8], value: &[u8]) -> Result<Option<String>, StoreError> {
        let Some(key) = &self.key else { return Ok(None) };
        let face: FaceVector = match key.unseal_row(store.keys(), Table::FaceVectors, row, value)?.1 {
            Unsealed::Whole(face) => face,
            // Said of its facts.
            Unsealed::Erased => return Ok(None),
        };
        Ok(decode_vector(&face.vector, self.record.dimensions as usize).err())
    }
}

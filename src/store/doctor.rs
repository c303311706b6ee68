//! Verifies everything in a store, and reports damage and its effects.

mod faces;
mod remnants;
mod report;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use prost::Message;

pub(crate) use self::{
    remnants::{ErasedFace, find_in_files, find_in_store},
    report::{DoctorReport, Finding},
};
use super::{
    Blobs, Digest, Range, Store, StoreBlobs, StoreError, StoreExt, Table, decode_record,
    identity::{DAYS_KEY, SECRETS_KEY},
    printable,
};
use crate::proto::store::{
    AliasRecord, AnswerRecord, BlobRecord, DaysRecord, ErasureRecord, ModelRecord, RunEventRecord, RunRecord,
    SecretsRecord, StoreRecord, VersionRecord,
};

/// Verifies every record, blob and reference; `progress` receives the entries done and the total.
pub(crate) fn examine(store: &Arc<dyn Store>, mut progress: impl FnMut(u64, u64)) -> DoctorReport {
    let mut report = DoctorReport::default();
    let mut seen = Seen::default();
    let mut done = 0;
    for table in Table::ALL {
        let mut n_entries = 0;
        if let Err(error) = each(&**store, table, |key, value| {
            n_entries += 1;
            done += 1;
            seen.add(&**store, table, key, value, &mut report);
            if done % 256 == 0 {
                progress(done, done);
            }
        }) {
            report.damaged(error);
            seen.unread.insert(table);
        }
        report.entries.insert(format!("{table:?}"), n_entries);
    }
    for error in store.verify_all() {
        report.damaged(error);
    }
    let blobs = StoreBlobs::new(Arc::clone(store));
    let total = seen.blobs.len() as u64;
    let mut broken = HashSet::new();
    for (i, digest) in seen.blobs.iter().enumerate() {
        match blobs.get(digest) {
            Ok(_) => report.n_blobs += 1,
            Err(error) => {
                broken.insert(*digest);
                report.damaged(error);
            }
        }
        progress(done + i as u64 + 1, done + total);
    }
    seen.references(&**store, &broken, &mut report);
    report
}

fn each(store: &dyn Store, table: Table, mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
    for page in store.pages(table, Range::default()) {
        page?.iter().for_each(|(key, value)| visit(key, value));
    }
    Ok(())
}

/// The references found between records.
#[derive(Default)]
struct Seen {
    blobs: HashSet<Digest>,
    chunks_of: HashSet<Digest>,
    models: HashSet<String>,
    versions: BTreeMap<String, Vec<(String, Option<Digest>)>>,
    aliases: Vec<(String, String)>,
    faces: faces::Faces,
    /// Tables that could not be read to their end: an entry not seen there may still exist.
    unread: HashSet<Table>,
}

impl Seen {
    fn add(&mut self, store: &dyn Store, table: Table, key: &[u8], value: &[u8], report: &mut DoctorReport) {
        let name = printable(key);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let first = text(key.split(|b| *b == 0).next().unwrap_or_default());
        match table {
            Table::Meta if key == SECRETS_KEY => {
                record::<SecretsRecord>(table, key, value, "page tokens", report);
            }
            Table::Meta if key == DAYS_KEY => {
                record::<DaysRecord>(table, key, value, "the answers of request ids", report);
            }
            Table::Meta => drop(record::<StoreRecord>(table, key, value, "the store's format", report)),
            Table::Models => {
                self.models.insert(first);
                record::<ModelRecord>(table, key, value, &format!("models/{name}"), report);
            }
            Table::Versions => {
                let Some(v) = record::<VersionRecord>(table, key, value, &format!("the version {name}"), report) else {
                    return;
                };
                let blob = |t: &crate::proto::store::TensorRef| Digest::try_from(t.blob.as_slice()).ok();
                let tensors = v.tensors.iter().map(|t| (t.name.clone(), blob(t))).collect();
                self.versions.insert(format!("models/{}/versions/{}", v.model, v.number), tensors);
            }
            Table::Aliases => {
                let alias = text(&key[(first.len() + 1).min(key.len())..]);
                let whole = format!("models/{first}@{alias}");
                if let Some(a) = record::<AliasRecord>(table, key, value, &whole, report) {
                    self.aliases.push((whole, format!("models/{first}/versions/{}", a.version)));
                }
            }
            Table::Runs => drop(record::<RunRecord>(table, key, value, &format!("trainingRuns/{name}"), report)),
            Table::RunEvents => {
                record::<RunEventRecord>(table, key, value, &format!("an event of trainingRuns/{first}"), report);
            }
            Table::Collections => {
                if let Some(found) = record(table, key, value, &format!("collections/{name}"), report) {
                    self.faces.add_collection(store, found, report);
                }
            }
            Table::Faces | Table::FaceVectors | Table::FaceIds => {
                self.faces.add_row(store, table, key, value, report);
            }
            Table::Erasures => {
                record::<ErasureRecord>(table, key, value, "the journal of erasures", report);
            }
            Table::Requests => {
                record::<AnswerRecord>(table, key, value, "the answer to a repeated request", report);
            }
            Table::Blobs => match Digest::try_from(key) {
                Ok(digest) => {
                    self.blobs.insert(digest);
                    record::<BlobRecord>(table, key, value, &format!("the blob {digest}"), report);
                }
                Err(e) => report.find(format!("a blob's key ({e})"), "nothing: no version can name it"),
            },
            Table::BlobChunks => {
                self.chunks_of.extend(key.get(..32).and_then(|k| Digest::try_from(k).ok()));
            }
        }
    }

    fn references(&self, store: &dyn Store, broken: &HashSet<Digest>, report: &mut DoctorReport) {
        let unread = |table| self.unread.contains(&table);
        for (version, tensors) in &self.versions {
            for (tensor, blob) in tensors {
                let why = match blob {
                    None => "names no blob",
                    Some(blob) if !self.blobs.contains(blob) && !unread(Table::Blobs) => "is missing",
                    Some(blob) if broken.contains(blob) => "fails its checksum",
                    Some(_) => continue,
                };
                report.find(format!("tensor {tensor} of {version} {why}"), format!("{version} cannot be loaded"));
            }
        }
        for (alias, version) in &self.aliases {
            if !self.versions.contains_key(version) && !unread(Table::Versions) {
                report.find(format!("{alias} points at {version}, which is missing"), format!("calls to {alias} fail"));
            }
        }
        self.faces.references(store, unread, report);
        report.n_unfinished_blobs = self.chunks_of.difference(&self.blobs).count() as u64;
        for version in self.versions.keys() {
            let model = version.trim_start_matches("models/").split('/').next().unwrap_or_default();
            if !self.models.contains(model) && !unread(Table::Models) {
                report.find(format!("models/{model}, of which there is {version}, is missing"), "it is not listed");
            }
        }
    }
}

fn record<M: Message + Default>(
    table: Table,
    key: &[u8],
    value: &[u8],
    affects: &str,
    report: &mut DoctorReport,
) -> Option<M> {
    match decode_record(table, key, value) {
        Ok(record) => Some(record),
        Err(error) => {
            let what = match error {
                StoreError::Corrupt { what, .. } => what,
                other => other.to_string(),
            };
            report.find(what, format!("{affects} cannot be used"));
            None
        }
    }
}

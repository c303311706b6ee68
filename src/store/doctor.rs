//! Verifies everything in a store, and reports damage and its effects.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use prost::Message;

use super::{
    Blobs, Digest, Range, Store, StoreBlobs, StoreError, StoreExt, Table, decode_record, decode_vector,
    migrate::SECRETS_KEY, printable,
};
use crate::proto::store::{
    AliasRecord, BlobRecord, CollectionRecord, FaceRecord, ModelRecord, RequestRecord, RunEventRecord, RunRecord,
    SecretsRecord, StoreRecord, VersionRecord,
};

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The faulty record, blob or reference.
    pub what: String,
    /// The effect, and on what.
    pub affects: String,
}

/// The result of an examination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DoctorReport {
    /// Number of entries by table.
    pub entries: BTreeMap<String, u64>,
    /// Blobs verified byte by byte.
    pub n_blobs: u64,
    /// Blobs that have chunks but no record: writing them was interrupted, and the next start deletes them.
    pub n_unfinished_blobs: u64,
    /// The faults found; empty if there are none.
    pub findings: Vec<Finding>,
}

impl DoctorReport {
    fn find(&mut self, what: impl Into<String>, affects: impl Into<String>) {
        self.findings.push(Finding { what: what.into(), affects: affects.into() });
    }
}

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
            seen.add(table, key, value, &mut report);
            if done % 256 == 0 {
                progress(done, done);
            }
        }) {
            damaged(&mut report, error);
            seen.unread.insert(table);
        }
        report.entries.insert(format!("{table:?}"), n_entries);
    }
    for error in store.verify_all() {
        damaged(&mut report, error);
    }
    let blobs = StoreBlobs::new(Arc::clone(store));
    let total = seen.blobs.len() as u64;
    let mut broken = HashSet::new();
    for (i, digest) in seen.blobs.iter().enumerate() {
        match blobs.get(digest) {
            Ok(_) => report.n_blobs += 1,
            Err(error) => {
                broken.insert(*digest);
                damaged(&mut report, error);
            }
        }
        progress(done + i as u64 + 1, done + total);
    }
    seen.references(&broken, &mut report);
    report
}

/// Adds an error to the findings, once: several checks may find the same damaged page.
fn damaged(report: &mut DoctorReport, error: StoreError) {
    let finding = match error {
        StoreError::Corrupt { what, affects } => Finding { what, affects },
        other => Finding { what: other.to_string(), affects: "the unreadable part cannot be used".to_owned() },
    };
    if !report.findings.contains(&finding) {
        report.findings.push(finding);
    }
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
    /// By id; `None` for a damaged record.
    collections: BTreeMap<String, Option<CollectionRecord>>,
    faces_of: BTreeSet<String>,
    /// Tables that could not be read to their end: an entry not seen there may still exist.
    unread: HashSet<Table>,
}

impl Seen {
    fn add(&mut self, table: Table, key: &[u8], value: &[u8], report: &mut DoctorReport) {
        let name = printable(key);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let first = text(key.split(|b| *b == 0).next().unwrap_or_default());
        match table {
            Table::Meta if key == SECRETS_KEY => {
                record::<SecretsRecord>(table, key, value, "page tokens", report);
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
                let collection = record(table, key, value, &format!("collections/{name}"), report);
                self.collections.insert(first, collection);
            }
            Table::Faces => {
                let face = record::<FaceRecord>(table, key, value, &format!("a face of collections/{first}"), report);
                if let Some(why) = face.and_then(|face| self.fault_of(&face, &first, key)) {
                    report.find(format!("the face {name} ({why})"), "no search finds it; delete it and enrol it again");
                }
                self.faces_of.insert(first);
            }
            Table::Requests => {
                record::<RequestRecord>(table, key, value, "the answer to a repeated request", report);
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

    /// Returns what is wrong with a face whose record is intact. Collections are read before faces.
    fn fault_of(&self, face: &FaceRecord, collection: &str, key: &[u8]) -> Option<String> {
        if key[(collection.len() + 1).min(key.len())..] != *face.id.as_bytes() {
            return Some(format!("its record is that of the face {:?}", face.id));
        }
        let collection = self.collections.get(collection)?.as_ref()?;
        if face.embedding_space != collection.embedding_space {
            return Some(format!("it is of the space {}, not its collection's", face.embedding_space));
        }
        decode_vector(&face.vector, collection.dimensions as usize).err()
    }

    fn references(&self, broken: &HashSet<Digest>, report: &mut DoctorReport) {
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
        let is_known = |collection: &&String| self.collections.contains_key(*collection) || unread(Table::Collections);
        for collection in self.faces_of.iter().filter(|collection| !is_known(collection)) {
            report.find(
                format!("faces of collections/{collection}, which is missing"),
                "they are not searched; deleting the collection was interrupted or its record is lost",
            );
        }
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

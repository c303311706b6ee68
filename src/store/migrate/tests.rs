//! Tests of migrations, and of a store in every earlier format.
//!
//! `tests/fixtures/store_format_1.zip` has a store in format 1, as an earlier program left it on a disk. It was written
//! once, from [`records`], and is never written again. A later format adds a file of its own beside it.

use std::{io::Cursor, path::Path, sync::Arc};

use super::*;
use crate::{
    proto::{
        store::{
            AliasRecord, CollectionRecord, FaceFacts, FaceIdRecord, FaceRecord, FaceVector, ModelRecord, RequestRecord,
            RunEventRecord, RunRecord, TensorRef, VersionRecord,
        },
        v1,
    },
    store::{
        Batch, Blobs, CollectionKey, Digest, SledSettings, SledStore, StoreBlobs, StoreExt, Unsealed, compact, examine,
        join_key, open, printable,
    },
};

/// Doubles the values of models.
struct Doubles;

impl Rewrite for Doubles {
    fn row(&mut self, _: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError> {
        let value = if table == Table::Models { value.repeat(2) } else { value };
        Ok(vec![Write::Put(table, key, value)])
    }
}

const STEPS: &[Migration] =
    &[m0001_initial::MIGRATION, Migration { format: 2, name: "0002 doubles", changes: || Box::new(Doubles) }];

fn opened(dir: &Path, steps: &[Migration]) -> Result<(SledStore, Migrated), StoreError> {
    open_with(dir, &SledSettings::default(), false, steps, |_, _| {})
}

fn put(store: &dyn Store, table: Table, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(table, key, value.to_vec());
    store.commit(batch).unwrap();
}

/// A store's folder in format 1, as a zip archive.
const FORMAT_1: &[u8] = include_bytes!("../../../tests/fixtures/store_format_1.zip");

#[test]
fn a_half_import_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    put(&SledStore::open(dir.path(), &SledSettings::default()).unwrap(), Table::Faces, b"c", b"v");
    let refused = open(dir.path(), &SledSettings::default()).err().unwrap();
    assert!(refused.to_string().contains("import again"), "{refused}");
}

#[test]
fn pending_migrations_run_once_and_keep_the_stores_id() {
    let dir = tempfile::tempdir().unwrap();
    let (store, done) = opened(dir.path(), &STEPS[..1]).unwrap();
    assert_eq!((done.from, done.to), (0, 1));
    put(&store, Table::Models, b"x", b"ab");
    let id = |store: &dyn Store| store.get_record::<StoreRecord>(Table::Meta, STORE_KEY).unwrap().unwrap().store_id;
    let before = id(&store);
    drop(store);
    let (store, done) = opened(dir.path(), STEPS).unwrap();
    assert_eq!(done, Migrated { from: 1, to: 2, applied: vec!["0002 doubles"] });
    drop(store);
    let (store, done) = opened(dir.path(), STEPS).unwrap();
    assert_eq!(done.applied, Vec::<&str>::new());
    assert_eq!(store.get(Table::Models, b"x").unwrap().unwrap(), b"abab");
    assert_eq!(id(&store), before);
    drop(store);
    let error = opened(dir.path(), &STEPS[..1]).err().unwrap();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, supported: 1 }), "{error}");
}

/// Copies rows, and fails once in a while.
struct Fails {
    inner: Box<dyn Rewrite>,
    n_left: usize,
}

impl Rewrite for Fails {
    fn row(&mut self, new: &dyn Store, table: Table, key: Vec<u8>, value: Vec<u8>) -> Result<Vec<Write>, StoreError> {
        self.n_left = self.n_left.checked_sub(1).ok_or(StoreError::WritesFail { why: "now".into() })?;
        self.inner.row(new, table, key, value)
    }

    fn state(&self) -> Vec<u8> {
        self.inner.state()
    }

    fn resume(&mut self, new: &dyn Store, state: &[u8]) -> Result<(), StoreError> {
        self.inner.resume(new, state)
    }
}

/// Makes a store of format 1 with so many faces of half a kilobyte.
fn format_1(dir: &Path, n_faces: usize) {
    let (store, _) = opened(dir, &MIGRATIONS[..1]).unwrap();
    let space = "models/face/versions/1#embedding16".to_owned();
    let collection = CollectionRecord {
        id: "policies".to_owned(),
        embedding_space: space.clone(),
        dimensions: 128,
        ..CollectionRecord::default()
    };
    let mut batch = Batch::default();
    batch.put_record(Table::Collections, b"policies", &collection);
    for i in 0..n_faces {
        let mut vector = vec![0.0_f32; 128];
        vector[i % 128] = 1.0;
        let face = FaceRecord {
            id: format!("face-{i:05}"),
            subject: format!("subject-{i}"),
            embedding_space: space.clone(),
            vector: vector.iter().flat_map(|v| v.to_le_bytes()).collect(),
            ..FaceRecord::default()
        };
        batch.put_record(Table::Faces, &join_key(&[b"policies", face.id.as_bytes()]), &face);
    }
    let response = v1::Face { name: "collections/policies/faces/face-00007".to_owned(), ..v1::Face::default() };
    for (request, response) in [(&b"EnrollFace\0a\0r"[..], response.clone()), (b"Train\0a\0r", response)] {
        let response = prost::Message::encode_to_vec(&response);
        let answer = RequestRecord { body_digest: vec![7; 32], response, ..RequestRecord::default() };
        batch.put_record(Table::Requests, request, &answer);
    }
    store.commit(batch).unwrap();
}

/// Returns the facts of all faces in order.
fn faces(store: &dyn Store) -> Vec<(FaceFacts, FaceVector)> {
    let mut found = Vec::new();
    for row in store.records::<CollectionRecord>(Table::Collections, Default::default()) {
        let (_, record) = row.unwrap();
        let key = CollectionKey::of(store.keys(), &record).unwrap().unwrap();
        for entry in store.entries(Table::Faces, crate::store::Range::default()) {
            let (row, value) = entry.unwrap();
            let facts = key.unseal_row::<FaceFacts>(store.keys(), Table::Faces, &row, &value).unwrap().1;
            let vector = store.get(Table::FaceVectors, &row).unwrap().unwrap();
            let vector = key.unseal_row::<FaceVector>(store.keys(), Table::FaceVectors, &row, &vector).unwrap().1;
            let (Unsealed::Whole(facts), Unsealed::Whole(vector)) = (facts, vector) else { panic!("erased") };
            let leads_to: FaceIdRecord = store.get_record(Table::FaceIds, &key.id_row(&facts.id)).unwrap().unwrap();
            assert_eq!(key.row(leads_to.number), row);
            found.push((facts, vector));
        }
    }
    found
}

#[test]
fn an_interrupted_migration_goes_on_where_it_was() {
    const N_FACES: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    format_1(dir.path(), N_FACES);
    let settings = SledSettings::default();
    let (mut n_failures, mut least) = (0, 0);
    loop {
        let changes = (m0002_sealed_faces::MIGRATION.changes)();
        let changes = ToFormat { format: 2, changes: Box::new(Fails { inner: changes, n_left: 9_000 }) };
        let mut first = None;
        match rewrite(dir.path(), &settings, "0002 sealed faces", false, changes, |done, _| {
            first.get_or_insert(done);
        }) {
            Ok(_) => break,
            Err(StoreError::WritesFail { .. }) => n_failures += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(first.unwrap() >= least, "it began anew");
        least = first.unwrap();
    }
    assert!(n_failures >= 2, "{n_failures} failures");
    let store = open(dir.path(), &settings).unwrap();
    let found = faces(&*store);
    assert_eq!(found.len(), N_FACES);
    for (i, (facts, vector)) in found.iter().enumerate() {
        assert_eq!((facts.id.as_str(), &facts.id), (format!("face-{i:05}").as_str(), &vector.id));
        assert_eq!(facts.subject, format!("subject-{i}"));
    }
    assert_eq!(examine(&store, |_, _| {}).findings, []);
    assert_eq!(store.verify_all().len(), 0);
    assert_eq!(store.scan(Table::Requests, &Default::default(), 9).unwrap().len(), 2);
    drop(store);
    for entry in walkdir::WalkDir::new(dir.path()).into_iter().map(Result::unwrap).filter(|e| e.path().is_file()) {
        let bytes = std::fs::read(entry.path()).unwrap();
        for remnant in [&b"face-0"[..], b"subject-1", b"EnrollFace"] {
            let found = bytes.windows(remnant.len()).position(|part| part == remnant);
            assert_eq!(found, None, "{} in {}", printable(remnant), entry.path().display());
        }
    }
}

#[test]
fn a_compaction_keeps_everything_and_a_damaged_store_is_not_migrated_unasked() {
    let dir = tempfile::tempdir().unwrap();
    format_1(dir.path(), 500);
    let settings = SledSettings::default();
    {
        // The engine's own lock may be held for a moment longer than the store is open.
        let db =
            std::iter::repeat_with(|| sled::open(dir.path().join("db"))).take(10_000).find_map(Result::ok).unwrap();
        let (key, value) = db.iter().map(Result::unwrap).find(|(key, _)| key.starts_with(b"\x07policies")).unwrap();
        let mut altered = value.to_vec();
        altered[9] ^= 1;
        db.insert(key, altered).unwrap();
    }
    let refused = open(dir.path(), &settings).err().unwrap();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
    crate::store::migrate(dir.path(), &settings, true, |_, _| {}).unwrap();
    let before = faces(&*open(dir.path(), &settings).unwrap());
    assert_eq!(before.len(), 499);
    let done = compact(dir.path(), &settings, |_, _| {}).unwrap();
    assert!(done.n_rows >= 3 * 499 && done.n_bytes_after > 0, "{done:?}");
    let store = open(dir.path(), &settings).unwrap();
    assert_eq!(faces(&*store), before);
    assert_eq!(store.verify_all().len(), 0);
}

/// Returns the bytes of the only tensor.
fn tensor() -> Vec<u8> {
    (0..40_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Returns one record of every table, except the tables of blobs and of the store itself.
fn records(tensor: Digest) -> Batch {
    let time = Some(prost_types::Timestamp { seconds: 1_760_000_000, nanos: 0 });
    let space = "models/face/versions/1#embedding16".to_owned();
    let version = VersionRecord {
        model: "face".to_owned(),
        number: 1,
        create_time: time,
        architecture: v1::Architecture::Resnet34.into(),
        heads: vec![v1::Head { name: "age".to_owned(), ..v1::Head::default() }],
        tensors: vec![TensorRef {
            name: "head.fc1.weight".to_owned(),
            shape: vec![100, 100],
            dtype: "f32".to_owned(),
            blob: tensor.as_bytes().to_vec(),
        }],
        metrics: [("age.mae".to_owned(), 6.5)].into(),
        ..VersionRecord::default()
    };
    let face = FaceRecord {
        id: "f1".to_owned(),
        create_time: time,
        subject: "policy-1".to_owned(),
        labels: [("branch".to_owned(), "12".to_owned())].into(),
        embedding_space: space.clone(),
        vector: 0.25_f32.to_le_bytes().repeat(16),
    };
    let run = RunRecord {
        id: "0190f0c47e1c7d2e8f5e1f2a3b4c5d6e".to_owned(),
        model: "face".to_owned(),
        state: v1::RunState::Succeeded.into(),
        create_time: time,
        version: 1,
        ..RunRecord::default()
    };
    let event = v1::WatchTrainingRunResponse { sequence: 1, time, event: None };
    let model = ModelRecord { id: "face".to_owned(), create_time: time, latest_version: 1 };
    let collection = CollectionRecord {
        id: "policies".to_owned(),
        create_time: time,
        embedding_space: space,
        dimensions: 16,
        display_name: "Policies".to_owned(),
        ..CollectionRecord::default()
    };
    let request = RequestRecord { body_digest: vec![7; 32], response: vec![1, 2, 3], create_time: time };
    let mut batch = Batch::default();
    batch.put_record(Table::Models, b"face", &model);
    batch.put_record(Table::Versions, &join_key(&[b"face", &1_u64.to_be_bytes()]), &version);
    batch.put_record(Table::Aliases, b"face\0champion", &AliasRecord { version: 1, update_time: time });
    batch.put_record(Table::Runs, run.id.as_bytes(), &run);
    let event_key = join_key(&[run.id.as_bytes(), &1_i64.to_be_bytes()]);
    batch.put_record(Table::RunEvents, &event_key, &RunEventRecord { event: Some(event) });
    batch.put_record(Table::Collections, b"policies", &collection);
    batch.put_record(Table::Faces, b"policies\0f1", &face);
    batch.put_record(Table::Requests, b"EnrollFace\0anonymous\0r1", &request);
    batch
}

fn unpack(to: &Path) {
    zip::ZipArchive::new(Cursor::new(FORMAT_1)).unwrap().extract(to).unwrap();
}

#[test]
fn a_store_of_format_1_opens_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    unpack(dir.path());
    let before = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    assert_eq!(format(&before).unwrap(), 1, "the archive has a store in format 1");
    let id = before.get_record::<StoreRecord>(Table::Meta, STORE_KEY).unwrap().unwrap().store_id;
    drop(before);

    let store = open(dir.path(), &SledSettings::default()).unwrap();
    assert_eq!(format(&*store).unwrap(), newest_format());
    let now = store.get_record::<StoreRecord>(Table::Meta, STORE_KEY).unwrap().unwrap().store_id;
    assert_eq!(now, id, "it is the same store");
    assert_eq!(StoreBlobs::new(Arc::clone(&store)).get(&Digest::of(&tensor())).unwrap(), tensor());
    for write in records(Digest::of(&tensor())).writes {
        let Write::Put(table, key, value) = write else { panic!("only puts") };
        match table {
            Table::Collections => {
                let old: CollectionRecord = crate::store::decode_record(table, &key, &value).unwrap();
                let new: CollectionRecord = store.get_record(table, &key).unwrap().unwrap();
                assert_eq!(new, CollectionRecord { incarnation: new.incarnation, key_slot: new.key_slot, ..old });
                assert_ne!(new.incarnation, 0);
            }
            Table::Faces => {
                let old: FaceRecord = crate::store::decode_record(table, &key, &value).unwrap();
                let [(facts, vector)] = faces(&*store).try_into().unwrap();
                assert_eq!((facts.id.clone(), vector.vector), (old.id, old.vector));
                assert_eq!((facts.subject, facts.labels), (old.subject, old.labels));
                assert_eq!((facts.create_time, facts.embedding_space), (old.create_time, old.embedding_space));
            }
            // Its answer names no face.
            Table::Requests => assert_eq!(store.scan(table, &Default::default(), 9).unwrap(), []),
            _ => assert_eq!(
                store.get(table, &key).unwrap().as_deref(),
                Some(value.as_slice()),
                "{table:?} {}",
                printable(&key)
            ),
        }
    }
    assert_eq!(examine(&store, |_, _| {}).findings, []);
}

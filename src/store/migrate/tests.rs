//! Tests of migrations, and of a store in every earlier format.
//!
//! `tests/fixtures/store_format_1.zip` has a store in format 1, as an earlier program left it on a disk. It was written
//! once, from [`records`], and is never written again. A later format adds a file of its own beside it.

use std::{io::Cursor, path::Path};

use super::*;
use crate::{
    proto::{
        store::{
            AliasRecord, CollectionRecord, FaceRecord, ModelRecord, RequestRecord, RunEventRecord, RunRecord,
            TensorRef, VersionRecord,
        },
        v1,
    },
    store::{
        Blobs, Digest, MemoryStore, SledSettings, SledStore, StoreBlobs, Write, examine, join_key, open, printable,
    },
};

const STEPS: &[Migration] = &[
    m0001_initial::MIGRATION,
    Migration {
        format: 2,
        name: "0002 doubles",
        writes: |store| {
            let old = store.get(Table::Models, b"x")?.unwrap_or_default();
            Ok(Batch { writes: vec![Write::Put(Table::Models, b"x".to_vec(), old.repeat(2))], ..Batch::default() })
        },
    },
];

/// A store's folder in format 1, as a zip archive.
const FORMAT_1: &[u8] = include_bytes!("../../../tests/fixtures/store_format_1.zip");

#[test]
fn a_half_import_is_no_store() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let write = Write::Put(Table::Faces, b"c\0f".to_vec(), b"v".to_vec());
    store.commit(Batch { writes: vec![write], ..Batch::default() }).unwrap();
    for refused in [migrate(&store).err(), format(&*store).err()] {
        assert!(refused.unwrap().to_string().contains("import again"));
    }
}

#[test]
fn pending_migrations_run_once_and_keep_the_stores_id() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    assert_eq!(run(&store, &STEPS[..1]).unwrap().applied.len(), 1);
    let write = Write::Put(Table::Models, b"x".to_vec(), b"ab".to_vec());
    store.commit(Batch { writes: vec![write], ..Batch::default() }).unwrap();
    let id =
        |store: &Arc<dyn Store>| store.get_record::<StoreRecord>(Table::Meta, STORE_KEY).unwrap().unwrap().store_id;
    let before = id(&store);
    assert_eq!(run(&store, STEPS).unwrap(), Migrated { from: 1, to: 2, applied: vec!["0002 doubles"] });
    assert_eq!(run(&store, STEPS).unwrap().applied, Vec::<&str>::new());
    assert_eq!(store.get(Table::Models, b"x").unwrap().unwrap(), b"abab");
    assert_eq!(id(&store), before);
    let error = run(&store, &STEPS[..1]).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 2, supported: 1 }), "{error}");
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
        assert_eq!(store.get(table, &key).unwrap().as_deref(), Some(value.as_slice()), "{table:?} {}", printable(&key));
    }
    assert_eq!(examine(&store, |_, _| {}).findings, []);
}

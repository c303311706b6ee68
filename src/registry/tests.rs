use std::{collections::HashSet, thread};

use prost::Message;

use super::*;
use crate::{
    nn::{Dtype, TensorData},
    store::{CachedBlobs, Digest, MemoryStore, StoreBlobs, Write},
};

fn new_version(model: &str, fill: u8) -> NewVersion {
    let tensor = |name: &str, fill: u8| TensorData {
        name: name.to_owned(),
        shape: vec![4],
        dtype: Dtype::F32,
        bytes: vec![fill; 16].into(),
    };
    let model = ModelId::parse("model", model).unwrap();
    let normalisation = Normalised { mean: [0.5; 3], std: [0.2; 3] };
    let reads = Reads::Photos { side_px: 64, min_side_px: 16, normalisation };
    let tensors = vec![tensor("shared", 0), tensor("own", fill)];
    NewVersion::new(model, v1::Architecture::Resnet18, reads, tensors, Origin::default())
}

fn registry() -> (Arc<MemoryStore>, Registry) {
    let store = Arc::new(MemoryStore::new());
    let blobs = Arc::new(StoreBlobs::new(Arc::clone(&store) as Arc<dyn Store>));
    (Arc::clone(&store), Registry::new(store, blobs))
}

fn none<T>(_: &T) -> Batch {
    Batch::default()
}

fn n_blobs(store: &MemoryStore) -> usize {
    store.scan(Table::Blobs, &Range::default(), usize::MAX).unwrap().len()
}

#[test]
fn versions_share_tensors_and_the_first_is_champion() {
    let (store, registry) = registry();
    let first = registry.register(new_version("age", 1), none).unwrap();
    let second = registry.register(new_version("age", 2), none).unwrap();
    assert_eq!((first.name.number, second.name.number), (1, 2));
    assert_eq!(n_blobs(&store), 3, "one shared, two own");
    let model = registry.get_model(&ModelId::parse("m", "age").unwrap()).unwrap();
    assert_eq!(model.aliases, BTreeMap::from([(AliasName::champion(), 1)]));
    assert_eq!(registry.load_tensors(&second).unwrap(), new_version("age", 2).tensors);
    assert_eq!(registry.get_version(&first.name).unwrap().describe(), first.describe());
    let numbers: Vec<_> = registry
        .list_versions(&ModelId::parse("m", "age").unwrap(), None, 9)
        .unwrap()
        .iter()
        .map(|(name, _)| name.number)
        .collect();
    assert_eq!(numbers, [2, 1]);
}

/// The store has lost tensors, and somebody has them still.
#[test]
fn lost_tensors_are_stored_again_but_no_others() {
    let (store, registry) = registry();
    let version = registry.register(new_version("age", 1), none).unwrap();
    assert!(!registry.lacks_tensors(&version).unwrap());
    for table in [Table::Blobs, Table::BlobChunks] {
        let rows = store.scan(table, &Range::default(), usize::MAX).unwrap();
        let writes = rows.into_iter().map(|(key, _)| Write::Delete(table, key)).collect();
        store.commit(Batch { writes, ..Batch::default() }).unwrap();
    }
    assert!(registry.lacks_tensors(&version).unwrap());
    registry.restore_tensors(&version, &new_version("age", 2).tensors).unwrap();
    assert!(registry.lacks_tensors(&version).unwrap(), "its own tensor is another");
    assert_eq!(n_blobs(&store), 1, "the shared one");
    registry.restore_tensors(&version, &new_version("age", 1).tensors).unwrap();
    assert!(!registry.lacks_tensors(&version).unwrap());
    assert_eq!(registry.load_tensors(&version).unwrap(), new_version("age", 1).tensors);
}

#[test]
fn concurrent_registers_get_distinct_numbers() {
    let (_, registry) = registry();
    let numbers: HashSet<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..8u8)
            .map(|i| {
                scope.spawn({
                    let registry = &registry;
                    move || registry.register(new_version("age", i), none).unwrap().name.number
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    assert_eq!(numbers, (1..=8).collect());
}

#[test]
fn one_of_racing_alias_moves_wins() {
    let (_, registry) = registry();
    for i in 1..=8 {
        registry.register(new_version("age", i), none).unwrap();
    }
    let model = ModelId::parse("m", "age").unwrap();
    let wins = thread::scope(|scope| {
        let workers: Vec<_> = (2..=8u64)
            .map(|n| {
                scope.spawn({
                    let (registry, model) = (&registry, &model);
                    move || registry.set_alias(model, &AliasName::champion(), Some(n), Some(Some(1)), none).is_ok()
                })
            })
            .collect();
        workers.into_iter().filter(|_| true).map(|w| w.join().unwrap()).filter(|won| *won).count()
    });
    assert_eq!(wins, 1);
    let moved = registry.set_alias(&model, &AliasName::champion(), Some(2), Some(None), none).unwrap_err();
    assert!(matches!(moved, RegistryError::AliasMoved { expected: None, found: Some(_), .. }), "{moved}");
    let absent = registry.set_alias(&model, &AliasName::champion(), Some(99), None, none).unwrap_err();
    assert!(matches!(absent, RegistryError::VersionNotFound { .. }), "{absent}");
}

#[test]
fn a_deleted_version_takes_only_its_own_tensors_and_its_number_is_not_reused() {
    let (store, registry) = registry();
    for i in 1..=2 {
        registry.register(new_version("age", i), none).unwrap();
    }
    let model = ModelId::parse("m", "age").unwrap();
    let champion = VersionName { model: model.clone(), number: 1 };
    assert!(matches!(registry.delete_version(&champion), Err(RegistryError::InUse { .. })));
    let second = VersionName { model: model.clone(), number: 2 };
    registry.delete_version(&second).unwrap();
    assert_eq!(n_blobs(&store), 2);
    assert!(matches!(registry.get_version(&second), Err(RegistryError::VersionNotFound { .. })));
    assert_eq!(registry.register(new_version("age", 3), none).unwrap().name.number, 3);
}

#[test]
fn a_damaged_tensor_or_manifest_refuses_the_version_by_name() {
    let (store, registry) = registry();
    let record = registry.register(new_version("age", 1), none).unwrap();
    let (key, mut chunk) = store.scan(Table::BlobChunks, &Range::default(), 1).unwrap().remove(0);
    chunk[6] ^= 1;
    store.commit(Batch { writes: vec![Write::Put(Table::BlobChunks, key, chunk)], ..Batch::default() }).unwrap();
    let error = registry.load_tensors(&record).unwrap_err().to_string();
    assert!(error.contains("models/age/versions/1") && error.contains("tensor "), "{error}");

    let altered =
        crate::proto::store::VersionRecord { data_fingerprint: "altered".to_owned(), ..record.record.clone() };
    let mut batch = Batch::default();
    batch.put_record(Table::Versions, &version_key(&record.name), &altered);
    store.commit(batch).unwrap();
    let error = registry.get_version(&record.name).unwrap_err();
    assert!(matches!(error, RegistryError::CorruptVersion { .. }), "{error}");
}

#[test]
fn a_field_of_a_newer_program_counts_and_is_no_damage() {
    let (store, registry) = registry();
    let version = registry.register(new_version("age", 1), none).unwrap();
    let key = version_key(&version.name);
    // The record of a newer program: it has a field 99, which its digest covers.
    let with_unknown = |text: &[u8], digest_over: &[u8]| {
        let unknown = |text: &[u8]| [&[0x9a, 0x06, u8::try_from(text.len()).unwrap()], text].concat();
        let bare = VersionRecord { digest: Vec::new(), ..version.record.clone() }.encode_to_vec();
        let digest = Digest::of(&[bare, unknown(digest_over)].concat()).as_bytes().to_vec();
        let known = VersionRecord { digest, ..version.record.clone() }.encode_to_vec();
        let payload = [known, unknown(text)].concat();
        let envelope = [vec![1], crc32fast::hash(&payload).to_be_bytes().to_vec(), payload].concat();
        store.commit(Batch { writes: vec![Write::Put(Table::Versions, key.clone(), envelope)], ..Batch::default() })
    };
    with_unknown(b"newer", b"newer").unwrap();
    assert_eq!(registry.get_version(&version.name).unwrap().heads, version.heads);
    with_unknown(b"other", b"newer").unwrap();
    let error = registry.get_version(&version.name).unwrap_err();
    assert!(matches!(error, RegistryError::CorruptVersion { .. }), "{error}");
}

#[test]
fn what_a_newer_program_means_is_refused_and_not_called_damage() {
    let (store, registry) = registry();
    let version = registry.register(new_version("age", 1), none).unwrap();
    let mut record = VersionRecord { architecture: 99, digest: Vec::new(), ..version.record.clone() };
    record.digest = Digest::of(&record.encode_to_vec()).as_bytes().to_vec();
    let mut batch = Batch::default();
    batch.put_record(Table::Versions, &version_key(&version.name), &record);
    store.commit(batch).unwrap();
    let error = registry.get_version(&version.name).unwrap_err();
    assert!(matches!(error, RegistryError::UnsupportedVersion { .. }), "{error}");
    assert_eq!(registry.describe_version(&version.name).unwrap().architecture, 99);
    assert_eq!(registry.list_versions(&version.name.model, None, 9).unwrap().len(), 1);
}

#[test]
fn the_second_load_of_a_version_reads_no_large_tensor_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::new());
    let blobs = CachedBlobs::open(dir.path().join("blobs"), StoreBlobs::new(Arc::clone(&store) as Arc<dyn Store>));
    let registry = Registry::new(Arc::clone(&store) as Arc<dyn Store>, Arc::new(blobs));
    let mut new = new_version("age", 1);
    new.tensors[1] = TensorData { shape: vec![1 << 18], bytes: vec![1; 1 << 20].into(), ..new.tensors[1].clone() };
    let record = registry.register(new.clone(), none).unwrap();
    assert_eq!(registry.load_tensors(&record).unwrap(), new.tensors);

    // Without its chunks the store cannot return it.
    let large = Digest::of(&new.tensors[1].bytes);
    let range = Range { prefix: large.as_bytes().to_vec(), ..Range::default() };
    let mut batch = Batch::default();
    for (key, _) in store.scan(Table::BlobChunks, &range, usize::MAX).unwrap() {
        batch.delete(Table::BlobChunks, &key);
    }
    assert_eq!(batch.writes.len(), 147);
    store.commit(batch).unwrap();
    let tensors = registry.load_tensors(&record).unwrap();
    assert!(tensors == new.tensors && tensors.iter().all(TensorData::is_intact));

    registry.set_alias(&new.model, &AliasName::champion(), None, None, none).unwrap();
    registry.delete_version(&record.name).unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0, "its file goes with it");
}

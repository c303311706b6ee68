use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    names::EmbeddingSpace,
    proto::store::{CollectionRecord, FaceFacts, FaceIdRecord, FaceVector},
    store::{
        Batch, CollectionKey, Entry, Keys, MemoryStore, Range, SlotKey, SlotKeys as _, Store, StoreError, StoreExt,
        Table, Unsealed, Write,
    },
};

pub(super) const DIMENSIONS: usize = 24;

pub(super) fn space() -> EmbeddingSpace {
    EmbeddingSpace::parse("embedding_space", "models/face/versions/1#embedding16").unwrap()
}

pub(super) fn id(text: &str) -> CollectionId {
    CollectionId::parse("id", text).unwrap()
}

pub(super) fn face(text: &str) -> FaceId {
    FaceId::parse("id", text).unwrap()
}

/// Limits so low that a few hundred faces make several segments and use graphs.
pub(super) fn small() -> SimilaritySettings {
    SimilaritySettings { exact_up_to: 10, seal_at: 64, ef_search: 64, ..SimilaritySettings::default() }
}

pub(super) fn open(store: &Arc<dyn Store>) -> SimilarityIndex {
    SimilarityIndex::open(Arc::clone(store), small()).unwrap()
}

fn with_collection() -> (Arc<dyn Store>, SimilarityIndex) {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let index = create(&store);
    (store, index)
}

/// Opens an empty store and creates the collection `people`.
pub(super) fn create(store: &Arc<dyn Store>) -> SimilarityIndex {
    let index = open(store);
    let new = NewCollection { id: id("people"), space: space(), dimensions: DIMENSIONS, display_name: String::new() };
    index.create_collection(new, |_| Batch::default()).unwrap();
    index
}

pub(super) fn enroll(index: &SimilarityIndex, name: &str, values: Vec<f32>) -> Result<(), SimilarityError> {
    let new = NewFace { id: Some(face(name)), subject: String::new(), labels: BTreeMap::new() };
    let embedding = Embedding::new("vector", values, DIMENSIONS)?;
    index.enroll(&id("people"), new, &embedding, &space(), |_, _| Batch::default()).map(drop)
}

pub(super) fn search(index: &SimilarityIndex, values: Vec<f32>, k: usize, exact: bool) -> Vec<String> {
    let target = Target::Vector(Embedding::new("vector", values, DIMENSIONS).unwrap());
    let found = index.search(&id("people"), &Query { target, k, min_score: None, exact }, &|| false).unwrap();
    assert!(found.matches.windows(2).all(|w| w[0].1 >= w[1].1), "best first");
    found.matches.into_iter().map(|(record, _)| record.id).collect()
}

/// Creates vectors around a few centres, like faces of people.
pub(super) fn clustered(rng: &mut ChaCha8Rng, n: usize) -> Vec<Vec<f32>> {
    let centres: Vec<Vec<f32>> =
        (0..20).map(|_| (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0)).collect()).collect();
    (0..n).map(|i| centres[i % 20].iter().map(|c| c + rng.random_range(-0.3..0.3)).collect()).collect()
}

#[test]
fn faces_that_come_and_go_under_one_id_are_as_stored_in_the_end() {
    let (store, index) = with_collection();
    std::thread::scope(|scope| {
        for worker in 0..4_u8 {
            let index = &index;
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(worker.into());
                for _ in 0..200 {
                    // Some calls are refused: the face exists already, or no longer.
                    if rng.random() {
                        let _ = enroll(index, "f", (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0)).collect());
                    } else {
                        let _ = index.delete_face(&id("people"), &face("f"));
                    }
                }
            });
        }
    });
    let target = Target::Vector(Embedding::new("vector", vec![1.0; DIMENSIONS], DIMENSIONS).unwrap());
    let found =
        index.search(&id("people"), &Query { target, k: 5, min_score: None, exact: true }, &|| false).unwrap().matches;
    let stored = index.list_faces(&id("people"), None, 5).unwrap();
    let found_facts: Vec<_> = found.iter().map(|(facts, _)| facts.clone()).collect();
    assert_eq!(found_facts, stored.iter().map(|(_, facts)| facts.clone()).collect::<Vec<_>>());
    if let ([(_, score)], [(number, _)]) = (found.as_slice(), stored.as_slice()) {
        let key = key_of(&*store);
        let face: FaceVector = unsealed(&*store, &key, Table::FaceVectors, *number);
        let vector = Embedding::from_bytes(&face.vector, DIMENSIONS).unwrap();
        let cosine = vector.values().iter().sum::<f32>() / (DIMENSIONS as f32).sqrt();
        assert!((score.value() - cosine).abs() < 1e-5, "the vector in memory is the stored one");
    }
    for table in [Table::Faces, Table::FaceVectors, Table::FaceIds] {
        assert_eq!(store.scan(table, &Range::default(), 9).unwrap().len(), stored.len(), "{table:?}");
    }
}

/// The key of the collection `people`.
pub(super) fn key_of(store: &dyn Store) -> CollectionKey {
    let record: CollectionRecord = store.get_record(Table::Collections, b"people").unwrap().unwrap();
    CollectionKey::of(store.keys(), &record).unwrap().unwrap()
}

pub(super) fn unsealed<M: prost::Message + Default>(
    store: &dyn Store,
    key: &CollectionKey,
    table: Table,
    number: u64,
) -> M {
    let row = key.row(number);
    let value = store.get(table, &row).unwrap().unwrap();
    match key.unseal_row(store.keys(), table, &row, &value).unwrap().1 {
        Unsealed::Whole(message) => message,
        Unsealed::Erased => panic!("erased"),
    }
}

/// The number of the face with this id.
pub(super) fn number_of(store: &dyn Store, name: &str) -> u64 {
    store.get_record::<FaceIdRecord>(Table::FaceIds, &key_of(store).id_row(name)).unwrap().unwrap().number
}

#[test]
fn the_graph_finds_what_the_exact_scan_finds() {
    let (_, index) = with_collection();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let vectors = clustered(&mut rng, 1500);
    for (i, vector) in vectors.iter().enumerate() {
        enroll(&index, &format!("f{i}"), vector.clone()).unwrap();
    }
    index.settle();
    let (mut found, mut wanted) = (0, 0);
    for query in clustered(&mut rng, 100) {
        let exact: BTreeSet<_> = search(&index, query.clone(), 10, true).into_iter().collect();
        found += search(&index, query, 10, false).iter().filter(|f| exact.contains(*f)).count();
        wanted += exact.len();
    }
    assert!(found * 100 >= wanted * 95, "recall@10 is {found} of {wanted}");
    for (i, vector) in vectors.iter().enumerate().step_by(37) {
        assert_eq!(search(&index, vector.clone(), 1, false), [format!("f{i}")], "each finds itself");
    }
}

#[test]
fn a_restart_finds_every_face_and_a_damaged_one_is_named() {
    let (store, index) = with_collection();
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(2), 200);
    for (i, vector) in vectors.iter().enumerate() {
        enroll(&index, &format!("f{i}"), vector.clone()).unwrap();
    }
    index.delete_face(&id("people"), &face("f7")).unwrap();
    drop(index);
    let index = open(&store);
    assert_eq!(index.get_collection(&id("people")).unwrap().1, 199);
    assert_eq!(search(&index, vectors[5].clone(), 1, true), ["f5"]);
    assert!(!search(&index, vectors[7].clone(), 1000, true).contains(&"f7".to_owned()));
    drop(index);
    // One vector is not finite, one row of a vector is damaged, one row of facts, and one row of an id.
    let key = key_of(&*store);
    let mut not_finite: FaceVector = unsealed(&*store, &key, Table::FaceVectors, number_of(&*store, "f11"));
    not_finite.vector[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let row = key.row(number_of(&*store, "f11"));
    let slot = key.unseal_row::<FaceVector>(
        store.keys(),
        Table::FaceVectors,
        &row,
        &store.get(Table::FaceVectors, &row).unwrap().unwrap(),
    );
    let slot = slot.unwrap().0;
    let slot_key = SlotKey { slot, key: store.keys().get(slot).unwrap().unwrap() };
    let sealed = key.face_key(number_of(&*store, "f11"), &slot_key).seal_row(Table::FaceVectors, &not_finite);
    let mut batch = Batch::default();
    batch.put(Table::FaceVectors, &row, sealed);
    batch.put(Table::FaceVectors, &key.row(number_of(&*store, "f9")), b"damaged".to_vec());
    batch.put(Table::Faces, &key.row(number_of(&*store, "f13")), b"damaged".to_vec());
    batch.put(Table::FaceIds, &key.id_row("f17"), b"damaged".to_vec());
    store.commit(batch).unwrap();
    let index = open(&store);
    assert_eq!(index.n_damaged(), 2);
    assert_eq!(search(&index, vectors[5].clone(), 1, true), ["f5"]);
    let expected: BTreeSet<_> = (0..200).filter(|i| ![7, 9, 11, 13].contains(i)).map(|i| format!("f{i}")).collect();
    assert_eq!(search(&index, vectors[9].clone(), 1000, true).into_iter().collect::<BTreeSet<_>>(), expected);
    assert_eq!(index.list_faces(&id("people"), None, 1000).unwrap().len(), 198, "f9 and f11 can be read, f13 cannot");
    assert_eq!(index.get_face(&id("people"), &face("f17")).unwrap().id, "f17", "it is found by its facts");
    // A damaged face can be deleted, and enrolled anew.
    for name in ["f9", "f11", "f13", "f17"] {
        index.delete_face(&id("people"), &face(name)).unwrap();
        enroll(&index, name, vectors[9].clone()).unwrap();
        assert!(search(&index, vectors[9].clone(), 9, true).contains(&name.to_owned()));
    }
}

/// Does something once, in the middle of a search: after the comparison, before the first record is read.
struct Interrupted {
    inner: MemoryStore,
    meanwhile: parking_lot::Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Store for Interrupted {
    fn keys(&self) -> &Keys {
        self.inner.keys()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let meanwhile = if table == Table::Faces { self.meanwhile.lock().take() } else { None };
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        self.inner.get(table, key)
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.inner.scan(table, range, limit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.inner.commit(batch)
    }
}

/// Regression: a person enrolled under the id of a deleted one got that one's score.
#[test]
fn a_score_belongs_to_the_record_beside_it() {
    let interrupted = Arc::new(Interrupted { inner: MemoryStore::new(), meanwhile: parking_lot::Mutex::default() });
    let store: Arc<dyn Store> = interrupted.clone();
    let index = Arc::new(create(&store));
    let (old, new) =
        (vec![1.0; DIMENSIONS], (0..DIMENSIONS).map(|i| if i == 0 { 1.0 } else { 0.0 }).collect::<Vec<_>>());
    enroll(&index, "f", old.clone()).unwrap();
    let of_other = Arc::clone(&index);
    let replacing = new.clone();
    *interrupted.meanwhile.lock() = Some(Box::new(move || {
        of_other.delete_face(&id("people"), &face("f")).unwrap();
        enroll(&of_other, "f", replacing).unwrap();
    }));
    assert_eq!(search(&index, old, 1, true), Vec::<String>::new(), "the face that was compared is gone");
    assert_eq!(search(&index, new, 1, true), ["f"]);
}

#[test]
fn a_subject_is_deleted_with_all_faces_and_nobody_else() {
    let (_, index) = with_collection();
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(6), 90);
    for (i, vector) in vectors.iter().enumerate() {
        let new = NewFace {
            id: Some(face(&format!("f{i}"))),
            subject: ["anna", "anna-maria", ""][i % 3].to_owned(),
            labels: BTreeMap::new(),
        };
        let embedding = Embedding::new("vector", vector.clone(), DIMENSIONS).unwrap();
        index.enroll(&id("people"), new, &embedding, &space(), |_, _| Batch::default()).unwrap();
    }
    assert_eq!(index.delete_subject(&id("people"), "anna").unwrap(), 30);
    assert_eq!(index.delete_subject(&id("people"), "anna").unwrap(), 0);
    let left = search(&index, vectors[0].clone(), 100, true);
    assert_eq!(left.len(), 60);
    assert!(left.iter().all(|name| name[1..].parse::<usize>().unwrap() % 3 != 0), "{left:?}");
    assert!(matches!(index.delete_subject(&id("none"), "anna"), Err(SimilarityError::CollectionNotFound { .. })));
}

/// Regression: equal photos beyond four were compared with every query.
#[test]
fn equal_faces_cost_a_search_nothing() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let copied = clustered(&mut rng, 1).remove(0);
    let vectors = clustered(&mut rng, 600).into_iter().chain(std::iter::repeat_n(copied.clone(), 600));
    let side_by_side = Arc::new(vectors::Vectors::new(DIMENSIONS));
    vectors.for_each(|v| side_by_side.push(Embedding::new("v", v, DIMENSIONS).unwrap().values()));
    let graph = graph::Graph::build(&side_by_side, &Default::default()).ok().unwrap();
    assert!(graph.stragglers().len() <= 6, "{} of 1,200 are compared with every query", graph.stragglers().len());
    let copied = Embedding::new("v", copied, DIMENSIONS).unwrap();
    let found: BTreeSet<_> = graph.nearest(copied.values(), 32).unwrap().into_iter().collect();
    assert!((600..1_200).all(|idx| found.contains(&idx)), "all copies are found at once");
}

/// Regression: a store that failed midway left faces, which a new collection of the same id then had.
#[test]
fn a_new_collection_is_empty() {
    let (store, index) = with_collection();
    enroll(&index, "old", vec![1.0; DIMENSIONS]).unwrap();
    let old = key_of(&*store);
    let left: Vec<_> =
        FACE_TABLES.iter().map(|table| (*table, store.scan(*table, &Range::default(), 9).unwrap())).collect();
    index.delete_collection(&id("people")).unwrap();
    index.settle();
    let rows = left.into_iter().flat_map(|(table, rows)| rows.into_iter().map(move |(key, value)| (table, key, value)));
    let writes = rows.map(|(table, key, value)| Write::Put(table, key, value)).collect();
    store.commit(Batch { writes, ..Batch::default() }).unwrap();
    let new = NewCollection { id: id("people"), space: space(), dimensions: DIMENSIONS, display_name: String::new() };
    index.create_collection(new, |_| Batch::default()).unwrap();
    assert_ne!(key_of(&*store).incarnation, old.incarnation);
    assert_eq!(index.list_faces(&id("people"), None, 9).unwrap(), []);
    enroll(&index, "old", vec![1.0; DIMENSIONS]).unwrap();
    drop(index);
    let index = open(&store);
    assert_eq!(index.get_collection(&id("people")).unwrap().1, 1);
    index.settle();
    assert_eq!(store.scan(Table::Faces, &Range::default(), 9).unwrap().len(), 1, "the old rows are removed");
    assert_eq!(search(&index, vec![1.0; DIMENSIONS], 9, true), ["old"], "and its key is still there");
}

const FACE_TABLES: [Table; 3] = [Table::Faces, Table::FaceVectors, Table::FaceIds];

/// Nobody can read the rows that a deleted face or a deleted collection has left.
#[test]
fn the_keys_of_what_is_deleted_are_gone() {
    let (store, index) = with_collection();
    for name in ["a", "b", "c"] {
        enroll(&index, name, vec![1.0; DIMENSIONS]).unwrap();
    }
    let key = key_of(&*store);
    let row = key.row(number_of(&*store, "a"));
    let facts = store.get(Table::Faces, &row).unwrap().unwrap();
    index.delete_face(&id("people"), &face("a")).unwrap();
    let read =
        |row: &[u8], value: &[u8]| key.unseal_row::<FaceFacts>(store.keys(), Table::Faces, row, value).unwrap().1;
    assert_eq!(read(&row, &facts), Unsealed::Erased);
    assert!(store.get(Table::Erasures, &row).unwrap().is_some(), "it is in the journal");
    let record: CollectionRecord = store.get_record(Table::Collections, b"people").unwrap().unwrap();
    index.delete_collection(&id("people")).unwrap();
    assert!(CollectionKey::of(store.keys(), &record).unwrap().is_none());
    index.settle();
    for table in FACE_TABLES {
        assert_eq!(store.scan(table, &Range::default(), 9).unwrap(), [], "{table:?}");
    }
}

/// A store from before a deletion, beside keys from after it, as after the restoration of a part of a folder.
#[test]
fn a_face_without_its_key_is_erased_and_not_damaged() {
    let (store, index) = with_collection();
    for name in ["a", "b"] {
        enroll(&index, name, vec![1.0; DIMENSIONS]).unwrap();
    }
    let rows: Vec<_> =
        FACE_TABLES.iter().map(|table| (*table, store.scan(*table, &Range::default(), 9).unwrap())).collect();
    index.delete_face(&id("people"), &face("a")).unwrap();
    drop(index);
    let rows = rows.into_iter().flat_map(|(table, rows)| rows.into_iter().map(move |(key, value)| (table, key, value)));
    let writes = rows.map(|(table, key, value)| Write::Put(table, key, value)).collect();
    store.commit(Batch { writes, ..Batch::default() }).unwrap();
    let index = open(&store);
    assert_eq!(index.n_damaged(), 0);
    assert_eq!(search(&index, vec![1.0; DIMENSIONS], 9, true), ["b"]);
    assert_eq!(store.scan(Table::FaceIds, &Range::default(), 9).unwrap().len(), 1);
    enroll(&index, "a", vec![1.0; DIMENSIONS]).unwrap();
}

#[test]
fn a_search_by_face_leaves_that_face_out() {
    let (_, index) = with_collection();
    for (i, vector) in clustered(&mut ChaCha8Rng::seed_from_u64(3), 40).into_iter().enumerate() {
        enroll(&index, &format!("f{i}"), vector).unwrap();
    }
    let query = Query { target: Target::Face(face("f3")), k: 5, min_score: Some(0.0), exact: false };
    let found = index.search(&id("people"), &query, &|| false).unwrap();
    let names: Vec<_> = found.matches.iter().map(|(record, _)| record.id.as_str()).collect();
    assert!(!names.contains(&"f3") && names.contains(&"f23"), "{names:?}");
}

#[test]
fn a_deleted_collection_is_gone_with_its_faces_even_after_a_crash_between() {
    let (store, index) = with_collection();
    enroll(&index, "f0", vec![1.0; DIMENSIONS]).unwrap();
    index.delete_collection(&id("people")).unwrap();
    assert!(matches!(enroll(&index, "f1", vec![1.0; DIMENSIONS]), Err(SimilarityError::CollectionNotFound { .. })));
    index.settle();
    assert_eq!(store.scan(Table::Faces, &Range::default(), 9).unwrap(), []);

    // The states after a crash: the collection's record is gone, or its key, and a face still exists.
    for is_record_gone in [true, false] {
        let (store, index) = with_collection();
        enroll(&index, "f0", vec![1.0; DIMENSIONS]).unwrap();
        drop(index);
        if is_record_gone {
            let gone = Write::Delete(Table::Collections, b"people".to_vec());
            store.commit(Batch { writes: vec![gone], ..Batch::default() }).unwrap();
        } else {
            store.keys().wipe([key_of(&*store).slot]).unwrap();
        }
        let index = open(&store);
        assert!(matches!(index.get_collection(&id("people")), Err(SimilarityError::CollectionNotFound { .. })));
        index.settle();
        assert_eq!(store.scan(Table::Faces, &Range::default(), 9).unwrap(), []);
    }
}

#[test]
fn enrolments_deletions_and_searches_at_once_lose_nothing() {
    let (_, index) = with_collection();
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let index = &index;
            scope.spawn(move || {
                let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(worker), 150);
                for (i, vector) in vectors.iter().enumerate() {
                    let name = format!("w{worker}-{i}");
                    enroll(index, &name, vector.clone()).unwrap();
                    assert!(search(index, vector.clone(), 3, true).contains(&name), "{name} is found at once");
                    if i % 3 == 0 {
                        index.delete_face(&id("people"), &face(&name)).unwrap();
                        assert!(!search(index, vector.clone(), 600, false).contains(&name), "{name} is gone at once");
                    }
                }
            });
        }
    });
    index.settle();
    assert_eq!(index.get_collection(&id("people")).unwrap().1, 400);
    assert_eq!(search(&index, vec![1.0; DIMENSIONS], 1000, true).len(), 400);
}

#[test]
fn what_is_wrong_is_said() {
    let (_, index) = with_collection();
    enroll(&index, "f0", vec![1.0; DIMENSIONS]).unwrap();
    assert!(matches!(enroll(&index, "f0", vec![1.0; DIMENSIONS]), Err(SimilarityError::AlreadyExists { .. })));
    let target = || Target::Vector(Embedding::new("v", vec![1.0; DIMENSIONS], DIMENSIONS).unwrap());
    for (k, min_score) in [(0, None), (1001, None), (1, Some(f32::NAN)), (1, Some(2.0))] {
        let query = Query { target: target(), k, min_score, exact: false };
        assert!(
            matches!(index.search(&id("people"), &query, &|| false), Err(SimilarityError::Invalid { .. })),
            "{k} {min_score:?}"
        );
    }
    let other = EmbeddingSpace::parse("embedding_space", "models/face/versions/2#embedding16").unwrap();
    let new = NewFace { id: None, subject: String::new(), labels: BTreeMap::new() };
    let embedding = Embedding::new("v", vec![1.0; DIMENSIONS], DIMENSIONS).unwrap();
    let error = index.enroll(&id("people"), new, &embedding, &other, |_, _| Batch::default()).unwrap_err();
    assert!(matches!(error, SimilarityError::SpaceMismatch { .. }), "{error}");
    assert_eq!(index.spaces(), [(id("people"), space())]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// For any order of enrolling, deleting and searching, the index answers like a plain list.
    #[test]
    fn the_index_is_a_list_that_forgets_nothing(
        steps in prop::collection::vec((0u8..3, 0u16..120), 1..400), seed in any::<u64>()
    ) {
        let (_, index) = with_collection();
        let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(seed), 120);
        let mut model: BTreeSet<u16> = BTreeSet::new();
        for (step, i) in steps {
            let vector = vectors[i as usize].clone();
            let name = format!("f{i}");
            match step {
                0 => prop_assert_eq!(enroll(&index, &name, vector).is_ok(), model.insert(i)),
                1 => prop_assert_eq!(index.delete_face(&id("people"), &face(&name)).is_ok(), model.remove(&i)),
                _ => {
                    let found: BTreeSet<String> = search(&index, vector.clone(), 1000, false).into_iter().collect();
                    let expected: BTreeSet<String> = model.iter().map(|i| format!("f{i}")).collect();
                    prop_assert_eq!(found, expected);
                    if model.contains(&i) {
                        prop_assert_eq!(search(&index, vector, 1, true), [name]);
                    }
                }
            }
        }
    }
}

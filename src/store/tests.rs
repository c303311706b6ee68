//! Tests of every store against a plain map, and of the allowed consequences of damage to sled's files.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::face_rows::for_tests::store_face;
use super::*;
use crate::proto::store::{CollectionRecord, FaceFacts, FaceIdRecord};

fn put(table: Table, key: &[u8], value: &[u8]) -> Batch {
    Batch { writes: vec![Write::Put(table, key.to_vec(), value.to_vec())], ..Batch::default() }
}

fn conformance(store: &dyn Store) {
    assert_eq!(store.get(Table::Faces, b"a").unwrap(), None);
    for key in [b"a".as_slice(), b"ab", b"b", b"\xff", b"\xff\xff", b""] {
        store.commit(put(Table::Faces, key, key)).unwrap();
    }
    store.commit(put(Table::Requests, b"a", b"of another table")).unwrap();
    let keys = |range: &Range, limit| -> Vec<Vec<u8>> {
        store.scan(Table::Faces, range, limit).unwrap().into_iter().map(|(k, _)| k).collect()
    };
    let range = |prefix: &[u8], after: Option<&[u8]>, descending| Range {
        prefix: prefix.to_vec(),
        after: after.map(<[u8]>::to_vec),
        descending,
    };
    assert_eq!(keys(&range(b"", None, false), 99).len(), 6);
    assert_eq!(keys(&range(b"", None, false), 2), [b"".as_slice(), b"a"]);
    assert_eq!(keys(&range(b"a", None, false), 99), [b"a".as_slice(), b"ab"]);
    assert_eq!(keys(&range(b"a", Some(b"a"), false), 99), [b"ab"]);
    assert_eq!(keys(&range(b"a", Some(b"b"), false), 99), Vec::<Vec<u8>>::new());
    assert_eq!(keys(&range(b"\xff", None, true), 99), [b"\xff\xff".as_slice(), b"\xff"]);
    assert_eq!(keys(&range(b"", Some(b"b"), true), 99), [b"ab".as_slice(), b"a", b""]);
    assert_eq!(keys(&range(b"a", Some(b"a"), true), 99), Vec::<Vec<u8>>::new());

    let mut refused = put(Table::Faces, b"c", b"c");
    refused.require_absent(Table::Faces, b"a");
    assert!(matches!(store.commit(refused), Err(StoreError::Conflict { table: Table::Faces, .. })));
    assert_eq!(store.get(Table::Faces, b"c").unwrap(), None, "all or nothing");
    let mut swap = put(Table::Faces, b"a", b"new");
    swap.require_equals(Table::Faces, b"a", b"a".to_vec()).delete(Table::Faces, b"b");
    store.commit(swap.clone()).unwrap();
    assert_eq!(store.get(Table::Faces, b"a").unwrap().unwrap(), b"new");
    assert_eq!(store.get(Table::Faces, b"b").unwrap(), None);
    assert!(store.commit(swap).is_err(), "the condition holds once");
    assert_eq!(store.get(Table::Requests, b"a").unwrap().unwrap(), b"of another table");
}

#[test]
fn both_stores_keep_the_promises() {
    conformance(&MemoryStore::new());
    let dir = tempfile::tempdir().unwrap();
    conformance(&SledStore::open(dir.path(), &SledSettings::default()).unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn sled_is_a_map_that_survives_reopening(
        steps in prop::collection::vec((0u8..4, 0u8..20, prop::option::of(prop::collection::vec(any::<u8>(), 0..30))), 1..60)
    ) {
        let tables = [Table::Faces, Table::Models, Table::BlobChunks, Table::Meta];
        let dir = tempfile::tempdir().unwrap();
        let mut model = BTreeMap::new();
        for part in steps.chunks(20) {
            let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
            for (table, key, value) in part {
                let table = tables[*table as usize];
                let mut batch = Batch::default();
                match value {
                    Some(value) => batch.writes.push(Write::Put(table, vec![*key], value.clone())),
                    None => batch.writes.push(Write::Delete(table, vec![*key])),
                }
                store.commit(batch).unwrap();
                match value {
                    Some(value) => model.insert((table, vec![*key]), value.clone()),
                    None => model.remove(&(table, vec![*key])),
                };
            }
        }
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        prop_assert!(store.verify_all().is_empty());
        for table in tables {
            let found = store.scan(table, &Range::default(), usize::MAX).unwrap();
            let expected: Vec<_> =
                model.iter().filter(|((t, _), _)| *t == table).map(|((_, k), v)| (k.clone(), v.clone())).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

#[test]
fn many_writers_share_flushes_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..16u8 {
            let store = &store;
            scope.spawn(move || {
                for i in 0..20u8 {
                    store.commit(put(Table::Faces, &[writer, i], &[i])).unwrap();
                }
            });
        }
    });
    drop(store);
    let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    assert_eq!(store.scan(Table::Faces, &Range::default(), usize::MAX).unwrap().len(), 320);
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    let error = SledStore::open(dir.path(), &SledSettings::default()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(store);
    SledStore::open(dir.path(), &SledSettings::default()).unwrap();
}

/// The length of the vectors of `people`.
const DIMENSIONS: u32 = 150;

/// Stores a face of `people`.
fn add_face(store: &dyn Store, people: &CollectionKey, number: u64, id: &str, vector: impl Iterator<Item = f32>) {
    let facts = FaceFacts { id: id.to_owned(), ..FaceFacts::default() };
    store_face(store, people, number, &facts, &vector.collect::<Vec<_>>());
}

#[test]
fn the_doctor_knows_a_vector_from_other_numbers_and_rows_that_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let store: Arc<dyn Store> = open(dir.path(), &SledSettings::default()).unwrap();
    let people: CollectionRecord = store.get_record(Table::Collections, b"people").unwrap().unwrap();
    let people = CollectionKey::of(store.keys(), &people).unwrap().unwrap();
    let unit = |n: u32| (0..n).map(|at| if at == 0 { 1.0 } else { 0.0 });
    add_face(&*store, &people, 1_001, "short", unit(DIMENSIONS - 1));
    add_face(&*store, &people, 1_002, "nan", unit(DIMENSIONS).map(|v| v * f32::NAN));
    add_face(&*store, &people, 1_003, "huge", unit(DIMENSIONS).map(|v| v * 1e30));
    add_face(&*store, &people, 1_004, "zero", unit(DIMENSIONS).map(|_| 0.0));
    let facts = FaceFacts { id: "space".to_owned(), embedding_space: "other".to_owned(), ..FaceFacts::default() };
    store_face(&*store, &people, 1_005, &facts, &unit(DIMENSIONS).collect::<Vec<_>>());
    for number in 1_006..1_010 {
        add_face(&*store, &people, number, &format!("lost-{number}"), unit(DIMENSIONS));
    }
    let mut batch = Batch::default();
    batch
        .delete(Table::FaceVectors, &people.row(1_006))
        .delete(Table::Faces, &people.row(1_007))
        .delete(Table::FaceIds, &people.id_row("lost-1008"))
        .put_record(Table::FaceIds, &people.id_row("lost-1009"), &FaceIdRecord { number: 1_005 })
        .put(Table::Faces, &face_rows::row_key(77, 1), b"of no collection".to_vec());
    store.commit(batch).unwrap();
    let cases = [
        ("collections/people/faces/short (", "bytes"),
        ("collections/people/faces/nan (", "length one"),
        ("collections/people/faces/huge (", "length one"),
        ("collections/people/faces/zero (", "length one"),
        ("collections/people/faces/space (", "of the space other"),
        ("collections/people/faces/lost-1006 (", "its vector is missing"),
        ("collections/people/faces/lost-1007 (", "its facts are missing"),
        ("collections/people/faces/lost-1008 (", "no id leads to it"),
        ("collections/people/faces/lost-1009 (", "its id leads to the face 1005"),
        ("collections/people/faces/lost-1009 (", "no id leads to it"),
        ("two ids lead to the face collections/people/faces/space", ""),
        ("1 rows of faces whose collection is missing", "77"),
    ];
    let findings = examine(&store, |_, _| {}).findings;
    assert_eq!(findings.len(), cases.len(), "{findings:?}");
    for (name, why) in cases {
        let is_named = |f: &Finding| f.what.contains(name) && f.what.contains(why);
        assert!(findings.iter().any(is_named), "{name}: {findings:?}");
    }
}

/// A store with records in every kind of place, and its contents.
fn filled(dir: &Path) -> Vec<Vec<Entry>> {
    let store: Arc<dyn Store> = open(dir, &SledSettings::default()).unwrap();
    let record = CollectionRecord {
        id: "people".to_owned(),
        dimensions: DIMENSIONS,
        incarnation: 1,
        ..CollectionRecord::default()
    };
    let people = face_rows::for_tests::store_collection(&*store, record);
    for i in 0..200u32 {
        let vector = (0..DIMENSIONS).map(|at| if at == i % DIMENSIONS { 1.0 } else { 0.0 });
        add_face(&*store, &people, u64::from(i) + 2, &i.to_string(), vector);
    }
    let blobs = StoreBlobs::new(Arc::clone(&store));
    for i in 0..4u8 {
        blobs
            .put(&(0..90_000u32).map(|j| (j.wrapping_mul(2_654_435_761) >> 24) as u8 ^ i).collect::<Vec<_>>())
            .unwrap();
    }
    contents(&*store).unwrap()
}

fn contents(store: &dyn Store) -> Result<Vec<Vec<Entry>>, StoreError> {
    Table::ALL.iter().map(|t| store.scan(*t, &Range::default(), usize::MAX)).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// Waits until the damage of a store is known.
pub(crate) fn wait_until_checked(store: &dyn Store) {
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !store.state().borrow().is_checked {
        assert!(std::time::Instant::now() < until, "it is still looked for");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target)
        } else {
            let _ = fs::copy(&path, target).unwrap();
        }
    }
}

/// Opens a damaged copy. The store must be refused with a reason, or be complete, or its doctor must report damage.
fn judge(dir: &Path, whole: &[Vec<Entry>], damage: &str) -> bool {
    let store = match open(dir, &SledSettings::default()) {
        Err(error) => {
            assert!(error.to_string().len() > 20, "{damage}: {error}");
            // A store that cannot be served can still be examined, or the error gives the reason.
            if let Ok(store) = SledStore::open_to_examine(dir, &SledSettings::default()) {
                let store: Arc<dyn Store> = Arc::new(store);
                let report = examine(&store, |_, _| {});
                assert!(!report.findings.is_empty(), "{damage}: refused ({error}), and the doctor finds nothing");
            }
            return true;
        }
        Ok(store) => store,
    };
    let report = examine(&store, |_, _| {});
    let found = contents(&*store);
    let intact = found.as_ref().is_ok_and(|found| found == whole);
    assert!(
        intact || !report.findings.is_empty(),
        "{damage}: records are missing and nothing reports it: {:?}",
        found.map(|f| f.iter().zip(whole).map(|(f, w)| (f.len(), w.len(), f == w)).collect::<Vec<_>>())
    );
    !report.findings.is_empty()
}

#[test]
fn damage_is_named_or_harmless_never_silent() {
    let original = tempfile::tempdir().unwrap();
    let whole = filled(original.path());
    let mut named = 0;
    let mut try_with = |damage: &str, inflict: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        inflict(dir.path());
        named += usize::from(judge(dir.path(), &whole, damage));
    };
    for file in files(original.path()) {
        let name = file.strip_prefix(original.path()).unwrap().to_owned();
        let length = fs::metadata(&file).unwrap().len() as usize;
        let is_log = name.ends_with("db/db");
        for i in 0..if is_log { 40 } else { 8 } {
            if length == 0 {
                continue;
            }
            let at = (i * 7919 + i * length / 41) % length;
            try_with(&format!("a byte flipped at {at} of {}", name.display()), &|dir| {
                let mut bytes = fs::read(dir.join(&name)).unwrap();
                bytes[at] ^= 0x5a;
                fs::write(dir.join(&name), bytes).unwrap();
            });
        }
        for keep in [0, length / 3, length * 9 / 10, length.saturating_sub(1)] {
            try_with(&format!("{} cut to {keep} bytes", name.display()), &|dir| {
                let bytes = fs::read(dir.join(&name)).unwrap();
                fs::write(dir.join(&name), &bytes[..keep]).unwrap();
            });
        }
        try_with(&format!("{} gone", name.display()), &|dir| fs::remove_file(dir.join(&name)).unwrap());
    }
    assert!(named >= 20, "only {named} damages were seen at all");
}

/// Leftovers of interrupted housekeeping: the records are complete, so the store opens and reports no damage.
#[test]
fn interrupted_housekeeping_is_no_damage() {
    let original = tempfile::tempdir().unwrap();
    let whole = filled(original.path());
    // Opened once more, to get a snapshot that is not empty.
    drop(SledStore::open(original.path(), &SledSettings::default()).unwrap());
    let db = Path::new("db");
    let snapshots = || {
        let names =
            fs::read_dir(original.path().join(db)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("snap.")).collect::<Vec<_>>()
    };
    let [snapshot] = snapshots().try_into().unwrap();
    let snapshot_bytes = fs::read(original.path().join(db).join(&snapshot)).unwrap();
    let conf_bytes = fs::read(original.path().join("db/conf")).unwrap();
    let mut cases: Vec<(String, String, Option<Vec<u8>>)> = Vec::new();
    for name in
        ["snap.FFFFFFFFFFFFFFFF.generating", "snap.FFFFFFFFFFFFFFFF", "snap.", "snap.copy", "snap.0.in___motion"]
    {
        cases.push((format!("{name}, empty"), name.to_owned(), Some(Vec::new())));
        cases.push((format!("{name}, zeros"), name.to_owned(), Some(vec![0; 100])));
        cases.push((
            format!("{name}, half of a snapshot"),
            name.to_owned(),
            Some(snapshot_bytes[..snapshot_bytes.len() / 2].to_vec()),
        ));
    }
    for suffix in [".generating", ".1", " (copy)", "~"] {
        cases.push((
            format!("the snapshot doubled as {suffix}"),
            format!("{snapshot}{suffix}"),
            Some(snapshot_bytes.clone()),
        ));
    }
    for (name, bytes) in [(snapshot.as_str(), &snapshot_bytes), ("conf", &conf_bytes)] {
        cases.push((format!("{name} gone"), name.to_owned(), None));
        for keep in [0, 4, 9, 12, bytes.len() / 2, bytes.len() - 1] {
            cases.push((format!("{name} cut to {keep} bytes"), name.to_owned(), Some(bytes[..keep].to_vec())));
        }
        cases.push((format!("{name} zeroed"), name.to_owned(), Some(vec![0; bytes.len()])));
        cases.push((format!("{name} twice in its file"), name.to_owned(), Some(bytes.repeat(2))));
    }
    cases.push(("a stray blob".to_owned(), "blobs/9999999999".to_owned(), Some(vec![1; 50])));
    cases.push(("a stray name among the blobs".to_owned(), "blobs/1.tmp".to_owned(), Some(Vec::new())));
    cases.push(("a doubled log".to_owned(), "db.1".to_owned(), Some(vec![1; 50])));
    for (what, name, bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        copy(original.path(), dir.path());
        let path = dir.path().join(db).join(name);
        match bytes {
            Some(bytes) => fs::write(path, bytes).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        // Twice: the remains of the first opening must not trouble the second.
        for _ in 0..2 {
            let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(contents(&store).unwrap() == whole, "{what}");
            let store: Arc<dyn Store> = Arc::new(store);
            assert_eq!(examine(&store, |_, _| {}).findings, [], "{what}");
        }
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["db", "extent", "keys", "lock", "sequence", "store.key", "tables"], "{what}");
    }
}

#[test]
fn every_table_is_written_verified_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    for table in Table::ALL {
        store.commit(put(table, b"k", b"v")).unwrap();
    }
    let mut exported = Vec::new();
    assert_eq!(export(&store, &mut exported, |_| {}).unwrap(), Table::ALL.len() as u64);
    drop(store);
    let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
    assert_eq!(store.verify_all().len(), 0);
    assert!(contents(&store).unwrap().iter().all(|rows| rows.len() == 1));
}

#[test]
fn pages_are_a_scan_in_parts() {
    let store = MemoryStore::new();
    let keys: Vec<_> = (0..600_u16).map(u16::to_be_bytes).collect();
    for key in keys {
        store.commit(put(Table::Faces, &key, &key)).unwrap();
    }
    for (prefix, descending) in [(vec![], false), (vec![], true), (vec![1], false), (vec![1], true), (vec![9], false)] {
        let range = Range { prefix, descending, ..Range::default() };
        let pages: Vec<_> = store.pages(Table::Faces, range.clone()).map(Result::unwrap).collect();
        assert!(pages.iter().all(|page| (1..=256).contains(&page.len())), "{range:?}");
        assert_eq!(pages.concat(), store.scan(Table::Faces, &range, usize::MAX).unwrap(), "{range:?}");
    }
    let first = store.records::<crate::proto::store::FaceRecord>(Table::Faces, Range::default()).map(|r| r.is_err());
    assert_eq!(first.collect::<Vec<_>>(), [true; 600], "each damaged record is reported");
}

/// A store that fails at its second scan.
struct FailsLater(MemoryStore, std::sync::atomic::AtomicUsize);

impl Store for FailsLater {
    fn keys(&self) -> &Keys {
        self.0.keys()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(table, key)
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        match self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => self.0.scan(table, range, limit),
            _ => Err(StoreError::NotEmpty),
        }
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.0.commit(batch)
    }
}

#[test]
fn pages_end_at_the_first_error() {
    let store = FailsLater(MemoryStore::new(), Default::default());
    store.commit(put(Table::Faces, b"k", b"v")).unwrap();
    let pages: Vec<_> = store.pages(Table::Faces, Range::default()).map(|page| page.is_ok()).collect();
    assert_eq!(pages, [true, false]);
}

/// Regression: an emptied sequence hid that acknowledged writes were lost.
#[test]
fn an_empty_sequence_beside_an_engine_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &SledSettings::default()).unwrap());
    fs::write(dir.path().join("sequence"), b"").unwrap();
    let error = open(dir.path(), &SledSettings::default()).err().unwrap().to_string();
    assert!(error.contains("sequence is empty"), "{error}");
}

#[test]
fn a_newer_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &SledSettings::default()).unwrap();
    let mut batch = Batch::default();
    let newer = crate::proto::store::StoreRecord {
        format: newest_format() + 1,
        store_id: "x".to_owned(),
        ..Default::default()
    };
    batch.put_record(Table::Meta, identity::STORE_KEY, &newer);
    store.commit(batch).unwrap();
    drop(store);
    let error = open(dir.path(), &SledSettings::default()).err().unwrap();
    assert!(matches!(error, StoreError::NewerFormat { .. }), "{error}");
}

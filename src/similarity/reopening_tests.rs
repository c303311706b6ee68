//! Collections that come back: from segment files, from the store's rows, and from what a damaged engine leaves.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    tests::{clustered, create, enroll, face, id, key_of, number_of, open, search},
    *,
};
use crate::{
    proto::store::ErasureRecord,
    store::{
        Batch, Range, SledSettings, SledStore, SlotKeys as _, Store, StoreError, Table, Write, examine, incarnation_of,
    },
};

fn open_store(dir: &Path) -> Arc<dyn Store> {
    crate::store::open(dir, &SledSettings::default()).unwrap()
}

fn names(index: &SimilarityIndex) -> BTreeSet<String> {
    index.list_faces(&id("people"), None, usize::MAX).unwrap().into_iter().map(|(_, facts)| facts.id).collect()
}

fn found(index: &SimilarityIndex) -> BTreeSet<String> {
    search(index, vec![1.0; super::tests::DIMENSIONS], 1_000, true).into_iter().collect()
}

/// The segment files of a store's folder.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let all = walkdir::WalkDir::new(dir.join("segments")).sort_by_file_name().into_iter();
    all.filter_map(|entry| entry.ok().filter(|e| e.file_type().is_file())).map(|e| e.into_path()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// Whatever is enrolled, deleted and opened again: memory has what the store has.
    #[test]
    fn a_collection_comes_back_as_it_was(steps in prop::collection::vec((0u8..8, 0u16..60), 20..90)) {
        let dir = tempfile::tempdir().unwrap();
        let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(3), 60);
        let mut store = open_store(dir.path());
        let mut index = create(&store);
        let mut model = BTreeSet::new();
        for (step, i) in steps {
            let name = format!("f{i}");
            match step {
                0..4 => drop(enroll(&index, &name, vectors[i as usize].clone()).map(|()| model.insert(name))),
                4..6 => drop(index.delete_face(&id("people"), &face(&name)).map(|()| model.remove(&name))),
                _ => {
                    drop(index);
                    drop(store);
                    store = open_store(dir.path());
                    index = open(&store);
                    prop_assert_eq!(index.n_damaged(), 0);
                    prop_assert_eq!(names(&index), model.clone());
                    prop_assert_eq!(found(&index), model.clone());
                }
            }
        }
        prop_assert_eq!(examine(&store, |_, _| {}).findings, []);
    }
}

/// Opens a store with `n` faces, closed in order, so that all of them are in segment files.
fn closed(dir: &Path, vectors: &[Vec<f32>]) {
    let store = open_store(dir);
    let index = create(&store);
    for (i, vector) in vectors.iter().enumerate() {
        enroll(&index, &format!("f{i}"), vector.clone()).unwrap();
    }
}

#[test]
fn a_start_reads_segment_files_and_does_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(5), 200);
    {
        let store = open_store(dir.path());
        let index = create(&store);
        for (i, vector) in vectors.iter().enumerate() {
            enroll_with_label(&index, &format!("f{i}"), vector.clone());
        }
    }
    let [file] = &files(dir.path())[..] else { panic!("{:?}", files(dir.path())) };
    let whole = fs::read(file).unwrap();
    assert!(!whole.windows(4).any(|part| part == b"f150"), "it names nobody");
    {
        // The rows of vectors are spoilt below: only the files have them.
        let store = open_store(dir.path());
        let rows = store.scan(Table::FaceVectors, &Range::default(), 999).unwrap();
        let writes = rows.into_iter().map(|(key, _)| Write::Put(Table::FaceVectors, key, vec![1])).collect();
        store.commit(Batch { writes, ..Batch::default() }).unwrap();
        let index = open(&store);
        assert_eq!((index.n_damaged(), found(&index).len()), (0, 200));
        assert_eq!(search(&index, vectors[7].clone(), 1, true), ["f7"]);
    }
    // Damaged blocks are not trusted, and then the spoilt rows count; the others are.
    assert!(whole.len() > 4096 + 65_536, "there are two blocks");
    let spoilt = [
        (whole[..4096 + 100].to_vec(), 200),
        ([&[9; 50], &whole[50..]].concat(), 200),
        ([&whole[..whole.len() - 65_000], &vec![0; 65_000][..]].concat(), 200 - faces_of_first_block(&whole)),
    ];
    for (bytes, n_damaged) in spoilt {
        fs::write(file, &bytes).unwrap();
        let store = open_store(dir.path());
        assert!(store.verify_all().iter().any(|error| error.to_string().contains("segment file")));
        let index = open(&store);
        assert_eq!((index.n_damaged(), found(&index).len()), (n_damaged, 200 - n_damaged));
        drop(index);
        fs::remove_dir_all(dir.path().join("segments")).unwrap();
        fs::create_dir_all(file.parent().unwrap()).unwrap();
    }
    fs::write(file, &whole).unwrap();
    assert_eq!(found(&open(&open_store(dir.path()))).len(), 200);
}

/// Enrols a face with a label so long that 200 faces take two blocks.
fn enroll_with_label(index: &SimilarityIndex, name: &str, values: Vec<f32>) {
    let labels = [("note".to_owned(), "x".repeat(250))].into();
    let new = NewFace { id: Some(face(name)), subject: String::new(), labels };
    let embedding = Embedding::new("vector", values, super::tests::DIMENSIONS).unwrap();
    index.enroll(&id("people"), new, &embedding, &super::tests::space(), |_, _| Batch::default()).unwrap();
}

/// Rows were removed without their keys, as an older copy of the engine's folder would: files bring nobody back.
#[test]
fn files_with_more_faces_than_the_store_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(12), 50);
    closed(dir.path(), &vectors);
    {
        let store = open_store(dir.path());
        let key = key_of(&*store);
        let mut batch = Batch::default();
        for name in ["f3", "f4"] {
            let row = key.row(number_of(&*store, name));
            batch.delete(Table::Faces, &row).delete(Table::FaceVectors, &row).delete(Table::FaceIds, &key.id_row(name));
        }
        store.commit(batch).unwrap();
    }
    let store = open_store(dir.path());
    let index = open(&store);
    assert_eq!(found(&index).len(), 48);
}

/// A face is written into a segment file soon, without any other event.
#[test]
fn a_single_face_gets_into_a_segment_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(dir.path());
    let index = create(&store);
    enroll(&index, "f0", vec![1.0; super::tests::DIMENSIONS]).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while files(dir.path()).is_empty() {
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    index.delete_face(&id("people"), &face("f0")).unwrap();
    assert_eq!(index.n_damaged(), 0);
}

/// The number of faces in the first block of a segment file with 200.
fn faces_of_first_block(file: &[u8]) -> usize {
    use prost::Message;
    let length = u32::from_be_bytes(file[4100..4104].try_into().unwrap()) as usize;
    crate::proto::store::SegmentBlock::decode(&file[4104..4104 + length]).unwrap().faces.len()
}

/// A deletion that was interrupted after its commit is finished: the face's row in a file revives nobody.
#[test]
fn an_erased_face_does_not_come_back_from_a_segment_file() {
    let dir = tempfile::tempdir().unwrap();
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(6), 100);
    closed(dir.path(), &vectors);
    {
        let store = open_store(dir.path());
        let (key, number) = (key_of(&*store), number_of(&*store, "f7"));
        let row = key.row(number);
        let mut batch = Batch::default();
        batch
            .delete(Table::Faces, &row)
            .delete(Table::FaceVectors, &row)
            .delete(Table::FaceIds, &key.id_row("f7"))
            .put_record(Table::Erasures, &row, &ErasureRecord::default());
        store.commit(batch).unwrap();
    }
    let live = |index: &SimilarityIndex| (found(index).contains("f7"), found(index).len());
    for _ in 0..2 {
        let store = open_store(dir.path());
        let index = open(&store);
        assert_eq!((live(&index), index.n_damaged()), ((false, 99), 0));
        assert_eq!(examine(&store, |_, _| {}).findings, []);
    }
    // Its slot, which the start has wiped, is another face's now.
    let store = open_store(dir.path());
    let index = open(&store);
    enroll(&index, "f7", vectors[8].clone()).unwrap();
    drop((index, store));
    let index = open(&open_store(dir.path()));
    assert_eq!((live(&index), index.n_damaged()), ((true, 100), 0));
    assert!(search(&index, vectors[8].clone(), 2, true).contains(&"f7".to_owned()));
}

#[test]
fn files_of_a_deleted_collection_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), &clustered(&mut ChaCha8Rng::seed_from_u64(7), 30));
    let store = open_store(dir.path());
    let index = open(&store);
    assert_eq!(files(dir.path()).len(), 1);
    index.delete_collection(&id("people")).unwrap();
    index.settle();
    assert_eq!(files(dir.path()).len(), 0);
    let left = store.scan(Table::FaceVectors, &Range::default(), 9).unwrap();
    assert_eq!(left.iter().map(|(key, _)| incarnation_of(key)).collect::<Vec<_>>(), []);
}

/// Turns a sector into what a disk may return when it has lost it.
fn lost(rng: &mut ChaCha8Rng, sector: &mut [u8]) {
    if rng.random() { sector.fill(0) } else { rng.fill(sector) }
}

/// Sectors of the engine's file are lost. It opens: with every face, or it says how many are lost, and invents none.
#[test]
fn lost_sectors_are_counted_and_nothing_is_invented() {
    const SECTOR: usize = 4096;
    const N_FACES: usize = 3_000;
    /// Enrolled last, when the process is killed, so that no file has them.
    const N_LAST: usize = 40;
    let (original, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let vectors = clustered(&mut ChaCha8Rng::seed_from_u64(8), N_FACES + N_LAST);
    closed(original.path(), &vectors[..N_FACES]);
    {
        let store = open_store(original.path());
        let index = open(&store);
        for (i, vector) in vectors.iter().enumerate().skip(N_FACES) {
            enroll(&index, &format!("f{i}"), vector.clone()).unwrap();
        }
        for i in 0..20 {
            index.delete_face(&id("people"), &face(&format!("f{i}"))).unwrap();
        }
        crate::store::tests::copy(original.path(), killed.path());
    }
    let n_whole = N_FACES + N_LAST - 20;
    let log = |dir: &Path| dir.join("db").join("db");
    let n_sectors = fs::metadata(log(killed.path())).unwrap().len() as usize / SECTOR;
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let (mut n_opened_whole, mut n_rebuilt) = (0, 0);
    for round in 0..n_lost_sectors() {
        let dir = tempfile::tempdir().unwrap();
        crate::store::tests::copy(killed.path(), dir.path());
        let mut bytes = fs::read(log(dir.path())).unwrap();
        // One, or several at once.
        let sectors: Vec<usize> = (0..[1, 1, 3][round % 3]).map(|_| rng.random_range(0..n_sectors)).collect();
        for at in &sectors {
            lost(&mut rng, &mut bytes[at * SECTOR..(at + 1) * SECTOR]);
        }
        fs::write(log(dir.path()), bytes).unwrap();
        // Twice: what was said stays known.
        for opening in 0..2 {
            let store = crate::store::open(dir.path(), &SledSettings::default());
            let store = store.unwrap_or_else(|error| panic!("sectors {sectors:?}: {error}"));
            crate::store::tests::wait_until_checked(&*store);
            let damage = store.state().borrow().damage.to_vec();
            let index = open(&store);
            let (_, n_loaded) = index.get_collection(&id("people")).unwrap();
            let listed = names(&index);
            for name in &listed {
                let i: usize = name[1..].parse().unwrap();
                assert!((20..N_FACES + N_LAST).contains(&i), "{name} was erased, or never was");
            }
            let n_in_files = if opening == 0 { N_FACES - 20 } else { N_FACES - 25 };
            assert!(n_loaded >= n_in_files, "sectors {sectors:?}: {n_loaded}: those in segment files are there");
            for i in (20..N_FACES).step_by(61).filter(|i| opening == 0 || listed.contains(&format!("f{i}"))) {
                assert_eq!(search(&index, vectors[i].clone(), 1, true), [format!("f{i}")], "sectors {sectors:?}");
            }
            assert_eq!(listed.len(), n_loaded, "sectors {sectors:?}: whoever can be found is listed");
            if n_loaded == n_whole && damage.is_empty() {
                n_opened_whole += 1;
                continue;
            }
            assert!(
                !damage.is_empty() || index.n_damaged() > 0,
                "sectors {sectors:?}: {n_loaded}, and nothing is said"
            );
            let notice = damage.iter().any(|(_, what)| what.contains(&format!(" of {n_whole} faces")));
            assert!(
                !notice || opening > 0 || damage[0].1.contains(&format!("{n_loaded} of {n_whole} faces")),
                "{damage:?}"
            );
            n_rebuilt += usize::from(notice);
            if !notice {
                eprintln!("sectors {sectors:?}: {n_loaded} vectors, {} facts, {damage:?}", listed.len());
            }
            // Whoever can be found can be deleted, unless the engine cannot change the page of the rows.
            for i in (100..N_FACES).step_by(701).filter(|i| listed.contains(&format!("f{i}"))) {
                match index.delete_face(&id("people"), &face(&format!("f{i}"))) {
                    Ok(()) => assert_ne!(search(&index, vectors[i].clone(), 1, true), [format!("f{i}")]),
                    Err(SimilarityError::Store(StoreError::Corrupt { .. } | StoreError::WritesFail { .. })) => {}
                    Err(error) => panic!("sectors {sectors:?}: {error}"),
                }
            }
            // It takes writes, and a face that is lost can be enrolled again.
            let name = format!("f{}", N_FACES + 1);
            if !listed.contains(&name) {
                enroll(&index, &name, vectors[N_FACES + 1].clone()).unwrap();
                index.delete_face(&id("people"), &face(&name)).unwrap();
            }
            assert!(!examine(&store, |_, _| {}).findings.is_empty());
        }
    }
    eprintln!("of {} openings {n_opened_whole} whole, {n_rebuilt} built again", 2 * n_lost_sectors());
}

/// A few in every run of the tests, more with `VISAGE_LOST_SECTORS=200`.
fn n_lost_sectors() -> usize {
    std::env::var("VISAGE_LOST_SECTORS").map_or(12, |text| text.parse().expect("VISAGE_LOST_SECTORS is a number"))
}

/// The engine is not built again while its log is cut short.
#[test]
fn a_store_that_is_incomplete_is_not_built_again() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), &clustered(&mut ChaCha8Rng::seed_from_u64(11), 300));
    let log = dir.path().join("db").join("db");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() / 2]).unwrap();
    let refused = crate::store::open(dir.path(), &SledSettings::default()).map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
    assert!(!dir.path().join("recovered").exists());
    fs::write(&log, &whole).unwrap();
    let store = open_store(dir.path());
    assert!(store.keys().get(0).unwrap().is_some());
    assert_eq!(names(&open(&store)).len(), 300);
}

/// An engine that fails to open may cut its log. That takes away no recovery, whoever opened it first.
#[test]
fn a_failed_opening_leaves_a_recovery_possible() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path(), &clustered(&mut ChaCha8Rng::seed_from_u64(13), 300));
    let log = dir.path().join("db").join("db");
    fs::write(&log, vec![0; fs::metadata(&log).unwrap().len() as usize]).unwrap();
    let examined = SledStore::open_to_examine(dir.path(), &SledSettings::default());
    assert!(matches!(examined.map(drop), Err(StoreError::Corrupt { .. })));
    // No room for a second engine.
    let full = SledSettings { reserve_bytes: 1 << 60, ..SledSettings::default() };
    let refused = crate::store::open(dir.path(), &full).map(drop).unwrap_err();
    assert!(matches!(refused, StoreError::NoRoom { .. }), "{refused}");
    let store = open_store(dir.path());
    assert_eq!(names(&open(&store)).len(), 300);
    drop(store);
    // A second loss, before the first is dealt with.
    fs::write(&log, vec![0; fs::metadata(&log).unwrap().len() as usize]).unwrap();
    let refused = crate::store::open(dir.path(), &SledSettings::default()).map(drop).unwrap_err();
    assert!(refused.to_string().contains("recovered"), "{refused}");
    fs::remove_file(dir.path().join("recovered")).unwrap();
    assert_eq!(names(&open(&open_store(dir.path()))).len(), 300);
}

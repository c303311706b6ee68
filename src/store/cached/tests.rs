use std::{
    io::Write,
    path::Path,
    sync::{Arc, Mutex as StdMutex},
};

use super::*;
use crate::store::{Batch, Entry, Keys, MemoryStore, Range, Store, StoreBlobs, Table};

/// A store that counts the reads of chunks.
#[derive(Default)]
struct Counting {
    store: MemoryStore,
    n_reads: AtomicUsize,
}

impl Counting {
    fn n_reads(&self) -> usize {
        self.n_reads.load(Ordering::Relaxed)
    }
}

impl Store for Counting {
    fn keys(&self) -> &Keys {
        self.store.keys()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(table, key)
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.n_reads.fetch_add(usize::from(table == Table::BlobChunks), Ordering::Relaxed);
        self.store.scan(table, range, limit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.store.commit(batch)
    }
}

/// The log's output.
#[derive(Clone, Default)]
struct Log(Arc<StdMutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn of(work: impl FnOnce()) -> String {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, work);
        let bytes = log.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }
}

fn cached(dir: &Path) -> (Arc<Counting>, CachedBlobs<StoreBlobs>) {
    let store = Arc::new(Counting::default());
    let blobs = StoreBlobs::new(Arc::clone(&store) as Arc<dyn Store>);
    (store, CachedBlobs::open(dir.join("cache").join("blobs"), blobs))
}

fn large(fill: u8) -> Vec<u8> {
    vec![fill; MIN_BYTES]
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_large_blob_is_read_from_the_store_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, blobs) = cached(dir.path());
    let digest = blobs.put(&large(1)).unwrap();
    let small = blobs.put(&large(1)[1..]).unwrap();
    for _ in 0..3 {
        assert_eq!(blobs.get(&digest).unwrap(), large(1));
    }
    assert_eq!(store.n_reads(), 1);
    for _ in 0..3 {
        assert_eq!(blobs.get(&small).unwrap(), large(1)[1..]);
    }
    assert_eq!(store.n_reads(), 4, "a small one has no file");
    assert_eq!(names(&blobs.dir), [digest.to_string()]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&blobs.dir), mode(&blobs.path(&digest))), (0o700, 0o400));
    assert!(blobs.get(&Digest::of(b"unknown")).is_err());
    // The next start finds the file.
    let again = CachedBlobs::open(blobs.dir.clone(), blobs.blobs.clone());
    assert_eq!(again.get(&digest).unwrap(), large(1));
    assert_eq!(store.n_reads(), 4);
}

#[test]
fn a_damaged_or_missing_file_is_named_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, blobs) = cached(dir.path());
    let digest = blobs.put(&large(1)).unwrap();
    let path = blobs.path(&digest);
    blobs.get(&digest).unwrap();
    let whole = fs::read(&path).unwrap();
    let flipped = [&whole[..99], &[whole[99] ^ 1], &whole[100..]].concat();
    let other = blobs.put(&large(2)).unwrap();
    blobs.get(&other).unwrap();
    let others = fs::read(blobs.path(&other)).unwrap();
    let cut = &whole[..whole.len() - 1];
    for (n, damaged) in
        [Some(&flipped[..]), Some(&others), Some(cut), Some(&whole[..9]), Some(b""), None].into_iter().enumerate()
    {
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = damaged {
            fs::write(&path, bytes).unwrap();
        }
        let log = Log::of(|| assert_eq!(blobs.get(&digest).unwrap(), large(1)));
        assert!(log.contains("WARN") && log.contains(&path.display().to_string()), "{n}: {log}");
        assert_eq!((store.n_reads(), fs::read(&path).unwrap() == whole), (n + 3, true));
        assert_eq!(Log::of(|| assert_eq!(blobs.get(&digest).unwrap(), large(1))), "");
    }
}

#[test]
fn a_file_cut_while_it_is_mapped_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let (_, blobs) = cached(dir.path());
    let digest = blobs.put(&large(1)).unwrap();
    for n_left in [0, 1, 5000, MIN_BYTES as u64] {
        let bytes = blobs.get(&digest).unwrap();
        assert!(mapped::is_intact(&bytes));
        fs::set_permissions(blobs.path(&digest), Permissions::from_mode(0o600)).unwrap();
        File::options().write(true).open(blobs.path(&digest)).unwrap().set_len(n_left).unwrap();
        let _ = Digest::of(&bytes);
        assert!(!mapped::is_intact(&bytes));
        assert_eq!(blobs.get(&digest).unwrap(), large(1), "read while the damaged one is still mapped");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_said_once_and_the_store_serves() {
    let dir = tempfile::tempdir().unwrap();
    let in_the_way = dir.path().join("cache");
    fs::write(&in_the_way, b"a file").unwrap();
    let log = Log::of(|| {
        let (store, blobs) = cached(dir.path());
        let digest = blobs.put(&large(1)).unwrap();
        for _ in 0..3 {
            assert_eq!(blobs.get(&digest).unwrap(), large(1));
        }
        assert_eq!(store.n_reads(), 3);
        blobs.sweep(&HashSet::from([digest])).unwrap();
        fs::remove_file(&in_the_way).unwrap();
        let before = store.n_reads();
        for _ in 0..3 {
            assert_eq!(blobs.get(&digest).unwrap(), large(1));
        }
        assert_eq!(store.n_reads() - before, 1, "once the folder can be made, files are");
    });
    assert_eq!(log.matches("no files can be made in the cache folder").count(), 1, "{log}");
}

#[test]
fn a_sweep_takes_the_files_of_what_is_gone_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (_, blobs) = cached(dir.path());
    let digests: Vec<_> = (0..3).map(|fill| blobs.put(&large(fill)).unwrap()).collect();
    for digest in &digests {
        blobs.get(digest).unwrap();
    }
    let unfinished = blobs.dir.join(format!("{UNFINISHED_PREFIX}abc"));
    fs::write(&unfinished, b"half").unwrap();
    fs::write(blobs.dir.join("of somebody else"), b"").unwrap();
    let mapped = blobs.get(&digests[0]).unwrap();
    let report = blobs.sweep(&HashSet::from([digests[1]])).unwrap();
    assert_eq!(report.n_blobs, 2);
    assert!(mapped == large(0) && mapped::is_intact(&mapped), "whoever reads it goes on");
    assert!(unfinished.exists(), "it may be in the making");
    assert_eq!(names(&blobs.dir).len(), 3);
    let _again = CachedBlobs::open(blobs.dir.clone(), blobs.blobs.clone());
    assert_eq!(names(&blobs.dir), [digests[1].to_string(), "of somebody else".to_owned()]);
}

//! Simulated power cuts: what a store's folder may hold after one, and whether the store opens with everything that was
//! acknowledged.
//!
//! In the test program only, this module takes the place of the C library's functions that change files. While a folder
//! is recorded, it notes each write, change of a name and sync in it. A cut at any place of the record leaves what was
//! synced before, and of the rest any part: of written data any pages, of a folder's changes any number of the first.

#![cfg(target_os = "linux")]

use std::{
    collections::{BTreeMap, HashSet},
    ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void},
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    slice,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::{faults, *};
use crate::store::{SlotKey, SlotKeys, StoreExt, Write, examine, sealing::Key};

/// The unit in which written data reaches the disk.
const PAGE: usize = 4096;

/// A file or folder: its inode, and how many had this inode before it.
type Id = (u64, u64);

/// A change in the recorded folder.
#[derive(Debug)]
enum Step {
    /// Bytes at a place of a file.
    Write(Id, usize, Vec<u8>),
    /// A file's new length.
    Length(Id, usize),
    /// In this folder, a new name of a file or folder; it may replace its old name.
    Name { dir: Id, path: PathBuf, id: Id, is_dir: bool, replaces: Option<PathBuf> },
    /// In this folder, a name that is gone.
    Gone { dir: Id, path: PathBuf },
    /// Everything that was done to this file or folder before this step is on the disk.
    Sync(Id, usize),
    /// So many batches are acknowledged.
    Acknowledged(usize),
}

#[derive(Default)]
struct Record {
    dir: PathBuf,
    steps: Vec<Step>,
    /// Files and folders made so far, by inode.
    n_made: BTreeMap<u64, u64>,
}

impl Record {
    fn id(&self, inode: u64) -> Id {
        (inode, self.n_made.get(&inode).copied().unwrap_or(0))
    }

    fn id_of(&self, path: &Path) -> Option<Id> {
        fs::symlink_metadata(path).ok().map(|found| self.id(found.ino()))
    }

    fn id_of_fd(&self, fd: c_int) -> Option<Id> {
        let link = PathBuf::from(format!("/proc/self/fd/{fd}"));
        let path = fs::read_link(&link).ok()?;
        let found = fs::metadata(link).ok()?;
        path.starts_with(&self.dir).then(|| self.id(found.ino()))
    }

    fn add_name(&mut self, path: &Path, replaces: Option<PathBuf>) {
        let Some(found) = path.starts_with(&self.dir).then(|| fs::symlink_metadata(path).ok()).flatten() else {
            return;
        };
        if replaces.is_none() {
            *self.n_made.entry(found.ino()).or_default() += 1;
        }
        let (id, is_dir) = (self.id(found.ino()), found.is_dir());
        if let Some(dir) = path.parent().and_then(|dir| self.id_of(dir)) {
            self.steps.push(Step::Name { dir, path: path.to_owned(), id, is_dir, replaces });
        }
    }
}

static RECORD: Mutex<Option<Record>> = Mutex::new(None);

/// Notes something if a folder is recorded; keeps the thread's `errno`.
fn note(noted: impl FnOnce(&mut Record)) {
    if let Some(record) = &mut *RECORD.lock() {
        let errno = io::Error::last_os_error();
        noted(record);
        // SAFETY: the C library returns a valid pointer to the thread's `errno`.
        unsafe { *libc::__errno_location() = errno.raw_os_error().unwrap_or(0) };
    }
}

/// # Safety
/// `path` is a C string.
unsafe fn path_of(path: *const c_char) -> PathBuf {
    // SAFETY: the caller's promise.
    OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()).into()
}

/// Notes what `pwrite64` has written, which `durable` defines.
pub(super) fn note_write(fd: c_int, at: usize, written: &[u8]) {
    note(|record| {
        if let Some(id) = record.id_of_fd(fd) {
            record.steps.push(Step::Write(id, at, written.to_vec()));
        }
    });
}

/// # Safety
/// As of the C library's function, and so for all below.
#[unsafe(no_mangle)]
unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, n_bytes: usize) -> isize {
    let n_bytes = match faults::of_fd(fd) {
        Some(faults::Fault::Short) => n_bytes.div_ceil(2),
        Some(fault) => return faults::errno(fault) as isize,
        None => n_bytes,
    };
    // SAFETY: the arguments are passed on.
    let done = unsafe { libc::syscall(libc::SYS_write, fd, bytes, n_bytes) } as isize;
    if done > 0 {
        // SAFETY: the system has just read so many bytes there.
        let written = unsafe { slice::from_raw_parts(bytes.cast::<u8>(), done as usize) };
        note(|record| {
            if let Some(id) = record.id_of_fd(fd) {
                // SAFETY: a system call without pointers.
                let end = unsafe { libc::lseek64(fd, 0, libc::SEEK_CUR) } as usize;
                record.steps.push(Step::Write(id, end - written.len(), written.to_vec()));
            }
        });
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ftruncate64(fd: c_int, n_bytes: i64) -> c_int {
    if let Some(fault @ faults::Fault::Error(_)) = faults::of_fd(fd) {
        return faults::errno(fault);
    }
    // SAFETY: the arguments are passed on.
    let done = unsafe { libc::syscall(libc::SYS_ftruncate, fd, n_bytes) } as c_int;
    note(|record| {
        if let Some(id) = record.id_of_fd(fd).filter(|_| done == 0) {
            record.steps.push(Step::Length(id, n_bytes as usize));
        }
    });
    done
}

fn sync(fd: c_int, call: libc::c_long) -> c_int {
    if let Some(fault @ faults::Fault::Error(_)) = faults::of_fd(fd) {
        return faults::errno(fault);
    }
    let mut n_before = 0;
    note(|record| n_before = record.steps.len());
    // SAFETY: a system call without pointers.
    let done = unsafe { libc::syscall(call, fd) } as c_int;
    note(|record| {
        if let Some(id) = record.id_of_fd(fd).filter(|_| done == 0) {
            record.steps.push(Step::Sync(id, n_before));
        }
    });
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fsync)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    sync(fd, libc::SYS_fdatasync)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { path_of(path) };
    if flags & libc::O_CREAT != 0
        && let Some(fault @ faults::Fault::Error(_)) = faults::of_path(&name)
    {
        return faults::errno(fault);
    }
    let is_new = fs::symlink_metadata(&name).is_err();
    // SAFETY: the arguments are passed on.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) } as c_int;
    if fd >= 0 {
        note(|record| match record.id_of_fd(fd) {
            Some(_) if is_new => record.add_name(&name, None),
            Some(id) if flags & libc::O_TRUNC != 0 => record.steps.push(Step::Length(id, 0)),
            _ => {}
        });
    }
    fd
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mkdir(path: *const c_char, mode: c_uint) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(fault @ faults::Fault::Error(_)) = faults::of_path(&unsafe { path_of(path) }) {
        return faults::errno(fault);
    }
    // SAFETY: the arguments are passed on.
    let done = unsafe { libc::syscall(libc::SYS_mkdirat, libc::AT_FDCWD, path, mode) } as c_int;
    if done == 0 {
        // SAFETY: the caller's promise.
        let name = unsafe { path_of(path) };
        note(|record| record.add_name(&name, None));
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(fault @ faults::Fault::Error(_)) = faults::of_path(&unsafe { path_of(to) }) {
        return faults::errno(fault);
    }
    // SAFETY: the arguments are passed on.
    let done = unsafe { libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0) } as c_int;
    if done == 0 {
        // SAFETY: the caller's promise.
        let (from, to) = unsafe { (path_of(from), path_of(to)) };
        note(|record| record.add_name(&to, Some(from)));
    }
    done
}

#[unsafe(no_mangle)]
unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    if let Some(fault @ faults::Fault::Error(_)) = faults::of_path(&unsafe { path_of(path) }) {
        return faults::errno(fault);
    }
    // SAFETY: the arguments are passed on.
    let done = unsafe { libc::syscall(libc::SYS_unlinkat, libc::AT_FDCWD, path, 0) } as c_int;
    if done == 0 {
        // SAFETY: the caller's promise.
        let path = unsafe { path_of(path) };
        note(|record| {
            if let Some(dir) = path.starts_with(&record.dir).then(|| record.id_of(path.parent()?)).flatten() {
                record.steps.push(Step::Gone { dir, path });
            }
        });
    }
    done
}

/// Makes in `to` what a cut after these steps may leave of the folder `from`.
fn leave(steps: &[Step], from: (&Path, Id), to: &Path, rng: &mut ChaCha8Rng) {
    let mut synced: BTreeMap<Id, usize> = BTreeMap::new();
    for step in steps {
        if let Step::Sync(id, n_before) = step {
            let until = synced.entry(*id).or_default();
            *until = n_before.max(until).to_owned();
        }
    }
    let is_synced = |id: &Id, at: usize| synced.get(id).is_some_and(|until| at < *until);
    // Some disks write at once, some late.
    let share = *[0.0, 0.1, 0.5, 0.9, 1.0].choose(rng).unwrap();
    let mut changes: BTreeMap<Id, Vec<(usize, &Step)>> = BTreeMap::new();
    let mut data: BTreeMap<Id, Vec<u8>> = BTreeMap::new();
    for (at, step) in steps.iter().enumerate() {
        match step {
            Step::Name { dir, .. } | Step::Gone { dir, .. } => changes.entry(*dir).or_default().push((at, step)),
            Step::Length(id, n_bytes) if is_synced(id, at) || rng.random_bool(share) => {
                data.entry(*id).or_default().resize(*n_bytes, 0);
            }
            Step::Write(id, offset, bytes) => {
                let file = data.entry(*id).or_default();
                let mut start = *offset;
                while start < offset + bytes.len() {
                    let end = (start / PAGE + 1) * PAGE;
                    let end = end.min(offset + bytes.len());
                    if is_synced(id, at) || rng.random_bool(share) {
                        file.resize(file.len().max(end), 0);
                        file[start..end].copy_from_slice(&bytes[start - offset..end - offset]);
                    }
                    start = end;
                }
            }
            _ => {}
        }
    }
    let (root, root_id) = from;
    let mut names: BTreeMap<&Path, (Id, bool)> = BTreeMap::new();
    let mut dirs = vec![root_id];
    while let Some(dir) = dirs.pop() {
        let of_dir = changes.remove(&dir).unwrap_or_default();
        let n_synced = of_dir.iter().filter(|(at, _)| is_synced(&dir, *at)).count();
        let n_left = if share == 1.0 { of_dir.len() } else { rng.random_range(n_synced..=of_dir.len()) };
        for (_, step) in &of_dir[..n_left] {
            match step {
                Step::Name { path, id, is_dir, replaces, .. } => {
                    if let Some(old) = replaces {
                        names.remove(old.as_path());
                    }
                    names.insert(path, (*id, *is_dir));
                    if *is_dir {
                        dirs.push(*id);
                    }
                }
                Step::Gone { path, .. } => drop(names.remove(path.as_path())),
                _ => {}
            }
        }
    }
    // A folder comes before what is in it.
    for (path, (id, is_dir)) in names {
        let path = to.join(path.strip_prefix(root).unwrap());
        if is_dir {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::write(path, data.get(&id).map_or(&[][..], Vec::as_slice)).unwrap();
        }
    }
}

/// The contents of the table of faces after each batch. A value begins with the slot of its key, and a part of an HMAC
/// that only this key makes.
type History = Vec<BTreeMap<Vec<u8>, Vec<u8>>>;

pub(super) fn slot_of(value: &[u8]) -> u64 {
    u64::from_be_bytes(*value.first_chunk().unwrap())
}

fn proof(key: &Key) -> [u8; 8] {
    *key.mac("proof", b"").first_chunk().unwrap()
}

/// Returns the beginning of a value with this key.
pub(super) fn value_begin(made: &SlotKey) -> Vec<u8> {
    [made.slot.to_be_bytes(), proof(&made.key)].concat()
}

/// Returns true if the key of a value is in its slot. A slot is used again after it was wiped.
pub(super) fn has_key(store: &dyn Store, value: &[u8]) -> bool {
    store.keys().get(slot_of(value)).is_ok_and(|key| key.is_some_and(|key| proof(&key) == value[8..16]))
}

/// Writes batches of all sizes into a store that is closed and opened between. Each row has a key, which is wiped after
/// the row is deleted or replaced.
fn write_history(dir: &Path, rng: &mut ChaCha8Rng) -> History {
    let mut history = vec![BTreeMap::new()];
    for _ in 0..3 {
        let store = crate::store::open(dir, &SledSettings::default()).unwrap();
        for _ in 0..40 {
            let mut rows = history.last().unwrap().clone();
            let (mut batch, mut unneeded) = (Batch::default(), Vec::new());
            // The largest fill pages beyond what sled keeps in its log, so that they become files of their own.
            let n_bytes = *[20, 600, 30_000].choose(rng).unwrap();
            for _ in 0..rng.random_range(1..12) {
                let key = format!("{:03}", rng.random_range(0..150)).into_bytes();
                let old = if rng.random_bool(0.3) {
                    batch.delete(Table::Faces, &key);
                    rows.remove(&key)
                } else {
                    let made = store.keys().take().unwrap();
                    let mut value = value_begin(&made);
                    value.extend((0..n_bytes).map(|_| rng.random::<u8>()));
                    batch.writes.push(Write::Put(Table::Faces, key.clone(), value.clone()));
                    rows.insert(key, value)
                };
                unneeded.extend(old.map(|old| slot_of(&old)));
            }
            history.push(rows);
            store.commit(batch).unwrap();
            store.keys().wipe(unneeded).unwrap();
            let n_acknowledged = history.len() - 1;
            note(|record| record.steps.push(Step::Acknowledged(n_acknowledged)));
        }
    }
    history
}

/// The number of cuts: a few in every run of the tests, many with `VISAGE_POWER_CUTS=200`.
fn n_cuts() -> usize {
    std::env::var("VISAGE_POWER_CUTS").map_or(20, |text| text.parse().expect("VISAGE_POWER_CUTS is a number"))
}

#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(root.path()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    *RECORD.lock() = Some(Record { dir: dir.clone(), ..Record::default() });
    let history = write_history(&dir, &mut rng);
    let record = RECORD.lock().take().unwrap();
    let root_id = record.id_of(&dir).unwrap();
    let count = |wanted: fn(&Step) -> bool| record.steps.iter().filter(|step| wanted(step)).count();
    let n_blobs = count(|step| matches!(step, Step::Name { path, .. } if path.parent().unwrap().ends_with("blobs")));
    assert!(n_blobs > 0, "the engine wrote no large values");
    assert!(count(|step| matches!(step, Step::Sync(..))) > 2 * history.len(), "there were fewer syncs than batches");
    for cut in 0..n_cuts() {
        let mut rng = ChaCha8Rng::seed_from_u64(cut as u64);
        let n_steps = rng.random_range(0..=record.steps.len());
        let steps = &record.steps[..n_steps];
        let acknowledged = |step: &Step| if let Step::Acknowledged(n) = step { Some(*n) } else { None };
        let n_acknowledged = steps.iter().rev().find_map(acknowledged).unwrap_or(0);
        let left = tempfile::tempdir().unwrap();
        leave(steps, (&dir, root_id), left.path(), &mut rng);
        let what = format!("cut {cut} after {n_steps} steps, {n_acknowledged} batches acknowledged");
        let store = crate::store::open(left.path(), &SledSettings::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        let found: BTreeMap<_, _> =
            store.scan(Table::Faces, &Range::default(), usize::MAX).unwrap().into_iter().collect();
        let candidates = &history[n_acknowledged..(n_acknowledged + 2).min(history.len())];
        assert!(candidates.contains(&found), "{what}: {} rows", found.len());
        assert!(found.values().all(|value| has_key(&*store, value)), "{what}: a key is lost");
        // Every key of a row whose deletion was acknowledged is gone.
        let kept: HashSet<_> = candidates.iter().flat_map(BTreeMap::values).map(|value| &value[..16]).collect();
        let deleted = history[..n_acknowledged].iter().flat_map(BTreeMap::values).map(|value| &value[..16]);
        for value in deleted.collect::<HashSet<_>>().difference(&kept) {
            assert!(!has_key(&*store, value), "{what}: the key of a deleted row is there");
        }
        assert_eq!(store.verify_all().len(), 0, "{what}");
        assert!(store.get_record::<crate::proto::store::StoreRecord>(Table::Meta, b"store").unwrap().is_some());
        let report = examine(&store, |_, _| {});
        // The rows are no faces.
        let others = report.findings.iter().filter(|finding| !finding.what.starts_with("a key of Faces"));
        assert_eq!(others.count(), 0, "{what}: {:?}", report.findings.len());
    }
}

//! Faults of the disk at each place where a store writes: a failed call, a full disk, a short write. What was acknowledged
//! must stay, what was refused must not be there, and writes must be taken again without a restart.
//!
//! The test program's own C functions, see `power_cuts`, ask here whether they should fail.

#![cfg(target_os = "linux")]

use std::{
    collections::BTreeMap,
    ffi::c_int,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::*;
use crate::{
    proto::store::ErasureRecord,
    store::{SlotKeys, row_key},
};

/// The effect of a fault on a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// It fails with this error.
    Error(c_int),
    /// It writes only a part.
    Short,
}

struct Armed {
    dir: PathBuf,
    fault: Fault,
    /// Calls that do their work first.
    n_before: usize,
    /// Calls that meet the fault then.
    n_faults: usize,
    /// Calls so far.
    n_calls: usize,
}

static ARMED: Mutex<Option<Armed>> = Mutex::new(None);

/// Returns the fault of a call that changes the file or folder at this path, if it should meet one.
pub(super) fn of_path(path: &Path) -> Option<Fault> {
    let mut armed = ARMED.lock();
    let armed = armed.as_mut().filter(|armed| path.starts_with(&armed.dir))?;
    armed.n_calls += 1;
    let at = armed.n_calls - 1;
    (armed.n_before..armed.n_before + armed.n_faults).contains(&at).then_some(armed.fault)
}

/// As [`of_path`], of an open file.
pub(super) fn of_fd(fd: c_int) -> Option<Fault> {
    if ARMED.lock().is_none() {
        return None;
    }
    of_path(&fs::read_link(format!("/proc/self/fd/{fd}")).ok()?)
}

/// Sets the thread's `errno` for a fault that is an error.
pub(super) fn errno(fault: Fault) -> c_int {
    let error = if let Fault::Error(error) = fault { error } else { libc::EIO };
    // SAFETY: the C library returns a valid pointer to the thread's `errno`.
    unsafe { *libc::__errno_location() = error };
    -1
}

fn arm(dir: &Path, fault: Fault, n_before: usize, n_faults: usize) {
    *ARMED.lock() = Some(Armed { dir: dir.to_owned(), fault, n_before, n_faults, n_calls: 0 });
}

fn disarm() -> usize {
    ARMED.lock().take().map_or(0, |armed| armed.n_calls)
}

/// Rows as they were acknowledged: value and slot, by number.
type Rows = BTreeMap<u64, (Vec<u8>, u64)>;

/// Adds and deletes rows with keys, as faces have them; returns what was acknowledged.
fn work(store: &SledStore, rows: &mut Rows, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let Ok(made) = store.keys().take() else { continue };
        let value = vec![number as u8; if number % 5 == 0 { 30_000 } else { 600 }];
        let mut batch = Batch::default();
        batch.put(Table::Faces, &row_key(1, number), value.clone());
        match store.commit(batch) {
            Ok(()) => drop(rows.insert(number, (value, made.slot))),
            Err(error) => {
                assert!(error.is_refusal(), "{error}");
                store.keys().discard(made.slot);
            }
        }
        if number % 3 == 0
            && let Some(old) = rows.keys().next().copied()
        {
            let row = row_key(1, old);
            let mut batch = Batch::default();
            batch.delete(Table::Faces, &row).put_record(Table::Erasures, &row, &ErasureRecord::default());
            if store.commit(batch).is_ok() {
                // If this fails, the key is wiped with the next ones.
                let wiped = store.keys().wipe(rows.remove(&old).map(|(_, slot)| slot));
                assert!(wiped.is_ok() || wiped.is_err_and(|error| error.is_refusal()));
            }
        }
    }
}

fn check(store: &SledStore, rows: &Rows, what: &str) {
    let found: BTreeMap<_, _> = store.scan(Table::Faces, &Range::default(), usize::MAX).unwrap().into_iter().collect();
    let expected: BTreeMap<_, _> =
        rows.iter().map(|(number, (value, _))| (row_key(1, *number), value.clone())).collect();
    assert!(found == expected, "{what}: {} rows, not {}", found.len(), expected.len());
    for (number, (_, slot)) in rows {
        let key = store.keys().get(*slot).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(key.is_some(), "{what}: the key of {number} is gone");
    }
    let errors = store.verify_all();
    assert!(errors.is_empty(), "{what}: {errors:?}");
}

/// Some places in every run of the tests, every one with `VISAGE_FAULTS=1`.
fn step(n_places: usize) -> usize {
    let every = std::env::var("VISAGE_FAULTS").map_or((n_places / 8).max(1), |text| text.parse().unwrap());
    every.max(1)
}

#[test]
fn a_fault_at_any_write_loses_nothing_and_needs_no_restart() {
    let begin = |dir: &Path| {
        let store = SledStore::open(dir, &SledSettings::default()).unwrap();
        let mut rows = Rows::new();
        work(&store, &mut rows, 1..10);
        (store, rows)
    };
    let n_places = {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let (store, mut rows) = begin(&dir);
        arm(&dir, Fault::Short, usize::MAX / 2, 0);
        work(&store, &mut rows, 10..22);
        disarm()
    };
    assert!(n_places > 60, "{n_places} places");
    let faults = [
        (Fault::Error(libc::EIO), 1),
        (Fault::Error(libc::ENOSPC), 1),
        (Fault::Error(libc::EIO), 6),
        (Fault::Short, 1),
    ];
    for (i, (fault, n_faults)) in faults.into_iter().enumerate() {
        for n_before in (i..n_places).step_by(step(n_places)) {
            let what = format!("{fault:?} {n_faults} times after {n_before} of {n_places} calls");
            let dir = tempfile::tempdir().unwrap();
            let dir = fs::canonicalize(dir.path()).unwrap();
            let (store, mut rows) = begin(&dir);
            arm(&dir, fault, n_before, n_faults);
            work(&store, &mut rows, 10..22);
            // The disk works again, the process goes on.
            disarm();
            let until = Instant::now() + Duration::from_secs(60);
            loop {
                let before = rows.len();
                work(&store, &mut rows, 100..101);
                if rows.len() > before {
                    break;
                }
                assert!(Instant::now() < until, "{what}: writes are still refused");
                thread::sleep(Duration::from_millis(20));
            }
            store.keys().wipe([]).unwrap();
            check(&store, &rows, &what);
            drop(store);
            let store = SledStore::open(&dir, &SledSettings::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            check(&store, &rows, &format!("{what}, opened again"));
        }
    }
}

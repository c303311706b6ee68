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
use crate::{proto::store::ErasureRecord, store::row_key};

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

/// What was acknowledged. A value begins with the slot of its key, see `power_cuts`.
#[derive(Default)]
struct Acknowledged {
    /// By number.
    rows: BTreeMap<u64, Vec<u8>>,
    /// The values of deleted rows.
    deleted: Vec<Vec<u8>>,
}

/// Adds and deletes rows with keys, as faces have them, and notes what was acknowledged.
fn work(store: &SledStore, noted: &mut Acknowledged, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let Ok(made) = store.keys().take() else { continue };
        let mut value = power_cuts::value_begin(&made);
        value.resize(if number % 5 == 0 { 30_000 } else { 600 }, number as u8);
        let mut batch = Batch::default();
        batch.put(Table::Faces, &row_key(1, number), value.clone());
        match store.commit(batch) {
            Ok(()) => drop(noted.rows.insert(number, value)),
            Err(error) => {
                assert!(error.is_refusal(), "{error}");
                store.keys().discard(made.slot);
            }
        }
        if number % 3 == 0
            && let Some(old) = noted.rows.keys().next().copied()
        {
            let row = row_key(1, old);
            let mut batch = Batch::default();
            batch.delete(Table::Faces, &row).put_record(Table::Erasures, &row, &ErasureRecord::default());
            if store.commit(batch).is_ok() {
                noted.deleted.extend(noted.rows.remove(&old));
                // If this fails, the key is wiped with the next ones.
                let wiped = store.keys().wipe(noted.deleted.last().map(|value| power_cuts::slot_of(value)));
                assert!(wiped.is_ok() || wiped.is_err_and(|error| error.is_refusal()));
            }
        }
    }
}

fn check(store: &SledStore, Acknowledged { rows, deleted }: &Acknowledged, what: &str) {
    let found: BTreeMap<_, _> = store.scan(Table::Faces, &Range::default(), usize::MAX).unwrap().into_iter().collect();
    let expected: BTreeMap<_, _> = rows.iter().map(|(number, value)| (row_key(1, *number), value.clone())).collect();
    assert!(found == expected, "{what}: {} rows, not {}", found.len(), expected.len());
    for (number, value) in rows {
        assert!(power_cuts::has_key(store, value), "{what}: the key of {number} is gone");
    }
    assert!(
        deleted.iter().all(|value| !power_cuts::has_key(store, value)),
        "{what}: the key of a deleted row is there"
    );
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
        let mut noted = Acknowledged::default();
        work(&store, &mut noted, 1..10);
        (store, noted)
    };
    let n_places = {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let (store, mut noted) = begin(&dir);
        arm(&dir, Fault::Short, usize::MAX / 2, 0);
        work(&store, &mut noted, 10..22);
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
            let (store, mut noted) = begin(&dir);
            arm(&dir, fault, n_before, n_faults);
            work(&store, &mut noted, 10..22);
            // The disk works again, the process goes on.
            disarm();
            let until = Instant::now() + Duration::from_secs(60);
            loop {
                let before = noted.rows.len();
                work(&store, &mut noted, 100..101);
                if noted.rows.len() > before {
                    break;
                }
                assert!(Instant::now() < until, "{what}: writes are still refused");
                thread::sleep(Duration::from_millis(20));
            }
            store.keys().wipe([]).unwrap();
            check(&store, &noted, &what);
            drop(store);
            let store = SledStore::open(&dir, &SledSettings::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            check(&store, &noted, &format!("{what}, opened again"));
        }
    }
}

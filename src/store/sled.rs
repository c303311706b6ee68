//! A server's store: sled behind the [`Store`] trait.
//!
//! One thread commits: it takes the waiting batches, checks conditions, applies each batch atomically, flushes once for
//! all, and acknowledges them. sled is not trusted to notice damage: it truncates a damaged log, and panics on a
//! damaged page. So every call is guarded against panics, every batch updates a [`Tally`], and a [`Sidecar`] records
//! the last acknowledged batch. Damage ends in [`StoreError::Corrupt`], never in a silently smaller store.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs, io,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Batch, Condition, Entry, Range, Store, StoreError, StoreExt, Table, Write,
    leftovers::{LOG_FILE, Leftovers},
    printable,
    sidecar::Sidecar,
    table::Verified,
    tally::{TableTally, Tally},
};
use crate::error::panic_message;

/// Batches that may wait for the committing thread; further callers block.
const QUEUE: usize = 1024;

/// The maximum number of batches per flush.
const GROUP: usize = 256;

/// How long to wait for the engine's own lock, which its threads may hold for a moment after closing. Other processes
/// are excluded by the sidecar's lock, without waiting.
const ENGINE_LOCK_WAIT: Duration = Duration::from_secs(5);

/// sled's folder in the store's.
const ENGINE_DIR: &str = "db";

/// The sidecar in the store's folder.
const SIDECAR_FILE: &str = "sequence";

/// The prefix of folders in which an opening is tried.
const TRIAL_PREFIX: &str = "trial-";

/// The tally's key; no table has this number.
const TALLY_KEY: &[u8] = &[u8::MAX];

thread_local! {
    /// Set while sled runs. The panic hook then stays silent, because the panic becomes an error that names its place.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if this thread's panic is caught and becomes an error; the panic hook checks this before it prints.
#[must_use]
pub(crate) fn panic_is_guarded() -> bool {
    GUARDED.get()
}

/// Settings for sled.
#[derive(Clone, Debug)]
pub(crate) struct SledSettings {
    /// Size of the page cache in bytes; sled may exceed it.
    pub cache_bytes: u64,
}

impl Default for SledSettings {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20 }
    }
}

/// A store in a folder, open in this process alone.
pub(crate) struct SledStore {
    db: sled::Db,
    dir: PathBuf,
    queue: Option<SyncSender<Commit>>,
    committer: Option<JoinHandle<()>>,
    /// Only in a store open for examination: the last acknowledged sequence, and the lock.
    examined: Option<Sidecar>,
}

struct Commit {
    batch: Batch,
    done: SyncSender<Result<(), StoreError>>,
}

impl SledStore {
    /// Opens the store of a folder, created if absent, and verifies that it is complete.
    ///
    /// # Errors
    /// [`StoreError::Locked`], or [`StoreError::Corrupt`] naming what is damaged or missing.
    pub(crate) fn open(dir: &Path, settings: &SledSettings) -> Result<Self, StoreError> {
        let sidecar = open_sidecar(dir)?;
        let acknowledged = sidecar.read()?.unwrap_or(0);
        let (mut store, tally) = open_past_leftovers(dir, settings, acknowledged)?;
        sidecar.write(tally.sequence)?;
        let (queue, commits) = mpsc::sync_channel(QUEUE);
        let committer = Committer { db: store.db.clone(), dir: store.dir.clone(), sidecar, tally, failed: None };
        let thread = thread::Builder::new().name("store-commit".to_owned()).spawn(move || committer.run(&commits));
        store.queue = Some(queue);
        store.committer = Some(thread.map_err(|source| StoreError::Io { path: dir.to_owned(), source })?);
        Ok(store)
    }

    /// Opens the store of a folder to look for damage, which [`Store::verify_all`] then reports where
    /// [`SledStore::open`] would refuse. Commits fail.
    ///
    /// # Errors
    /// [`StoreError::Locked`], or [`StoreError::Corrupt`] when the engine can read nothing.
    pub(crate) fn open_to_examine(dir: &Path, settings: &SledSettings) -> Result<Self, StoreError> {
        let sidecar = open_sidecar(dir)?;
        let acknowledged = sidecar.read()?.unwrap_or(0);
        let mut store = match open_past_leftovers(dir, settings, acknowledged) {
            Ok((store, _)) => store,
            Err(locked @ StoreError::Locked { .. }) => return Err(locked),
            Err(_) => Self::engine(&dir.join(ENGINE_DIR), settings)?,
        };
        store.examined = Some(sidecar);
        Ok(store)
    }

    /// Opens the engine in its folder, created if absent.
    fn engine(engine_dir: &Path, settings: &SledSettings) -> Result<Self, StoreError> {
        let patience = Instant::now() + ENGINE_LOCK_WAIT;
        let db = loop {
            let opened = guard(engine_dir, || {
                sled::Config::new().path(engine_dir).cache_capacity(settings.cache_bytes).flush_every_ms(None).open()
            });
            match opened {
                Err(StoreError::Locked { .. }) if Instant::now() < patience => thread::sleep(ENGINE_LOCK_WAIT / 100),
                opened => break opened?,
            }
        };
        Ok(Self { db, dir: engine_dir.to_owned(), queue: None, committer: None, examined: None })
    }

    /// Opens the engine, and fails unless it holds everything that its tally and the sidecar record.
    fn whole_engine(
        engine_dir: &Path,
        settings: &SledSettings,
        acknowledged: u64,
    ) -> Result<(Self, Tally), StoreError> {
        let store = Self::engine(engine_dir, settings)?;
        let tally = store.tally()?;
        let early = store.ends_early(&tally, acknowledged);
        match early.or_else(|| store.verify(&tally, |table| table.verified() == Verified::AtOpen).into_iter().next()) {
            Some(error) => Err(error),
            None => Ok((store, tally)),
        }
    }

    fn tally(&self) -> Result<Tally, StoreError> {
        let stored = guard(&self.dir, || self.db.get(TALLY_KEY))?;
        Ok(stored.map(|bytes| Tally::decode(&bytes)).transpose()?.unwrap_or_default())
    }

    /// Returns an error if the engine has lost acknowledged writes.
    fn ends_early(&self, tally: &Tally, acknowledged: u64) -> Option<StoreError> {
        let n_lost = acknowledged.checked_sub(tally.sequence).filter(|n_lost| *n_lost > 0)?;
        Some(StoreError::Corrupt {
            what: format!("the log under {} ends early", self.dir.display()),
            affects: format!("its last {n_lost} acknowledged writes are gone; import the last export"),
        })
    }

    /// Compares the wanted tables with the tally.
    fn verify(&self, tally: &Tally, wanted: impl Fn(Table) -> bool) -> Vec<StoreError> {
        let tables = Table::ALL.into_iter().filter(|table| wanted(*table));
        tables.filter_map(|table| self.verify_table(tally, table).err()).collect()
    }

    fn verify_table(&self, tally: &Tally, table: Table) -> Result<(), StoreError> {
        let mut found = TableTally::default();
        for page in self.pages(table, Range::default()) {
            page?.iter().for_each(|(key, value)| found.add(key, value));
        }
        let expected = tally.of(table);
        if found == expected {
            return Ok(());
        }
        let (n_found, n_expected) = (found.n_entries, expected.n_entries);
        let what = if n_found == n_expected {
            format!("the table {table:?}: one of its {n_found} records was altered")
        } else {
            format!("the table {table:?}: {n_found} of {n_expected} records are there")
        };
        let affects = "the missing records are lost; import the last export".to_owned();
        Err(StoreError::Corrupt { what, affects })
    }
}

/// Locks a store's folder, created if absent, and opens its sidecar.
fn open_sidecar(dir: &Path) -> Result<Sidecar, StoreError> {
    let (engine_dir, sidecar_path) = (dir.join(ENGINE_DIR), dir.join(SIDECAR_FILE));
    fs::create_dir_all(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    if engine_dir.exists() && !sidecar_path.exists() {
        return Err(StoreError::Corrupt {
            what: format!("{} is missing", sidecar_path.display()),
            affects: "acknowledged writes may be missing; import the last export".to_owned(),
        });
    }
    let sidecar = Sidecar::open(&sidecar_path)?;
    let log = engine_dir.join(LOG_FILE);
    if sidecar.read()?.is_some_and(|acknowledged| acknowledged > 0) && !log.exists() {
        return Err(StoreError::Corrupt {
            what: format!("{} is missing", log.display()),
            affects: "the store's records are lost; import the last export".to_owned(),
        });
    }
    Ok(sidecar)
}

/// Opens the engine, if necessary without the leftovers of its interrupted housekeeping, so that a store counts as
/// damaged only if records are missing. A copy without the leftovers is tried first, because opening changes the log.
fn open_past_leftovers(
    dir: &Path,
    settings: &SledSettings,
    acknowledged: u64,
) -> Result<(SledStore, Tally), StoreError> {
    let engine_dir = dir.join(ENGINE_DIR);
    remove_old_trials(dir)?;
    let mut damage = None;
    if Leftovers::unfinished(&engine_dir)?.is_empty() {
        match SledStore::whole_engine(&engine_dir, settings, acknowledged) {
            Err(error @ StoreError::Corrupt { .. }) => damage = Some(error),
            opened => return opened,
        }
    }
    for leftovers_of in [Leftovers::unfinished, Leftovers::all_but_the_log] {
        // Listed anew each time: a failed opening may have replaced a snapshot.
        let leftovers = leftovers_of(&engine_dir)?;
        if leftovers.is_empty() {
            continue;
        }
        match opens_without(&leftovers, dir, settings, acknowledged) {
            Ok(()) => {
                leftovers.set_aside()?;
                return SledStore::whole_engine(&engine_dir, settings, acknowledged);
            }
            Err(error @ StoreError::Corrupt { .. }) => drop(damage.get_or_insert(error)),
            // A failure to copy, for example on a full disk, does not mean that the store is damaged.
            Err(error) => return Err(damage.unwrap_or(error)),
        }
    }
    match damage {
        Some(damage) => Err(damage),
        None => SledStore::whole_engine(&engine_dir, settings, acknowledged),
    }
}

/// Opens a copy of the engine's folder without the leftovers, and removes the copy.
fn opens_without(
    leftovers: &Leftovers,
    dir: &Path,
    settings: &SledSettings,
    acknowledged: u64,
) -> Result<(), StoreError> {
    let copy = tempfile::Builder::new().prefix(TRIAL_PREFIX).tempdir_in(dir);
    let copy = copy.map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    leftovers.copy_without(&dir.join(ENGINE_DIR), copy.path())?;
    SledStore::whole_engine(copy.path(), settings, acknowledged).map(drop)
}

/// Removes trial copies that a killed process left.
fn remove_old_trials(dir: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().to_string_lossy().starts_with(TRIAL_PREFIX) {
            fs::remove_dir_all(entry.path()).map_err(io)?;
        }
    }
    Ok(())
}

/// Calls sled and converts its errors and panics.
fn guard<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt {
        what: format!("{}: {why}", path.display()),
        affects: "the records on the damaged page cannot be read; import the last export".to_owned(),
    };
    let was = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(was);
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(source))) if source.kind() == io::ErrorKind::WouldBlock => {
            Err(StoreError::Locked { path: path.to_owned() })
        }
        Ok(Err(sled::Error::Io(source))) => Err(match source.to_string() {
            text if text.contains("lock") => StoreError::Locked { path: path.to_owned() },
            // Invalid bytes are damage; a failure of the disk itself is not.
            text if matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::Other
            ) =>
            {
                corrupt(text)
            }
            _ => StoreError::Io { path: path.to_owned(), source },
        }),
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(panic) => Err(corrupt(panic_message(&*panic).unwrap_or("the engine gave up").to_owned())),
    }
}

fn engine_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(table as u8);
    bytes.extend_from_slice(key);
    bytes
}

impl Store for SledStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = guard(&self.dir, || self.db.get(engine_key(table, key)))?;
        Ok(value.map(|bytes| bytes.to_vec()))
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let Some((low, high)) = range.bounds() else { return Ok(Vec::new()) };
        let bound = |bound: Bound<Vec<u8>>, unbounded: Vec<u8>| match bound {
            Bound::Included(key) => Bound::Included(engine_key(table, &key)),
            Bound::Excluded(key) => Bound::Excluded(engine_key(table, &key)),
            Bound::Unbounded => Bound::Excluded(unbounded),
        };
        let (low, high) = (bound(low, Vec::new()), bound(high, vec![table as u8 + 1]));
        let entry = |row: sled::Result<(sled::IVec, sled::IVec)>| row.map(|(k, v)| (k[1..].to_vec(), v.to_vec()));
        let (mut low, mut high) = (low, high);
        let mut found: Vec<Entry> = Vec::new();
        // sled's iterators were seen to end early over a damaged tree, while one started after the last key continued.
        // So only an empty iterator is the end.
        while found.len() < limit {
            let part: Vec<Entry> = guard(&self.dir, || {
                let rows = self.db.range((low.clone(), high.clone()));
                let n = limit - found.len();
                if range.descending {
                    rows.rev().take(n).map(entry).collect()
                } else {
                    rows.take(n).map(entry).collect()
                }
            })?;
            let Some((last, _)) = part.last() else { break };
            let last = Bound::Excluded(engine_key(table, last));
            if range.descending {
                high = last
            } else {
                low = last
            }
            found.extend(part);
        }
        Ok(found)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let (done, answer) = mpsc::sync_channel(1);
        let gone = || StoreError::Io { path: self.dir.clone(), source: io::Error::other("the store is closed") };
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(Commit { batch, done }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    fn verify_all(&self) -> Vec<StoreError> {
        let tally = match self.tally() {
            Ok(tally) => tally,
            Err(error) => return vec![error],
        };
        let acknowledged = self.examined.as_ref().and_then(|sidecar| sidecar.read().ok().flatten());
        let early = acknowledged.and_then(|acknowledged| self.ends_early(&tally, acknowledged));
        early.into_iter().chain(self.verify(&tally, |_| true)).collect()
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        // The committing thread ends with its queue, once everything in it is committed.
        drop(self.queue.take());
        if let Some(thread) = self.committer.take() {
            let _ = thread.join();
        }
    }
}

/// The only thread that writes.
struct Committer {
    db: sled::Db,
    dir: PathBuf,
    sidecar: Sidecar,
    tally: Tally,
    /// Why nothing is acknowledged any more: after a failed write, the state on disk is unknown.
    failed: Option<Arc<str>>,
}

/// A batch whose conditions hold, in the engine's form.
struct Prepared {
    writes: sled::Batch,
    /// The tally after the batch.
    tally: Tally,
}

impl Committer {
    fn run(mut self, commits: &Receiver<Commit>) {
        while let Ok(first) = commits.recv() {
            let group = std::iter::once(first).chain(commits.try_iter().take(GROUP - 1));
            let mut applied = Vec::new();
            for commit in group {
                match self.apply(&commit.batch) {
                    Ok(()) => applied.push(commit.done),
                    Err(error) => {
                        let _ = commit.done.send(Err(error));
                    }
                }
            }
            if applied.is_empty() {
                continue;
            }
            let flushed = guard(&self.dir, || self.db.flush()).and_then(|_| self.sidecar.write(self.tally.sequence));
            if let Err(error) = &flushed {
                self.failed = Some(format!("a flush failed: {error}").into());
            }
            for done in applied {
                // A caller that has left needs no reply.
                let _ = done.send(match &flushed {
                    Ok(()) => Ok(()),
                    Err(_) => Err(self.refusal()),
                });
            }
        }
    }

    fn refusal(&self) -> StoreError {
        let why = self.failed.as_deref().unwrap_or("it was closed");
        self.io(format!("writes are refused: {why}"))
    }

    fn io(&self, why: String) -> StoreError {
        StoreError::Io { path: self.dir.clone(), source: io::Error::other(why) }
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.failed.is_some() {
            return Err(self.refusal());
        }
        // Preparing changes nothing, so a panic in it affects this batch alone.
        let prepared = panic::catch_unwind(AssertUnwindSafe(|| self.prepare(batch)));
        let Prepared { writes, tally } = prepared.unwrap_or_else(|panic| {
            Err(self.io(format!(
                "the write was not tried, its preparation panicked: {}",
                panic_message(&*panic).unwrap_or("without a message")
            )))
        })?;
        if let Err(error) = guard(&self.dir, || self.db.apply_batch(writes)) {
            // The engine may hold a part of the batch, which the tally does not count.
            self.failed = Some(format!("a write failed: {error}").into());
            return Err(error);
        }
        self.tally = tally;
        Ok(())
    }

    fn prepare(&self, batch: &Batch) -> Result<Prepared, StoreError> {
        for condition in &batch.conditions {
            let (table, key, wanted) = match condition {
                Condition::Absent(table, key) => (*table, key, None),
                Condition::Equals(table, key, value) => (*table, key, Some(value.as_slice())),
            };
            let found = guard(&self.dir, || self.db.get(engine_key(table, key)))?;
            if found.as_deref() != wanted {
                return Err(StoreError::Conflict { table, key: printable(key) });
            }
        }
        // If a batch writes one key several times, only the last write counts.
        let mut last = BTreeMap::new();
        for write in &batch.writes {
            match write {
                Write::Put(table, key, value) => last.insert((*table, key.as_slice()), Some(value.as_slice())),
                Write::Delete(table, key) => last.insert((*table, key.as_slice()), None),
            };
        }
        let mut tally = self.tally.clone();
        tally.sequence += 1;
        let mut writes = sled::Batch::default();
        for ((table, key), value) in last {
            #[cfg(test)]
            assert_ne!(key, tests::PANICS, "a test's panic");
            let engine_key = engine_key(table, key);
            if let Some(old) = guard(&self.dir, || self.db.get(&engine_key))? {
                tally.of_mut(table).remove(key, &old);
            }
            match value {
                Some(value) => {
                    tally.of_mut(table).add(key, value);
                    writes.insert(engine_key, value);
                }
                None => writes.remove(engine_key),
            }
        }
        writes.insert(TALLY_KEY, tally.encode());
        Ok(Prepared { writes, tally })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Preparing a write of this key panics.
    pub(super) const PANICS: &[u8] = b"panics";

    #[test]
    fn a_panic_of_the_committing_thread_is_one_callers_error() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        let put = |key: &[u8]| {
            let writes = ["a", "b"].map(|part| Write::Put(Table::Faces, [part.as_bytes(), key].concat(), vec![1]));
            let panics = Write::Put(Table::Faces, key.to_vec(), vec![1]);
            store.commit(Batch { writes: writes.into_iter().chain([panics]).collect(), ..Batch::default() })
        };
        put(b"before").unwrap();
        let error = put(PANICS).unwrap_err().to_string();
        assert!(error.contains("panicked: ") && error.contains("a test's panic"), "{error}");
        put(b"after").unwrap();
        assert_eq!(store.verify_all().len(), 0, "the tally counts what was written");
        drop(store);
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        assert_eq!(store.scan(Table::Faces, &Range::default(), 99).unwrap().len(), 6);
    }
}

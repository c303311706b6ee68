//! A server's store: sled behind the [`Store`] trait.
//!
//! One thread commits: see `committer`. sled is not trusted to notice damage: it truncates a damaged log, and panics on a
//! damaged page. So every call is guarded against panics, every batch updates a `Tally`, and a [`Sidecar`] records
//! the last acknowledged batch. Damage ends in [`StoreError::Corrupt`] or is reported in [`StoreState`], never in a
//! silently smaller store.

mod committer;
mod copies;
mod durable;
mod engine;
mod recovery;
mod rewrite;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, SyncSender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use tokio::sync::watch;

use self::{
    committer::{Commit, Committer},
    copies::Copies,
    engine::{Engine, Opened},
};
use super::{
    Batch, Entry, Keys, Range, Segments, Store, StoreError, StoreState, Table,
    erasures::Journal,
    files::sync_dir,
    identity,
    leftovers::{LOG_FILE, Leftovers},
    sidecar::Sidecar,
    store_key,
    table::Verified,
};
use crate::threads::yield_to_calls;

pub(crate) use engine::panic_is_guarded;
pub(crate) use rewrite::Rewritten;
pub(super) use rewrite::{Rewrite, rewrite};

/// Batches that may wait for the committing thread; further callers block.
const QUEUE: usize = 1024;

/// sled's folder in the store's.
const ENGINE_DIR: &str = "db";

/// The sidecar in the store's folder.
const SIDECAR_FILE: &str = "sequence";

/// The keys in the store's folder.
const KEYS_FILE: &str = "keys";

/// The erasure journal in the store's folder.
const JOURNAL_FILE: &str = "erasures";

/// The folder of the segment files in the store's folder.
const SEGMENTS_DIR: &str = "segments";

/// The store key, where nothing names another file: in the data folder of a server, or in the store's own.
pub(crate) const STORE_KEY_FILE: &str = "store.key";

/// The prefix of folders in which an opening is tried.
const TRIAL_PREFIX: &str = "trial-";

/// Settings for sled.
#[derive(Clone, Debug)]
pub(crate) struct SledSettings {
    /// Size of the page cache in bytes; sled may exceed it.
    pub cache_bytes: u64,
    /// Free bytes of the disk that writes leave: so much is needed to open the store again and to delete.
    pub reserve_bytes: u64,
    /// The file of the store key, made for a new store; by default a file in the store's own folder.
    pub key_file: Option<PathBuf>,
}

impl Default for SledSettings {
    fn default() -> Self {
        Self { cache_bytes: 64 << 20, reserve_bytes: 256 << 20, key_file: None }
    }
}

impl SledSettings {
    fn key_file(&self, dir: &Path) -> PathBuf {
        self.key_file.clone().unwrap_or_else(|| dir.join(STORE_KEY_FILE))
    }
}

/// A store in a folder, open in this process alone.
pub(crate) struct SledStore {
    engine: Arc<Engine>,
    segments: Segments,
    state: watch::Sender<StoreState>,
    queue: Option<SyncSender<Commit>>,
    committer: Option<JoinHandle<()>>,
    /// The thread that looks for damage after the opening, and its end.
    checker: Option<JoinHandle<()>>,
    is_closing: Arc<AtomicBool>,
    /// Only in a store open for examination: the last acknowledged sequence, and the lock.
    examined: Option<Sidecar>,
}

impl SledStore {
    /// Opens the store of a folder, created if absent, and verifies that it is complete.
    ///
    /// # Errors
    /// [`StoreError::Locked`], or [`StoreError::Corrupt`] naming what is damaged or missing.
    pub(crate) fn open(dir: &Path, settings: &SledSettings) -> Result<Self, StoreError> {
        let started = Instant::now();
        let (sidecar, acknowledged) = open_sidecar(dir)?;
        let keys = open_keys(dir, settings)?;
        let opened = match open_past_leftovers(dir, settings, &keys, acknowledged) {
            Err(damage @ StoreError::Corrupt { .. }) if recovery::is_allowed(dir) => {
                let acknowledged = recovery::rebuild(dir, settings, &keys, acknowledged, damage)?;
                Engine::open_whole(&dir.join(ENGINE_DIR), settings, &keys, acknowledged)?
            }
            opened => opened?,
        };
        let Opened { engine, tally, damage } = opened;
        require_keys(dir, &engine)?;
        let io = |source| StoreError::Io { path: dir.to_owned(), source };
        // The names of what opening has made must be on the disk, too.
        sync_dir(dir).map_err(io)?;
        sidecar.write(tally.sequence)?;
        for (_, error) in &damage {
            tracing::error!(%error, "a part of the store is damaged; everything else is served");
        }
        let mut damage: Vec<_> = damage.iter().map(|(table, error)| (*table, error.to_string())).collect();
        if let Some(notice) = recovery::notice(dir) {
            tracing::error!(notice, "the engine was built again");
            damage.push((Table::FaceVectors, notice));
            // An older state of a run may have come back.
            let runs = [Table::Runs, Table::RunEvents].map(|table| (table, "see the file recovered".to_owned()));
            damage.extend(runs);
        }
        let damage = damage.into();
        let mut store = Self::of(dir, settings, engine, StoreState { damage, ..StoreState::default() });
        store.engine.check_syncs()?;
        let (queue, commits) = mpsc::sync_channel(QUEUE);
        let (engine, state) = (Arc::clone(&store.engine), store.state.clone());
        let journal = Journal::open(dir.join(JOURNAL_FILE), &store);
        let copies = Copies::open(dir, &engine);
        let committer = Committer::new(engine, sidecar, tally, settings.reserve_bytes, journal, copies, state);
        let committer = committer.map_err(io)?;
        let thread = thread::Builder::new().name("store-commit".to_owned()).spawn(move || committer.run(&commits));
        store.queue = Some(queue);
        store.committer = Some(thread.map_err(io)?);
        store.check_afterwards().map_err(io)?;
        tracing::info!(elapsed_ms = started.elapsed().as_millis(), "opened the store");
        Ok(store)
    }

    /// Opens the store of a folder to look for damage, which [`Store::verify_all`] then reports where
    /// [`SledStore::open`] would refuse. Commits fail.
    ///
    /// # Errors
    /// [`StoreError::Locked`], or [`StoreError::Corrupt`] when the engine can read nothing.
    pub(crate) fn open_to_examine(dir: &Path, settings: &SledSettings) -> Result<Self, StoreError> {
        let (sidecar, acknowledged) = open_sidecar(dir)?;
        let keys = open_keys(dir, settings)?;
        let engine = match open_past_leftovers(dir, settings, &keys, acknowledged) {
            Ok(opened) => opened.engine,
            Err(locked @ StoreError::Locked { .. }) => return Err(locked),
            Err(damage) => {
                let engine = Engine::open(&dir.join(ENGINE_DIR), settings, &keys)?;
                if acknowledged > 0 && engine.tally()?.sequence == 0 {
                    // Nothing is left in it.
                    return Err(damage);
                }
                engine
            }
        };
        require_keys(dir, &engine)?;
        let mut store = Self::of(dir, settings, engine, StoreState::default());
        store.examined = Some(sidecar);
        Ok(store)
    }

    /// Looks for damage in the tables that the opening has not read.
    fn check_afterwards(&mut self) -> io::Result<()> {
        let (engine, state, is_closing) = (Arc::clone(&self.engine), self.state.clone(), Arc::clone(&self.is_closing));
        let check = move || {
            yield_to_calls("looking for damage");
            for table in Table::ALL.into_iter().filter(|table| table.verified() == Verified::Afterwards) {
                if let Some(error) = engine.check(table, &is_closing) {
                    tracing::error!(%error, "a part of the store is damaged; everything else is served");
                    state.send_modify(|state| {
                        let found = (table, error.to_string());
                        state.damage = state.damage.iter().cloned().chain([found]).collect();
                    });
                }
            }
            state.send_modify(|state| state.is_checked = true);
        };
        self.checker = Some(thread::Builder::new().name("store-check".to_owned()).spawn(check)?);
        Ok(())
    }

    fn of(dir: &Path, settings: &SledSettings, engine: Engine, state: StoreState) -> Self {
        let state = watch::Sender::new(state);
        let segments = Segments::in_dir(dir.join(SEGMENTS_DIR), settings.reserve_bytes);
        Self {
            engine: Arc::new(engine),
            segments,
            state,
            queue: None,
            committer: None,
            checker: None,
            is_closing: Arc::default(),
            examined: None,
        }
    }
}

/// Opens the keys of a store. Those of a new store are made, as is its store key.
fn open_keys(dir: &Path, settings: &SledSettings) -> Result<Arc<Keys>, StoreError> {
    let (path, key_file) = (dir.join(KEYS_FILE), settings.key_file(dir));
    let keys = if path.exists() {
        Keys::open(&path, &store_key::read(&key_file)?)?
    } else {
        Keys::create(&path, &store_key::read_or_create(&key_file)?)?
    };
    Ok(Arc::new(keys))
}

/// Fails when the keys of a store with sealed faces are missing: those that were just made open nothing.
fn require_keys(dir: &Path, engine: &Engine) -> Result<(), StoreError> {
    let is_sealed = identity::stored_format(engine)?.is_some_and(|format| format >= identity::FIRST_SEALED_FORMAT);
    if !is_sealed || !engine.keys().is_new() {
        return Ok(());
    }
    let path = dir.join(KEYS_FILE);
    fs::remove_file(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
    Err(StoreError::Corrupt {
        what: format!("{} is missing", path.display()),
        affects: "no face can be read without its key; put the file back, or import the last export".to_owned(),
    })
}

/// Puts all keys of a store under another store key; returns their number.
///
/// # Errors
/// [`StoreError::Locked`], [`StoreError::Key`].
pub(crate) fn change_store_key(dir: &Path, settings: &SledSettings, new: &Path) -> Result<u64, StoreError> {
    let (_sidecar, _) = open_sidecar(dir)?;
    let old = store_key::read(&settings.key_file(dir))?;
    let new_key = store_key::read_or_create(new)?;
    if new_key.bytes() == old.bytes() {
        let why = "this is already the store key; name the file of another one, which is made if it is missing";
        return Err(StoreError::Key { path: new.to_owned(), why: why.to_owned() });
    }
    Keys::rewrap(&dir.join(KEYS_FILE), &old, &new_key)
}

/// Removes what an interrupted compaction left.
///
/// # Errors
/// When the disk fails.
pub(super) fn abandon_rewrite(dir: &Path) -> Result<(), StoreError> {
    rewrite::abandon(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

/// Locks a store's folder, created if absent; returns its sidecar, and the last acknowledged sequence.
fn open_sidecar(dir: &Path) -> Result<(Sidecar, u64), StoreError> {
    let (engine_dir, sidecar_path) = (dir.join(ENGINE_DIR), dir.join(SIDECAR_FILE));
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    let damaged = |what: String| StoreError::Corrupt {
        what,
        affects: "acknowledged writes may be missing; import the last export".to_owned(),
    };
    create_dir(dir).map_err(io)?;
    if engine_dir.exists() && !sidecar_path.exists() {
        return Err(damaged(format!("{} is missing", sidecar_path.display())));
    }
    let sidecar = Sidecar::open(&sidecar_path)?;
    rewrite::finish(dir).and_then(|()| recovery::finish(dir)).map_err(io)?;
    let acknowledged = match sidecar.read()? {
        Some(acknowledged) => acknowledged,
        None if engine_dir.exists() => return Err(damaged(format!("{} is empty", sidecar_path.display()))),
        None => {
            // Before the engine's files are made, so that an empty file beside them is always damage.
            sidecar.write(0)?;
            sync_dir(dir).map_err(io)?;
            0
        }
    };
    let log = engine_dir.join(LOG_FILE);
    if acknowledged > 0 && !log.exists() {
        return Err(StoreError::Corrupt {
            what: format!("{} is missing", log.display()),
            affects: "the store's records are lost; import the last export".to_owned(),
        });
    }
    Ok((sidecar, acknowledged))
}

/// Creates a folder with its parents, and syncs the names of those that are new.
fn create_dir(dir: &Path) -> io::Result<()> {
    let dir = std::path::absolute(dir)?;
    let n_new = dir.ancestors().take_while(|dir| !dir.exists()).count();
    // Faces and their subjects are nobody else's business.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    for parent in dir.ancestors().skip(1).take(n_new) {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Opens the engine, if necessary without the leftovers of its interrupted housekeeping, so that a store counts as
/// damaged only if records are missing. A copy without the leftovers is tried first, because opening changes the log.
fn open_past_leftovers(
    dir: &Path,
    settings: &SledSettings,
    keys: &Arc<Keys>,
    acknowledged: u64,
) -> Result<Opened, StoreError> {
    recovery::prepare(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    let opened = open_or_try_without_leftovers(dir, settings, keys, acknowledged)?;
    recovery::forget(dir).map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    Ok(opened)
}

fn open_or_try_without_leftovers(
    dir: &Path,
    settings: &SledSettings,
    keys: &Arc<Keys>,
    acknowledged: u64,
) -> Result<Opened, StoreError> {
    let engine_dir = dir.join(ENGINE_DIR);
    remove_old_trials(dir)?;
    let mut damage = None;
    // Without these files the store opens, but a part of it is damaged.
    let mut in_part = None;
    if Leftovers::unfinished(&engine_dir)?.is_empty() {
        match Engine::open_whole(&engine_dir, settings, keys, acknowledged) {
            Err(error @ StoreError::Corrupt { .. }) => damage = Some(error),
            Ok(opened) if !opened.damage.is_empty() => in_part = Some(Leftovers::default()),
            opened => return opened,
        }
    }
    for leftovers_of in [Leftovers::unfinished, Leftovers::all_but_the_log] {
        // Listed anew each time: a failed opening may have replaced a snapshot.
        let leftovers = leftovers_of(&engine_dir)?;
        if leftovers.is_empty() {
            continue;
        }
        match opens_without(&leftovers, dir, settings, keys, acknowledged) {
            Ok(Completeness::Whole) => {
                leftovers.set_aside()?;
                return Engine::open_whole(&engine_dir, settings, keys, acknowledged);
            }
            Ok(Completeness::InPart) => drop(in_part.get_or_insert(leftovers)),
            Err(error @ StoreError::Corrupt { .. }) => drop(damage.get_or_insert(error)),
            // A failure to copy, for example on a full disk, does not mean that the store is damaged: it may open without
            // these files.
            Err(error) if in_part.is_none() => return Err(error),
            Err(_) => {}
        }
    }
    match (in_part, damage) {
        (Some(leftovers), _) => leftovers.set_aside()?,
        (None, Some(damage)) => return Err(damage),
        (None, None) => {}
    }
    Engine::open_whole(&engine_dir, settings, keys, acknowledged)
}

/// Whether all of a store can be served, or only a part.
enum Completeness {
    Whole,
    InPart,
}

/// Opens a copy of the engine's folder without the leftovers, and removes the copy.
fn opens_without(
    leftovers: &Leftovers,
    dir: &Path,
    settings: &SledSettings,
    keys: &Arc<Keys>,
    acknowledged: u64,
) -> Result<Completeness, StoreError> {
    let copy = tempfile::Builder::new().prefix(TRIAL_PREFIX).tempdir_in(dir);
    let copy = copy.map_err(|source| StoreError::Io { path: dir.to_owned(), source })?;
    leftovers.copy_without(&dir.join(ENGINE_DIR), copy.path())?;
    let opened = Engine::open_whole(copy.path(), settings, keys, acknowledged)?;
    Ok(if opened.damage.is_empty() { Completeness::Whole } else { Completeness::InPart })
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

impl Store for SledStore {
    fn keys(&self) -> &Keys {
        self.engine.keys()
    }

    fn segments(&self) -> Option<&Segments> {
        // Whoever examines a store changes nothing.
        self.queue.is_some().then_some(&self.segments)
    }

    fn n_expected(&self, table: Table) -> Option<u64> {
        Some(self.engine.tally().ok()?.of(table).n_entries)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.engine.get(table, key)
    }

    fn scan(&self, table: Table, range: &Range, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.engine.scan(table, range, limit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let Some(queue) = &self.queue else { return self.engine.commit(batch) };
        let (done, answer) = mpsc::sync_channel(1);
        let gone = || {
            let source = io::Error::other("the thread that writes has ended");
            StoreError::Io { path: self.engine.dir().to_owned(), source }
        };
        queue.send(Commit { batch, done }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    fn verify_all(&self) -> Vec<StoreError> {
        let tally = match self.engine.tally() {
            Ok(tally) => tally,
            Err(error) => return vec![error],
        };
        let acknowledged = self.examined.as_ref().and_then(|sidecar| sidecar.read().ok().flatten());
        let early = acknowledged.and_then(|acknowledged| self.engine.ends_early(&tally, acknowledged));
        let notice = self.engine.dir().parent().and_then(recovery::notice);
        let notice = notice.map(|what| StoreError::Corrupt { what, affects: "the rest is whole".to_owned() });
        let found = early.into_iter().chain(self.engine.verify(&tally, |_| true));
        found.chain(self.segments.verify()).chain(notice).collect()
    }

    fn state(&self) -> watch::Receiver<StoreState> {
        self.state.subscribe()
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.is_closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.checker.take() {
            let _ = thread.join();
        }
        // The committing thread ends with its queue, once everything in it is committed.
        drop(self.queue.take());
        if let Some(thread) = self.committer.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Write;

    /// Preparing a write of this key panics.
    pub(in crate::store) const PANICS: &[u8] = b"panics";

    fn put(key: &[u8], value: &[u8]) -> Batch {
        Batch { writes: vec![Write::Put(Table::Faces, key.to_vec(), value.to_vec())], ..Batch::default() }
    }

    fn rows(store: &SledStore) -> Vec<Entry> {
        store.scan(Table::Faces, &Range::default(), 99).unwrap()
    }

    fn wait_until(store: &SledStore, is_refusing: bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while store.state().borrow().writes_refused.is_some() != is_refusing {
            assert!(Instant::now() < until, "refusing: {is_refusing}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Regression: after one failed sync, nothing was written until a restart.
    #[test]
    fn a_disk_that_failed_and_works_again_needs_no_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        store.commit(put(b"kept", b"1")).unwrap();
        let engine_dir = dir.path().join(ENGINE_DIR);
        for error in [libc::EIO, libc::ENOSPC] {
            durable::tests::fail_syncs(&engine_dir, Some(error));
            for (key, value) in [(b"kept", b"2"), (b"new!", b"2")] {
                let refused = store.commit(put(key, value)).unwrap_err();
                assert!(matches!(refused, StoreError::WritesFail { .. }), "{refused}");
            }
            wait_until(&store, true);
            assert_eq!(store.get(Table::Faces, b"other").unwrap(), None, "reads go on");
            durable::tests::fail_syncs(&engine_dir, None);
            wait_until(&store, false);
            assert_eq!(rows(&store), [(b"kept".to_vec(), b"1".to_vec())], "what was refused is not there");
        }
        store.commit(put(b"later", b"3")).unwrap();
        assert_eq!(store.verify_all().len(), 0);
        drop(store);
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        assert_eq!(rows(&store).len(), 2);
        assert_eq!(store.verify_all().len(), 0);
    }

    /// Regression: once it could not be opened again, no further try was made.
    #[test]
    fn an_engine_that_could_not_be_opened_again_is_opened_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        store.commit(put(b"kept", b"1")).unwrap();
        let (engine_dir, away) = (dir.path().join(ENGINE_DIR), dir.path().join("away"));
        let conf = fs::read(engine_dir.join("conf")).unwrap();
        // A folder in the place of the log: sled cannot open it.
        store.engine.close_for_tests();
        fs::rename(&engine_dir, &away).unwrap();
        fs::create_dir_all(engine_dir.join("db")).unwrap();
        fs::write(engine_dir.join("conf"), conf).unwrap();
        store.engine.reopen().unwrap_err();
        let refused = store.get(Table::Faces, b"kept").unwrap_err();
        assert!(matches!(refused, StoreError::WritesFail { .. }), "{refused}");
        fs::remove_dir_all(&engine_dir).unwrap();
        fs::rename(&away, &engine_dir).unwrap();
        store.engine.reopen().unwrap();
        assert_eq!(rows(&store).len(), 1);
    }

    #[test]
    fn an_engine_that_has_not_failed_can_be_opened_again_too() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
        store.commit(put(b"kept", &[7; 50_000])).unwrap();
        store.engine.reopen().unwrap();
        assert_eq!(rows(&store), [(b"kept".to_vec(), vec![7; 50_000])]);
        store.commit(put(b"later", b"1")).unwrap();
        assert_eq!(store.verify_all().len(), 0);
    }

    /// What is lost below the engine is reported, and the rest is served.
    #[test]
    fn a_lost_or_altered_record_stops_nothing_else() {
        for value in [None, Some(b"altered")] {
            let dir = tempfile::tempdir().unwrap();
            let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
            for key in [b"a", b"b", b"c"] {
                store.commit(put(key, b"v")).unwrap();
            }
            drop(store);
            let keys = Arc::new(Keys::in_memory());
            let engine = Engine::open(&dir.path().join(ENGINE_DIR), &SledSettings::default(), &keys).unwrap();
            let key = engine::engine_key(Table::Faces, b"b");
            let altered = engine.call(|db| match value {
                Some(value) => db.insert(key, value),
                None => db.remove(key),
            });
            altered.unwrap();
            drop(engine);
            let store = SledStore::open(dir.path(), &SledSettings::default()).unwrap();
            crate::store::tests::wait_until_checked(&store);
            assert_eq!(store.state().borrow().damage.len(), 1);
            assert_eq!(store.state().borrow().damage[0].0, Table::Faces);
            assert_eq!(rows(&store).len(), if value.is_some() { 3 } else { 2 });
            store.commit(put(b"d", b"v")).unwrap();
            assert_eq!(store.verify_all().len(), 1, "it stays known");
        }
    }

    #[test]
    fn a_disk_that_is_nearly_full_takes_deletes_only() {
        let dir = tempfile::tempdir().unwrap();
        let free = rustix::fs::statvfs(dir.path()).map(|found| found.f_bavail * found.f_frsize).unwrap();
        drop(SledStore::open(dir.path(), &SledSettings::default()).map(|store| store.commit(put(b"k", b"v"))).unwrap());
        // More than there is, but less than twice as much.
        let settings = SledSettings { reserve_bytes: free + free / 2, ..SledSettings::default() };
        let store = SledStore::open(dir.path(), &settings).unwrap();
        let refused = store.commit(put(b"new", b"v")).unwrap_err();
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        wait_until(&store, true);
        store.commit(Batch::default()).unwrap();
        let delete = Write::Delete(Table::Faces, b"k".to_vec());
        store.commit(Batch { writes: vec![delete], ..Batch::default() }).unwrap();
        assert_eq!(rows(&store), []);
    }

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

#[cfg(test)]
mod faults;
#[cfg(test)]
mod power_cuts;

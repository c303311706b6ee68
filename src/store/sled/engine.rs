//! The engine itself: sled in a folder, opened and read.

use std::{
    cell::Cell,
    io,
    ops::Bound,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::RwLock;

use super::{SledSettings, durable};
use crate::{
    error::panic_message,
    store::{
        Batch, Entry, Keys, Range, Store, StoreError, StoreExt, Table,
        files::sync_dir,
        leftovers::Leftovers,
        record_payload,
        table::Verified,
        tally::{TableTally, Tally},
    },
};

/// How long to wait for the engine's own lock, which its threads may hold for a moment after closing. Other processes
/// are excluded by the store's lock, without waiting.
const ENGINE_LOCK_WAIT: Duration = Duration::from_secs(5);

/// The wait before a table is read again that could not be compared with its tally, because there were writes meanwhile.
/// It doubles up to the longest.
const CHECK_AGAIN_FIRST: Duration = Duration::from_secs(2);
const CHECK_AGAIN_LONGEST: Duration = Duration::from_secs(600);

/// A failed engine must notice within this time that it has failed.
const NOTICE_WAIT: Duration = Duration::from_secs(5);

/// The tally's key; no table has this number.
pub(super) const TALLY_KEY: &[u8] = &[u8::MAX];

/// The key of the number of times that the store was opened. No table has its first byte.
const OPENED_KEY: &[u8] = &[u8::MAX, 0];

/// The key of how far a rewriting into this engine has come.
pub(super) const CURSOR_KEY: &[u8] = &[u8::MAX, 1];

thread_local! {
    /// Set while sled runs. The panic hook then stays silent, because the panic becomes an error that names its place.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if this thread's panic is caught and becomes an error; the panic hook checks this before it prints.
#[must_use]
pub(crate) fn panic_is_guarded() -> bool {
    GUARDED.get()
}

/// An engine that was verified.
pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) tally: Tally,
    /// What is lost or altered in tables that can be served in part.
    pub(super) damage: Vec<(Table, StoreError)>,
}

/// A table that differs from the tally.
struct Mismatch {
    error: StoreError,
    /// There are more records than there should be.
    has_more: bool,
}

/// sled in a folder.
pub(super) struct Engine {
    dir: PathBuf,
    settings: SledSettings,
    keys: Arc<Keys>,
    /// `None` while it is being opened again, and when that failed.
    db: RwLock<Option<sled::Db>>,
}

impl Engine {
    /// Opens the engine in its folder, created if absent.
    pub(super) fn open(dir: &Path, settings: &SledSettings, keys: &Arc<Keys>) -> Result<Self, StoreError> {
        let db = RwLock::new(Some(open_db(dir, settings)?));
        Ok(Self { dir: dir.to_owned(), settings: settings.clone(), keys: Arc::clone(keys), db })
    }

    /// Fails unless the engine's writes and syncs go through `durable`, which depends on how the program was linked.
    pub(super) fn check_syncs(&self) -> Result<(), StoreError> {
        let before = durable::counts();
        self.call(|db| {
            // sled writes nothing for a value that is there already.
            let n_opened =
                db.get(OPENED_KEY)?.and_then(|bytes| Some(u64::from_be_bytes(bytes.as_ref().try_into().ok()?)));
            db.insert(OPENED_KEY, &n_opened.unwrap_or(0).wrapping_add(1).to_be_bytes())?;
            db.flush()
        })?;
        let after = durable::counts();
        if after.0 == before.0 || after.1 == before.1 {
            let why = "the storage engine does not sync what it writes: build the program with `make`, and mount /proc";
            return Err(self.io(io::Error::other(why)));
        }
        Ok(())
    }

    /// Its folder.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Calls sled. Its errors and panics become the store's errors.
    pub(super) fn call<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, StoreError> {
        let db = self.db.read();
        let Some(db) = db.as_ref() else {
            return Err(StoreError::WritesFail {
                why: "the disk failed, and the store cannot be opened again yet".into(),
            });
        };
        guard(&self.dir, || call(db)).map_err(|error| match error {
            // After a failed write, sled also refuses some reads.
            StoreError::Io { source, .. } if db.context.global_error().is_err() => {
                StoreError::WritesFail { why: format!("the disk failed: {source}").into() }
            }
            error => error,
        })
    }

    /// Makes sure that the engine has noticed its failure, because its end would otherwise wait for ever for a write that
    /// never ends.
    ///
    /// # Errors
    /// When it has not noticed within [`NOTICE_WAIT`].
    fn stop_writing(&self) -> Result<(), StoreError> {
        durable::fail_from_now_on(&self.dir);
        let until = Instant::now() + NOTICE_WAIT;
        while self.db.read().is_some() && !self.has_failed() {
            if Instant::now() > until {
                return Err(self.io(io::Error::other("the engine does not end its writes; start the server again")));
            }
            // Writes a buffer that is waiting, which fails now.
            let _ = self.call(|db| db.apply_batch(sled::Batch::default()));
            thread::sleep(NOTICE_WAIT / 100);
        }
        Ok(())
    }

    /// Closes the engine, as a failed attempt to open it again does.
    #[cfg(test)]
    pub(super) fn close_for_tests(&self) {
        drop(self.db.write().take());
    }

    /// Returns true if the engine has noticed that a write failed.
    pub(super) fn has_failed(&self) -> bool {
        self.db.read().as_ref().is_some_and(|db| db.context.global_error().is_err())
    }

    /// Closes the engine, writes again what a failed sync may have lost, and opens it. Readers wait meanwhile.
    ///
    /// # Errors
    /// When the disk still fails. The engine can then still be read, unless it could not be opened either.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        self.stop_writing()?;
        let mut db = self.db.write();
        // A panic of the closing engine must not end the committing thread.
        let closed = db.take();
        let _ = guard(&self.dir, || {
            drop(closed);
            Ok(())
        });
        let rewritten = durable::write_again(&self.dir).map_err(|e| self.io(e));
        Leftovers::unfinished(&self.dir)?.set_aside()?;
        *db = Some(open_db(&self.dir, &self.settings)?);
        rewritten
    }

    /// Opens the engine, and fails unless it holds everything that its tally and the sidecar record. Damage to tables
    /// that may be served in part is returned, unless deleted records have come back.
    pub(super) fn open_whole(
        dir: &Path,
        settings: &SledSettings,
        keys: &Arc<Keys>,
        acknowledged: u64,
    ) -> Result<Opened, StoreError> {
        let engine = Self::open(dir, settings, keys)?;
        let tally = engine.tally()?;
        if let Some(error) = engine.ends_early(&tally, acknowledged) {
            return Err(error);
        }
        let mut damage = Vec::new();
        for table in Table::ALL {
            let is_served_in_part = match table.verified() {
                Verified::Whole => false,
                Verified::InPart => true,
                Verified::Afterwards | Verified::WhenUsed => continue,
            };
            match engine.verify_table(&tally, table) {
                Ok(()) => {}
                Err(Mismatch { error, has_more: false }) if is_served_in_part => damage.push((table, error)),
                Err(mismatch) => return Err(mismatch.error),
            }
        }
        Ok(Opened { engine, tally, damage })
    }

    pub(super) fn tally(&self) -> Result<Tally, StoreError> {
        let stored = self.call(|db| db.get(TALLY_KEY))?;
        Ok(stored.map(|bytes| Tally::decode(&bytes)).transpose()?.unwrap_or_default())
    }

    /// Returns an error if the engine has lost acknowledged writes.
    pub(super) fn ends_early(&self, tally: &Tally, acknowledged: u64) -> Option<StoreError> {
        let n_lost = acknowledged.checked_sub(tally.sequence).filter(|n_lost| *n_lost > 0)?;
        Some(StoreError::Corrupt {
            what: format!("the log under {} ends early", self.dir.display()),
            affects: format!("its last {n_lost} acknowledged writes are gone; import the last export"),
        })
    }

    /// Compares the wanted tables with the tally.
    pub(super) fn verify(&self, tally: &Tally, wanted: impl Fn(Table) -> bool) -> Vec<StoreError> {
        let tables = Table::ALL.into_iter().filter(|table| wanted(*table));
        tables.filter_map(|table| self.verify_table(tally, table).err()).map(|mismatch| mismatch.error).collect()
    }

    /// Looks for damage of a table while others write, until `stop` is set. What is altered or cannot be read is found at
    /// once; what is missing, as soon as nobody writes while the table is read.
    pub(super) fn check(&self, table: Table, stop: &AtomicBool) -> Option<StoreError> {
        let mut pause = CHECK_AGAIN_FIRST;
        loop {
            let before = self.tally().ok()?;
            let mut found = TableTally::default();
            for page in self.pages(table, Range::default()) {
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                let page = match page {
                    Ok(page) => page,
                    Err(error @ StoreError::Corrupt { .. }) => return Some(error),
                    // The disk fails, which others notice.
                    Err(_) => return None,
                };
                for (key, value) in &page {
                    if let Err(error) = record_payload(table, key, value) {
                        return Some(error);
                    }
                    found.add(key, value);
                }
            }
            if self.tally().ok()?.sequence == before.sequence {
                return mismatch(table, found, before.of(table)).map(|mismatch| mismatch.error);
            }
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if stop.load(Ordering::Relaxed) {
                    return None;
                }
                thread::sleep(pause.min(CHECK_AGAIN_FIRST) / 10);
            }
            pause = (2 * pause).min(CHECK_AGAIN_LONGEST);
        }
    }

    fn verify_table(&self, tally: &Tally, table: Table) -> Result<(), Mismatch> {
        let mut found = TableTally::default();
        for page in self.pages(table, Range::default()) {
            page.map_err(|error| Mismatch { error, has_more: false })?
                .iter()
                .for_each(|(key, value)| found.add(key, value));
        }
        mismatch(table, found, tally.of(table)).map_or(Ok(()), Err)
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.dir.clone(), source }
    }
}

/// Reads; whoever writes has the committing thread do it.
impl Store for Engine {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.call(|db| db.get(engine_key(table, key)))?;
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
            let part: Vec<Entry> = self.call(|db| {
                let rows = db.range((low.clone(), high.clone()));
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

    fn commit(&self, _: Batch) -> Result<(), StoreError> {
        Err(self.io(io::Error::other("the store is open for reading only")))
    }
}

/// Compares the rows of a table with its tally.
fn mismatch(table: Table, found: TableTally, expected: TableTally) -> Option<Mismatch> {
    if found == expected {
        return None;
    }
    let (n_found, n_expected) = (found.n_entries, expected.n_entries);
    let what = if n_found == n_expected {
        format!("the table {table:?}: one of its {n_found} records was altered")
    } else {
        format!("the table {table:?}: {n_found} of {n_expected} records are there")
    };
    let affects = if n_found > n_expected {
        "deleted records have come back; import the last export"
    } else {
        "the missing records are lost; import the last export"
    };
    let error = StoreError::Corrupt { what, affects: affects.to_owned() };
    Some(Mismatch { error, has_more: n_found > n_expected })
}

/// Opens sled, and syncs the folders that it may have created.
fn open_db(dir: &Path, settings: &SledSettings) -> Result<sled::Db, StoreError> {
    let io = |source: io::Error| StoreError::Io { path: dir.to_owned(), source };
    let patience = Instant::now() + ENGINE_LOCK_WAIT;
    let db = loop {
        let opened = guard(dir, || {
            sled::Config::new().path(dir).cache_capacity(settings.cache_bytes).flush_every_ms(None).open()
        });
        match opened {
            Err(StoreError::Locked { .. }) if Instant::now() < patience => thread::sleep(ENGINE_LOCK_WAIT / 100),
            opened => break opened?,
        }
    };
    sync_dir(dir).and_then(|()| durable::watch(dir)).map_err(io)?;
    Ok(db)
}

/// Calls sled and converts its errors and panics.
fn guard<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt {
        // The engine adds a backtrace, which is empty in a release build.
        what: format!("a page under {} ({})", path.display(), why.split(" backtrace").next().unwrap_or_default()),
        affects: "the records on it cannot be read; import the last export".to_owned(),
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
            text if source.kind() == io::ErrorKind::NotFound => corrupt(format!("a file of its is missing: {text}")),
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

pub(super) fn engine_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + key.len());
    bytes.push(table as u8);
    bytes.extend_from_slice(key);
    bytes
}

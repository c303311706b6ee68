//! The only thread that writes.
//!
//! It takes the waiting batches, checks their conditions in order, applies those that hold as one, syncs, and
//! acknowledges them. When the disk is nearly full, it refuses batches before the engine is touched. When a write or a
//! sync fails, it refuses all batches until the disk takes writes again: then it opens the engine anew and undoes what
//! was not acknowledged, because the engine may hold all of it, a part, or nothing.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Weak,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    copies::Copies,
    engine::{Engine, TALLY_KEY, engine_key},
};
use crate::{
    error::panic_message,
    store::{
        Batch, Condition, StoreError, StoreState, Table, Write, erasures::Journal, files::free_bytes, printable,
        sidecar::Sidecar, table::Verified, tally::Tally,
    },
};

/// The maximum number of batches per sync, and of their bytes.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 8 << 20;

/// While the disk is short of space, its free space is read this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The wait between a failure of the disk and the first try to recover; it doubles with each try, up to the longest.
const RETRY_FIRST: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(1) };
const RETRY_LONGEST: Duration = Duration::from_secs(10);

/// The watcher looks this often for a failure of which the engine does not wake the waiting threads.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// The file that is written to find out whether the disk takes writes, in the store's folder.
const PROBE_FILE: &str = "probe";

const PROBE_BYTES: usize = 1 << 20;

/// A batch, and the caller that waits for it.
pub(super) struct Commit {
    pub(super) batch: Batch,
    pub(super) done: SyncSender<Result<(), StoreError>>,
}

/// Why batches are refused.
enum Trouble {
    /// The disk has less free space than is kept in reserve.
    Full { free_bytes: u64 },
    /// A write or a sync failed, so the state on the disk is unknown.
    Failed(Failure),
}

struct Failure {
    why: Arc<str>,
    retry_at: Instant,
    wait: Duration,
    /// The values before the batches that were not acknowledged, by the engine's key.
    before: BTreeMap<Vec<u8>, Option<sled::IVec>>,
}

pub(super) struct Committer {
    engine: Arc<Engine>,
    sidecar: Sidecar,
    /// That of the acknowledged batches.
    tally: Tally,
    trouble: Option<Trouble>,
    reserve_bytes: u64,
    journal: Journal,
    copies: Copies,
    state: watch::Sender<StoreState>,
}

/// The batches of a group whose conditions hold, as one.
struct Group {
    /// The new values by the engine's key; `None` deletes.
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// The engine's values of the same keys.
    before: BTreeMap<Vec<u8>, Option<sled::IVec>>,
    /// The tally after the group.
    tally: Tally,
    n_bytes: usize,
}

/// One batch whose conditions hold, by the engine's key.
struct Admitted {
    writes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    before: Vec<(Vec<u8>, Option<sled::IVec>)>,
    tally: Tally,
}

impl Committer {
    pub(super) fn new(
        engine: Arc<Engine>,
        sidecar: Sidecar,
        tally: Tally,
        reserve_bytes: u64,
        journal: Journal,
        copies: Copies,
        state: watch::Sender<StoreState>,
    ) -> io::Result<Self> {
        let watched = Arc::downgrade(&engine);
        thread::Builder::new().name("store-watch".to_owned()).spawn(move || wake_waiting(&watched))?;
        copies.note(&engine, tally.sequence, tally.of(Table::FaceVectors).n_entries);
        Ok(Self { engine, sidecar, tally, trouble: None, reserve_bytes, journal, copies, state })
    }

    /// Commits until the other end of the channel is gone and everything in it is committed.
    pub(super) fn run(mut self, commits: &Receiver<Commit>) {
        loop {
            let first = match &self.trouble {
                None => commits.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(Trouble::Full { .. }) => commits.recv_timeout(LOOK_EVERY),
                Some(Trouble::Failed(failure)) => {
                    commits.recv_timeout(failure.retry_at.saturating_duration_since(Instant::now()))
                }
            };
            match first {
                Ok(first) => self.commit(first, commits),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    // Without this, the next start could find writes that were refused.
                    if matches!(self.trouble, Some(Trouble::Failed(_))) {
                        self.try_to_recover();
                    }
                    if self.trouble.is_none() {
                        self.copies.end(&self.engine);
                    }
                    return;
                }
            }
            match &self.trouble {
                Some(Trouble::Failed(failure)) if failure.retry_at <= Instant::now() => self.try_to_recover(),
                Some(Trouble::Full { .. }) => self.look_for_room(),
                _ => {}
            }
        }
    }

    /// Commits what is waiting, with one sync.
    fn commit(&mut self, first: Commit, commits: &Receiver<Commit>) {
        self.look_for_room();
        let mut group =
            Group { writes: BTreeMap::new(), before: BTreeMap::new(), tally: self.tally.clone(), n_bytes: 0 };
        let (mut waiting, mut n_seen) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(commit) = next {
            n_seen += 1;
            match self.admit(&commit.batch, &group) {
                Ok(admitted) => {
                    group.add(admitted);
                    waiting.push(commit.done);
                }
                // A caller that has left needs no reply.
                Err(error) => drop(commit.done.send(Err(error))),
            }
            let is_full = n_seen >= GROUP || group.n_bytes >= GROUP_BYTES;
            next = if is_full { None } else { commits.try_recv().ok() };
        }
        if !group.writes.is_empty() {
            self.write(group);
        }
        for done in waiting {
            let _ = done.send(self.failure().map_or(Ok(()), Err));
        }
    }

    /// Applies a group and syncs it.
    fn write(&mut self, group: Group) {
        let Group { writes, before, tally, .. } = group;
        let begun = self.copies.begin(writes.keys());
        let mut batch = sled::Batch::default();
        let mut erased = Vec::new();
        for (key, value) in writes {
            match value {
                Some(value) => {
                    if let [table, row @ ..] = key.as_slice()
                        && *table == Table::Erasures as u8
                    {
                        erased.push((row.to_vec(), value.clone()));
                    }
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        batch.insert(TALLY_KEY, tally.encode());
        let is_copied = begun.as_ref().is_ok_and(|is_copied| *is_copied);
        let written = begun.map_err(|error| format!("a write failed: {error}"));
        let written = written.and_then(|_| {
            self.engine.call(|db| db.apply_batch(batch)).map_err(|error| format!("a write failed: {error}"))
        });
        let synced = written.and_then(|()| {
            // The engine's flush syncs the data: see `durable`.
            let flushed = self.engine.call(|db| db.flush()).and_then(|_| self.sidecar.write(tally.sequence));
            flushed.map_err(|error| format!("a sync failed: {error}"))
        });
        match synced {
            Ok(()) => {
                self.tally = tally;
                self.journal.add(&*self.engine, &erased);
                self.copies.note(&self.engine, self.tally.sequence, self.tally.of(Table::FaceVectors).n_entries);
                if is_copied {
                    self.copies.write(&self.engine);
                }
            }
            Err(why) => {
                tracing::error!(why, "the store refuses writes until the disk takes them again");
                let retry_at = Instant::now() + RETRY_FIRST;
                let failure = Failure { why: why.into(), retry_at, wait: RETRY_FIRST, before };
                self.be_in(Some(Trouble::Failed(failure)));
            }
        }
    }

    /// The error of a batch that is refused because the disk failed.
    fn failure(&self) -> Option<StoreError> {
        match &self.trouble {
            Some(Trouble::Failed(failure)) => Some(StoreError::WritesFail { why: Arc::clone(&failure.why) }),
            Some(Trouble::Full { .. }) | None => None,
        }
    }

    fn be_in(&mut self, trouble: Option<Trouble>) {
        let refused: Option<Arc<str>> = trouble.as_ref().map(|trouble| match trouble {
            Trouble::Full { .. } => "the disk is nearly full".into(),
            Trouble::Failed(failure) => Arc::clone(&failure.why),
        });
        self.trouble = trouble;
        self.state.send_if_modified(|state| {
            let is_new = state.writes_refused != refused;
            state.writes_refused = refused;
            is_new
        });
    }

    /// Reads the free space of the disk, unless the disk has failed.
    fn look_for_room(&mut self) {
        if matches!(self.trouble, Some(Trouble::Failed(_))) {
            return;
        }
        // Without an answer, the write itself shows it.
        let Ok(free_bytes) = free_bytes(self.engine.dir()) else { return };
        let is_short = free_bytes < self.reserve_bytes;
        match (self.trouble.is_some(), is_short) {
            (false, false) => return,
            (false, true) => {
                tracing::error!(
                    free_bytes,
                    reserve_bytes = self.reserve_bytes,
                    "the disk is nearly full: writes are refused"
                );
            }
            (true, false) => tracing::warn!(free_bytes, "the disk has room again: writes are taken"),
            (true, true) => {}
        }
        self.be_in(is_short.then_some(Trouble::Full { free_bytes }));
    }

    /// Deletions may use half of the reserve, because they are what makes room.
    fn require_room(&self, batch: &Batch) -> Result<(), StoreError> {
        let Some(Trouble::Full { free_bytes }) = self.trouble else { return Ok(()) };
        // An erasure belongs to a deletion; the facts of the store name the keys of days, which are wiped with them.
        let may_use_reserve = batch
            .writes
            .iter()
            .all(|write| matches!(write, Write::Delete(..) | Write::Put(Table::Erasures | Table::Meta, ..)));
        if batch.writes.is_empty() || may_use_reserve && free_bytes >= self.reserve_bytes / 2 {
            return Ok(());
        }
        Err(StoreError::Full { path: self.engine.dir().to_owned(), free_bytes, reserve_bytes: self.reserve_bytes })
    }

    /// Checks a batch against the engine and the group before it. Nothing is changed, so a panic affects this batch
    /// alone.
    fn admit(&self, batch: &Batch, group: &Group) -> Result<Admitted, StoreError> {
        if let Some(error) = self.failure() {
            return Err(error);
        }
        self.require_room(batch)?;
        let admitted = panic::catch_unwind(AssertUnwindSafe(|| self.prepare(batch, group)));
        admitted.unwrap_or_else(|panic| {
            let why = panic_message(&*panic).unwrap_or("without a message");
            Err(self.io(io::Error::other(format!("the write was not tried, its preparation panicked: {why}"))))
        })
    }

    fn prepare(&self, batch: &Batch, group: &Group) -> Result<Admitted, StoreError> {
        let stored = |key: &[u8]| self.engine.call(|db| db.get(key));
        for condition in &batch.conditions {
            let (table, key, wanted) = match condition {
                Condition::Absent(table, key) => (*table, key, None),
                Condition::Equals(table, key, value) => (*table, key, Some(value.as_slice())),
            };
            let engine_key = engine_key(table, key);
            let holds = match group.writes.get(&engine_key) {
                Some(value) => value.as_deref() == wanted,
                None => stored(&engine_key)?.as_deref() == wanted,
            };
            if !holds {
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
        let mut admitted = Admitted { writes: Vec::new(), before: Vec::new(), tally: group.tally.clone() };
        if !last.is_empty() {
            admitted.tally.sequence += 1;
        }
        for ((table, key), value) in last {
            #[cfg(test)]
            assert_ne!(key, super::tests::PANICS, "a test's panic");
            let engine_key = engine_key(table, key);
            let of_table = admitted.tally.of_mut(table);
            match group.writes.get(&engine_key) {
                Some(Some(old)) => of_table.remove(key, old),
                Some(None) => {}
                None => {
                    let old = stored(&engine_key)?;
                    if let Some(old) = &old {
                        of_table.remove(key, old);
                    }
                    admitted.before.push((engine_key.clone(), old));
                }
            }
            if let Some(value) = value {
                of_table.add(key, value);
            }
            admitted.writes.push((engine_key, value.map(<[u8]>::to_vec)));
        }
        Ok(admitted)
    }

    fn try_to_recover(&mut self) {
        let Some(Trouble::Failed(failure)) = &self.trouble else { return };
        match self.recover(&failure.before) {
            Ok(()) => {
                tracing::warn!("the store takes writes again");
                self.be_in(None);
                self.copies.write(&self.engine);
            }
            Err(error) => {
                tracing::warn!(%error, "the store still refuses writes");
                if let Some(Trouble::Failed(failure)) = &mut self.trouble {
                    failure.wait = (failure.wait * 2).min(RETRY_LONGEST);
                    failure.retry_at = Instant::now() + failure.wait;
                }
            }
        }
    }

    /// Opens the engine again with exactly what was acknowledged.
    fn recover(&self, before: &BTreeMap<Vec<u8>, Option<sled::IVec>>) -> Result<(), StoreError> {
        self.probe().map_err(|error| self.io(error))?;
        self.engine.reopen()?;
        let found = self.engine.tally()?;
        if let Some(error) = self.engine.ends_early(&found, self.tally.sequence) {
            return Err(error);
        }
        // First, because it may be behind the engine but never before it.
        self.sidecar.write(self.tally.sequence)?;
        let mut undo = sled::Batch::default();
        for (key, value) in before {
            match value {
                Some(value) => undo.insert(key.as_slice(), value.clone()),
                None => undo.remove(key.as_slice()),
            }
        }
        undo.insert(TALLY_KEY, self.tally.encode());
        self.engine.call(|db| {
            db.apply_batch(undo)?;
            db.flush()
        })?;
        let is_whole = |table: Table| table.verified() == Verified::Whole;
        self.engine.verify(&self.tally, is_whole).into_iter().next().map_or(Ok(()), Err)
    }

    /// Fails unless the disk takes a write and a sync.
    fn probe(&self) -> io::Result<()> {
        let path = self.engine.dir().with_file_name(PROBE_FILE);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![1; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.engine.dir().to_owned(), source }
    }
}

impl Group {
    fn add(&mut self, admitted: Admitted) {
        self.before.extend(admitted.before);
        for (key, value) in admitted.writes {
            self.n_bytes += key.len() + value.as_ref().map_or(0, Vec::len);
            self.writes.insert(key, value);
        }
        self.tally = admitted.tally;
    }
}

/// Wakes whoever waits in the engine for a write that has failed, until the engine is gone.
///
/// sled does not wake the waiting when the first bytes of a batch cannot be written; a further flush does.
fn wake_waiting(engine: &Weak<Engine>) {
    loop {
        thread::sleep(WATCH_EVERY);
        let Some(engine) = engine.upgrade() else { return };
        if engine.has_failed() {
            let _ = engine.call(|db| db.flush());
        }
    }
}

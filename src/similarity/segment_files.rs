//! Tracks which of a collection's faces are in segment files, and writes the others there.
//!
//! The files have all faces up to some number. In the background, the rows of later ones are copied from the store into
//! a new file, neighbours of similar size become one, and files that are damaged or have many erased faces are written
//! anew. All of it may fail or be missing: the store has every row.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{collection::LoadedFaces, removal::Rows};
use crate::{
    proto::store::SegmentFace,
    store::{SegmentFile, SegmentReader, Segments, Store, StoreError, Table, parse_row_key},
};

/// Faces after which a file is written at once.
const WRITE_AT: usize = 8_192;

/// Fewer faces wait for others for so long.
const WRITE_AFTER: Duration = Duration::from_secs(5);

/// The most faces, and bytes of their rows, that are copied from the store at once.
const MAX_COPIED: usize = 32_768;
const MAX_COPIED_BYTES: usize = 64 << 20;

/// The most faces of a file that was made of two.
const MAX_MERGED: usize = 524_288;

/// A file is written anew when one in this many of its faces is erased.
const REWRITE_ONE_IN: usize = 4;

/// The wait after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The segment files of a collection.
#[derive(Default)]
pub(super) struct SegmentFiles(Mutex<State>);

#[derive(Default)]
struct State {
    /// By number, without gaps.
    files: Vec<Counted>,
    /// Faces that were enrolled since the last file was begun.
    n_new: usize,
    /// When the first of them was.
    since: Option<Instant>,
    /// After a failure, the time of the next try.
    retry_at: Option<Instant>,
}

/// A file as a start found it, or as it was written.
pub(super) struct Counted {
    pub(super) file: SegmentFile,
    /// Faces of it that were erased.
    pub(super) n_erased: usize,
    /// Some of its blocks cannot be read.
    pub(super) is_damaged: bool,
}

impl Counted {
    fn n_living(&self) -> usize {
        self.file.n_faces().saturating_sub(self.n_erased)
    }
}

/// When faces that wait for others are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Once they are enough, or have waited long enough.
    Due,
    /// Now, because the process ends; nothing else is done.
    Now,
}

/// The next piece of background work.
enum Task {
    /// Copy later faces from the store.
    Copy,
    /// Write these files as one.
    Merge(Range<usize>),
}

/// A collection's files are written from these.
pub(super) struct Sources<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) incarnation: u64,
    pub(super) faces: &'a LoadedFaces,
    /// Returns a number so high that each face up to it is in the store, or never will be.
    pub(super) settled: &'a dyn Fn() -> Result<u64, StoreError>,
}

impl SegmentFiles {
    /// The files that a start has read; `n_new` faces are in none.
    pub(super) fn loaded(files: Vec<Counted>, n_new: usize) -> Self {
        let since = (n_new > 0).then(Instant::now);
        Self(Mutex::new(State { files, n_new, since, retry_at: None }))
    }

    /// Counts a face that was enrolled; returns true if the background thread must know of it.
    pub(super) fn add(&self) -> bool {
        let mut state = self.0.lock();
        state.n_new += 1;
        let is_first = state.since.is_none();
        state.since.get_or_insert_with(Instant::now);
        is_first || state.n_new.is_multiple_of(WRITE_AT)
    }

    /// Counts a face that was erased.
    pub(super) fn erase(&self, number: u64) {
        let mut state = self.0.lock();
        let idx = state.file_of(number);
        if let Some(counted) = state.files.get_mut(idx) {
            counted.n_erased += 1;
        }
    }

    /// Returns the rows of a face, if a file has them.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn face(&self, number: u64) -> Result<Option<SegmentFace>, StoreError> {
        let file = {
            let state = self.0.lock();
            state.files.get(state.file_of(number)).map(|counted| counted.file.clone())
        };
        let Some(file) = file else { return Ok(None) };
        let reader = file.reader()?;
        // Finds the block after those that begin with this number or an earlier one.
        let (mut low, mut high) = (0, file.n_blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            let first = reader.block(middle)?.first().map_or(0, |face| face.number);
            if first <= number { low = middle + 1 } else { high = middle }
        }
        let Some(idx) = low.checked_sub(1) else { return Ok(None) };
        Ok(reader.block(idx)?.into_iter().find(|face| face.number == number))
    }

    /// Returns when faces that wait for others are to be written; `None` if there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        let state = self.0.lock();
        let due = state.since? + WRITE_AFTER;
        Some(state.retry_at.map_or(due, |retry_at| retry_at.max(due)))
    }

    /// Does one piece of background work, which ends early once `stop` is set; returns false if there is none.
    pub(super) fn maintain(&self, segments: &Segments, sources: &Sources<'_>, when: When, stop: &AtomicBool) -> bool {
        let Some(task) = self.0.lock().next_task(when) else { return false };
        let done = match task {
            Task::Copy => self.copy(segments, sources, stop),
            Task::Merge(range) => self.merge(segments, sources, range, stop),
        };
        match done {
            Ok(()) => true,
            Err(_) if stop.load(Ordering::Relaxed) => false,
            Err(error) => {
                tracing::warn!(%error, incarnation = sources.incarnation, "a segment file cannot be written yet");
                self.0.lock().retry_at = Some(Instant::now() + RETRY_AFTER);
                false
            }
        }
    }

    /// Copies faces from the store, after those that are in files.
    fn copy(&self, segments: &Segments, sources: &Sources<'_>, stop: &AtomicBool) -> Result<(), StoreError> {
        let (first, n_new) = {
            let state = self.0.lock();
            (state.files.last().map_or(0, |counted| counted.file.last() + 1), state.n_new)
        };
        let mut rows = StoredRows::between(sources, first, (sources.settled)()?, stop);
        // The header needs the last number, which is known when the last row is.
        let faces = rows.by_ref().collect::<Result<Vec<_>, _>>()?;
        let (n_copied, n_bytes) = (faces.len(), rows.n_bytes as u64);
        let written = if faces.is_empty() {
            None
        } else {
            Some(segments.write(sources.incarnation, (first, rows.last), n_bytes, faces.into_iter().map(Ok), &[])?)
        };
        let mut state = self.0.lock();
        state.files.extend(written.map(|file| Counted { file, n_erased: 0, is_damaged: false }));
        // If no limit ended the copy, every face that was counted before it is in the file or erased.
        state.n_new = state.n_new.saturating_sub(if rows.is_full() { n_copied } else { n_new });
        if rows.is_full() {
            state.n_new = state.n_new.max(1);
        }
        state.since = (state.n_new > 0).then(Instant::now);
        state.retry_at = None;
        Ok(())
    }

    /// Writes some files as one, without the faces that are erased. What damaged blocks had is copied from the store.
    fn merge(
        &self,
        segments: &Segments,
        sources: &Sources<'_>,
        range: Range<usize>,
        stop: &AtomicBool,
    ) -> Result<(), StoreError> {
        let (old, n_erased): (Vec<SegmentFile>, usize) = {
            let state = self.0.lock();
            let files = &state.files[range.clone()];
            (files.iter().map(|c| c.file.clone()).collect(), files.iter().map(|c| c.n_erased).sum())
        };
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(()) };
        let numbers = (first.first(), last.last());
        let readers = old.iter().map(SegmentFile::reader).collect::<Result<Vec<_>, _>>()?;
        let blocks =
            readers.iter().zip(&old).flat_map(|(reader, file)| (0..file.n_blocks()).map(move |idx| (reader, idx)));
        let faces = blocks.flat_map(|(reader, idx)| match faces_of_block(reader, idx, sources, stop) {
            Ok(faces) => faces.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        });
        let faces = faces.filter(|face| face.as_ref().map_or(true, |face| sources.faces.has(face.number)));
        let n_bytes = old.iter().map(SegmentFile::n_bytes).sum();
        let file = segments.write(sources.incarnation, numbers, n_bytes, faces, &old)?;
        let mut state = self.0.lock();
        let n_now: usize = state.files[range.clone()].iter().map(|counted| counted.n_erased).sum();
        // Faces that were erased meanwhile may still be in the new file.
        let merged = Counted { file, n_erased: n_now.saturating_sub(n_erased), is_damaged: false };
        state.files.splice(range, [merged]);
        Ok(())
    }
}

impl State {
    /// Returns the position of the file that covers a number; beyond the last if none does.
    fn file_of(&self, number: u64) -> usize {
        self.files.partition_point(|counted| counted.file.last() < number)
    }

    fn next_task(&self, when: When) -> Option<Task> {
        let now = Instant::now();
        if self.retry_at.is_some_and(|retry_at| retry_at > now) {
            return None;
        }
        let is_due = when == When::Now || self.since.is_some_and(|since| since + WRITE_AFTER <= now);
        if self.n_new >= WRITE_AT || self.n_new > 0 && is_due {
            return Some(Task::Copy);
        }
        if when == When::Now {
            return None;
        }
        let is_worn = |counted: &Counted| {
            counted.is_damaged || counted.n_erased > 0 && counted.n_erased * REWRITE_ONE_IN >= counted.file.n_faces()
        };
        if let Some(idx) = self.files.iter().position(is_worn) {
            return Some(Task::Merge(idx..idx + 1));
        }
        // So sizes double, and a face is written again as often as its collection doubles.
        let is_alike = |pair: &[Counted]| {
            let (a, b) = (pair[0].n_living(), pair[1].n_living());
            a <= 2 * b && a + b <= MAX_MERGED
        };
        let idx = self.files.windows(2).rposition(is_alike)?;
        Some(Task::Merge(idx..idx + 2))
    }
}

/// Returns the faces of a block, or what the store has of them if the block is damaged.
fn faces_of_block(
    reader: &SegmentReader<'_>,
    idx: usize,
    sources: &Sources<'_>,
    stop: &AtomicBool,
) -> Result<Vec<SegmentFace>, StoreError> {
    if stop.load(Ordering::Relaxed) {
        return Err(stopped());
    }
    match reader.block(idx) {
        Err(StoreError::Corrupt { .. }) => match reader.numbers_lost(idx) {
            Some((first, last)) => StoredRows::between(sources, first, last, stop).collect(),
            // They came with the damaged block before.
            None => Ok(Vec::new()),
        },
        faces => faces,
    }
}

fn stopped() -> StoreError {
    StoreError::Io { path: "segments".into(), source: std::io::Error::other("the program ends") }
}

/// The rows of faces in the store, joined from both tables. Pages that cannot be read are left out.
struct StoredRows<'a> {
    vectors: Rows<'a>,
    facts: std::iter::Peekable<Rows<'a>>,
    /// The last number to be read, which a limit lowers.
    last: u64,
    n_rows: usize,
    n_bytes: usize,
    stop: &'a AtomicBool,
}

impl<'a> StoredRows<'a> {
    fn between(sources: &Sources<'a>, first: u64, last: u64, stop: &'a AtomicBool) -> Self {
        let after = first.checked_sub(1);
        let rows = |table| Rows::after(sources.store, table, sources.incarnation, after);
        let (vectors, facts) = (rows(Table::FaceVectors), rows(Table::Faces).peekable());
        Self { vectors, facts, last, n_rows: 0, n_bytes: 0, stop }
    }

    /// Returns true if a limit ended it, and there may be more.
    fn is_full(&self) -> bool {
        self.n_rows >= MAX_COPIED || self.n_bytes >= MAX_COPIED_BYTES
    }
}

impl Iterator for StoredRows<'_> {
    type Item = Result<SegmentFace, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_full() {
            return None;
        }
        if self.stop.load(Ordering::Relaxed) {
            return Some(Err(stopped()));
        }
        let (row, vector) = match self.vectors.next()? {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        let (_, number) = parse_row_key(&row)?;
        if number > self.last {
            return None;
        }
        let mut facts = Vec::new();
        while let Some(entry) = self.facts.next_if(|entry| entry.as_ref().is_ok_and(|(key, _)| *key <= row)) {
            match entry {
                Ok((key, value)) if key == row => facts = value,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        self.n_rows += 1;
        self.n_bytes += facts.len() + vector.len();
        if self.is_full() {
            self.last = number;
        }
        Some(Ok(SegmentFace { number, facts, vector }))
    }
}

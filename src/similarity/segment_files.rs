//! Which of a collection's faces are in segment files, and how the others get there.
//!
//! The files have all faces up to some number. In the background, the rows of later ones are copied from the store into
//! a new file, files of similar size become one, and files with many erased faces are written anew. All of it may fail or
//! be missing: the store has every row.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{collection::LoadedFaces, removal::Rows};
use crate::{
    proto::store::SegmentFace,
    store::{SegmentFile, Segments, Store, StoreError, Table, parse_row_key},
};

/// Faces after which a file is written at once.
const WRITE_AT: usize = 8_192;

/// Fewer faces wait for others for so long.
const WRITE_AFTER: Duration = Duration::from_secs(5);

/// The most faces that are copied from the store at once, and that the files which become one may have.
const MAX_COPIED: usize = 32_768;
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

/// A file, and how many of its faces are erased.
struct Counted {
    file: SegmentFile,
    n_erased: usize,
}

impl Counted {
    fn n_left(&self) -> usize {
        self.file.n_faces().saturating_sub(self.n_erased)
    }
}

/// What is to be done next.
enum Task {
    /// Copy later faces from the store.
    Copy,
    /// Write these files as one.
    Merge(std::ops::Range<usize>),
}

/// What a collection's files are written from.
pub(super) struct Sources<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) incarnation: u64,
    pub(super) faces: &'a LoadedFaces,
    /// Returns the highest number that a face may have by now, once all faces up to it are in the store or never will be.
    pub(super) settled: &'a dyn Fn() -> u64,
}

impl SegmentFiles {
    /// Those that were read at a start, with the number of erased faces of each; `n_new` faces are in none.
    pub(super) fn loaded(files: Vec<(SegmentFile, usize)>, n_new: usize) -> Self {
        let files = files.into_iter().map(|(file, n_erased)| Counted { file, n_erased }).collect();
        let since = (n_new > 0).then(Instant::now);
        Self(Mutex::new(State { files, n_new, since, retry_at: None }))
    }

    /// Counts a face that was enrolled; returns true if there is background work now.
    pub(super) fn add(&self) -> bool {
        let mut state = self.0.lock();
        state.n_new += 1;
        state.since.get_or_insert_with(Instant::now);
        state.n_new.is_multiple_of(WRITE_AT)
    }

    /// Counts a face that was erased.
    pub(super) fn erase(&self, number: u64) {
        let mut state = self.0.lock();
        let idx = state.files.partition_point(|counted| counted.file.last() < number);
        if let Some(counted) = state.files.get_mut(idx) {
            counted.n_erased += 1;
        }
    }

    /// Returns the row of a face's facts, if a file has it.
    ///
    /// # Errors
    /// When the file is damaged.
    pub(super) fn facts(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let file = {
            let state = self.0.lock();
            let idx = state.files.partition_point(|counted| counted.file.last() < number);
            state.files.get(idx).map(|counted| counted.file.clone())
        };
        let Some(file) = file else { return Ok(None) };
        let reader = file.reader()?;
        // The block with the last number that is not greater.
        let (mut low, mut high) = (0, file.n_blocks());
        while low < high {
            let middle = low + (high - low) / 2;
            let first = reader.block(middle)?.first().map_or(0, |face| face.number);
            if first <= number { low = middle + 1 } else { high = middle }
        }
        let Some(idx) = low.checked_sub(1) else { return Ok(None) };
        let face = reader.block(idx)?.into_iter().find(|face| face.number == number);
        Ok(face.map(|face| face.facts).filter(|facts| !facts.is_empty()))
    }

    /// Returns when faces that wait for others are to be written; `None` if there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        let state = self.0.lock();
        let due = state.since? + WRITE_AFTER;
        Some(state.retry_at.map_or(due, |retry_at| retry_at.max(due)))
    }

    /// Does one piece of background work, which ends early once `stop` is set; returns false if there is none. `is_last`
    /// writes what waits for more faces.
    pub(super) fn maintain(
        &self,
        segments: &Segments,
        sources: &Sources<'_>,
        is_last: bool,
        stop: &AtomicBool,
    ) -> bool {
        let Some(task) = self.0.lock().next_task(is_last) else { return false };
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
        let settled = (sources.settled)();
        let after = first.checked_sub(1);
        let vectors = Rows::after(sources.store, Table::FaceVectors, sources.incarnation, after);
        let mut rows = Copied {
            vectors,
            facts: Rows::after(sources.store, Table::Faces, sources.incarnation, after).peekable(),
            settled,
            last: settled,
            n_left: MAX_COPIED,
            stop,
        };
        // The header needs the last number, which is known when the last row is.
        let faces = rows.by_ref().collect::<Result<Vec<_>, _>>()?;
        if rows.vectors.n_gaps > 0 {
            return Err(StoreError::Corrupt {
                what: "pages with faces".to_owned(),
                affects: "they get no segment file".to_owned(),
            });
        }
        let (n_copied, is_all) = (faces.len(), rows.n_left > 0);
        let written = if faces.is_empty() {
            None
        } else {
            Some(segments.write(sources.incarnation, (first, rows.last), faces.into_iter().map(Ok), &[])?)
        };
        let mut state = self.0.lock();
        state.files.extend(written.map(|file| Counted { file, n_erased: 0 }));
        // Faces that were enrolled meanwhile are counted on; erased ones were counted, too.
        state.n_new =
            if is_all { state.n_new.saturating_sub(n_new) } else { state.n_new.saturating_sub(n_copied).max(1) };
        state.since = (state.n_new > 0).then(Instant::now);
        state.retry_at = None;
        Ok(())
    }

    /// Writes some files as one, without the faces that are erased.
    fn merge(
        &self,
        segments: &Segments,
        sources: &Sources<'_>,
        range: std::ops::Range<usize>,
        stop: &AtomicBool,
    ) -> Result<(), StoreError> {
        let old: Vec<SegmentFile> = self.0.lock().files[range.clone()].iter().map(|c| c.file.clone()).collect();
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(()) };
        let numbers = (first.first(), last.last());
        let faces = old.iter().flat_map(|file| faces_of(file, stop));
        let faces = faces.filter(|face| face.as_ref().map_or(true, |face| sources.faces.has(face.number)));
        let merged = segments.write(sources.incarnation, numbers, faces, &old);
        if let Err(StoreError::Corrupt { .. }) = merged {
            // The engine has the rows: they are copied again.
            let removed = self.0.lock().files.split_off(range.start);
            removed.iter().for_each(|counted| segments.remove(&counted.file));
            self.0.lock().n_new += removed.iter().map(Counted::n_left).sum::<usize>();
            self.0.lock().since.get_or_insert_with(Instant::now);
        }
        let merged = merged?;
        let n_read: usize = old.iter().map(SegmentFile::n_faces).sum();
        let n_dropped = n_read - merged.n_faces();
        let mut state = self.0.lock();
        let n_erased: usize = state.files[range.clone()].iter().map(|counted| counted.n_erased).sum();
        let merged = Counted { file: merged, n_erased: n_erased.saturating_sub(n_dropped) };
        state.files.splice(range, [merged]);
        Ok(())
    }
}

impl State {
    fn next_task(&self, is_last: bool) -> Option<Task> {
        let now = Instant::now();
        if self.retry_at.is_some_and(|retry_at| retry_at > now) {
            return None;
        }
        let is_due = is_last || self.since.is_some_and(|since| since + WRITE_AFTER <= now);
        if self.n_new >= WRITE_AT || self.n_new > 0 && is_due {
            return Some(Task::Copy);
        }
        if is_last {
            return None;
        }
        let is_worn =
            |counted: &Counted| counted.n_erased > 0 && counted.n_erased * REWRITE_ONE_IN >= counted.file.n_faces();
        if let Some(idx) = self.files.iter().position(is_worn) {
            return Some(Task::Merge(idx..idx + 1));
        }
        // A file becomes one with the next as long as it is not more than twice as large: so sizes double, and a face
        // is written again as often as its collection doubles.
        let is_alike = |pair: &[Counted]| {
            let (a, b) = (pair[0].n_left(), pair[1].n_left());
            a <= 2 * b && a + b <= MAX_MERGED
        };
        let idx = self.files.windows(2).rposition(is_alike)?;
        Some(Task::Merge(idx..idx + 2))
    }
}

/// Returns the faces of a file, until `stop` is set.
fn faces_of<'a>(
    file: &'a SegmentFile,
    stop: &'a AtomicBool,
) -> impl Iterator<Item = Result<SegmentFace, StoreError>> + 'a {
    let (reader, failure) = match file.reader() {
        Ok(reader) => (Some(reader), None),
        Err(error) => (None, Some(Err(error))),
    };
    let blocks = reader.into_iter().flat_map(move |reader| {
        (0..file.n_blocks())
            .map(move |idx| if stop.load(Ordering::Relaxed) { Err(stopped()) } else { reader.block(idx) })
    });
    let faces = blocks.flat_map(|block| {
        let (faces, failure) = block.map_or_else(|error| (Vec::new(), Some(Err(error))), |faces| (faces, None));
        faces.into_iter().map(Ok).chain(failure)
    });
    faces.chain(failure)
}

fn stopped() -> StoreError {
    StoreError::Io { path: "segments".into(), source: std::io::Error::other("the program ends") }
}

/// The rows of faces, joined from both tables.
struct Copied<'a> {
    vectors: Rows<'a>,
    facts: std::iter::Peekable<Rows<'a>>,
    /// Later numbers are left out.
    settled: u64,
    /// The last number that is covered.
    last: u64,
    n_left: usize,
    stop: &'a AtomicBool,
}

impl Iterator for Copied<'_> {
    type Item = Result<SegmentFace, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.n_left == 0 {
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
        if number > self.settled {
            return None;
        }
        self.n_left -= 1;
        if self.n_left == 0 {
            self.last = number;
        }
        let mut facts = Vec::new();
        while let Some(entry) = self.facts.next_if(|entry| entry.as_ref().is_ok_and(|(key, _)| *key <= row)) {
            match entry {
                Ok((key, value)) if key == row => facts = value,
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(SegmentFace { number, facts, vector }))
    }
}

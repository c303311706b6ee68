//! Builds an engine again that cannot be opened, from what is kept beside it.
//!
//! sled opens a log whole or not at all: one lost sector is enough. Then the damaged engine gets another name, and a new
//! one gets the rows of the small tables, the erasures of the journal, and the faces of the segment files. If the damaged
//! engine can be opened after all, what it still has of the other tables is added. The rest is lost: faces that were
//! enrolled after the last segment file, remembered request ids, blobs. A notice counts that, and stays until somebody
//! removes it: until then the store counts as damaged, and the keys of lost faces are kept.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ENGINE_DIR, JOURNAL_FILE, SEGMENTS_DIR, SledSettings,
    copies::{self, EXACT},
    engine::Engine,
    rewrite::{self, Growth, NEXT_DIR, require_room},
};
use crate::{
    proto::store::{BlobRecord, CollectionRecord, FaceFacts, FaceIdRecord, FaceVector, SegmentFace, StoreRecord},
    store::{
        CollectionKey, Entry, Keys, Range, Segments, Store, StoreError, StoreExt, Table, Unsealed, Write,
        decode_record, encode_record, erasures,
        files::{remove_file, sync_dir, write_complete},
        identity::{LOST_NUMBERS, STORE_KEY},
        leftovers::LOG_FILE,
        parse_row_key, record_payload,
        segments::SegmentFile,
        tally::Tally,
    },
};

/// Folders of damaged engines have names with this prefix.
const DAMAGED_PREFIX: &str = "damaged-";

/// This file says what a recovery has lost.
const NOTICE_FILE: &str = "recovered";

/// This empty file exists while an engine is opened. In a recovery it gets the notice, and then its name.
const UNDER_WAY_FILE: &str = "recovering";

/// The bytes of a blob's digest, with which the keys of its chunks begin.
const DIGEST_BYTES: usize = 32;

/// The name of this kind of rewriting.
const NAME: &str = "recovery";

/// Counts what a recovery has found, and what it has not.
#[derive(Debug, Default)]
struct Found {
    /// Rows of the small tables, by table.
    n_rows: BTreeMap<Table, u64>,
    n_faces: u64,
    /// Blobs that the damaged engine still had.
    n_blobs: u64,
    /// Blocks of segment files that cannot be read.
    n_blocks_lost: usize,
    /// Faces whose row cannot be read.
    n_unreadable: u64,
}

/// Prepares for opening an engine, which may cut its log when it fails. What is noted here allows a recovery then, now or
/// at a later start; [`forget`] ends it once the engine is open. A log that is shorter than it was allows none, because the
/// disk or a copy of the folder is incomplete, and a whole one may exist.
pub(super) fn prepare(dir: &Path) -> io::Result<()> {
    let under_way = dir.join(UNDER_WAY_FILE);
    if under_way.try_exists()? || is_cut_short(dir) {
        return Ok(());
    }
    write_complete(&under_way, 0o600, |_| Ok(()))
}

/// Adds to the error of an engine that an earlier loss has to be dealt with first.
fn pending(damage: StoreError, notice_file: &Path) -> StoreError {
    match damage {
        StoreError::Corrupt { what, affects } => StoreError::Corrupt {
            what,
            affects: format!(
                "{affects}; an earlier loss is not dealt with: once {} and the folder of the damaged engine beside it are \
                 removed, the engine is built again from the copies beside it",
                notice_file.display()
            ),
        },
        other => other,
    }
}

/// Returns true if a recovery is allowed: see [`prepare`].
pub(super) fn is_allowed(dir: &Path) -> bool {
    dir.join(UNDER_WAY_FILE).exists()
}

fn is_cut_short(dir: &Path) -> bool {
    let n_log_bytes = fs::metadata(dir.join(ENGINE_DIR).join(LOG_FILE)).map_or(0, |found| found.len());
    copies::read_extent(dir).is_none_or(|extent| n_log_bytes < extent.n_log_bytes)
}

/// Builds the engine of a store again.
///
/// # Errors
/// Returns `damage` when there is nothing to build it from, or when an earlier recovery is not dealt with.
pub(super) fn rebuild(
    dir: &Path,
    settings: &SledSettings,
    keys: &Arc<Keys>,
    acknowledged: u64,
    damage: StoreError,
) -> Result<u64, StoreError> {
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    let engine_dir = dir.join(ENGINE_DIR);
    if notice(dir).is_some() {
        return Err(pending(damage, &dir.join(NOTICE_FILE)));
    }
    let extent = copies::read_extent(dir);
    let Some(rows) = copies::read_tables(dir) else { return Err(damage) };
    tracing::error!(%damage, "the engine cannot be opened: it is built again from what is kept beside it");
    let segments = Segments::in_dir(dir.join(SEGMENTS_DIR), settings.reserve_bytes);
    let files = files_without_overlap(segments.all()?);
    require_room(dir, settings, 2 * files.iter().map(SegmentFile::n_bytes).sum::<u64>(), 0)?;
    rewrite::abandon(dir).map_err(io)?;
    let mut new = Growth::open(&dir.join(NEXT_DIR), settings, keys, NAME, &Tally::empty(acknowledged))?;
    let mut found = Found::default();
    let mut collections = BTreeMap::new();
    for (table, (key, value)) in rows {
        if table == Table::Collections {
            let record: CollectionRecord = decode_record(table, &key, &value)?;
            if let Some(key) = CollectionKey::of(&**keys, &record)? {
                collections.insert(record.incarnation, key);
            }
        }
        let value = if (table, key.as_slice()) == (Table::Meta, STORE_KEY) {
            let record: StoreRecord = decode_record(table, &key, &value)?;
            let last = files.iter().map(SegmentFile::last).max().unwrap_or(0).max(record.reserved_up_to);
            encode_record(&StoreRecord { reserved_up_to: last + LOST_NUMBERS, ..record })
        } else {
            value
        };
        *found.n_rows.entry(table).or_default() += 1;
        new.write(vec![Write::Put(table, key, value)])?;
    }
    let mut erased = HashSet::new();
    for (key, record) in erasures::read_rows(&dir.join(JOURNAL_FILE)) {
        new.write(vec![Write::Put(Table::Erasures, key.clone(), encode_record(&record))])?;
        erased.insert(key);
    }
    let mut restored = HashSet::new();
    for file in &files {
        let Some(collection) = collections.get(&file.incarnation()) else { continue };
        let reader = file.reader()?;
        for idx in 0..file.n_blocks() {
            let faces = match reader.block(idx) {
                Ok(faces) => faces,
                Err(error) => {
                    tracing::error!(%error, "a block of faces is lost with the engine");
                    found.n_blocks_lost += 1;
                    continue;
                }
            };
            for face in faces.into_iter().filter(|face| !erased.contains(&collection.row(face.number))) {
                let row = collection.row(face.number);
                match rows_of(keys, collection, face) {
                    Ok(Some(writes)) => {
                        found.n_faces += 1;
                        restored.insert(row);
                        new.write(writes)?;
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::error!(%error, "a face is lost with the engine");
                        found.n_unreadable += 1;
                    }
                }
            }
        }
    }
    if let Ok(old) = Engine::open(&engine_dir, settings, keys) {
        found.n_blobs = add_blobs(&old, &mut new)?;
        add_requests(&old, &mut new)?;
        for collection in collections.values() {
            for (row, vector) in readable(&old, Table::FaceVectors, collection.prefix()) {
                let Some((_, number)) = parse_row_key(&row) else { continue };
                if erased.contains(&row) || restored.contains(&row) {
                    continue;
                }
                let facts = old.get(Table::Faces, &row).ok().flatten().unwrap_or_default();
                // A broken seal: the face was deleted, or the row is damaged.
                if let Ok(Some(writes)) = rows_of(keys, collection, SegmentFace { number, facts, vector }) {
                    found.n_faces += 1;
                    new.write(writes)?;
                }
            }
        }
    }
    new.commit(Vec::new())?;
    let sequence = new.close()?;
    let damaged_dir = free_name(dir).map_err(io)?;
    let notice = found.notice(&damage, &damaged_dir, &dir.join(NOTICE_FILE), extent.map(|extent| extent.n_vectors));
    let under_way = dir.join(UNDER_WAY_FILE);
    write_complete(&under_way, 0o600, |file| file.write_all_at(format!("{notice}\n").as_bytes(), 0)).map_err(io)?;
    // Between the two renames there is no engine of the usual name: see `finish`.
    fs::rename(&engine_dir, &damaged_dir).map_err(io)?;
    sync_dir(dir).map_err(io)?;
    finish(dir).map_err(io)?;
    Ok(sequence)
}

/// Ends a recovery that was interrupted after the damaged engine got another name.
pub(super) fn finish(dir: &Path) -> io::Result<()> {
    let (engine_dir, next_dir, under_way) = (dir.join(ENGINE_DIR), dir.join(NEXT_DIR), dir.join(UNDER_WAY_FILE));
    if !under_way.try_exists()? {
        return Ok(());
    }
    if !engine_dir.try_exists()? && next_dir.try_exists()? && !damaged_dirs(dir)?.is_empty() {
        // Only a complete engine waits while the other has no name.
        fs::rename(&next_dir, &engine_dir)?;
        sync_dir(dir)?;
    }
    // It has the notice since the new engine was complete.
    if engine_dir.try_exists()? && !next_dir.try_exists()? && fs::metadata(&under_way)?.len() > 0 {
        fs::rename(&under_way, dir.join(NOTICE_FILE))?;
    }
    sync_dir(dir)
}

/// Ends what [`prepare`] began: the engine is open.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    remove_file(&dir.join(UNDER_WAY_FILE)).map(drop)
}

/// Copies the blobs of which the old engine still has every chunk; returns their number.
fn add_blobs(old: &Engine, new: &mut Growth) -> Result<u64, StoreError> {
    let mut n_chunks: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for (key, value) in readable(old, Table::BlobChunks, Vec::new()) {
        if let Some(digest) = key.first_chunk::<DIGEST_BYTES>() {
            *n_chunks.entry(digest.to_vec()).or_default() += 1;
        }
        new.write(vec![Write::Put(Table::BlobChunks, key, value)])?;
    }
    let mut n_blobs = 0;
    for (key, value) in readable(old, Table::Blobs, Vec::new()) {
        // Whoever reads a blob verifies its digest. Without the record, a blob can be written again.
        let record = decode_record::<BlobRecord>(Table::Blobs, &key, &value);
        if record.is_ok_and(|record| n_chunks.get(&key).is_some_and(|n| *n == record.n_chunks)) {
            n_blobs += 1;
            new.add(vec![Write::Put(Table::Blobs, key, value)]);
        }
    }
    Ok(n_blobs)
}

/// Copies the remembered request ids that the old engine still has.
fn add_requests(old: &Engine, new: &mut Growth) -> Result<(), StoreError> {
    for (key, value) in readable(old, Table::Requests, Vec::new()) {
        if record_payload(Table::Requests, &key, &value).is_ok() {
            new.write(vec![Write::Put(Table::Requests, key, value)])?;
        }
    }
    Ok(())
}

/// Returns the rows of a table before the first page that cannot be read, and after the last from the other end.
fn readable(old: &Engine, table: Table, prefix: Vec<u8>) -> impl Iterator<Item = Entry> {
    let range = Range { prefix, ..Range::default() };
    let from_end = Range { descending: true, ..range.clone() };
    let mut last = None;
    let mut has_ended = false;
    let forwards: Vec<Entry> =
        old.entries(table, range).inspect(|row| has_ended |= row.is_err()).map_while(Result::ok).collect();
    if let Some((key, _)) = forwards.last() {
        last = Some(key.clone());
    }
    let backwards = has_ended.then(|| {
        old.entries(table, from_end)
            .map_while(Result::ok)
            .take_while(move |(key, _)| last.as_ref().is_none_or(|last| key > last))
    });
    forwards.into_iter().chain(backwards.into_iter().flatten().collect::<Vec<_>>())
}

/// Returns what the notice of a recovery says, as long as there is one.
pub(super) fn notice(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(NOTICE_FILE)).ok().map(|text| text.trim_end().to_owned())
}

fn damaged_dirs(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(DAMAGED_PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn free_name(dir: &Path) -> io::Result<PathBuf> {
    let n_damaged = damaged_dirs(dir)?.len();
    let names = (n_damaged + 1..).map(|n| dir.join(format!("{DAMAGED_PREFIX}{n}")));
    names.into_iter().find(|path| !path.exists()).ok_or_else(|| io::Error::other("no name is free"))
}

/// Returns the files of which none has a number that another has, by collection.
fn files_without_overlap(files: Vec<Result<SegmentFile, StoreError>>) -> Vec<SegmentFile> {
    let mut files: Vec<SegmentFile> = files
        .into_iter()
        .filter_map(|file| file.inspect_err(|error| tracing::error!(%error, "a segment file is lost")).ok())
        .collect();
    files.sort_by_key(|file| (file.incarnation(), file.first(), u64::MAX - file.last()));
    let mut covered: BTreeMap<u64, u64> = BTreeMap::new();
    files.retain(|file| {
        let is_new = covered.get(&file.incarnation()).is_none_or(|last| file.first() > *last);
        if is_new {
            covered.insert(file.incarnation(), file.last());
        }
        is_new
    });
    files
}

/// Returns the rows of a face; `None` when it is erased.
fn rows_of(keys: &Keys, collection: &CollectionKey, face: SegmentFace) -> Result<Option<Vec<Write>>, StoreError> {
    let row = collection.row(face.number);
    let (_, vector) = collection.unseal_row::<FaceVector>(keys, Table::FaceVectors, &row, &face.vector)?;
    let Unsealed::Whole(vector) = vector else { return Ok(None) };
    let facts = collection.unseal_row::<FaceFacts>(keys, Table::Faces, &row, &face.facts);
    let id_row = collection.id_row(&vector.id);
    let mut writes = vec![
        Write::Put(Table::FaceVectors, row.clone(), face.vector),
        Write::Put(Table::FaceIds, id_row, encode_record(&FaceIdRecord { number: face.number })),
    ];
    if facts.is_ok() {
        writes.push(Write::Put(Table::Faces, row, face.facts));
    }
    Ok(Some(writes))
}

impl Found {
    /// Describes what is there again and what is lost.
    fn notice(&self, damage: &StoreError, damaged_dir: &Path, notice: &Path, n_before: Option<u64>) -> String {
        let n_of = |table| self.n_rows.get(&table).copied().unwrap_or(0);
        let faces = match n_before {
            Some(n_before) => format!("{} of {n_before} faces", self.n_faces),
            None => format!("{} faces", self.n_faces),
        };
        let small = EXACT.iter().filter(|table| **table != Table::Meta);
        let small: Vec<String> = small.map(|table| format!("{} {table:?}", n_of(*table))).collect();
        format!(
            "the engine could not be opened ({damage}) and was built again from the copies beside it: {faces}, {}, and {} \
             blobs. {} blocks and {} single faces of segment files could not be read. Lost are the other faces, which \
             were enrolled last, remembered request ids, and weights of which a version now says that they are missing: \
             import those again. The damaged engine is in {}. Once the loss is dealt with, remove that folder and the \
             file {}",
            small.join(", "),
            self.n_blobs,
            self.n_blocks_lost,
            self.n_unreadable,
            damaged_dir.display(),
            notice.display(),
        )
    }
}

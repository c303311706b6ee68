//! Builds an engine again that cannot be opened, from what is kept beside it.
//!
//! sled opens a log whole or not at all: one lost sector is enough. Then the damaged engine gets another name, and a new
//! one gets the rows of the small tables, the erasures of the journal, and the faces of the segment files. What was
//! enrolled after the last segment file, remembered request ids and blobs are lost. A notice counts that, and stays until somebody removes it: until then the store counts as damaged, and the keys of lost faces are kept.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    ENGINE_DIR, JOURNAL_FILE, SEGMENTS_DIR, SledSettings,
    copies::{self, EXACT},
    rewrite::{Growth, NEXT_DIR},
};
use crate::{
    proto::store::{CollectionRecord, FaceFacts, FaceIdRecord, FaceVector, SegmentFace},
    store::{
        CollectionKey, Keys, Segments, StoreError, Table, Unsealed, Write, decode_record, encode_record, erasures,
        files::{sync_dir, write_complete},
        leftovers::LOG_FILE,
        segments::SegmentFile,
        tally::Tally,
    },
};

/// The prefix of the folders of damaged engines.
const DAMAGED_PREFIX: &str = "damaged-";

/// The file that tells of a recovery.
const NOTICE_FILE: &str = "recovered";

/// The name of this kind of rewriting.
const NAME: &str = "recovery";

/// What was found beside the engine, and what was not.
#[derive(Debug, Default)]
struct Found {
    /// Rows of the small tables, by table.
    n_rows: BTreeMap<Table, u64>,
    n_faces: u64,
    /// Blocks of segment files that cannot be read.
    n_blocks_lost: usize,
    /// Faces whose row cannot be read.
    n_unreadable: u64,
}

/// Returns true if the log is shorter than it was. Then the disk or a copy of the folder is incomplete, and a whole one may
/// exist: the engine must not be built again.
pub(super) fn is_cut_short(dir: &Path) -> bool {
    let n_log_bytes = fs::metadata(dir.join(ENGINE_DIR).join(LOG_FILE)).map_or(0, |found| found.len());
    copies::read_extent(dir).is_none_or(|extent| n_log_bytes < extent.n_log_bytes)
}

/// Builds the engine of a store again.
///
/// # Errors
/// Returns `damage` when there is nothing to build it from.
pub(super) fn rebuild(
    dir: &Path,
    settings: &SledSettings,
    keys: &Arc<Keys>,
    acknowledged: u64,
    damage: StoreError,
) -> Result<u64, StoreError> {
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    let engine_dir = dir.join(ENGINE_DIR);
    let extent = copies::read_extent(dir);
    let Some(rows) = copies::read_tables(dir) else { return Err(damage) };
    tracing::error!(%damage, "the engine cannot be opened: it is built again from what is kept beside it");
    let next_dir = dir.join(NEXT_DIR);
    match fs::remove_dir_all(&next_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let mut new = Growth::open(&next_dir, settings, keys, NAME, &Tally::empty(acknowledged))?;
    let mut found = Found::default();
    let mut collections = BTreeMap::new();
    for (table, (key, value)) in rows {
        if table == Table::Collections {
            let record: CollectionRecord = decode_record(table, &key, &value)?;
            if let Some(key) = CollectionKey::of(&**keys, &record)? {
                collections.insert(record.incarnation, key);
            }
        }
        *found.n_rows.entry(table).or_default() += 1;
        new.add(vec![Write::Put(table, key, value)]);
        new.commit_some()?;
    }
    let mut erased = HashSet::new();
    for (key, record) in erasures::read_rows(&dir.join(JOURNAL_FILE)) {
        new.add(vec![Write::Put(Table::Erasures, key.clone(), encode_record(&record))]);
        new.commit_some()?;
        erased.insert(key);
    }
    let segments = Segments::in_dir(dir.join(SEGMENTS_DIR), settings.reserve_bytes);
    for file in files_without_overlap(segments.all()?) {
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
                match rows_of(keys, collection, face) {
                    Ok(Some(writes)) => {
                        found.n_faces += 1;
                        new.add(writes);
                        new.commit_some()?;
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
    new.commit(Vec::new())?;
    let sequence = new.close()?;
    let damaged_dir = free_name(dir).map_err(io)?;
    let notice = found.notice(&damage, &damaged_dir, &dir.join(NOTICE_FILE), extent.map(|extent| extent.n_vectors));
    write_notice(dir, &notice).map_err(io)?;
    // Between the two renames there is no engine of the usual name: see `finish`.
    fs::rename(&engine_dir, &damaged_dir).map_err(io)?;
    sync_dir(dir).map_err(io)?;
    finish(dir).map_err(io)?;
    Ok(sequence)
}

/// Ends a recovery that was interrupted after the damaged engine got another name.
pub(super) fn finish(dir: &Path) -> io::Result<()> {
    let (engine_dir, next_dir) = (dir.join(ENGINE_DIR), dir.join(NEXT_DIR));
    let is_interrupted = !engine_dir.try_exists()? && next_dir.try_exists()? && !damaged_dirs(dir)?.is_empty();
    if !is_interrupted {
        return Ok(());
    }
    fs::rename(&next_dir, &engine_dir)?;
    sync_dir(dir)
}

/// Returns what the notice of a recovery says, as long as there is one.
pub(super) fn notice(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(NOTICE_FILE)).ok().map(|text| text.trim_end().to_owned())
}

fn write_notice(dir: &Path, notice: &str) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    write_complete(&dir.join(NOTICE_FILE), 0o600, |file| file.write_all_at(format!("{notice}\n").as_bytes(), 0))
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
            "the engine could not be opened ({damage}) and was built again from the copies beside it: {faces}, and {}. {} \
             blocks and {} single faces of segment files could not be read. Lost are the faces that were enrolled last, \
             remembered request ids, and weights but the published ones: import those again. The damaged engine is in {}. \
             Once the loss is dealt with, remove that folder and the file {}",
            small.join(", "),
            self.n_blocks_lost,
            self.n_unreadable,
            damaged_dir.display(),
            notice.display(),
        )
    }
}

//! Segment files: the sealed rows of a collection's faces, side by side.
//!
//! They are copies of rows that the engine has. A start reads them instead of the engine's pages, which takes a fraction
//! of the time, and an engine that cannot be opened is built again from them. Rows stay sealed under the keys of their
//! faces, so a file needs no change when a face is erased. A missing or damaged file is written again from the engine.
//!
//! The folder has a folder for each incarnation of a collection, and in it a file for each range of numbers. A file is a
//! header of 4 KiB, which begins with a magic, and blocks of 64 KiB. Header and blocks have a CRC-32 (big endian) of
//! their position, length and message, the length (4 bytes, big endian), the message (`SegmentHeader`, `SegmentBlock`),
//! and zeros. So a sector that is lost affects two blocks at most.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, FileExt},
    path::{Path, PathBuf},
};

use prost::Message;

use super::{
    StoreError,
    files::{free_bytes, sync_dir, write_complete},
};
use crate::proto::store::{SegmentBlock, SegmentFace, SegmentHeader};

/// The beginning of every segment file.
const MAGIC: &[u8; 8] = b"VISAGES1";

const HEADER_BYTES: usize = 4096;

const BLOCK_BYTES: usize = 64 << 10;

/// Bytes of checksum and length.
const FRAME_BYTES: usize = 8;

/// The most bytes by which a face's message grows in a block: its tag and length.
const TAG_BYTES: usize = 1 + 3;

/// The segment files of a store.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    dir: PathBuf,
    reserve_bytes: u64,
}

/// A segment file of a collection.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SegmentFile {
    path: PathBuf,
    header: SegmentHeader,
}

impl Segments {
    /// The files in a folder, which is made when the first is written. Writing leaves twice `reserve_bytes` of the disk
    /// free, because the store needs its reserve more.
    pub(super) fn in_dir(dir: PathBuf, reserve_bytes: u64) -> Self {
        Self { dir, reserve_bytes }
    }

    /// Finds the files of a collection that together have all faces up to some number, in order. Files that others have
    /// replaced, and unfinished ones, are removed. Files after a gap stay until others have their faces, too.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub(crate) fn of(&self, incarnation: u64) -> Result<Vec<SegmentFile>, StoreError> {
        let (mut files, mut unreadable) = (Vec::new(), Vec::new());
        for path in entries(&self.dir_of(incarnation))? {
            match SegmentFile::open(&path) {
                Ok(file) if file.header.incarnation == incarnation => files.push(file),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "a segment file cannot be read");
                    unreadable.push(path);
                }
            }
        }
        files.sort_by_key(|file| (file.header.first, u64::MAX - file.header.last));
        let mut next = 0;
        let mut replaced = Vec::new();
        files.retain(|file| {
            let follows = file.header.first == next;
            if follows {
                next = file.header.last + 1;
            } else if file.header.last < next {
                replaced.push(file.path.clone());
            }
            follows
        });
        let is_replaced = |path: &PathBuf| last_in_name(path).is_none_or(|last| last < next);
        replaced.extend(unreadable.into_iter().filter(is_replaced));
        for path in replaced {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(file = %path.display(), %error, "a segment file that is replaced cannot be removed");
            }
        }
        Ok(files)
    }

    /// Returns all files that can be read, of all collections, without removing any.
    ///
    /// # Errors
    /// When a folder cannot be read.
    pub(super) fn all(&self) -> Result<Vec<Result<SegmentFile, StoreError>>, StoreError> {
        let mut found = Vec::new();
        for dir in entries(&self.dir)?.iter().filter(|dir| dir.is_dir()) {
            // Others are unfinished, or not ours.
            let paths = entries(dir)?.into_iter().filter(|path| last_in_name(path).is_some());
            found.extend(paths.map(|path| SegmentFile::open(&path)));
        }
        Ok(found)
    }

    /// Returns the damage of all files.
    pub(super) fn verify(&self) -> Vec<StoreError> {
        let all = self.all().unwrap_or_else(|error| vec![Err(error)]);
        let damage = |file: SegmentFile| match file.reader() {
            Ok(reader) => (0..file.n_blocks()).filter_map(|idx| reader.block(idx).err()).collect(),
            Err(error) => vec![error],
        };
        let found = all.into_iter().flat_map(|file| file.map_or_else(|error| vec![error], damage));
        // A file that another replaces meanwhile is not missed.
        found.filter(|error| !is_missing(error)).collect()
    }

    /// The highest number that a file covers, by the files' names; no later face has it.
    pub(crate) fn last_number(&self) -> u64 {
        let dirs = entries(&self.dir).unwrap_or_default();
        let paths = dirs.iter().filter(|dir| dir.is_dir()).flat_map(|dir| entries(dir).unwrap_or_default());
        paths.filter_map(|path| last_in_name(&path)).max().unwrap_or(0)
    }

    /// Writes the faces of the numbers from `first` to `last`, in order, and removes the files that this one replaces.
    /// `n_bytes` is about the size of their rows.
    ///
    /// # Errors
    /// [`StoreError::Full`]; the first error of `faces`; when the disk fails. Nothing is changed then.
    pub(crate) fn write(
        &self,
        incarnation: u64,
        (first, last): (u64, u64),
        n_bytes: u64,
        faces: impl Iterator<Item = Result<SegmentFace, StoreError>>,
        replaced: &[SegmentFile],
    ) -> Result<SegmentFile, StoreError> {
        let dir = self.dir_of(incarnation);
        let path = dir.join(format!("{first:016x}-{last:016x}"));
        let io = |source| StoreError::Io { path: path.clone(), source };
        self.make_dir(&dir).map_err(io)?;
        let free_bytes = free_bytes(&dir).map_err(io)?;
        if free_bytes < n_bytes.saturating_add(self.reserve_bytes.saturating_mul(2)) {
            return Err(StoreError::Full { path, free_bytes, reserve_bytes: self.reserve_bytes });
        }
        let mut header = SegmentHeader { incarnation, first, last, n_faces: 0, n_blocks: 0 };
        let mut failure = None;
        let written = write_complete(&path, 0o600, |file| {
            let mut block = SegmentBlock::default();
            let mut n_bytes = FRAME_BYTES;
            for face in faces {
                let face = face.map_err(|error| {
                    failure = Some(error);
                    io::Error::other("the rows cannot be read")
                })?;
                let more = face.encoded_len() + TAG_BYTES;
                if n_bytes + more > BLOCK_BYTES {
                    write_frame(file, header.n_blocks, &std::mem::take(&mut block))?;
                    header.n_blocks += 1;
                    n_bytes = FRAME_BYTES;
                }
                n_bytes += more;
                header.n_faces += 1;
                block.faces.push(face);
            }
            if !block.faces.is_empty() {
                write_frame(file, header.n_blocks, &block)?;
                header.n_blocks += 1;
            }
            let framed = frame(0, &header, HEADER_BYTES - MAGIC.len())?;
            file.write_all_at(&[MAGIC.as_slice(), &framed].concat(), 0)
        });
        if let Some(error) = failure {
            return Err(error);
        }
        written.map_err(io)?;
        for old in replaced.iter().filter(|old| old.path != path) {
            // One that stays is removed at the next start.
            let _ = fs::remove_file(&old.path);
        }
        Ok(SegmentFile { path, header })
    }

    /// Removes the files of all collections but these.
    pub(crate) fn remove_all_but(&self, incarnations: &HashSet<u64>) {
        let Ok(dirs) = entries(&self.dir) else { return };
        let is_kept = |dir: &PathBuf| incarnations.iter().any(|incarnation| self.dir_of(*incarnation) == *dir);
        for dir in dirs.iter().filter(|dir| !is_kept(dir)) {
            if let Err(error) = fs::remove_dir_all(dir) {
                tracing::warn!(dir = %dir.display(), %error, "segment files of a deleted collection cannot be removed");
            }
        }
    }

    /// Removes the files of a deleted collection, whose key is wiped.
    pub(crate) fn remove_collection(&self, incarnation: u64) {
        match fs::remove_dir_all(self.dir_of(incarnation)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(incarnation, %error, "segment files of a deleted collection cannot be removed yet");
            }
            _ => {}
        }
    }

    fn dir_of(&self, incarnation: u64) -> PathBuf {
        self.dir.join(format!("{incarnation:016x}"))
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        sync_dir(&self.dir)?;
        self.dir.parent().map_or(Ok(()), sync_dir)
    }
}

impl SegmentFile {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mut bytes = vec![0; HEADER_BYTES];
        let header = match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => bytes.strip_prefix(MAGIC).and_then(|framed| unframe::<SegmentHeader>(0, framed)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => return Err(io(error)),
        };
        let header = header.ok_or_else(|| damaged(path, "its header"))?;
        Ok(Self { path: path.to_owned(), header })
    }

    /// The collection's incarnation.
    pub(crate) fn incarnation(&self) -> u64 {
        self.header.incarnation
    }

    /// The first number that it covers.
    pub(crate) fn first(&self) -> u64 {
        self.header.first
    }

    /// The last number that it covers.
    pub(crate) fn last(&self) -> u64 {
        self.header.last
    }

    /// The number of its faces, erased ones included.
    pub(crate) fn n_faces(&self) -> usize {
        self.header.n_faces as usize
    }

    /// The number of its blocks.
    pub(crate) fn n_blocks(&self) -> usize {
        self.header.n_blocks as usize
    }

    /// The size of its blocks in bytes.
    pub(crate) fn n_bytes(&self) -> u64 {
        self.header.n_blocks * BLOCK_BYTES as u64
    }

    /// Opens the file to read its blocks.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(crate) fn reader(&self) -> Result<SegmentReader<'_>, StoreError> {
        let file = File::open(&self.path).map_err(|source| StoreError::Io { path: self.path.clone(), source })?;
        Ok(SegmentReader { segment: self, file })
    }
}

/// An open segment file.
pub(crate) struct SegmentReader<'a> {
    segment: &'a SegmentFile,
    file: File,
}

impl SegmentReader<'_> {
    /// Returns the numbers, from first to last, of the faces in a damaged block and in its damaged neighbours behind it;
    /// `None` if the block before it is damaged, too.
    pub(crate) fn numbers_lost(&self, idx: usize) -> Option<(u64, u64)> {
        let first = match idx.checked_sub(1) {
            None => self.segment.first(),
            Some(before) => self.block(before).ok()?.last().map_or(0, |face| face.number + 1),
        };
        let next = (idx + 1..self.segment.n_blocks()).find_map(|idx| self.block(idx).ok()?.first().map(|f| f.number));
        Some((first, next.map_or(self.segment.last(), |next| next.saturating_sub(1))))
    }

    /// Reads the faces of a block.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is damaged or missing.
    pub(crate) fn block(&self, idx: usize) -> Result<Vec<SegmentFace>, StoreError> {
        let path = &self.segment.path;
        let mut bytes = vec![0; BLOCK_BYTES];
        // A sector that the disk cannot read is damage, too.
        let read = self.file.read_exact_at(&mut bytes, block_position(idx as u64));
        let block = read.ok().and_then(|()| unframe::<SegmentBlock>(idx as u64 + 1, &bytes));
        Ok(block.ok_or_else(|| damaged(path, &format!("its block {idx}")))?.faces)
    }
}

fn is_missing(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Returns the last number that a file covers, by its name; `None` for other names.
fn last_in_name(path: &Path) -> Option<u64> {
    let (_, last) = path.file_name()?.to_str()?.split_once('-')?;
    u64::from_str_radix(last, 16).ok()
}

fn block_position(idx: u64) -> u64 {
    HEADER_BYTES as u64 + idx * BLOCK_BYTES as u64
}

fn write_frame(file: &File, idx: u64, block: &SegmentBlock) -> io::Result<()> {
    file.write_all_at(&frame(idx + 1, block, BLOCK_BYTES)?, block_position(idx))
}

/// Encodes a message with its checksum, in `n_bytes` bytes. `position` tells one block of a file from another.
fn frame<M: Message>(position: u64, message: &M, n_bytes: usize) -> io::Result<Vec<u8>> {
    let message = message.encode_to_vec();
    if FRAME_BYTES + message.len() > n_bytes {
        return Err(io::Error::other("a face is too long for a segment file"));
    }
    let length = (message.len() as u32).to_be_bytes();
    let mut bytes = checksum(position, length, &message).to_be_bytes().to_vec();
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&message);
    bytes.resize(n_bytes, 0);
    Ok(bytes)
}

fn unframe<M: Message + Default>(position: u64, bytes: &[u8]) -> Option<M> {
    let (crc, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let message = rest.get(..u32::from_be_bytes(*length) as usize)?;
    if u32::from_be_bytes(*crc) != checksum(position, *length, message) {
        return None;
    }
    M::decode(message).ok()
}

fn checksum(position: u64, length: [u8; 4], message: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&position.to_be_bytes());
    crc.update(&length);
    crc.update(message);
    crc.finalize()
}

/// Returns the paths in a folder, none if it is missing.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let io = |source| StoreError::Io { path: dir.to_owned(), source };
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(io)?,
    };
    let mut paths = found.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>().map_err(io)?;
    paths.sort();
    Ok(paths)
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt {
        what: format!("the segment file {} ({what})", path.display()),
        affects: "its faces are read from the engine instead".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn face(number: u64, n_bytes: usize) -> SegmentFace {
        SegmentFace { number, facts: vec![number as u8; n_bytes / 3], vector: vec![!number as u8; n_bytes] }
    }

    fn write(segments: &Segments, (first, last): (u64, u64), faces: Vec<SegmentFace>) -> SegmentFile {
        segments.write(7, (first, last), 0, faces.into_iter().map(Ok), &[]).unwrap()
    }

    fn read(file: &SegmentFile) -> Vec<SegmentFace> {
        let reader = file.reader().unwrap();
        (0..file.n_blocks()).flat_map(|idx| reader.block(idx).unwrap()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(sizes in prop::collection::vec(0usize..40_000, 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let segments = Segments::in_dir(dir.path().join("segments"), 0);
            let faces: Vec<_> = sizes.iter().enumerate().map(|(i, n)| face(i as u64, *n)).collect();
            let file = write(&segments, (0, 99), faces.clone());
            prop_assert_eq!(segments.of(7).unwrap(), vec![file.clone()]);
            prop_assert_eq!((file.n_faces(), file.first(), file.last()), (faces.len(), 0, 99));
            prop_assert_eq!(read(&file), faces);
        }
    }

    #[test]
    fn a_lost_sector_is_noticed_and_costs_two_blocks_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::in_dir(dir.path().to_owned(), 0);
        let faces: Vec<_> = (0..900).map(|i| face(i, 700)).collect();
        let file = write(&segments, (0, 900), faces);
        let whole = fs::read(&file.path).unwrap();
        for at in (0..whole.len()).step_by(4096) {
            let mut bytes = whole.clone();
            let end = bytes.len().min(at + 4096);
            bytes[at..end].fill(0);
            let is_changed = bytes != whole;
            fs::write(&file.path, bytes).unwrap();
            if at == 0 {
                assert!(matches!(SegmentFile::open(&file.path), Err(StoreError::Corrupt { .. })));
                continue;
            }
            let reader = file.reader().unwrap();
            let lost: Vec<_> = (0..file.n_blocks()).filter(|idx| reader.block(*idx).is_err()).collect();
            assert_eq!(lost.len(), usize::from(is_changed), "at {at}");
            if let [idx] = lost[..] {
                let (first, last) = reader.numbers_lost(idx).unwrap();
                let others = (0..file.n_blocks()).filter(|other| *other != idx).flat_map(|i| reader.block(i).unwrap());
                let mut numbers: Vec<u64> = others.map(|face| face.number).chain(first..=last.min(899)).collect();
                numbers.sort_unstable();
                assert_eq!(numbers, (0..900).collect::<Vec<_>>(), "at {at}");
            }
        }
        // A block in the place of another.
        let mut bytes = whole.clone();
        bytes.copy_within(HEADER_BYTES..HEADER_BYTES + BLOCK_BYTES, HEADER_BYTES + BLOCK_BYTES);
        fs::write(&file.path, bytes).unwrap();
        assert!(file.reader().unwrap().block(1).is_err());
        fs::write(&file.path, &whole[..whole.len() - BLOCK_BYTES]).unwrap();
        assert!(file.reader().unwrap().block(file.n_blocks() - 1).is_err());
    }

    #[test]
    fn only_files_without_a_gap_count() {
        let dir = tempfile::tempdir().unwrap();
        let segments = Segments::in_dir(dir.path().to_owned(), 0);
        let parts = [write(&segments, (0, 9), vec![face(3, 10)]), write(&segments, (10, 19), vec![face(13, 10)])];
        let after_gap = write(&segments, (30, 39), vec![face(33, 10)]);
        fs::write(segments.dir_of(7).join("x.unfinished"), b"half").unwrap();
        assert_eq!(segments.of(7).unwrap(), parts);
        assert!(after_gap.path.exists(), "nothing else may have its faces");
        assert!(!segments.dir_of(7).join("x.unfinished").exists());
        // A process ended before it removed what the new file replaces.
        let merged = segments.write(7, (0, 19), 0, [face(3, 10), face(13, 10)].into_iter().map(Ok), &[]).unwrap();
        assert_eq!(segments.of(7).unwrap(), std::slice::from_ref(&merged));
        assert!(!parts[0].path.exists());
        let failed = segments.write(7, (20, 29), 0, [Err(StoreError::NotEmpty)].into_iter(), &[]);
        assert!(matches!(failed, Err(StoreError::NotEmpty)));
        for (reserve_bytes, n_bytes) in [(u64::MAX / 2, 0), (0, u64::MAX)] {
            let full = Segments::in_dir(dir.path().to_owned(), reserve_bytes);
            let refused = full.write(7, (20, 29), n_bytes, std::iter::empty(), &[]);
            assert!(matches!(refused, Err(StoreError::Full { .. })));
        }
        assert_eq!(segments.of(7).unwrap(), std::slice::from_ref(&merged));
        assert!(segments.write(7, (20, 29), 0, [Ok(face(20, BLOCK_BYTES))].into_iter(), &[]).is_err(), "too long");
        let left = fs::read_dir(segments.dir_of(7)).unwrap().count();
        assert_eq!(left, 2, "nothing unfinished is left");
        // The rest is written, and the file after the gap is no longer needed.
        write(&segments, (20, 39), vec![face(33, 10)]);
        assert_eq!(segments.of(7).unwrap().len(), 2);
        assert!(!after_gap.path.exists());
        segments.remove_all_but(&HashSet::new());
        assert_eq!(segments.of(7).unwrap(), []);
    }
}

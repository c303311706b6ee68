//! Blobs with a cache of files: a large blob is read from the store once, and mapped from then on.
//!
//! The folder holds one file for each blob of [`MIN_BYTES`] or more that has been read, named by the blob's digest. A
//! file has the blob's bytes, a CRC-32 of the digest and the bytes, and [`mapped::END`]. The store is the truth: it
//! verifies the digest before a file is written. The checksum is verified whenever a file is mapped, because it takes a
//! tenth of the time of the digest. A missing or damaged file is written again; if that fails, the store serves. So the
//! folder may be deleted at any time.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Blobs, Digest, StoreError, SweepReport, files::remove_file};
use crate::mapped;

/// Smaller blobs are read from the store: opening and mapping a file takes as long as reading a few chunks.
const MIN_BYTES: usize = 64 << 10;

/// The prefix of unfinished files.
const UNFINISHED_PREFIX: &str = "unfinished-";

/// Blobs with a folder of mapped files in front.
pub(crate) struct CachedBlobs<B> {
    blobs: B,
    dir: PathBuf,
    /// The blobs whose files were mapped or written since the start.
    made: Mutex<HashSet<Digest>>,
    /// The size of a blob whose file could not be made, or 0. The failure is logged once, until a file of that size can
    /// be made again. A smaller one proves nothing: a full disk may still have room for it.
    failed_bytes: AtomicUsize,
}

impl<B: Blobs> CachedBlobs<B> {
    /// Keeps files of `blobs` in a folder, made if absent, that no other process uses. Without such a folder
    /// the blobs themselves serve.
    pub(crate) fn open(dir: PathBuf, blobs: B) -> Self {
        let cached = Self { blobs, dir, made: Mutex::default(), failed_bytes: AtomicUsize::new(0) };
        let is_unfinished = |name: &str| name.starts_with(UNFINISHED_PREFIX);
        if let Err(error) = cached.make_dir().and_then(|()| cached.remove(is_unfinished)) {
            cached.cannot_make(1, &error);
        }
        cached
    }

    fn make_dir(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        // An existing folder may have other permissions.
        fs::set_permissions(&self.dir, Permissions::from_mode(0o700))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Maps a blob's file and verifies it.
    fn mapped(&self, digest: &Digest) -> io::Result<Bytes> {
        let file = mapped::map(&File::open(self.path(digest))?)?;
        let n_bytes = match file.split_last_chunk() {
            Some((bytes, found)) if *found == checksum(digest, bytes) => bytes.len(),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its checksum is wrong")),
        };
        self.made.lock().insert(*digest);
        Ok(file.slice(..n_bytes))
    }

    /// Writes a blob's file. Only a finished file ever has its name.
    fn make(&self, digest: &Digest, bytes: &[u8]) -> io::Result<()> {
        self.make_dir()?;
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .permissions(Permissions::from_mode(0o400))
            .tempfile_in(&self.dir)?;
        file.write_all(bytes)?;
        file.write_all(&checksum(digest, bytes))?;
        file.write_all(&[mapped::END])?;
        // A write error must surface now: later, the mapped pages would change under the reader.
        file.as_file().sync_all()?;
        file.persist(self.path(digest))?;
        File::open(&self.dir)?.sync_all()
    }

    fn cannot_make(&self, n_bytes: usize, error: &io::Error) {
        if self.failed_bytes.compare_exchange(0, n_bytes, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let folder = self.dir.display();
            tracing::warn!(%folder, %error, "no files can be made in the cache folder; blobs are read from the store instead");
        }
    }

    /// Removes the files with unwanted names.
    fn remove(&self, is_unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(&is_unwanted) {
                remove_file(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl<B: Blobs> Blobs for CachedBlobs<B> {
    fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        self.blobs.put(bytes)
    }

    fn get(&self, digest: &Digest) -> Result<Bytes, StoreError> {
        let path = self.path(digest);
        let file = path.display();
        match self.mapped(digest) {
            Ok(bytes) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.made.lock().remove(digest) {
                    tracing::warn!(%file, "a cache file is missing; it is written again from the store");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%file, %error, "a cache file is unusable; it is written again from the store");
                if let Err(error) = remove_file(&path) {
                    self.cannot_make(1, &error);
                }
            }
            // No file is to blame, as without access to the folder: one line is enough.
            Err(error) => self.cannot_make(1, &error),
        }
        let bytes = self.blobs.get(digest)?;
        if bytes.len() < MIN_BYTES {
            return Ok(bytes);
        }
        match self.make(digest, &bytes).and_then(|()| self.mapped(digest)) {
            Ok(mapped) => {
                if self.failed_bytes.load(Ordering::Relaxed) <= mapped.len() {
                    self.failed_bytes.store(0, Ordering::Relaxed);
                }
                Ok(mapped)
            }
            Err(error) => {
                self.cannot_make(bytes.len(), &error);
                Ok(bytes)
            }
        }
    }

    fn sweep(&self, live: &HashSet<Digest>) -> Result<SweepReport, StoreError> {
        let report = self.blobs.sweep(live)?;
        self.made.lock().retain(|digest| live.contains(digest));
        let is_orphan = |name: &str| name.parse().is_ok_and(|digest: Digest| !live.contains(&digest));
        if let Err(error) = self.remove(is_orphan) {
            let folder = self.dir.display();
            tracing::warn!(%folder, %error, "files of deleted blobs stay in the cache folder until the next sweep");
        }
        Ok(report)
    }
}

/// Returns the checksum of a blob's file. It includes the digest, so a file with another blob's name counts as damaged.
fn checksum(digest: &Digest, bytes: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(digest.as_bytes());
    hasher.update(bytes);
    hasher.finalize().to_be_bytes()
}

#[cfg(test)]
mod tests;

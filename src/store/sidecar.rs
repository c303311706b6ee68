//! A small file beside the engine's that records the last acknowledged batch. An empty file beside it locks the store.
//!
//! An engine that finds the end of its log damaged truncates it and continues with an older state. The sequence in this
//! file shows that there was a newer one. It is written and synced after the engine's data and before the
//! acknowledgement. So after a power cut it can be older than the engine's state, which is no contradiction, but never
//! newer. Its few bytes lie in one sector, which a disk writes whole or not at all.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::StoreError;

/// The size of sequence and CRC-32, both big endian.
const N_BYTES: usize = 12;

#[derive(Debug)]
pub(super) struct Sidecar {
    file: File,
    path: PathBuf,
    /// Locked until it is closed.
    _lock: File,
}

/// The file that is locked, beside the sidecar.
const LOCK_FILE: &str = "lock";

impl Sidecar {
    /// Opens the file, created if absent, and locks out every other process until it is dropped.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source: io::Error| StoreError::Io { path: path.to_owned(), source };
        let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let lock_path = path.with_file_name(LOCK_FILE);
        let lock = open(&lock_path).map_err(|source| StoreError::Io { path: lock_path, source })?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { path: path.parent().unwrap_or(path).to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        Ok(Self { file: open(path).map_err(io)?, path: path.to_owned(), _lock: lock })
    }

    /// Returns the last acknowledged sequence; `None` for a new file.
    pub(super) fn read(&self) -> Result<Option<u64>, StoreError> {
        let mut bytes = [0; N_BYTES];
        let length = self.file.metadata().map_err(|e| self.io(e))?.len();
        if length == 0 {
            return Ok(None);
        }
        let whole = length == N_BYTES as u64 && self.file.read_exact_at(&mut bytes, 0).is_ok();
        let (sequence, crc) = bytes.split_at(8);
        match sequence.try_into() {
            Ok(number) if whole && crc == crc32fast::hash(sequence).to_be_bytes() => {
                Ok(Some(u64::from_be_bytes(number)))
            }
            _ => Err(StoreError::Corrupt {
                what: format!("{} (its checksum fails)", self.path.display()),
                affects: "acknowledged writes may be missing; import the last export".to_owned(),
            }),
        }
    }

    /// Writes the sequence and syncs it.
    pub(super) fn write(&self, sequence: u64) -> Result<(), StoreError> {
        let mut bytes = sequence.to_be_bytes().to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        self.file.write_all_at(&bytes, 0).and_then(|()| self.file.sync_data()).map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }
}

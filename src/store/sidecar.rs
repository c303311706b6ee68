//! A small file beside the engine's that records the last acknowledged batch, and locks the store.
//!
//! An engine that finds the end of its log damaged truncates it and continues with an older state. The sequence in this
//! file shows that there was a newer one. It is written after the engine's flush and before the acknowledgement, and is
//! not flushed itself: it survives a killed process in the kernel's cache, and after a power loss it can only be older
//! than the engine's state, which is no contradiction.

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
}

impl Sidecar {
    /// Opens the file, created if absent, and locks out every other process until it is dropped.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source: io::Error| StoreError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.parent().unwrap_or(path).to_owned() }),
            Err(TryLockError::Error(e)) => Err(io(e)),
        }
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
                what: self.path.display().to_string(),
                affects: "acknowledged writes may be missing; import the last export".to_owned(),
            }),
        }
    }

    pub(super) fn write(&self, sequence: u64) -> Result<(), StoreError> {
        let mut bytes = sequence.to_be_bytes().to_vec();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        self.file.write_all_at(&bytes, 0).map_err(|e| self.io(e))
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }
}

//! A small file beside the engine's: which batch was acknowledged last, and who has the store open.
//!
//! An engine that finds the end of its log damaged cuts it off and goes on with an older state. The sequence in this
//! file says that there was a newer one. It is written after the engine's flush and before the acknowledgement, and
//! not flushed itself: a killed process leaves it in the kernel's hands, and after a power loss it can only be older
//! than the engine's, which is no contradiction.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::StoreError;

/// Sequence and CRC-32, both big endian.
const N_BYTES: usize = 12;

#[derive(Debug)]
pub(super) struct Sidecar {
    file: File,
    path: PathBuf,
}

impl Sidecar {
    /// Opens the file, made if absent, and keeps every other process out until it is dropped.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let io = |source: io::Error| StoreError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.parent().unwrap_or(path).to_owned() }),
            Err(TryLockError::Error(e)) => Err(io(e)),
        }
    }

    /// The last acknowledged sequence; `None` in a file that was just made.
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
                affects: "it cannot be shown that no acknowledged write is missing; import the last export".to_owned(),
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

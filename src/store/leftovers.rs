//! Files that the engine's interrupted housekeeping leaves in its folder, and how they are set aside.
//!
//! sled keeps its records in the log `db` and in `blobs`. A snapshot lists where the pages are in the log; sled writes
//! it at a start so that the next start need not read the whole log. `conf` describes the log's layout, which is always
//! the same here. Both can be rebuilt, but sled refuses the whole store if one of them is broken, and takes a
//! half-written snapshot of a killed process for a complete one. So they are checked here, by sled's own checksums,
//! before sled opens: opening truncates and zeroes whatever does not fit the snapshot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::StoreError;

/// The log in the engine's folder.
pub(super) const LOG_FILE: &str = "db";

const CONF_FILE: &str = "conf";

/// The prefix of names that sled reads as snapshots.
const SNAPSHOT_PREFIX: &str = "snap.";

/// The suffix of names that sled ignores.
const MOVING_SUFFIX: &str = ".in___motion";

/// The prefix of files set aside; sled reads none of them.
const ASIDE_PREFIX: &str = "aside.";

/// The size of a checksum, and of the length before it in a snapshot.
const CRC_BYTES: usize = 4;
const LENGTH_BYTES: usize = 8;

/// Names in the engine's folder that must be hidden from the engine.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// Finds the snapshots and the configuration that the engine did not finish.
    pub(super) fn unfinished(engine_dir: &Path) -> Result<Self, StoreError> {
        let mut found = Vec::new();
        for path in snapshots(engine_dir)? {
            if !is_finished_snapshot(&path)? {
                found.push(path);
            }
        }
        let conf = engine_dir.join(CONF_FILE);
        if let Some(bytes) = read(&conf)?
            && !has_checksum(&bytes)
        {
            found.push(conf);
        }
        Ok(Self(found))
    }

    /// Finds every snapshot, and the configuration if it is unfinished, so that only the log is left.
    pub(super) fn all_but_the_log(engine_dir: &Path) -> Result<Self, StoreError> {
        let Self(mut found) = Self::unfinished(engine_dir)?;
        found.retain(|path| path.ends_with(CONF_FILE));
        found.extend(snapshots(engine_dir)?);
        Ok(Self(found))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies the folder without them, so that the engine can try to open the rest.
    pub(super) fn copy_without(&self, engine_dir: &Path, to: &Path) -> Result<(), StoreError> {
        for entry in walkdir::WalkDir::new(engine_dir).min_depth(1) {
            let entry = entry.map_err(|e| io_error(engine_dir, e.into()))?;
            let path = entry.path();
            let target = to.join(path.strip_prefix(engine_dir).unwrap_or(path));
            let copied = if self.0.iter().any(|left| path.starts_with(left)) {
                continue;
            } else if entry.file_type().is_dir() {
                fs::create_dir(&target)
            } else {
                fs::copy(path, &target).map(drop)
            };
            copied.map_err(|e| io_error(path, e))?;
        }
        Ok(())
    }

    /// Renames them so that the engine ignores them. Deletes only files that were set aside earlier.
    pub(super) fn set_aside(&self) -> Result<(), StoreError> {
        for path in &self.0 {
            let name = path.file_name().unwrap_or_default();
            let mut aside = std::ffi::OsString::from(ASIDE_PREFIX);
            aside.push(name);
            let aside = path.with_file_name(aside);
            match fs::symlink_metadata(&aside) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&aside).map_err(|e| io_error(&aside, e))?,
                _ => {}
            }
            fs::rename(path, &aside).map_err(|e| io_error(path, e))?;
            tracing::warn!(file = %path.display(), "set aside a leftover file; the store is complete without it");
        }
        Ok(())
    }
}

/// Finds the files that sled reads as snapshots, by name.
fn snapshots(engine_dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = match fs::read_dir(engine_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| io_error(engine_dir, e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| io_error(engine_dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(SNAPSHOT_PREFIX) && !name.ends_with(MOVING_SUFFIX) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns true if a snapshot ends with a valid checksum and has sled's name for a finished one.
fn is_finished_snapshot(path: &Path) -> Result<bool, StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_position = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !name.strip_prefix(SNAPSHOT_PREFIX).is_some_and(is_position) || !path.is_file() {
        return Ok(false);
    }
    let bytes = read(path)?.unwrap_or_default();
    let Some((body, rest)) = bytes.split_last_chunk::<{ LENGTH_BYTES + CRC_BYTES }>() else { return Ok(false) };
    let (length, crc) = rest.split_at(LENGTH_BYTES);
    let is_whole = crc == crc32fast::hash(body).to_le_bytes() && length == (body.len() as u64).to_le_bytes();
    Ok(!body.is_empty() && is_whole)
}

fn has_checksum(bytes: &[u8]) -> bool {
    bytes.split_last_chunk::<CRC_BYTES>().is_some_and(|(body, crc)| *crc == crc32fast::hash(body).to_le_bytes())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, error)),
    }
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}

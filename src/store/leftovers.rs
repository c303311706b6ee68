//! What the engine's interrupted housekeeping leaves in its folder, and how it is set aside.
//!
//! sled keeps its records in the log `db` and in `blobs`. A snapshot is where the pages lie in the log, written at a
//! start so that the next one need not read all of it; `conf` says how the log is laid out, always the same here. Both
//! can be made anew from nothing, but sled refuses the whole store where one of them is broken, and takes a snapshot
//! that was being written when the process was killed for one. So they are judged here, by the checksums that sled
//! itself writes, before it opens: opening cuts off and zeroes what does not fit the snapshot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::StoreError;

/// The log within the engine's folder.
pub(super) const LOG_FILE: &str = "db";

const CONF_FILE: &str = "conf";

/// What begins the names that sled reads as those of snapshots.
const SNAPSHOT_PREFIX: &str = "snap.";

/// What sled itself leaves out.
const MOVING_SUFFIX: &str = ".in___motion";

/// What begins the names of what is set aside; sled reads none of them.
const ASIDE_PREFIX: &str = "aside.";

/// A checksum, and for a snapshot the length before it.
const CRC_BYTES: usize = 4;
const LENGTH_BYTES: usize = 8;

/// Names within the engine's folder that the engine is not to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    /// The snapshots and the configuration that are not as the engine finishes them.
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

    /// Every snapshot, and the configuration where it is unfinished: the log alone is left.
    pub(super) fn all_but_the_log(engine_dir: &Path) -> Result<Self, StoreError> {
        let Self(mut found) = Self::unfinished(engine_dir)?;
        found.retain(|path| path.ends_with(CONF_FILE));
        found.extend(snapshots(engine_dir)?);
        Ok(Self(found))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Copies the folder without them, which lets the engine try what it makes of the rest.
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

    /// Renames them so that the engine does not see them; nothing is deleted but what an earlier time set aside.
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
            tracing::warn!(file = %path.display(), "the store is whole without it; set aside");
        }
        Ok(())
    }
}

/// What sled takes for snapshots, by name.
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

/// Whether a snapshot has the name and the checksum that sled gives it at its end.
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

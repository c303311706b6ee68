//! Overwrites files and syncs folders.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// Bytes that are overwritten at once.
const PIECE_BYTES: usize = 1 << 20;

/// Syncs a folder's own entries: the names of the files in it.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Overwrites all bytes of a file with zeros, and syncs it.
pub(super) fn overwrite(file: &File) -> io::Result<()> {
    let zeros = vec![0; PIECE_BYTES];
    let n_bytes = file.metadata()?.len();
    for at in (0..n_bytes).step_by(PIECE_BYTES) {
        let n = (n_bytes - at).min(PIECE_BYTES as u64) as usize;
        file.write_all_at(&zeros[..n], at)?;
    }
    file.sync_all()
}

/// Creates a file with these permissions, which replaces any of its name. Only the complete and synced file has the name.
pub(super) fn write_complete(path: &Path, mode: u32, fill: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let unfinished = path.with_extension("unfinished");
    remove_file(&unfinished)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&unfinished)?;
    let written = fill(&file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&unfinished, path));
    if let Err(error) = written {
        // It may have filled the disk.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    // A bare name has an empty parent.
    sync_dir(path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new(".")))
}

/// Removes a file that may be absent; returns true if it was there.
pub(super) fn remove_file(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the free bytes of the disk of a folder.
pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

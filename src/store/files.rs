//! Overwrites files and syncs folders.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

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

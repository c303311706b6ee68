//! Makes the engine's writes durable, which sled does not do itself on Linux.
//!
//! After each write to its log, sled calls `sync_file_range`, which only hands the pages to the disk: it flushes neither
//! the disk's own cache nor the file's new length. sled also relies on this call before it reuses a part of the log. So
//! a power cut could lose acknowledged writes, and even older ones. Values that are too large for the log are written to
//! files of their own without any sync.
//!
//! This module defines two C functions, which the linker then takes in place of the C library's. `sync_file_range` is a
//! sync of the data. `pwrite64` syncs new files of large values before it writes to an engine's log, so that the log
//! points to nothing that is not on the disk; for all other files it is the system call. After a failed sync, every
//! later sync of the same engine fails too, until the engine is opened again: see [`write_again`].

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use crate::store::{files::sync_dir, leftovers::LOG_FILE};

/// Bytes that are read and written at once when a file is written again.
const PIECE_BYTES: usize = 1 << 20;

/// sled's folder of large values, beside its log.
const BLOB_DIR: &str = "blobs";

/// The time of a change has the resolution of the kernel's clock tick, so only an older one shows that nothing has
/// changed since. A file that is younger may still be growing.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// An engine that is open in this process.
#[derive(Default)]
struct Watched {
    /// The folder of large values had this time when all its files were synced, and has not changed since.
    settled: Option<SystemTime>,
    /// The files of large values that are on the disk.
    synced: HashSet<OsString>,
    /// The error of the first failed sync.
    failed: Option<i32>,
}

/// By the engine's folder. A server has one store open, tests have several.
static WATCHED: Mutex<BTreeMap<PathBuf, Watched>> = Mutex::new(BTreeMap::new());

/// Begins to watch an engine's folder, or begins anew. The large values that are there now are put on the disk at once.
pub(super) fn watch(engine_dir: &Path) -> io::Result<()> {
    let engine_dir = fs::canonicalize(engine_dir)?;
    let mut watched = Watched::default();
    match fs::read_dir(engine_dir.join(BLOB_DIR)) {
        Ok(entries) => {
            for entry in entries {
                watched.synced.insert(entry?.file_name());
            }
            // One sync of the file system takes less than thousands of its files; without any, it would only wait for
            // what others have written.
            if !watched.synced.is_empty() {
                rustix::fs::syncfs(File::open(&engine_dir)?)?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    WATCHED.lock().insert(engine_dir, watched);
    Ok(())
}

/// Makes every sync of an engine fail, so that it holds no write for done any more.
pub(super) fn fail_from_now_on(engine_dir: &Path) {
    if let Ok(engine_dir) = fs::canonicalize(engine_dir)
        && let Some(watched) = WATCHED.lock().get_mut(&engine_dir)
    {
        watched.failed.get_or_insert(libc::EIO);
    }
}

impl Watched {
    /// Syncs the files that were added to the folder of large values, then the folder.
    fn sync_new_blobs(&mut self, blob_dir: &Path) -> io::Result<()> {
        let modified = match fs::metadata(blob_dir) {
            Ok(metadata) => metadata.modified()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if self.settled == Some(modified) {
            return Ok(());
        }
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > SETTLED_AFTER);
        let (mut synced, mut is_settled, mut is_changed) = (HashSet::new(), is_old(modified), false);
        for entry in fs::read_dir(blob_dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if self.synced.contains(&name) {
                synced.insert(name);
                continue;
            }
            let file = match File::open(entry.path()) {
                // The engine has deleted it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file?,
            };
            let is_whole = is_old(file.metadata()?.modified()?);
            file.sync_all()?;
            is_changed = true;
            if is_whole {
                synced.insert(name);
            } else {
                // Another thread may be writing it: it is synced once more at the next call.
                is_settled = false;
            }
        }
        if is_changed {
            sync_dir(blob_dir)?;
        }
        self.synced = synced;
        self.settled = is_settled.then_some(modified);
        Ok(())
    }
}

/// Writes the engine's closed files again, and syncs them.
///
/// After a failed sync the kernel takes the pages for written: a further sync succeeds, although the disk has them not.
/// The engine would read them from memory, and what it writes behind them would be lost with them.
pub(super) fn write_again(engine_dir: &Path) -> io::Result<()> {
    rewrite(&engine_dir.join(LOG_FILE))?;
    let blob_dir = engine_dir.join(BLOB_DIR);
    if blob_dir.is_dir() {
        for entry in fs::read_dir(&blob_dir)? {
            rewrite(&entry?.path())?;
        }
        sync_dir(&blob_dir)?;
    }
    sync_dir(engine_dir)
}

/// Writes a file's bytes over themselves.
fn rewrite(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(&mut piece, at) {
            Ok(0) => return file.sync_all(),
            Ok(n_bytes) => {
                file.write_all_at(&piece[..n_bytes], at)?;
                at += n_bytes as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod replaced {
    use std::{
        ffi::{c_int, c_uint, c_void},
        fs, io,
        path::{Path, PathBuf},
        sync::atomic::{AtomicU64, Ordering},
    };

    use super::{BLOB_DIR, LOG_FILE, WATCHED};

    /// Syncs and writes of engines' logs so far.
    static N_SYNCS: AtomicU64 = AtomicU64::new(0);
    static N_WRITES: AtomicU64 = AtomicU64::new(0);

    /// Returns how many syncs and writes of engines' logs have come here.
    pub(in crate::store) fn counts() -> (u64, u64) {
        (N_SYNCS.load(Ordering::Relaxed), N_WRITES.load(Ordering::Relaxed))
    }

    /// The engine's folder whose log this is.
    fn engine_of(fd: c_int) -> Option<PathBuf> {
        if WATCHED.lock().is_empty() {
            return None;
        }
        let path = fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let engine_dir = path.parent().filter(|_| path.ends_with(LOG_FILE))?;
        WATCHED.lock().contains_key(engine_dir).then(|| engine_dir.to_owned())
    }

    /// Sets the thread's `errno`.
    fn fail(error: &io::Error) {
        // SAFETY: the C library returns a valid pointer to the calling thread's `errno`.
        unsafe { *libc::__errno_location() = error.raw_os_error().unwrap_or(libc::EIO) };
    }

    /// Takes the place of the C library's function, whose arguments and result it has: see the module.
    ///
    /// # Safety
    /// Nothing is read or written through the arguments; an invalid descriptor is an error.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn sync_file_range(fd: c_int, _offset: i64, _n_bytes: i64, _flags: c_uint) -> c_int {
        match sync(fd) {
            Ok(()) => 0,
            Err(error) => {
                fail(&error);
                -1
            }
        }
    }

    fn sync(fd: c_int) -> io::Result<()> {
        let engine_dir = engine_of(fd);
        if let Some(engine_dir) = &engine_dir {
            N_SYNCS.fetch_add(1, Ordering::Relaxed);
            if let Some(failed) = WATCHED.lock().get(engine_dir).and_then(|watched| watched.failed) {
                return Err(io::Error::from_raw_os_error(failed));
            }
        }
        let synced = synced(fd, engine_dir.as_deref());
        if let (Err(error), Some(engine_dir)) = (&synced, &engine_dir)
            && let Some(watched) = WATCHED.lock().get_mut(engine_dir)
        {
            watched.failed.get_or_insert(error.raw_os_error().unwrap_or(libc::EIO));
        }
        synced
    }

    fn synced(fd: c_int, _engine_dir: Option<&Path>) -> io::Result<()> {
        #[cfg(test)]
        super::tests::fail_if_wanted(_engine_dir)?;
        // SAFETY: a system call without pointers; an invalid descriptor is an error.
        if unsafe { libc::fdatasync(fd) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Takes the place of the C library's function, whose arguments and result it has: see the module.
    ///
    /// # Safety
    /// `bytes` points to `n_bytes` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, n_bytes: usize, offset: i64) -> isize {
        if let Some(engine_dir) = engine_of(fd) {
            N_WRITES.fetch_add(1, Ordering::Relaxed);
            let mut all_watched = WATCHED.lock();
            let watched = all_watched.entry(engine_dir.clone()).or_default();
            if let Err(error) = watched.sync_new_blobs(&engine_dir.join(BLOB_DIR)) {
                watched.failed.get_or_insert(error.raw_os_error().unwrap_or(libc::EIO));
                drop(all_watched);
                fail(&error);
                return -1;
            }
        }
        #[cfg(test)]
        let n_bytes = match super::super::faults::of_fd(fd) {
            Some(super::super::faults::Fault::Short) => n_bytes.div_ceil(2),
            Some(fault) => return super::super::faults::errno(fault) as isize,
            None => n_bytes,
        };
        // SAFETY: the arguments are passed on.
        let done = unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes, n_bytes, offset) } as isize;
        #[cfg(test)]
        if done > 0 {
            // SAFETY: the system has just read so many bytes there.
            let written = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), done as usize) };
            super::super::power_cuts::note_write(fd, offset as usize, written);
        }
        done
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
pub(in crate::store) use replaced::counts;

/// Elsewhere, sled syncs its log itself.
#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
pub(in crate::store) fn counts() -> (u64, u64) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static N_ASKED: AtomicU64 = AtomicU64::new(0);
    let n_asked = N_ASKED.fetch_add(1, Ordering::Relaxed);
    (n_asked, n_asked)
}

#[cfg(test)]
pub(in crate::store) mod tests {
    use super::*;

    /// Engine folders whose syncs fail, and with which error.
    static FAILING: Mutex<Vec<(PathBuf, i32)>> = Mutex::new(Vec::new());

    pub(in crate::store) fn fail_syncs(engine_dir: &Path, error: Option<i32>) {
        let engine_dir = fs::canonicalize(engine_dir).unwrap();
        let mut failing = FAILING.lock();
        failing.retain(|(dir, _)| *dir != engine_dir);
        failing.extend(error.map(|error| (engine_dir, error)));
    }

    pub(super) fn fail_if_wanted(engine_dir: Option<&Path>) -> io::Result<()> {
        let failing = FAILING.lock();
        match failing.iter().find(|(dir, _)| Some(dir.as_path()) == engine_dir) {
            Some((_, error)) => Err(io::Error::from_raw_os_error(*error)),
            None => Ok(()),
        }
    }

    #[test]
    fn new_files_are_synced_until_they_are_old() {
        let dir = tempfile::tempdir().unwrap();
        let mut watched = Watched::default();
        watched.sync_new_blobs(&dir.path().join("absent")).unwrap();
        let old = SystemTime::now() - 10 * SETTLED_AFTER;
        for (name, is_old) in [("old", true), ("young", false)] {
            let file = File::create(dir.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        File::open(dir.path()).unwrap().set_modified(old).unwrap();
        watched.sync_new_blobs(dir.path()).unwrap();
        assert_eq!(watched.synced, HashSet::from(["old".into()]));
        assert_eq!(watched.settled, None, "the young file may be growing");
        File::options().write(true).open(dir.path().join("young")).unwrap().set_modified(old).unwrap();
        watched.sync_new_blobs(dir.path()).unwrap();
        assert_eq!(watched.synced.len(), 2);
        assert_eq!(watched.settled, Some(fs::metadata(dir.path()).unwrap().modified().unwrap()));
        fs::write(dir.path().join("new"), b"x").unwrap();
        watched.sync_new_blobs(dir.path()).unwrap();
        assert_eq!(watched.settled, None);
    }
}

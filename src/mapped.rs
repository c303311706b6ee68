//! Maps files into memory, safely even if a file is truncated while mapped.
//!
//! If a mapped file is truncated or the disk fails, the kernel cannot fill its pages. Reading them raises SIGBUS, which
//! kills the process. A server must survive that. So this module lists its mappings, and its signal handler looks the
//! faulting address up in the list. It replaces all pages of a listed mapping by zeros, and the reader continues. For
//! any other address, the earlier signal action applies.
//!
//! After reading, callers check [`is_intact`]. Every file ends with the byte [`END`]; a mapping is intact while that
//! byte is. This also detects a file that lost only part of its last page, which raises no signal. It does not detect
//! writes that leave the length unchanged, so keep the files in a private folder.
//!
//! libwayland and systemd's journal handle this signal the same way. The handler is not registered with
//! `signal-hook-registry`, because that first calls the handler of Rust's standard library, which then removes all
//! handlers.

use std::{
    fs::File,
    io, iter, mem, ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use memmap2::Mmap;
use parking_lot::Mutex;

/// The last byte of every file that is mapped here.
pub(crate) const END: u8 = b'.';

/// Maps a file. Returns its bytes without the last one, which must be [`END`].
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a file without that last byte; any error of the system.
pub(crate) fn map(file: &File) -> io::Result<Bytes> {
    handle_bus_errors()?;
    // SAFETY: the mapping is only read, as bytes, for which any value is valid. If the file is truncated, the handler
    // puts zeros in place of its pages. For that the entry is listed before the first byte is read.
    let map = unsafe { Mmap::map(file)? };
    let mapping = Mapping { entry: Entry::claim(&map)?, map };
    match mapping.map.split_last() {
        Some((&END, content)) => {
            let length = content.len();
            Ok(Bytes::from_owner(mapping).slice(..length))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it is truncated")),
    }
}

/// Returns true if these bytes are still the file's content. Always true for bytes outside all mappings.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    let address = bytes.as_ptr().addr();
    entries().find(|entry| entry.pages().contains(address)).is_none_or(|entry| {
        let end = ptr::with_exposed_provenance::<u8>(entry.end.load(SeqCst));
        // SAFETY: the entry's mapping contains `bytes`, and so lives at least as long; `end` is its last byte.
        // Volatile, because another process or the handler may change it.
        unsafe { ptr::read_volatile(end) == END }
    })
}

/// A listed mapping.
struct Mapping {
    entry: &'static Entry,
    map: Mmap,
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First, because another mapping may get these pages as soon as they are unmapped.
        self.entry.pages.store(Pages::NONE.0, SeqCst);
    }
}

/// The place of a mapping: the number of its first page in the upper bits, the number of pages in the lower bits.
/// Packed into one atomic, so that the handler never reads a half-written value.
#[derive(Clone, Copy)]
struct Pages(u64);

impl Pages {
    const NONE: Self = Self(0);

    /// The unit of start and length. The system's page size is this or a multiple of it.
    const BYTES: usize = 4096;

    const COUNT_BITS: u32 = 28;

    /// Returns `None` beyond 48 bits of address or a terabyte of length, where systems map nothing by default.
    fn of(bytes: &[u8]) -> Option<Self> {
        let (first, n) = (bytes.as_ptr().addr() / Self::BYTES, bytes.len().div_ceil(Self::BYTES));
        let fits = first >> (u64::BITS - Self::COUNT_BITS) == 0 && n >> Self::COUNT_BITS == 0;
        fits.then_some(Self((first as u64) << Self::COUNT_BITS | n as u64))
    }

    fn start(self) -> usize {
        (self.0 >> Self::COUNT_BITS) as usize * Self::BYTES
    }

    fn n_bytes(self) -> usize {
        (self.0 & ((1 << Self::COUNT_BITS) - 1)) as usize * Self::BYTES
    }

    fn contains(self, address: usize) -> bool {
        address.checked_sub(self.start()).is_some_and(|offset| offset < self.n_bytes())
    }
}

/// A slot in the list. Mappings reuse it; it is never freed.
struct Entry {
    /// [`Pages`] of the mapping.
    pages: AtomicU64,
    /// The address of its last byte.
    end: AtomicUsize,
    next: OnceLock<Box<Entry>>,
}

static FIRST: Entry = Entry::new();

fn entries() -> impl Iterator<Item = &'static Entry> {
    iter::successors(Some(&FIRST), |entry| entry.next.get().map(|next| &**next))
}

impl Entry {
    const fn new() -> Self {
        Self { pages: AtomicU64::new(Pages::NONE.0), end: AtomicUsize::new(0), next: OnceLock::new() }
    }

    /// Lists a mapping.
    fn claim(map: &Mmap) -> io::Result<&'static Self> {
        let pages =
            Pages::of(map).ok_or_else(|| io::Error::other("the system maps files beyond 48 bits of address"))?;
        let mut entry = &FIRST;
        while entry.pages.compare_exchange(Pages::NONE.0, pages.0, SeqCst, SeqCst).is_err() {
            entry = entry.next.get_or_init(|| Box::new(Self::new()));
        }
        entry.end.store(map.as_ptr().expose_provenance() + map.len().saturating_sub(1), SeqCst);
        Ok(entry)
    }

    fn pages(&self) -> Pages {
        Pages(self.pages.load(SeqCst))
    }
}

/// The action for SIGBUS before ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs [`on_bus_error`] as the handler, once.
fn handle_bus_errors() -> io::Result<()> {
    static IS_DONE: Mutex<bool> = Mutex::new(false);
    let mut is_done = IS_DONE.lock();
    if *is_done {
        return Ok(());
    }
    let checked = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: `sigaction` holds plain numbers, for which zeros are valid; both pointers refer to live values. The
    // handler has the signature that SA_SIGINFO requires, and is signal-safe: see there.
    unsafe {
        let mut before: libc::sigaction = mem::zeroed();
        checked(libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before))?;
        BEFORE.get_or_init(|| before);
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        // Use the thread's signal stack, as the standard library's handler does.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        checked(libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()))?;
    }
    *is_done = true;
    Ok(())
}

/// The signal handler. It may interrupt any code, so it takes no lock and allocates nothing: it only loads atomics and
/// makes system calls.
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system passes a valid `siginfo_t`.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Other codes mean that a process sent the signal; then there is no address.
    let is_fault = code > 0;
    if let Some(pages) = entries().map(Entry::pages).find(|pages| is_fault && pages.contains(address)) {
        let start = ptr::without_provenance_mut(pages.start());
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: these are all pages of one mapping of this module. It is alive, because one of its readers faulted.
        // Readers then see other bytes, which `map` allows for.
        if unsafe { libc::mmap(start, pages.n_bytes(), libc::PROT_READ, flags, -1, 0) } != libc::MAP_FAILED {
            return;
        }
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: the system returned `before`. A fault recurs by itself when its instruction reruns; a sent signal is
        // raised again.
        unsafe {
            libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
            if !is_fault {
                libc::raise(libc::SIGBUS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env, fs, hint,
        os::unix::process::ExitStatusExt,
        path::Path,
        process::{Command, ExitStatus},
        thread,
    };

    use super::*;

    const IS_CHILD: &str = "VISAGE_TEST_CHILD";
    const N_BYTES: usize = 3 << 20;

    /// Runs one of these tests again in its own process; returns `None` in that process.
    fn child(test: &str) -> Option<ExitStatus> {
        if env::var_os(IS_CHILD).is_some() {
            return None;
        }
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &format!("mapped::tests::{test}"), "--quiet"]).env(IS_CHILD, "1");
        Some(command.status().unwrap())
    }

    fn write(path: &Path) -> Bytes {
        fs::write(path, [&[7; N_BYTES][..], &[END]].concat()).unwrap();
        map(&File::open(path).unwrap()).unwrap()
    }

    fn cut(path: &Path, n_bytes: usize) {
        File::options().write(true).open(path).unwrap().set_len(n_bytes as u64).unwrap();
    }

    #[test]
    fn a_whole_file_is_its_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes = write(&path);
        assert!(bytes == [7; N_BYTES][..] && is_intact(&bytes) && is_intact(&bytes[9..10]));
        fs::remove_file(&path).unwrap();
        assert!(bytes == [7; N_BYTES][..] && is_intact(&bytes), "a name that is gone takes nothing away");
        for damaged in [&b""[..], b"without the end"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(map(&File::open(&path).unwrap()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert!(is_intact(b"of no file") && is_intact(&[]));
    }

    #[test]
    fn a_file_cut_while_it_is_read_ends_no_process() {
        if let Some(status) = child("a_file_cut_while_it_is_read_ends_no_process") {
            assert!(status.success(), "{status}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<_> = ["read", "later", "by a byte", "never"].map(|name| dir.path().join(name)).into();
        let files: Vec<_> = paths.iter().map(|path| write(path)).collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                // Each reads until it finds the zeros of the cut.
                scope.spawn(|| while hint::black_box(&files[0]).iter().all(|byte| *byte == 7) {});
            }
            cut(&paths[0], N_BYTES / 3);
        });
        // The handler still works: for another file, and for a page not read before.
        cut(&paths[1], 0);
        cut(&paths[2], N_BYTES);
        assert_eq!(files[1][N_BYTES - 1], 0);
        assert!(files[2] == [7; N_BYTES][..], "a cut that raises no signal");
        assert_eq!(files.iter().map(|bytes| is_intact(bytes)).collect::<Vec<_>>(), [false, false, false, true]);
        assert!(files[3] == [7; N_BYTES][..]);
        // New files reuse the slots of the old ones, and start intact.
        drop(files);
        assert!(paths.iter().all(|path| is_intact(&write(path))));
    }

    #[test]
    fn another_bus_error_still_ends_the_process() {
        if let Some(status) = child("another_bus_error_still_ends_the_process") {
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        let _ours = write(&ours);
        drop(write(&other));
        // SAFETY: reading it kills this process, as the test expects.
        let other_map = unsafe { Mmap::map(&File::open(&other).unwrap()).unwrap() };
        cut(&other, 0);
        panic!("read {}", other_map[0]);
    }
}

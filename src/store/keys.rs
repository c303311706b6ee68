//! The keys of sealed values: a file of fixed slots, each of which is overwritten in place to wipe its key.
//!
//! The file has a header of 4 KiB and then slots of 64 bytes, so that no slot crosses a sector of the disk. A slot holds
//! a random key, sealed under the store key for this file and slot, or it is wiped: all its bits are set. Anything else
//! is damage. One sync makes 1,024 keys; the caller that takes the first of them waits for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    StoreError,
    files::{overwrite, write_complete},
    sealing::{KEY_BYTES, Key, SEAL_BYTES},
};
use parking_lot::Mutex;

/// The beginning of every file of keys.
pub(super) const MAGIC: &[u8; 8] = b"VISAGEK1";

const HEADER_BYTES: usize = 4096;

const SALT_BYTES: usize = 32;

const SLOT_BYTES: usize = 64;

const WIPED: [u8; SLOT_BYTES] = [u8::MAX; SLOT_BYTES];

/// No key and not wiped.
const DAMAGED: [u8; SLOT_BYTES] = [0; SLOT_BYTES];

/// Keys that are made, and synced, together.
const BLOCK: u64 = 1024;

/// Slots that are read at once when all are looked through.
const PIECE: usize = 16_384;

/// A key and the number of its slot.
#[derive(Clone, Debug)]
pub(crate) struct SlotKey {
    /// The slot's number.
    pub slot: u64,
    /// Its key.
    pub key: Key,
}

/// Finds keys by their slots.
pub(crate) trait SlotKeys {
    /// Returns the key of a slot; `None` when it was wiped.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for a damaged slot.
    fn get(&self, slot: u64) -> Result<Option<Key>, StoreError>;
}

/// The keys of a store.
pub(crate) struct Keys {
    medium: Medium,
    /// The store key for this file alone.
    wrapping: Key,
    /// The number of slots.
    n_slots: AtomicU64,
    /// Keys that are on the disk and not given out yet.
    ready: Mutex<Vec<SlotKey>>,
    /// Slots that must be wiped, until they are on the disk.
    to_wipe: Mutex<BTreeSet<u64>>,
    /// Wiped slots, for new keys. Locked by whoever writes and syncs: the system tells a failed sync to only one of those
    /// who sync the same file.
    free: Mutex<BTreeSet<u64>>,
    is_new: bool,
}

/// Where the slots are.
enum Medium {
    File(PathBuf, File),
    #[cfg(test)]
    Memory(Mutex<Vec<u8>>),
}

impl Medium {
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(_, file) => file.read_exact_at(bytes, at),
            #[cfg(test)]
            Self::Memory(memory) => {
                bytes.copy_from_slice(&memory.lock()[at as usize..at as usize + bytes.len()]);
                Ok(())
            }
        }
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(_, file) => file.write_all_at(bytes, at),
            #[cfg(test)]
            Self::Memory(memory) => {
                let (mut memory, at) = (memory.lock(), at as usize);
                let end = memory.len().max(at + bytes.len());
                memory.resize(end, 0);
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Self::File(_, file) => file.sync_data(),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::File(path, _) => path,
            #[cfg(test)]
            Self::Memory(_) => Path::new("memory"),
        }
    }
}

impl Keys {
    /// Makes an empty file, which gets its name only when it is complete, and opens it.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn create(path: &Path, store_key: &Key) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        write_new(path, store_key, |_, _| Ok(())).map_err(io)?;
        Ok(Self { is_new: true, ..Self::open(path, store_key)? })
    }

    /// Opens the file.
    ///
    /// # Errors
    /// [`StoreError::Key`] when this is not its store key, [`StoreError::Corrupt`] when its header is damaged.
    pub(super) fn open(path: &Path, store_key: &Key) -> Result<Self, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io)?;
        let mut header = [0; HEADER_BYTES];
        let wrapping = match file.read_exact_at(&mut header, 0) {
            Ok(()) => unwrap_header(&header, store_key),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(WrongHeader::Damaged),
            Err(error) => return Err(io(error)),
        };
        let wrapping = wrapping.map_err(|wrong| match wrong {
            WrongHeader::Damaged => StoreError::Corrupt {
                what: format!("the header of {}", path.display()),
                affects: "no face can be read; import the last export".to_owned(),
            },
            WrongHeader::OtherKey => StoreError::Key {
                path: path.to_owned(),
                why: "the file is sealed under another store key than the configured one (store.key_file)".to_owned(),
            },
        })?;
        // A power cut may leave a part of the last slot.
        let n_slots = (file.metadata().map_err(io)?.len() - HEADER_BYTES as u64) / SLOT_BYTES as u64;
        let medium = Medium::File(path.to_owned(), file);
        Ok(Self::of(medium, wrapping, n_slots))
    }

    /// Returns true if the file was made by this process.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Keys that end with the process.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::of(Medium::Memory(Mutex::default()), Key::random(), 0)
    }

    fn of(medium: Medium, wrapping: Key, n_slots: u64) -> Self {
        Self {
            medium,
            wrapping,
            n_slots: AtomicU64::new(n_slots),
            ready: Mutex::default(),
            to_wipe: Mutex::default(),
            free: Mutex::default(),
            is_new: false,
        }
    }

    /// Returns a new key, which is on the disk. A key that is not used in the end must be discarded.
    ///
    /// # Errors
    /// [`StoreError::WritesFail`].
    pub(crate) fn take(&self) -> Result<SlotKey, StoreError> {
        loop {
            if let Some(made) = self.ready.lock().pop() {
                return Ok(made);
            }
            let mut free = self.free.lock();
            // Another thread may have made some meanwhile.
            if self.ready.lock().is_empty() {
                self.make_block(&mut free).map_err(|error| self.refuses(&error))?;
            }
        }
    }

    /// Makes keys in wiped slots, and in new ones at the end.
    fn make_block(&self, free: &mut BTreeSet<u64>) -> io::Result<()> {
        let end = self.n_slots();
        let reused: Vec<u64> = free.iter().copied().take(BLOCK as usize).collect();
        let n_new = BLOCK - reused.len() as u64;
        let make = |slot| SlotKey { slot, key: Key::random() };
        let reused: Vec<_> = reused.into_iter().map(make).collect();
        let new: Vec<_> = (end..end + n_new).map(make).collect();
        for made in &reused {
            self.medium.write(&self.wrap(made), position(made.slot))?;
        }
        let block: Vec<u8> = new.iter().flat_map(|made| self.wrap(made)).collect();
        if !block.is_empty() {
            self.medium.write(&block, position(end))?;
        }
        // After a failure, the slots stay free: whatever was written there is overwritten by the next key.
        self.medium.sync()?;
        self.n_slots.store(end + n_new, Ordering::Release);
        free.retain(|slot| reused.binary_search_by_key(slot, |made| made.slot).is_err());
        // The lowest slots are given out first.
        self.ready.lock().extend(reused.into_iter().chain(new).rev());
        Ok(())
    }

    /// Wipes these slots and those of earlier calls: once it returns, they are overwritten on the disk.
    ///
    /// # Errors
    /// [`StoreError::WritesFail`]: the slots are wiped later, with those of the next call.
    pub(crate) fn wipe(&self, slots: impl IntoIterator<Item = u64>) -> Result<(), StoreError> {
        self.to_wipe.lock().extend(slots);
        let mut free = self.free.lock();
        // Whoever waited for the lock may find that its slots are wiped already.
        let waiting = self.to_wipe.lock().clone();
        if waiting.is_empty() {
            return Ok(());
        }
        let written = waiting.iter().try_for_each(|slot| self.medium.write(&WIPED, position(*slot)));
        written.and_then(|()| self.medium.sync()).map_err(|error| self.refuses(&error))?;
        self.to_wipe.lock().retain(|slot| !waiting.contains(slot));
        free.extend(waiting);
        Ok(())
    }

    /// Queues the slot of an unused key: the next [`Keys::wipe`] or the next start wipes it.
    pub(crate) fn discard(&self, slot: u64) {
        self.to_wipe.lock().insert(slot);
    }

    /// Wipes every slot but these. Called once, before keys are taken concurrently.
    ///
    /// # Errors
    /// [`StoreError::WritesFail`]; when the disk cannot be read.
    pub(crate) fn sweep(&self, used: &HashSet<u64>) -> Result<(), StoreError> {
        let mut free = self.free.lock();
        let ready: HashSet<u64> = self.ready.lock().iter().map(|made| made.slot).collect();
        let (mut found, mut n_wiped) = (BTreeSet::new(), 0);
        self.each_slot(|slot, bytes| {
            if used.contains(&slot) || ready.contains(&slot) {
                return Ok(());
            }
            if bytes != WIPED {
                self.medium.write(&WIPED, position(slot)).map_err(|error| self.refuses(&error))?;
                n_wiped += 1;
            }
            found.insert(slot);
            Ok(())
        })?;
        if n_wiped > 0 {
            self.medium.sync().map_err(|error| self.refuses(&error))?;
        }
        *free = found;
        self.to_wipe.lock().clear();
        Ok(())
    }

    /// Returns the keys of all slots that are neither wiped nor damaged.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn all(&self) -> Result<Vec<SlotKey>, StoreError> {
        let mut found = Vec::new();
        self.each_slot(|slot, bytes| {
            if bytes != WIPED {
                found.extend(self.unwrap(slot, bytes).map(|key| SlotKey { slot, key }));
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Puts keys of an export into their slots. A key that the export does not have is damaged, not wiped.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn restore(&self, keys: &BTreeMap<u64, Option<Key>>) -> Result<(), StoreError> {
        let _free = self.free.lock();
        for (slot, key) in keys {
            let end = self.n_slots();
            if *slot >= end {
                let gap: Vec<u8> = (end..=*slot).flat_map(|_| WIPED).collect();
                self.medium.write(&gap, position(end)).map_err(|error| self.io(error))?;
                self.n_slots.store(slot + 1, Ordering::Release);
            }
            let bytes = match key {
                Some(key) => self.wrap(&SlotKey { slot: *slot, key: key.clone() }),
                None => DAMAGED,
            };
            self.medium.write(&bytes, position(*slot)).map_err(|error| self.io(error))?;
        }
        self.medium.sync().map_err(|error| self.io(error))
    }

    /// Writes all keys under a new store key. The old file is replaced at once, and its bytes are overwritten.
    ///
    /// # Errors
    /// When the disk fails; the file is then under one of the two store keys.
    pub(super) fn rewrap(path: &Path, old: &Key, new: &Key) -> Result<u64, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let keys = Self::open(path, old)?;
        let (n_slots, all) = (keys.n_slots(), keys.all()?);
        let mut damaged = Vec::new();
        keys.each_slot(|slot, bytes| {
            if bytes != WIPED && keys.unwrap(slot, bytes).is_none() {
                damaged.push(slot);
            }
            Ok(())
        })?;
        write_new(path, new, |file, wrapping| {
            let wiped = vec![u8::MAX; PIECE * SLOT_BYTES];
            for first in (0..n_slots).step_by(PIECE) {
                let n = (n_slots - first).min(PIECE as u64) as usize;
                file.write_all_at(&wiped[..n * SLOT_BYTES], position(first))?;
            }
            for kept in &all {
                file.write_all_at(&wrap(wrapping, kept), position(kept.slot))?;
            }
            for slot in &damaged {
                file.write_all_at(&DAMAGED, position(*slot))?;
            }
            Ok(())
        })
        .map_err(io)?;
        // Its name is gone, its bytes are not.
        match &keys.medium {
            Medium::File(_, file) => overwrite(file).map_err(io)?,
            #[cfg(test)]
            Medium::Memory(_) => {}
        }
        Ok(all.len() as u64)
    }

    fn n_slots(&self) -> u64 {
        self.n_slots.load(Ordering::Acquire)
    }

    fn each_slot(&self, mut each: impl FnMut(u64, &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let n_slots = self.n_slots();
        let mut piece = vec![0; PIECE * SLOT_BYTES];
        for first in (0..n_slots).step_by(PIECE) {
            let n = (n_slots - first).min(PIECE as u64) as usize;
            let piece = &mut piece[..n * SLOT_BYTES];
            self.medium.read(piece, position(first)).map_err(|error| self.io(error))?;
            for (slot, bytes) in (first..).zip(piece.chunks_exact(SLOT_BYTES)) {
                each(slot, bytes)?;
            }
        }
        Ok(())
    }

    fn wrap(&self, made: &SlotKey) -> [u8; SLOT_BYTES] {
        wrap(&self.wrapping, made)
    }

    fn unwrap(&self, slot: u64, bytes: &[u8]) -> Option<Key> {
        let sealed = bytes.get(..KEY_BYTES + SEAL_BYTES)?;
        let key = self.wrapping.unseal(&slot.to_be_bytes(), sealed)?;
        Some(Key::from_bytes(key.as_slice().try_into().ok()?))
    }

    fn io(&self, source: io::Error) -> StoreError {
        StoreError::Io { path: self.medium.path().to_owned(), source }
    }

    fn refuses(&self, error: &io::Error) -> StoreError {
        StoreError::WritesFail { why: format!("{}: {error}", self.medium.path().display()).into() }
    }
}

impl SlotKeys for Keys {
    fn get(&self, slot: u64) -> Result<Option<Key>, StoreError> {
        let damaged = || StoreError::Corrupt {
            what: format!("the key slot {slot} of {}", self.medium.path().display()),
            affects: "what is sealed under its key cannot be read; import the last export".to_owned(),
        };
        if slot >= self.n_slots() {
            return Err(damaged());
        }
        let mut bytes = [0; SLOT_BYTES];
        self.medium.read(&mut bytes, position(slot)).map_err(|error| self.io(error))?;
        if bytes == WIPED {
            return Ok(None);
        }
        self.unwrap(slot, &bytes).map(Some).ok_or_else(damaged)
    }
}

impl SlotKeys for HashMap<u64, Key> {
    fn get(&self, slot: u64) -> Result<Option<Key>, StoreError> {
        Ok(HashMap::get(self, &slot).cloned())
    }
}

/// Returns a slot's place in the file.
fn position(slot: u64) -> u64 {
    HEADER_BYTES as u64 + slot * SLOT_BYTES as u64
}

fn wrap(wrapping: &Key, made: &SlotKey) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    let sealed = wrapping.seal(&made.slot.to_be_bytes(), made.key.bytes());
    bytes[..sealed.len()].copy_from_slice(&sealed);
    bytes
}

/// Why a header cannot be used.
enum WrongHeader {
    Damaged,
    OtherKey,
}

/// Makes the header of a new file; returns it and the key that wraps the slots.
///
/// The header is the magic, a salt, a CRC-32 of both, and nothing sealed under the wrapping key, which shows whether a
/// store key is the right one.
fn new_header(store_key: &Key) -> ([u8; HEADER_BYTES], Key) {
    let mut start = MAGIC.to_vec();
    start.extend(rand::random::<[u8; SALT_BYTES]>());
    start.extend(crc32fast::hash(&start).to_be_bytes());
    let wrapping = wrapping_key(store_key, &start);
    let proof = wrapping.seal(&start, &[]);
    start.extend(proof);
    let mut header = [0; HEADER_BYTES];
    header[..start.len()].copy_from_slice(&start);
    (header, wrapping)
}

fn unwrap_header(header: &[u8; HEADER_BYTES], store_key: &Key) -> Result<Key, WrongHeader> {
    let (start, rest) = header.split_at(MAGIC.len() + SALT_BYTES + 4);
    let (checked, crc) = start.split_at(start.len() - 4);
    if !start.starts_with(MAGIC) || crc != crc32fast::hash(checked).to_be_bytes() {
        return Err(WrongHeader::Damaged);
    }
    let wrapping = wrapping_key(store_key, start);
    match wrapping.unseal(start, &rest[..SEAL_BYTES]) {
        Some(_) => Ok(wrapping),
        None => Err(WrongHeader::OtherKey),
    }
}

fn wrapping_key(store_key: &Key, start: &[u8]) -> Key {
    Key::from_bytes(store_key.mac("key slots", start))
}

/// Writes a file of keys; only the complete file has its name.
fn write_new(path: &Path, store_key: &Key, fill: impl FnOnce(&File, &Key) -> io::Result<()>) -> io::Result<()> {
    let (header, wrapping) = new_header(store_key);
    write_complete(path, 0o600, |file| {
        file.write_all_at(&header, 0)?;
        fill(file, &wrapping)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf, Key) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        (dir, path, Key::random())
    }

    #[test]
    fn a_key_is_on_the_disk_before_it_is_given_out_and_gone_once_wiped() {
        let (_dir, path, store_key) = file();
        let keys = Keys::create(&path, &store_key).unwrap();
        let taken: Vec<_> = (0..BLOCK + 10).map(|_| keys.take().unwrap()).collect();
        let slots: HashSet<u64> = taken.iter().map(|taken| taken.slot).collect();
        assert_eq!(slots.len(), taken.len(), "no slot is given out twice");
        let again = Keys::open(&path, &store_key).unwrap();
        for taken in &taken {
            assert_eq!(again.get(taken.slot).unwrap().unwrap().bytes(), taken.key.bytes());
        }
        let gone = &taken[7];
        let before = fs::read(&path).unwrap();
        again.wipe([gone.slot]).unwrap();
        assert!(again.get(gone.slot).unwrap().is_none());
        assert!(keys.get(gone.slot).unwrap().is_none());
        let after = fs::read(&path).unwrap();
        let at = position(gone.slot) as usize;
        assert_ne!(before[at..at + SLOT_BYTES], WIPED);
        assert_eq!(after[at..at + SLOT_BYTES], WIPED);
        assert!(again.get(1 << 40).is_err(), "no such slot");
    }

    #[test]
    fn slots_without_a_value_are_wiped_and_used_again() {
        let (_dir, path, store_key) = file();
        let keys = Keys::create(&path, &store_key).unwrap();
        let taken: Vec<_> = (0..20).map(|_| keys.take().unwrap()).collect();
        drop(keys);
        let keys = Keys::open(&path, &store_key).unwrap();
        let used: HashSet<u64> = taken[..10].iter().map(|taken| taken.slot).collect();
        keys.sweep(&used).unwrap();
        assert_eq!(keys.all().unwrap().len(), 10);
        for taken in &taken[10..] {
            assert!(keys.get(taken.slot).unwrap().is_none());
        }
        let n_before = fs::metadata(&path).unwrap().len();
        let new = keys.take().unwrap();
        assert!(!used.contains(&new.slot));
        // Ten are in use, so a block of new keys needs ten slots more.
        assert_eq!(fs::metadata(&path).unwrap().len(), n_before + 10 * SLOT_BYTES as u64);
        keys.discard(new.slot);
        keys.wipe([]).unwrap();
        assert!(keys.get(new.slot).unwrap().is_none());
    }

    #[test]
    fn another_store_key_and_damage_are_told_apart() {
        let (_dir, path, store_key) = file();
        let taken = Keys::create(&path, &store_key).unwrap().take().unwrap();
        assert!(matches!(Keys::open(&path, &Key::random()), Err(StoreError::Key { .. })));
        let whole = fs::read(&path).unwrap();
        for at in [0, 20, 41] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(matches!(Keys::open(&path, &store_key), Err(StoreError::Corrupt { .. })), "byte {at}");
        }
        fs::write(&path, &whole[..100]).unwrap();
        assert!(matches!(Keys::open(&path, &store_key), Err(StoreError::Corrupt { .. })));
        let mut bytes = whole;
        let at = position(taken.slot) as usize;
        bytes[at..at + SLOT_BYTES].fill(0);
        fs::write(&path, bytes).unwrap();
        let keys = Keys::open(&path, &store_key).unwrap();
        assert!(matches!(keys.get(taken.slot), Err(StoreError::Corrupt { .. })), "a lost sector is not a wiped slot");
    }

    #[test]
    fn a_new_store_key_replaces_the_old_one_at_once() {
        let (_dir, path, old) = file();
        let keys = Keys::create(&path, &old).unwrap();
        let (kept, gone) = (keys.take().unwrap(), keys.take().unwrap());
        keys.wipe([gone.slot]).unwrap();
        drop(keys);
        let new = Key::random();
        Keys::rewrap(&path, &old, &new).unwrap();
        assert!(matches!(Keys::open(&path, &old), Err(StoreError::Key { .. })));
        let keys = Keys::open(&path, &new).unwrap();
        assert_eq!(keys.get(kept.slot).unwrap().unwrap().bytes(), kept.key.bytes());
        assert!(keys.get(gone.slot).unwrap().is_none());
    }

    #[test]
    fn exported_keys_come_back_to_their_slots() {
        let (_dir, path, store_key) = file();
        let keys = Keys::in_memory();
        let taken = keys.take().unwrap();
        let other = Keys::create(&path, &store_key).unwrap();
        let exported = keys.all().unwrap().into_iter().map(|made| (made.slot, Some(made.key)));
        other.restore(&exported.chain([(5_000, None)]).collect()).unwrap();
        assert!(matches!(other.get(5_000), Err(StoreError::Corrupt { .. })), "it was damaged, not wiped");
        assert_eq!(other.get(taken.slot).unwrap().unwrap().bytes(), taken.key.bytes());
        assert_eq!(other.all().unwrap().len(), BLOCK as usize);
    }
}

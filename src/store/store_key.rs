//! The store key, which wraps all other keys: one line of base64 in a file outside the store's folder.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    StoreError,
    files::write_complete,
    sealing::{KEY_BYTES, Key},
};

/// Reads the store key.
///
/// # Errors
/// [`StoreError::Key`] naming the file, when it is missing or holds no key.
pub(super) fn read(path: &Path) -> Result<Key, StoreError> {
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| unusable(path, &error.to_string()))?);
    let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new);
    let key = bytes.ok().and_then(|bytes| <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).ok());
    key.map(Key::from_bytes).ok_or_else(|| unusable(path, "it must hold 32 random bytes in base64, in one line"))
}

/// Reads the store key; makes the file with a random key if it is missing.
///
/// # Errors
/// [`StoreError::Key`].
pub(super) fn read_or_create(path: &Path) -> Result<Key, StoreError> {
    if !path.exists() {
        create(path).map_err(|error| unusable(path, &format!("it cannot be created: {error}")))?;
    }
    read(path)
}

/// Creates the file, readable by its owner alone, with a random key.
fn create(path: &Path) -> io::Result<()> {
    let text = Zeroizing::new(STANDARD.encode(Key::random().bytes()) + "\n");
    write_complete(path, 0o400, |mut file| file.write_all(text.as_bytes()))
}

fn unusable(path: &Path, why: &str) -> StoreError {
    StoreError::Key { path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let missing = read(&path).unwrap_err().to_string();
        assert!(missing.contains("store.key") && missing.contains("No such file"), "{missing}");
        let made = read_or_create(&path).unwrap();
        assert_eq!(read_or_create(&path).unwrap().bytes(), made.bytes());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o400);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "c2hvcnQ=\n").unwrap();
        let short = read(&path).unwrap_err().to_string();
        assert!(short.contains("32 random bytes"), "{short}");
    }
}

//! One image file: read whole, hashed, decoded as serving decodes.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::split::ImageDigest;
use crate::vision::{self, DecodeLimits, Pixels};

/// The largest image file that is read, in bytes. The cap on pixels is the one that users set; this one keeps a
/// wrongly named archive out of memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The file's bytes.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let about = std::fs::metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    if about.len() > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has {} bytes, at most {MAX_FILE_BYTES} are read", about.len())));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or(0));
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// SHA-256 of the file.
pub(super) fn digest(path: &Path) -> io::Result<ImageDigest> {
    Ok(Sha256::digest(read(path)?).into())
}

/// The picture as a network's input, by the same call that serving makes.
pub(super) fn decode(path: &Path, side_px: u32, max_pixels: u64) -> Result<Pixels, String> {
    let bytes = read(path).map_err(|error| error.to_string())?;
    let limits = DecodeLimits { max_pixels, ..DecodeLimits::default() };
    let photo = vision::decode_square(&bytes, &limits, side_px).map_err(|error| error.to_string())?;
    Ok(photo.pixels)
}

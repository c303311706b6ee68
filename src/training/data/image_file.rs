//! Reads, hashes and decodes one image file as serving does.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::split::ImageDigest;
use crate::vision::{self, DecodeLimits, Pixels};

/// The maximum size of an image file in bytes. Users set the cap on pixels; this one keeps an archive with an image's
/// name out of memory.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Reads the file's bytes.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Checked before opening: opening a pipe would wait for its writer.
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

/// Returns the SHA-256 of the file.
pub(super) fn digest(path: &Path) -> io::Result<ImageDigest> {
    Ok(Sha256::digest(read(path)?).into())
}

/// Decodes the image as a network's input, by the same call as serving.
pub(super) fn decode(path: &Path, side_px: u32, max_pixels: u64) -> Result<Pixels, String> {
    let bytes = read(path).map_err(|error| error.to_string())?;
    let limits = DecodeLimits { max_pixels, ..DecodeLimits::default() };
    let photo = vision::decode_square(&bytes, &limits, side_px).map_err(|error| error.to_string())?;
    Ok(photo.pixels)
}

//! Checks a file's outer structure without decoding anything.
//!
//! The decoders are lenient: a JPEG cut in half decodes with a grey lower half, and a WebP chunk may claim more bytes
//! than the file has, which are then allocated. A file is accepted only if it is complete: every segment or chunk lies
//! within the bytes, and the format's end marker is there. If only the container is wrong and no pixel is missing, a
//! copy is repaired, and a note reports it.

use std::borrow::Cow;

use super::PhotoNote;

/// A supported format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// JPEG (JFIF, EXIF), ITU-T T.81.
    Jpeg,
    /// PNG, its third edition.
    Png,
    /// WebP, RFC 9649.
    WebP,
}

/// Why a file is refused: something is missing, or it has too many scans.
pub(super) type Incomplete = &'static str;

const CUT_SHORT: Incomplete = "the file is cut short";

/// The maximum number of scans of a JPEG. Encoders write about ten for a progressive image. Each is a pass over all
/// blocks, however few bytes it has: thirty bytes cost some milliseconds at twelve megapixels, so without a limit a
/// file of some kilobytes would cost seconds.
pub(super) const MAX_JPEG_SCANS: u32 = 64;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A PNG's complete last chunk.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// The bytes of a complete image, for the decoders.
pub(super) struct Whole<'a> {
    /// Without bytes that trail the image; repaired if `note` says so.
    pub(super) bytes: Cow<'a, [u8]>,
    pub(super) note: Option<PhotoNote>,
}

impl<'a> Whole<'a> {
    fn sound(bytes: &'a [u8]) -> Self {
        Self { bytes: bytes.into(), note: None }
    }

    pub(super) fn mended(bytes: Vec<u8>, note: PhotoNote) -> Self {
        Self { bytes: bytes.into(), note: Some(note) }
    }
}

impl Format {
    /// Detects the format from the first bytes, never from a name or a claimed type.
    pub(super) fn sniff(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(b"\xff\xd8\xff") {
            Some(Self::Jpeg)
        } else if bytes.starts_with(PNG_SIGNATURE) {
            Some(Self::Png)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::WebP)
        } else {
            None
        }
    }

    /// The format's name, for messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        }
    }

    /// Returns the image's bytes if it is complete. Two defects are repaired: a PNG without its last chunk, and a WebP
    /// whose header announces missing chunks, which viewers accept and the decoder does not.
    ///
    /// # Errors
    /// What is missing, or that a JPEG has more than [`MAX_JPEG_SCANS`].
    pub(super) fn whole(self, bytes: &[u8]) -> Result<Whole<'_>, Incomplete> {
        match self {
            Self::Jpeg => whole_jpeg(bytes).map(Whole::sound),
            Self::Png => whole_png(bytes),
            Self::WebP => whole_webp(bytes),
        }
    }
}

/// Returns the width and height that a PNG's first chunk claims. They are checked before the PNG decoder is created,
/// which allocates a row at once.
pub(super) fn png_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    (bytes.get(12..16)? == b"IHDR").then_some(())?;
    Some((u32_be(bytes, 16)?, u32_be(bytes, 20)?))
}

/// Follows the segments by their lengths to the end-of-image mark. In entropy-coded data zero follows a byte of 0xff,
/// so the first other mark ends it.
fn whole_jpeg(bytes: &[u8]) -> Result<&[u8], Incomplete> {
    let (mut at, mut n_scans) = (2, 0);
    loop {
        let step = bytes.get(at..).and_then(next_mark).ok_or(CUT_SHORT)?;
        at += step + 1;
        match *bytes.get(at).ok_or(CUT_SHORT)? {
            // A fill byte: the mark's code follows.
            0xff => {}
            // A stuffed byte, a restart mark, or a mark without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 1,
            0xd9 => return bytes.get(..=at).ok_or(CUT_SHORT),
            mark => {
                let length = usize::from(u16_be(bytes, at + 1).ok_or(CUT_SHORT)?);
                if length < 2 {
                    return Err("a segment has no length");
                }
                n_scans += u32::from(mark == 0xda);
                if n_scans > MAX_JPEG_SCANS {
                    return Err("it has too many scans");
                }
                at += 1 + length;
            }
        }
    }
}

/// Returns the position of the next byte that may begin a JPEG's mark.
pub(super) fn next_mark(bytes: &[u8]) -> Option<usize> {
    /// Bytes compared at once; compiles to a few wide instructions.
    const STEP: usize = 32;
    let without = |step: &[u8; STEP]| !step.iter().fold(false, |found, &byte| found | (byte == 0xff));
    let (steps, _) = bytes.as_chunks::<STEP>();
    let start = steps.iter().take_while(|step| without(step)).count() * STEP;
    bytes.get(start..)?.iter().position(|&byte| byte == 0xff).map(|at| start + at)
}

/// Follows the chunks by their lengths to the last one, and keeps those that pixels depend on. Others are read
/// elsewhere or not at all; the decoder would refuse an image for one that is invalid.
fn whole_png(bytes: &[u8]) -> Result<Whole<'_>, Incomplete> {
    let mut at = PNG_SIGNATURE.len();
    let mut has_pixels = false;
    // A copy of the chunks that are kept; made only when one is left out.
    let mut kept: Option<Vec<u8>> = None;
    loop {
        let rest = bytes.get(at..).ok_or(CUT_SHORT)?;
        if has_pixels && rest.len() < PNG_END.len() && PNG_END.starts_with(rest) {
            // The decoder checks that the pixels are complete.
            let mut mended = kept.unwrap_or_else(|| bytes[..at].to_vec());
            mended.extend_from_slice(&PNG_END);
            return Ok(Whole::mended(mended, PhotoNote::EndMissing));
        }
        let length = u32_be(bytes, at).ok_or(CUT_SHORT)? as usize;
        let name = bytes.get(at + 4..at + 8).ok_or(CUT_SHORT)?;
        // Length, name and checksum take four bytes each.
        let end = at.checked_add(length).and_then(|at| at.checked_add(12)).ok_or(CUT_SHORT)?;
        let chunk = bytes.get(at..end).ok_or(CUT_SHORT)?;
        // The name of a chunk that a decoder must know starts with a capital.
        let is_kept = name[0].is_ascii_uppercase() || name == b"tRNS";
        match &mut kept {
            Some(kept) if is_kept => kept.extend_from_slice(chunk),
            None if !is_kept => kept = Some(bytes[..at].to_vec()),
            _ => {}
        }
        match name {
            b"IEND" => return Ok(Whole { bytes: kept.map_or(bytes[..end].into(), Cow::Owned), note: None }),
            b"IDAT" => has_pixels = true,
            _ => {}
        }
        at = end;
    }
}

fn whole_webp(bytes: &[u8]) -> Result<Whole<'_>, Incomplete> {
    let claimed = u32_le(bytes, 4).ok_or(CUT_SHORT)? as usize;
    let end = claimed.checked_add(8).ok_or(CUT_SHORT)?;
    // Some writers count the last chunk's padding but leave it out.
    if end > bytes.len() + usize::from(end.is_multiple_of(2)) {
        return Err(CUT_SHORT);
    }
    let riff = bytes.get(..end.min(bytes.len())).ok_or(CUT_SHORT)?;
    whole_riff_chunks(riff, 12, true)?;
    Ok(without_false_claims(riff))
}

/// The position of the flags in a WebP whose first chunk is the extended header.
const WEBP_FLAGS_AT: usize = 20;

/// The flag of transparency.
const WEBP_ALPHA: u8 = 0x10;

/// The other flags of an extended header and the chunks that they announce.
const WEBP_CLAIMS: [(u8, &[&[u8; 4]]); 4] =
    [(0x20, &[b"ICCP"]), (0x08, &[b"EXIF"]), (0x04, &[b"XMP "]), (0x02, &[b"ANIM", b"ANMF"])];

fn without_false_claims(riff: &[u8]) -> Whole<'_> {
    let (Some(b"VP8X"), Some(&flags)) = (riff.get(12..16), riff.get(WEBP_FLAGS_AT)) else { return Whole::sound(riff) };
    let is_there = |wanted: &[u8; 4]| chunks_of_webp(riff).any(|(name, _)| name == wanted);
    let is_false = |(flag, chunks): &&(u8, &[&[u8; 4]])| flags & flag != 0 && !chunks.iter().all(|c| is_there(c));
    let mut false_flags = WEBP_CLAIMS.iter().filter(is_false).fold(0, |all, (flag, _)| all | flag);
    // A lossless image stores its transparency itself, so there the flag is true without a chunk.
    if is_there(b"VP8 ") && !is_there(b"ALPH") {
        false_flags |= flags & WEBP_ALPHA;
    }
    if false_flags == 0 {
        return Whole::sound(riff);
    }
    let mut mended = riff.to_vec();
    mended[WEBP_FLAGS_AT] = flags & !false_flags;
    Whole::mended(mended, PhotoNote::ChunkMissing)
}

/// Iterates over the top-level chunks of a WebP by name, as far as they lie within the size that its header claims.
pub(super) fn chunks_of_webp(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let end = u32_le(bytes, 4).map_or(0, |claimed| claimed as usize).saturating_add(8).min(bytes.len());
    let mut rest = bytes.get(12..end).unwrap_or_default();
    std::iter::from_fn(move || {
        let (name, after) = rest.split_first_chunk::<4>()?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let body = after.get(..length)?;
        rest = after.get(length + (length & 1)..).unwrap_or_default();
        Some((name, body))
    })
}

/// Iterates over the chunks of a PNG by name up to its end, as far as they lie within the bytes.
pub(super) fn chunks_of_png(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes.get(PNG_SIGNATURE.len()..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let body = after.get(..length)?;
        // Its checksum takes four bytes.
        rest = after.get(length..)?.get(4..).filter(|_| name != b"IEND").unwrap_or_default();
        Some((name, body))
    })
}

/// Iterates over the segments of a JPEG before its first scan, by mark.
pub(super) fn segments_of_jpeg(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    const SCAN: u8 = 0xda;
    let mut rest = bytes.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        loop {
            let at = next_mark(rest)?;
            let (&mark, after) = rest.get(at + 1..)?.split_first()?;
            match mark {
                0xff => rest = rest.get(at + 1..)?,
                0x00 | 0x01 | 0xd0..=0xd8 => rest = after,
                0xd9 | SCAN => return None,
                _ => {
                    let length = usize::from(u16_be(after, 0)?);
                    let body = after.get(2..length)?;
                    rest = after.get(length..)?;
                    return Some((mark, body));
                }
            }
        }
    })
}

/// Checks that every chunk from `at` on lies within `bytes`, including the chunks in an animation's frames.
fn whole_riff_chunks(bytes: &[u8], mut at: usize, frames: bool) -> Result<(), Incomplete> {
    // A remainder too short for a chunk's header is padding.
    while at + 8 <= bytes.len() {
        let length = u32_le(bytes, at + 4).ok_or(CUT_SHORT)? as usize;
        let start = at + 8;
        let end = start.checked_add(length).ok_or(CUT_SHORT)?;
        let chunk = bytes.get(..end).ok_or("a chunk is longer than the file")?;
        if frames && bytes.get(at..at + 4) == Some(b"ANMF") {
            // Sixteen bytes for the frame's position and duration come first.
            whole_riff_chunks(chunk, start + 16, false)?;
        }
        at = end + (length & 1);
    }
    Ok(())
}

fn u16_be(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_be(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u32_le(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

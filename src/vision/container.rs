//! A file's outer structure, read without decoding or allocating anything.
//!
//! The decoders are lenient: a JPEG cut in half comes out with a grey lower half, and a WebP chunk may claim more bytes
//! than the file has, for which memory is then taken. Here a file is refused unless it is whole: every segment or chunk
//! lies within the bytes, and the format's end mark is there.

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

/// Why a file is not whole, or more than whole.
pub(super) type Incomplete = &'static str;

const CUT_SHORT: Incomplete = "the file is cut short";

/// The most scans of a JPEG. Encoders make about ten for a progressive picture. Each is a pass over all blocks, however
/// few bytes it has: of twelve megapixels it costs some milliseconds for thirty bytes, so without a cap a file of some
/// kilobytes would cost seconds.
pub(super) const MAX_JPEG_SCANS: u32 = 64;
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

impl Format {
    /// Tells the format from the first bytes, never from a name or a claimed type.
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

    /// For messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
        }
    }

    /// The image's bytes without what trails it, when it is whole.
    ///
    /// # Errors
    /// What is missing, or that a JPEG has more than [`MAX_JPEG_SCANS`].
    pub(super) fn whole(self, bytes: &[u8]) -> Result<&[u8], Incomplete> {
        match self {
            Self::Jpeg => whole_jpeg(bytes),
            Self::Png => whole_png(bytes),
            Self::WebP => whole_webp(bytes),
        }
    }
}

/// Width and height that a PNG's first chunk claims. The PNG decoder takes memory for a row when it is made, so they
/// must be known before.
pub(super) fn png_dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    (bytes.get(12..16)? == b"IHDR").then_some(())?;
    Some((u32_be(bytes, 16)?, u32_be(bytes, 20)?))
}

/// Follows the segments by their lengths to the end-of-image mark. Inside entropy-coded data a mark's first byte is
/// followed by zero, so the first other mark ends it.
fn whole_jpeg(bytes: &[u8]) -> Result<&[u8], Incomplete> {
    let (mut at, mut n_scans) = (2, 0);
    loop {
        let step = bytes.get(at..).and_then(next_mark).ok_or(CUT_SHORT)?;
        at += step + 1;
        match *bytes.get(at).ok_or(CUT_SHORT)? {
            // A fill byte: the mark's code is still to come.
            0xff => {}
            // A stuffed byte, a restart mark, or one that stands alone.
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

/// Where the next byte is that may begin a JPEG's mark.
pub(super) fn next_mark(bytes: &[u8]) -> Option<usize> {
    /// Looked at in one go; compiled to a few wide instructions.
    const STEP: usize = 32;
    let without = |step: &[u8; STEP]| !step.iter().fold(false, |found, &byte| found | (byte == 0xff));
    let (steps, _) = bytes.as_chunks::<STEP>();
    let start = steps.iter().take_while(|step| without(step)).count() * STEP;
    bytes.get(start..)?.iter().position(|&byte| byte == 0xff).map(|at| start + at)
}

fn whole_png(bytes: &[u8]) -> Result<&[u8], Incomplete> {
    let mut at = PNG_SIGNATURE.len();
    loop {
        let length = u32_be(bytes, at).ok_or(CUT_SHORT)? as usize;
        let name = bytes.get(at + 4..at + 8).ok_or(CUT_SHORT)?;
        // Length, name and checksum take four bytes each.
        let end = at.checked_add(length).and_then(|at| at.checked_add(12)).ok_or(CUT_SHORT)?;
        let so_far = bytes.get(..end).ok_or(CUT_SHORT)?;
        if name == b"IEND" {
            return Ok(so_far);
        }
        at = end;
    }
}

fn whole_webp(bytes: &[u8]) -> Result<&[u8], Incomplete> {
    let claimed = u32_le(bytes, 4).ok_or(CUT_SHORT)? as usize;
    let end = claimed.checked_add(8).ok_or(CUT_SHORT)?;
    // Some writers count the last chunk's padding but leave it out.
    if end > bytes.len() + usize::from(end.is_multiple_of(2)) {
        return Err(CUT_SHORT);
    }
    let riff = bytes.get(..end.min(bytes.len())).ok_or(CUT_SHORT)?;
    whole_riff_chunks(riff, 12, true)?;
    Ok(riff)
}

/// Checks that every chunk from `at` on lies within `bytes`; those of an animation's frames, too.
fn whole_riff_chunks(bytes: &[u8], mut at: usize, frames: bool) -> Result<(), Incomplete> {
    // A remainder too short for a chunk's header is padding.
    while at + 8 <= bytes.len() {
        let length = u32_le(bytes, at + 4).ok_or(CUT_SHORT)? as usize;
        let start = at + 8;
        let end = start.checked_add(length).ok_or(CUT_SHORT)?;
        let chunk = bytes.get(..end).ok_or("a chunk is longer than the file")?;
        if frames && bytes.get(at..at + 4) == Some(b"ANMF") {
            // Sixteen bytes of the frame's place and duration come first.
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

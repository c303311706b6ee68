//! Reads a photo's orientation from the file's bytes, as leniently as common readers.
//!
//! The decoders read less: of several Exif segments they take the last, and of a PNG only what precedes its pixels. The
//! detector misses faces that lie on their side, so every place and spelling counts that browsers, Pillow or exiftool
//! accept. The first valid value wins, and XMP is read last. Invalid values count as absent.

use std::{borrow::Cow, io::Read};

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;

use super::container::{Format, chunks_of_png, chunks_of_webp, segments_of_jpeg};

/// TIFF's tag of the orientation, 1 to 8.
const ORIENTATION_TAG: u16 = 0x0112;

/// The maximum number of directory entries that are read; cameras write some dozens.
const MAX_ENTRIES: u16 = 1024;

const XMP_SEGMENT: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
const XMP_TEXT: &[u8] = b"XML:com.adobe.xmp";
const XMP_PROPERTY: &[u8] = b"tiff:Orientation";

/// Keywords of hexadecimal blocks, which ImageMagick and exiftool write into a PNG's texts.
const RAW_EXIF: [&[u8]; 2] = [b"Raw profile type exif", b"Raw profile type APP1"];
const RAW_XMP: &[u8] = b"Raw profile type xmp";

/// How many bytes of a compressed text are unpacked (the property stands near the beginning), and how many texts are
/// read. A thousand bytes may expand to a million, and a file may hold many thousands of texts.
const MAX_TEXT_BYTES: u64 = 1 << 20;
const MAX_TEXTS: usize = 16;

/// Returns the file's orientation, or upright if it has none.
pub(super) fn of(format: Format, bytes: &[u8]) -> Orientation {
    let (mut exif, mut xmp) = (None, None);
    let mut read_block = |is_exif: bool, body: &[u8]| {
        if is_exif {
            exif = exif.or_else(|| of_exif(body));
        } else {
            xmp = xmp.or_else(|| of_xmp(body));
        }
    };
    match format {
        Format::Jpeg => {
            for (_, body) in segments_of_jpeg(bytes).filter(|(mark, _)| *mark == 0xe1) {
                read_block(!body.starts_with(XMP_SEGMENT), body);
            }
        }
        Format::Png => {
            let mut n_texts = 0;
            for (name, body) in chunks_of_png(bytes) {
                match name {
                    b"eXIf" => read_block(true, body),
                    b"tEXt" | b"zTXt" | b"iTXt" if is_of_metadata(body) && n_texts < MAX_TEXTS => {
                        n_texts += 1;
                        if let Some((is_exif, block)) = block_of_text(name, body) {
                            read_block(is_exif && !block.starts_with(XMP_SEGMENT), &block);
                        }
                    }
                    _ => {}
                }
            }
        }
        Format::WebP => {
            for (name, body) in chunks_of_webp(bytes) {
                match name {
                    b"EXIF" => read_block(true, body),
                    b"XMP " => read_block(false, body),
                    _ => {}
                }
            }
        }
    }
    exif.or(xmp).unwrap_or(Orientation::NoTransforms)
}

/// Returns true if a PNG's text may hold Exif or XMP, judged by its keyword.
fn is_of_metadata(body: &[u8]) -> bool {
    let keyword = body.split(|&b| b == 0).next().unwrap_or_default();
    RAW_EXIF.contains(&keyword) || keyword == RAW_XMP || keyword == XMP_TEXT
}

/// Returns the Exif (true) or XMP (false) block in one of a PNG's metadata texts.
fn block_of_text<'a>(name: &[u8; 4], body: &'a [u8]) -> Option<(bool, Cow<'a, [u8]>)> {
    let at_zero = |bytes: &'a [u8]| {
        let at = bytes.iter().position(|&b| b == 0)?;
        Some((&bytes[..at], &bytes[at + 1..]))
    };
    let (keyword, rest) = at_zero(body)?;
    let (is_compressed, text) = match name {
        b"tEXt" => (false, rest),
        b"zTXt" => (true, rest.get(1..)?),
        // A flag and a method, then a language and the keyword in it.
        _ => (*rest.first()? == 1, at_zero(at_zero(rest.get(2..)?)?.1)?.1),
    };
    let text = if is_compressed {
        let mut plain = Vec::new();
        // Damage spoils only the bytes behind it; those before it are used.
        let _ = ZlibDecoder::new(text).take(MAX_TEXT_BYTES).read_to_end(&mut plain);
        Cow::Owned(plain)
    } else {
        Cow::Borrowed(text)
    };
    if keyword == XMP_TEXT {
        return Some((false, text));
    }
    // An empty line, the kind and the number of bytes on a line each, then the digits.
    let digits = text.splitn(4, |&b| b == b'\n').nth(3)?;
    let digits: Vec<u8> = digits.iter().filter_map(|b| char::from(*b).to_digit(16)).map(|d| d as u8).collect();
    Some((keyword != RAW_XMP, digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()))
}

/// Reads an Exif block, with or without JPEG's leading mark, which some writers use elsewhere, too.
fn of_exif(body: &[u8]) -> Option<Orientation> {
    let mut tiff = body;
    while let Some((mark, rest)) = tiff.split_first_chunk::<6>()
        && mark[..5].eq_ignore_ascii_case(b"Exif\0")
    {
        tiff = rest;
    }
    let is_big = match tiff.first_chunk::<4>()? {
        // Some writers swap the mark's two bytes.
        b"II*\0" | b"II\0*" => false,
        b"MM\0*" | b"MM*\0" => true,
        _ => return None,
    };
    let u16_at = |at: usize| {
        let bytes = *tiff.get(at..)?.first_chunk()?;
        Some(if is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let u32_at = |at: usize| {
        let bytes = *tiff.get(at..)?.first_chunk()?;
        Some(if is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let directory = usize::try_from(u32_at(4)?).ok()?;
    let n_entries = u16_at(directory)?.min(MAX_ENTRIES);
    for entry in 0..usize::from(n_entries) {
        // Tag, type, count and value.
        let at = directory.checked_add(2 + 12 * entry)?;
        if u16_at(at)? != ORIENTATION_TAG {
            continue;
        }
        // Bytes, shorts and longs, signed or not; the standard has shorts only.
        let value = match u16_at(at + 2)? {
            1 | 6 | 7 => tiff.get(at + 8).copied().map(u32::from)?,
            3 | 8 => u16_at(at + 8)?.into(),
            4 | 9 => u32_at(at + 8)?,
            _ => continue,
        };
        if let Some(found) = u8::try_from(value).ok().and_then(Orientation::from_exif) {
            return Some(found);
        }
    }
    None
}

/// Reads an XMP packet, where the property is an attribute or an element.
fn of_xmp(body: &[u8]) -> Option<Orientation> {
    let at = body.windows(XMP_PROPERTY.len()).position(|window| window == XMP_PROPERTY)?;
    let mut rest = body.get(at + XMP_PROPERTY.len()..)?.iter().copied().filter(|b| !b.is_ascii_whitespace());
    let value = match rest.next()? {
        b'>' => rest.next()?,
        b'=' => {
            rest.next().filter(|quote| matches!(quote, b'"' | b'\''))?;
            rest.next()?
        }
        _ => return None,
    };
    Orientation::from_exif(value.checked_sub(b'0')?)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use flate2::{Compression, write::ZlibEncoder};
    use image::{ImageFormat, Rgb, RgbImage};

    use super::*;
    use crate::vision::{DecodeLimits, DecodeSize, decode};

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let picture = RgbImage::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 9) as u8, 90]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn entry(tag: u16, kind: u16, value: [u8; 4]) -> Vec<u8> {
        [&tag.to_le_bytes()[..], &kind.to_le_bytes(), &1u32.to_le_bytes(), &value].concat()
    }

    fn tiff(entries: &[Vec<u8>]) -> Vec<u8> {
        let n_entries = (entries.len() as u16).to_le_bytes();
        [b"II*\0\x08\0\0\0".to_vec(), n_entries.to_vec(), entries.concat(), vec![0; 4]].concat()
    }

    fn oriented(orientation: u8) -> Vec<u8> {
        tiff(&[entry(ORIENTATION_TAG, 3, [orientation, 0, 0, 0])])
    }

    fn big_endian(orientation: u8) -> Vec<u8> {
        [b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0]].concat()
    }

    fn xmp(orientation: u8) -> Vec<u8> {
        format!("<x:xmpmeta><rdf:Description tiff:Orientation=\"{orientation}\"/></x:xmpmeta>").into_bytes()
    }

    /// A block in hexadecimal, as in a PNG's text.
    fn raw(block: &[u8]) -> Vec<u8> {
        let digits: Vec<String> = block.iter().map(|b| format!("{b:02x}")).collect();
        let lines: Vec<String> = digits.chunks(36).map(|line| line.concat()).collect();
        format!("\nexif\n{:8}\n{}\n", block.len(), lines.join("\n")).into_bytes()
    }

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    fn segment(body: &[&[u8]]) -> Vec<u8> {
        let body = body.concat();
        [&[0xff, 0xe1][..], &(body.len() as u16 + 2).to_be_bytes(), &body].concat()
    }

    fn jpeg(segments: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = encoded(ImageFormat::Jpeg);
        bytes.splice(2..2, segments.concat());
        bytes
    }

    fn png(name: &[u8; 4], body: &[u8], before: &[u8; 4]) -> Vec<u8> {
        let mut bytes = encoded(ImageFormat::Png);
        let at = bytes.windows(4).position(|window| window == before).unwrap() - 4;
        let crc = crc32fast::hash(&[name.as_slice(), body].concat()).to_be_bytes();
        bytes.splice(at..at, [&(body.len() as u32).to_be_bytes()[..], name, body, &crc].concat());
        bytes
    }

    fn webp(name: &[u8; 4], body: &[u8], flags: u8) -> Vec<u8> {
        let plain = encoded(ImageFormat::WebP);
        let mut chunk = [name.as_slice(), &(body.len() as u32).to_le_bytes(), body].concat();
        chunk.resize(chunk.len().next_multiple_of(2), 0);
        let head = [b"VP8X".as_slice(), &10u32.to_le_bytes(), &[flags, 0, 0, 0, 39, 0, 0, 23, 0, 0]].concat();
        let riff = [b"WEBP".as_slice(), &head, &plain[12..], &chunk].concat();
        [b"RIFF".as_slice(), &(riff.len() as u32).to_le_bytes(), &riff].concat()
    }

    /// Each photo is marked as lying on its side, in one way that common readers understand.
    #[test]
    fn a_photo_is_rotated_by_its_orientation() {
        let exif = |tiff: &[u8]| segment(&[b"Exif\0\0", tiff]);
        let none = tiff(&[entry(0x010f, 2, *b"cam\0")]);
        let in_jpeg = [b"Exif\0\0".as_slice(), &oriented(6)].concat();
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("one Exif", jpeg(&[exif(&oriented(6))])),
            ("two that differ: the first counts", jpeg(&[exif(&oriented(6)), exif(&oriented(1))])),
            ("one without, one with", jpeg(&[exif(&none), exif(&oriented(6))])),
            ("an impossible one first", jpeg(&[exif(&oriented(9)), exif(&oriented(6))])),
            ("a damaged one first", jpeg(&[exif(b"II*\0\xff\xff\xff\xff"), exif(&oriented(6))])),
            ("XMP before Exif", jpeg(&[segment(&[XMP_SEGMENT, &xmp(3)]), exif(&oriented(6))])),
            ("XMP alone", jpeg(&[segment(&[XMP_SEGMENT, &xmp(6)])])),
            ("big endian", jpeg(&[exif(&big_endian(6))])),
            ("another filler after the mark", jpeg(&[segment(&[b"Exif\0\xff", &oriented(6)])])),
            ("as a long", jpeg(&[exif(&tiff(&[entry(ORIENTATION_TAG, 4, [6, 0, 0, 0])]))])),
            ("as a byte", jpeg(&[exif(&tiff(&[entry(ORIENTATION_TAG, 1, [6, 0, 0, 0])]))])),
            ("eXIf before the pixels", png(b"eXIf", &oriented(6), b"IDAT")),
            ("eXIf after the pixels", png(b"eXIf", &oriented(6), b"IEND")),
            ("eXIf with JPEG's mark", png(b"eXIf", &[b"Exif\0\0".as_slice(), &oriented(6)].concat(), b"IDAT")),
            ("XMP in a PNG", png(b"iTXt", &[XMP_TEXT, b"\0\0\0\0\0", &xmp(6)].concat(), b"IEND")),
            ("XMP in a PNG, packed", png(b"iTXt", &[XMP_TEXT, b"\0\x01\0\0\0", &zlib(&xmp(6))].concat(), b"IDAT")),
            (
                "Exif as ImageMagick has it",
                png(b"zTXt", &[RAW_EXIF[0], b"\0\0", &zlib(&raw(&oriented(6)))].concat(), b"IDAT"),
            ),
            ("the same, as it was in a JPEG", png(b"tEXt", &[RAW_EXIF[1], b"\0", &raw(&in_jpeg)].concat(), b"IEND")),
            ("XMP as exiftool has it", png(b"tEXt", &[RAW_XMP, b"\0", &raw(&xmp(6))].concat(), b"IEND")),
            ("a mixed-up mark", jpeg(&[exif(&[b"II\0*", &oriented(6)[4..]].concat())])),
            ("EXIF in a WebP", webp(b"EXIF", &oriented(6), 8)),
            ("EXIF with JPEG's mark", webp(b"EXIF", &[b"Exif\0\0".as_slice(), &oriented(6)].concat(), 8)),
            ("EXIF that the header does not announce", webp(b"EXIF", &oriented(6), 0)),
            ("XMP in a WebP", webp(b"XMP ", &xmp(6), 4)),
        ];
        for (what, bytes) in cases {
            let image = decode(&bytes, &DecodeLimits::default(), DecodeSize::Full);
            let image = image.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!((image.width_px(), image.height_px()), (24, 40), "{what}");
        }
    }

    #[test]
    fn what_makes_no_sense_says_nothing() {
        for body in
            [b"".as_slice(), b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\x12\x01"]
        {
            assert_eq!(of_exif(body), None, "{body:?}");
        }
        for body in ["", "tiff:Orientation", "tiff:Orientation=", "tiff:Orientation=\"", "tiff:Orientation=\"9\""] {
            assert_eq!(of_xmp(body.as_bytes()), None, "{body:?}");
        }
        assert_eq!(of_xmp(b"<tiff:Orientation> 8 </tiff:Orientation>"), Some(Orientation::Rotate270));
    }

    /// A header may announce missing chunks: EXIF, XMP, a profile, an animation.
    #[test]
    fn a_webp_that_claims_absent_chunks_is_read() {
        for flags in [0x08, 0x04, 0x20, 0x02, 0x2e] {
            let bytes = webp(b"NONE", b"", flags);
            let image = decode(&bytes, &DecodeLimits::default(), DecodeSize::Full);
            assert!(image.is_ok(), "flags {flags:#x}: {image:?}");
        }
    }
}

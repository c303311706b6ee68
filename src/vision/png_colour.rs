//! Makes a colour profile of a PNG's colour chunks.
//!
//! By PNG's third edition (W3C 2025, 4.3) cICP takes precedence over iCCP, iCCP over sRGB, and sRGB over gAMA with
//! cHRM.

use std::io::Read;

use flate2::read::ZlibDecoder;
use moxcms::{
    Chromaticity, CicpColorPrimaries, CicpProfile, ColorPrimaries, ColorProfile, MatrixCoefficients,
    TransferCharacteristics, curve_from_gamma,
};

use super::{colour::MAX_PROFILE_BYTES, container::chunks_of_png};

/// The gamma of sRGB, in the chunk's units, and how far others may be from it to count as equal, as in libpng.
const SRGB_GAMMA: f32 = 45_455.0;
const GAMMA_TOLERANCE: f32 = 0.05;

/// The valid gammas: the reciprocals of 0.2 to 5.
const GAMMAS: std::ops::RangeInclusive<f32> = 20_000.0..=500_000.0;

/// Returns the profile that a PNG's chunks before its pixels declare: the embedded ICC profile, or one equivalent to
/// the other chunks. Returns `None` for sRGB, and an error if the chunks cannot be applied. An embedded profile is
/// unpacked here with a limit, because a small chunk may expand to gigabytes.
pub(super) fn declared_profile(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let before_pixels = || chunks_of_png(bytes).take_while(|(name, _)| *name != b"IDAT");
    let find = |wanted: &[u8; 4]| before_pixels().find(|(name, _)| *name == wanted).map(|(_, body)| body);
    let made = if let Some(code) = find(b"cICP") {
        Some(of_code_points(code)?)
    } else if let Some(embedded) = find(b"iCCP") {
        return unpacked(embedded).map(Some);
    } else if find(b"sRGB").is_some() {
        None
    } else {
        find(b"gAMA").and_then(|gamma| of_gamma(gamma, find(b"cHRM")))
    };
    made.map(|profile| profile.encode().map_err(|e| format!("its chunks do not form a profile: {e}"))).transpose()
}

/// Unpacks the profile in an iCCP chunk, behind its name and the number of the only compression method.
fn unpacked(body: &[u8]) -> Result<Vec<u8>, String> {
    let name_length = body.iter().position(|&b| b == 0).ok_or("its iCCP chunk has no name")?;
    let packed = body.get(name_length + 2..).unwrap_or_default();
    let mut profile = Vec::new();
    let most = MAX_PROFILE_BYTES as u64 + 1;
    ZlibDecoder::new(packed).take(most).read_to_end(&mut profile).map_err(|e| format!("it cannot be unpacked: {e}"))?;
    Ok(profile)
}

/// Makes a profile of ITU-T H.273's numbers for primaries, curve, matrix and range.
fn of_code_points(body: &[u8]) -> Result<ColorProfile, String> {
    let &[primaries, curve, 0, 1] = body else { return Err("its cICP chunk is not of full-range RGB".to_owned()) };
    let unknown = |_| format!("its cICP chunk has unsupported values: primaries {primaries}, curve {curve}");
    let color_primaries = CicpColorPrimaries::try_from(primaries).map_err(unknown)?;
    let transfer_characteristics = TransferCharacteristics::try_from(curve).map_err(unknown)?;
    if matches!(transfer_characteristics, TransferCharacteristics::Smpte2084 | TransferCharacteristics::Hlg) {
        return Err("it has high dynamic range, which viewers convert in different ways".to_owned());
    }
    let matrix_coefficients = MatrixCoefficients::Identity;
    let code = CicpProfile { color_primaries, transfer_characteristics, matrix_coefficients, full_range: true };
    let mut profile = ColorProfile::new_from_cicp(code);
    profile.cicp = None;
    if profile.red_trc.is_none() {
        return Err(format!("its cICP chunk has unsupported values: primaries {primaries}, curve {curve}"));
    }
    Ok(profile)
}

/// Makes a profile of a gamma, and primaries if the file has them. Invalid values count as absent.
fn of_gamma(gamma: &[u8], chromaticities: Option<&[u8]>) -> Option<ColorProfile> {
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as f32);
    let gamma = number(gamma).filter(|gamma| GAMMAS.contains(gamma))?;
    let is_srgb = (gamma / SRGB_GAMMA - 1.0).abs() <= GAMMA_TOLERANCE;
    let mut profile = ColorProfile::new_srgb();
    if let Some(numbers) = chromaticities.filter(|body| body.len() == 32) {
        let mut numbers = numbers.chunks_exact(4).filter_map(number).map(|n| n / 100_000.0);
        let mut next = || Some(Chromaticity { x: numbers.next()?, y: numbers.next().filter(|y| *y > 0.0)? });
        let (white, red, green, blue) = (next()?, next()?, next()?, next()?);
        if !is_colour_space([red, green, blue], white) {
            return None;
        }
        profile.update_rgb_colorimetry(white.to_xyyb(), ColorPrimaries { red, green, blue });
    } else if is_srgb {
        return None;
    }
    if !is_srgb {
        let curve = curve_from_gamma(100_000.0 / gamma);
        (profile.red_trc, profile.green_trc, profile.blue_trc) =
            (Some(curve.clone()), Some(curve.clone()), Some(curve));
    }
    profile.cicp = None;
    Some(profile)
}

/// Returns true if white lies within the triangle of the primaries, whose area is large enough; that of sRGB is 0.11.
fn is_colour_space([red, green, blue]: [Chromaticity; 3], white: Chromaticity) -> bool {
    const LEAST_SPAN: f32 = 0.02;
    let span = |a: Chromaticity, b: Chromaticity, c: Chromaticity| {
        ((b.x - a.x) * (c.y - a.y) - (c.x - a.x) * (b.y - a.y)) / 2.0
    };
    span(red, green, blue) >= LEAST_SPAN
        && [span(white, red, green), span(white, green, blue), span(white, blue, red)].iter().all(|part| *part > 0.0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};

    use crate::vision::{ColourSource, DecodeLimits, DecodeSize, DecodedImage, decode};

    type Chunk = (&'static [u8; 4], Vec<u8>);

    fn png(colour: [u8; 3], chunks: &[Chunk]) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(16, 16, Rgb(colour)).write_to(&mut bytes, ImageFormat::Png).unwrap();
        let mut bytes = bytes.into_inner();
        // Behind the header: 8 bytes of signature, 25 of the chunk.
        for (name, body) in chunks.iter().rev() {
            let crc = crc32fast::hash(&[name.as_slice(), body].concat()).to_be_bytes();
            let chunk = [&(body.len() as u32).to_be_bytes()[..], name.as_slice(), body, &crc].concat();
            bytes.splice(33..33, chunk);
        }
        bytes
    }

    fn gamma(value: u32) -> Chunk {
        (b"gAMA", value.to_be_bytes().to_vec())
    }

    fn chromaticities(values: [u32; 8]) -> Chunk {
        (b"cHRM", values.iter().flat_map(|v| v.to_be_bytes()).collect())
    }

    const SRGB: [u32; 8] = [31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000];
    const DISPLAY_P3: [u32; 8] = [31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000];

    fn read(bytes: &[u8]) -> DecodedImage {
        decode(bytes, &DecodeLimits::default(), DecodeSize::Full).unwrap()
    }

    /// Half of linear light is 188 in sRGB (IEC 61966-2-1); in a file of gamma 1 it is 128.
    #[test]
    fn the_colour_chunks_of_a_png_are_applied() {
        let grey = [128; 3];
        let red = [200, 30, 30];
        let srgb = (b"sRGB", vec![0]);
        let linear_code = (b"cICP", vec![1, 8, 0, 1]);
        type Case = (&'static str, [u8; 3], Vec<Chunk>, [u8; 3]);
        let cases: Vec<Case> = vec![
            ("nothing", grey, vec![], grey),
            ("linear", grey, vec![gamma(100_000)], [188; 3]),
            ("Macs of old, gamma 1.8", grey, vec![gamma(55_556)], [146; 3]),
            ("about sRGB's", grey, vec![gamma(45_455)], grey),
            ("sRGB counts before", grey, vec![srgb.clone(), gamma(100_000)], grey),
            ("its own primaries", red, vec![gamma(45_455), chromaticities(SRGB)], red),
            ("the linear code point", grey, vec![linear_code, srgb], [188; 3]),
            ("no gamma at all", grey, vec![gamma(0)], grey),
            ("an impossible one", grey, vec![gamma(u32::MAX)], grey),
        ];
        for (what, colour, chunks, expected) in cases {
            let image = read(&png(colour, &chunks));
            let off = image.rgb()[..3].iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max().unwrap();
            assert!(off <= 2, "{what}: {:?}, expected {expected:?}", &image.rgb()[..3]);
        }
        let wide = read(&png(red, &[gamma(45_455), chromaticities(DISPLAY_P3)]));
        assert_eq!(*wide.colour(), ColourSource::Converted);
        assert!(wide.rgb()[0] > 210 && wide.rgb()[1] < 20, "{:?}", &wide.rgb()[..3]);
    }

    #[test]
    fn chunks_that_cannot_be_followed_are_reported() {
        for code in [vec![9, 16, 0, 1], vec![1, 13, 1, 1], vec![1, 13], vec![255, 255, 0, 1]] {
            let image = read(&png([90; 3], &[(b"cICP", code.clone())]));
            assert!(matches!(image.colour(), ColourSource::ProfileIgnored { .. }), "{code:?}: {:?}", image.colour());
            assert_eq!(image.rgb()[..3], [90; 3]);
        }
        let spoilt = png([90; 3], &[(b"iCCP", b"a profile\0\0nothing packed".to_vec())]);
        assert!(matches!(read(&spoilt).colour(), ColourSource::ProfileIgnored { .. }));
        let mut bomb = flate2::write::ZlibEncoder::new(b"x\0\0".to_vec(), flate2::Compression::best());
        std::io::Write::write_all(&mut bomb, &vec![0; 32 << 20]).unwrap();
        let bomb = png([90; 3], &[(b"iCCP", bomb.finish().unwrap())]);
        assert!(matches!(read(&bomb).colour(), ColourSource::ProfileIgnored { .. }));
        // No light at all, a line, white beyond the primaries, primaries in the wrong order: no colours.
        for odd in [
            [0; 8],
            [31270, 32900, 10000, 10000, 20000, 20000, 30000, 30000],
            [10, 90000, 64000, 33000, 30000, 60000, 15000, 6000],
            [31270, 32900, 15000, 6000, 30000, 60000, 64000, 33000],
            [u32::MAX; 8],
        ] {
            let nonsense = read(&png([90; 3], &[gamma(45_455), chromaticities(odd)]));
            assert_eq!(nonsense.rgb()[..3], [90; 3], "{odd:?}");
        }
    }
}

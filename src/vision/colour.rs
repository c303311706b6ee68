//! Converts a file's colours to sRGB, which the networks are trained on.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use moxcms::{ColorProfile, DataColorSpace, Layout, TransformExecutor, TransformOptions};

/// How an image got its colours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColourSource {
    /// The file has no colour profile, or one that is equivalent to sRGB; its values were taken unchanged.
    Srgb,
    /// The file has another colour profile, and the values were converted.
    Converted,
    /// The file has a colour profile that could not be applied. Its values were taken as sRGB, so colours may be off.
    ProfileIgnored {
        /// Why the profile could not be applied.
        why: String,
    },
}

/// The file's colour profile: none, a profile, or why an announced one cannot be used.
pub(super) type Claimed<'a> = Result<Option<&'a [u8]>, String>;

/// The largest profile that is read, in bytes. Camera profiles have under a thousand bytes, those of printing presses
/// some millions.
pub(super) const MAX_PROFILE_BYTES: usize = 4 << 20;

/// How far a profile's values may be from sRGB's to count as sRGB, in steps of 255. Makers of sRGB profiles round its
/// curve differently.
const SRGB_TOLERANCE: u8 = 2;

/// The number of pixels converted at once.
const CHUNK_PX: usize = 4096;

type Transform = Arc<dyn TransformExecutor<u8> + Send + Sync>;

/// Converts pixels of interleaved RGB in place. In a grey image all three channels must be equal.
pub(super) fn to_srgb(rgb: &mut [u8], is_grey: bool, claimed: Claimed<'_>) -> ColourSource {
    let found = match claimed {
        Ok(None) => return ColourSource::Srgb,
        Ok(Some(profile)) => read(profile).and_then(|profile| match profile.color_space {
            DataColorSpace::Rgb => Ok((transform(&profile, Layout::Rgb)?, 3)),
            DataColorSpace::Gray if is_grey => Ok((transform(&profile, Layout::Gray)?, 1)),
            other => Err(format!("it is for {other:?}, not for the image's channels")),
        }),
        Err(why) => Err(why),
    };
    let (transform, n_channels) = match found {
        Ok(found) => found,
        Err(why) => return ColourSource::ProfileIgnored { why },
    };
    match changes_colours(&transform, n_channels) {
        Ok(false) => return ColourSource::Srgb,
        Ok(true) => {}
        Err(why) => return ColourSource::ProfileIgnored { why },
    }
    let mut from = Vec::with_capacity(CHUNK_PX * n_channels);
    for to in rgb.chunks_mut(CHUNK_PX * 3) {
        from.clear();
        match n_channels {
            1 => from.extend(to.chunks_exact(3).map(|pixel| pixel[0])),
            _ => from.extend_from_slice(to),
        }
        if let Err(why) = apply(&transform, &from, to) {
            return ColourSource::ProfileIgnored { why };
        }
    }
    ColourSource::Converted
}

/// Converts inks, 0 for none, to RGB: by the file's profile or, without one, as if each ink absorbed only its own
/// colour.
pub(super) fn inks_to_srgb(inks: &[u8], claimed: Claimed<'_>) -> (Vec<u8>, ColourSource) {
    let mut rgb = vec![0; inks.len() / 4 * 3];
    let converted = match claimed {
        Ok(None) => None,
        Ok(Some(profile)) => Some(read(profile).and_then(|profile| match profile.color_space {
            DataColorSpace::Cmyk => transform(&profile, Layout::Rgba),
            other => Err(format!("it is for {other:?}, but the image has four inks")),
        })),
        Err(why) => Some(Err(why)),
    };
    let converted = converted.map(|transform| {
        let transform = transform?;
        let mut chunks = rgb.chunks_mut(CHUNK_PX * 3).zip(inks.chunks(CHUNK_PX * 4));
        chunks.try_for_each(|(to, from)| apply(&transform, from, to))
    });
    let colour = match converted {
        Some(Ok(())) => return (rgb, ColourSource::Converted),
        Some(Err(why)) => ColourSource::ProfileIgnored { why },
        None => ColourSource::Srgb,
    };
    for (to, from) in rgb.chunks_exact_mut(3).zip(inks.chunks_exact(4)) {
        let light = 255 - u32::from(from[3]);
        for (to, &ink) in to.iter_mut().zip(from) {
            // Rounded to nearest; at most 255, so the cast is lossless.
            *to = (((255 - u32::from(ink)) * light + 127) / 255) as u8;
        }
    }
    (rgb, colour)
}

fn read(profile: &[u8]) -> Result<ColorProfile, String> {
    if profile.len() > MAX_PROFILE_BYTES {
        return Err(format!("it has {} bytes, at most {MAX_PROFILE_BYTES} are read", profile.len()));
    }
    contained(|| ColorProfile::new_from_slice(profile).map_err(|e| format!("it cannot be read: {e}")))
}

fn transform(profile: &ColorProfile, layout: Layout) -> Result<Transform, String> {
    let made = || {
        let srgb = ColorProfile::new_srgb();
        profile.create_transform_8bit(layout, &srgb, Layout::Rgb, TransformOptions::default())
    };
    contained(|| made().map_err(|e| format!("it cannot be converted from: {e}")))
}

fn apply(transform: &Transform, from: &[u8], to: &mut [u8]) -> Result<(), String> {
    contained(|| transform.transform(from, to).map_err(|e| format!("it cannot be applied: {e}")))
}

/// Returns true if the profile's sRGB values differ from its own, sampled on a grid of colours.
fn changes_colours(transform: &Transform, n_channels: usize) -> Result<bool, String> {
    let steps = || (0..=255u8).step_by(17);
    let (from, same): (Vec<u8>, Vec<u8>) = match n_channels {
        1 => ((0..=255).collect(), (0..=255u8).flat_map(|v| [v; 3]).collect()),
        _ => {
            let grid = steps().flat_map(|r| steps().flat_map(move |g| steps().flat_map(move |b| [r, g, b])));
            let grid: Vec<u8> = grid.collect();
            (grid.clone(), grid)
        }
    };
    let mut to = vec![0; same.len()];
    apply(transform, &from, &mut to)?;
    Ok(to.iter().zip(&same).any(|(a, b)| a.abs_diff(*b) > SRGB_TOLERANCE))
}

/// Runs `work`; a panic inside the library counts as an error.
fn contained<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the converter crashed on it".to_owned()))
}

#[cfg(test)]
mod tests;

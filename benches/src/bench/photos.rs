//! Draws photos from a seed, so that a suite needs no data.

use std::{fs, io::Cursor, path::Path};

use anyhow::Context;
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder};
use visage::nn::golden_input;

/// The side in pixels of UTKFace's cropped faces.
const SIDE_PX: u32 = 200;

/// Draws noise over a gradient as a JPEG, the same for the same seed.
pub(super) fn jpeg(seed: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    JpegEncoder::new_with_quality(&mut bytes, 90).write_image(
        &golden_input(seed, SIDE_PX),
        SIDE_PX,
        SIDE_PX,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes.into_inner())
}

/// Writes `n` photos under UTKFace names, with ages from 1 to 90.
pub(super) fn write_folder(folder: &Path, n: u64) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for seed in 0..n {
        let file = folder.join(format!("{}_{}_0_{seed:017}.jpg", 1 + seed * 7 % 90, seed % 2));
        fs::write(&file, jpeg(seed)?).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

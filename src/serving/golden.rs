//! The outputs that a version gave when it was registered, and must give whenever it is loaded.

use std::sync::Arc;

use super::{Engine, EngineError, Input, ServeError, cascade_settings};
use crate::{
    nn,
    proto::store::{Golden, VersionRecord},
    vision::{DecodedImage, Pixels, Pyramid},
};

/// The test pattern that golden outputs are made of.
#[must_use]
pub fn golden_pixels(seed: u64, side_px: u32) -> Pixels {
    Pixels { side_px, rgb: nn::golden_input(seed, side_px).into() }
}

/// The side of the test pattern in which a detector looks for faces.
const DETECTOR_SIDE_PX: u32 = 96;

/// The test pattern of this seed as the version's input.
#[must_use]
pub fn golden_input(record: &VersionRecord, seed: u64) -> Input {
    let preprocessing = record.preprocessing.as_ref();
    let square = |side_px| Input::Square(golden_pixels(seed, side_px));
    let Some(detection) = preprocessing.and_then(|p| p.detection.as_ref()) else {
        return square(preprocessing.map_or(0, |p| p.image_size_px));
    };
    let pattern = golden_pixels(seed, DETECTOR_SIDE_PX);
    let photo = DecodedImage::from_rgb(DETECTOR_SIDE_PX, DETECTOR_SIDE_PX, pattern.rgb.into());
    photo.map_or_else(|| square(DETECTOR_SIDE_PX), |p| Input::Photo(Pyramid::new(p, &cascade_settings(detection))))
}

/// Compares the engine with the version's golden outputs.
///
/// # Errors
/// [`ServeError::GoldenMismatch`] when one output differs by more than the tolerance or is no number, or there are
/// more or fewer of them; [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`] when there is no answer.
pub(super) fn check(
    version: &str,
    engine: &mut dyn Engine,
    input: &Arc<Input>,
    golden: &Golden,
) -> Result<(), ServeError> {
    let outputs = outputs(version, engine, input)?;
    let mismatch = |detail| Err(ServeError::GoldenMismatch { version: version.to_owned(), detail });
    if outputs.len() != golden.outputs.len() {
        return mismatch(format!("{} outputs, registered with {}", outputs.len(), golden.outputs.len()));
    }
    for (at, (&got, &expected)) in outputs.iter().zip(&golden.outputs).enumerate() {
        let difference = (got - expected).abs();
        if difference.is_nan() || difference > golden.tolerance {
            let tolerance = golden.tolerance;
            return mismatch(format!("output {at} is {got}, registered as {expected}, tolerance {tolerance}"));
        }
    }
    Ok(())
}

/// What the engine answers to one input, as golden outputs hold it. A classification's are its probabilities.
///
/// # Errors
/// [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`].
pub(super) fn outputs(version: &str, engine: &mut dyn Engine, input: &Arc<Input>) -> Result<Vec<f32>, ServeError> {
    engine.fingerprint(input).map_err(|error| engine_error(version, error))
}

/// The serving layer's error for an engine's.
pub(super) fn engine_error(version: &str, error: EngineError) -> ServeError {
    let version = version.to_owned();
    match error {
        EngineError::OutOfMemory(detail) => ServeError::DeviceMemory { version, detail },
        EngineError::WeightsMismatch(detail) => ServeError::WeightsMismatch { version, detail },
        EngineError::Failed(detail) => ServeError::EngineFailed { version, detail },
    }
}

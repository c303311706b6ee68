//! Compares an engine with the outputs recorded when its version was registered.

use std::sync::Arc;

use super::{Engine, EngineError, Input, InputKind, ServeError};
use crate::{
    names::VersionName,
    nn::{self, Golden},
    vision::{DecodedImage, Pixels, Pyramid},
};

/// The side of a detector's test pattern, in pixels.
const DETECTOR_SIDE_PX: u32 = 96;

/// Creates the test pattern of this seed as an input of this kind.
pub(super) fn input(kind: &InputKind, seed: u64) -> Input {
    let square = |side_px| Pixels { side_px, rgb: nn::golden_input(seed, side_px).into() };
    match kind {
        InputKind::Square { side_px } => Input::Square(square(*side_px)),
        InputKind::Photo(settings) => {
            let pattern = square(DETECTOR_SIDE_PX);
            match DecodedImage::from_rgb(DETECTOR_SIDE_PX, DETECTOR_SIDE_PX, pattern.rgb.clone().into()) {
                Some(photo) => Input::Photo(Pyramid::new(photo, &settings.cascade)),
                None => Input::Square(pattern),
            }
        }
    }
}

/// Compares the engine with the version's golden outputs.
///
/// # Errors
/// [`ServeError::GoldenMismatch`] when the number of outputs differs, or an output is NaN or differs by more than the
/// tolerance; [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`] when there is no answer.
pub(super) fn check(
    version: &VersionName,
    engine: &mut dyn Engine,
    input: &Arc<Input>,
    golden: &Golden,
) -> Result<(), ServeError> {
    let outputs = outputs(version, engine, input)?;
    let mismatch = |detail| Err(ServeError::GoldenMismatch { version: version.clone(), detail });
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

/// Returns the engine's outputs for one input, in the form of golden outputs: probabilities for a classification.
///
/// # Errors
/// [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`].
pub(super) fn outputs(
    version: &VersionName,
    engine: &mut dyn Engine,
    input: &Arc<Input>,
) -> Result<Vec<f32>, ServeError> {
    engine.fingerprint(input).map_err(|error| engine_error(version, error))
}

/// Converts an engine's error to one of the serving layer.
pub(super) fn engine_error(version: &VersionName, error: EngineError) -> ServeError {
    let version = version.clone();
    match error {
        EngineError::OutOfMemory(detail) => ServeError::DeviceMemory { version, detail },
        EngineError::WeightsMismatch(detail) => ServeError::WeightsMismatch { version, detail },
        EngineError::Failed(detail) => ServeError::EngineFailed { stage: version.into(), detail },
    }
}

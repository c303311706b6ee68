//! The outputs that a version gave when it was registered, and must give whenever it is loaded.

use std::{slice, sync::Arc};

use super::{Engine, EngineError, ServeError};
use crate::{nn, proto::store::Golden, vision::Pixels};

/// The test pattern that golden outputs are made of.
#[must_use]
pub fn golden_pixels(seed: u64, side_px: u32) -> Pixels {
    Pixels { side_px, rgb: nn::golden_input(seed, side_px) }
}

/// Compares the engine with the version's golden outputs.
///
/// # Errors
/// [`ServeError::GoldenMismatch`] when one output differs by more than the tolerance or is no number, or there are
/// more or fewer of them; [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`] when there is no answer.
pub(super) fn check(
    version: &str,
    engine: &mut dyn Engine,
    input: &Arc<Pixels>,
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

/// The heads' outputs for one image, concatenated in order: what golden outputs hold. A classification's are its
/// probabilities.
///
/// # Errors
/// [`ServeError::EngineFailed`] or [`ServeError::DeviceMemory`].
pub(super) fn outputs(version: &str, engine: &mut dyn Engine, input: &Arc<Pixels>) -> Result<Vec<f32>, ServeError> {
    let outputs = engine.run(slice::from_ref(input)).map_err(|error| engine_error(version, error))?;
    match outputs.into_iter().next() {
        Some(output) => Ok(output.heads.concat()),
        None => Err(engine_error(version, EngineError::Failed("no answer for one image".to_owned()))),
    }
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

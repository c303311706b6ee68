//! The outputs that a version gave when it was registered, and must give whenever it is loaded.

use std::sync::Arc;

use super::{Engine, EngineError, ServeError};
use crate::{proto::store::Golden, vision::Pixels};

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
    let outputs = engine.raw_heads(input).map_err(|error| engine_error(version, error))?;
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

/// The serving layer's error for an engine's.
pub(super) fn engine_error(version: &str, error: EngineError) -> ServeError {
    let version = version.to_owned();
    match error {
        EngineError::OutOfMemory(detail) => ServeError::DeviceMemory { version, detail },
        EngineError::Failed(detail) => ServeError::EngineFailed { version, detail },
    }
}

// SHIM
mod nn {
    pub(super) fn golden_input(seed: u64, side_px: u32) -> Vec<u8> {
        use rand::{RngCore, SeedableRng};
        let mut out = vec![0; side_px as usize * side_px as usize * 3];
        rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut out);
        out
    }
}

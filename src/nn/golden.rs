//! The outputs that a version gave when it was registered, and must give whenever it is loaded.

/// The seed of every version's golden input, see [`super::golden_input`].
pub const GOLDEN_SEED: u64 = 1;

/// The largest difference of a golden output on another machine, relative to the largest output (at least 1).
const RELATIVE_TOLERANCE: f32 = 1e-3;

/// What a network answered to a known input.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// The seed of the input.
    pub input_seed: u64,
    /// The network's outputs, one after another.
    pub outputs: Vec<f32>,
    /// The largest accepted difference of an output.
    pub tolerance: f32,
}

impl Golden {
    /// The golden outputs of a network that gave these to the input of [`GOLDEN_SEED`].
    #[must_use]
    pub fn new(outputs: Vec<f32>) -> Self {
        let largest = outputs.iter().fold(1.0_f32, |largest, output| largest.max(output.abs()));
        Self { input_seed: GOLDEN_SEED, outputs, tolerance: RELATIVE_TOLERANCE * largest }
    }
}

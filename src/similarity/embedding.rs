//! Vectors that can be compared.

use super::SimilarityError;
use crate::store::decode_vector;

/// A vector of length one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Embedding(Vec<f32>);

impl Embedding {
    /// Checks and normalises a vector; `field` is the request field it came from.
    ///
    /// # Errors
    /// [`SimilarityError::Invalid`] for another length, a number that is not finite, or a zero vector.
    pub(crate) fn new(field: &str, values: Vec<f32>, dimensions: usize) -> Result<Self, SimilarityError> {
        if values.len() != dimensions {
            let rule = format!("has {} numbers, the embedding space has {dimensions}", values.len());
            return Err(SimilarityError::invalid(field, rule));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(SimilarityError::invalid(field, format!("number {at} is {}, not a finite number", values[at])));
        }
        // In f64, neither the squares of large numbers nor their sum overflow.
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(SimilarityError::invalid(field, "is zero in every number and so has no direction"));
        }
        Ok(Self(values.into_iter().map(|v| (f64::from(v) / norm) as f32).collect()))
    }

    /// Its numbers.
    #[must_use]
    pub(crate) fn values(&self) -> &[f32] {
        &self.0
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    /// Decodes the embedding of a stored face.
    ///
    /// # Errors
    /// Returns what is wrong with the bytes.
    pub(super) fn from_bytes(bytes: &[u8], dimensions: usize) -> Result<Self, String> {
        decode_vector(bytes, dimensions).map(Self)
    }
}

/// A cosine similarity, -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Score(f32);

impl Score {
    /// Computes the score of two vectors of length one; rounding beyond the range is clamped.
    #[must_use]
    pub(crate) fn of(a: &[f32], b: &[f32]) -> Self {
        Self(dot(a, b).clamp(-1.0, 1.0))
    }

    pub(super) fn from_cosine(cosine: f32) -> Self {
        Self(cosine.clamp(-1.0, 1.0))
    }

    /// The number.
    #[must_use]
    pub(crate) fn value(self) -> f32 {
        self.0
    }
}

/// Sums computed in parallel, so that the compiler can use vector registers.
const LANES: usize = 16;

/// Computes the scalar product.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_has_no_direction_is_refused() {
        for values in [vec![0.0; 3], vec![f32::NAN, 1.0, 1.0], vec![f32::INFINITY, 0.0, 0.0], vec![1.0; 2]] {
            assert!(Embedding::new("vector", values, 3).is_err());
        }
    }

    proptest! {
        #[test]
        fn embeddings_have_length_one_and_come_back(values in prop::collection::vec(-1e30f32..1e30, 1..70)) {
            prop_assume!(values.iter().any(|v| v.abs() > 1e-30));
            let n = values.len();
            let embedding = Embedding::new("vector", values, n).unwrap();
            prop_assert!((dot(embedding.values(), embedding.values()) - 1.0).abs() < 1e-4);
            prop_assert_eq!(Score::of(embedding.values(), embedding.values()).value(), 1.0f32.min(dot(embedding.values(), embedding.values())));
            prop_assert_eq!(Embedding::from_bytes(&embedding.to_bytes(), n).unwrap(), embedding);
        }
    }
}

//! Computes the figures of merit.

/// The arithmetic mean; NaN for no values.
pub(super) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
    sum / n
}

/// The share that is true; NaN for no values.
pub(super) fn share(values: impl IntoIterator<Item = bool>) -> f64 {
    mean(values.into_iter().map(|holds| f64::from(u8::from(holds))))
}

/// The root of the mean square; NaN for no values.
pub(super) fn root_mean_square(values: impl IntoIterator<Item = f64>) -> f64 {
    mean(values.into_iter().map(|value| value * value)).sqrt()
}

/// The standard error of a mean, from the sample's deviation; NaN for fewer than two values.
pub(super) fn standard_error(values: &[f64]) -> f64 {
    let centre = mean(values.iter().copied());
    let n = values.len() as f64;
    (values.iter().map(|value| (value - centre).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

/// The mean loss of the `share` of examples with the least uncertainty; examples are (uncertainty, loss). El-Yaniv and
/// Wiener 2010 call it selective risk.
pub(super) fn risk_at_coverage(examples: &mut [(f64, f64)], share: f64) -> f64 {
    examples.sort_by(|a, b| a.0.total_cmp(&b.0));
    let kept = (share * examples.len() as f64) as usize;
    mean(examples.iter().take(kept).map(|(_, loss)| *loss))
}

/// The scores of two kinds of pairs, and how well they separate the kinds.
pub(super) struct PairScores {
    /// Cosines of pairs of one person.
    pub(super) genuine: Vec<f64>,
    /// Cosines of pairs of two people, the highest first.
    pub(super) impostor: Vec<f64>,
    /// The share of photos whose nearest other photo is of the same person.
    pub(super) nearest: f64,
}

impl PairScores {
    /// Creates it from scores in any order.
    pub(super) fn new(genuine: Vec<f64>, mut impostor: Vec<f64>, nearest: f64) -> Self {
        impostor.sort_by(|a, b| b.total_cmp(a));
        Self { genuine, impostor, nearest }
    }

    /// Scores all pairs of photos, each with its person and its vector, which need not be of unit length.
    pub(super) fn of(photos: &[(String, Vec<f32>)]) -> Self {
        let norm = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = photos.iter().map(|(_, vector)| norm(vector)).collect();
        let mut nearest: Vec<(f64, bool)> = vec![(f64::NEG_INFINITY, false); photos.len()];
        let (mut genuine, mut impostor) = (Vec::new(), Vec::new());
        for (i, (person, a)) in photos.iter().enumerate() {
            for (j, (other, b)) in photos.iter().enumerate().skip(i + 1) {
                let dot: f64 = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                let (cosine, is_same) = (dot / (norms[i] * norms[j]), person == other);
                if is_same { &mut genuine } else { &mut impostor }.push(cosine);
                for at in [i, j] {
                    if cosine > nearest[at].0 {
                        nearest[at] = (cosine, is_same);
                    }
                }
            }
        }
        Self::new(genuine, impostor, share(nearest.into_iter().map(|(_, is_same)| is_same)))
    }

    /// The probability that a genuine pair scores above an impostor pair, ties counted half (Mann and Whitney 1947).
    pub(super) fn auc(&self) -> f64 {
        mean(self.genuine.iter().map(|g| {
            let above = self.impostor.partition_point(|i| i > g);
            let not_below = self.impostor.partition_point(|i| i >= g);
            1.0 - (above + not_below) as f64 / 2.0 / self.impostor.len() as f64
        }))
    }

    /// The share of genuine pairs above the lowest threshold that at most `rate` of the impostor pairs exceed.
    pub(super) fn true_match_rate(&self, rate: f64) -> f64 {
        let allowed = (rate * self.impostor.len() as f64) as usize;
        let threshold = self.impostor.get(allowed).copied().unwrap_or(f64::NEG_INFINITY);
        share(self.genuine.iter().map(|score| *score > threshold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(genuine: &[f64], impostor: &[f64]) -> PairScores {
        PairScores::new(genuine.to_vec(), impostor.to_vec(), 0.0)
    }

    #[test]
    fn auc_counts_pairs_in_order() {
        assert_eq!(scores(&[0.9, 0.8], &[0.1, 0.2]).auc(), 1.0);
        assert_eq!(scores(&[0.1], &[0.9]).auc(), 0.0);
        assert_eq!(scores(&[0.5], &[0.5]).auc(), 0.5);
        assert_eq!(scores(&[0.3, 0.7], &[0.2, 0.5]).auc(), 0.75);
    }

    #[test]
    fn the_threshold_lets_no_more_impostors_through_than_it_may() {
        let impostor: Vec<f64> = (0..100).map(|i| f64::from(i) / 100.0).collect();
        // One in a hundred, 0.99, may pass; 0.98 must not.
        assert_eq!(scores(&[0.985, 0.98, 0.5, 1.0], &impostor).true_match_rate(0.01), 0.5);
        assert_eq!(scores(&[0.1], &[]).true_match_rate(0.01), 1.0);
    }

    #[test]
    fn pairs_are_sorted_by_whether_they_are_one_person() {
        let photo = |person: &str, vector: [f32; 2]| (person.to_owned(), vector.to_vec());
        let photos = [photo("a", [1.0, 0.0]), photo("a", [2.0, 0.2]), photo("b", [0.0, 1.0])];
        let scores = PairScores::of(&photos);
        assert_eq!((scores.genuine.len(), scores.impostor.len()), (1, 2));
        assert!(scores.genuine[0] > 0.99 && scores.impostor[0] < 0.11);
        assert!((scores.nearest - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_left_out_first_is_the_most_uncertain() {
        let mut examples = [(3.0, 30.0), (1.0, 10.0), (2.0, 20.0), (4.0, 40.0)];
        assert_eq!(risk_at_coverage(&mut examples, 1.0), 25.0);
        assert_eq!(risk_at_coverage(&mut examples, 0.5), 15.0);
    }

    #[test]
    fn a_standard_error_is_that_of_the_mean() {
        assert!((standard_error(&[1.0, 3.0]) - 1.0).abs() < 1e-12);
    }
}

//! Prediction intervals by split conformal prediction.
//!
//! Vovk et al., "Algorithmic Learning in a Random World" (2005); the form of Angelopoulos and Bates, "A Gentle
//! Introduction to Conformal Prediction" (2021). On examples not used for learning, the half width is the k-th smallest
//! absolute residual, k = ⌈(n + 1) · coverage⌉. Then a new example of the same kind lies inside with at least that
//! probability, however good the network is.

/// Computes the half width of an interval with this coverage from absolute residuals; `None` when they are too few to
/// guarantee it.
#[must_use]
pub(crate) fn half_width(mut residuals: Vec<f64>, coverage: f64) -> Option<f64> {
    residuals.retain(|residual| residual.is_finite());
    residuals.sort_by(f64::total_cmp);
    // The tolerance absorbs rounding: 0.9 * 10 = 9.000000000000002.
    let rank = ((residuals.len() + 1) as f64 * coverage - 1e-9).ceil().max(1.0);
    residuals.get(rank as usize - 1).copied()
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    #[test]
    fn it_is_the_right_order_statistic() {
        let residuals = |n: u32| (1..=n).rev().map(f64::from).collect();
        assert_eq!(half_width(residuals(9), 0.9), Some(9.0));
        assert_eq!(half_width(residuals(19), 0.9), Some(18.0));
        assert_eq!(half_width(residuals(20), 0.9), Some(19.0));
        assert_eq!(half_width(residuals(9), 0.5), Some(5.0));
        assert_eq!(half_width(residuals(3), 0.01), Some(1.0));
    }

    #[test]
    fn too_few_examples_promise_nothing() {
        assert_eq!(half_width(vec![1.0; 8], 0.9), None);
        assert_eq!(half_width(Vec::new(), 0.5), None);
    }

    #[test]
    fn it_covers_what_it_promises_on_average() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |n: usize| (0..n).map(|_| rng.random::<f64>().powi(3)).collect::<Vec<_>>();
        let (mut inside, mut all) = (0, 0);
        for _ in 0..400 {
            let width = half_width(draw(50), 0.9).unwrap();
            let fresh = draw(100);
            inside += fresh.iter().filter(|residual| **residual <= width).count();
            all += fresh.len();
        }
        let covered = inside as f64 / all as f64;
        assert!((0.89..0.93).contains(&covered), "{covered}");
    }
}

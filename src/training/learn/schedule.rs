//! The one-cycle: the learning rate and the momentum over a stage.
//!
//! Smith, "A disciplined approach to neural network hyper-parameters" (2018), with fastai's cosine form: the rate rises
//! from a 25th of its peak and falls to a 250,000th of it; the momentum (Adam's first beta) moves in the opposite
//! direction.

use std::f64::consts::PI;

/// The rate at the start is the peak divided by this.
const START_DIVISOR: f64 = 25.0;
/// The rate at the end is the peak divided by this.
const END_DIVISOR: f64 = 2.5e5;
/// At both ends, and at the rate's peak.
const MOMENTUM: (f64, f64) = (0.95, 0.85);

/// A stage's schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OneCycle {
    /// The peak.
    pub(crate) max_learning_rate: f64,
    /// Share of the steps in which the rate rises, 0 to 1.
    pub(crate) pct_start: f64,
    /// Steps of the stage.
    pub(crate) n_steps: usize,
}

/// The settings of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct StepSettings {
    /// The learning rate of all parameters.
    pub(crate) learning_rate: f64,
    /// Adam's first beta.
    pub(crate) momentum: f64,
}

impl OneCycle {
    /// Returns the settings for a step index, from 0.
    #[must_use]
    pub(crate) fn at(&self, step_idx: usize) -> StepSettings {
        let n_up = (self.n_steps as f64 * self.pct_start).floor();
        let n_down = self.n_steps as f64 - n_up;
        let step = step_idx as f64;
        let peak = self.max_learning_rate;
        if step < n_up {
            let done = step / n_up;
            StepSettings {
                learning_rate: cosine(peak / START_DIVISOR, peak, done),
                momentum: cosine(MOMENTUM.0, MOMENTUM.1, done),
            }
        } else {
            let done = ((step - n_up) / n_down.max(1.0)).min(1.0);
            StepSettings {
                learning_rate: cosine(peak, peak / END_DIVISOR, done),
                momentum: cosine(MOMENTUM.1, MOMENTUM.0, done),
            }
        }
    }
}

/// Interpolates from one value to another along half a cosine; `done` is 0 to 1.
fn cosine(from: f64, to: f64, done: f64) -> f64 {
    to + (from - to) / 2.0 * ((PI * done).cos() + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CYCLE: OneCycle = OneCycle { max_learning_rate: 1e-2, pct_start: 0.3, n_steps: 100 };

    #[test]
    fn the_rate_rises_to_its_peak_and_falls_to_almost_nothing() {
        assert!((CYCLE.at(0).learning_rate - 4e-4).abs() < 1e-12);
        assert_eq!(CYCLE.at(0).momentum, 0.95);
        assert_eq!(CYCLE.at(30), StepSettings { learning_rate: 1e-2, momentum: 0.85 });
        // Half of the way down: the mean of peak and end.
        assert!((CYCLE.at(65).learning_rate - (1e-2 + 4e-8) / 2.0).abs() < 1e-12);
        assert!(CYCLE.at(99).learning_rate < 1e-5);
        assert!(CYCLE.at(99).momentum > 0.949);
    }

    proptest! {
        #[test]
        fn every_step_has_a_rate_between_the_ends(pct_start in 0.0..=1.0_f64, n_steps in 1_usize..300) {
            let cycle = OneCycle { pct_start, n_steps, ..CYCLE };
            for step_idx in 0..=n_steps {
                let at = cycle.at(step_idx);
                prop_assert!((4e-8 * 0.999..=1e-2).contains(&at.learning_rate), "{at:?}");
                prop_assert!((0.85..=0.95).contains(&at.momentum), "{at:?}");
            }
        }
    }
}

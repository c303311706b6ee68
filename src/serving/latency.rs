//! Expected time of a batch, by version and bucket.
//!
//! Warming measures each bucket's base time. Serving updates the time of the bucket that runs by an exponentially
//! weighted average, and a factor common to all buckets, because whatever slows one (a training run beside it, a
//! throttled clock) slows all. The time of a bucket that does not run drifts to the lower of two values: its base times
//! the factor, and a bound from the bucket that runs (a smaller one takes no longer, a larger one no longer than in
//! proportion). So one bad measurement does not exclude a bucket for ever.

use std::{collections::BTreeMap, time::Duration};

use crate::{names::VersionName, nn::BUCKETS};

/// The weight of a new measurement.
const GAIN: f64 = 0.2;
/// How far the time of an idle bucket drifts with each run of another.
const DRIFT: f64 = 0.02;

/// Expected seconds by version and bucket.
#[derive(Debug, Default)]
pub(crate) struct LatencyTable {
    versions: BTreeMap<VersionName, Speeds>,
}

#[derive(Debug)]
struct Speeds {
    base: [Option<f64>; BUCKETS.len()],
    current: [Option<f64>; BUCKETS.len()],
    factor: f64,
}

impl LatencyTable {
    /// Records how long a batch of this bucket took.
    pub(crate) fn record(&mut self, version: &VersionName, bucket: usize, took: Duration) {
        let Some(at) = BUCKETS.iter().position(|&b| b == bucket) else { return };
        let took = took.as_secs_f64().max(1e-9);
        let empty = || Speeds { base: [None; BUCKETS.len()], current: [None; BUCKETS.len()], factor: 1.0 };
        let speeds = self.versions.entry(version.clone()).or_insert_with(empty);
        let base = *speeds.base[at].get_or_insert(took / speeds.factor);
        speeds.factor += GAIN * (took / base - speeds.factor);
        let run = *speeds.current[at].insert(speeds.current[at].map_or(took, |c| c + GAIN * (took - c)));
        for (other, (current, base)) in speeds.current.iter_mut().zip(speeds.base).enumerate() {
            if let (Some(current), Some(base), true) = (current, base, other != at) {
                let plausible = run * (BUCKETS[other] as f64 / bucket as f64).max(1.0);
                *current += DRIFT * (plausible.min(base * speeds.factor) - *current);
            }
        }
    }

    /// The expected time of a batch of this bucket; none for a version that never ran.
    pub(crate) fn expected(&self, version: &VersionName, bucket: usize) -> Option<Duration> {
        let speeds = self.versions.get(version)?;
        let at = BUCKETS.iter().position(|&b| b == bucket)?;
        let seconds = match speeds.current[at] {
            Some(seconds) => seconds,
            // Scales the nearest bucket that ran.
            None => BUCKETS
                .iter()
                .zip(speeds.current)
                .filter_map(|(&b, seconds)| Some((b, seconds?)))
                .min_by_key(|&(b, _)| b.abs_diff(bucket))
                .map(|(b, seconds)| seconds * bucket as f64 / b as f64)?,
        };
        Some(Duration::from_secs_f64(seconds))
    }

    /// Forgets a version.
    pub(crate) fn forget(&mut self, version: &VersionName) {
        self.versions.remove(version);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::testing::version;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn close(a: Option<Duration>, b: Duration) -> bool {
        a.is_some_and(|a| a.abs_diff(b) < Duration::from_micros(500))
    }

    #[test]
    fn follows_what_is_measured() {
        let (mut table, v) = (LatencyTable::default(), version("v"));
        assert_eq!(table.expected(&v, 1), None);
        table.record(&v, 1, ms(10));
        assert!(close(table.expected(&v, 1), ms(10)));
        table.record(&v, 1, ms(20));
        assert!(close(table.expected(&v, 1), ms(12)));
        (0..60).for_each(|_| table.record(&v, 1, ms(20)));
        assert!(close(table.expected(&v, 1), ms(20)));
        table.forget(&v);
        assert_eq!(table.expected(&v, 1), None);
    }

    #[test]
    fn an_unmeasured_bucket_is_in_proportion_to_its_nearest() {
        let (mut table, v) = (LatencyTable::default(), version("v"));
        table.record(&v, 4, ms(40));
        table.record(&v, 16, ms(80));
        assert!(close(table.expected(&v, 2), ms(20)));
        assert!(close(table.expected(&v, 32), ms(160)));
        assert_eq!(table.expected(&v, 3), None);
    }

    #[test]
    fn a_slow_spell_is_forgotten_by_buckets_that_did_not_run() {
        let (mut table, v) = (LatencyTable::default(), version("v"));
        table.record(&v, 1, ms(10));
        table.record(&v, 8, ms(40));
        (0..50).for_each(|_| table.record(&v, 8, ms(400)));
        assert!(table.expected(&v, 8) > Some(ms(390)));
        (0..300).for_each(|_| table.record(&v, 1, ms(10)));
        assert!(table.expected(&v, 8) < Some(ms(50)), "{:?}", table.expected(&v, 8));
    }

    #[test]
    fn a_bucket_that_was_warmed_in_a_bad_moment_becomes_plausible() {
        let (mut table, v) = (LatencyTable::default(), version("v"));
        table.record(&v, 1, ms(500));
        table.record(&v, 2, ms(12));
        table.record(&v, 4, ms(900));
        (0..400).for_each(|_| table.record(&v, 2, ms(12)));
        assert!(close(table.expected(&v, 1), ms(12)), "{:?}", table.expected(&v, 1));
        assert!(close(table.expected(&v, 4), ms(24)), "{:?}", table.expected(&v, 4));
    }
}

//! The split of rows into training, validation and calibration.
//!
//! A random split depends on the images' bytes, not on their order or names: two copies of an image are in the same
//! part, and a row added later moves only rows at the edges of a part.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Split {
    /// Used for learning.
    Train,
    /// Used for metrics, never for learning.
    Valid,
    /// Used to fit the intervals, never for learning.
    Calibration,
}

impl Split {
    /// All parts.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Calibration];

    /// Parses the split in a table's field.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "train" => Some(Self::Train),
            "valid" | "val" | "validation" => Some(Self::Valid),
            "calibration" => Some(Self::Calibration),
            _ => None,
        }
    }

    /// The name used in tables.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Calibration => "calibration",
        }
    }
}

/// SHA-256 of an image file.
pub(crate) type ImageDigest = [u8; 32];

/// The recipe's settings for splits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fractions {
    /// Above 0 to 0.5.
    pub(super) valid: f64,
    /// 0 to 0.5.
    pub(super) calibration: f64,
    /// Determines the order.
    pub(super) seed: u64,
}

/// Assigns every row to a part. Rows without a split belong to the training part. A valid and a calibration part are
/// drawn from it if no row names them.
pub(super) fn assign(rows: &[(Option<Split>, ImageDigest)], fractions: Fractions) -> Vec<Split> {
    // An image that one row holds out is held out in every row without a split.
    let held_out: HashMap<ImageDigest, Split> =
        rows.iter().filter_map(|(split, digest)| Some((*digest, split.filter(|s| *s != Split::Train)?))).collect();
    let of_copy = |digest: &ImageDigest| held_out.get(digest).copied().unwrap_or(Split::Train);
    let mut splits: Vec<_> = rows.iter().map(|(split, digest)| split.unwrap_or_else(|| of_copy(digest))).collect();
    let has = |wanted| rows.iter().any(|(split, _)| *split == Some(wanted));
    let mut drawn: Vec<_> = rows
        .iter()
        .enumerate()
        .filter(|(row_idx, _)| splits.get(*row_idx) == Some(&Split::Train))
        .map(|(row_idx, (_, digest))| (rank(fractions.seed, digest), row_idx))
        .collect();
    drawn.sort_unstable();
    let n_pool = drawn.len();
    let n_of = |fraction: f64| ((fraction * n_pool as f64).round() as usize).max(usize::from(fraction > 0.0));
    let mut from = 0;
    for (split, fraction) in [(Split::Valid, fractions.valid), (Split::Calibration, fractions.calibration)] {
        if has(split) || fraction == 0.0 {
            continue;
        }
        // Up to the last copy of an image in the part.
        let wanted = (from + n_of(fraction)).min(n_pool);
        let last = drawn.get(wanted.saturating_sub(1)).map(|(rank, _)| *rank);
        let to = drawn.partition_point(|(rank, _)| Some(*rank) <= last);
        for (_, row_idx) in drawn.get(from..to).unwrap_or_default() {
            if let Some(place) = splits.get_mut(*row_idx) {
                *place = split;
            }
        }
        from = to.max(from);
    }
    splits
}

/// The image's position in the seed's order.
fn rank(seed: u64, digest: &ImageDigest) -> ImageDigest {
    Sha256::new().chain_update(b"visage split").chain_update(seed.to_le_bytes()).chain_update(digest).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRACTIONS: Fractions = Fractions { valid: 0.1, calibration: 0.05, seed: 7 };

    fn pictures(n: usize) -> Vec<(Option<Split>, ImageDigest)> {
        (0..n).map(|picture| (None, Sha256::digest(picture.to_le_bytes()).into())).collect()
    }

    fn count(splits: &[Split], wanted: Split) -> usize {
        splits.iter().filter(|split| **split == wanted).count()
    }

    #[test]
    fn a_copy_of_a_held_out_picture_is_not_trained_on() {
        let mut rows = pictures(40);
        rows.extend(pictures(3).into_iter().map(|(_, digest)| (Some(Split::Valid), digest)));
        let splits = assign(&rows, FRACTIONS);
        assert_eq!(splits[..3], [Split::Valid; 3]);
        assert_eq!(count(&splits, Split::Valid), 6);
    }

    #[test]
    fn a_split_of_the_promised_sizes_is_drawn() {
        let splits = assign(&pictures(200), FRACTIONS);
        assert_eq!(Split::ALL.map(|split| count(&splits, split)), [170, 20, 10]);
        assert_ne!(splits, assign(&pictures(200), Fractions { seed: 8, ..FRACTIONS }));
        let none = Fractions { calibration: 0.0, ..FRACTIONS };
        assert_eq!(Split::ALL.map(|split| count(&assign(&pictures(200), none), split)), [180, 20, 0]);
    }

    #[test]
    fn a_part_that_the_data_names_is_kept_as_it_is() {
        let mut rows = pictures(100);
        for row in rows.iter_mut().take(30) {
            row.0 = Some(Split::Valid);
        }
        let splits = assign(&rows, FRACTIONS);
        assert!(splits[..30].iter().all(|split| *split == Split::Valid));
        assert_eq!(Split::ALL.map(|split| count(&splits, split)), [66, 30, 4]);
    }

    #[test]
    fn a_handful_of_rows_still_has_every_part() {
        let splits = assign(&pictures(5), FRACTIONS);
        assert_eq!(Split::ALL.map(|split| count(&splits, split)), [3, 1, 1]);
        assert_eq!(assign(&[], FRACTIONS), []);
    }

    proptest! {
        #[test]
        fn the_order_of_rows_does_not_matter_and_copies_stay_together(
            picks in proptest::collection::vec(0_usize..40, 1..120),
            rotation in 0_usize..100,
            seed in any::<u64>(),
        ) {
            let pool = pictures(40);
            let rows: Vec<_> = picks.iter().map(|pick| pool[*pick]).collect();
            let fractions = Fractions { seed, ..FRACTIONS };
            let splits = assign(&rows, fractions);
            for (left, split) in rows.iter().zip(&splits) {
                for (right, other) in rows.iter().zip(&splits) {
                    prop_assert!(left.1 != right.1 || split == other);
                }
            }
            let by = rotation % rows.len();
            let mut turned = rows.clone();
            turned.rotate_left(by);
            let mut again = assign(&turned, fractions);
            again.rotate_right(by);
            prop_assert_eq!(again, splits);
        }
    }
}

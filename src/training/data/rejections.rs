//! Unusable rows: counts by reason, the first of them by name, and the limit.

use std::collections::BTreeMap;

use crate::{proto::v1, training::request::Refusal};

/// The number of rows that a report names.
const MAX_NAMED: usize = 20;

/// The number of characters of a row's name, and of its detail, that a report shows.
const MAX_SHOWN_CHARS: usize = 200;

/// Why a row is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// A file's name lacks the labels that its source expects there.
    MalformedName,
    /// A table's line has not the header's fields, or is not UTF-8.
    MalformedRow,
    /// The image does not exist, or is not a file.
    FileNotFound,
    /// The image's path leads outside the training roots.
    PathOutsideRoots,
    /// The file cannot be read, or is not a decodable image.
    UnreadableImage,
    /// No head has a label.
    NoLabel,
    /// A regression's label is not a finite number.
    BadLabel,
    /// A classification's label is not in its list.
    UnknownLabel,
    /// The split is unknown.
    BadSplit,
    /// The split is `test`: left out on purpose.
    HeldOut,
}

impl Reason {
    /// The report's key.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::MalformedName => "malformed_name",
            Self::MalformedRow => "malformed_row",
            Self::FileNotFound => "file_not_found",
            Self::PathOutsideRoots => "path_outside_roots",
            Self::UnreadableImage => "unreadable_image",
            Self::NoLabel => "no_label",
            Self::BadLabel => "bad_label",
            Self::UnknownLabel => "unknown_label",
            Self::BadSplit => "bad_split",
            Self::HeldOut => "held_out",
        }
    }

    /// Returns true if it counts as unusable.
    fn is_bad(self) -> bool {
        self != Self::HeldOut
    }
}

/// A rejected row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejected {
    /// The file or the table's line.
    pub(crate) name: String,
    pub(crate) reason: Reason,
    /// For people.
    pub(crate) detail: String,
}

/// All rejected rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejections {
    counts: BTreeMap<Reason, u64>,
    named: Vec<Rejected>,
}

impl Rejections {
    /// Counts a row, and names it if it is among the first.
    pub(crate) fn add(&mut self, mut rejected: Rejected) {
        *self.counts.entry(rejected.reason).or_default() += 1;
        if self.named.len() < MAX_NAMED {
            // In a table with an unclosed quote, one field may contain all further lines.
            shorten(&mut rejected.name);
            shorten(&mut rejected.detail);
            self.named.push(rejected);
        }
    }

    /// The number of rejected rows.
    pub(crate) fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Counts by reason, for the report.
    pub(crate) fn counts(&self) -> BTreeMap<String, i64> {
        self.counts.iter().map(|(reason, &n)| (reason.key().to_owned(), i64::try_from(n).unwrap_or(i64::MAX))).collect()
    }

    /// The first rows, for the report.
    pub(crate) fn named(&self) -> Vec<v1::RejectedRow> {
        self.named
            .iter()
            .map(|row| v1::RejectedRow {
                name: row.name.clone(),
                reason: format!("{}: {}", row.reason.key(), row.detail),
            })
            .collect()
    }

    /// Formats the counts for a sentence: `3 unreadable_image (a.jpg, …), 1 no_label (faces.csv:7)`.
    fn words(&self) -> String {
        let one = |(reason, n): (&Reason, &u64)| {
            let first = self.named.iter().find(|row| row.reason == *reason);
            let example = first.map(|row| format!(" (such as {}: {})", row.name, row.detail)).unwrap_or_default();
            format!("{n} {}{example}", reason.key())
        };
        self.counts.iter().filter(|(reason, _)| reason.is_bad()).map(one).collect::<Vec<_>>().join(", ")
    }

    /// Fails when the share of unusable rows is too large.
    pub(crate) fn check_share(&self, n_usable: usize, max_bad_fraction: f64) -> Result<(), String> {
        let n_bad: u64 = self.counts.iter().filter(|(reason, _)| reason.is_bad()).map(|(_, n)| n).sum();
        let n_rows = n_bad + n_usable as u64;
        // Exact in f64 up to 2^53 rows.
        if n_bad as f64 > max_bad_fraction * n_rows as f64 {
            return Err(format!(
                "{n_bad} of {n_rows} rows are unusable, more than the recipe's max_bad_fraction of {max_bad_fraction}: {}",
                self.words()
            ));
        }
        Ok(())
    }
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN_CHARS) {
        text.truncate(end);
        text.push('…');
    }
}

/// Returns the reason and its text for an image whose path was refused.
pub(super) fn path_refused(refusal: Refusal, path: &str) -> (Reason, String) {
    match refusal {
        Refusal::Outside => (Reason::PathOutsideRoots, format!("{path} is not below a configured training root")),
        Refusal::Missing => (Reason::FileNotFound, format!("{path} does not exist")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(name: &str, reason: Reason) -> Rejected {
        Rejected { name: name.to_owned(), reason, detail: "why".to_owned() }
    }

    #[test]
    fn all_are_counted_and_the_first_are_named() {
        let mut rejections = Rejections::default();
        for row in 0..30 {
            rejections.add(rejected(&row.to_string(), Reason::NoLabel));
        }
        rejections.add(rejected("x", Reason::BadSplit));
        assert_eq!(rejections.total(), 31);
        assert_eq!(rejections.counts(), BTreeMap::from([("no_label".to_owned(), 30), ("bad_split".to_owned(), 1)]));
        assert_eq!(rejections.named().len(), MAX_NAMED);
        assert_eq!(rejections.named()[3].name, "3");
        let mut long = Rejections::default();
        long.add(Rejected { detail: "ä".repeat(5_000_000), ..rejected("x", Reason::BadLabel) });
        assert!(long.named()[0].reason.chars().count() < 300);
    }

    #[test]
    fn the_share_is_of_all_rows_that_were_meant_to_be_used() {
        let mut rejections = Rejections::default();
        rejections.add(rejected("a", Reason::UnreadableImage));
        for _ in 0..50 {
            rejections.add(rejected("t", Reason::HeldOut));
        }
        assert!(rejections.check_share(19, 0.05).is_ok());
        let message = rejections.check_share(18, 0.05).unwrap_err();
        assert!(
            message.contains("1 of 19 rows") && message.contains("1 unreadable_image (such as a: why)"),
            "{message}"
        );
        assert!(!message.contains("held_out"), "{message}");
        assert!(Rejections::default().check_share(0, 0.0).is_ok());
    }
}

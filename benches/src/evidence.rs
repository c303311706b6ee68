//! Rows of evidence: each has a figure, another of the same run to compare with, and a target figure (`bar`).

use std::{fs, path::Path};

use anyhow::Context;
use comfy_table::Table;
use serde::Serialize;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// The suite: `faces`, `training`, `serve` or `similar`.
    pub(crate) suite: &'static str,
    /// The name, a dotted path such as `age.mae`.
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The compared figure, measured in the same run.
    pub(crate) versus: Option<String>,
    pub(crate) versus_value: Option<f64>,
    /// value / versus_value.
    pub(crate) ratio: Option<f64>,
    /// The target figure for the ratio, or for the value if there is no ratio.
    pub(crate) bar: Option<Bar>,
    /// None without a target figure.
    pub(crate) pass: Option<bool>,
    pub(crate) note: String,
}

/// A target figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bar) => figure <= bar,
            Self::AtLeast(bar) => figure >= bar,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bar) => format!("≤ {bar}"),
            Self::AtLeast(bar) => format!("≥ {bar}"),
        }
    }
}

impl Row {
    pub(crate) fn new(suite: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            suite,
            name: name.into(),
            value,
            unit,
            versus: None,
            versus_value: None,
            ratio: None,
            bar: None,
            pass: None,
            note: String::new(),
        }
    }

    pub(crate) fn versus(mut self, what: impl Into<String>, value: f64) -> Self {
        self.versus = Some(what.into());
        self.versus_value = Some(value);
        self.ratio = Some(self.value / value);
        self
    }

    pub(crate) fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self.pass = Some(bar.holds(self.ratio.unwrap_or(self.value)));
        self
    }

    /// Formats the row for people.
    pub(crate) fn cells(&self) -> [String; 7] {
        let number = |value: f64| if value.abs() >= 100.0 { format!("{value:.1}") } else { format!("{value:.3}") };
        let versus =
            self.versus.as_ref().zip(self.versus_value).map(|(what, value)| format!("{} {what}", number(value)));
        let verdict = match self.pass {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        [
            self.name.clone(),
            format!("{} {}", number(self.value), self.unit).trim_end().to_owned(),
            versus.unwrap_or_default(),
            self.ratio.map(number).unwrap_or_default(),
            self.bar.map(Bar::text).unwrap_or_default(),
            verdict.to_owned(),
            self.note.clone(),
        ]
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// The middle value, the upper one of two; 0 for no values.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The titles of [`Row::cells`].
pub(crate) const HEADERS: [&str; 7] = ["name", "value", "versus", "ratio", "bar", "", "note"];

/// Prints the rows as a table and, if requested, writes them as JSON; returns true if every target was reached.
pub(crate) fn report(rows: &[Row], json: Option<&Path>) -> anyhow::Result<bool> {
    let mut table = Table::new();
    table.set_header(HEADERS);
    table.add_rows(rows.iter().map(Row::cells));
    println!("{table}");
    if let Some(path) = json {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        fs::write(path, serde_json::to_string_pretty(rows)?).with_context(|| path.display().to_string())?;
    }
    Ok(rows.iter().all(|row| row.pass != Some(false)))
}

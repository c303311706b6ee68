//! Writes the page of a suite: its charts and tables, then its rows. The page needs no other file and no script.

use std::{fs, path::Path};

use anyhow::Context;
use visage::cli::pictures::escaped;

use super::Findings;
use crate::evidence::{self, Row};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}\
    section{margin:2.5em 0}.charts{display:flex;flex-wrap:wrap;gap:1em}\
    .scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px}\
    th,td{padding:.2em .7em;text-align:left;border-bottom:1px solid #ddd}\
    .missed{color:#b00;font-weight:bold}";

/// A section of the page: charts or a table.
pub(super) struct Figure {
    title: String,
    caption: String,
    body: Body,
}

enum Body {
    Charts(Vec<String>),
    Table { headers: Vec<String>, rows: Vec<Vec<String>> },
}

impl Figure {
    /// Shows SVG charts side by side.
    pub(super) fn charts(title: impl Into<String>, caption: impl Into<String>, charts: Vec<String>) -> Self {
        Self { title: title.into(), caption: caption.into(), body: Body::Charts(charts) }
    }

    /// Shows a table of text.
    pub(super) fn table(
        title: impl Into<String>,
        caption: impl Into<String>,
        headers: Vec<&str>,
        rows: Vec<Vec<String>>,
    ) -> Self {
        let headers = headers.into_iter().map(str::to_owned).collect();
        Self { title: title.into(), caption: caption.into(), body: Body::Table { headers, rows } }
    }

    fn html(&self) -> String {
        let body = match &self.body {
            Body::Charts(charts) => format!("<div class=\"charts\">{}</div>", charts.concat()),
            Body::Table { headers, rows } => table(headers, rows.iter().map(|row| (row.as_slice(), ""))),
        };
        let (title, caption) = (escaped(&self.title), escaped(&self.caption));
        format!("<section><h2>{title}</h2><p>{caption}</p>{body}</section>\n")
    }
}

/// Writes the page.
///
/// # Errors
/// Fails when the file cannot be written.
pub(super) fn write(file: &Path, suite: &str, found: &Findings) -> anyhow::Result<()> {
    let page = html(suite, &found.rows, &found.figures);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(file, page).with_context(|| file.display().to_string())
}

fn html(suite: &str, rows: &[Row], figures: &[Figure]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Evidence: {suite}</title>\
         <style>{STYLE}</style><h1>Evidence: {suite}</h1>\n"
    );
    let n_missed = rows.iter().filter(|row| row.pass == Some(false)).count();
    let n_bars = rows.iter().filter(|row| row.pass.is_some()).count();
    page.push_str(&format!("<p>{} of {n_bars} bars are reached.</p>\n", n_bars - n_missed));
    page.extend(figures.iter().map(Figure::html));
    let cells: Vec<(Vec<String>, &str)> =
        rows.iter().map(|row| (row.cells().to_vec(), if row.pass == Some(false) { "missed" } else { "" })).collect();
    let headers: Vec<String> = evidence::HEADERS.iter().map(|&header| header.to_owned()).collect();
    let table = table(&headers, cells.iter().map(|(cells, class)| (cells.as_slice(), *class)));
    page.push_str(&format!("<section><h2>Every row</h2>{table}</section></html>\n"));
    page
}

/// Formats a table; each row comes with its CSS class.
fn table<'a>(headers: &[String], rows: impl Iterator<Item = (&'a [String], &'a str)>) -> String {
    let line = |cells: &[String], kind: &str| -> String {
        cells.iter().map(|cell| format!("<{kind}>{}</{kind}>", escaped(cell))).collect()
    };
    let body: String =
        rows.map(|(cells, class)| format!("<tr class=\"{class}\">{}</tr>\n", line(cells, "td"))).collect();
    format!("<div class=\"scroll\"><table><tr>{}</tr>\n{body}</table></div>", line(headers, "th"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Bar;

    #[test]
    fn a_page_shows_figures_and_what_was_missed() {
        let rows = [
            Row::new("faces", "a", 2.0, "s").bar(Bar::AtMost(1.0)),
            Row::new("faces", "b", 0.5, "s").bar(Bar::AtMost(1.0)),
        ];
        let figure = Figure::table("Worst", "a <b>", vec!["photo"], vec![vec!["<script>".to_owned()]]);
        let page = html("faces", &rows, &[figure]);
        assert!(page.contains("1 of 2 bars are reached") && page.contains("<tr class=\"missed\"><td>a</td>"));
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>") && page.contains("a &lt;b&gt;"));
    }
}

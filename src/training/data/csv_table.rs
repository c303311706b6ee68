//! Tables of images: a header line, a column of paths, label columns, and an optional column for the split.

use std::{fs::File, io::Read, path::Path};

use csv::{ByteRecord, ReaderBuilder};

use super::{
    rejections::{Reason, Rejected, path_refused},
    row::Row,
    split::Split,
};
use crate::training::{
    TrainingError,
    request::{CsvSource, Roots},
};

/// Bytes read to recognise a file that is not a table.
const FIRST_BYTES: u64 = 1024;

/// The positions of a table's columns.
struct Columns {
    path_idx: usize,
    split_idx: Option<usize>,
    /// The column of each head, if the table has it.
    label_idxs: Vec<Option<usize>>,
    n_fields: usize,
}

/// Reads the header's columns.
///
/// # Errors
/// [`TrainingError::Io`] when the file cannot be read, [`TrainingError::BadData`] when it has no UTF-8 header.
pub(super) fn header(table: &Path) -> Result<Vec<String>, TrainingError> {
    if let Some(why) = foreign(table)? {
        let name = table.file_name().unwrap_or_default().to_string_lossy();
        return Err(TrainingError::BadData { detail: format!("{name}: {why}"), report: None });
    }
    let mut reader = open(table)?;
    let header = reader.headers().map_err(|error| unreadable(table, error))?;
    Ok(header.iter().map(|column| column.trim().to_owned()).collect())
}

/// Visits every line after the header, in order; `columns` are the heads'.
///
/// # Errors
/// As [`header`], and [`TrainingError::BadData`] when a required column is missing.
pub(super) fn read(
    source: &CsvSource,
    roots: &Roots,
    columns: &[String],
    mut visit: impl FnMut(Result<Row, Rejected>),
) -> Result<(), TrainingError> {
    let columns = Columns::find(source, &header(&source.table)?, columns)?;
    let mut reader = open(&source.table)?;
    let table_name = source.table.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut record = ByteRecord::new();
    loop {
        let line = reader.position().line();
        if !reader.read_byte_record(&mut record).map_err(|error| unreadable(&source.table, error))? {
            return Ok(());
        }
        // The line of the record itself: the reader skips blank lines before it.
        let line = record.position().map_or(line, csv::Position::line);
        let next_line = reader.position().line();
        let reject = |line: u64, reason, detail| Rejected { name: format!("{table_name}:{line}"), reason, detail };
        match columns.row(source, roots, &record) {
            Ok(row) => visit(Ok(row)),
            Err((reason, detail)) => visit(Err(reject(line, reason, detail))),
        }
        if columns.swallowed_lines(&record) {
            for swallowed in line + 1..next_line {
                let detail = format!("belongs to a quoted field that begins in line {line}");
                visit(Err(reject(swallowed, Reason::MalformedRow, detail)));
            }
        }
    }
}

impl Columns {
    fn find(source: &CsvSource, header: &[String], labels: &[String]) -> Result<Self, TrainingError> {
        let table = source.table.file_name().unwrap_or_default().to_string_lossy();
        let bad = |detail: String| TrainingError::BadData { detail, report: None };
        let find = |column: &str| -> Result<Option<usize>, TrainingError> {
            let mut found = header.iter().enumerate().filter(|(_, name)| name.as_str() == column);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(bad(format!("{table} has two columns {column:?}"))),
                (first, _) => Ok(first.map(|(column_idx, _)| column_idx)),
            }
        };
        let missing = |column: &str| bad(format!("{table} has no column {column:?}; it has {}", header.join(", ")));
        let split_idx = match &source.split_column {
            Some(column) => Some(find(column)?.ok_or_else(|| missing(column))?),
            None => find("split")?,
        };
        Ok(Self {
            path_idx: find(&source.path_column)?.ok_or_else(|| missing(&source.path_column))?,
            split_idx,
            label_idxs: labels.iter().map(|column| find(column)).collect::<Result<_, _>>()?,
            n_fields: header.len(),
        })
    }

    /// Returns true if an unclosed quote has probably merged lines into this record. A note over several lines in an
    /// unused column does not count.
    fn swallowed_lines(&self, record: &ByteRecord) -> bool {
        let used = [Some(self.path_idx), self.split_idx].into_iter().chain(self.label_idxs.iter().copied()).flatten();
        let over_lines = |column_idx: usize| record.get(column_idx).is_some_and(|field| field.contains(&b'\n'));
        record.len() != self.n_fields || used.into_iter().any(over_lines)
    }

    fn row(&self, source: &CsvSource, roots: &Roots, record: &ByteRecord) -> Result<Row, (Reason, String)> {
        if record.len() != self.n_fields {
            let detail = format!("the line has {} fields, the header has {}", record.len(), self.n_fields);
            return Err((Reason::MalformedRow, detail));
        }
        let field = |column_idx: usize| match std::str::from_utf8(record.get(column_idx).unwrap_or_default()) {
            Ok(text) => Ok(text.trim()),
            Err(_) => Err((Reason::MalformedRow, format!("field {} is no UTF-8", column_idx + 1))),
        };
        let name = field(self.path_idx)?;
        if name.is_empty() {
            return Err((Reason::MalformedRow, "the path is empty".to_owned()));
        }
        let split = match self.split_idx.map(field).transpose()?.unwrap_or_default() {
            "" => None,
            text => Some(Split::parse(text).ok_or_else(|| {
                let reason = if text == "test" { Reason::HeldOut } else { Reason::BadSplit };
                (reason, format!("the split is {text:?}, expected train, valid or calibration"))
            })?),
        };
        let labels = self
            .label_idxs
            .iter()
            .map(|column_idx| column_idx.map_or(Ok(""), field).map(str::to_owned))
            .collect::<Result<_, _>>()?;
        let path = roots.resolve_from(&source.image_root, name).map_err(|refusal| path_refused(refusal, name))?;
        Ok(Row { name: name.to_owned(), path, split, labels })
    }
}

/// Recognises by its first bytes that a file is not a table in UTF-8, and returns what it is.
fn foreign(table: &Path) -> Result<Option<&'static str>, TrainingError> {
    let io = |source| TrainingError::Io { path: table.to_owned(), source };
    let mut start = Vec::new();
    File::open(table).map_err(io)?.take(FIRST_BYTES).read_to_end(&mut start).map_err(io)?;
    let utf16 = "it is text in UTF-16, as Excel's \"Unicode text\" is; save it as \"CSV UTF-8\"";
    Ok(match start.as_slice() {
        [] => Some("it is empty; a table begins with a line of column names"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Some(utf16),
        [b'P', b'K', 3, 4, ..] => Some("it is a spreadsheet or an archive, not text; export it as \"CSV UTF-8\""),
        [0x1f, 0x8b, ..] => Some("it is compressed by gzip; unpack it"),
        start if is_every_other_zero(start) => Some(utf16),
        _ => None,
    })
}

/// Returns true for text with two bytes per letter, one of which is zero in Western languages.
fn is_every_other_zero(start: &[u8]) -> bool {
    let (pairs, _) = start.as_chunks::<2>();
    pairs.len() > 1 && (pairs.iter().all(|[_, b]| *b == 0) || pairs.iter().all(|[a, _]| *a == 0))
}

fn open(table: &Path) -> Result<csv::Reader<File>, TrainingError> {
    ReaderBuilder::new().flexible(true).from_path(table).map_err(|error| unreadable(table, error))
}

fn unreadable(table: &Path, error: csv::Error) -> TrainingError {
    match error.into_kind() {
        csv::ErrorKind::Io(source) => TrainingError::Io { path: table.to_owned(), source },
        other => TrainingError::BadData {
            detail: format!(
                "{}: not a readable table: {other:?}",
                table.file_name().unwrap_or_default().to_string_lossy()
            ),
            report: None,
        },
    }
}

#[cfg(test)]
mod tests;

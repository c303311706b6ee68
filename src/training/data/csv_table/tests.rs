//! Tests of the table reader.

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Creates a folder with the images `a.jpg`, `b.jpg` and `c d.jpg`, and a table.
fn table(content: &[u8]) -> (TempDir, Roots, CsvSource) {
    let tmp = tempfile::tempdir().unwrap();
    let root = fs::canonicalize(tmp.path()).unwrap();
    for picture in ["a.jpg", "b.jpg", "c d.jpg"] {
        fs::write(root.join(picture), picture).unwrap();
    }
    fs::write(root.join("faces.csv"), content).unwrap();
    let source = CsvSource {
        table: root.join("faces.csv"),
        path_column: "path".to_owned(),
        image_root: root.clone(),
        split_column: None,
    };
    (tmp, Roots::new(vec![root]).unwrap(), source)
}

/// Lists rows as `name split label|label`, and rejected ones as `!name reason`.
fn rows(content: &[u8], columns: &[&str]) -> Vec<String> {
    let (_tmp, roots, source) = table(content);
    let columns: Vec<_> = columns.iter().map(|&column| column.to_owned()).collect();
    let mut rows = Vec::new();
    read(&source, &roots, &columns, |row| {
        rows.push(match row {
            Ok(row) => format!("{} {:?} {}", row.name, row.split, row.labels.join("|")),
            Err(rejected) => format!("!{} {}", rejected.name, rejected.reason.key()),
        });
    })
    .unwrap();
    rows
}

#[test]
fn good_lines_are_read_whatever_the_order_of_the_columns() {
    let content =
        b"\xef\xbb\xbfage, path ,note,split\r\n31,a.jpg,x,train\r\n\r\n, b.jpg ,\"two\nlines\",\n7,\"c d.jpg\",,valid";
    assert_eq!(rows(content, &["age", "smoker"]), ["a.jpg Some(Train) 31|", "b.jpg None |", "c d.jpg Some(Valid) 7|"]);
}

#[test]
fn bad_lines_are_rejected_by_their_number_and_the_rest_is_read() {
    let content = b"path,age,split\n\
        a.jpg,1,train\n\
        a.jpg,1\n\
        a.jpg,1,train,more\n\
        nothing.jpg,1,train\n\
        ../x.jpg,1,train\n\
        /etc/passwd,1,train\n\
        a.jpg,1,nowhere\n\
        a.jpg,1,test\n\
        ,1,train\n\
        \xff.jpg,1,train\n\
        b.jpg,2,calibration\n";
    assert_eq!(
        rows(content, &["age"]),
        [
            "a.jpg Some(Train) 1",
            "!faces.csv:3 malformed_row",
            "!faces.csv:4 malformed_row",
            "!faces.csv:5 file_not_found",
            "!faces.csv:6 path_outside_roots",
            "!faces.csv:7 path_outside_roots",
            "!faces.csv:8 bad_split",
            "!faces.csv:9 held_out",
            "!faces.csv:10 malformed_row",
            "!faces.csv:11 malformed_row",
            "b.jpg Some(Calibration) 2",
        ]
    );
}

#[test]
fn lines_behind_an_unclosed_quote_are_not_lost_silently() {
    let found = rows(b"path,age\na.jpg,1\nb.jpg,\"2\na.jpg,3\na.jpg,4\n", &["age"]);
    assert_eq!(found.len(), 4, "{found:?}");
    assert_eq!(found[2..], ["!faces.csv:4 malformed_row", "!faces.csv:5 malformed_row"]);
}

#[test]
fn a_column_that_was_asked_for_must_be_there_once() {
    let message = |content: &[u8], change: fn(&mut CsvSource)| {
        let (_tmp, roots, mut source) = table(content);
        change(&mut source);
        read(&source, &roots, &["age".to_owned()], |_| ()).unwrap_err().to_string()
    };
    assert_eq!(message(b"file,age\n", |_| ()), "faces.csv has no column \"path\"; it has file, age");
    assert_eq!(message(b"path,age,age\n", |_| ()), "faces.csv has two columns \"age\"");
    let split = message(b"path,age\n", |source| source.split_column = Some("part".to_owned()));
    assert_eq!(split, "faces.csv has no column \"part\"; it has path, age");
    assert_eq!(message(b"", |_| ()), "faces.csv: it is empty; a table begins with a line of column names");
}

proptest! {
    #[test]
    fn every_line_is_a_row_or_a_rejection(
        lines in proptest::collection::vec("(a|b|x|\\.\\./a)\\.jpg(,[0-9]{0,3}){0,3}(,train|,valid|,zzz)?", 0..20)
    ) {
        let content = format!("path,age,split\n{}\n", lines.join("\n"));
        prop_assert_eq!(rows(content.as_bytes(), &["age"]).len(), lines.len());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut content = b"path,age,split\n".to_vec();
        content.extend(bytes);
        let _ = rows(&content, &["age"]);
    }

    #[test]
    fn quoted_fields_come_back(age in "[ -~]{0,12}") {
        let content = format!("path,age\na.jpg,\"{}\"\n", age.replace('"', "\"\""));
        prop_assert_eq!(rows(content.as_bytes(), &["age"]), [format!("a.jpg None {}", age.trim())]);
    }
}

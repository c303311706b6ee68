//! Measures how error and abstention differ between groups of people.

use std::collections::BTreeMap;

use super::{Findings, SUITE, judged::Judged};
use crate::{
    eval::{
        charts::{self, Series},
        metrics::{mean, share},
        page::Figure,
        table::Face,
    },
    evidence::Row,
};

/// Groups by gender, by decade, and by the table's group label.
pub(super) fn measure(labelled: &[&Face], judged: &[Judged]) -> anyhow::Result<Findings> {
    let mut groups: BTreeMap<String, (usize, Vec<&Judged>)> = BTreeMap::new();
    for face in labelled {
        for name in groups_of(face) {
            groups.entry(name).or_default().0 += 1;
        }
    }
    for one in judged.iter().filter(|one| one.answered) {
        for name in groups_of(one.face) {
            groups.entry(name).or_default().1.push(one);
        }
    }
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    let (mut error_by_decade, mut left_out_by_decade) = (Vec::new(), Vec::new());
    for (name, (n, answered)) in &groups {
        let rate = answered.len() as f64 / *n as f64;
        let error = mean(answered.iter().map(|one| one.error));
        let gender = share(answered.iter().filter_map(|one| one.gender_right));
        let note = format!("{n} faces");
        let measured = [(".answered", rate, ""), (".age.mae", error, "years"), (".gender.accuracy", gender, "")];
        for (what, value, unit) in measured.into_iter().filter(|(_, value, _)| value.is_finite()) {
            rows.push(Row::new(SUITE, format!("bias.{name}{what}"), value, unit).note(&note));
        }
        cells.push(vec![
            name.replace('_', " "),
            n.to_string(),
            format!("{rate:.3}"),
            format!("{error:.2}"),
            format!("{gender:.3}"),
        ]);
        if let Some(decade) = name.strip_prefix("decade_").and_then(|decade| decade.parse::<f64>().ok()) {
            error_by_decade.push((decade + 5.0, error));
            left_out_by_decade.push((decade + 5.0, 1.0 - rate));
        }
    }
    let headers = vec!["group", "faces", "answered", "error, years", "gender right"];
    let charts = vec![
        charts::curves("years", "mean error, years", &[Series { name: "age", points: error_by_decade }], false)?,
        charts::curves("years", "not answered", &[Series { name: "share", points: left_out_by_decade }], false)?,
    ];
    Ok(Findings {
        rows,
        figures: vec![
            Figure::table(
                "Groups of people",
                "Group labels are used to compare, here and nowhere else: no answer has one.",
                headers,
                cells,
            ),
            Figure::charts("By decade", "The error of those answered, and the share of those who are not.", charts),
        ],
    })
}

fn groups_of(face: &Face) -> Vec<String> {
    let mut names = Vec::new();
    names.extend(face.gender_name().map(|gender| format!("gender_{gender}")));
    names.extend(face.age.map(|age| format!("decade_{:03}", (age / 10.0).floor() as i64 * 10)));
    names.extend(face.group.as_ref().map(|group| format!("group_{group}")));
    names
}

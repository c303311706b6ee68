//! Measures the graph's recall and speed beside the exact scan of the same server: the suite `similar`.
//!
//! The vectors are clustered as faces are, many photos about one person, so that neighbours are close and hard to rank.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use visage::{
    cli::output,
    proto::v1::{self, find_similar_request::Query},
};

use super::vectors;
use crate::{
    evidence::{Bar, Row},
    training_server::TrainingServer,
};

const SUITE: &str = "similar";
const COLLECTION: &str = "collections/bench";
const DIMENSIONS: usize = 512;
const N_FACES: usize = 20_000;
const N_CLUSTERS: usize = 1_000;
const N_QUERIES: usize = 300;
const K: i32 = 10;
/// The spread of a cluster, as a share of its centre's length.
const SPREAD: f32 = 0.7;

/// Runs the suite.
pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let mut server = TrainingServer::start(Vec::new()).await?;
    let version = vectors::train_smallest(&mut server).await?;
    vectors::create_collection(&mut server, COLLECTION.trim_start_matches("collections/").to_owned(), version).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let centres: Vec<Vec<f32>> = (0..N_CLUSTERS).map(|_| normal(&mut rng)).collect();
    let faces: Vec<Vec<f32>> = (0..N_FACES).map(|i| near(&centres[i % N_CLUSTERS], &mut rng)).collect();
    let queries: Vec<Vec<f32>> = (0..N_QUERIES).map(|i| near(&centres[i], &mut rng)).collect();

    let started = Instant::now();
    let requests = faces.into_iter().map(|values| vectors::enrolment(COLLECTION, String::new(), values));
    vectors::enroll(&mut server, requests).await?;
    let enrolled = started.elapsed().as_secs_f64();
    let progress = output::counter("building the graph");
    // A search reports whether it compared every face: the first that did not has used the graph.
    while search(&mut server, &queries[0], false).await?.1 {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    settle(&mut server, &queries).await?;
    let built = started.elapsed().as_secs_f64() - enrolled;
    progress.set_message("searching");
    let (mut found, mut took) = ([Vec::new(), Vec::new()], [0.0, 0.0]);
    for query in &queries {
        // Alternating, so that a change of the machine's pace affects both.
        for (which, exact) in [false, true].into_iter().enumerate() {
            let start = Instant::now();
            found[which].push(search(&mut server, query, exact).await?.0);
            took[which] += start.elapsed().as_secs_f64();
        }
    }
    progress.finish_and_clear();
    server.stop().await?;
    let n_hits: usize = found[0].iter().zip(&found[1]).map(|(graph, truth)| graph.intersection(truth).count()).sum();
    let n_truths: usize = found[1].iter().map(BTreeSet::len).sum();
    let what = format!("{N_FACES} faces of {N_CLUSTERS} persons, one caller, over the wire");
    let qps = |which: usize| N_QUERIES as f64 / took[which];
    Ok(vec![
        Row::new(SUITE, format!("similar.recall{K}.{DIMENSIONS}d"), n_hits as f64 / n_truths as f64, "")
            .bar(Bar::AtLeast(0.95))
            .note(what.clone()),
        Row::new(SUITE, format!("similar.qps.{DIMENSIONS}d"), qps(0), "queries/s").versus("exact", qps(1)).note(what),
        Row::new(SUITE, "similar.enroll", N_FACES as f64 / enrolled, "faces/s")
            .note("one stream, each face on disk before it is acknowledged"),
        Row::new(SUITE, "similar.build", built, "s")
            .note("from the last enrolment until searches became no faster, the wait for that included"),
    ])
}

/// Waits until searches have not become faster for a while: then no segment is being built or merged.
async fn settle(server: &mut TrainingServer, queries: &[Vec<f32>]) -> anyhow::Result<()> {
    let (mut fastest, mut n_without_gain) = (f64::MAX, 0);
    while n_without_gain < 4 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let started = Instant::now();
        for query in queries.iter().take(20) {
            search(server, query, false).await?;
        }
        let took = started.elapsed().as_secs_f64();
        n_without_gain = if took < 0.9 * fastest { 0 } else { n_without_gain + 1 };
        fastest = fastest.min(took);
    }
    Ok(())
}

/// Searches; returns the names found, and true if every face was compared.
async fn search(server: &mut TrainingServer, query: &[f32], exact: bool) -> anyhow::Result<(BTreeSet<String>, bool)> {
    let request = v1::FindSimilarRequest {
        collection: COLLECTION.to_owned(),
        query: Some(Query::Embedding(v1::Embedding { values: query.to_vec(), space: String::new() })),
        k: K,
        exact,
        ..v1::FindSimilarRequest::default()
    };
    let found = server.clients.visage.find_similar(request).await.context("a search")?.into_inner();
    let names = found.matches.into_iter().filter_map(|m| m.face).map(|face| face.name).collect();
    Ok((names, found.exact))
}

fn normal(rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..DIMENSIONS).map(|_| rng.sample(StandardNormal)).collect()
}

fn near(centre: &[f32], rng: &mut ChaCha8Rng) -> Vec<f32> {
    centre.iter().map(|c| c + SPREAD * rng.sample::<f32, _>(StandardNormal)).collect()
}

//! Tests that a score belongs to the face beside it while the faces of the same ids come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use visage::proto::v1;

use crate::support::{server::Home, vector_enrolment};

const DIMENSIONS: usize = 16;
const N_IDS: u64 = 64;
const N_SEARCHERS: u64 = 8;
const N_WRITERS: u64 = 2;

/// The label that says from which seed a face's vector was drawn.
const SEED: &str = "seed";

fn vector(seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A few seconds in every run of the tests, longer with `VISAGE_CHURN_SECONDS=300`.
fn duration() -> Duration {
    let seconds = std::env::var("VISAGE_CHURN_SECONDS").map_or(4, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_face_gets_the_score_of_another_that_had_its_id() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = c.create_collection("churn").await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..N_WRITERS {
        let (mut c, collection, is_over) = (server.clients().await, collection.clone(), Arc::clone(&is_over));
        writers.spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(1_000 + writer);
            let mut n_enrolled = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                let id = format!("f{}", rng.random_range(0..N_IDS));
                // The other writer may have deleted or enrolled it meanwhile.
                let _ = c.faces.delete_face(v1::DeleteFaceRequest { name: format!("{collection}/faces/{id}") }).await;
                let seed: u64 = rng.random();
                let mut request = vector_enrolment(&collection, &id, vector(seed));
                request.labels.insert(SEED.to_owned(), seed.to_string());
                n_enrolled += u64::from(c.faces.enroll_face(request).await.is_ok());
            }
            n_enrolled
        });
    }
    let mut searchers = tokio::task::JoinSet::new();
    for searcher in 0..N_SEARCHERS {
        let (mut c, collection, is_over) = (server.clients().await, collection.clone(), Arc::clone(&is_over));
        searchers.spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(2_000 + searcher);
            let mut n_compared = 0_u64;
            while !is_over.load(Ordering::Relaxed) {
                let query = vector(rng.random());
                let request = v1::FindSimilarRequest {
                    collection: collection.clone(),
                    query: Some(v1::find_similar_request::Query::Embedding(v1::Embedding {
                        values: query.clone(),
                        space: String::new(),
                    })),
                    k: 20,
                    ..Default::default()
                };
                for found in c.visage.find_similar(request).await.unwrap().into_inner().matches {
                    let face = found.face.unwrap();
                    let expected = cosine(&query, &vector(face.labels[SEED].parse().unwrap()));
                    assert!((f64::from(found.score) - expected).abs() < 1e-5, "{}: {expected}", found.score);
                    n_compared += 1;
                }
            }
            n_compared
        });
    }
    tokio::time::sleep(duration()).await;
    is_over.store(true, Ordering::Relaxed);
    let (n_enrolled, n_compared) =
        (writers.join_all().await.iter().sum::<u64>(), searchers.join_all().await.iter().sum::<u64>());
    println!("{n_enrolled} enrolments, {n_compared} scores compared");
    assert!(n_enrolled > 10 && n_compared > 100, "{n_enrolled} enrolments, {n_compared} scores");
    assert!(server.stop().success());
}

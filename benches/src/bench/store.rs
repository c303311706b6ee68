//! Measures what a durable write costs, beside a bare loop of writes and syncs on the same disk: the suite `store`.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use visage::{
    cli::output,
    proto::v1::{self, enroll_face_request::Source},
};

use super::{photos, train_request};
use crate::{
    evidence::{Bar, Row},
    training_server::TrainingServer,
};

const SUITE: &str = "store";
/// The length of a ResNet18's vectors.
const DIMENSIONS: usize = 512;
/// Faces of the small and of the large collection.
const SIZES: [usize; 2] = [10_000, 100_000];
/// Calls that are timed one at a time.
const N_TIMED: usize = 500;
/// About the size of a face's record.
const BARE_BYTES: usize = 2_200;
/// How long the server must be idle until its background work is done.
const IDLE_FOR: Duration = Duration::from_secs(3);

/// Runs the suite.
pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let mut server = TrainingServer::start(Vec::new()).await?;
    let folder = server.root().join("photos");
    photos::write_folder(&folder, 64)?;
    let stage = v1::Stage { epochs: 1, image_size_px: 32, ..v1::Stage::default() };
    let trained = server.train(train_request(&folder, v1::Architecture::Resnet18, stage, 0), |_| {}).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut rows = Vec::new();
    let mut delete_p99 = Vec::new();
    for size in SIZES {
        let collection = format!("bench-{size}");
        let request = v1::CreateCollectionRequest {
            collection_id: collection.clone(),
            embedding_space: trained.version.clone(),
            ..v1::CreateCollectionRequest::default()
        };
        let parent = server.clients.faces.create_collection(request).await?.into_inner().name;
        let started = Instant::now();
        enroll_by_stream(&mut server, &parent, size, &mut rng).await?;
        let per_second = size as f64 / started.elapsed().as_secs_f64();
        let bare = bare_loop(server.root().as_path())?;
        if size == SIZES[0] {
            rows.push(
                Row::new(SUITE, "store.enroll.stream", per_second, "faces/s")
                    .versus("append and fdatasync, one record each", bare.per_second)
                    .bar(Bar::AtLeast(1.0))
                    .note(format!(
                        "{size} vectors of {DIMENSIONS} numbers, one stream, each durable before its answer"
                    )),
            );
            let seen = enroll_one_by_one(&mut server, &parent, &mut rng).await?;
            for (name, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                rows.push(
                    Row::new(SUITE, format!("store.enroll.one.{name}"), ms(&seen, quantile), "ms")
                        .versus("append and fdatasync", ms(&bare.took_us, quantile))
                        .note("one caller, one call at a time"),
                );
            }
        } else {
            rows.push(Row::new(SUITE, format!("store.enroll.stream.{size}"), per_second, "faces/s"));
        }
        let progress = output::counter("waiting for the background work");
        server.wait_until_idle(IDLE_FOR).await?;
        progress.finish_and_clear();
        delete_p99.push(ms(&delete_some(&mut server, &parent, size, &mut rng).await?, 0.99));
    }
    rows.push(
        Row::new(SUITE, format!("store.delete.p99.{}", SIZES[1]), delete_p99[1], "ms")
            .versus(format!("a collection of {}", SIZES[0]), delete_p99[0])
            .bar(Bar::AtMost(2.0))
            .note(format!("{N_TIMED} deletions, one at a time")),
    );
    server.stop().await?;
    Ok(rows)
}

fn vector(rng: &mut ChaCha8Rng) -> Source {
    let values = (0..DIMENSIONS).map(|_| rng.sample(StandardNormal)).collect();
    Source::Vector(v1::FaceVector { values, space: String::new() })
}

fn request(parent: &str, id: String, rng: &mut ChaCha8Rng) -> v1::EnrollFaceRequest {
    let source = Some(vector(rng));
    v1::EnrollFaceRequest { parent: parent.to_owned(), face_id: id, source, ..v1::EnrollFaceRequest::default() }
}

async fn enroll_by_stream(
    server: &mut TrainingServer,
    parent: &str,
    n_faces: usize,
    rng: &mut ChaCha8Rng,
) -> anyhow::Result<()> {
    let progress = output::bar(n_faces as u64, "enrolling");
    let requests: Vec<_> = (0..n_faces)
        .map(|i| v1::StreamEnrollFacesRequest {
            request: Some(request(parent, format!("f{i}"), rng)),
            correlation_id: String::new(),
        })
        .collect();
    let mut answers = server.clients.faces.stream_enroll_faces(futures::stream::iter(requests)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(v1::stream_enroll_faces_response::Result::Error(error)) = answer.result {
            bail!("a face was refused: {}", error.message);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    Ok(())
}

async fn enroll_one_by_one(
    server: &mut TrainingServer,
    parent: &str,
    rng: &mut ChaCha8Rng,
) -> anyhow::Result<Histogram<u64>> {
    let mut took_us = Histogram::new(3)?;
    for i in 0..N_TIMED {
        let request = request(parent, format!("one-{i}"), rng);
        let asked = Instant::now();
        server.clients.faces.enroll_face(request).await.context("an enrolment")?;
        took_us.record(asked.elapsed().as_micros() as u64)?;
    }
    Ok(took_us)
}

async fn delete_some(
    server: &mut TrainingServer,
    parent: &str,
    n_faces: usize,
    rng: &mut ChaCha8Rng,
) -> anyhow::Result<Histogram<u64>> {
    let mut took_us = Histogram::new(3)?;
    for i in rand::seq::index::sample(rng, n_faces, N_TIMED) {
        let request = v1::DeleteFaceRequest { name: format!("{parent}/faces/f{i}") };
        let asked = Instant::now();
        server.clients.faces.delete_face(request).await.context("a deletion")?;
        took_us.record(asked.elapsed().as_micros() as u64)?;
    }
    Ok(took_us)
}

struct Bare {
    per_second: f64,
    took_us: Histogram<u64>,
}

/// Appends records to a file of the same disk, each with a sync.
fn bare_loop(folder: &Path) -> anyhow::Result<Bare> {
    let mut file = File::create(folder.join("bare"))?;
    let mut took_us = Histogram::new(3)?;
    let started = Instant::now();
    for _ in 0..N_TIMED {
        let asked = Instant::now();
        file.write_all(&[7; BARE_BYTES])?;
        file.sync_data()?;
        took_us.record(asked.elapsed().as_micros() as u64)?;
    }
    Ok(Bare { per_second: N_TIMED as f64 / started.elapsed().as_secs_f64(), took_us })
}

fn ms(took_us: &Histogram<u64>, quantile: f64) -> f64 {
    took_us.value_at_quantile(quantile) as f64 / 1e3
}

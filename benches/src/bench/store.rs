//! Measures what a durable write costs, beside a bare loop of writes and syncs on the same disk, and whether deletions
//! and the server's end depend on the number of faces: the suite `store`.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use visage::{cli::output, proto::v1};

use super::vectors;
use crate::{
    evidence::{Bar, Row},
    training_server::TrainingServer,
};

const SUITE: &str = "store";
/// A collection for the cost of a write, with the longest vectors of a ResNet18.
const WRITTEN: Gallery = Gallery { layer: "embedding512", dimensions: 512, n_faces: 10_000 };
/// Collections for the cost of a deletion, with the shortest vectors.
const DELETED: [Gallery; 2] = [
    Gallery { layer: "embedding16", dimensions: 16, n_faces: 10_000 },
    Gallery { layer: "embedding16", dimensions: 16, n_faces: 100_000 },
];
/// A collection that is deleted as a whole, and filled again.
const DELETED_WHOLE: Gallery = Gallery { layer: "embedding16", dimensions: 16, n_faces: 50_000 };
/// Calls that are timed one at a time.
const N_TIMED: usize = 500;
/// About the size of a face's record with 512 numbers.
const BARE_BYTES: usize = 2_200;
/// The background work counts as done once the server has been idle for this time.
const IDLE_FOR: Duration = Duration::from_secs(3);
/// The server's drain time, which its end may take with a second more.
const DRAIN_SECONDS: f64 = 20.0;

/// A collection to fill with random vectors.
struct Gallery {
    layer: &'static str,
    dimensions: usize,
    n_faces: usize,
}

/// Runs the suite.
pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let mut server = TrainingServer::start(Vec::new()).await?;
    let version = vectors::train_smallest(&mut server).await?;
    let mut rng = ChaCha8Rng::seed_from_u64(1);

    let (parent, per_second) = fill(&mut server, &version, &WRITTEN, &mut rng).await?;
    let bare = bare_loop(server.root().as_path())?;
    let one = enroll_one_by_one(&mut server, &parent, &mut rng).await?;
    let mut rows = vec![
        Row::new(SUITE, "store.enroll.stream", per_second, "faces/s")
            .bar(Bar::AtLeast(5_000.0))
            .note(format!("{} vectors of 512 numbers, one stream, each durable before its answer", WRITTEN.n_faces)),
        Row::new(SUITE, "store.bare", bare.per_second, "records/s")
            .note(format!("append and fdatasync, one record of {BARE_BYTES} bytes each")),
    ];
    rows.extend([("p50", 0.5), ("p99", 0.99)].map(|(name, quantile)| {
        Row::new(SUITE, format!("store.enroll.one.{name}"), ms(&one, quantile), "ms")
            .versus("append and fdatasync", ms(&bare.took_us, quantile))
            .note("one caller, one call at a time")
    }));

    let mut p99 = Vec::new();
    for gallery in &DELETED {
        let (parent, _) = fill(&mut server, &version, gallery, &mut rng).await?;
        let progress = output::counter("waiting for the background work");
        server.wait_until_idle(IDLE_FOR).await?;
        progress.finish_and_clear();
        p99.push(ms(&delete_some(&mut server, &parent, gallery.n_faces, &mut rng).await?, 0.99));
    }
    let (name, _) = fill(&mut server, &version, &DELETED_WHOLE, &mut rng).await?;
    let deleting = Instant::now();
    server.clients.faces.delete_collection(v1::DeleteCollectionRequest { name }).await?;
    let deleted_s = deleting.elapsed().as_secs_f64();
    // Its id is free at once.
    fill(&mut server, &version, &DELETED_WHOLE, &mut rng).await?;
    rows.push(
        Row::new(SUITE, format!("store.delete.collection.{}", DELETED_WHOLE.n_faces), deleted_s, "s")
            .bar(Bar::AtMost(1.0))
            .note("acknowledged; its rows are removed in the background"),
    );
    rows.push(
        Row::new(SUITE, format!("store.delete.p99.{}", DELETED[1].n_faces), p99[1], "ms")
            .versus(format!("a collection of {}", DELETED[0].n_faces), p99[0])
            .bar(Bar::AtMost(2.0))
            .note(format!("{N_TIMED} deletions, one at a time, no graph being built")),
    );

    // A start builds every graph again.
    let server = server.restart().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let stopping = Instant::now();
    server.stop().await?;
    rows.push(
        Row::new(SUITE, "store.stop.building", stopping.elapsed().as_secs_f64(), "s")
            .bar(Bar::AtMost(DRAIN_SECONDS + 1.0))
            .note("from SIGTERM to the end, while graphs over all faces are built"),
    );
    Ok(rows)
}

/// Creates a collection and fills it by one stream; returns its name and the faces per second.
async fn fill(
    server: &mut TrainingServer,
    version: &str,
    gallery: &Gallery,
    rng: &mut ChaCha8Rng,
) -> anyhow::Result<(String, f64)> {
    let id = format!("bench-{}-{}", gallery.dimensions, gallery.n_faces);
    let parent = vectors::create_collection(server, id, format!("{version}#{}", gallery.layer)).await?;
    let requests: Vec<_> = (0..gallery.n_faces)
        .map(|i| vectors::enrolment(&parent, format!("f{i}"), random(gallery.dimensions, rng)))
        .collect();
    let started = Instant::now();
    vectors::enroll(server, requests.into_iter()).await?;
    Ok((parent, gallery.n_faces as f64 / started.elapsed().as_secs_f64()))
}

fn random(dimensions: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..dimensions).map(|_| rng.sample(StandardNormal)).collect()
}

async fn enroll_one_by_one(
    server: &mut TrainingServer,
    parent: &str,
    rng: &mut ChaCha8Rng,
) -> anyhow::Result<Histogram<u64>> {
    let mut took_us = Histogram::new(3)?;
    for i in 0..N_TIMED {
        let request = vectors::enrolment(parent, format!("one-{i}"), random(WRITTEN.dimensions, rng));
        let called = Instant::now();
        server.clients.faces.enroll_face(request).await.context("an enrolment")?;
        took_us.record(called.elapsed().as_micros() as u64)?;
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
        let called = Instant::now();
        server.clients.faces.delete_face(request).await.context("a deletion")?;
        took_us.record(called.elapsed().as_micros() as u64)?;
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
        let called = Instant::now();
        file.write_all(&[7; BARE_BYTES])?;
        file.sync_data()?;
        took_us.record(called.elapsed().as_micros() as u64)?;
    }
    Ok(Bare { per_second: N_TIMED as f64 / started.elapsed().as_secs_f64(), took_us })
}

fn ms(took_us: &Histogram<u64>, quantile: f64) -> f64 {
    took_us.value_at_quantile(quantile) as f64 / 1e3
}

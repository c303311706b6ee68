//! Measures Predict's latency and throughput, and the cost of a training run beside it: the suite `serve`.
//!
//! Throughput and its latency come from callers that call again once they are answered (closed loop). The cost of
//! training is measured by calls at a steady pace, whether or not earlier ones are answered (open loop), at 40 % of the
//! server's capacity: a closed loop hides slow answers, because it then calls less.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tonic::Request;
use visage::{
    cli::{connection::Clients, names, output, watching},
    proto::{
        longrunning::CancelOperationRequest,
        v1::{self, watch_training_run_response::Event},
    },
};

use super::{MODEL, photos, train_request};
use crate::{
    evidence::{Bar, Row},
    training_server::TrainingServer,
};

const SUITE: &str = "serve";
const IMAGE_SIZE_PX: i32 = 128;
const N_PHOTOS: u64 = 256;
const CALLERS: [usize; 3] = [1, 8, 32];
const CLOSED_LOOP: Duration = Duration::from_secs(8);
const OPEN_LOOP: Duration = Duration::from_secs(20);
/// The pace of the open loop, as a share of the throughput of one caller.
const OFFERED_SHARE: f64 = 0.4;
/// Idle and training rounds alternate, so that a change of the machine's pace affects both.
const N_ROUNDS: usize = 2;

/// Runs the suite.
pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let mut server = TrainingServer::start(Vec::new()).await?;
    let folder = server.root().join("photos");
    photos::write_folder(&folder, N_PHOTOS)?;
    let progress = output::counter("training a version to query");
    server.train(train(&folder, 1), |_| {}).await?;
    let load = Load {
        clients: server.clients.clone(),
        photos: Arc::new((0..32).map(|seed| photos::jpeg(seed).map(Bytes::from)).collect::<anyhow::Result<_>>()?),
    };
    // Warms caches and connections before the measurement.
    load.closed(1, Duration::from_secs(2)).await?;

    let mut rows = Vec::new();
    let mut one_at_a_time = 0.0;
    for callers in CALLERS {
        progress.set_message(format!("{callers} callers"));
        let seen = load.closed(callers, CLOSED_LOOP).await?;
        let per_second = seen.latency_us.len() as f64 / CLOSED_LOOP.as_secs_f64();
        if callers == 1 {
            one_at_a_time = per_second;
        }
        rows.push(
            Row::new(SUITE, format!("serve.throughput.c{callers}.{IMAGE_SIZE_PX}px"), per_second, "images/s")
                .versus("one caller", one_at_a_time)
                .note(format!("p50 {:.1} ms, p99 {:.1} ms", seen.ms(0.5), seen.ms(0.99))),
        );
    }

    let per_second = OFFERED_SHARE * one_at_a_time;
    let (mut idle, mut training) = (Seen::new()?, Seen::new()?);
    for round in 1..=N_ROUNDS {
        progress.set_message(format!("idle, {round} of {N_ROUNDS}"));
        idle.add(&load.open(per_second, OPEN_LOOP).await?)?;
        progress.set_message(format!("beside a training run, {round} of {N_ROUNDS}"));
        let run = begin_training(&mut server, &folder).await?;
        training.add(&load.open(per_second, OPEN_LOOP).await?)?;
        let request = CancelOperationRequest { name: names::operation(&run) };
        server.clients.operations.cancel_operation(request).await?;
        server.clients.follow(&run, |_| {}).await?;
    }
    progress.finish_and_clear();
    server.stop().await?;

    let note = format!("{per_second:.1} calls/s offered, {} + {} calls", idle.n_calls(), training.n_calls());
    rows.extend([
        Row::new(SUITE, "serve.p50.training", training.ms(0.5), "ms").versus("idle", idle.ms(0.5)),
        Row::new(SUITE, "serve.p99.training", training.ms(0.99), "ms")
            .versus("idle", idle.ms(0.99))
            .bar(Bar::AtMost(3.0))
            .note(note),
        Row::new(SUITE, "serve.failed", (idle.n_failed + training.n_failed) as f64, "calls").bar(Bar::AtMost(0.0)),
    ]);
    Ok(rows)
}

fn train(folder: &Path, epochs: i32) -> v1::TrainRequest {
    let stage = v1::Stage { epochs, image_size_px: IMAGE_SIZE_PX, ..v1::Stage::default() };
    train_request(folder, v1::Architecture::Resnet34, stage, 0)
}

/// Starts a run that does not end by itself, and waits for its first step.
async fn begin_training(server: &mut TrainingServer, folder: &Path) -> anyhow::Result<String> {
    let run = server.clients.train(Request::new(train(folder, 10_000))).await?;
    let watch = v1::WatchTrainingRunRequest { name: run.clone(), after_sequence: 0 };
    let mut events = server.clients.training.watch_training_run(watch).await?.into_inner();
    loop {
        match events.message().await?.and_then(|event| event.event) {
            Some(Event::Progress(p)) if p.epoch > 0 && p.step > 1 => return Ok(run),
            Some(Event::Ended(run)) => bail!("the run ended early: {}", watching::ended(&run)),
            Some(_) => {}
            None => bail!("the events of {run} ended before the run"),
        }
    }
}

/// The latencies and failures that callers saw.
struct Seen {
    latency_us: Histogram<u64>,
    n_failed: u64,
}

impl Seen {
    fn new() -> anyhow::Result<Self> {
        // From a microsecond to ten minutes, with three digits.
        Ok(Self { latency_us: Histogram::new_with_bounds(1, 600_000_000, 3)?, n_failed: 0 })
    }

    fn note(&mut self, took: Duration, answered: bool) {
        if answered {
            self.latency_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        } else {
            self.n_failed += 1;
        }
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency_us.add(&other.latency_us).context("histograms of one kind")?;
        self.n_failed += other.n_failed;
        Ok(())
    }

    fn n_calls(&self) -> u64 {
        self.latency_us.len() + self.n_failed
    }

    fn ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Callers, and the photos that they send.
#[derive(Clone)]
struct Load {
    clients: Clients,
    photos: Arc<Vec<Bytes>>,
}

impl Load {
    async fn call(&self, n: usize) -> (Duration, bool) {
        let image = self.photos[n % self.photos.len()].clone();
        let request = v1::PredictRequest { model: MODEL.to_owned(), image, ..Default::default() };
        let started = Instant::now();
        let answer = self.clients.visage.clone().predict(request).await;
        (started.elapsed(), answer.is_ok())
    }

    /// Each caller calls again once its last call is answered.
    async fn closed(&self, callers: usize, during: Duration) -> anyhow::Result<Seen> {
        let until = Instant::now() + during;
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let load = self.clone();
            tasks.spawn(async move {
                let mut calls = Vec::new();
                while Instant::now() < until {
                    let call = load.call(caller + calls.len()).await;
                    // An answer after the end does not count.
                    if Instant::now() <= until || !call.1 {
                        calls.push(call);
                    }
                }
                calls
            });
        }
        let mut seen = Seen::new()?;
        while let Some(calls) = tasks.join_next().await {
            calls?.into_iter().for_each(|(took, answered)| seen.note(took, answered));
        }
        Ok(seen)
    }

    /// Calls every `1 / per_second`, whether or not earlier calls are answered.
    async fn open(&self, per_second: f64, during: Duration) -> anyhow::Result<Seen> {
        let mut ticks = tokio::time::interval(Duration::try_from_secs_f64(1.0 / per_second)?);
        let until = Instant::now() + during;
        let mut tasks = JoinSet::new();
        for n in 0.. {
            ticks.tick().await;
            if Instant::now() >= until {
                break;
            }
            let load = self.clone();
            tasks.spawn(async move { load.call(n).await });
        }
        let mut seen = Seen::new()?;
        while let Some(call) = tasks.join_next().await {
            let (took, answered) = call?;
            seen.note(took, answered);
        }
        Ok(seen)
    }
}

//! Measures how soon a fresh server answers, and checks that it imports only once.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use visage::{
    cli::pages,
    proto::v1::{self, AbstentionReason},
};

use super::SUITE;
use crate::{
    eval::table::FaceTable,
    evidence::{Bar, Row},
    server::ServerProcess,
};

/// The longest wait for a server's first answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two calls to a server that is not ready.
const PAUSE: Duration = Duration::from_millis(10);

/// Starts a server on an empty folder, stops it, and starts it again on the same folder; the second is left running.
pub(super) async fn measure(
    folder: &Path,
    weights: &Path,
    table: &FaceTable,
) -> anyhow::Result<(ServerProcess, Vec<Row>)> {
    let face = table.faces.first().context("faces.csv has no row")?;
    let photo = std::fs::read(&face.path).with_context(|| face.path.display().to_string())?;
    let data = folder.join("data");
    let (mut first, first_took) = answering(&data, weights, &photo).await?;
    let registered = versions(&mut first).await?;
    first.stop().await?;
    let (mut second, second_took) = answering(&data, weights, &photo).await?;
    let again = versions(&mut second).await?;
    let n_new = again.iter().filter(|version| !registered.contains(version)).count();
    let note = format!("{} versions registered", registered.len());
    let rows = vec![
        Row::new(SUITE, "start.first_answer", first_took.as_secs_f64(), "s").bar(Bar::AtMost(3.0)).note(note),
        Row::new(SUITE, "start.again.first_answer", second_took.as_secs_f64(), "s").bar(Bar::AtMost(3.0)),
        Row::new(SUITE, "start.again.versions_registered", n_new as f64, "").bar(Bar::AtMost(0.0)),
    ];
    Ok((second, rows))
}

/// Starts a server; returns the time from the start of its process to its first answer about a photo.
async fn answering(data: &Path, weights: &Path, photo: &[u8]) -> anyhow::Result<(ServerProcess, Duration)> {
    let started = Instant::now();
    let mut server = ServerProcess::start(data, Some(weights), &[]).await?;
    loop {
        let request = v1::PredictRequest { image: photo.to_vec().into(), ..v1::PredictRequest::default() };
        match server.clients.visage.predict(request).await {
            Ok(answer) if answer.get_ref().abstention_reasons().any(|why| why == AbstentionReason::NoFace) => {
                bail!("no face is found in the first photo");
            }
            Ok(_) => return Ok((server, started.elapsed())),
            Err(status) if started.elapsed() > PATIENCE => return Err(status).context("no answer in two minutes"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Lists every version of every model, with its time.
async fn versions(server: &mut ServerProcess) -> anyhow::Result<Vec<(String, Option<prost_types::Timestamp>)>> {
    let client = &server.clients.models;
    let models = pages::all(|page_token| async {
        let request = v1::ListModelsRequest { page_token, ..v1::ListModelsRequest::default() };
        let page = client.clone().list_models(request).await?.into_inner();
        Ok((page.models, page.next_page_token))
    })
    .await?;
    let mut versions = Vec::new();
    for model in models {
        let of_model = pages::all(|page_token| async {
            let parent = model.name.clone();
            let request =
                v1::ListModelVersionsRequest { parent, page_token, ..v1::ListModelVersionsRequest::default() };
            let page = client.clone().list_model_versions(request).await?.into_inner();
            Ok((page.model_versions, page.next_page_token))
        })
        .await?;
        versions.extend(of_model.into_iter().map(|version| (version.name, version.create_time)));
    }
    Ok(versions)
}

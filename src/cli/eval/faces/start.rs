//! How soon a fresh server answers, and that it imports once.

use std::path::Path;

use anyhow::Context;

use super::{SUITE, server::ServerProcess};
use crate::{
    cli::{
        eval::table::FaceTable,
        evidence::{Bar, Row},
        pages,
    },
    proto::v1,
};

/// Starts a server on an empty folder and once more on what it left, and leaves that one running.
pub(super) async fn measure(
    folder: &Path,
    weights: &Path,
    table: &FaceTable,
) -> anyhow::Result<(ServerProcess, Vec<Row>)> {
    let face = table.faces.first().context("faces.csv has no row")?;
    let photo = std::fs::read(&face.path).with_context(|| face.path.display().to_string())?;
    let data = folder.join("data");
    let (mut first, first_took) = ServerProcess::start(&data, weights, &photo).await?;
    let registered = versions(&mut first).await?;
    first.stop().await?;
    let (mut second, second_took) = ServerProcess::start(&data, weights, &photo).await?;
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

/// Name and time of every version of every model.
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

//! `visage.v1.TrainingService`: what became of every Train.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use tonic::{Request, Response, Status};

use super::{
    convert::{id_after, model_name, page},
    edge, status,
};
use crate::{
    app::{App, Page},
    proto::v1::{
        GetTrainingRunRequest, ListTrainingRunsRequest, ListTrainingRunsResponse, TrainingRun, WatchTrainingRunRequest,
        WatchTrainingRunResponse, training_service_server,
    },
};

const PREFIX: &str = "trainingRuns/";

/// The service over its use cases.
pub(super) struct TrainingService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl training_service_server::TrainingService for TrainingService {
    async fn get_training_run(&self, request: Request<GetTrainingRunRequest>) -> Result<Response<TrainingRun>, Status> {
        let call = edge::context(&request)?;
        let found = async { self.app.runs.get(id_after("name", PREFIX, &request.get_ref().name)?).await };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn list_training_runs(
        &self,
        request: Request<ListTrainingRunsRequest>,
    ) -> Result<Response<ListTrainingRunsResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            let model = if r.model.is_empty() { None } else { Some(model_name("model", &r.model)?.to_string()) };
            let list = format!("trainingRuns?model={}", r.model);
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, &list)?;
            let wanted = move |run: &crate::proto::store::RunRecord| model.as_ref().is_none_or(|m| run.model == *m);
            self.app.runs.list(page, list, wanted).await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(ListTrainingRunsResponse {
            training_runs: paged.items,
            next_page_token: paged.next_page_token,
        }))
    }

    type WatchTrainingRunStream = Pin<Box<dyn Stream<Item = Result<WatchTrainingRunResponse, Status>> + Send>>;

    async fn watch_training_run(
        &self,
        request: Request<WatchTrainingRunRequest>,
    ) -> Result<Response<Self::WatchTrainingRunStream>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let watched = async { self.app.runs.watch(id_after("name", PREFIX, &r.name)?, r.after_sequence).await };
        let watch = watched.await.map_err(|e| status::from_app(&call, e))?;
        let events =
            futures::stream::unfold(watch, |mut watch| async { watch.next().await.map(|event| (Ok(event), watch)) });
        Ok(Response::new(Box::pin(super::bounded(events, self.app.stopping.clone()))))
    }
}

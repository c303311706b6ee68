//! `visage.v1.TrainingService`: training runs.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    convert::{model_name, page, run_id},
    serve::{self, Answers},
};
use crate::{
    app::App,
    proto::v1::{
        GetTrainingRunRequest, ListTrainingRunsRequest, ListTrainingRunsResponse, TrainingRun, WatchTrainingRunRequest,
        WatchTrainingRunResponse, training_service_server,
    },
};

const PREFIX: &str = "trainingRuns/";

/// The service, on top of its use cases.
pub(super) struct TrainingService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl training_service_server::TrainingService for TrainingService {
    async fn get_training_run(&self, request: Request<GetTrainingRunRequest>) -> Result<Response<TrainingRun>, Status> {
        serve::unary(request, async |call, r| self.app.runs.get(call, run_id("name", PREFIX, &r.name)?).await).await
    }

    async fn list_training_runs(
        &self,
        request: Request<ListTrainingRunsRequest>,
    ) -> Result<Response<ListTrainingRunsResponse>, Status> {
        serve::unary(request, async |call, r| {
            let model = if r.model.is_empty() { None } else { Some(model_name("model", &r.model)?) };
            let page = page(&self.app, r.page_size, &r.page_token, format!("trainingRuns?model={}", r.model))?;
            let paged = self.app.runs.list(call, page, model).await?;
            Ok(ListTrainingRunsResponse { training_runs: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    type WatchTrainingRunStream = Answers<WatchTrainingRunResponse>;

    async fn watch_training_run(
        &self,
        request: Request<WatchTrainingRunRequest>,
    ) -> Result<Response<Self::WatchTrainingRunStream>, Status> {
        serve::watch(request, &self.app.stopping, async |call, r| {
            self.app.runs.watch(call, run_id("name", PREFIX, &r.name)?, r.after_sequence).await
        })
        .await
    }
}

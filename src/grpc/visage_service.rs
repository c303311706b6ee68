//! `visage.v1.VisageService`: Predict, StreamPredict, FindSimilar, Train.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{collection_name, face_of, face_selection, model_name, train_operation},
    edge, status,
};
use crate::{
    app::{self, App, AppError, Call, Idempotent, NewRun, Source, Wanted, Wants},
    names::ModelRef,
    proto::{
        longrunning::Operation,
        v1::{
            FindSimilarRequest, FindSimilarResponse, PredictRequest, PredictResponse, StreamPredictRequest,
            StreamPredictResponse, TrainRequest, find_similar_request::Query, stream_predict_response,
            visage_service_server,
        },
    },
};

/// The service over its use cases.
pub(super) struct VisageService {
    pub(super) app: Arc<App>,
    /// Requests of one stream that are in work at once.
    pub(super) stream_window: usize,
}

async fn predict(app: &App, call: &Call, request: PredictRequest) -> Result<PredictResponse, AppError> {
    let selection = face_selection(request.face_selection)?;
    let thresholds = request.thresholds.unwrap_or_default();
    let wants = Wants { heads: request.heads, selection, thresholds, embedding: request.return_embedding };
    let model = if request.model.is_empty() { None } else { Some(ModelRef::parse("model", &request.model)?) };
    app::predict(&app.photos, call, model.as_ref(), request.image, &wants).await
}

#[tonic::async_trait]
impl visage_service_server::VisageService for VisageService {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        let call = edge::context(&request)?;
        predict(&self.app, &call, request.into_inner()).await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    type StreamPredictStream = Pin<Box<dyn Stream<Item = Result<StreamPredictResponse, Status>> + Send>>;

    async fn stream_predict(
        &self,
        request: Request<Streaming<StreamPredictRequest>>,
    ) -> Result<Response<Self::StreamPredictStream>, Status> {
        let call = edge::context(&request)?;
        let app = Arc::clone(&self.app);
        let stopping = app.stopping.clone();
        let answers = edge::inbound(request.into_inner())
            .map(move |item| {
                let (app, call) = (Arc::clone(&app), call.clone());
                async move {
                    let StreamPredictRequest { request, correlation_id } = item?;
                    let call = call.item();
                    let result = match request {
                        None => Err(AppError::field("request", "must be given")),
                        Some(request) => predict(&app, &call, request).await,
                    };
                    let result = match result {
                        Ok(response) => stream_predict_response::Result::Response(response),
                        Err(e) => {
                            stream_predict_response::Result::Error(status::to_message(&status::from_app(&call, e)))
                        }
                    };
                    Ok(StreamPredictResponse { correlation_id, result: Some(result) })
                }
            })
            // In order, and reading ahead only as far as the window.
            .buffered(self.stream_window);
        Ok(Response::new(Box::pin(super::bounded(answers, stopping))))
    }

    async fn find_similar(
        &self,
        request: Request<FindSimilarRequest>,
    ) -> Result<Response<FindSimilarResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let found = async {
            let collection = collection_name("collection", &r.collection)?;
            let k = usize::try_from(r.k).map_err(|_| AppError::field("k", "must be 1 or more"))?;
            let wanted = match r.query {
                None => return Err(AppError::field("query", "must be an image, a face or an embedding")),
                Some(Query::Image(image)) => Wanted::Like(Source::Image(image, face_selection(r.face_selection)?)),
                Some(Query::Embedding(e)) => Wanted::Like(Source::Vector { values: e.values, space: e.space }),
                Some(Query::Face(name)) => Wanted::LikeFace(face_of("face", &name, &collection)?),
            };
            self.app.faces.find_similar(&call, collection, wanted, k, r.min_score, r.exact).await
        };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn train(&self, request: Request<TrainRequest>) -> Result<Response<Operation>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let app = Arc::clone(&self.app);
        let caller = call.caller.id.clone();
        // Detached: a caller that leaves while the run is being written still has started it.
        let started = tokio::spawn(async move {
            let once = Idempotent::new(&caller, "Train", &r.request_id, &r)?;
            let new = NewRun {
                model: model_name("model", &r.model)?,
                recipe: r.recipe.ok_or_else(|| AppError::field("recipe", "must be given"))?,
                sources: r.sources,
            };
            app.runs.start(new, once).await
        })
        .await
        .unwrap_or_else(|e| Err(AppError::Internal(format!("starting a run: {e}"))));
        match started {
            Ok(run) => Ok(Response::new(train_operation(&self.app, run).await)),
            Err(e) => Err(status::from_app(&call, e)),
        }
    }
}

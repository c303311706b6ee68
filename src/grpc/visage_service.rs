//! `visage.v1.VisageService`: Predict, StreamPredict, FindSimilar, Train.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{collection_name, face_of, face_selection, model_name, operation},
    serve::{self, Answers, Weight},
};
use crate::{
    app::{self, App, AppError, Call, FaceSource, Idempotent, NewRun, SearchTarget, Wants},
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

/// The service, on top of its use cases.
pub(super) struct VisageService {
    pub(super) app: Arc<App>,
    /// Maximum number of requests of one stream in progress.
    pub(super) stream_window: usize,
}

async fn predict(app: &App, call: &Call, r: PredictRequest) -> Result<PredictResponse, AppError> {
    let selection = face_selection(r.face_selection)?;
    let model = ModelRef::parse_optional("model", &r.model)?;
    let thresholds = r.thresholds.unwrap_or_default();
    let wants = Wants { heads: r.heads, selection, thresholds, embedding: r.return_embedding };
    app::predict(call, &app.photos, model.as_ref(), r.image, &wants).await
}

#[tonic::async_trait]
impl visage_service_server::VisageService for VisageService {
    async fn predict(&self, request: Request<PredictRequest>) -> Result<Response<PredictResponse>, Status> {
        serve::unary(request, async |call, r| predict(&self.app, call, r).await).await
    }

    type StreamPredictStream = Answers<StreamPredictResponse>;

    async fn stream_predict(
        &self,
        request: Request<Streaming<StreamPredictRequest>>,
    ) -> Result<Response<Self::StreamPredictStream>, Status> {
        use stream_predict_response::Result;
        let app = Arc::clone(&self.app);
        serve::each(
            request,
            self.stream_window,
            &self.app.stopping,
            |_| Weight::Photo,
            move |call, r: StreamPredictRequest| {
                let app = Arc::clone(&app);
                async move {
                    let answered = serve::item(&call, r.request, async |call, r| predict(&app, call, r).await).await;
                    let result = Some(answered.map_or_else(Result::Error, Result::Response));
                    StreamPredictResponse { correlation_id: r.correlation_id, result }
                }
            },
        )
    }

    async fn find_similar(
        &self,
        request: Request<FindSimilarRequest>,
    ) -> Result<Response<FindSimilarResponse>, Status> {
        serve::unary(request, async |call, r| {
            let collection = collection_name("collection", &r.collection)?;
            let k = usize::try_from(r.k).map_err(|_| AppError::field("k", "must be 1 or more"))?;
            let target = match r.query {
                None => return Err(AppError::field("query", "must be an image, a face or an embedding")),
                Some(Query::Image(image)) => {
                    SearchTarget::Probe(FaceSource::Image(image, face_selection(r.face_selection)?))
                }
                Some(Query::Embedding(e)) => {
                    SearchTarget::Probe(FaceSource::Vector { values: e.values, space: e.space })
                }
                Some(Query::Face(name)) => SearchTarget::Enrolled(face_of("face", &name, &collection)?),
            };
            self.app.faces.find_similar(call, collection, target, k, r.min_score, r.exact).await
        })
        .await
    }

    async fn train(&self, request: Request<TrainRequest>) -> Result<Response<Operation>, Status> {
        serve::unary(request, async |call, r| {
            let once = Idempotent::new(call, "Train", &r.request_id, &r)?;
            let new = NewRun {
                model: model_name("model", &r.model)?,
                recipe: r.recipe.ok_or_else(|| AppError::field("recipe", "must be given"))?,
                sources: r.sources,
            };
            Ok(operation(self.app.runs.start(call, new, once).await?))
        })
        .await
    }
}

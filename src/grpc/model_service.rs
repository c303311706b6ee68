//! `visage.v1.ModelService`: models, versions, aliases.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    convert::{architecture, model_name, page},
    serve,
};
use crate::{
    app::{App, AppError, Idempotent, Import},
    names::{AliasName, ModelRef},
    proto::v1::{
        DeleteModelVersionRequest, GetModelRequest, GetModelVersionRequest, ImportModelVersionRequest,
        ListModelVersionsRequest, ListModelVersionsResponse, ListModelsRequest, ListModelsResponse,
        LoadModelVersionRequest, Model, ModelVersion, SetModelAliasRequest, UnloadModelVersionRequest,
        model_service_server,
    },
};

/// The service, on top of its use cases.
pub(super) struct ModelService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl model_service_server::ModelService for ModelService {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        serve::unary(request, async |call, r| {
            let page = page(&self.app, r.page_size, &r.page_token, "models")?;
            let paged = self.app.models.list(call, page).await?;
            Ok(ListModelsResponse { models: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        serve::unary(request, async |call, r| self.app.models.get(call, model_name("name", &r.name)?).await).await
    }

    async fn list_model_versions(
        &self,
        request: Request<ListModelVersionsRequest>,
    ) -> Result<Response<ListModelVersionsResponse>, Status> {
        serve::unary(request, async |call, r| {
            let model = model_name("parent", &r.parent)?;
            let page = page(&self.app, r.page_size, &r.page_token, format!("{}/versions", r.parent))?;
            let paged = self.app.models.list_versions(call, model, page).await?;
            Ok(ListModelVersionsResponse { model_versions: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    async fn get_model_version(
        &self,
        request: Request<GetModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        serve::unary(request, async |call, r| {
            self.app.models.get_version(call, &ModelRef::parse("name", &r.name)?).await
        })
        .await
    }

    async fn import_model_version(
        &self,
        request: Request<ImportModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        serve::unary(request, async |call, r| {
            let once = Idempotent::new(call, "ImportModelVersion", &r.request_id, &r)?;
            let new = Import {
                model: model_name("parent", &r.parent)?,
                weights_path: r.weights_path,
                architecture: architecture(r.architecture)?,
                heads: r.heads,
                image_size_px: r.image_size_px,
                detector: ModelRef::parse_optional("detector", &r.detector)?,
                embedder: ModelRef::parse_optional("embedder", &r.embedder)?,
                licence: r.licence,
                source: r.source,
            };
            self.app.import_version(call, new, once).await
        })
        .await
    }

    async fn set_model_alias(&self, request: Request<SetModelAliasRequest>) -> Result<Response<Model>, Status> {
        serve::unary(request, async |call, r| {
            let once = Idempotent::new(call, "SetModelAlias", &r.request_id, &r)?;
            let model = model_name("name", &r.name)?;
            let alias = AliasName::parse("alias", &r.alias)?;
            let number_of = |field: &str, name: &str| match ModelRef::parse_optional(field, name)? {
                None => Ok(None),
                Some(ModelRef::Version(version)) if version.model == model => Ok(Some(version)),
                Some(_) => Err(AppError::field(field, format!("must be models/{model}/versions/{{n}}"))),
            };
            let target = number_of("version", &r.version)?;
            let expected = match &r.expected_version {
                None => None,
                Some(name) => Some(number_of("expected_version", name)?.map(|v| v.number)),
            };
            self.app.models.set_alias(call, model, alias, target, expected, once).await
        })
        .await
    }

    async fn load_model_version(
        &self,
        request: Request<LoadModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        serve::unary(request, async |call, r| {
            self.app.models.load_version(call, &ModelRef::parse("name", &r.name)?).await
        })
        .await
    }

    async fn unload_model_version(
        &self,
        request: Request<UnloadModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        serve::unary(request, async |call, r| {
            self.app.models.unload_version(call, &ModelRef::parse("name", &r.name)?).await
        })
        .await
    }

    async fn delete_model_version(&self, request: Request<DeleteModelVersionRequest>) -> Result<Response<()>, Status> {
        serve::unary(request, async |call, r| match ModelRef::parse("name", &r.name)? {
            ModelRef::Version(version) => self.app.models.delete_version(call, version).await,
            ModelRef::Alias { .. } => Err(AppError::field("name", "must name a version by its number, not an alias")),
        })
        .await
    }
}

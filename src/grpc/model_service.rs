//! `visage.v1.ModelService`: models, versions, aliases.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    convert::{model_name, page},
    edge, status,
};
use crate::{
    app::{App, AppError, Idempotent, Page},
    names::{AliasName, ModelRef},
    proto::v1::{
        DeleteModelVersionRequest, GetModelRequest, GetModelVersionRequest, ImportModelVersionRequest,
        ListModelVersionsRequest, ListModelVersionsResponse, ListModelsRequest, ListModelsResponse,
        LoadModelVersionRequest, Model, ModelVersion, SetModelAliasRequest, UnloadModelVersionRequest,
        model_service_server,
    },
};

/// The service over its use cases.
pub(super) struct ModelService {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl model_service_server::ModelService for ModelService {
    async fn list_models(&self, request: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, "models")?;
            self.app.models.list(&call, page, "models").await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(ListModelsResponse { models: paged.items, next_page_token: paged.next_page_token }))
    }

    async fn get_model(&self, request: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        let call = edge::context(&request)?;
        let found = async { self.app.models.get(&call, model_name("name", &request.get_ref().name)?).await };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn list_model_versions(
        &self,
        request: Request<ListModelVersionsRequest>,
    ) -> Result<Response<ListModelVersionsResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            let model = model_name("parent", &r.parent)?;
            let list = format!("{}/versions", r.parent);
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, &list)?;
            self.app.models.list_versions(&call, model, page, list).await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(ListModelVersionsResponse {
            model_versions: paged.items,
            next_page_token: paged.next_page_token,
        }))
    }

    async fn get_model_version(
        &self,
        request: Request<GetModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        let call = edge::context(&request)?;
        let found =
            async { self.app.models.get_version(&call, &ModelRef::parse("name", &request.get_ref().name)?).await };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn import_model_version(
        &self,
        request: Request<ImportModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let imported = async {
            let once = Idempotent::new(&call.caller.id, "ImportModelVersion", &r.request_id, &r)?;
            let model = model_name("parent", &r.parent)?;
            self.app.import_version(model, r, once).await
        };
        imported.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn set_model_alias(&self, request: Request<SetModelAliasRequest>) -> Result<Response<Model>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let set = async {
            let once = Idempotent::new(&call.caller.id, "SetModelAlias", &r.request_id, &r)?;
            let model = model_name("name", &r.name)?;
            let alias = AliasName::parse("alias", &r.alias)?;
            let number_of = |field: &str, name: &str| match name {
                "" => Ok(None),
                name => match ModelRef::parse(field, name)? {
                    ModelRef::Version(version) if version.model == model => Ok(Some(version)),
                    _ => Err(AppError::field(field, format!("must be models/{model}/versions/{{n}}"))),
                },
            };
            let target = number_of("version", &r.version)?;
            let expected = match &r.expected_version {
                None => None,
                Some(name) => Some(number_of("expected_version", name)?.map(|v| v.number)),
            };
            self.app.models.set_alias(&call, model, alias, target, expected, once).await
        };
        set.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn load_model_version(
        &self,
        request: Request<LoadModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        let call = edge::context(&request)?;
        let loaded =
            async { self.app.models.load_version(&call, &ModelRef::parse("name", &request.get_ref().name)?).await };
        loaded.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn unload_model_version(
        &self,
        request: Request<UnloadModelVersionRequest>,
    ) -> Result<Response<ModelVersion>, Status> {
        let call = edge::context(&request)?;
        let unloaded =
            async { self.app.models.unload_version(&call, &ModelRef::parse("name", &request.get_ref().name)?).await };
        unloaded.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn delete_model_version(&self, request: Request<DeleteModelVersionRequest>) -> Result<Response<()>, Status> {
        let call = edge::context(&request)?;
        let deleted = async {
            let version = match ModelRef::parse("name", &request.get_ref().name)? {
                ModelRef::Version(version) => version,
                ModelRef::Alias { .. } => {
                    return Err(AppError::field("name", "must name a version by its number, not an alias"));
                }
            };
            self.app.models.delete_version(&call, version).await
        };
        deleted.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }
}

//! `visage.v1.FaceService`: collections and enrolled faces.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{collection_name, face_name, face_selection, page},
    edge, status,
};
use crate::{
    app::{App, AppError, Call, Comparison, Enrolment, Idempotent, Page, Source, blocking},
    proto::v1::{
        Collection, CompareFacesRequest, CompareFacesResponse, CreateCollectionRequest, DeleteCollectionRequest,
        DeleteFaceRequest, EnrollFaceRequest, Face, GetCollectionRequest, GetFaceRequest, ListCollectionsRequest,
        ListCollectionsResponse, ListFacesRequest, ListFacesResponse, StreamEnrollFacesRequest,
        StreamEnrollFacesResponse, enroll_face_request, face_service_server, stream_enroll_faces_response,
    },
    similarity::{CollectionId, FaceId},
};

/// The service over its use cases.
pub(super) struct FaceService {
    pub(super) app: Arc<App>,
    /// Requests of one stream that are in work at once.
    pub(super) stream_window: usize,
}

async fn enroll(app: &App, call: &Call, request: EnrollFaceRequest) -> Result<Face, AppError> {
    // A photo of megabytes takes its time to be hashed.
    let (caller, hashed) = (call.caller.id.clone(), request.clone());
    let once = blocking(move || Idempotent::new(&caller, "EnrollFace", &hashed.request_id, &hashed)).await?;
    let face = if request.face_id.is_empty() { None } else { Some(FaceId::parse("face_id", &request.face_id)?) };
    let source = match request.source {
        None => return Err(AppError::field("source", "must be an image or a vector")),
        Some(enroll_face_request::Source::Image(image)) => {
            Source::Image(image, face_selection(request.face_selection)?)
        }
        Some(enroll_face_request::Source::Vector(v)) => Source::Vector { values: v.values, space: v.space },
    };
    let collection = collection_name("parent", &request.parent)?;
    let new = Enrolment { collection, face, source, subject: request.subject, labels: request.labels };
    app.faces.enroll(call, new, once).await
}

#[tonic::async_trait]
impl face_service_server::FaceService for FaceService {
    async fn create_collection(
        &self,
        request: Request<CreateCollectionRequest>,
    ) -> Result<Response<Collection>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let made = async {
            let once = Idempotent::new(&call.caller.id, "CreateCollection", &r.request_id, &r)?;
            let id = CollectionId::parse("collection_id", &r.collection_id)?;
            self.app.faces.create_collection(id, &r.embedding_space, r.display_name, once).await
        };
        made.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn get_collection(&self, request: Request<GetCollectionRequest>) -> Result<Response<Collection>, Status> {
        let call = edge::context(&request)?;
        let found = async { self.app.faces.get_collection(collection_name("name", &request.get_ref().name)?).await };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn list_collections(
        &self,
        request: Request<ListCollectionsRequest>,
    ) -> Result<Response<ListCollectionsResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, "collections")?;
            self.app.faces.list_collections(page, "collections").await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(ListCollectionsResponse { collections: paged.items, next_page_token: paged.next_page_token }))
    }

    async fn delete_collection(&self, request: Request<DeleteCollectionRequest>) -> Result<Response<()>, Status> {
        let call = edge::context(&request)?;
        let done = async { self.app.faces.delete_collection(collection_name("name", &request.get_ref().name)?).await };
        done.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn enroll_face(&self, request: Request<EnrollFaceRequest>) -> Result<Response<Face>, Status> {
        let call = edge::context(&request)?;
        enroll(&self.app, &call, request.into_inner()).await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    type StreamEnrollFacesStream = Pin<Box<dyn Stream<Item = Result<StreamEnrollFacesResponse, Status>> + Send>>;

    async fn stream_enroll_faces(
        &self,
        request: Request<Streaming<StreamEnrollFacesRequest>>,
    ) -> Result<Response<Self::StreamEnrollFacesStream>, Status> {
        let call = edge::context(&request)?;
        let app = Arc::clone(&self.app);
        let stopping = app.stopping.clone();
        let answers = edge::inbound(request.into_inner())
            .map(move |item| {
                let (app, call) = (Arc::clone(&app), call.clone());
                async move {
                    let StreamEnrollFacesRequest { request, correlation_id } = item?;
                    let call = call.item();
                    let result = match request {
                        None => Err(AppError::field("request", "must be given")),
                        Some(request) => enroll(&app, &call, request).await,
                    };
                    let result = match result {
                        Ok(face) => stream_enroll_faces_response::Result::Face(face),
                        Err(e) => {
                            stream_enroll_faces_response::Result::Error(status::to_message(&status::from_app(&call, e)))
                        }
                    };
                    Ok(StreamEnrollFacesResponse { correlation_id, result: Some(result) })
                }
            })
            .buffered(self.stream_window);
        Ok(Response::new(Box::pin(super::bounded(answers, stopping))))
    }

    async fn get_face(&self, request: Request<GetFaceRequest>) -> Result<Response<Face>, Status> {
        let call = edge::context(&request)?;
        let found = async {
            let name = face_name("name", &request.get_ref().name)?;
            self.app.faces.get(name.collection, name.face).await
        };
        found.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn list_faces(&self, request: Request<ListFacesRequest>) -> Result<Response<ListFacesResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let listed = async {
            let collection = collection_name("parent", &r.parent)?;
            let list = format!("{}/faces", r.parent);
            let page = Page::parse(page(r.page_size, &r.page_token), self.app.page_limits, &list)?;
            self.app.faces.list(collection, page, list).await
        };
        let paged = listed.await.map_err(|e| status::from_app(&call, e))?;
        Ok(Response::new(ListFacesResponse { faces: paged.items, next_page_token: paged.next_page_token }))
    }

    async fn delete_face(&self, request: Request<DeleteFaceRequest>) -> Result<Response<()>, Status> {
        let call = edge::context(&request)?;
        let done = async {
            let name = face_name("name", &request.get_ref().name)?;
            self.app.faces.delete(name.collection, name.face).await
        };
        done.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }

    async fn compare_faces(
        &self,
        request: Request<CompareFacesRequest>,
    ) -> Result<Response<CompareFacesResponse>, Status> {
        let call = edge::context(&request)?;
        let r = request.into_inner();
        let compared = async {
            let selection = face_selection(r.face_selection)?;
            let (first, second) = (r.first_image, r.second_image);
            self.app.compare_faces(&call, Comparison { first, second, space: r.embedding_space, selection }).await
        };
        compared.await.map(Response::new).map_err(|e| status::from_app(&call, e))
    }
}

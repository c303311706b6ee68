//! `visage.v1.FaceService`: collections and enrolled faces.

use std::sync::Arc;

use tonic::{Request, Response, Status, Streaming};

use super::{
    convert::{collection_name, face_selection, page},
    serve::{self, Answers, Weight},
};
use crate::{
    app::{App, AppError, Call, Comparison, Enrolment, FaceSource, Idempotent},
    names::SpaceRef,
    proto::v1::{
        Collection, CompareFacesRequest, CompareFacesResponse, CreateCollectionRequest, DeleteCollectionRequest,
        DeleteFaceRequest, DeleteFacesRequest, DeleteFacesResponse, EnrollFaceRequest, Face, GetCollectionRequest,
        GetFaceRequest, ListCollectionsRequest, ListCollectionsResponse, ListFacesRequest, ListFacesResponse,
        StreamEnrollFacesRequest, StreamEnrollFacesResponse, enroll_face_request, face_service_server,
        stream_enroll_faces_response,
    },
    similarity::{CollectionId, FaceId, FaceName},
};

/// The service, on top of its use cases.
pub(super) struct FaceService {
    pub(super) app: Arc<App>,
    /// Maximum number of requests of one stream in progress.
    pub(super) stream_window: usize,
}

/// The parent of faces in any collection (AIP-159).
const EVERY_COLLECTION: &str = "collections/-";

/// Vectors wait only for the disk, and share its syncs if many wait at once.
fn weight_of(message: &StreamEnrollFacesRequest) -> Weight {
    match message.request.as_ref().and_then(|request| request.source.as_ref()) {
        Some(enroll_face_request::Source::Vector(_)) => Weight::Light,
        _ => Weight::Photo,
    }
}

async fn enroll(app: &App, call: &Call, r: EnrollFaceRequest) -> Result<Face, AppError> {
    let once = Idempotent::new(call, "EnrollFace", &r.request_id, &r)?;
    let face = if r.face_id.is_empty() { None } else { Some(FaceId::parse("face_id", &r.face_id)?) };
    let source = match r.source {
        None => return Err(AppError::field("source", "must be an image or a vector")),
        Some(enroll_face_request::Source::Image(image)) => FaceSource::Image(image, face_selection(r.face_selection)?),
        Some(enroll_face_request::Source::Vector(v)) => FaceSource::Vector { values: v.values, space: v.space },
    };
    let collection = collection_name("parent", &r.parent)?;
    let new = Enrolment { collection, face, source, subject: r.subject, labels: r.labels };
    app.faces.enroll(call, new, once).await
}

#[tonic::async_trait]
impl face_service_server::FaceService for FaceService {
    async fn create_collection(
        &self,
        request: Request<CreateCollectionRequest>,
    ) -> Result<Response<Collection>, Status> {
        serve::unary(request, async |call, r| {
            let once = Idempotent::new(call, "CreateCollection", &r.request_id, &r)?;
            let id = CollectionId::parse("collection_id", &r.collection_id)?;
            let space = SpaceRef::parse("embedding_space", &r.embedding_space)?;
            self.app.faces.create_collection(call, id, space, r.display_name, once).await
        })
        .await
    }

    async fn get_collection(&self, request: Request<GetCollectionRequest>) -> Result<Response<Collection>, Status> {
        serve::unary(request, async |call, r| {
            self.app.faces.get_collection(call, &collection_name("name", &r.name)?).await
        })
        .await
    }

    async fn list_collections(
        &self,
        request: Request<ListCollectionsRequest>,
    ) -> Result<Response<ListCollectionsResponse>, Status> {
        serve::unary(request, async |call, r| {
            let page = page(&self.app, r.page_size, &r.page_token, "collections")?;
            let paged = self.app.faces.list_collections(call, page).await?;
            Ok(ListCollectionsResponse { collections: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    async fn delete_collection(&self, request: Request<DeleteCollectionRequest>) -> Result<Response<()>, Status> {
        serve::unary(request, async |call, r| {
            self.app.faces.delete_collection(call, collection_name("name", &r.name)?).await
        })
        .await
    }

    async fn enroll_face(&self, request: Request<EnrollFaceRequest>) -> Result<Response<Face>, Status> {
        serve::unary(request, async |call, r| enroll(&self.app, call, r).await).await
    }

    type StreamEnrollFacesStream = Answers<StreamEnrollFacesResponse>;

    async fn stream_enroll_faces(
        &self,
        request: Request<Streaming<StreamEnrollFacesRequest>>,
    ) -> Result<Response<Self::StreamEnrollFacesStream>, Status> {
        use stream_enroll_faces_response::Result;
        let app = Arc::clone(&self.app);
        serve::each(
            request,
            self.stream_window,
            &self.app.stopping,
            weight_of,
            move |call, r: StreamEnrollFacesRequest| {
                let app = Arc::clone(&app);
                async move {
                    let enrolled = serve::item(&call, r.request, async |call, r| enroll(&app, call, r).await).await;
                    let result = Some(enrolled.map_or_else(Result::Error, Result::Face));
                    StreamEnrollFacesResponse { correlation_id: r.correlation_id, result }
                }
            },
        )
    }

    async fn get_face(&self, request: Request<GetFaceRequest>) -> Result<Response<Face>, Status> {
        serve::unary(request, async |call, r| {
            let name = FaceName::parse("name", &r.name)?;
            self.app.faces.get(call, name.collection, name.face).await
        })
        .await
    }

    async fn list_faces(&self, request: Request<ListFacesRequest>) -> Result<Response<ListFacesResponse>, Status> {
        serve::unary(request, async |call, r| {
            let collection = collection_name("parent", &r.parent)?;
            let page = page(&self.app, r.page_size, &r.page_token, format!("{}/faces", r.parent))?;
            let paged = self.app.faces.list(call, collection, page).await?;
            Ok(ListFacesResponse { faces: paged.items, next_page_token: paged.next_page_token })
        })
        .await
    }

    async fn delete_face(&self, request: Request<DeleteFaceRequest>) -> Result<Response<()>, Status> {
        serve::unary(request, async |call, r| {
            let name = FaceName::parse("name", &r.name)?;
            self.app.faces.delete(call, name.collection, name.face).await
        })
        .await
    }

    async fn delete_faces(
        &self,
        request: Request<DeleteFacesRequest>,
    ) -> Result<Response<DeleteFacesResponse>, Status> {
        serve::unary(request, async |call, r| {
            let collection = match r.parent.as_str() {
                EVERY_COLLECTION => None,
                parent => Some(collection_name("parent", parent)?),
            };
            let n_deleted = self.app.faces.delete_subject(call, collection, r.subject).await?;
            Ok(DeleteFacesResponse { n_deleted: n_deleted as i64 })
        })
        .await
    }

    async fn compare_faces(
        &self,
        request: Request<CompareFacesRequest>,
    ) -> Result<Response<CompareFacesResponse>, Status> {
        serve::unary(request, async |call, r| {
            let selection = face_selection(r.face_selection)?;
            let space = SpaceRef::parse("embedding_space", &r.embedding_space)?;
            let (first, second) = (r.first_image, r.second_image);
            self.app.compare_faces(call, Comparison { first, second, space, selection }).await
        })
        .await
    }
}

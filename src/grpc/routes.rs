//! Routes: health from the start, all other services once the application is open.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures::future::Either;
use http::{Request, Response};
use tonic::{body::Body, service::Routes};
use tower::Service;

use super::{
    ServeFailure, face_service,
    methods::{self, PermitKind},
    model_service, operations_service, status, training_service, visage_service,
};
use crate::{
    app::App,
    config::ServerConfig,
    proto::{
        self,
        longrunning::operations_server::OperationsServer,
        v1::{
            face_service_server::FaceServiceServer, model_service_server::ModelServiceServer,
            training_service_server::TrainingServiceServer, visage_service_server::VisageServiceServer,
        },
    },
};

/// The services of a server. Opening one clone opens all.
#[derive(Clone)]
pub(super) struct LateRoutes {
    health: Routes,
    all: Arc<OnceLock<Routes>>,
}

impl LateRoutes {
    /// Creates routes that answer health and refuse everything else.
    pub(super) fn new(health: Routes) -> Self {
        Self { health: health.prepare(), all: Arc::default() }
    }

    /// Opens all services.
    ///
    /// # Errors
    /// When the descriptors for reflection are wrong, which is a bug.
    pub(super) fn open(&self, config: &ServerConfig, app: &Arc<App>) -> Result<(), ServeFailure> {
        let all = routes(self.health.clone(), config, app)?.prepare();
        self.all.get_or_init(|| all);
        Ok(())
    }
}

impl Service<Request<Body>> for LateRoutes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<<Routes as Service<Request<Body>>>::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // `Routes` is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.all.get() {
            Some(all) => Either::Left(all.clone().call(request)),
            None if methods::find(request.uri().path()).permit == PermitKind::None => {
                Either::Left(self.health.call(request))
            }
            None => Either::Right(ready(Ok(status::opening().into_http()))),
        }
    }
}

fn routes(health: Routes, config: &ServerConfig, app: &Arc<App>) -> Result<Routes, ServeFailure> {
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let max_message = config.max_message_bytes;
    let app = || Arc::clone(app);
    let stream_window = config.stream_window;
    Ok(health
        .add_service(descriptors().build_v1()?)
        .add_service(descriptors().build_v1alpha()?)
        .add_service(
            VisageServiceServer::new(visage_service::VisageService { app: app(), stream_window })
                .max_decoding_message_size(max_message),
        )
        .add_service(
            FaceServiceServer::new(face_service::FaceService { app: app(), stream_window })
                .max_decoding_message_size(max_message),
        )
        .add_service(ModelServiceServer::new(model_service::ModelService { app: app() }))
        .add_service(TrainingServiceServer::new(training_service::TrainingService { app: app() }))
        .add_service(OperationsServer::new(operations_service::OperationsService { app: app() })))
}

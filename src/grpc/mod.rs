//! The edge: one file per service, the one error table, and the server's assembly.
//!
//! Handlers convert and validate, call one use case, and convert back. `edge.rs` is what every call passes first,
//! `status.rs` the table from errors to gRPC. Nothing here decides anything about models, faces or runs.

mod convert;
mod edge;
mod face_service;
mod model_service;
mod operations_service;
mod status;
mod training_service;
mod visage_service;

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::ServingStatus;

use crate::{
    app::{App, AppError},
    config::Config,
    proto::{
        self,
        longrunning::operations_server::OperationsServer,
        v1::{
            face_service_server::FaceServiceServer, model_service_server::ModelServiceServer,
            training_service_server::TrainingServiceServer, visage_service_server::VisageServiceServer,
        },
    },
};

/// The services whose health is told one by one.
const SERVICES: [&str; 6] = [
    "",
    "visage.v1.VisageService",
    "visage.v1.ModelService",
    "visage.v1.TrainingService",
    "visage.v1.FaceService",
    "google.longrunning.Operations",
];

/// HTTP/2 streams of one connection at once, calls and streams alike; a client beyond waits.
const MAX_STREAMS_OF_A_CONNECTION: u32 = 256;

/// Calls of one connection that were given up before the server came to them. Beyond, the connection is closed with all
/// its calls, so a burst of cancelled calls must fit; without any bound, giving up would be a cheap attack.
const MAX_RESETS_OF_A_CONNECTION: usize = 1024;

/// Why a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeFailure {
    /// The application could not be opened.
    #[error(transparent)]
    App(#[from] AppError),
    /// The transport failed.
    #[error("the gRPC transport: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service's descriptors are wrong, a defect.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves on `listener` until `shutdown` ends, then drains within the configured bound.
///
/// Health says `NOT_SERVING` until the models that aliases point at are loaded, and again while draining.
///
/// # Errors
/// When the store cannot be opened, or the transport fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeFailure> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    let app = Arc::new(App::open(&config).await?);
    let drain_timeout = Duration::from_secs(config.server.drain_timeout_s);

    let forgetting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.forget_old_requests().await }
    });
    let draining = CancellationToken::new();
    let lifecycle = tokio::spawn({
        let (app, health, draining) = (Arc::clone(&app), health.clone(), draining.clone());
        async move {
            tokio::pin!(shutdown);
            let loaded = async {
                app.models.load_needed().await;
                for service in SERVICES {
                    health.set_service_status(service, ServingStatus::Serving).await;
                }
                tracing::info!("ready");
            };
            let asked = tokio::select! {
                () = &mut shutdown => true,
                () = loaded => false,
            };
            if !asked {
                shutdown.await;
            }
            tracing::info!("draining");
            for service in SERVICES {
                health.set_service_status(service, ServingStatus::NotServing).await;
            }
            // Streams end here; unary calls in work are answered.
            app.stopping.cancel();
            draining.cancel();
        }
    });

    // An answer of two small packets must not wait for the caller's delayed acknowledgement of the first.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router(&config, &app, health_service)?.serve_with_incoming_shutdown(incoming, {
        let draining = draining.clone();
        async move { draining.cancelled().await }
    });
    let bound = async {
        draining.cancelled().await;
        tokio::time::sleep(drain_timeout).await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = bound => {
            tracing::warn!(?drain_timeout, "calls were still in work at the end of the drain; they are cut");
            Ok(())
        }
    };
    lifecycle.abort();
    app.close(drain_timeout).await;
    // It ends with the closing; were it to panic, nothing would depend on it.
    drop(forgetting.await);
    Ok(served?)
}

fn router(
    config: &Config,
    app: &Arc<App>,
    health: impl tonic::codegen::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send,
    > + tonic::server::NamedService
    + Clone
    + Send
    + Sync
    + 'static,
) -> Result<
    tonic::transport::server::Router<tower::layer::util::Stack<edge::EdgeLayer, tower::layer::util::Identity>>,
    ServeFailure,
> {
    let server = &config.server;
    let descriptors = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let edge = edge::EdgeLayer::new(edge::EdgeSettings {
        max_concurrent_calls: server.max_concurrent_requests,
        default_deadline: Duration::from_millis(server.default_deadline_ms),
        max_deadline: Duration::from_millis(server.max_deadline_ms),
    });
    let max_message = server.max_message_bytes;
    let app = || Arc::clone(app);
    let stream_window = server.stream_window;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(server.keepalive_s)))
        .max_concurrent_streams(Some(MAX_STREAMS_OF_A_CONNECTION))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS_OF_A_CONNECTION))
        .max_connection_age(Duration::from_secs(server.max_connection_age_s))
        .layer(edge)
        .add_service(health)
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

/// A stream of answers that ends with `UNAVAILABLE` when the server stops.
fn bounded<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    stopping: CancellationToken,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let stopped = futures::stream::once(async move {
        stopping.cancelled_owned().await;
        Err(status::stopping())
    });
    // Ends after the first error or with the answers, whichever comes first.
    let ended = answers.map(Some).chain(futures::stream::once(async { None }));
    futures::stream::select(ended, stopped.map(Some)).scan(false, |failed, item| {
        let next = match item {
            Some(item) if !*failed => {
                *failed = item.is_err();
                Some(item)
            }
            _ => None,
        };
        async { next }
    })
}

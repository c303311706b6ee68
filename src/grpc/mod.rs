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

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
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

/// How long a connection may take to send the end of what has been answered.
const LAST_BYTES: Duration = Duration::from_secs(1);

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

/// Serves on `listener` until `shutdown` ends, then drains within the configured bound. `ready` is called once, when
/// the models that aliases point at are loaded.
///
/// Health says `NOT_SERVING` until then, and again while draining.
///
/// # Errors
/// When the store cannot be opened, or the transport fails.
pub async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), ServeFailure> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
    let drain_timeout = Duration::from_secs(config.server.drain_timeout_s);
    let stopping = CancellationToken::new();
    let stop = tokio::spawn({
        let stopping = stopping.clone();
        async move {
            shutdown.await;
            tracing::info!("draining");
            stopping.cancel();
            Instant::now() + drain_timeout
        }
    });
    // A task of its own, so that a stop need not wait for it.
    let mut opening = tokio::spawn({
        let (config, stopping) = (config.clone(), stopping.clone());
        async move { App::open(&config, stopping).await }
    });
    let opened = match stopping.run_until_cancelled(&mut opening).await {
        Some(opened) => Some(opened),
        None => tokio::time::timeout(drain_timeout, opening).await.ok(),
    };
    let app = match opened.map(|opened| opened.unwrap_or_else(|e| Err(AppError::Internal(format!("opening: {e}"))))) {
        Some(Ok(app)) => Arc::new(app),
        Some(Err(AppError::Stopping)) => return Ok(()),
        Some(Err(error)) => return Err(error.into()),
        None => {
            tracing::info!(
                ?drain_timeout,
                "the start was not over at the end of the drain; it is cut, nothing is lost"
            );
            return Ok(());
        }
    };

    let forgetting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.forget_old_requests().await }
    });
    let (draining, in_work) = (CancellationToken::new(), TaskTracker::new());
    let lifecycle = tokio::spawn({
        let (app, health, draining) = (Arc::clone(&app), health.clone(), draining.clone());
        async move {
            let loaded = async {
                app.models.load_needed().await;
                for service in SERVICES {
                    health.set_service_status(service, ServingStatus::Serving).await;
                }
                tracing::info!("ready");
                ready();
            };
            // A stop that was asked for before goes before, too.
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = loaded => stopping.cancelled().await,
            }
            for service in SERVICES {
                health.set_service_status(service, ServingStatus::NotServing).await;
            }
            // Streams that only listen end here; unary calls in work are answered. Runs end meanwhile.
            draining.cancel();
            app.stop_runs().await;
        }
    });

    // An answer of two small packets must not wait for the caller's delayed acknowledgement of the first.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = router(&config, &app, health_service, draining.clone(), in_work.clone())?
        .serve_with_incoming_shutdown(incoming, {
            let draining = draining.clone();
            async move { draining.cancelled().await }
        });
    let answered = async {
        draining.cancelled().await;
        in_work.close();
        // Until the last bytes are on their way, too.
        loop {
            in_work.wait().await;
            tokio::time::sleep(LAST_BYTES).await;
            if in_work.is_empty() {
                break;
            }
        }
    };
    let bound = async {
        draining.cancelled().await;
        tokio::time::sleep(drain_timeout).await;
    };
    let served = tokio::select! {
        served = serving => served,
        // A connection on which nothing is asked may be that of a client which hears nothing any more.
        () = answered => Ok(()),
        () = bound => {
            tracing::warn!(?drain_timeout, "calls were still in work at the end of the drain; they are cut");
            Ok(())
        }
    };
    let deadline = if draining.is_cancelled() { stop.await.ok() } else { None };
    let deadline = deadline.unwrap_or_else(|| Instant::now() + drain_timeout);
    if !app.close(deadline).await {
        tracing::info!("work was still in hand at the end of the drain; it is cut");
    }
    lifecycle.abort();
    // It ends with the closing; were it to panic, nothing would depend on it.
    drop(tokio::time::timeout_at(deadline.into(), forgetting).await);
    // The last owner waits for the store's last write and for the graph that is being built.
    drop(tokio::time::timeout_at(deadline.into(), tokio::task::spawn_blocking(move || drop(app))).await);
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
    draining: CancellationToken,
    in_work: TaskTracker,
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
        draining,
        in_work,
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

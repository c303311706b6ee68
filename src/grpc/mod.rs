//! The edge: one file per service, the table of errors, the table of methods, and the server's life cycle.
//!
//! Handlers parse a request, run one use case, and convert its answer; `serve.rs` has their common forms. `edge.rs`
//! runs before every handler, according to the method's row in `methods.rs`. `status.rs` maps errors to gRPC;
//! `health.rs` reports health. Nothing here decides anything about models, faces or runs.

mod convert;
mod edge;
mod face_service;
mod health;
mod methods;
#[cfg(test)]
mod methods_check;
mod model_service;
mod operations_service;
mod routes;
mod serve;
mod status;
#[cfg(test)]
mod tests;
mod training_service;
mod visage_service;

pub(crate) use health::health_names;

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::Routes,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    app::{App, AppError},
    config::{Config, ServerConfig},
};

/// Maximum number of concurrent calls on one connection; the client queues more.
const MAX_STREAMS_OF_A_CONNECTION: u32 = 256;

/// Maximum number of calls on one connection that are reset before the server accepts them. Beyond it, the connection
/// and all its calls are closed, so it must allow for a burst of cancelled calls. Without a limit, resets would be a
/// cheap attack.
const MAX_RESETS_OF_A_CONNECTION: usize = 1024;

/// How long a connection may take to send the last bytes of its answers.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Why a server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeFailure {
    /// The application could not be opened.
    #[error(transparent)]
    App(#[from] AppError),
    /// The transport failed.
    #[error("the gRPC transport: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The reflection service's descriptors are wrong, which is a bug.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Serves on `listener` until `shutdown` completes, then drains within the configured time. Calls `ready` once, after
/// loading the needed versions; those that fail are skipped.
///
/// Health is answered from the start: `NOT_SERVING` until ready, then the health by service, and `NOT_SERVING` while
/// draining. Other calls are refused until the store is open.
///
/// # Errors
/// When the store cannot be opened, or the transport fails.
pub(crate) async fn run(
    config: Config,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), ServeFailure> {
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
    let (mut health, health_service) = health::Reporter::new().await;
    let routes = routes::LateRoutes::new(Routes::new(health_service));
    let draining = CancellationToken::new();
    let mut serving = pin!(serve_until_drained(&config.server, listener, routes.clone(), draining.clone()));

    let opened = tokio::select! {
        // Before a drain, it ends only by an error.
        served = &mut serving => return served,
        opened = open(&config, &stopping, drain_timeout) => opened?,
    };
    let Some(app) = opened else {
        draining.cancel();
        let deadline = stop.await.unwrap_or_else(|_| Instant::now());
        return tokio::time::timeout_at(deadline.into(), serving).await.unwrap_or(Ok(()));
    };
    let app = Arc::new(app);
    routes.open(&config.server, &app)?;

    let forgetting = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.forget_old_requests().await }
    });
    let keeping_health = tokio::spawn({
        let app = Arc::clone(&app);
        async move { app.keep_health().await }
    });
    let lifecycle = tokio::spawn({
        let (app, draining) = (Arc::clone(&app), draining.clone());
        async move {
            let living = async {
                app.load_needed().await;
                let changes = app.health();
                let now = *changes.borrow();
                health.report(Some(now)).await;
                tracing::info!("ready");
                ready();
                health.follow(changes).await;
            };
            // `biased`: an earlier stop takes precedence.
            tokio::select! {
                biased;
                () = stopping.cancelled() => {}
                () = living => stopping.cancelled().await,
            }
            health.report(None).await;
            // This ends calls that wait for the server's end; other calls in progress are answered. Runs are ended
            // meanwhile.
            draining.cancel();
            app.stop_runs().await;
        }
    });

    let served = serving.await;
    let deadline = if draining.is_cancelled() { stop.await.ok() } else { None };
    let deadline = deadline.unwrap_or_else(|| Instant::now() + drain_timeout);
    if !app.close(deadline).await {
        tracing::info!("work was still in progress at the end of the drain; it is aborted");
    }
    lifecycle.abort();
    // They end when the application closes; a panic in them does not matter now.
    drop(tokio::time::timeout_at(deadline.into(), futures::future::join(forgetting, keeping_health)).await);
    // Dropping the last owner waits for the store's last write and the graph being built.
    drop(tokio::time::timeout_at(deadline.into(), tokio::task::spawn_blocking(move || drop(app))).await);
    served
}

/// Opens the application; returns `None` if the server was stopped meanwhile.
async fn open(
    config: &Config,
    stopping: &CancellationToken,
    drain_timeout: Duration,
) -> Result<Option<App>, ServeFailure> {
    // In its own task, so that a stop need not wait for it.
    let mut opening = tokio::spawn({
        let (config, stopping) = (config.clone(), stopping.clone());
        async move { App::open(&config, stopping).await }
    });
    let opened = match stopping.run_until_cancelled(&mut opening).await {
        Some(opened) => Some(opened),
        None => tokio::time::timeout(drain_timeout, opening).await.ok(),
    };
    match opened.map(|opened| opened.unwrap_or_else(|e| Err(AppError::Internal(format!("opening: {e}"))))) {
        Some(Ok(app)) => Ok(Some(app)),
        Some(Err(AppError::Stopping)) => Ok(None),
        Some(Err(error)) => Err(error.into()),
        None => {
            tracing::info!(
                ?drain_timeout,
                "the start was not finished at the end of the drain; it is aborted, nothing is lost"
            );
            Ok(None)
        }
    }
}

/// Answers calls until the drain ends: calls in progress have been answered, or the drain time is over.
async fn serve_until_drained(
    config: &ServerConfig,
    listener: TcpListener,
    routes: routes::LateRoutes,
    draining: CancellationToken,
) -> Result<(), ServeFailure> {
    let drain_timeout = Duration::from_secs(config.drain_timeout_s);
    let in_work = TaskTracker::new();
    let edge = edge::EdgeLayer::new(edge::EdgeSettings {
        max_concurrent_calls: config.max_concurrent_requests,
        default_deadline: Duration::from_millis(config.default_deadline_ms),
        max_deadline: Duration::from_millis(config.max_deadline_ms),
        draining: draining.clone(),
        in_work: in_work.clone(),
    });
    // Without it, an answer of two small packets waits for the caller's delayed acknowledgement.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(config.keepalive_s)))
        .max_concurrent_streams(Some(MAX_STREAMS_OF_A_CONNECTION))
        .http2_max_pending_accept_reset_streams(Some(MAX_RESETS_OF_A_CONNECTION))
        .max_connection_age(Duration::from_secs(config.max_connection_age_s))
        .layer(edge)
        .serve_with_incoming_shutdown(routes, incoming, draining.cancelled());
    let answered = async {
        draining.cancelled().await;
        in_work.close();
        // The last bytes may still be in transit.
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
    tokio::select! {
        served = serving => Ok(served?),
        // Do not wait for idle connections: their clients may be gone without closing them.
        () = answered => Ok(()),
        () = bound => {
            tracing::warn!(?drain_timeout, "calls were still in progress at the end of the drain; they are aborted");
            Ok(())
        }
    }
}

//! The steps before every handler: identity, deadline, a permit, a span. Afterwards, the transport's own errors are
//! converted to the contract's. Differences between methods are in their table.
//!
//! Deadlines are enforced slightly early, so that the caller gets the typed error before its own timer fires. If a
//! handler panics, its caller gets `INTERNAL`; no other call is affected.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use humantime::format_duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Code, Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::Instrument;

use super::{
    methods::{self, Method, PermitKind, Waits, Who},
    status,
};
use crate::{
    app::{Call, Caller},
    serving::Priority,
};

const REQUEST_ID: &str = "x-request-id";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The limits that the edge enforces.
#[derive(Clone, Debug)]
pub(super) struct EdgeSettings {
    /// The number of permits of each kind.
    pub(super) max_concurrent_calls: usize,
    /// The deadline of calls that have none, except long ones.
    pub(super) default_deadline: Duration,
    /// The longest deadline; longer ones are shortened to it.
    pub(super) max_deadline: Duration,
    /// Cancelled when the server drains. This ends calls that would wait for the server's end.
    pub(super) draining: CancellationToken,
    /// Holds a token for every call until its answer has ended.
    pub(super) in_work: TaskTracker,
}

/// Makes [`Edge`] services.
#[derive(Clone)]
pub(super) struct EdgeLayer {
    settings: EdgeSettings,
    call_permits: Arc<Semaphore>,
    stream_permits: Arc<Semaphore>,
    watch_permits: Arc<Semaphore>,
}

impl EdgeLayer {
    /// Creates an edge with these limits.
    #[must_use]
    pub(super) fn new(settings: EdgeSettings) -> Self {
        let permits = || Arc::new(Semaphore::new(settings.max_concurrent_calls));
        Self { call_permits: permits(), stream_permits: permits(), watch_permits: permits(), settings }
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, edge: self.clone() }
    }
}

/// A service with the edge around it.
#[derive(Clone)]
pub(super) struct Edge<S> {
    inner: S,
    edge: EdgeLayer,
}

impl<S> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // tower requires calling the service that was polled ready; its clone serves the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let edge = self.edge.clone();
        let path = request.uri().path().to_owned();
        let method = methods::find(&path);
        let header =
            request.headers().get(GRPC_TIMEOUT).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let allowed = header.as_deref().map(parse_timeout);
        let context = edge.context(&request, allowed.flatten(), method);
        let call_id = context.call_id.clone();
        let deadline = context.deadline;
        let answered_id = call_id.clone();
        let span = tracing::info_span!("rpc", method = %path, call_id = %call_id, caller = %context.caller.id);
        request.extensions_mut().insert(context);
        let answer = async move {
            let started = Instant::now();
            if let (Some(header), Some(None)) = (&header, allowed) {
                return Ok(status::timeout_malformed(header).into_http());
            }
            match method.who {
                Who::Anyone => {}
            }
            let in_work = edge.settings.in_work.token();
            let Ok(permit) = edge.permit(method) else {
                return Ok(status::server_overloaded().into_http());
            };
            let handled = AssertUnwindSafe(inner.call(request)).catch_unwind();
            let response = match with_deadline(handled, deadline.filter(|_| !method.is_long())).await {
                None => status::deadline_exceeded("the call").into_http(),
                Some(Err(_panic)) => status::internal(&call_id).into_http(),
                Some(Ok(response)) => translate(response?),
            };
            let response = match (&header, allowed.flatten()) {
                (Some(header), Some(allowed)) => name_timeout(response, allowed, header, edge.settings.max_deadline),
                _ => response,
            };
            let response = match method.waits {
                Waits::ServerEnd => until(response, edge.settings.draining.clone()),
                Waits::Nothing | Waits::Store | Waits::Device | Waits::Run => response,
            };
            let response = hold(response, (in_work, permit.filter(|_| method.is_long())));
            let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |s| s.code());
            tracing::info!(?code, elapsed_ms = started.elapsed().as_millis() as u64, "answered");
            Ok(response)
        };
        Box::pin(
            async move {
                let mut response = answer.await?;
                if let Ok(value) = HeaderValue::from_str(&answered_id) {
                    response.headers_mut().insert(REQUEST_ID, value);
                }
                Ok(response)
            }
            .instrument(span),
        )
    }
}

impl EdgeLayer {
    /// Takes a permit for a call, if its method needs one.
    fn permit(&self, method: &Method) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        let permits = match method.permit {
            PermitKind::None => return Ok(None),
            PermitKind::Call => &self.call_permits,
            PermitKind::Stream => &self.stream_permits,
            PermitKind::Watch => &self.watch_permits,
        };
        Arc::clone(permits).try_acquire_owned().map(Some)
    }

    fn context(&self, request: &Request<Body>, allowed: Option<Duration>, method: &Method) -> Call {
        let arrived = Instant::now();
        let bounded = match allowed {
            Some(timeout) => Some(timeout.min(self.settings.max_deadline)),
            None if method.is_long() => None,
            None => Some(self.settings.default_deadline),
        };
        let call_id = request
            .headers()
            .get(REQUEST_ID)
            .and_then(|v| v.to_str().ok())
            .filter(|v| !v.is_empty() && v.len() <= 128)
            .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
        Call {
            caller: Caller {
                connection: request.extensions().get().and_then(TcpConnectInfo::remote_addr),
                ..Caller::anonymous()
            },
            call_id,
            arrived,
            deadline: bounded.map(|timeout| arrived + timeout - answer_margin(timeout)),
            item_timeout: self.settings.default_deadline,
            priority: Priority::default(),
        }
    }
}

/// Returns by how much the server's deadline is earlier than the caller's.
fn answer_margin(timeout: Duration) -> Duration {
    (timeout / 10).min(Duration::from_millis(10))
}

async fn with_deadline<F: Future>(work: F, deadline: Option<Instant>) -> Option<F::Output> {
    match deadline {
        None => Some(work.await),
        Some(at) => tokio::time::timeout_at(at.into(), work).await.ok(),
    }
}

/// Keeps a call's permits until its answer has ended or its caller has left.
fn hold(response: Response<Body>, held: (TaskTrackerToken, Option<OwnedSemaphorePermit>)) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &held;
            frame
        }))
    })
}

/// Ends a stream with `UNAVAILABLE` when the server drains. First sends one more frame if it is ready: the report that
/// the server no longer serves.
fn until(response: Response<Body>, draining: CancellationToken) -> Response<Body> {
    response.map(|body| {
        let frames = futures::stream::unfold(Some((BodyStream::new(body), false)), move |state| {
            let draining = draining.clone();
            async move {
                let (mut frames, is_last_sent) = state?;
                let is_draining = draining.is_cancelled();
                let frame = if is_draining {
                    frames.next().now_or_never().filter(|_| !is_last_sent)
                } else {
                    tokio::select! {
                        biased;
                        frame = frames.next() => Some(frame),
                        () = draining.cancelled() => None,
                    }
                };
                match frame {
                    Some(frame) => Some((frame?, Some((frames, is_draining)))),
                    None => {
                        let mut trailers = HeaderMap::new();
                        // This cannot fail: tonic encodes message and details for headers.
                        let _ = status::stopping().add_header(&mut trailers);
                        Some((Ok(Frame::trailers(trailers)), None))
                    }
                }
            }
        });
        Body::new(StreamBody::new(frames))
    })
}

/// Converts the transport's own errors to the code and details of the contract.
fn translate(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()).and_then(|status| translated(&status)) {
        Some(status) => status.into_http(),
        None => response,
    }
}

/// As [`translate`], for the messages of a request stream.
pub(super) fn translate_inbound(status: Status) -> Status {
    translated(&status).unwrap_or(status)
}

fn translated(status: &Status) -> Option<Status> {
    match status.code() {
        // Only the decoder's size limit causes this code.
        Code::OutOfRange => Some(status::message_too_large(status.message())),
        // A handler's errors have details. Without details, the decoder could not parse the bytes.
        Code::Internal if status.details().is_empty() => Some(status::message_malformed(status.message())),
        _ => None,
    }
}

/// Adds the caller's timeout to a deadline error, so that a timeout in the wrong unit is obvious.
fn name_timeout(response: Response<Body>, allowed: Duration, header: &str, most: Duration) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(late) if late.code() == Code::DeadlineExceeded => {
            let mut more = format!("the caller allowed {} ({GRPC_TIMEOUT}: {header})", format_duration(allowed));
            if allowed > most {
                more.push_str(&format!(", the server allows at most {}", format_duration(most)));
            }
            status::with_more(&late, &more).into_http()
        }
        _ => response,
    }
}

/// Parses gRPC's wire form of a timeout: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_protocol_writes_them() {
        assert_eq!(parse_timeout("100m"), Some(Duration::from_millis(100)));
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse_timeout("1H"), Some(Duration::from_secs(3600)));
        for wrong in ["", "m", "100", "-1S", "123456789S", "1x", "1 S"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_answer_comes_before_the_callers_timer() {
        assert_eq!(answer_margin(Duration::from_millis(50)), Duration::from_millis(5));
        assert_eq!(answer_margin(Duration::from_secs(5)), Duration::from_millis(10));
    }
}

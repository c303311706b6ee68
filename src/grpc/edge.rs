//! What every call passes before its handler: identity, deadline, a place among the calls in work, a span, and the
//! mending of answers that the transport makes by itself.
//!
//! A call with a deadline is answered a moment before it, so that the caller gets the typed error and not its own
//! timer. A handler that panics costs its caller an `INTERNAL`, and nobody else anything.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt, Stream, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use humantime::format_duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument;

use super::status;
use crate::{
    app::{Call, Caller},
    serving::Priority,
};

const REQUEST_ID: &str = "x-request-id";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// The bounds that the edge keeps.
#[derive(Clone, Debug)]
pub(super) struct EdgeSettings {
    /// Unary calls in work at once; as many streams of requests, and as many calls that only listen.
    pub(super) max_concurrent_calls: usize,
    /// For unary calls that bring no deadline.
    pub(super) default_deadline: Duration,
    /// Longer deadlines are cut to this.
    pub(super) max_deadline: Duration,
    /// Cancelled when the server drains: streams that only listen end then.
    pub(super) draining: CancellationToken,
    /// Has a token of every call until its answer has ended.
    pub(super) in_work: TaskTracker,
}

/// Makes [`Edge`] services.
#[derive(Clone)]
pub(super) struct EdgeLayer {
    settings: EdgeSettings,
    places: Arc<Semaphore>,
    /// For streams of requests; those who only listen have their own.
    stream_places: Arc<Semaphore>,
    watch_places: Arc<Semaphore>,
}

impl EdgeLayer {
    /// An edge with these bounds.
    #[must_use]
    pub(super) fn new(settings: EdgeSettings) -> Self {
        let places = || Arc::new(Semaphore::new(settings.max_concurrent_calls));
        Self { places: places(), stream_places: places(), watch_places: places(), settings }
    }
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, edge: self.clone() }
    }
}

/// The edge around a service.
#[derive(Clone)]
pub(super) struct Edge<S> {
    inner: S,
    edge: EdgeLayer,
}

/// Whether a call takes a place: a server that is busy is healthy, and says so.
fn takes_place(path: &str) -> bool {
    !path.starts_with("/grpc.health.v1.")
}

/// Calls whose answer or request is a stream: they hold their place until the answer's end, and their handlers watch
/// the deadline.
fn is_streaming(path: &str) -> bool {
    matches!(
        path.rsplit('/').next(),
        Some(
            "StreamPredict"
                | "StreamEnrollFaces"
                | "WatchTrainingRun"
                | "WaitOperation"
                | "Watch"
                | "ServerReflectionInfo"
        )
    )
}

/// Streams of services that know of no end of the server; they may stay open for as long as it lives, and a drain that
/// waited for them would never be over.
fn only_listens(path: &str) -> bool {
    path.starts_with("/grpc.health.") || path.starts_with("/grpc.reflection.")
}

/// Calls whose requests are a stream of photos.
fn is_request_stream(path: &str) -> bool {
    matches!(path.rsplit('/').next(), Some("StreamPredict" | "StreamEnrollFaces"))
}

/// How long a stream of requests may say nothing.
const REQUEST_IDLE: Duration = Duration::from_secs(60);

/// The messages of a request stream; one that falls silent ends with an error, and gives its place to another.
pub(super) fn inbound<T>(messages: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    // The clock runs while a message is waited for, not while the answers are.
    futures::stream::unfold(Box::pin(messages), |mut messages| async {
        let message = match tokio::time::timeout(REQUEST_IDLE, messages.next()).await {
            Ok(message) => message?.map_err(mend_inbound),
            Err(_) => Err(status::deadline_exceeded("the wait for the next message of the stream")),
        };
        Some((message, messages))
    })
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
        // The service that was polled ready is the one to use; its clone takes the next call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let edge = self.edge.clone();
        let path = request.uri().path().to_owned();
        let header =
            request.headers().get(GRPC_TIMEOUT).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let allowed = header.as_deref().map(parse_timeout);
        let context = edge.context(&request, allowed.flatten(), is_streaming(&path));
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
            let in_work = edge.settings.in_work.token();
            let places = match (is_streaming(&path), is_request_stream(&path)) {
                (true, true) => edge.stream_places,
                (true, false) => edge.watch_places,
                (false, _) => edge.places,
            };
            let place = if takes_place(&path) {
                match places.try_acquire_owned() {
                    Ok(place) => Some(place),
                    Err(_) => return Ok(status::server_overloaded().into_http()),
                }
            } else {
                None
            };
            let handled = AssertUnwindSafe(inner.call(request)).catch_unwind();
            let response = match with_deadline(handled, deadline.filter(|_| !is_streaming(&path))).await {
                None => status::deadline_exceeded("the call").into_http(),
                Some(Err(_panic)) => status::internal(&call_id).into_http(),
                Some(Ok(response)) => mend(response?),
            };
            let response = match (&header, allowed.flatten()) {
                (Some(header), Some(allowed)) => name_timeout(response, allowed, header, edge.settings.max_deadline),
                _ => response,
            };
            let response = if only_listens(&path) { until(response, edge.settings.draining.clone()) } else { response };
            let response = hold(response, (in_work, if is_streaming(&path) { place } else { None }));
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
    fn context(&self, request: &Request<Body>, allowed: Option<Duration>, streaming: bool) -> Call {
        let arrived = Instant::now();
        let bounded = match allowed {
            Some(timeout) => Some(timeout.min(self.settings.max_deadline)),
            None if streaming => None,
            None => Some(self.settings.default_deadline),
        };
        let call_id = request
            .headers()
            .get(REQUEST_ID)
            .and_then(|v| v.to_str().ok())
            .filter(|v| !v.is_empty() && v.len() <= 128)
            .map_or_else(|| uuid::Uuid::now_v7().to_string(), str::to_owned);
        Call {
            caller: Caller::anonymous(),
            call_id,
            arrived,
            deadline: bounded.map(|timeout| arrived + timeout - answer_margin(timeout)),
            item_timeout: self.settings.default_deadline,
            priority: Priority::default(),
        }
    }
}

/// How long before the caller's own timer the server answers.
fn answer_margin(timeout: Duration) -> Duration {
    (timeout / 10).min(Duration::from_millis(10))
}

async fn with_deadline<F: Future>(work: F, deadline: Option<Instant>) -> Option<F::Output> {
    match deadline {
        None => Some(work.await),
        Some(at) => tokio::time::timeout_at(at.into(), work).await.ok(),
    }
}

/// Keeps what a call holds until its answer has ended or its caller has gone.
fn hold(response: Response<Body>, held: (TaskTrackerToken, Option<OwnedSemaphorePermit>)) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &held;
            frame
        }))
    })
}

/// Ends a stream with `UNAVAILABLE` when the server drains, after one thing more that it has to say, if it has: that the
/// server does not serve any more.
fn until(response: Response<Body>, draining: CancellationToken) -> Response<Body> {
    response.map(|body| {
        let frames = futures::stream::unfold(Some((BodyStream::new(body), false)), move |state| {
            let draining = draining.clone();
            async move {
                let (mut frames, is_last_said) = state?;
                let is_draining = draining.is_cancelled();
                let frame = if is_draining {
                    frames.next().now_or_never().filter(|_| !is_last_said)
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
                        // Its message and details are written in a form that headers take.
                        let _ = status::stopping().add_header(&mut trailers);
                        Some((Ok(Frame::trailers(trailers)), None))
                    }
                }
            }
        });
        Body::new(StreamBody::new(frames))
    })
}

/// Gives the transport's own refusals the code and the details of the contract.
fn mend(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()).and_then(|status| mended(&status)) {
        Some(status) => status.into_http(),
        None => response,
    }
}

/// As [`mend`], for a message of a request stream.
fn mend_inbound(status: Status) -> Status {
    mended(&status).unwrap_or(status)
}

fn mended(status: &Status) -> Option<Status> {
    match status.code() {
        // The one place where it arises is the decoder's limit on a message's size.
        Code::OutOfRange => Some(status::message_too_large(status.message())),
        // The handlers' own have details; without any it is the decoder's, for bytes that are no such message.
        Code::Internal if status.details().is_empty() => Some(status::message_malformed(status.message())),
        _ => None,
    }
}

/// Says in a refusal for lateness what the caller had allowed: a timeout in the wrong unit explains itself.
fn name_timeout(response: Response<Body>, allowed: Duration, header: &str, most: Duration) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(late) if late.code() == Code::DeadlineExceeded => {
            let mut more = format!("the caller allowed {} ({GRPC_TIMEOUT}: {header})", format_duration(allowed));
            if allowed > most {
                more.push_str(&format!(", of which the server allows {}", format_duration(most)));
            }
            status::with_more(&late, &more).into_http()
        }
        _ => response,
    }
}

/// The gRPC wire form of a timeout: up to eight digits and a unit.
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

/// The call's context, as the edge left it with the request.
///
/// # Errors
/// `INTERNAL` when a service is used without the edge, a defect of the server's assembly.
pub(super) fn context<T>(request: &tonic::Request<T>) -> Result<Call, Status> {
    request.extensions().get::<Call>().cloned().ok_or_else(|| status::internal("no call id: the call passed no edge"))
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

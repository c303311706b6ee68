//! The three forms of a handler: unary, a stream of requests, a stream of events.
//!
//! Each takes the call that the edge attached to the request, runs a use case, and converts its error. Handlers only
//! parse their requests.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{edge, status};
use crate::{
    app::{AppError, Call},
    proto::rpc,
};

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How long a stream of requests may be idle.
const REQUEST_IDLE: Duration = Duration::from_secs(60);

/// Answers a request with one use case.
pub(super) async fn unary<Q, A>(
    request: Request<Q>,
    use_case: impl AsyncFnOnce(&Call, Q) -> Result<A, AppError>,
) -> Result<Response<A>, Status> {
    let (call, message) = taken(request)?;
    use_case(&call, message).await.map(Response::new).map_err(|e| status::from_app(&call, e))
}

/// Answers a request with the events of a use case; a stop of the server ends them.
pub(super) async fn watch<Q, A: Send + 'static, S: Stream<Item = A> + Send + 'static>(
    request: Request<Q>,
    stopping: &CancellationToken,
    use_case: impl AsyncFnOnce(&Call, Q) -> Result<S, AppError>,
) -> Result<Response<Answers<A>>, Status> {
    let events = unary(request, use_case).await?;
    Ok(events.map(|events| bounded(events.map(Ok), stopping)))
}

/// The share of a stream's window that a message takes.
#[derive(Clone, Copy)]
pub(super) enum Weight {
    /// It has a photo: one place.
    Photo,
    /// It has no photo and waits for little more than the disk: several share a place.
    Light,
}

/// Messages that share one place of a stream's window.
const LIGHT_PER_PLACE: u32 = 8;

/// Answers each message of a stream, in order, with at most `window` photos in progress, or several times as many
/// lighter messages.
pub(super) fn each<Q: Send + 'static, A: Send + 'static, F: Future<Output = A> + Send + 'static>(
    request: Request<Streaming<Q>>,
    window: usize,
    stopping: &CancellationToken,
    weight: fn(&Q) -> Weight,
    answer: impl Fn(Call, Q) -> F + Send + 'static,
) -> Result<Response<Answers<A>>, Status> {
    let (call, messages) = taken(request)?;
    let most_in_progress = window * LIGHT_PER_PLACE as usize;
    let places = Arc::new(Semaphore::new(most_in_progress));
    let answers = inbound(messages)
        // Reads one message further than there are places.
        .then(move |message| {
            let places = Arc::clone(&places);
            async move {
                let message = message?;
                let n_places = match weight(&message) {
                    Weight::Photo => LIGHT_PER_PLACE,
                    Weight::Light => 1,
                };
                let place = places.acquire_many_owned(n_places).await;
                Ok((message, place))
            }
        })
        .map(move |message: Result<_, Status>| {
            let answering = message.map(|(message, place)| (answer(call.item(), message), place));
            async {
                let (answering, _place) = answering?;
                Ok(answering.await)
            }
        })
        .buffered(most_in_progress);
    Ok(Response::new(bounded(answers, stopping)))
}

/// Runs the use case for one message of a stream. An error becomes part of the answer and does not end the stream.
pub(super) async fn item<Q, A>(
    call: &Call,
    request: Option<Q>,
    use_case: impl AsyncFnOnce(&Call, Q) -> Result<A, AppError>,
) -> Result<A, rpc::Status> {
    let answered = match request {
        None => Err(AppError::field("request", "must be given")),
        Some(request) => use_case(call, request).await,
    };
    answered.map_err(|e| status::to_message(&status::from_app(call, e)))
}

/// Separates the call, which the edge attached, from the message.
///
/// # Errors
/// `INTERNAL` when a service is used without the edge, which is a bug in the server's assembly.
fn taken<Q>(mut request: Request<Q>) -> Result<(Call, Q), Status> {
    let call = request.extensions_mut().remove::<Call>();
    let call = call.ok_or_else(|| status::internal("no call id: the call passed no edge"))?;
    Ok((call, request.into_inner()))
}

/// Returns the messages of a request stream. An idle stream ends with an error and frees its permit.
fn inbound<T>(messages: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    // Counts the time waiting for a message, not the time of the answers.
    futures::stream::unfold(Box::pin(messages), |mut messages| async {
        let message = match tokio::time::timeout(REQUEST_IDLE, messages.next()).await {
            Ok(message) => message?.map_err(edge::translate_inbound),
            Err(_) => Err(status::deadline_exceeded("the wait for the next message of the stream")),
        };
        Some((message, messages))
    })
}

/// Ends a stream of answers with `UNAVAILABLE` when the server stops.
fn bounded<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    stopping: &CancellationToken,
) -> Answers<T> {
    let stopping = stopping.clone();
    let stopped = futures::stream::once(async move {
        stopping.cancelled_owned().await;
        Err(status::stopping())
    });
    // Ends with the answers or after the first error.
    let ended = answers.map(Some).chain(futures::stream::once(async { None }));
    Box::pin(futures::stream::select(ended, stopped.map(Some)).scan(false, |failed, item| {
        let next = match item {
            Some(item) if !*failed => {
                *failed = item.is_err();
                Some(item)
            }
            _ => None,
        };
        async { next }
    }))
}

//! The three shapes of a handler: one answer, a stream of requests, a stream of events.
//!
//! Each takes the call that the edge left with the request, runs a use case, and gives its error the form of the one
//! table. What is left to a handler is taking its request apart.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{edge, status};
use crate::{
    app::{AppError, Call},
    proto::rpc,
};

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How long a stream of requests may be silent.
const REQUEST_IDLE: Duration = Duration::from_secs(60);

/// Answers one request by one use case.
pub(super) async fn unary<Q, A>(
    request: Request<Q>,
    use_case: impl AsyncFnOnce(&Call, Q) -> Result<A, AppError>,
) -> Result<Response<A>, Status> {
    let (call, message) = taken(request)?;
    use_case(&call, message).await.map(Response::new).map_err(|e| status::from_app(&call, e))
}

/// Answers one request by the events that a use case gives; the stop of the server ends them.
pub(super) async fn watch<Q, A: Send + 'static, S: Stream<Item = A> + Send + 'static>(
    request: Request<Q>,
    stopping: &CancellationToken,
    use_case: impl AsyncFnOnce(&Call, Q) -> Result<S, AppError>,
) -> Result<Response<Answers<A>>, Status> {
    let events = unary(request, use_case).await?;
    Ok(events.map(|events| bounded(events.map(Ok), stopping)))
}

/// Answers each message of a stream, in order, with up to `window` of them in work at once.
pub(super) fn each<Q: Send + 'static, A: Send + 'static, F: Future<Output = A> + Send + 'static>(
    request: Request<Streaming<Q>>,
    window: usize,
    stopping: &CancellationToken,
    answer: impl Fn(Call, Q) -> F + Send + 'static,
) -> Result<Response<Answers<A>>, Status> {
    let (call, messages) = taken(request)?;
    let answers = inbound(messages)
        .map(move |message| {
            let answering = message.map(|message| answer(call.item(), message));
            async { Ok(answering?.await) }
        })
        // Reading ahead only as far as the window.
        .buffered(window);
    Ok(Response::new(bounded(answers, stopping)))
}

/// Runs the use case of a stream's message; its error is part of the answer and ends no stream.
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

/// Separates the call, which the edge left with the request, from the message.
///
/// # Errors
/// `INTERNAL` when a service is used without the edge, a defect of the server's assembly.
fn taken<Q>(mut request: Request<Q>) -> Result<(Call, Q), Status> {
    let call = request.extensions_mut().remove::<Call>();
    let call = call.ok_or_else(|| status::internal("no call id: the call passed no edge"))?;
    Ok((call, request.into_inner()))
}

/// The messages of a request stream; one that falls silent ends with an error, and gives its place to another.
fn inbound<T>(messages: impl Stream<Item = Result<T, Status>>) -> impl Stream<Item = Result<T, Status>> {
    // The clock runs while a message is waited for, not while the answers are.
    futures::stream::unfold(Box::pin(messages), |mut messages| async {
        let message = match tokio::time::timeout(REQUEST_IDLE, messages.next()).await {
            Ok(message) => message?.map_err(edge::mend_inbound),
            Err(_) => Err(status::deadline_exceeded("the wait for the next message of the stream")),
        };
        Some((message, messages))
    })
}

/// A stream of answers that ends with `UNAVAILABLE` when the server stops.
fn bounded<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    stopping: &CancellationToken,
) -> Answers<T> {
    let stopping = stopping.clone();
    let stopped = futures::stream::once(async move {
        stopping.cancelled_owned().await;
        Err(status::stopping())
    });
    // Ends after the first error or with the answers, whichever comes first.
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

//! The connection to a running server.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::failure::Unreachable;
use crate::proto::{
    longrunning::operations_client::OperationsClient,
    v1::{
        self, face_service_client::FaceServiceClient, model_service_client::ModelServiceClient,
        training_service_client::TrainingServiceClient, visage_service_client::VisageServiceClient,
        watch_training_run_response::Event,
    },
};

/// The default address of a server.
const DEFAULT_SERVER: &str = "http://127.0.0.1:50051";

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server, the timeout and the output format.
#[derive(Args, Clone, Debug)]
pub(super) struct Remote {
    /// The server's address, as HOST:PORT.
    #[arg(
        long,
        global = true,
        env = "VISAGE_SERVER",
        default_value = DEFAULT_SERVER,
        value_name = "ADDRESS",
        value_parser = url,
        help_heading = "Server"
    )]
    pub(super) server: String,
    /// The longest wait for one answer, such as 500ms or 2m; streams have no limit.
    #[arg(long, global = true, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration, help_heading = "Server")]
    timeout: Duration,
    /// Prints JSON, one document per line.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

/// Parses `host:port` or `http://host:port` as a URL.
fn url(text: &str) -> Result<String, String> {
    if text.is_empty() {
        // An environment variable may be set to nothing.
        return Ok(DEFAULT_SERVER.to_owned());
    }
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    if !url.starts_with("http://") {
        return Err("the server speaks plain HTTP/2: write host:port or http://host:port".to_owned());
    }
    let uri: http::Uri = url.parse().map_err(|e| format!("{e}"))?;
    if uri.port().is_none() {
        return Err("a port is missing, such as 127.0.0.1:50051".to_owned());
    }
    Ok(url)
}

impl Remote {
    /// Connects to the server.
    pub(super) async fn connect(&self) -> anyhow::Result<Clients> {
        let endpoint = Endpoint::from_shared(self.server.clone())?.connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint
            .connect()
            .await
            .map_err(|source| Unreachable { server: self.server.clone(), source: source.into() })?;
        Ok(Clients::new(channel))
    }

    /// Wraps a message in a request with the timeout as its deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

/// A client for every service.
#[derive(Clone)]
pub struct Clients {
    /// Predicts from photos, searches for faces, and starts training runs.
    pub visage: VisageServiceClient<Channel>,
    /// Manages models and their versions.
    pub models: ModelServiceClient<Channel>,
    /// Shows training runs.
    pub training: TrainingServiceClient<Channel>,
    /// Manages collections and their faces.
    pub faces: FaceServiceClient<Channel>,
    /// Cancels training runs.
    pub operations: OperationsClient<Channel>,
}

impl Clients {
    /// Creates clients that share one connection.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        // The server limits message sizes; this side accepts any.
        let unlimited = usize::MAX;
        Self {
            visage: VisageServiceClient::new(channel.clone()).max_decoding_message_size(unlimited),
            models: ModelServiceClient::new(channel.clone()).max_decoding_message_size(unlimited),
            training: TrainingServiceClient::new(channel.clone()).max_decoding_message_size(unlimited),
            faces: FaceServiceClient::new(channel.clone()).max_decoding_message_size(unlimited),
            operations: OperationsClient::new(channel),
        }
    }

    /// Starts a run and returns its name.
    ///
    /// # Errors
    /// Fails when the server refuses.
    pub async fn train(&mut self, request: Request<v1::TrainRequest>) -> anyhow::Result<String> {
        let operation = self.visage.train(request).await?.into_inner();
        let id = operation.name.strip_prefix("operations/").context("the server's answer names no operation")?;
        Ok(format!("trainingRuns/{id}"))
    }

    /// Follows a run from its first event to its end, and passes every event to `each`.
    ///
    /// # Errors
    /// The server's error, or a stream of events that ends before the run.
    pub async fn follow(
        &mut self,
        run: &str,
        mut each: impl FnMut(&v1::WatchTrainingRunResponse),
    ) -> anyhow::Result<v1::TrainingRun> {
        let mut after_sequence = 0;
        // A server closes old connections gracefully; the events continue where they stopped.
        loop {
            let watch = v1::WatchTrainingRunRequest { name: run.to_owned(), after_sequence };
            let mut events = self.training.watch_training_run(watch).await?.into_inner();
            let before = after_sequence;
            while let Some(event) = events.message().await? {
                after_sequence = event.sequence;
                each(&event);
                if let Some(Event::Ended(run)) = event.event {
                    return Ok(run);
                }
            }
            if after_sequence == before {
                bail!("the events of {run} ended before the run");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::url;

    #[test]
    fn addresses_come_with_or_without_a_scheme() {
        assert_eq!(url("127.0.0.1:50051").unwrap(), "http://127.0.0.1:50051");
        assert_eq!(url("http://visage:1").unwrap(), "http://visage:1");
        assert!(url("https://visage:1").unwrap_err().contains("plain"));
        assert!(url("visage").unwrap_err().contains("port"));
        assert_eq!(url("").unwrap(), super::DEFAULT_SERVER);
    }
}

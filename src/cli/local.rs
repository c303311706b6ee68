//! A server of our own within this process, for evaluations and benchmarks: on a free port, in a temporary folder.

use std::path::PathBuf;

use anyhow::{Context, bail};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::transport::Channel;

use crate::{
    config::{Config, Flags},
    grpc,
    proto::v1::{
        self, face_service_client::FaceServiceClient, model_service_client::ModelServiceClient,
        training_service_client::TrainingServiceClient, visage_service_client::VisageServiceClient,
        watch_training_run_response::Event,
    },
};

/// A server and clients to it.
pub(super) struct LocalServer {
    pub(super) visage: VisageServiceClient<Channel>,
    pub(super) models: ModelServiceClient<Channel>,
    pub(super) training: TrainingServiceClient<Channel>,
    pub(super) faces: FaceServiceClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), grpc::ServeFailure>>,
    /// The data folder and whatever else the run writes; gone with the server.
    pub(super) folder: TempDir,
}

impl LocalServer {
    /// Starts one whose training may read below `roots` and below its own folder's `root`.
    pub(super) async fn start(mut roots: Vec<PathBuf>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let own_root = folder.path().join("root");
        std::fs::create_dir(&own_root)?;
        roots.push(own_root);
        let mut config: Config = Config::load(None, Flags::default())?.config;
        config.data_dir = folder.path().join("data");
        config.training.roots = roots;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = oneshot::channel::<()>();
        let run: BoxFuture<'static, _> = Box::pin(grpc::run(config, listener, async move {
            // A dropped sender means the same as a sent word.
            let _ = stopped.await;
        }));
        let serving = tokio::spawn(run);
        let channel = Channel::from_shared(url)?.connect().await?;
        let server = Self {
            visage: VisageServiceClient::new(channel.clone()),
            models: ModelServiceClient::new(channel.clone()),
            training: TrainingServiceClient::new(channel.clone()),
            faces: FaceServiceClient::new(channel),
            stop: Some(stop),
            serving,
            folder,
        };
        Ok(server)
    }

    /// The folder below which training data may be made.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Starts a run and gives its name.
    pub(super) async fn train(&mut self, request: v1::TrainRequest) -> anyhow::Result<String> {
        let operation = self.visage.train(request).await?.into_inner();
        Ok(operation.name.replace("operations/", "trainingRuns/"))
    }

    /// Follows a run to its end, telling `each` of its events.
    pub(super) async fn follow(&mut self, run: &str, mut each: impl FnMut(&Event)) -> anyhow::Result<v1::TrainingRun> {
        let watch = v1::WatchTrainingRunRequest { name: run.to_owned(), after_sequence: 0 };
        let mut events = self.training.watch_training_run(watch).await?.into_inner();
        while let Some(event) = events.message().await? {
            let Some(event) = event.event else { continue };
            each(&event);
            if let Event::Ended(run) = event {
                if run.state() != v1::RunState::Succeeded {
                    bail!("the training run failed: {}", run.error.map(|e| e.message).unwrap_or_default());
                }
                return Ok(run);
            }
        }
        bail!("the run's events ended without an end")
    }

    /// Stops the server and waits for its end.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        (&mut self.serving).await??;
        Ok(())
    }
}

//! A server of our own within this process, for evaluations and benchmarks: on a free port, in a temporary folder.

use std::path::PathBuf;

use anyhow::{Context, bail};
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{Request, transport::Channel};

use super::{connection::Clients, watching};
use crate::{
    config::{Config, Flags},
    grpc,
    proto::v1,
};

/// A server and its clients.
pub(super) struct LocalServer {
    pub(super) clients: Clients,
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
        let run: BoxFuture<'static, _> = Box::pin(grpc::run(
            config,
            listener,
            async move {
                // A dropped sender means the same as a sent word.
                let _ = stopped.await;
            },
            || {},
        ));
        let serving = tokio::spawn(run);
        let channel = Channel::from_shared(url)?.connect().await?;
        let server = Self { clients: Clients::new(channel), stop: Some(stop), serving, folder };
        Ok(server)
    }

    /// Trains, telling `each` of every event; an error when no version comes of it.
    pub(super) async fn train(
        &mut self,
        request: v1::TrainRequest,
        each: impl FnMut(&v1::WatchTrainingRunResponse),
    ) -> anyhow::Result<v1::TrainingRun> {
        let run = self.clients.train(Request::new(request)).await?;
        let ended = self.clients.follow(&run, each).await?;
        if ended.state() != v1::RunState::Succeeded {
            bail!("the run did not succeed: {}", watching::ended(&ended));
        }
        Ok(ended)
    }

    /// The folder below which training data may be made.
    pub(super) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Stops the server and waits for its end.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.stop.take());
        (&mut self.serving).await??;
        Ok(())
    }
}

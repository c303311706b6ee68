//! A server for suites that train, in a temporary folder that may also hold training data.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use tempfile::TempDir;
use tonic::Request;
use visage::{
    cli::{connection::Clients, watching},
    proto::v1,
};

use crate::server::ServerProcess;

/// A server whose data folder, with all that a suite writes there, is deleted with it.
pub(crate) struct TrainingServer {
    pub(crate) clients: Clients,
    process: ServerProcess,
    folder: TempDir,
}

impl TrainingServer {
    /// Starts a server whose training may read below `roots` and below its own [`root`](Self::root).
    pub(crate) async fn start(mut roots: Vec<PathBuf>) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a temporary folder")?;
        let own_root = folder.path().join("root");
        std::fs::create_dir(&own_root)?;
        roots.push(own_root);
        let process = ServerProcess::start(&folder.path().join("data"), None, &roots).await?;
        Ok(Self { clients: process.clients.clone(), process, folder })
    }

    /// Trains, and passes every event to `each`; fails when the run creates no version.
    pub(crate) async fn train(
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

    /// The folder for the suite's own training data.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Waits until the server has used next to no processor for a while.
    pub(crate) async fn wait_until_idle(&self, wanted: Duration) -> anyhow::Result<()> {
        self.process.wait_until_idle(wanted).await
    }

    /// Stops the server and starts it again on the same data folder.
    pub(crate) async fn restart(self) -> anyhow::Result<Self> {
        self.process.stop().await?;
        let process =
            ServerProcess::start(&self.folder.path().join("data"), None, &[self.folder.path().join("root")]).await?;
        Ok(Self { clients: process.clients.clone(), process, folder: self.folder })
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.process.stop().await
    }
}

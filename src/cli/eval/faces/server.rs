//! A server in a process of its own, as a user starts it: its memory and its end are its own.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use sysinfo::{Pid, ProcessesToUpdate, System};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::Channel;

use crate::{
    cli::connection::Clients,
    proto::v1::{self, AbstentionReason},
};

/// A first answer later than this is no answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries of a server that is not ready yet.
const PAUSE: Duration = Duration::from_millis(10);

/// A running `visage serve`; killed when dropped.
pub(super) struct ServerProcess {
    child: Child,
    pub(super) clients: Clients,
    /// What it writes to standard error.
    log: PathBuf,
}

impl ServerProcess {
    /// Starts one on a data folder and asks it about a photo until it answers; gives the time from the process's start
    /// to that answer.
    pub(super) async fn start(data: &Path, weights: &Path, photo: &[u8]) -> anyhow::Result<(Self, Duration)> {
        let log = data.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let started = Instant::now();
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .env_remove("VISAGE_CONFIG")
            .env("VISAGE_MODELS__PUBLISHED_DIR", weights)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .context("a server of its own")?;
        let mut lines = BufReader::new(child.stdout.take().context("the server's output")?).lines();
        let url = loop {
            match lines.next_line().await? {
                Some(line) => {
                    if let Some(url) = line.split_whitespace().find(|word| word.starts_with("http://")) {
                        break url.to_owned();
                    }
                }
                None => bail!("the server ended at its start:\n{}", std::fs::read_to_string(&log)?),
            }
        };
        // Read to its end, so that the server never waits for room in the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let clients = Clients::new(Channel::from_shared(url)?.connect_lazy());
        let mut server = Self { child, clients, log };
        server.first_answer(photo, started).await?;
        Ok((server, started.elapsed()))
    }

    async fn first_answer(&mut self, photo: &[u8], started: Instant) -> anyhow::Result<()> {
        loop {
            let request = v1::PredictRequest { image: photo.to_vec().into(), ..v1::PredictRequest::default() };
            match self.clients.visage.predict(request).await {
                Ok(answer) if answer.get_ref().abstention_reasons().any(|why| why == AbstentionReason::NoFace) => {
                    bail!("no face is found in the first photo");
                }
                Ok(_) => return Ok(()),
                Err(status) if started.elapsed() > PATIENCE => return Err(status).context("no answer in two minutes"),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Resident memory in MiB; an error when the process is gone.
    pub(super) fn resident_mib(&mut self) -> anyhow::Result<f64> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server is gone ({status}):\n{}", self.last_words());
        }
        let pid = Pid::from_u32(self.child.id().context("the server's process id")?);
        let mut system = System::new().context("what processes there are")?;
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
        Ok(system.process(pid).context("the server's process")?.memory() as f64 / (1024.0 * 1024.0))
    }

    /// Lines of the log at level ERROR: what someone would have to look at.
    pub(super) fn n_error_lines(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_to_string(&self.log)?
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some("ERROR"))
            .count())
    }

    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Asks it to end, and waits.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("the server's process id")?;
        // Signal 15 by the system's own program: there is no other need of unsafe code here.
        Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await.context("kill")?;
        let status = self.child.wait().await?;
        if !status.success() {
            bail!("the server ended badly ({status}):\n{}", self.last_words());
        }
        Ok(())
    }
}

//! A server in its own process, started as a user does; its memory and its exit can be measured.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use sysinfo::{Pid, ProcessesToUpdate, System};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tonic::transport::Channel;
use visage::cli::connection::Clients;

/// A running `visage serve`; dropping it kills the process.
pub(crate) struct ServerProcess {
    child: Child,
    pub(crate) clients: Clients,
    /// The file with its standard error.
    log: PathBuf,
}

impl ServerProcess {
    /// Starts a server on a data folder and waits until it listens; it registers the weights of `published`.
    pub(crate) async fn start(
        data: &Path,
        published: Option<&Path>,
        training_roots: &[PathBuf],
    ) -> anyhow::Result<Self> {
        let program = beside(&std::env::current_exe()?)?;
        let log = data.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        for root in training_roots {
            command.arg("--training-root").arg(root);
        }
        if let Some(weights) = published {
            command.env("VISAGE_MODELS__PUBLISHED_DIR", weights);
        }
        let mut child = command
            .env_remove("VISAGE_CONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
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
        // Reads to the end, so that the server never blocks on a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, clients: Clients::new(Channel::from_shared(url)?.connect_lazy()), log })
    }

    /// Returns the process's resident memory in MiB; an error when the process is gone.
    pub(crate) fn resident_mib(&mut self) -> anyhow::Result<f64> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server is gone ({status}):\n{}", self.last_words());
        }
        let pid = Pid::from_u32(self.child.id().context("the server's process id")?);
        let mut system = System::new().context("the list of processes")?;
        system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
        Ok(system.process(pid).context("the server's process")?.memory() as f64 / (1024.0 * 1024.0))
    }

    /// Waits until the process has used less than a twentieth of a core for so long.
    pub(crate) async fn wait_until_idle(&self, wanted: Duration) -> anyhow::Result<()> {
        let pid = Pid::from_u32(self.child.id().context("the server's process id")?);
        let mut system = System::new().context("the list of processes")?;
        loop {
            system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
            let before = system.process(pid).context("the server's process")?.accumulated_cpu_time();
            tokio::time::sleep(wanted).await;
            system.refresh_processes(ProcessesToUpdate::Some(&[pid]), true);
            let after = system.process(pid).context("the server's process")?.accumulated_cpu_time();
            if after.saturating_sub(before) * 20 < wanted.as_millis() as u64 {
                return Ok(());
            }
        }
    }

    /// Counts the log's lines at level ERROR, which someone would have to look into.
    pub(crate) fn n_error_lines(&self) -> anyhow::Result<usize> {
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

    /// Stops the server as an operator does, and waits for its end.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().context("the server's process id")?;
        // Sends signal 15 by the system's `kill`: calling it directly would need unsafe code.
        Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await.context("kill")?;
        let status = self.child.wait().await?;
        if !status.success() {
            bail!("the server failed ({status}):\n{}", self.last_words());
        }
        Ok(())
    }
}

/// Returns the server's program in the folder of this one, where both are built.
fn beside(this: &Path) -> anyhow::Result<PathBuf> {
    let program = this.with_file_name("visage");
    if !program.is_file() {
        let profile = if cfg!(debug_assertions) { "" } else { " --release" };
        bail!(
            "the server that is to be measured is missing: {}; build it with `cargo build{profile} --package visage`",
            program.display()
        );
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::beside;

    #[test]
    fn a_missing_server_is_named_with_the_way_to_build_it() {
        let folder = tempfile::tempdir().unwrap();
        let this = folder.path().join("visage-measure");
        let missing = beside(&this).unwrap_err().to_string();
        assert!(missing.contains("cargo build") && missing.contains(folder.path().to_str().unwrap()), "{missing}");
        std::fs::write(folder.path().join("visage"), "").unwrap();
        assert_eq!(beside(&this).unwrap(), folder.path().join("visage"));
    }
}

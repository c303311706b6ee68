//! Runs other people's programs for the same work: Python, one script per subject, with JSON as input and output.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use visage::cli::output;

/// The scripts, and the Python that runs them.
#[derive(Args, Clone, Debug)]
pub(crate) struct PeerArgs {
    /// The Python that has the packages of benches/peers/requirements.txt; without it, peers are left out, with a note.
    #[arg(long, value_name = "PYTHON", env = "VISAGE_PYTHON")]
    python: Option<PathBuf>,
    /// The folder of the scripts that run peers.
    #[arg(long, value_name = "FOLDER", default_value = "benches")]
    scripts: PathBuf,
}

impl PeerArgs {
    /// Returns true if there is a Python to run peers.
    pub(crate) fn are_here(&self) -> bool {
        self.python.is_some()
    }

    /// Runs a script on a request and parses its answers, one JSON object per line; `None` without a Python. The
    /// progress bar shows `what`.
    ///
    /// # Errors
    /// Fails when the script fails or its answer has another form.
    pub(crate) async fn run_script<Answer: DeserializeOwned>(
        &self,
        script: &str,
        arguments: &[&str],
        request: &impl Serialize,
        (what, n_answers): (&'static str, usize),
    ) -> anyhow::Result<Option<Vec<Answer>>> {
        let Some(python) = &self.python else { return Ok(None) };
        let path = self.scripts.join(script);
        let mut child = Command::new(python)
            .arg(&path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| python.display().to_string())?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{}: no pipes", path.display());
        };
        // A script that ends before it has read its input reports why.
        let _ = input.write_all(&serde_json::to_vec(request)?).await;
        drop(input);
        let progress = if n_answers > 1 { output::bar(n_answers as u64, what) } else { output::counter(what) };
        let mut lines = BufReader::new(output).lines();
        let mut answers = Vec::with_capacity(n_answers);
        while let Some(line) = lines.next_line().await? {
            answers.push(serde_json::from_str(&line).with_context(|| format!("{}: {line}", path.display()))?);
            progress.inc(1);
        }
        progress.finish_and_clear();
        let status = child.wait().await?;
        if !status.success() {
            bail!("{} failed ({status}); `make eval` and `make bench` install what it needs", path.display());
        }
        Ok(Some(answers))
    }
}

//! Shows a training run: a bar, a line for every epoch, and how it ended.

use std::cell::Cell;

use indicatif::ProgressBar;

use super::{
    connection::{Clients, Remote},
    names,
    output::{self, print_line},
};
use crate::proto::{
    longrunning::CancelOperationRequest,
    v1::{self, watch_training_run_response::Event},
};

/// The effect of Ctrl-C on the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnInterrupt {
    /// The run is cancelled, and watched to its end.
    Cancel,
    /// The watching ends, the run continues.
    Leave,
}

/// Watches a run to its end; returns `None` if the user left.
pub(super) async fn watch(
    remote: &Remote,
    server: &mut Clients,
    run: &str,
    on_interrupt: OnInterrupt,
) -> anyhow::Result<Option<v1::TrainingRun>> {
    let shown = Shown { json: remote.json, bar: output::bar(0, "waiting for its turn"), last: Cell::default() };
    let mut canceller = server.clone();
    let following = server.follow(run, |event| shown.event(event));
    tokio::pin!(following);
    let interrupted = tokio::select! {
        ended = &mut following => return shown.end(ended?).map(Some),
        pressed = tokio::signal::ctrl_c() => pressed,
    };
    interrupted?;
    if on_interrupt == OnInterrupt::Leave {
        shown.bar.finish_and_clear();
        eprintln!("{run} continues; `visage runs watch` follows it again");
        return Ok(None);
    }
    shown.bar.set_message("cancelling");
    let request = CancelOperationRequest { name: names::operation(run) };
    canceller.operations.cancel_operation(remote.request(request)).await?;
    shown.end(following.await?).map(Some)
}

struct Shown {
    json: bool,
    bar: ProgressBar,
    /// Stage, epoch and step of the last event.
    last: Cell<(i32, i32, i32)>,
}

impl Shown {
    fn event(&self, response: &v1::WatchTrainingRunResponse) {
        if self.json {
            // A message without a JSON form is skipped; the watching continues.
            if let Ok(line) = output::to_json(response) {
                self.print(&line);
            }
        }
        match &response.event {
            Some(Event::State(state)) if *state == i32::from(v1::RunState::Running) => {
                self.bar.set_message("reading the photos");
            }
            Some(Event::State(_)) => {}
            Some(Event::Data(report)) => {
                self.bar.set_message("starting");
                if !self.json {
                    self.print(&data(report));
                }
            }
            Some(Event::Progress(progress)) => self.progress(progress),
            Some(Event::Ended(_)) | None => {}
        }
    }

    fn progress(&self, p: &v1::Progress) {
        advance(&self.bar, p);
        if p.epoch == 0 {
            return;
        }
        let stage = if p.n_stages > 1 { format!("stage {}/{} ", p.stage, p.n_stages) } else { String::new() };
        let metrics = p.metrics.iter().map(|(name, value)| format!(", {name} {value:.3}")).collect::<String>();
        let so_far = format!("{stage}epoch {}/{}  loss {:.4}{metrics}", p.epoch, p.n_epochs, p.loss);
        // The last step of an epoch is reported twice, the second time with the epoch's metrics.
        let at = (p.stage, p.epoch, p.step);
        if self.last.replace(at) == at && p.step == p.n_steps && !p.metrics.is_empty() && !self.json {
            self.print(&so_far);
        }
        let left = p.eta.and_then(|eta| std::time::Duration::try_from(eta).ok());
        let left = left.map(|left| format!("  {} left", humantime::format_duration(whole_seconds(left))));
        // The run knows its speed better than a bar that may have joined late.
        self.bar.set_message(format!("{so_far}  {:.0} img/s{}", p.images_per_second, left.unwrap_or_default()));
    }

    fn print(&self, line: &str) {
        // If the output's reader has gone, the run is still watched to its end.
        let _ = self.bar.suspend(|| print_line!("{line}"));
    }

    fn end(&self, run: v1::TrainingRun) -> anyhow::Result<v1::TrainingRun> {
        self.bar.finish_and_clear();
        // In JSON the last event has reported it.
        if !self.json {
            print_line!("{}", ended(&run))?;
        }
        Ok(run)
    }
}

/// Moves a bar to a run's position.
pub fn advance(bar: &ProgressBar, p: &v1::Progress) {
    // Epoch 0 is the reading of the data, which has steps of its own.
    let (n_epochs, n_done) = if p.epoch == 0 { (1, 0) } else { (p.n_epochs, p.epoch - 1) };
    bar.set_length((i64::from(n_epochs) * i64::from(p.n_steps)).unsigned_abs());
    bar.set_position((i64::from(n_done) * i64::from(p.n_steps) + i64::from(p.step)).unsigned_abs());
}

fn whole_seconds(time: std::time::Duration) -> std::time::Duration {
    std::time::Duration::from_secs(time.as_secs())
}

/// Describes the data of a run: the number of photos, and the rejected rows.
#[must_use]
pub fn data(report: &v1::DataReport) -> String {
    let mut text = format!(
        "{} photos to train on, {} to validate, {} to calibrate intervals",
        report.train, report.valid, report.calibration
    );
    let n_rejected: i64 = report.rejected.values().sum();
    if n_rejected > 0 {
        text.push_str(&format!("; {n_rejected} of {} rows left out:", report.rows));
        for (reason, n) in &report.rejected {
            text.push_str(&format!("\n  {n} × {reason}"));
        }
        for row in report.rejected_examples.iter().take(5) {
            text.push_str(&format!("\n  {}: {}", row.name, row.reason));
        }
    }
    text
}

/// Describes in one line how a run ended.
#[must_use]
pub fn ended(run: &v1::TrainingRun) -> String {
    let state = output::enum_name(run.state().as_str_name(), "RUN_STATE_").to_lowercase();
    let metrics = run.metrics.iter().map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>();
    match &run.error {
        Some(error) => format!("{} {state}: {}", run.name, error.message),
        None if run.version.is_empty() => format!("{} {state}", run.name),
        None => format!("{} {state}: {} ({})", run.name, run.version, metrics.join(", ")),
    }
}

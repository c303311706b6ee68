//! Derives a failure's reason, on which a person can act, from how a process ended.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use rustix::process::Signal;

use crate::proto::worker::{Failed, FailureKind, Finished};

const SIGKILL: i32 = Signal::KILL.as_raw();

/// All known facts about a process that has ended.
#[derive(Debug)]
pub(super) struct ExitFacts {
    /// Its final event.
    pub(super) ending: Option<Result<Finished, Failed>>,
    /// The protocol error in its output.
    pub(super) protocol_error: Option<String>,
    pub(super) status: ExitStatus,
    /// A cancellation was requested.
    pub(super) was_cancelled: bool,
    /// A caller killed it.
    pub(super) was_killed: bool,
    /// It did not end in time and was killed for that.
    pub(super) was_overdue: bool,
    /// Processes that the kernel killed for memory while it ran, if the system counts them.
    pub(super) n_oom_kills: u64,
}

impl ExitFacts {
    /// Returns the process's result, or the reason why there is none.
    pub(super) fn judge(self) -> Result<Box<Finished>, Failed> {
        let failed = |kind: FailureKind, message: String| Err(Failed { kind: kind.into(), message });
        if let Some(ending) = self.ending {
            return ending.map(Box::new);
        }
        if self.was_killed {
            return failed(FailureKind::Cancelled, "the training process was killed on request".to_owned());
        }
        if self.was_cancelled {
            let how = if self.was_overdue { "it did not stop in time, and was killed" } else { "it stopped" };
            return failed(FailureKind::Cancelled, format!("the run was cancelled; {how}"));
        }
        if let Some(detail) = self.protocol_error {
            return failed(FailureKind::Internal, detail);
        }
        if self.was_overdue {
            let message = "the training process closed its output, but did not end, and was killed";
            return failed(FailureKind::Internal, message.to_owned());
        }
        match (self.status.signal(), self.status.code()) {
            (Some(SIGKILL), _) if self.n_oom_kills > 0 => failed(
                FailureKind::OutOfMemory,
                "the training process was killed by signal 9, and the kernel counts a kill because memory ran out; a \
                 smaller batch_size or image_size_px needs less"
                    .to_owned(),
            ),
            (Some(SIGKILL), _) => failed(
                FailureKind::Internal,
                "the training process was killed by signal 9, as the kernel does when memory runs out".to_owned(),
            ),
            (Some(signal), _) => failed(
                FailureKind::Internal,
                format!("the training process died of signal {signal}{}", signal_name(signal)),
            ),
            (None, Some(0)) => failed(FailureKind::Internal, "the training process ended without a result".to_owned()),
            (None, code) => failed(
                FailureKind::Internal,
                format!("the training process ended with exit code {}", code.unwrap_or_default()),
            ),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match Signal::from_named_raw(signal) {
        Some(Signal::SEGV) => " (bad memory access)",
        Some(Signal::BUS) => " (bad memory mapping)",
        Some(Signal::ABORT) => " (aborted itself)",
        Some(Signal::ILL) => " (an instruction that this processor lacks)",
        Some(Signal::FPE) => " (arithmetic)",
        Some(Signal::TERM) => " (terminated)",
        Some(Signal::INT) => " (interrupted)",
        _ => "",
    }
}

/// Counts the processes killed for memory since the kernel started; 0 if it does not report them.
pub(super) fn n_oom_kills() -> u64 {
    std::fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok())
        .unwrap_or_default()
}

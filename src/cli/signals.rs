//! The signals that stop a server, and the end of its process.

use std::io::{self, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code that shells show after Ctrl-C.
const INTERRUPTED: u8 = 130;

/// The signals that a server handles. While it exists, none of them kills the process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None if the process was started with hangups ignored, as by `nohup`.
    hangup: Option<Signal>,
    had_terminal: bool,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            hangup: if is_ignored(SignalKind::hangup()) { None } else { Some(signal(SignalKind::hangup())?) },
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            had_terminal: has_terminal(),
        })
    }

    /// Waits for a signal to stop the server; a later Ctrl-C ends the process at once.
    pub(super) async fn stop_requested(mut self) {
        loop {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = hangup => {}
            }
            if self.had_terminal && !has_terminal() {
                tracing::info!("the terminal is gone; stopping");
                break;
            }
            // A daemon has no terminal: there SIGHUP conventionally means to reload the settings.
            tracing::warn!(
                "SIGHUP changes nothing: settings are read at the start, so restart the server for new ones"
            );
        }
        tokio::spawn(async move {
            if self.interrupt.recv().await.is_some() {
                tracing::warn!("interrupted while stopping: ending at once, running work is lost");
                leave(INTERRUPTED);
            }
        });
    }
}

/// Ends the process without running destructors: libtorch's must not run while one of our threads is still in a kernel.
/// Everything of ours that matters is closed by now, or survives a kill.
pub(super) fn leave(status: u8) -> ! {
    // A failure can no longer be reported.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    signal_hook::low_level::exit(status.into())
}

/// Returns true if the process ignores a signal; Linux shows one bit per signal.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// Returns true if the process has a working controlling terminal.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

/// Makes a write beyond the process's limit on file sizes an error, which it is on a full disk too, and not the end of
/// the process.
pub(super) fn survive_file_size_limits() {
    let is_raised = std::sync::Arc::default();
    if let Err(error) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, is_raised) {
        tracing::warn!(%error, "a limit on file sizes would end this process");
    }
}

//! What ends a server from outside, and how its process ends.

use std::io::{self, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a shell shows for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// The signals that a server heeds. From the moment it exists none of them kills.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Nothing where whoever started the process had it ignore hangups, as `nohup` does.
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

    /// Ends when the server is to stop; a Ctrl-C after that ends the process at once.
    pub(super) async fn asked_to_stop(mut self) {
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
                tracing::info!("the terminal is gone; the server stops");
                break;
            }
            // A daemon has nothing to hang up: there it asks for the settings to be read again.
            tracing::warn!(
                "SIGHUP changes nothing: settings are read at the start, so restart the server for new ones"
            );
        }
        tokio::spawn(async move {
            if self.interrupt.recv().await.is_some() {
                tracing::warn!("interrupted while stopping: ends at once, what is in work is cut");
                leave(INTERRUPTED);
            }
        });
    }
}

/// Ends the process without running anybody's destructors: libtorch's must not run while one of our threads is still in
/// a kernel, and everything of ours that matters has been closed before, or survives a kill.
pub(super) fn leave(status: u8) -> ! {
    // Nobody is left to be told of a failure.
    let _ = io::stdout().flush();
    let _ = io::stderr().flush();
    signal_hook::low_level::exit(status.into())
}

/// Whether the process ignores a signal, as Linux shows it: one bit a signal.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    ignored.is_some_and(|ignored| ignored >> (signal.as_raw_value() - 1) & 1 == 1)
}

/// Whether the process has a controlling terminal that still answers.
fn has_terminal() -> bool {
    std::fs::File::open("/dev/tty").is_ok()
}

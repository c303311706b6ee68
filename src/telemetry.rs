//! Logs: one line an event on standard error, for people or for machines.
//!
//! Spans carry the call's id and method. Image bytes, embeddings and labels are never logged. A panic is one ERROR
//! line, for wherever it is caught the caller gets an error of its own.

use std::panic;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log.filter {filter:?}: {detail}")]
pub(crate) struct BadFilter {
    filter: String,
    detail: String,
}

/// Keeps panics that become errors of the store from being printed, in a process that does not log.
pub(crate) fn quiet_guarded_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !crate::store::panic_is_guarded() {
            usual(info);
        }
    }));
}

/// Starts logging for the whole process.
///
/// # Errors
/// [`BadFilter`] for a filter that cannot be read.
pub(crate) fn init(config: &LogConfig) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|e| BadFilter { filter: config.filter.clone(), detail: e.to_string() })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // A second start in one process, as tests do, keeps the first.
    let _ = match config.format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    panic::set_hook(Box::new(|info| {
        if crate::store::panic_is_guarded() {
            return;
        }
        let message = info.payload_as_str().unwrap_or("a panic without words");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%place, thread = std::thread::current().name().unwrap_or("?"), "panic: {message}");
    }));
    Ok(())
}

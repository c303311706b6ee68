//! Logs: one line per event on standard error, as text or JSON.
//!
//! Spans carry the call's id and method. Image bytes, embeddings and labels are never logged. A panic logs one ERROR
//! line; whoever catches it returns an error of its own.

use std::panic;

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// An error for a filter that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("log.filter {filter:?}: {detail}")]
pub(crate) struct BadFilter {
    filter: String,
    detail: String,
}

/// In a process that does not log, hides panics that the store turns into errors.
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
/// [`BadFilter`] for a filter that cannot be parsed.
pub(crate) fn init(config: &LogConfig) -> Result<(), BadFilter> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|e| BadFilter { filter: config.filter.clone(), detail: e.to_string() })?;
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    // Tests start it more than once in a process; the first start wins.
    let _ = match config.format {
        LogFormat::Text => registry.with(lines.with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    panic::set_hook(Box::new(|info| {
        if crate::store::panic_is_guarded() {
            return;
        }
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(%place, thread = std::thread::current().name().unwrap_or("?"), "panic: {message}");
    }));
    Ok(())
}

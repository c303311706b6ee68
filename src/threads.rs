//! The priority of threads whose work can wait.

/// Lowers the priority of this thread and of the kernel threads that it will start, so that it uses only the time that
/// calls leave. `work` names what would otherwise compete with them.
pub(crate) fn yield_to_calls(work: &str) {
    #[cfg(target_os = "linux")]
    {
        const NICENESS: i32 = 10;
        // On Linux, `None` means the calling thread alone.
        if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::warn!(%error, "{work} will compete with calls");
        }
    }
}

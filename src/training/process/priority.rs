//! Gives a training process the lowest priority on its machine.
//!
//! The process lowers its priority first, before it has a second thread: Linux keeps the scheduling class and the
//! niceness per thread, and a new thread inherits its creator's. It stays in its parent's session, because the kernel's
//! autogroups would otherwise give the new session as much of the processor as the server's.

use rustix::process::setpriority_process;

/// Lowers the calling process's priority for processor and disk, makes it the first to be killed when memory runs out,
/// and ties its life to its parent's. Call it before any other thread exists.
///
/// Returns the steps that failed, for the log; none of them prevents training.
#[cfg(target_os = "linux")]
pub(crate) fn lower_priority() -> Vec<String> {
    use rustix::process::{Signal, set_parent_process_death_signal};

    let mut refused = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        if let Err(error) = result {
            refused.push(format!("{what}: {error}"));
        }
    };
    // This implies the disk's idle class.
    note("SCHED_IDLE", schedule_when_idle().map_err(|error| error.to_string()));
    // Matters where SCHED_IDLE was refused; elsewhere `top` shows it.
    note("nice 19", setpriority_process(None, 19).map_err(|error| error.to_string()));
    let dies_with_parent = set_parent_process_death_signal(Some(Signal::KILL));
    note("parent death signal", dies_with_parent.map_err(|error| error.to_string()));
    let first_to_go = std::fs::write("/proc/self/oom_score_adj", "1000");
    note("oom_score_adj", first_to_go.map_err(|error| error.to_string()));
    refused
}

#[cfg(target_os = "linux")]
fn schedule_when_idle() -> Result<(), thread_priority::Error> {
    use thread_priority::{
        NormalThreadSchedulePolicy::Idle, ThreadPriority, ThreadSchedulePolicy::Normal, set_thread_priority_and_policy,
        thread_native_id, thread_schedule_policy,
    };

    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, Normal(Idle)).or_else(|error| {
        // The call also sets niceness 0, which is refused to a process started with a higher one.
        if thread_schedule_policy()? == Normal(Idle) { Ok(()) } else { Err(error) }
    })
}

/// Lowers only the niceness on other systems.
#[cfg(not(target_os = "linux"))]
pub(crate) fn lower_priority() -> Vec<String> {
    setpriority_process(None, 19).err().map(|error| format!("nice 19: {error}")).into_iter().collect()
}

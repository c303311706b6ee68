//! How a training process steps back behind everything else on its machine.
//!
//! The process lowers itself as its first act, before it has a second thread: Linux keeps the scheduling class and the
//! niceness per thread, and a new thread inherits those of its maker. It stays in its parent's session, because the
//! kernel's autogroups would otherwise give the new session as much of the processor as the server's.

/// Lowers the calling process's claim on processor and disk, makes it the first to go when memory runs out, and ties
/// its life to its parent's. Call it before any other thread exists.
///
/// Returns what could not be had, for the log: none of it is a reason not to train.
#[cfg(target_os = "linux")]
pub(crate) fn step_back() -> Vec<String> {
    let mut refused = Vec::new();
    let mut note = |what: &str, failed: bool| {
        if failed {
            refused.push(format!("{what}: {}", std::io::Error::last_os_error()));
        }
    };
    // SAFETY: plain system calls on the calling thread; `idle` outlives the call that reads it, and the struct is
    // plain data for which zero is valid.
    unsafe {
        let idle: libc::sched_param = std::mem::zeroed();
        note("SCHED_IDLE", libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const idle) != 0);
        // Counts where SCHED_IDLE was refused, and shows in `top` where it was not.
        note("nice 19", libc::setpriority(libc::PRIO_PROCESS, 0, 19) != 0);
        note("idle disk priority", libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) != 0);
        note("parent death signal", libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0);
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        refused.push(format!("oom_score_adj: {error}"));
    }
    refused
}

/// Elsewhere only the niceness is lowered.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) fn step_back() -> Vec<String> {
    // SAFETY: a plain system call on the calling process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
    if result == 0 { Vec::new() } else { vec![format!("nice 19: {}", std::io::Error::last_os_error())] }
}

/// `IOPRIO_WHO_PROCESS` of linux/ioprio.h.
#[cfg(target_os = "linux")]
const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// Class idle (3) in the upper bits, as linux/ioprio.h packs it.
#[cfg(target_os = "linux")]
const IOPRIO_IDLE: libc::c_int = 3 << 13;

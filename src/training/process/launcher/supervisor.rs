//! The thread that owns a training process, and the three that serve its pipes.

use std::{
    io::{self, BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::oneshot;

use super::{
    judge::{ExitFacts, n_oom_kills},
    running::{WorkerControl, WorkerExit, WorkerOrder},
};
use crate::{
    proto::worker::{Cancel, Failed, Finished, Job, WorkerCommand, WorkerEvent, worker_command, worker_event},
    training::process::frames::{read_frame, write_frame},
};

/// How often a silent process is checked.
const POLL_EVERY: Duration = Duration::from_millis(25);
/// How long the pipes of a dead process are still read.
const DRAIN_FOR: Duration = Duration::from_secs(5);
/// The number of bytes of standard error that are kept.
const TAIL_BYTES: usize = 2048;

type Events = tokio::sync::mpsc::Sender<WorkerEvent>;

/// A message to the supervising thread.
enum Message {
    Order(WorkerOrder),
    /// The process has sent its final event; it should end now.
    Ending(Box<Result<Finished, Failed>>),
    /// Its output has ended, possibly with an error.
    OutputEnd(Option<String>),
    StderrEnd(String),
}

/// Starts the process and the thread that supervises it.
pub(super) fn start(
    command: Command,
    stop_grace: Duration,
    job: Job,
    events: Events,
    exit: oneshot::Sender<WorkerExit>,
) -> io::Result<WorkerControl> {
    let (inbox_in, inbox) = mpsc::channel();
    let (started_in, started) = mpsc::sync_channel(1);
    let control_in = inbox_in.clone();
    let supervise = move || {
        let run_id = job.run_id.clone();
        let supervised = match Supervised::spawn(command, job, events.clone(), inbox_in) {
            Ok(supervised) => {
                let _ = started_in.send(Ok(()));
                supervised
            }
            Err(error) => {
                let _ = started_in.send(Err(error));
                return;
            }
        };
        tracing::info!(run_id, pid = supervised.child.id(), "training process started");
        let ended = supervised.until_end(&inbox, stop_grace);
        tracing::info!(run_id, succeeded = ended.result.is_ok(), "training process ended");
        let last = match ended.result.clone() {
            Ok(finished) => worker_event::Event::Finished(*finished),
            Err(failed) => worker_event::Event::Failed(failed),
        };
        // The receiver may be gone.
        let _ = events.blocking_send(WorkerEvent { event: Some(last) });
        drop(events);
        let _ = exit.send(ended);
    };
    thread::Builder::new().name("train-supervisor".to_owned()).spawn(supervise)?;
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the supervising thread panicked")))?;
    Ok(WorkerControl::new(move |order| {
        // Too late when the thread has ended.
        let _ = control_in.send(Message::Order(order));
    }))
}

struct Supervised {
    child: Child,
    /// The process id until it is reaped, and the id of its process group.
    pid: Pid,
    /// Dropping it closes the process's input.
    commands: mpsc::Sender<WorkerCommand>,
    n_oom_kills_before: u64,
}

impl Supervised {
    fn spawn(mut command: Command, job: Job, events: Events, inbox: mpsc::Sender<Message>) -> io::Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()?;
        let pid = Pid::from_child(&child);
        let (commands, commands_out) = mpsc::channel();
        // This function owns the receiver, so the channel is open.
        let _ = commands.send(WorkerCommand { command: Some(worker_command::Command::Job(job)) });
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let supervised = Self { child, pid, commands, n_oom_kills_before: n_oom_kills() };
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            supervised.abandon();
            return Err(io::Error::other("the process has no pipes"));
        };
        let stderr_inbox = inbox.clone();
        let threads = named("train-stdin", move || write_commands(stdin, &commands_out))
            .and_then(|()| named("train-stdout", move || read_events(stdout, &events, &inbox)))
            .and_then(|()| named("train-stderr", move || read_stderr(stderr, &stderr_inbox)));
        match threads {
            Ok(()) => Ok(supervised),
            Err(error) => {
                supervised.abandon();
                Err(error)
            }
        }
    }

    /// Ends a process that cannot be served.
    fn abandon(mut self) {
        self.kill();
        let _ = self.child.wait();
    }

    /// Kills the process and its children. Its id cannot be reused before it is reaped.
    fn kill(&self) {
        // Fails only when the whole group has ended.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Returns true if it has ended; does not reap it.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    /// Handles messages until the process has ended, and reaps it.
    fn until_end(mut self, inbox: &mpsc::Receiver<Message>, stop_grace: Duration) -> WorkerExit {
        let mut received = Received::default();
        let (mut was_cancelled, mut was_killed, mut was_overdue) = (false, false, false);
        let mut deadline: Option<Instant> = None;
        while !self.has_ended() {
            match inbox.recv_timeout(POLL_EVERY) {
                Ok(Message::Order(WorkerOrder::Kill)) => {
                    was_killed = true;
                    self.kill();
                }
                Ok(Message::Order(WorkerOrder::Cancel)) => {
                    was_cancelled = true;
                    let _ =
                        self.commands.send(WorkerCommand { command: Some(worker_command::Command::Cancel(Cancel {})) });
                    deadline.get_or_insert(Instant::now() + stop_grace);
                }
                Ok(message) => {
                    received.note(message);
                    if received.protocol_error.is_some() {
                        self.kill();
                    }
                    if received.ending.is_some() || received.output_ended {
                        deadline.get_or_insert(Instant::now() + stop_grace);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                // The reading threads and all controls are gone: only the end is left.
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    deadline.get_or_insert(Instant::now() + stop_grace);
                    thread::sleep(POLL_EVERY);
                }
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) && !was_overdue {
                was_overdue = true;
                self.kill();
            }
        }
        // Kills the processes it started too, which then release the pipes.
        self.kill();
        let status = self.child.wait().unwrap_or_else(|error| {
            tracing::error!(%error, "the training process cannot be reaped");
            ExitStatus::default()
        });
        received.drain(inbox);
        let facts = ExitFacts {
            ending: received.ending,
            protocol_error: received.protocol_error,
            status,
            was_cancelled,
            was_killed,
            was_overdue,
            n_oom_kills: n_oom_kills().saturating_sub(self.n_oom_kills_before),
        };
        // A bad exit status is expected after a failure, but not after success.
        if matches!(facts.ending, Some(Ok(_))) && !status.success() {
            tracing::warn!(%status, "the training process failed after its final event; the event counts");
        }
        WorkerExit { result: facts.judge(), stderr_tail: received.stderr_tail.unwrap_or_default() }
    }
}

/// The messages received from the pipes.
#[derive(Default)]
struct Received {
    ending: Option<Result<Finished, Failed>>,
    protocol_error: Option<String>,
    output_ended: bool,
    stderr_tail: Option<String>,
}

impl Received {
    fn note(&mut self, message: Message) {
        match message {
            Message::Order(_) => {}
            Message::Ending(ending) => self.ending = Some(*ending),
            Message::OutputEnd(error) => {
                self.output_ended = true;
                self.protocol_error = error;
            }
            Message::StderrEnd(tail) => self.stderr_tail = Some(tail),
        }
    }

    /// Reads what a dead process has left in its pipes.
    fn drain(&mut self, inbox: &mpsc::Receiver<Message>) {
        let until = Instant::now() + DRAIN_FOR;
        while !self.output_ended || self.stderr_tail.is_none() {
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => self.note(message),
                Err(_) => {
                    tracing::warn!("something still holds the dead training process's pipes");
                    return;
                }
            }
        }
    }
}

fn named(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(|_| ())
}

/// Writes until the process is gone or all senders are dropped.
fn write_commands(mut stdin: ChildStdin, commands: &mpsc::Receiver<WorkerCommand>) {
    while let Ok(command) = commands.recv() {
        if write_frame(&mut stdin, &command).is_err() {
            return;
        }
    }
}

fn read_events(stdout: ChildStdout, events: &Events, inbox: &mpsc::Sender<Message>) {
    let mut stdout = BufReader::new(stdout);
    let error = loop {
        let event = match read_frame::<WorkerEvent>(&mut stdout) {
            Ok(None) => break None,
            Ok(Some(WorkerEvent { event: Some(event) })) => event,
            Ok(Some(WorkerEvent { event: None })) => break Some("the process sent an unknown event".to_owned()),
            Err(error) => break Some(error.to_string()),
        };
        let ending = match event {
            worker_event::Event::Finished(finished) => Ok(finished),
            worker_event::Event::Failed(failed) => Err(failed),
            event @ (worker_event::Event::Data(_) | worker_event::Event::Progress(_)) => {
                // Without a receiver the process is killed anyway.
                let _ = events.blocking_send(WorkerEvent { event: Some(event) });
                continue;
            }
        };
        let _ = inbox.send(Message::Ending(Box::new(ending)));
        // Output after the final event is ignored.
        let _ = io::copy(&mut stdout, &mut io::sink());
        break None;
    };
    let _ = inbox.send(Message::OutputEnd(error));
}

fn read_stderr(stderr: ChildStderr, inbox: &mpsc::Sender<Message>) {
    let mut stderr = BufReader::new(stderr);
    let mut tail = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut stderr).take(TAIL_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        if [" WARN ", " ERROR "].iter().any(|level| text.contains(level)) {
            tracing::warn!(target: "visage::training::worker", "{}", text.trim_end());
        } else {
            tracing::debug!(target: "visage::training::worker", "{}", text.trim_end());
        }
        tail.extend_from_slice(&line);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
    }
    let _ = inbox.send(Message::StderrEnd(String::from_utf8_lossy(&tail).into_owned()));
}

//! Tests every way in which a training process can end, with a shell in its place.

use std::{
    fs,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::running::WorkerExit;
use super::*;
use crate::{
    proto::{
        v1::Progress,
        worker::{Failed, FailureKind, Finished, WorkerCommand, WorkerEvent, worker_command, worker_event::Event},
    },
    training::process::frames::write_frame,
};

/// A shell that runs `script`; `$OUT` is a file with `events` as frames, `$DIR` a folder.
struct Shell {
    dir: TempDir,
    launcher: ProcessLauncher,
}

impl Shell {
    fn new(script: &str, events: impl IntoIterator<Item = Event>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut frames = Vec::new();
        for event in events {
            write_frame(&mut frames, &WorkerEvent { event: Some(event) }).unwrap();
        }
        let out = dir.path().join("out");
        fs::write(&out, frames).unwrap();
        let launcher = ProcessLauncher {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("OUT".into(), out.into()), ("DIR".into(), dir.path().into())],
            // Longer than any test, so that only the cause under test can end the process.
            stop_grace: Duration::from_secs(600),
        };
        Self { dir, launcher }
    }

    fn start(&self) -> RunningWorker {
        self.launcher.start(job()).unwrap()
    }

    async fn exit(&self) -> WorkerExit {
        self.start().wait().await
    }

    /// Returns the reason and the kind of a failed run.
    async fn failure(&self) -> (String, FailureKind) {
        let failed = self.exit().await.result.unwrap_err();
        (failed.message.clone(), failed.kind())
    }
}

fn job() -> Job {
    Job { run_id: "r1".to_owned(), ..Job::default() }
}

fn progress(step: i32) -> Event {
    Event::Progress(Progress { step, ..Progress::default() })
}

fn finished() -> Event {
    Event::Finished(Finished { weights_file: "w".to_owned(), ..Finished::default() })
}

fn failed(kind: FailureKind) -> Event {
    Event::Failed(Failed { kind: kind.into(), message: "its own words".to_owned() })
}

#[tokio::test]
async fn a_run_that_finishes_gives_its_events_in_order_and_its_result() {
    let events = (1..=500).map(progress).chain([finished()]);
    let shell = Shell::new("cat \"$OUT\"; echo noise >&2", events);
    let mut running = shell.start();
    let mut steps = Vec::new();
    let last = loop {
        match running.events.recv().await.unwrap().event {
            Some(Event::Progress(progress)) => steps.push(progress.step),
            last => break last,
        }
    };
    assert_eq!(steps, (1..=500).collect::<Vec<_>>());
    assert_eq!(last, Some(finished()));
    assert_eq!(running.events.recv().await, None);
    let exit = running.wait().await;
    assert_eq!(exit.result.unwrap().weights_file, "w");
    assert_eq!(exit.stderr_tail, "noise\n");
}

#[tokio::test]
async fn the_job_arrives_on_standard_input() {
    let mut expected = Vec::new();
    let command = WorkerCommand { command: Some(worker_command::Command::Job(job())) };
    write_frame(&mut expected, &command).unwrap();
    let script = format!("head -c {} > \"$DIR/job\"; cat \"$OUT\"", expected.len());
    let shell = Shell::new(&script, [finished()]);
    assert!(shell.exit().await.result.is_ok());
    assert_eq!(fs::read(shell.dir.path().join("job")).unwrap(), expected);
}

#[tokio::test]
async fn its_own_reason_counts_however_it_ends() {
    for script in ["cat \"$OUT\"", "cat \"$OUT\"; exit 3", "cat \"$OUT\"; echo more; kill -9 $$"] {
        let (message, kind) = Shell::new(script, [progress(1), failed(FailureKind::Diverged)]).failure().await;
        assert_eq!((message.as_str(), kind), ("its own words", FailureKind::Diverged), "{script}");
    }
    assert!(Shell::new("cat \"$OUT\"; kill -SEGV $$", [finished()]).exit().await.result.is_ok());
}

#[tokio::test]
async fn a_death_without_a_word_has_a_precise_reason() {
    for (script, reason) in [
        ("exit 3", "exit code 3"),
        ("cat \"$OUT\"; exit 101", "exit code 101"),
        ("exit 0", "without a result"),
        ("kill -SEGV $$", "signal 11 (bad memory access)"),
        ("kill -ABRT $$", "signal 6 (aborted itself)"),
    ] {
        let (message, kind) = Shell::new(script, [progress(1)]).failure().await;
        assert!(message.contains(reason) && kind == FailureKind::Internal, "{script}: {message}");
    }
    let mut running = Shell::new("kill -9 $$", []).start();
    let Some(Event::Failed(last)) = running.events.recv().await.unwrap().event else { panic!("no last word") };
    assert!(last.message.contains("killed by signal 9"), "{}", last.message);
    assert_eq!(running.wait().await.result, Err(last));
}

#[tokio::test]
async fn the_end_of_what_it_wrote_to_standard_error_is_kept() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i >&2; i=$((i+1)); done; printf last >&2; exit 1";
    let exit = Shell::new(script, []).exit().await;
    assert!(exit.stderr_tail.ends_with("line 1999\nlast"), "{}", exit.stderr_tail);
    assert!(exit.stderr_tail.len() <= 2048);
}

#[tokio::test]
async fn garbage_ends_the_run_and_the_process() {
    for script in [
        "yes this is no frame | head -c 5000; sleep 1000",
        "printf '\\377\\377\\377\\377\\377\\377'; sleep 1000",
        "printf '\\377\\377\\377\\177'; sleep 1000",
        "printf '\\000'; sleep 1000",
        "head -c 5 \"$OUT\"",
    ] {
        let events = [Event::Progress(Progress { learning_rate: 1.0, loss: 1.0, ..Progress::default() })];
        let (message, kind) = Shell::new(script, events).failure().await;
        assert_eq!(kind, FailureKind::Internal, "{script}: {message}");
        assert!(message.contains("pipe") || message.contains("unknown event"), "{script}: {message}");
    }
}

#[tokio::test]
async fn a_cancelled_process_has_the_last_word() {
    // Reads the job, waits for one more byte, and obeys.
    let command = WorkerCommand { command: Some(worker_command::Command::Job(job())) };
    let n_bytes = prost::Message::encode_length_delimited_to_vec(&command).len();
    let script = format!("head -c {n_bytes} > /dev/null; head -c 1 > /dev/null; cat \"$OUT\"");
    let shell = Shell::new(&script, [failed(FailureKind::Cancelled)]);
    let mut running = shell.start();
    running.cancel();
    let failed = running.wait().await.result.unwrap_err();
    assert_eq!((failed.message.as_str(), failed.kind()), ("its own words", FailureKind::Cancelled));
}

#[tokio::test]
async fn a_process_that_does_not_stop_is_killed() {
    let mut shell = Shell::new("trap '' INT TERM; sleep 1000", []);
    shell.launcher.stop_grace = Duration::from_millis(50);
    let mut running = shell.start();
    running.cancel();
    let failed = running.wait().await.result.unwrap_err();
    assert_eq!(failed.kind(), FailureKind::Cancelled);
    assert!(failed.message.contains("did not stop in time"), "{}", failed.message);
}

#[tokio::test]
async fn a_process_that_finishes_but_does_not_end_is_killed_and_has_finished() {
    let mut shell = Shell::new("cat \"$OUT\"; sleep 1000", [finished()]);
    shell.launcher.stop_grace = Duration::from_millis(50);
    assert!(shell.exit().await.result.is_ok());
}

#[tokio::test]
async fn a_kill_on_request_is_a_cancelled_run() {
    let mut running = Shell::new("sleep 1000", []).start();
    running.kill();
    assert_eq!(running.wait().await.result.unwrap_err().kind(), FailureKind::Cancelled);
}

#[tokio::test]
async fn what_the_process_started_goes_with_it() {
    let shell = Shell::new("sleep 1000 & echo $! > \"$DIR/pid\"; exit 4", []);
    let (message, _) = shell.failure().await;
    assert!(message.contains("exit code 4"), "{message}");
    until_gone(&shell).await;
}

#[tokio::test]
async fn dropping_it_kills_and_reaps_the_process() {
    let shell = Shell::new("echo $$ > \"$DIR/new\"; mv \"$DIR/new\" \"$DIR/pid\"; exec sleep 1000", []);
    let running = shell.start();
    while !shell.dir.path().join("pid").exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(running);
    until_gone(&shell).await;
}

/// Waits until the process whose id is in `$DIR/pid` is gone, or dead and left to the system's reaper.
async fn until_gone(shell: &Shell) {
    let pid = fs::read_to_string(shell.dir.path().join("pid")).unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let lives = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).is_ok_and(|stat| !stat.contains(") Z "));
    while lives() {
        assert!(Instant::now() < patience, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_with_its_name() {
    let mut shell = Shell::new("", []);
    shell.launcher.program = "/nowhere/visage".into();
    let error = shell.launcher.start(job()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/visage"), "{error}");
}

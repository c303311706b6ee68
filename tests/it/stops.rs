//! Tests stops at any moment: an orderly end, within the drain time, without false statements in the log.
//!
//! `VISAGE_STOPS=200 cargo test --test it stops::` tests that many random moments; the default is a dozen.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{quick_recipe, server::Home, utkface};

/// Far below the tests' longest wait, so that a timely end can be recognised.
const DRAIN: Duration = Duration::from_secs(20);

fn home() -> Home {
    let weights = std::env::var_os("VISAGE_WEIGHTS");
    let published = weights.map_or_else(String::new, |dir| format!("\n[models]\npublished_dir = {dir:?}\n"));
    Home::new(&format!("{published}\n[server]\ndrain_timeout_s = {}\n", DRAIN.as_secs()))
}

/// Starts a server and reads its first line; from then on it handles every signal.
fn start(home: &Home, listen: &str) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let log = fs::File::create(home.path("log")).unwrap();
    let mut child = home
        .command(&["serve", "--listen", listen])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .process_group(0)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("http://"), "{line}{}", home.log());
    let url = line.split_whitespace().last().unwrap().to_owned();
    (child, output, url)
}

/// Starts a server through a tool that sets its signals and session, then executes it.
fn start_behind(tool: &[&str], home: &Home, stdin: Stdio) -> (Child, BufReader<std::process::ChildStdout>) {
    let server = home.command(&["serve", "--listen", "127.0.0.1:0"]);
    let mut child = Command::new(tool[0])
        .args(&tool[1..])
        .arg(server.get_program())
        .args(server.get_args())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(fs::File::create(home.path("log")).unwrap())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut String::new()).unwrap();
    (child, output)
}

fn signal(child: &Child, signal: Signal) {
    // The child was not waited for, so its pid has not been reused.
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn ended(child: &mut Child) -> Option<ExitStatus> {
    let since = Instant::now();
    while since.elapsed() < DRAIN + Duration::from_secs(5) {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    None
}

/// The end is orderly, and the log has no warnings or errors.
fn assert_orderly(home: &Home, child: &mut Child, when: &str) {
    let status = ended(child);
    let log = home.log();
    assert!(status.is_some_and(|status| status.success()), "{when}: {status:?}\n{log}");
    // Except a run's warnings about its data, and that the server's stop ended it.
    let is_of_a_run =
        |line: &str| line.contains("training::worker") || line.contains("the server stopped while the run");
    let is_complaint = |line: &&str| (line.contains(" WARN ") || line.contains(" ERROR ")) && !is_of_a_run(line);
    let complaints: Vec<_> = log.lines().filter(is_complaint).collect();
    assert!(complaints.is_empty(), "{when}: {complaints:?}\n{log}");
}

#[test]
fn a_stop_at_any_moment_of_a_start_is_orderly() {
    let n_stops = std::env::var("VISAGE_STOPS").map_or(12, |n| n.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(std::process::id().into());
    let mut home = home();
    for stop in 0..n_stops {
        // Half of the starts register the weights, half only load them.
        if stop % 2 == 0 {
            home = self::home();
        }
        let (mut child, _output, _) = start(&home, "127.0.0.1:0");
        let after = Duration::from_millis(rng.random_range(0..6_000));
        std::thread::sleep(after);
        signal(&child, if stop % 3 == 0 { Signal::INT } else { Signal::TERM });
        assert_orderly(&home, &mut child, &format!("stop {stop}, {after:?} after its first line"));
    }
}

#[tokio::test]
async fn whoever_only_listens_does_not_hold_a_stop_up() {
    let home = home();
    let (mut child, mut output, url) = start(&home, "127.0.0.1:0");
    let mut ready = String::new();
    output.read_line(&mut ready).unwrap();
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: String::new() };
    let mut states = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status, 1);
    signal(&child, Signal::TERM);
    let mut statuses = Vec::new();
    let end = loop {
        match states.message().await {
            Ok(Some(state)) => statuses.push(state.status),
            end => break end,
        }
    };
    assert_eq!((statuses, end.unwrap_err().code()), (vec![2], tonic::Code::Unavailable));
    tokio::task::spawn_blocking(move || assert_orderly(&home, &mut child, "with a health watch")).await.unwrap();
}

#[tokio::test]
async fn whoever_listens_to_a_server_that_opens_does_not_hold_a_stop_up() {
    let home = home();
    let (mut child, _output, url) = start(&home, "127.0.0.1:0");
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut states = HealthClient::new(channel).watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let mut statuses = vec![states.message().await.unwrap().unwrap().status];
    signal(&child, Signal::TERM);
    let end = loop {
        match states.message().await {
            Ok(Some(state)) => statuses.push(state.status),
            end => break end,
        }
    };
    assert_eq!((statuses.last(), end.unwrap_err().code()), (Some(&2), tonic::Code::Unavailable));
    tokio::task::spawn_blocking(move || assert_orderly(&home, &mut child, "while it opened")).await.unwrap();
}

#[tokio::test]
async fn a_stop_while_a_run_trains_is_orderly() {
    let home = Home::trained(&format!("\n[server]\ndrain_timeout_s = {}\n", DRAIN.as_secs())).await;
    for wait_ms in [0, 400, 1_500] {
        let (mut child, mut output, url) = start(&home, "127.0.0.1:0");
        let mut ready = String::new();
        output.read_line(&mut ready).unwrap();
        let mut clients = crate::support::Clients::connect(&url).await;
        let request = visage::proto::v1::TrainRequest {
            model: "models/face".to_owned(),
            recipe: Some(quick_recipe()),
            sources: vec![utkface(&home.path("photos"))],
            request_id: String::new(),
        };
        clients.visage.train(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        signal(&child, Signal::TERM);
        // It blocks the client, so that its connection stays open but unresponsive.
        assert_orderly(&home, &mut child, &format!("{wait_ms} ms after a run began"));
    }
}

/// A request that never ends keeps the drain after the first interrupt waiting.
#[tokio::test]
async fn a_second_interrupt_ends_at_once() {
    let home = home();
    let (mut child, mut output, url) = start(&home, "127.0.0.1:0");
    output.read_line(&mut String::new()).unwrap();
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut endless = tonic::client::Grpc::new(channel.clone());
    endless.ready().await.unwrap();
    let request = tonic::Request::new(futures::stream::pending::<visage::proto::v1::PredictRequest>());
    let path = http::uri::PathAndQuery::from_static("/visage.v1.VisageService/Predict");
    let codec = tonic_prost::ProstCodec::<_, visage::proto::v1::PredictResponse>::default();
    let _call = tokio::spawn(async move { endless.client_streaming(request, path, codec).await.map(drop) });
    // The requests of a connection arrive in order: once a later one is answered, this one is in progress.
    tokio::task::yield_now().await;
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    signal(&child, Signal::INT);
    while !home.log().contains("draining") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&child, Signal::INT);
    assert_eq!(ended(&mut child).unwrap().code(), Some(130));
}

#[test]
fn a_daemon_goes_on_after_a_hangup_and_says_that_it_does() {
    let home = home();
    // Without a controlling terminal the child is a daemon; the tests themselves may run under nohup.
    let (mut child, output) = start_behind(&["env", "--default-signal=HUP", "setsid"], &home, Stdio::null());
    signal(&child, Signal::HUP);
    assert!(output.lines().next().unwrap().unwrap().starts_with("ready"));
    assert!(home.log().contains("SIGHUP changes nothing"), "{}", home.log());
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).unwrap().success());
}

#[test]
fn a_server_under_nohup_does_not_hear_a_hangup() {
    let home = home();
    let (mut child, output) = start_behind(&["env", "--ignore-signal=HUP"], &home, Stdio::null());
    signal(&child, Signal::HUP);
    assert!(output.lines().next().unwrap().unwrap().starts_with("ready"));
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).unwrap().success());
    assert!(!home.log().contains("SIGHUP"), "{}", home.log());
}

#[test]
fn a_server_whose_terminal_is_gone_drains() {
    let home = home();
    // The child must not inherit this end, or the terminal would never close.
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&terminal).unwrap();
    let server = ioctl_tiocgptpeer(&terminal, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    let tool = ["env", "--default-signal=HUP", "setsid", "--ctty"];
    let (mut child, _output) = start_behind(&tool, &home, server.into());
    drop(terminal);
    assert!(ended(&mut child).is_some_and(|status| status.success()), "{}", home.log());
    assert!(home.log().contains("the terminal is gone"), "{}", home.log());
}

#[test]
fn a_server_on_ipv6_says_that_it_is_ready_and_where() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let home = home();
    let (mut child, mut output, url) = start(&home, "[::1]:0");
    let mut ready = String::new();
    output.read_line(&mut ready).unwrap();
    assert!(ready.starts_with("ready"), "{ready}");
    let mut next = String::new();
    output.read_line(&mut next).unwrap();
    let address = url.strip_prefix("http://").unwrap();
    assert!(address.starts_with("[::1]:") && next.contains(&format!("--server {address}")), "{url} {next}");
    signal(&child, Signal::TERM);
    assert!(ended(&mut child).unwrap().success());
}

#[test]
fn a_data_folder_whose_name_is_no_text_is_refused_and_no_other_made() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&odd).unwrap();
    let by_flag = |args: &[&str]| {
        let mut command = std::process::Command::new(crate::support::server::VISAGE);
        command.args(args).arg("--data-dir").arg(&odd);
        command
    };
    let mut by_variable = std::process::Command::new(crate::support::server::VISAGE);
    by_variable.arg("serve").env("VISAGE_DATA_DIR", &odd);
    let tried = [by_flag(&["serve"]), by_flag(&["doctor"]), by_flag(&["export", "x.visage"]), by_variable];
    for mut command in tried {
        let output = command.current_dir(dir.path()).stdin(Stdio::null()).output().unwrap();
        let mut printed = String::new();
        output.stderr.as_slice().read_to_string(&mut printed).unwrap();
        assert!(!output.status.success() && printed.contains("not UTF-8"), "{command:?}: {printed}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{command:?}");
    }
}

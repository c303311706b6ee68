//! Runs `visage serve` as a child process on its own data folder.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use visage::proto::v1;

use super::{Clients, faces, quick_recipe, utkface};

/// The program under test.
pub(crate) const VISAGE: &str = env!("CARGO_BIN_EXE_visage");

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
}

/// A data folder with its configuration file.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
}

impl Home {
    /// Makes an empty home; `extra` is additional configuration.
    pub(crate) fn new(extra: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(home.path("photos")).unwrap();
        home.configure(extra);
        home
    }

    /// Makes a home whose server has `models/face` with one version, and its training faces under `photos`.
    pub(crate) async fn trained(extra: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        copy(&template().await.join("data"), &home.path("data"));
        copy(&template().await.join("photos"), &home.path("photos"));
        home.configure(extra);
        home
    }

    pub(crate) fn configure(&self, extra: &str) {
        let data = self.path("data");
        let photos = self.path("photos");
        // `extra` has whole sections, so the two settings that every test needs come first.
        let text = format!("data_dir = {data:?}\n\n[training]\nroots = [{photos:?}]\n{extra}");
        fs::write(self.path("visage.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(VISAGE);
        command.arg("--config").arg(self.path("visage.toml")).args(args);
        command
    }

    /// Runs a command; returns its exit code and all output.
    pub(crate) fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.command(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Starts a server and waits until it has loaded the needed versions.
    pub(crate) async fn serve(&self) -> Server {
        let server = self.start();
        server.until_ready().await;
        server
    }

    /// Starts a server and waits until it listens.
    pub(crate) fn start(&self) -> Server {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut child =
            self.command(&["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .by_ref()
            .map(|line| line.unwrap())
            .find_map(|line| line.split_whitespace().find(|word| word.starts_with("http://")).map(str::to_owned));
        let Some(url) = url else {
            let _ = child.wait();
            panic!("the server ended at start:\n{}", self.log());
        };
        // Reads the pipe to its end, so that the server never blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, url }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Server {
    async fn until_ready(&self) {
        let started = Instant::now();
        loop {
            if let Ok(channel) = tonic::transport::Endpoint::from_shared(self.url.clone()).unwrap().connect().await {
                let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
                // The whole server is unhealthy while a champion is broken, which some tests need.
                let request = tonic_health::pb::HealthCheckRequest { service: "visage.v1.ModelService".to_owned() };
                if health.check(request).await.is_ok_and(|r| r.into_inner().status == 1) {
                    return;
                }
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{} is not ready after a minute", self.url);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn clients(&self) -> Clients {
        Clients::connect(&self.url).await
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits for the orderly end.
    pub(crate) fn stop(mut self) -> std::process::ExitStatus {
        let killed = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        self.child.wait().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the data folder of a server with one trained version, made once for all tests.
async fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    static MAKING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = MAKING.lock().await;
    if TEMPLATE.get().is_none() {
        let home = Home::new("");
        faces::write_utkface(&home.path("photos"), 0, 96);
        let server = home.serve().await;
        let mut clients = server.clients().await;
        let request = v1::TrainRequest {
            model: "models/face".to_owned(),
            recipe: Some(quick_recipe()),
            sources: vec![utkface(&home.path("photos"))],
            request_id: String::new(),
        };
        let operation = clients.visage.train(request).await.unwrap().into_inner();
        let run = clients.finish(&operation.name.replace("operations/", "trainingRuns/")).await;
        assert_eq!(run.state(), v1::RunState::Succeeded, "{run:?}\n{}", home.log());
        assert!(server.stop().success());
        let _ = TEMPLATE.set(home.dir);
    }
    TEMPLATE.get().unwrap().path()
}

/// Returns the files of a folder and its subfolders, in order.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

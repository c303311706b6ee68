//! Runs the pages' tours literally: the blocks marked `sh run`, with a server on an empty data folder.

use std::{path::Path, process::Command};

use crate::support::server::{Home, VISAGE};

/// Runs a page's blocks in their own folder, which has the repository's fixtures.
async fn run(page: &str) -> String {
    let home = Home::new("");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The tours make their photos in the current folder, so it is the server's only root.
    let here = home.path("photos");
    std::os::unix::fs::symlink(root.join("tests"), here.join("tests")).unwrap();
    let script =
        Command::new("python3").arg(root.join("docs/check.py")).arg("--commands").arg(root.join(page)).output();
    let script = script.unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let server = home.serve().await;
    let programs = Path::new(VISAGE).parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let url = server.url.clone();
    let output = tokio::task::spawn_blocking(move || {
        let script = String::from_utf8(script.stdout).unwrap();
        let mut bash = Command::new("bash");
        bash.arg("-c").arg(script).current_dir(here).env("PATH", path).env("VISAGE_SERVER", url);
        bash.output().unwrap()
    })
    .await
    .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{page}: {printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(server.stop().success());
    printed
}

#[tokio::test]
async fn the_readme_does_as_it_says() {
    let printed = run("README.md").await;
    assert!(printed.contains("models/tour/versions/1"), "{printed}");
    assert!(printed.contains("1.0000  collections/policies/faces/portrait"), "{printed}");
}

#[tokio::test]
async fn the_page_on_the_command_line_does_as_it_says() {
    let printed = run("docs/cli.md").await;
    assert!(printed.contains("models/tour@champion is models/tour/versions/2"), "{printed}");
    assert!(printed.contains("\"modelVersion\":\"models/tour/versions/2\""), "{printed}");
    assert!(printed.contains("1.0000  collections/policies/faces/again"), "{printed}");
}

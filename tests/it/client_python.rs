//! Tests the Python client with a real server.

use std::process::Command;

use crate::support::server::Home;

#[tokio::test]
async fn the_python_client_calls_every_service() {
    let python = std::env::var("VISAGE_PYTHON")
        .expect("VISAGE_PYTHON names no Python with the client's packages; run the tests by `make test`");
    let home = Home::trained("").await;
    let server = home.serve().await;
    let address = server.url.trim_start_matches("http://").to_owned();
    let photos = home.path("photos");
    let root = env!("CARGO_MANIFEST_DIR");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(python)
            .arg(format!("{root}/clients/python/tests/smoke.py"))
            .arg(address)
            .arg("--photo")
            .arg(format!("{root}/tests/fixtures/portrait.jpg"))
            .arg("--data")
            .arg(photos)
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}");
}

//! The cache folder of weights: gone, damaged, in nobody's way, and cut while a server reads it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use visage::proto::v1;

use crate::support::server::{Home, Server};

const PORTRAIT: &[u8] = include_bytes!("../fixtures/portrait.jpg");

async fn answer(server: &Server) -> Vec<v1::Prediction> {
    let request = v1::PredictRequest { image: PORTRAIT.into(), ..Default::default() };
    server.clients().await.visage.predict(request).await.unwrap().into_inner().predictions
}

fn folder(home: &Home) -> PathBuf {
    home.path("data").join("cache").join("blobs")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Leaves a part of a file, where it is still there.
fn cut(file: &Path, n_bytes: u64) {
    let _ = fs::set_permissions(file, fs::Permissions::from_mode(0o600));
    if let Ok(file) = fs::File::options().write(true).open(file) {
        file.set_len(n_bytes).unwrap();
    }
}

#[tokio::test]
async fn the_cache_folder_may_be_lost_or_damaged_at_any_time() {
    let home = Home::trained("").await;
    // As a server without this folder left it.
    let _ = fs::remove_dir_all(home.path("data").join("cache"));
    let server = home.serve().await;
    let first = answer(&server).await;
    let made = files(&folder(&home));
    assert!(!first.is_empty() && made.len() > 10, "{made:?}");
    assert_eq!(fs::metadata(folder(&home)).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(server.stop().success());
    assert!(!home.log().contains("cache"), "{}", home.log());

    for damage in ["cut", "swapped", "gone"] {
        match damage {
            "cut" => made.iter().for_each(|file| cut(file, 70_000)),
            "swapped" => made.windows(2).for_each(|files| fs::rename(&files[0], &files[1]).unwrap()),
            _ => fs::remove_dir_all(folder(&home)).unwrap(),
        }
        let unfinished = folder(&home).join("unfinished-1");
        let _ = fs::write(&unfinished, b"");
        let server = home.serve().await;
        assert_eq!(answer(&server).await, first, "{damage}");
        assert_eq!(files(&folder(&home)), made, "{damage}");
        assert!(server.stop().success());
    }
    let named = |file: &PathBuf| home.log().contains(&file.display().to_string());
    assert!(made.iter().all(named), "{}", home.log());

    // The commands on a data folder do not use the cache.
    let backup = home.path("backup.visage");
    assert!(home.command(&["export", backup.to_str().unwrap()]).output().unwrap().status.success());
    assert!(home.command(&["doctor"]).output().unwrap().status.success());
    let restored = Home::new("");
    assert!(restored.command(&["import", backup.to_str().unwrap()]).output().unwrap().status.success());
    assert!(!restored.path("data").join("cache").exists());
}

#[tokio::test]
async fn without_a_cache_folder_the_store_serves() {
    let home = Home::trained("").await;
    let _ = fs::remove_dir_all(home.path("data").join("cache"));
    fs::write(home.path("data").join("cache"), b"in the way").unwrap();
    let server = home.serve().await;
    assert!(!answer(&server).await.is_empty());
    assert!(server.stop().success());
    assert_eq!(home.log().matches("no files can be made in the cache folder").count(), 1, "{}", home.log());
}

#[tokio::test]
async fn files_cut_while_a_server_loads_end_nothing_and_change_no_answer() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let first = answer(&server).await;
    assert!(server.stop().success());

    let cache = folder(&home);
    let cutting = std::thread::spawn(move || {
        let started = Instant::now();
        for n_left in (0..).map(|i| i * 37_777 % 200_000) {
            files(&cache).iter().for_each(|file| cut(file, n_left));
            if started.elapsed() > Duration::from_secs(3) {
                return;
            }
        }
    });
    let server = home.serve().await;
    assert_eq!(answer(&server).await, first);
    cutting.join().unwrap();
    assert!(server.stop().success());
    assert!(home.log().contains("a cache file is unusable"), "no cut met the server");
}

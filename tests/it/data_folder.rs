//! Tests the commands that open a data folder themselves: on folders that are intact, damaged, newer, locked or
//! missing.

use std::fs;

use visage::proto::v1;

use crate::support::{
    server::{Home, copy, files},
    vector_enrolment,
};

/// Makes a home whose stopped server has a model, a collection and some faces.
async fn filled() -> Home {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = c.create_collection("policies").await;
    for i in 0..50 {
        let mut values = vec![1.0; 16];
        values[i % 16] = i as f32;
        c.faces.enroll_face(vector_enrolment(&collection, &format!("f{i}"), values)).await.unwrap();
    }
    assert!(server.stop().success());
    home
}

#[tokio::test]
async fn a_backup_comes_back_whole_and_serves() {
    let home = filled().await;
    let backup = home.path("backup.visage");
    let backup = backup.to_str().unwrap();
    assert_eq!(home.run(&["export", backup]).0, Some(0));
    let (code, text) = home.run(&["export", backup]);
    assert!(code == Some(1) && text.contains("already exists"), "{text}");

    let restored = Home::new("");
    assert_eq!(restored.run(&["import", backup]).0, Some(0));
    let (code, text) = restored.run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(code == Some(0) && report["findings"] == serde_json::json!([]), "{text}");
    assert_eq!(report["entries"]["Faces"], 50, "{text}");
    let server = restored.serve().await;
    let mut c = server.clients().await;
    let name = "collections/policies/faces/f49".to_owned();
    assert_eq!(c.faces.get_face(v1::GetFaceRequest { name: name.clone() }).await.unwrap().into_inner().name, name);
    assert!(server.stop().success());

    let (code, text) = restored.run(&["import", backup]);
    assert!(code == Some(1) && text.contains("empty"), "an import over what is there: {text}");
    let mut bytes = fs::read(backup).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(backup, bytes).unwrap();
    let other = Home::new("");
    let (code, text) = other.run(&["import", backup]);
    assert!(code == Some(1) && !text.contains("panicked"), "{text}");
    assert!(!other.path("data").join("store").join("db").exists(), "nothing is written before all is verified");
}

#[tokio::test]
async fn a_folder_in_use_and_one_that_is_not_there_are_told_apart() {
    let home = Home::trained("").await;
    let (code, text) = home.run(&["doctor", "--data-dir", "/nonexistent/visage"]);
    assert!(code == Some(1) && text.contains("/nonexistent/visage"), "{text}");
    let server = home.serve().await;
    for command in ["doctor", "migrate"] {
        let (code, text) = home.run(&[command]);
        assert!(code == Some(1) && text.contains("another process"), "{command}: {text}");
    }
    let (code, text) = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && text.contains("another process"), "{text}");
    assert!(server.stop().success());
}

/// A damaged store serves everything or reports the damage; it never panics.
#[tokio::test]
async fn thirty_flipped_bytes_one_at_a_time_are_named_or_harmless() {
    let home = filled().await;
    let export = |home: &Home| {
        let file = home.path("all.visage");
        let (code, text) = home.run(&["export", file.to_str().unwrap()]);
        (code, text, fs::read(file).unwrap_or_default())
    };
    let (_, _, whole) = export(&home);
    let store = home.path("data").join("store");
    let largest = files(&store).into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let length = fs::metadata(&largest).unwrap().len() as usize;
    let name = largest.strip_prefix(&store).unwrap().to_owned();
    let mut n_named = 0;
    for i in 0..30 {
        let damaged = Home::new("");
        copy(&home.path("data"), &damaged.path("data"));
        let file = damaged.path("data").join("store").join(&name);
        let mut bytes = fs::read(&file).unwrap();
        bytes[(i * length / 30 + i * 613) % length] ^= 0x5a;
        fs::write(&file, bytes).unwrap();
        let (code, text) = damaged.run(&["doctor"]);
        assert!(!text.contains("panicked"), "{text}");
        match code {
            Some(0) => {
                let (code, text, found) = export(&damaged);
                assert!(code == Some(0) && found == whole, "flip {i}: something is gone and nobody says so: {text}");
            }
            Some(1) => {
                assert!(text.contains("damaged:"), "flip {i} is not named: {text}");
                n_named += 1;
            }
            other => panic!("flip {i}: {other:?}: {text}"),
        }
    }
    assert!(n_named > 0, "no flip was seen at all");
}

/// All sectors of the engine's file read as zeros: it is built again, and says so.
#[tokio::test]
async fn an_engine_that_is_lost_is_built_again() {
    let home = filled().await;
    let store = home.path("data").join("store");
    let log = store.join("db").join("db");
    fs::write(&log, vec![0; fs::metadata(&log).unwrap().len() as usize]).unwrap();
    for _ in 0..2 {
        let server = home.serve().await;
        let mut c = server.clients().await;
        assert!(!c.is_serving("visage.store").await);
        let list =
            v1::ListFacesRequest { parent: "collections/policies".to_owned(), page_size: 100, ..Default::default() };
        assert_eq!(c.faces.list_faces(list).await.unwrap().into_inner().faces.len(), 50);
        let search = v1::FindSimilarRequest {
            collection: "collections/policies".to_owned(),
            query: Some(v1::find_similar_request::Query::Face("collections/policies/faces/f7".to_owned())),
            k: 100,
            ..Default::default()
        };
        assert_eq!(c.visage.find_similar(search).await.unwrap().into_inner().matches.len(), 49);
        assert_eq!(c.models.list_models(v1::ListModelsRequest::default()).await.unwrap().into_inner().models.len(), 1);
        assert!(server.stop().success());
    }
    let (code, text) = home.run(&["doctor"]);
    assert!(code == Some(1) && text.contains("built again") && text.contains("50 of 50 faces"), "{text}");
    fs::remove_file(store.join("recovered")).unwrap();
    fs::remove_dir_all(store.join("damaged-1")).unwrap();
    let server = home.serve().await;
    assert!(server.clients().await.is_serving("visage.store").await, "the loss was dealt with");
}

#[tokio::test]
async fn a_store_cut_short_does_not_serve_and_says_why() {
    let home = filled().await;
    let store = home.path("data").join("store");
    let largest = files(&store).into_iter().max_by_key(|file| fs::metadata(file).unwrap().len()).unwrap();
    let bytes = fs::read(&largest).unwrap();
    fs::write(&largest, &bytes[..bytes.len() / 2]).unwrap();
    for command in [&["doctor"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        let (code, text) = home.run(command);
        assert!(code == Some(1) && text.contains("damaged:") && !text.contains("panicked"), "{command:?}: {text}");
    }
}

/// What is altered below the engine is named one by one, and everything else is served. While there are segment files,
/// the altered faces are served from them.
#[tokio::test]
async fn a_thousand_altered_faces_are_named_and_the_others_are_served() {
    const N_FACES: usize = 1_500;
    const N_ALTERED: usize = 1_000;
    let home = filled().await;
    let id = |i: usize| format!("many-{i:04}");
    {
        let server = home.serve().await;
        let mut c = server.clients().await;
        let requests = (0..N_FACES).map(|i| {
            let values = (0..16).map(|at| if at == i % 16 { 1.0 } else { i as f32 / 1e4 }).collect();
            vector_enrolment("collections/policies", &id(i), values)
        });
        c.enroll_all(requests).await;
        assert!(server.stop().success());
    }
    {
        let db = sled::open(home.path("data").join("store").join("db")).unwrap();
        // Of some faces the facts are altered, of others the vector. The first fifty faces were enrolled before.
        let rows = |table: u8| -> Vec<_> { db.scan_prefix([table]).map(Result::unwrap).skip(50).collect() };
        let (facts, vectors) = (rows(7), rows(12));
        assert_eq!((facts.len(), vectors.len()), (N_FACES, N_FACES));
        for i in 0..N_ALTERED {
            let (key, value) = if i % 2 == 0 { &facts[i] } else { &vectors[i] };
            let mut altered = value.to_vec();
            let at = i % altered.len();
            altered[at] ^= 1 << (i % 8);
            db.insert(key, altered).unwrap();
        }
        db.flush().unwrap();
    }
    let (code, text) = home.run(&["doctor"]);
    assert_eq!(code, Some(1), "{text}");
    let is_named = |i: &usize| text.contains(&format!("collections/policies/faces/{} (", id(*i)));
    let (altered, whole): (Vec<_>, Vec<_>) = (0..N_FACES).partition(is_named);
    assert_eq!(altered.len(), N_ALTERED, "{text}");
    let search = v1::FindSimilarRequest {
        collection: "collections/policies".to_owned(),
        query: Some(v1::find_similar_request::Query::Face(format!("collections/policies/faces/{}", id(whole[0])))),
        k: 1_000,
        exact: true,
        ..Default::default()
    };
    {
        let server = home.serve().await;
        let mut c = server.clients().await;
        for i in [altered[0], altered[1]] {
            let query = v1::find_similar_request::Query::Face(format!("collections/policies/faces/{}", id(i)));
            let search = v1::FindSimilarRequest { query: Some(query), ..search.clone() };
            assert_eq!(c.visage.find_similar(search).await.unwrap().into_inner().matches.len(), 1_000, "face {i}");
        }
        assert!(server.stop().success());
        fs::remove_dir_all(home.path("data").join("store").join("segments")).unwrap();
    }
    let server = home.serve().await;
    let mut c = server.clients().await;
    assert!(!c.is_serving("visage.store").await, "the store is damaged");
    // All others: those that were not altered, and the fifty enrolled before.
    let found = c.visage.find_similar(search).await.unwrap().into_inner().matches;
    assert_eq!(found.len(), N_FACES - N_ALTERED - 1 + 50);
    let mut expected: Vec<_> = whole[1..].iter().map(|i| id(*i)).chain((0..50).map(|i| format!("f{i}"))).collect();
    let mut names: Vec<_> = found.into_iter().map(|found| found.face.unwrap().name).collect();
    expected.sort();
    names.sort();
    assert_eq!(names, expected.iter().map(|id| format!("collections/policies/faces/{id}")).collect::<Vec<_>>());
    // A damaged face can be deleted, and enrolled anew.
    for i in &altered[..10] {
        let name = format!("collections/policies/faces/{}", id(*i));
        c.faces.delete_face(v1::DeleteFaceRequest { name: name.clone() }).await.unwrap();
        let again = vector_enrolment("collections/policies", &id(*i), vec![1.0; 16]);
        assert_eq!(c.faces.enroll_face(again).await.unwrap().into_inner().name, name);
    }
    assert!(server.stop().success());
}

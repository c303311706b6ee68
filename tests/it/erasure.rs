//! Tests that what was deleted can be found nowhere: in no file, in no memory of the server, and in no restored backup.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tonic::Code;
use visage::proto::v1;

use crate::support::{
    Clients, reason,
    server::{Home, Server, copy, files},
    vector_enrolment,
};

const DIMENSIONS: usize = 16;

/// Bytes of a vector that nothing else has by chance.
const WINDOW: usize = 16;

/// The number of faces that are erased, of a hundred times as many: a few in every run of the tests, more with
/// `VISAGE_ERASED=1000`.
fn n_erased() -> usize {
    std::env::var("VISAGE_ERASED").map_or(40, |text| text.parse().expect("VISAGE_ERASED is a number"))
}

fn request(collection: &str, i: usize) -> v1::EnrollFaceRequest {
    let mut rng = ChaCha8Rng::seed_from_u64(i as u64);
    let values: Vec<f32> = (0..DIMENSIONS).map(|_| rng.random_range(-1.0..1.0)).collect();
    v1::EnrollFaceRequest {
        subject: format!("subject-of-{i:06}"),
        labels: [("branch".to_owned(), format!("label-of-{i:06}"))].into(),
        request_id: format!("request-of-{i:06}"),
        ..vector_enrolment(collection, &format!("face-id-{i:06}"), values)
    }
}

fn vector(request: &v1::EnrollFaceRequest) -> Vec<f32> {
    match &request.source {
        Some(v1::enroll_face_request::Source::Vector(embedding)) => embedding.values.clone(),
        _ => panic!("no vector"),
    }
}

/// Pieces of 16 bytes to search for, with a quick test that excludes most others.
struct Traces {
    pieces: HashSet<[u8; WINDOW]>,
    /// By the first two bytes.
    may_begin: Vec<bool>,
}

impl Traces {
    /// Names, subjects, labels, request ids, request digests and vectors of these enrolments.
    fn of<'a>(requests: impl Iterator<Item = &'a v1::EnrollFaceRequest>) -> Self {
        let mut pieces = HashSet::new();
        for request in requests {
            let values = vector(request);
            let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let unit: Vec<u8> = values.iter().flat_map(|v| ((f64::from(*v) / norm) as f32).to_le_bytes()).collect();
            let sent: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            for bytes in [&unit[..], &sent, &Sha256::digest(request.encode_to_vec())] {
                pieces.extend(bytes.array_windows::<WINDOW>().copied());
            }
            // Pieces of texts that no other face has: their numbers are at the end.
            let texts = [&request.subject, &request.request_id, &request.labels["branch"]];
            for text in texts.into_iter().chain([&format!("/faces/{}", request.face_id)]) {
                pieces.extend(text.as_bytes().last_chunk::<WINDOW>());
            }
        }
        let mut may_begin = vec![false; 1 << 16];
        for piece in &pieces {
            may_begin[usize::from(u16::from_le_bytes([piece[0], piece[1]]))] = true;
        }
        Self { pieces, may_begin }
    }

    fn first_in(&self, bytes: &[u8]) -> Option<usize> {
        let may_begin = |piece: &[u8; WINDOW]| self.may_begin[usize::from(u16::from_le_bytes([piece[0], piece[1]]))];
        bytes.array_windows::<WINDOW>().position(|piece| may_begin(piece) && self.pieces.contains(piece))
    }

    /// Fails unless no memory of a process has a trace within a minute. The memory of files is not its own.
    async fn assert_in_no_memory(&self, pid: u32) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let Some(found) = self.in_memory(pid) else { return };
            assert!(Instant::now() < until, "a trace is in the memory of the server: {found}");
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    fn in_memory(&self, pid: u32) -> Option<String> {
        let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut n_bytes = 0;
        for line in maps.lines() {
            let mut fields = line.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            let name = fields.nth(3).unwrap_or("anonymous");
            if !rights.starts_with("rw") || name.starts_with('/') || name == "[vvar]" {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
            let mut bytes = vec![0; (end - start) as usize];
            // It may have been given back meanwhile.
            if memory.read_exact_at(&mut bytes, start).is_err() {
                continue;
            }
            n_bytes += bytes.len();
            if let Some(at) = self.first_in(&bytes) {
                let shown = String::from_utf8_lossy(&bytes[at.saturating_sub(64)..at + 64]).escape_debug().to_string();
                return Some(format!("{range} {name} at {at}: {shown}"));
            }
        }
        assert!(n_bytes > 1 << 20, "the memory was read");
        None
    }

    fn assert_in_no_file(&self, dir: &Path) {
        for file in files(dir) {
            // A file may have gone meanwhile.
            let Ok(bytes) = fs::read(&file) else { continue };
            let found = self.first_in(&bytes);
            assert_eq!(found, None, "{} has a trace", file.display());
        }
    }
}

/// Returns the answer of an exact search for each request's vector.
async fn search(c: &mut Clients, collection: &str, requests: &[v1::EnrollFaceRequest]) -> Vec<Vec<(String, f32)>> {
    let mut answers = Vec::new();
    for request in requests {
        let search = v1::FindSimilarRequest {
            collection: collection.to_owned(),
            query: Some(v1::find_similar_request::Query::Embedding(v1::Embedding {
                values: vector(request),
                space: String::new(),
            })),
            k: 5,
            exact: true,
            ..Default::default()
        };
        let found = c.visage.find_similar(search).await.unwrap().into_inner().matches;
        answers.push(found.into_iter().map(|found| (found.face.unwrap().name, found.score)).collect());
    }
    answers
}

async fn stop(server: Server) {
    assert!(tokio::task::spawn_blocking(|| server.stop()).await.unwrap().success());
}

/// Makes a home whose stopped server has one face; returns it and the face's collection.
async fn with_one_face() -> (Home, String) {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = c.create_collection("people").await;
    c.faces.enroll_face(request(&collection, 1)).await.unwrap();
    stop(server).await;
    (home, collection)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_is_found_nowhere() {
    let n_faces = n_erased() * 100;
    let home = Home::trained("").await;
    let data = home.path("data");
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = c.create_collection("people").await;
    let requests: Vec<_> = (0..n_faces).map(|i| request(&collection, i)).collect();
    c.enroll_all(requests.iter().cloned()).await;
    let (erased, kept) = requests.split_at(n_erased());
    let traces = Traces::of(erased.iter());
    stop(server).await;
    let backup = home.path("backup.visage");
    assert_eq!(home.run(&["export", backup.to_str().unwrap()]).0, Some(0));
    // The engine's files as they are now, with what is deleted later.
    let old = Home::new("");
    copy(&data, &old.path("data"));

    // Half by id, half by subject.
    let server = home.serve().await;
    let mut c = server.clients().await;
    let before = search(&mut c, &collection, &kept[..50]).await;
    assert!(traces.in_memory(server.pid()).is_some(), "the search of the memory finds what is there");
    for (i, request) in erased.iter().enumerate() {
        if i % 2 == 0 {
            let name = format!("{collection}/faces/{}", request.face_id);
            c.faces.delete_face(v1::DeleteFaceRequest { name }).await.unwrap();
        } else {
            let delete = v1::DeleteFacesRequest { parent: collection.clone(), subject: request.subject.clone() };
            assert_eq!(c.faces.delete_faces(delete).await.unwrap().into_inner().n_deleted, 1);
        }
    }
    traces.assert_in_no_file(&data);
    drop(c);
    traces.assert_in_no_memory(server.pid()).await;
    let mut c = server.clients().await;
    let after = search(&mut c, &collection, &kept[..50]).await;
    let is_erased = |name: &String| erased.iter().any(|request| name.ends_with(&request.face_id));
    for (before, after) in before.iter().zip(&after) {
        assert!(!after.iter().any(|(name, _)| is_erased(name)));
        let others: Vec<_> = before.iter().filter(|(name, _)| !is_erased(name)).collect();
        assert_eq!(
            others,
            after.iter().take(others.len()).collect::<Vec<_>>(),
            "the answers about others are the same"
        );
    }
    // A retry of an enrolment enrols nobody.
    for request in [&erased[0], &erased[1]] {
        let refused = c.faces.enroll_face(request.clone()).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "FACE_ERASED"));
    }
    let again = c.faces.enroll_face(kept[0].clone()).await.unwrap().into_inner();
    assert_eq!(again.name, format!("{collection}/faces/{}", kept[0].face_id), "others are answered again");
    stop(server).await;
    traces.assert_in_no_file(&data);

    // The engine's files from before, beside the keys as they are now.
    fs::copy(data.join("store").join("keys"), old.path("data").join("store").join("keys")).unwrap();
    {
        let server = old.serve().await;
        let mut c = server.clients().await;
        let list = v1::ListFacesRequest { parent: collection.clone(), page_size: 1_000, ..Default::default() };
        let listed = c.faces.list_faces(list).await.unwrap().into_inner().faces;
        assert!(!listed.is_empty() && !listed.iter().any(|face| is_erased(&face.name)), "{} faces", listed.len());
        let name = format!("{collection}/faces/{}", erased[0].face_id);
        assert!(c.faces.get_face(v1::GetFaceRequest { name }).await.is_err());
        let found = search(&mut c, &collection, &erased[..5]).await;
        assert!(found.concat().iter().all(|(name, _)| !is_erased(name)));
        stop(server).await;
    }

    // The doctor finds nothing, and then what is planted.
    let gone = format!("people/{}", erased[0].face_id);
    let vector_file = home.path("vector.json");
    fs::write(&vector_file, serde_json::to_string(&vector(&erased[0])).unwrap()).unwrap();
    let look =
        ["doctor", "--erased", &gone, "--subject", &erased[0].subject, "--vector", vector_file.to_str().unwrap()];
    let (code, text) = home.run(&look);
    assert_eq!(code, Some(0), "{text}");
    let planted = data.join("cache").join("planted");
    let bytes: Vec<u8> = vector(&erased[0]).iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(&planted, &bytes[4..20]).unwrap();
    let (code, text) = home.run(&look);
    assert!(code == Some(1) && text.contains("a part of its vector is in") && text.contains("planted"), "{text}");
    fs::remove_file(planted).unwrap();
    let (code, text) = home.run(&["doctor", "--erased", &format!("people/{}", kept[0].face_id)]);
    assert!(code == Some(1) && text.contains("the id leads to the face"), "{text}");

    // A backup from before, with the journal of what was deleted since.
    let restored = Home::new("");
    let journal = data.join("store").join("erasures");
    let import = ["import", backup.to_str().unwrap(), "--erasures", journal.to_str().unwrap()];
    let (code, text) = restored.run(&import);
    assert!(code == Some(0) && text.contains(&format!("{} faces were left out", n_erased())), "{text}");
    traces.assert_in_no_file(&restored.path("data"));
    let server = restored.serve().await;
    let mut c = server.clients().await;
    assert_eq!(search(&mut c, &collection, &kept[..50]).await, after, "the others are back");
    let name = format!("{collection}/faces/{}", erased[0].face_id);
    let gone = c.faces.get_face(v1::GetFaceRequest { name }).await.unwrap_err();
    assert_eq!(reason(&gone), "FACE_NOT_FOUND");
    stop(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_collection_leaves_nothing_and_its_id_is_free_at_once() {
    let home = Home::trained("").await;
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = c.create_collection("people").await;
    let requests: Vec<_> = (0..300).map(|i| request(&collection, i)).collect();
    c.enroll_all(requests.iter().cloned()).await;
    c.faces.delete_collection(v1::DeleteCollectionRequest { name: collection.clone() }).await.unwrap();
    Traces::of(requests.iter()).assert_in_no_file(&home.path("data"));
    assert_eq!(c.create_collection("people").await, collection);
    let list = v1::ListFacesRequest { parent: collection.clone(), ..Default::default() };
    assert_eq!(c.faces.list_faces(list).await.unwrap().into_inner().faces, []);
    let refused = c.faces.enroll_face(requests[0].clone()).await.unwrap_err();
    assert_eq!(reason(&refused), "FACE_ERASED", "a retry");
    let renewed = v1::EnrollFaceRequest { request_id: String::new(), ..requests[1].clone() };
    c.faces.enroll_face(renewed).await.unwrap();
    // The old rows are removed in the background, the new face is not.
    server.kill();
    let server = home.serve().await;
    let mut c = server.clients().await;
    let found = search(&mut c, &collection, &requests[1..2]).await;
    assert_eq!(found[0].len(), 1);
    stop(server).await;
    let (code, text) = home.run(&["doctor", "--json"]);
    assert_eq!(code, Some(0), "{text}");
}

#[tokio::test]
async fn without_its_key_a_store_opens_for_nobody_and_is_not_touched() {
    let (home, collection) = with_one_face().await;
    let data = home.path("data");
    let (key, away) = (data.join("store.key"), home.path("away.key"));
    let contents =
        || files(&data.join("store")).into_iter().map(|file| (fs::read(&file).unwrap(), file)).collect::<Vec<_>>();
    let before = contents();
    fs::rename(&key, &away).unwrap();
    let (code, text) = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && text.contains("store.key") && text.contains("No such file"), "{text}");
    fs::write(&key, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n").unwrap();
    let (code, text) = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(code == Some(1) && text.contains("another store key") && text.contains("store.key_file"), "{text}");
    assert!(contents() == before, "nothing was touched");

    // Under a new key.
    fs::rename(&away, &key).unwrap();
    let new = home.path("new.key");
    let (code, text) = home.run(&["rekey", new.to_str().unwrap()]);
    assert!(code == Some(0) && text.contains("store.key_file"), "{text}");
    assert_eq!(home.run(&["doctor"]).0, Some(1), "the old key opens nothing");
    home.configure(&format!("[store]\nkey_file = {new:?}\n"));
    let server = home.serve().await;
    let mut c = server.clients().await;
    assert_eq!(search(&mut c, &collection, &[request(&collection, 1)]).await[0].len(), 1);
    stop(server).await;
}

#[tokio::test]
async fn an_encrypted_backup_opens_only_with_its_identity() {
    let (home, _) = with_one_face().await;
    let identity = age::x25519::Identity::generate();
    let (file, backup) = (home.path("identity"), home.path("backup.age"));
    let write = |identity: &age::x25519::Identity| {
        use age::secrecy::ExposeSecret;
        fs::write(&file, identity.to_string().expose_secret()).unwrap();
    };
    let recipient = identity.to_public().to_string();
    let (code, text) = home.run(&["export", "--recipient", &recipient, backup.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let restored = Home::new("");
    let import = ["import", backup.to_str().unwrap()];
    let (code, text) = restored.run(&import);
    assert!(code == Some(1) && text.contains("--identity"), "{text}");
    let with_identity = ["import", backup.to_str().unwrap(), "--identity", file.to_str().unwrap()];
    write(&age::x25519::Identity::generate());
    let (code, text) = restored.run(&with_identity);
    assert!(code == Some(1) && !text.contains("panicked"), "{text}");
    write(&identity);
    let (code, text) = restored.run(&with_identity);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(restored.run(&["doctor"]).0, Some(0));
}

//! Tests faces on a fresh server with the published weights: detect, judge, read, enrol, compare.
//!
//! The weights are not in the repository. Without VISAGE_WEIGHTS, which `make test` sets, these tests report that they
//! are skipped.

use std::{fs, io::Cursor, path::PathBuf};

use image::{GenericImage, ImageFormat, RgbImage};
use visage::proto::v1::{self, AbstentionReason, FaceSelection, prediction::Result as Answer};

use crate::support::{Clients, details, reason, server::Home};

const PORTRAIT: &[u8] = include_bytes!("../fixtures/portrait.jpg");

/// Makes a home whose server registers the published weights; returns `None` if there are none.
fn fresh(extra: &str) -> Option<Home> {
    let Some(weights) = weights() else {
        eprintln!("skipped: VISAGE_WEIGHTS does not name the published weights");
        return None;
    };
    Some(Home::new(&format!("\n[models]\npublished_dir = {weights:?}\n{extra}")))
}

fn weights() -> Option<PathBuf> {
    std::env::var_os("VISAGE_WEIGHTS").map(PathBuf::from)
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn portrait() -> RgbImage {
    image::load_from_memory(PORTRAIT).unwrap().into_rgb8()
}

/// Encodes a JPEG with an EXIF orientation.
fn jpeg(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    let tiff =
        [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]].concat();
    let length = u16::try_from(2 + 6 + tiff.len()).unwrap();
    let exif = [b"\xff\xe1".as_slice(), &length.to_be_bytes(), b"Exif\0\0", &tiff].concat();
    let mut bytes = bytes.into_inner();
    bytes.splice(2..2, exif);
    bytes
}

fn predicted_gender(face: &v1::FaceReading) -> String {
    let label = face.predictions.iter().find_map(|p| match &p.result {
        Some(Answer::Classification(c)) => Some(c.label.clone()),
        _ => None,
    });
    label.unwrap()
}

/// Draws two portraits side by side, the right one smaller.
fn pair() -> Vec<u8> {
    let one = portrait();
    let small = image::imageops::resize(&one, 200, 200, image::imageops::FilterType::Triangle);
    let mut both = RgbImage::new(one.width() + 220, one.height());
    both.copy_from(&one, 0, 0).unwrap();
    both.copy_from(&small, one.width() + 10, 60).unwrap();
    png(&both)
}

/// Draws an image without a face.
fn landscape() -> Vec<u8> {
    png(&RgbImage::from_fn(300, 200, |x, y| image::Rgb([(x / 2) as u8, (y / 2 + 90) as u8, 120])))
}

fn request(image: impl Into<bytes::Bytes>) -> v1::PredictRequest {
    v1::PredictRequest { image: image.into(), ..v1::PredictRequest::default() }
}

async fn predict(c: &mut Clients, request: v1::PredictRequest) -> v1::PredictResponse {
    c.visage.predict(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_fresh_server_reads_faces() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let answer = predict(&mut c, request(PORTRAIT)).await;
    assert_eq!(
        (answer.model_version.as_str(), answer.n_faces_found, answer.abstained),
        ("models/face/versions/1", 1, false)
    );
    let [face] = answer.faces.as_slice() else { panic!("{answer:?}") };
    // The face is where a person sees it.
    let place = face.r#box.unwrap();
    assert!((100.0..150.0).contains(&place.left) && (190.0..235.0).contains(&place.right), "{place:?}");
    assert!(face.landmarks.len() == 5 && face.landmarks[0].x < face.landmarks[1].x, "{:?}", face.landmarks);
    assert!(face.quality["detection"] > 0.99 && face.quality["visible"] > 0.9, "{:?}", face.quality);
    assert!(face.embedding.is_none() && face.predictions == answer.predictions);
    let [age, gender] = answer.predictions.as_slice() else { panic!("{answer:?}") };
    let Some(Answer::Regression(age)) = &age.result else { panic!("{age:?}") };
    // She was at most forty-one in the photo, which a 90 % interval should contain.
    assert!((20.0..50.0).contains(&age.value) && age.lower < Some(41.0) && age.upper > Some(35.0), "{age:?}");
    let Some(Answer::Classification(gender)) = &gender.result else { panic!("{gender:?}") };
    assert_eq!(gender.label, "female");

    let paired = predict(&mut c, v1::PredictRequest { return_embedding: true, ..request(PORTRAIT) }).await;
    let embedding = paired.faces[0].embedding.clone().unwrap();
    assert_eq!(embedding.space, "models/face-descriptor/versions/1#descriptor128");
    assert_eq!(embedding.values.len(), 128);

    // Rotated by its EXIF tag, the same face is in the same place.
    let upright = predict(&mut c, request(jpeg(&portrait(), 1))).await;
    let turned = predict(&mut c, request(jpeg(&image::imageops::rotate270(&portrait()), 6))).await;
    let (upright, turned) = (upright.faces[0].clone(), turned.faces[0].clone());
    let edges = |face: &v1::FaceReading| face.r#box.map(|b| [b.left, b.top, b.right, b.bottom]).unwrap();
    for (a, b) in edges(&upright).iter().zip(edges(&turned)) {
        assert!((a - b).abs() < 3.0, "{upright:?} {turned:?}");
    }
    assert_eq!(predicted_gender(&upright), predicted_gender(&turned));

    // The expected box and landmarks come from the package that published the detector's weights.
    let theirs: serde_json::Value = serde_json::from_str(include_str!("../fixtures/facenet.json")).unwrap();
    let theirs = &theirs["faces"][0];
    let ours = predict(&mut c, request(PORTRAIT)).await.faces[0].clone();
    for (i, edge) in edges(&ours).iter().enumerate() {
        assert!((edge - theirs["box"][i].as_f64().unwrap()).abs() < 2.0, "{ours:?}, theirs {theirs}");
    }
    for (i, point) in ours.landmarks.iter().enumerate() {
        let their = [0, 1].map(|axis| theirs["landmarks"][i][axis].as_f64().unwrap());
        assert!((point.x - their[0]).hypot(point.y - their[1]) < 2.0, "{ours:?}, theirs {theirs}");
    }

    let version = c
        .models
        .get_model_version(v1::GetModelVersionRequest { name: "models/face@champion".to_owned() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(version.provenance.unwrap().licence, "CC0-1.0");
    assert_eq!(version.face_reader.unwrap().detector, "models/mtcnn/versions/1");

    // The second start finds everything registered.
    assert!(server.stop().success());
    let server = home.serve().await;
    let mut c = server.clients().await;
    assert_eq!(predict(&mut c, request(PORTRAIT)).await.predictions, answer.predictions);
    for model in ["mtcnn", "face-descriptor", "face"] {
        let request = v1::GetModelRequest { name: format!("models/{model}") };
        assert_eq!(c.models.get_model(request).await.unwrap().into_inner().latest_version, 1);
    }
}

#[tokio::test]
async fn several_faces_are_read_as_asked() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let with = |selection: FaceSelection| v1::PredictRequest { face_selection: selection.into(), ..request(pair()) };
    let largest = predict(&mut c, with(FaceSelection::Largest)).await;
    assert_eq!((largest.n_faces_found, largest.faces.len()), (2, 1));
    let all = predict(&mut c, with(FaceSelection::All)).await;
    assert_eq!((all.n_faces_found, all.faces.len()), (2, 2));
    assert_eq!(all.faces[0].r#box, largest.faces[0].r#box);
    assert!(all.faces[1].r#box.unwrap().left > 320.0);
    let single = predict(&mut c, with(FaceSelection::Single)).await;
    assert_eq!(single.abstention_reasons, [AbstentionReason::SeveralFaces as i32]);
    assert!(single.abstained && single.faces.is_empty() && single.predictions.is_empty());
    let none = predict(&mut c, request(landscape())).await;
    assert_eq!((none.n_faces_found, none.abstention_reasons), (0, vec![AbstentionReason::NoFace as i32]));
}

#[tokio::test]
async fn thresholds_are_the_versions_or_the_callers_within_bounds() {
    let Some(home) = fresh("\n[faces]\nmin_face_px = [20.0, 500.0]\n") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let with = |min_face_px: f64| v1::PredictRequest {
        thresholds: Some(v1::QualityThresholds { min_face_px: Some(min_face_px), ..Default::default() }),
        ..request(PORTRAIT)
    };
    let strict = predict(&mut c, with(400.0)).await;
    assert_eq!(strict.abstention_reasons, [AbstentionReason::FaceTooSmall as i32]);
    assert!(
        strict.faces[0].abstained && strict.faces[0].predictions.is_empty() && strict.faces[0].landmarks.len() == 5
    );
    assert!(!predict(&mut c, with(20.0)).await.abstained);
    let refused = c.visage.predict(with(10.0)).await.unwrap_err();
    assert_eq!(reason(&refused), "FIELD_INVALID");
    assert_eq!(details(&refused).bad_request().unwrap().field_violations[0].field, "thresholds.min_face_px");
    let unknown = v1::PredictRequest { face_selection: 99, ..request(PORTRAIT) };
    assert_eq!(reason(&c.visage.predict(unknown).await.unwrap_err()), "FIELD_INVALID");
    let detector = v1::PredictRequest { model: "models/mtcnn".to_owned(), ..request(PORTRAIT) };
    assert_eq!(reason(&c.visage.predict(detector).await.unwrap_err()), "UNSUPPORTED_BY_MODEL");
}

#[tokio::test]
async fn faces_are_enrolled_found_and_compared_from_whole_photos() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let collection = v1::CreateCollectionRequest { collection_id: "policies".to_owned(), ..Default::default() };
    let collection = c.faces.create_collection(collection).await.unwrap().into_inner();
    assert_eq!(collection.embedding_space, "models/face-descriptor/versions/1#descriptor128");
    let enroll = |face: &str, image: Vec<u8>| v1::EnrollFaceRequest {
        parent: "collections/policies".to_owned(),
        face_id: face.to_owned(),
        source: Some(v1::enroll_face_request::Source::Image(image.into())),
        ..Default::default()
    };
    c.faces.enroll_face(enroll("her", PORTRAIT.to_vec())).await.unwrap();
    let refused = c.faces.enroll_face(enroll("nobody", landscape())).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::InvalidArgument, "FACE_UNUSABLE".to_owned()));
    assert_eq!(details(&refused).error_info().unwrap().metadata["abstention_reasons"], "NO_FACE");
    let all = v1::EnrollFaceRequest { face_selection: FaceSelection::All.into(), ..enroll("both", pair()) };
    assert_eq!(reason(&c.faces.enroll_face(all).await.unwrap_err()), "FIELD_INVALID");
    let single = v1::EnrollFaceRequest { face_selection: FaceSelection::Single.into(), ..enroll("both", pair()) };
    assert_eq!(reason(&c.faces.enroll_face(single).await.unwrap_err()), "FACE_UNUSABLE");

    let find = v1::FindSimilarRequest {
        collection: "collections/policies".to_owned(),
        query: Some(v1::find_similar_request::Query::Image(pair().into())),
        k: 1,
        ..Default::default()
    };
    let found = c.visage.find_similar(find).await.unwrap().into_inner();
    assert!(found.matches[0].score > 0.98, "{found:?}");
    let identity = found.matches[0].identity.unwrap();
    assert!(identity.same_person_probability > 0.9, "{identity:?}");

    // Smaller and mirrored, it is still the same person.
    let small = image::imageops::resize(&portrait(), 180, 180, image::imageops::FilterType::Triangle);
    let compare = |second: Vec<u8>| v1::CompareFacesRequest {
        first_image: PORTRAIT.into(),
        second_image: second.into(),
        ..Default::default()
    };
    let same =
        c.faces.compare_faces(compare(png(&image::imageops::flip_horizontal(&small)))).await.unwrap().into_inner();
    assert!(same.score.unwrap() > 0.95 && same.first_face.is_some() && same.second_face.is_some(), "{same:?}");
    assert!(same.identity.unwrap().false_match_rate.unwrap().upper < 0.05);
    let nowhere = v1::CompareFacesRequest {
        embedding_space: "models/face-descriptor@champion#nope".to_owned(),
        ..compare(landscape())
    };
    let refused = c.faces.compare_faces(nowhere).await.unwrap_err();
    assert!(refused.message().contains("descriptor128"), "{refused}");
    let none = c.faces.compare_faces(compare(landscape())).await.unwrap().into_inner();
    assert!(none.abstained && none.score.is_none() && none.second_face.is_none());
    assert_eq!(none.abstention_reasons, [AbstentionReason::NoFace as i32]);
    let empty = c.faces.compare_faces(compare(Vec::new())).await.unwrap_err();
    assert_eq!(details(&empty).bad_request().unwrap().field_violations[0].field, "second_image");
    let no_photo = c.faces.compare_faces(compare(b"no photo".to_vec())).await.unwrap_err();
    assert_eq!(reason(&no_photo), "IMAGE_FORMAT_UNSUPPORTED");
    assert_eq!(details(&no_photo).error_info().unwrap().metadata["field"], "second_image");
}

/// A detector that other versions depend on stays loaded and registered, and nobody can replace it.
#[tokio::test]
async fn what_a_version_works_with_is_kept() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let detector = "models/mtcnn/versions/1".to_owned();
    let champion = v1::SetModelAliasRequest {
        name: "models/mtcnn".to_owned(),
        alias: "champion".to_owned(),
        ..v1::SetModelAliasRequest::default()
    };
    c.models.set_model_alias(champion).await.unwrap();
    let unload = v1::UnloadModelVersionRequest { name: detector.clone() };
    let refused = c.models.unload_model_version(unload).await.unwrap_err();
    assert_eq!(reason(&refused), "IN_USE");
    assert!(refused.message().contains("models/face"), "{refused}");
    let delete = v1::DeleteModelVersionRequest { name: detector };
    let refused = c.models.delete_model_version(delete).await.unwrap_err();
    assert_eq!(reason(&refused), "IN_USE");
    assert!(!predict(&mut c, request(PORTRAIT)).await.abstained);

    // A folder named like a published entry is still an ordinary import.
    let folder = home.path("photos").join("mtcnn revision 1");
    fs::create_dir(&folder).unwrap();
    for file in ["pnet.pt", "rnet.pt", "onet.pt"] {
        fs::copy(weights().unwrap().join("mtcnn").join(file), folder.join(file)).unwrap();
    }
    let import = v1::ImportModelVersionRequest {
        parent: "models/mtcnn".to_owned(),
        weights_path: "mtcnn revision 1".to_owned(),
        architecture: v1::Architecture::Mtcnn.into(),
        ..v1::ImportModelVersionRequest::default()
    };
    let other = c.models.import_model_version(import).await.unwrap().into_inner();
    assert_eq!(other.name, "models/mtcnn/versions/2");
    for (model, version) in [("models/face", 1), ("models/face-descriptor", 1)] {
        let champion = v1::SetModelAliasRequest {
            name: model.to_owned(),
            alias: "champion".to_owned(),
            ..v1::SetModelAliasRequest::default()
        };
        c.models.set_model_alias(champion).await.unwrap();
        let name = format!("{model}/versions/{version}");
        c.models.delete_model_version(v1::DeleteModelVersionRequest { name }).await.unwrap();
    }
    drop(c);
    server.stop();
    let server = home.serve().await;
    let mut c = server.clients().await;
    let request = v1::GetModelVersionRequest { name: "models/face/versions/2".to_owned() };
    let face = c.models.get_model_version(request).await.unwrap().into_inner();
    assert_eq!(face.face_reader.unwrap().detector, "models/mtcnn/versions/1");
}

/// NaN weights are the importer's error.
#[tokio::test]
async fn weights_that_answer_nothing_are_refused() {
    let Some(home) = fresh("") else { return };
    let folder = home.path("photos").join("mtcnn");
    fs::create_dir(&folder).unwrap();
    for file in ["pnet.pt", "rnet.pt", "onet.pt"] {
        let mut bytes = fs::read(weights().unwrap().join("mtcnn").join(file)).unwrap();
        let n = bytes.len();
        if file == "onet.pt" {
            bytes[n - 16_384..].chunks_exact_mut(4).for_each(|number| number.copy_from_slice(&f32::NAN.to_le_bytes()));
        }
        fs::write(folder.join(file), bytes).unwrap();
    }
    let server = home.serve().await;
    let mut c = server.clients().await;
    let import = v1::ImportModelVersionRequest {
        parent: "models/spoilt".to_owned(),
        weights_path: "mtcnn".to_owned(),
        architecture: v1::Architecture::Mtcnn.into(),
        ..v1::ImportModelVersionRequest::default()
    };
    let refused = c.models.import_model_version(import).await.unwrap_err();
    assert_eq!(reason(&refused), "WEIGHTS_MISMATCH", "{refused}");
}

#[tokio::test]
async fn published_networks_are_imported_from_a_root() {
    let Some(home) = fresh("") else { return };
    let folder = home.path("photos").join("mtcnn");
    fs::create_dir(&folder).unwrap();
    for file in ["pnet.pt", "rnet.pt", "onet.pt"] {
        fs::copy(weights().unwrap().join("mtcnn").join(file), folder.join(file)).unwrap();
    }
    let server = home.serve().await;
    let mut c = server.clients().await;
    let import = |model: &str, path: &str, architecture: v1::Architecture| v1::ImportModelVersionRequest {
        parent: format!("models/{model}"),
        weights_path: path.to_owned(),
        architecture: architecture.into(),
        licence: "MIT".to_owned(),
        ..Default::default()
    };
    let detector = import("own-detector", "mtcnn", v1::Architecture::Mtcnn);
    let version = c.models.import_model_version(detector).await.unwrap().into_inner();
    assert_eq!(version.provenance.unwrap().licence, "MIT");
    // Without the predictor, the cascade's landmarks are used. Weights of another network are recognised by their
    // tensors.
    fs::copy(folder.join("rnet.pt"), folder.join("pnet.pt")).unwrap();
    let wrong = c.models.import_model_version(import("wrong", "mtcnn", v1::Architecture::Mtcnn)).await.unwrap_err();
    assert_eq!(reason(&wrong), "WEIGHTS_MISMATCH");
    assert!(wrong.message().contains("pnet."), "{wrong:?}");
    fs::remove_file(folder.join("rnet.pt")).unwrap();
    let missing = c.models.import_model_version(import("less", "mtcnn", v1::Architecture::Mtcnn)).await.unwrap_err();
    assert_eq!(reason(&missing), "FILE_NOT_FOUND");
    let lonely = import("lonely", "mtcnn", v1::Architecture::DlibFaceDescriptor);
    let lonely = c.models.import_model_version(lonely).await.unwrap_err();
    assert_eq!(details(&lonely).bad_request().unwrap().field_violations[0].field, "detector");
}

/// Places the unchanged portrait in a grey frame.
fn framed(width: u32, height: u32, format: ImageFormat) -> Vec<u8> {
    let mut wall = RgbImage::from_pixel(width, height, image::Rgb([128; 3]));
    wall.copy_from(&portrait(), width / 3, height / 3).unwrap();
    let mut bytes = Cursor::new(Vec::new());
    wall.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn age(answer: &v1::PredictResponse) -> f64 {
    let age = answer.predictions.iter().find_map(|p| match &p.result {
        Some(Answer::Regression(age)) => Some(age.value),
        _ => None,
    });
    age.unwrap_or_else(|| panic!("no age: {answer:?}"))
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[tokio::test]
async fn a_face_is_read_from_its_own_pixels_however_large_the_photo() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let with = |image: Vec<u8>| v1::PredictRequest { return_embedding: true, ..request(image) };
    let alone = predict(&mut c, with(PORTRAIT.to_vec())).await;
    let vector = |answer: &v1::PredictResponse| answer.faces[0].embedding.clone().unwrap().values;
    for (width, height, format) in [
        (1500, 1100, ImageFormat::Jpeg),
        (2600, 1900, ImageFormat::Png),
        (4032, 3024, ImageFormat::Jpeg),
        (4032, 3024, ImageFormat::WebP),
        (8000, 6000, ImageFormat::Jpeg),
    ] {
        let answer = predict(&mut c, with(framed(width, height, format))).await;
        let what = format!("{width} x {height} {format:?}");
        assert!(!answer.abstained, "{what}: {answer:?}");
        let (face, same) = (&answer.faces[0], &alone.faces[0]);
        let share = face.quality["face_px"] / same.quality["face_px"];
        assert!((0.85..1.15).contains(&share), "{what}: {:?}", face.quality);
        assert!((age(&answer) - age(&alone)).abs() < 3.0, "{what}: {} {}", age(&answer), age(&alone));
        let alike = cosine(&vector(&answer), &vector(&alone));
        assert!(alike > 0.98, "{what}: {alike}");
        // Box and landmarks are positions in the photo as sent.
        let shift = [f64::from(width / 3), f64::from(height / 3)];
        for (found, expected) in face.landmarks.iter().zip(&same.landmarks) {
            let apart = (found.x - shift[0] - expected.x).hypot(found.y - shift[1] - expected.y);
            assert!(apart < 6.0, "{what}: {apart}");
        }
    }
    // At the detector's resolution this face is too small to be found, and nothing else searches for it.
    let speck = image::imageops::resize(&portrait(), 80, 80, image::imageops::FilterType::Triangle);
    let mut wall = RgbImage::from_pixel(4032, 3024, image::Rgb([128; 3]));
    wall.copy_from(&speck, 700, 900).unwrap();
    let unseen = predict(&mut c, request(jpeg(&wall, 1))).await;
    let too_small = [AbstentionReason::NoFace as i32, AbstentionReason::FaceTooSmall as i32];
    assert!(unseen.abstained && too_small.contains(&unseen.abstention_reasons[0]), "{unseen:?}");
}

/// Covers all sizes at which the detector accepts the portrait upside down.
#[tokio::test]
async fn people_upside_down_are_read_rotated_or_not_answered() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let turns: [fn(&RgbImage) -> RgbImage; 2] = [image::imageops::rotate180, image::imageops::flip_vertical];
    let mut n_read = 0;
    for side in (60..420).step_by(30) {
        let upright = image::imageops::resize(&portrait(), side, side, image::imageops::FilterType::CatmullRom);
        let expected = predict(&mut c, request(png(&upright))).await;
        assert!(!expected.faces[0].upside_down, "{side}");
        for turn in turns {
            let answer = predict(&mut c, request(png(&turn(&upright)))).await;
            if answer.abstained {
                continue;
            }
            let face = &answer.faces[0];
            assert!(face.upside_down, "{side}: {answer:?}");
            n_read += 1;
            assert!((age(&answer) - age(&expected)).abs() < 5.0, "{side}: {} {}", age(&answer), age(&expected));
            assert_eq!(predicted_gender(face), predicted_gender(&expected.faces[0]));
            // The box is the face's position in the photo as sent.
            let (place, upright) = (face.r#box.unwrap(), expected.faces[0].r#box.unwrap());
            let apart = (place.top - (f64::from(side) - upright.bottom)).abs();
            assert!(apart < f64::from(side) / 10.0, "{side}: {place:?} {upright:?}");
        }
    }
    assert!(n_read > 0, "never found upside down: the test shows nothing");
}

/// A photo with all its pixels is read, and the answer reports the file's defects.
#[tokio::test]
async fn a_note_says_what_a_photos_file_did_not_keep() {
    let Some(home) = fresh("") else { return };
    let server = home.serve().await;
    let mut c = server.clients().await;
    let whole_png = png(&portrait());
    let mut webp = Cursor::new(Vec::new());
    portrait().write_to(&mut webp, ImageFormat::WebP).unwrap();
    let plain = webp.into_inner();
    // An extended header that announces EXIF data, before the image.
    let head = [b"VP8X\x0a\0\0\0\x08\0\0\0".as_slice(), &[63, 1, 0, 63, 1, 0]].concat();
    let riff = [b"WEBP".as_slice(), &head, &plain[12..]].concat();
    let lying = [b"RIFF".as_slice(), &(riff.len() as u32).to_le_bytes(), &riff].concat();
    let (end, promised) = (v1::PhotoNote::EndMissing as i32, v1::PhotoNote::ChunkMissing as i32);
    let cases = [
        ("a whole JPEG", PORTRAIT.to_vec(), vec![]),
        ("a JPEG without its end", PORTRAIT[..PORTRAIT.len() - 2].to_vec(), vec![end]),
        ("a PNG without its end", whole_png[..whole_png.len() - 12].to_vec(), vec![end]),
        ("a WebP that promises EXIF", lying, vec![promised]),
    ];
    for (what, image, notes) in cases {
        let answer = predict(&mut c, request(image.clone())).await;
        assert!(!answer.abstained && answer.photo_notes == notes, "{what}: {answer:?}");
        let compare =
            v1::CompareFacesRequest { first_image: PORTRAIT.into(), second_image: image.into(), ..Default::default() };
        let compared = c.faces.compare_faces(compare).await.unwrap().into_inner();
        assert!(compared.first_photo_notes.is_empty() && compared.second_photo_notes == notes, "{what}: {compared:?}");
    }
    let cut = c.visage.predict(request(PORTRAIT[..PORTRAIT.len() - 200].to_vec())).await.unwrap_err();
    assert_eq!(reason(&cut), "IMAGE_UNREADABLE");
    assert!(cut.message().contains("some of its pixels are missing"), "{cut}");
}

//! `visage similar`: finds the faces of a collection that are like a photo, a face or a vector.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::{
    connection::Remote,
    face_options::FaceChoice,
    failure::Usage,
    names, output, photo,
    pictures::{self, Match},
    wording::notes,
};
use crate::proto::v1::{self, find_similar_request::Query};

/// Finds the most similar faces of a collection.
///
/// A score is the cosine of two embeddings: 1 for the same photo. If the space was calibrated on identities, each match
/// has the probability that it is the same person, at even odds beforehand, and how often faces of different people
/// score as much.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage similar --collection policies portrait.jpg
  visage similar --collection policies --face policy-4711 -k 5 --min-score 0.8 --exact")]
pub(super) struct SimilarArgs {
    /// A photo of the face to search for; - is standard input.
    #[arg(value_name = "PHOTO", required_unless_present_any = ["face", "vector"], conflicts_with_all = ["face", "vector"])]
    photo: Option<PathBuf>,
    /// The collection to search.
    #[arg(long, short)]
    collection: String,
    /// A face of the collection to search for; it is not among its own matches.
    #[arg(long, value_name = "ID", conflicts_with = "vector")]
    face: Option<String>,
    /// A file with the embedding to search for, a JSON array of numbers.
    #[arg(long, value_name = "FILE")]
    vector: Option<PathBuf>,
    /// The maximum number of matches.
    #[arg(short, default_value_t = 10)]
    k: i32,
    /// Leaves out matches with a lower score, -1 to 1.
    #[arg(long, allow_negative_numbers = true)]
    min_score: Option<f32>,
    /// Compares with every face, however long that takes.
    #[arg(long)]
    exact: bool,
    /// Which of the photo's faces to search for.
    #[arg(long, value_enum, default_value_t)]
    faces: FaceChoice,
    /// Writes an HTML page of the query and its matches.
    #[arg(long, value_name = "FILE.html")]
    sheet: Option<PathBuf>,
    /// The folder of the matches' photos for --sheet, named by their faces' ids; searched recursively.
    #[arg(long, value_name = "FOLDER", requires = "sheet")]
    photos: Option<PathBuf>,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command.
pub(super) async fn run(args: SimilarArgs) -> anyhow::Result<bool> {
    let collection = names::collection(&args.collection);
    if let Some(folder) = args.photos.as_ref().filter(|folder| !folder.is_dir()) {
        bail!(Usage(format!("--photos {}: the folder does not exist", folder.display())));
    }
    let query = match (&args.photo, &args.face, &args.vector) {
        (Some(photo), ..) => Query::Image(photo::read(photo).await?),
        (_, Some(face), _) if face.contains('/') => Query::Face(names::face(face)),
        (_, Some(face), _) => Query::Face(format!("{collection}/faces/{face}")),
        (.., Some(file)) => {
            let text = tokio::fs::read_to_string(file).await.with_context(|| file.display().to_string())?;
            let values = serde_json::from_str(&text)
                .with_context(|| format!("{}: not a JSON array of numbers", file.display()))?;
            Query::Embedding(v1::Embedding { values, space: String::new() })
        }
        (None, None, None) => Query::Face(String::new()),
    };
    let request = v1::FindSimilarRequest {
        collection,
        query: Some(query),
        k: args.k,
        min_score: args.min_score,
        exact: args.exact,
        face_selection: v1::FaceSelection::from(args.faces).into(),
    };
    let mut server = args.remote.connect().await?;
    let found = server.visage.find_similar(args.remote.request(request)).await?.into_inner();
    if let Some(file) = &args.sheet {
        let page = sheet(&args, &found)?;
        tokio::fs::write(file, page).await.with_context(|| file.display().to_string())?;
    }
    output::show(args.remote.json, &found, |found| {
        let odd = notes(found.photo_notes()).map(|odd| format!("the file is odd: {odd}\n")).unwrap_or_default();
        if found.matches.is_empty() {
            return match args.min_score {
                Some(score) => format!("{odd}no face scores {score} or more"),
                None => format!("{odd}there is no face to compare with"),
            };
        }
        let rows = found.matches.iter().map(|m| {
            let face = m.face.clone().unwrap_or_default();
            let (same, false_matches) = m.identity.as_ref().map(evidence).unwrap_or_default();
            [format!("{:.4}", m.score), face.name, face.subject, labels(&face.labels), same, false_matches]
        });
        let table = output::table(["score", "face", "subject", "labels", "same person", "false matches"], rows);
        format!("{odd}{table}")
    })?;
    Ok(true)
}

/// Formats a score's evidence: the probability that both are one person, and how often two people's photos score as
/// much.
pub(super) fn evidence(identity: &v1::IdentityEvidence) -> (String, String) {
    let probability = output::percent(identity.same_person_probability);
    let false_matches = match &identity.false_match_rate {
        Some(v1::FalseMatchRate { rate: Some(rate), supported: true, .. }) => output::rate(*rate),
        Some(rate) => format!("at most {}", output::rate(rate.upper)),
        None => String::new(),
    };
    (probability, false_matches)
}

/// Creates the page of the query and its matches.
fn sheet(args: &SimilarArgs, found: &v1::FindSimilarResponse) -> anyhow::Result<String> {
    let photos = args.photos.as_deref();
    let (title, photo) = match (&args.photo, &args.face) {
        (Some(path), _) if path == Path::new("-") => ("standard input".to_owned(), None),
        (Some(path), _) => {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            (path.display().to_string(), Some(bytes))
        }
        (None, Some(face)) => (id_of(face), photos.and_then(|folder| photo_of(folder, &id_of(face)))),
        (None, None) => ("a vector".to_owned(), None),
    };
    let query = Match { title, lines: vec!["looked for".to_owned()], photo };
    let matches = found.matches.iter().map(|m| {
        let face = m.face.clone().unwrap_or_default();
        let id = id_of(&face.name);
        let mut lines = vec![format!("score {:.4}", m.score)];
        if let Some(identity) = &m.identity {
            let (same, false_matches) = evidence(identity);
            lines.push(format!("same person: {same}"));
            lines.push(format!("false matches: {false_matches}"));
        }
        lines.extend((!face.subject.is_empty()).then(|| format!("subject {}", face.subject)));
        Match { title: id.clone(), lines, photo: photos.and_then(|folder| photo_of(folder, &id)) }
    });
    let about = format!(
        "Faces of {} that are most alike, by {}. A score is the cosine of two embeddings. \"Same person\" is the \
         probability of that if it was as likely as not before looking; \"false matches\" is how often photos of \
         different people score as much.",
        names::collection(&args.collection),
        found.embedding_space,
    );
    Ok(pictures::sheet(&about, &query, &matches.collect::<Vec<_>>()))
}

/// Returns the last part of a face's name.
fn id_of(face: &str) -> String {
    face.rsplit('/').next().unwrap_or_default().to_owned()
}

/// Reads the photo in a folder that is named by the face's id.
fn photo_of(folder: &Path, id: &str) -> Option<Vec<u8>> {
    let named = |entry: &walkdir::DirEntry| {
        entry.file_type().is_file() && (entry.file_name() == id || entry.path().file_stem().is_some_and(|s| s == id))
    };
    let found = walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().filter_map(Result::ok).find(named)?;
    std::fs::read(found.path()).ok()
}

/// Formats labels for one cell: `a=1 b=2`.
pub(super) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

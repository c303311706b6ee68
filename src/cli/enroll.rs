//! `visage enroll`: adds faces to a collection.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;

use super::{
    connection::Remote,
    face_options::FaceChoice,
    failure::{self, Usage},
    names,
    output::{self, print_line},
    photo,
};
use crate::proto::v1::{self, enroll_face_request::Source, stream_enroll_faces_response::Result as Item};

/// Adds the faces of photos to a collection.
///
/// A face is acknowledged once it is stored. If a photo fails, the others are not affected.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage collections create policies
  visage enroll --collection policies --id policy-4711 --subject policy-4711 portrait.jpg
  visage enroll --collection policies --ids-from-names photos/*.jpg")]
pub(super) struct EnrollArgs {
    /// JPEG, PNG or WebP files; - is standard input.
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    /// The collection.
    #[arg(long, short)]
    collection: String,
    /// The face's id, for one photo; without it, the server generates one.
    #[arg(long, conflicts_with = "ids_from_names")]
    id: Option<String>,
    /// Uses each file's name without its extension as the face's id, so that a second run finds existing faces.
    #[arg(long)]
    ids_from_names: bool,
    /// Which of a photo's faces is added; single refuses a photo with several.
    #[arg(long, value_enum, default_value_t)]
    faces: FaceChoice,
    /// The person: your policy or customer number, for example.
    #[arg(long, default_value = "")]
    subject: String,
    /// A label to filter by: source=branch-12. May be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    pub(super) remote: Remote,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Runs the command; returns false when a photo was refused.
pub(super) async fn run(args: EnrollArgs) -> anyhow::Result<bool> {
    if args.id.is_some() && args.photos.len() > 1 {
        bail!(Usage("--id names one face, but there are several photos; use --ids-from-names".to_owned()));
    }
    if args.ids_from_names && args.photos.iter().any(|photo| photo == Path::new("-")) {
        bail!(Usage("standard input has no file name to use as an id".to_owned()));
    }
    let labels: BTreeMap<String, String> = args.label.iter().cloned().collect();
    let template = v1::EnrollFaceRequest {
        parent: names::collection(&args.collection),
        face_id: args.id.clone().unwrap_or_default(),
        subject: args.subject.clone(),
        labels,
        face_selection: v1::FaceSelection::from(args.faces).into(),
        ..v1::EnrollFaceRequest::default()
    };
    let mut server = args.remote.connect().await?;
    // With ids from names, one photo is treated like many: an existing face is no failure.
    if let ([photo], false) = (args.photos.as_slice(), args.ids_from_names) {
        let source = Some(Source::Image(photo::read(photo).await?));
        let request = args.remote.request(v1::EnrollFaceRequest { source, ..template });
        let about = || photo.display().to_string();
        let face = server.faces.enroll_face(request).await.with_context(about)?.into_inner();
        let line = format!("{} enrolled", face.name);
        // In the form of a stream, so that scripts need not distinguish one photo from many.
        let correlation_id = photo.display().to_string();
        let answer = v1::StreamEnrollFacesResponse { correlation_id, result: Some(Item::Face(face)) };
        output::show(args.remote.json, &answer, |_| line)?;
        return Ok(true);
    }
    if args.ids_from_names {
        distinct(&args.photos)?;
    }
    let progress = output::bar(args.photos.len() as u64, "enrolling");
    let (photos, ids_from_names) = (args.photos.clone(), args.ids_from_names);
    let unread = photo::Unread::default();
    let requests = unread.stream(photos).map(move |(path, image)| {
        let face_id = if ids_from_names { photo::stem(&path) } else { String::new() };
        let request = Some(v1::EnrollFaceRequest { face_id, source: Some(Source::Image(image)), ..template.clone() });
        v1::StreamEnrollFacesRequest { request, correlation_id: path.display().to_string() }
    });
    let mut answers = server.faces.stream_enroll_faces(requests).await?.into_inner();
    let (mut n_enrolled, mut n_there, mut n_refused) = (0, 0, 0);
    while let Some(answer) = answers.message().await? {
        progress.inc(1);
        let outcome = match &answer.result {
            Some(Item::Face(face)) => {
                n_enrolled += 1;
                face.name.clone()
            }
            Some(Item::Error(error)) if ids_from_names && failure::reason_of(error) == "RESOURCE_EXISTS" => {
                n_there += 1;
                "exists already".to_owned()
            }
            Some(Item::Error(error)) => {
                n_refused += 1;
                failure::one_line(error)
            }
            None => "no answer".to_owned(),
        };
        progress.suspend(|| {
            output::show(args.remote.json, &answer, |answer| format!("{}  {outcome}", answer.correlation_id))
        })?;
    }
    progress.finish_and_clear();
    n_refused += unread.count();
    if !args.remote.json {
        let collection = names::collection(&args.collection);
        let (enrolled, refused) = (output::counted(n_enrolled, "face"), output::counted(n_refused, "photo"));
        print_line!("{enrolled} enrolled in {collection}, {n_there} existed already, {refused} refused")?;
    }
    let n_lost = args.photos.len() - n_enrolled - n_there - n_refused;
    if n_lost > 0 {
        bail!("the server ended the stream before {n_lost} photos were answered; enrol them again");
    }
    Ok(n_refused == 0)
}

fn distinct(photos: &[PathBuf]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    match photos.iter().find(|photo| !seen.insert(photo::stem(photo))) {
        Some(twice) => {
            bail!(Usage(format!("two photos are named {}: their faces would have the same id", photo::stem(twice))))
        }
        None => Ok(()),
    }
}

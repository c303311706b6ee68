//! `visage predict`: prints what a model predicts for photos.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;

use super::{connection::Remote, face_options::FaceArgs, failure, names, output, photo, pictures, wording::text};
use crate::proto::v1::{self, stream_predict_response::Result as Item};

/// Prints what a model predicts for photos.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage predict --model face portrait.jpg
  visage predict --model face@challenger --head age --json *.jpg | jq .response.predictions")]
pub(super) struct PredictArgs {
    /// JPEG, PNG or WebP files; - is standard input.
    #[arg(required = true, value_name = "PHOTO")]
    photos: Vec<PathBuf>,
    /// face for its champion, face@ALIAS, face/3 for a version; without it, the server's default model.
    #[arg(long, short, default_value = "")]
    model: String,
    /// Only these heads; without it, all of the model's.
    #[arg(long)]
    head: Vec<String>,
    #[command(flatten)]
    faces: FaceArgs,
    /// Draws boxes, landmarks, answers and reasons over the photo, as an SVG picture; for one photo.
    #[arg(long, value_name = "FILE.svg")]
    annotate: Option<PathBuf>,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command; returns false when a photo could not be answered.
pub(super) async fn run(args: PredictArgs) -> anyhow::Result<bool> {
    let mut server = args.remote.connect().await?;
    let template =
        v1::PredictRequest { model: names::model(&args.model), heads: args.head.clone(), ..args.faces.request()? };
    if let Some(file) = &args.annotate {
        if args.photos.len() > 1 {
            bail!(failure::Usage("--annotate needs exactly one photo".to_owned()));
        }
        if file.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("svg")) {
            bail!(failure::Usage(format!("--annotate {}: must end in .svg, the format it writes", file.display())));
        }
    }
    if let [photo] = args.photos.as_slice() {
        let image = photo::read(photo).await?;
        let request = args.remote.request(v1::PredictRequest { image: image.clone(), ..template });
        let shown = photo.display().to_string();
        let response = server.visage.predict(request).await.with_context(|| shown.clone())?.into_inner();
        let lines = text(&shown, &response);
        if let Some(file) = &args.annotate {
            let picture = pictures::annotated(&image, &response)?;
            tokio::fs::write(file, picture).await.with_context(|| file.display().to_string())?;
        }
        // In the form of a stream, so that scripts need not distinguish one photo from many.
        let answer = v1::StreamPredictResponse { correlation_id: shown, result: Some(Item::Response(response)) };
        output::show(args.remote.json, &answer, |_| lines)?;
        return Ok(true);
    }
    let progress = output::bar(args.photos.len() as u64, "predicting");
    let photos = args.photos.clone();
    let unread = photo::Unread::default();
    let requests = unread.stream(photos).map(move |(path, image)| {
        let request = v1::PredictRequest { image, ..template.clone() };
        v1::StreamPredictRequest { request: Some(request), correlation_id: path.display().to_string() }
    });
    let mut answers = server.visage.stream_predict(requests).await?.into_inner();
    let (mut n_answers, mut all_answered) = (0, true);
    while let Some(answer) = answers.message().await? {
        n_answers += 1;
        progress.inc(1);
        all_answered &= matches!(answer.result, Some(Item::Response(_)));
        progress.suspend(|| {
            output::show(args.remote.json, &answer, |answer| match &answer.result {
                Some(Item::Response(response)) => text(&answer.correlation_id, response),
                Some(Item::Error(error)) => format!("{}  {}", answer.correlation_id, failure::one_line(error)),
                None => format!("{}  no answer", answer.correlation_id),
            })
        })?;
    }
    progress.finish_and_clear();
    let n_sent = args.photos.len() - unread.count();
    if n_answers < n_sent {
        bail!("the server answered {n_answers} of {n_sent} photos and ended the stream");
    }
    Ok(all_answered && unread.count() == 0)
}

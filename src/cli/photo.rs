//! Photos on this machine.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::io::AsyncReadExt;

/// Reads a file's bytes; `-` is standard input.
pub(super) async fn read(path: &Path) -> anyhow::Result<Bytes> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        tokio::io::stdin().read_to_end(&mut bytes).await.context("standard input")?;
        return Ok(bytes.into());
    }
    if path.is_dir() {
        bail!("{0}: is a folder; name the photos in it, such as {0}/*.jpg", path.display());
    }
    Ok(tokio::fs::read(path).await.with_context(|| path.display().to_string())?.into())
}

/// Returns a file's name without folder and extension.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Counts a stream's unreadable photos, which are reported at once and left out.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// Streams the readable files with their bytes, in order.
    pub(super) fn stream(&self, photos: Vec<PathBuf>) -> impl Stream<Item = (PathBuf, Bytes)> + Send + 'static {
        let unread = self.clone();
        futures::stream::iter(photos).filter_map(move |path| {
            let unread = unread.clone();
            async move {
                match read(&path).await {
                    Ok(image) => Some((path, image)),
                    Err(error) => {
                        unread.0.fetch_add(1, Ordering::Relaxed);
                        eprintln!("{error:#}");
                        None
                    }
                }
            }
        })
    }

    /// The number of unreadable photos so far.
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

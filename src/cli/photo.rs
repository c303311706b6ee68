//! Photos on this machine.

use std::path::Path;

use anyhow::Context;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

/// A file's bytes; `-` is standard input.
pub(super) async fn read(path: &Path) -> anyhow::Result<Bytes> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        tokio::io::stdin().read_to_end(&mut bytes).await.context("standard input")?;
        return Ok(bytes.into());
    }
    Ok(tokio::fs::read(path).await.with_context(|| path.display().to_string())?.into())
}

/// A file's name without folder and extension.
pub(super) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

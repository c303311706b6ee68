//! Lists that are returned in pages.

use std::future::Future;

/// Reads every entry of a list; `page` fetches the page of a token and returns its entries and the next token.
///
/// # Errors
/// The first error of `page`.
pub async fn all<T, F>(mut page: impl FnMut(String) -> F) -> anyhow::Result<Vec<T>>
where
    F: Future<Output = Result<(Vec<T>, String), tonic::Status>>,
{
    let (mut entries, mut token) = (Vec::new(), String::new());
    loop {
        let (more, next) = page(token).await?;
        entries.extend(more);
        if next.is_empty() {
            return Ok(entries);
        }
        token = next;
    }
}

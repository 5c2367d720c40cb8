//! The `Authorization` header of a scrape.
//!
//! *In*: the configuration; files are read at each use, so that a rotated secret needs no restart. *Out*: a header that never prints.
//! *Bound*: [`FILE_BYTES_MAX`]. *When full*: a longer file is an error.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::{ScrapeConfig, Secret};
use http::HeaderValue;
use tokio::io::AsyncReadExt;

use super::Failure;

/// Largest credentials file; larger: no header carries it, smaller: long tokens are refused.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The header, if the configuration asks for one.
pub(super) async fn header(scrape: &ScrapeConfig) -> Result<Option<HeaderValue>, Failure> {
    let text = if let Some(basic) = &scrape.basic_auth {
        let password = secret(basic.password.as_ref(), basic.password_file.as_deref()).await?;
        format!("Basic {}", STANDARD.encode(format!("{}:{password}", basic.username)))
    } else if let Some(authorization) = &scrape.authorization {
        let credentials = secret(authorization.credentials.as_ref(), authorization.credentials_file.as_deref()).await?;
        format!("{} {credentials}", authorization.kind)
    } else {
        return Ok(None);
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| Failure::CredentialsForm)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

async fn secret(value: Option<&Secret>, path: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = path else { return Ok(value.map(|secret| secret.expose().to_owned()).unwrap_or_default()) };
    let failed = |source| Failure::Credentials { path: path.to_owned(), source };
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).await.map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other(format!("the file is larger than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(text.trim().to_owned())
}

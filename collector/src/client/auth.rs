//! The headers that a configuration adds to a request: `Authorization` and its own.
//!
//! *In*: the configuration; files are read at each use, so that a rotated secret needs no restart. *Out*: a header that never prints.
//! *Bound*: [`FILE_BYTES_MAX`]. *When full*: a longer file is an error.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::{HttpOptions, Secret};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::AsyncReadExt;

use super::Failure;

/// Largest credentials file; larger: no header carries it, smaller: long tokens are refused.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The headers that the configuration asks for; none of them prints.
pub(super) async fn headers(http: &HttpOptions) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::new();
    if let Some(value) = authorization(http).await? {
        headers.insert(AUTHORIZATION, value);
    }
    for (name, header) in &http.http_headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Failure::CredentialsForm)?;
        let written = header.values.iter().cloned().chain(header.secrets.iter().map(|secret| secret.expose().to_owned()));
        for value in written {
            headers.append(&name, sensitive(&value)?);
        }
        for path in &header.files {
            headers.append(&name, sensitive(&secret(None, Some(path)).await?)?);
        }
    }
    Ok(headers)
}

fn sensitive(text: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Failure::CredentialsForm)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn authorization(http: &HttpOptions) -> Result<Option<HeaderValue>, Failure> {
    let text = if let Some(basic) = &http.basic_auth {
        let password = secret(basic.password.as_ref(), basic.password_file.as_deref()).await?;
        format!("Basic {}", STANDARD.encode(format!("{}:{password}", basic.username)))
    } else if let Some(authorization) = &http.authorization {
        let credentials = secret(authorization.credentials.as_ref(), authorization.credentials_file.as_deref()).await?;
        format!("{} {credentials}", authorization.kind)
    } else {
        return Ok(None);
    };
    sensitive(&text).map(Some)
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

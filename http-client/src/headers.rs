//! The headers that a configuration adds to a request: `Authorization` and its own.
//!
//! *In*: the configuration; files are read at each use, so that a rotated secret needs no restart. *Out*: headers that never print.
//! *Bound*: [`FILE_BYTES_MAX`]. *When full*: a longer file is an error.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use config::{HttpClientConfig, Secret};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Error, files};

/// Largest file with a secret. Larger: no header carries it, smaller: long tokens are refused.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Adds what the configuration asks for; none of it prints.
pub(crate) async fn add(config: &HttpClientConfig, headers: &mut HeaderMap) -> Result<(), Error> {
    if !headers.contains_key(AUTHORIZATION)
        && let Some(value) = authorization(config).await?
    {
        headers.insert(AUTHORIZATION, value);
    }
    for (name, header) in &config.http_headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Error::CredentialsForm)?;
        headers.remove(&name);
        let written = header.values.iter().cloned().chain(header.secrets.iter().map(|secret| secret.expose().to_owned()));
        for value in written {
            headers.append(&name, sensitive(&value)?);
        }
        for path in &header.files {
            headers.append(&name, sensitive(&secret(None, Some(path)).await?)?);
        }
    }
    Ok(())
}

pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| Error::CredentialsForm)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn authorization(config: &HttpClientConfig) -> Result<Option<HeaderValue>, Error> {
    let text = if let Some(basic) = &config.basic_auth {
        let username = match &basic.username_file {
            Some(path) => secret(None, Some(path)).await?,
            None => basic.username.clone(),
        };
        let password = secret(basic.password.as_ref(), basic.password_file.as_deref()).await?;
        format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
    } else if let Some(authorization) = &config.authorization {
        let credentials = secret(authorization.credentials.as_ref(), authorization.credentials_file.as_deref()).await?;
        format!("{} {credentials}", authorization.kind)
    } else if config.bearer_token.is_some() || config.bearer_token_file.is_some() {
        format!("Bearer {}", secret(config.bearer_token.as_ref(), config.bearer_token_file.as_deref()).await?)
    } else {
        return Ok(None);
    };
    sensitive(&text).map(Some)
}

/// A secret as written, or from its file without the blanks around it, as Prometheus reads it.
pub(crate) async fn secret(value: Option<&Secret>, path: Option<&Path>) -> Result<String, Error> {
    let Some(path) = path.map(Path::to_owned) else { return Ok(value.map(|secret| secret.expose().to_owned()).unwrap_or_default()) };
    // A file on a dead network share must not stop every other task.
    let read =
        tokio::task::spawn_blocking(move || files::read(&path, FILE_BYTES_MAX).map_err(|source| Error::Credentials { path, source }));
    let text = read.await.map_err(|error| Error::Transfer(error.to_string()))??;
    Ok(text.trim().to_owned())
}

//! Targets that an HTTP server lists.
//!
//! *In*: a URL. *Out*: groups with the label `__meta_url`. *Bound*: [`crate::client::BODY_BYTES_MAX`]. *When full*: the last good list
//! stays, as it does when the server is away.

use std::sync::Arc;
use std::time::Duration;

use config::HttpSdConfig;
use http::Uri;

use super::{Error, Failed, Source, TargetGroup, Written, groups};
use crate::client::Client;

/// Longest wait for a list, whatever the refresh interval.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The list of one `http_sd_configs` entry.
pub(super) struct List {
    url: String,
    access: http_client::Client,
    client: Arc<Client>,
    refresh: Duration,
    before: Option<Vec<Arc<TargetGroup>>>,
}

impl List {
    pub(super) fn new(sd: &HttpSdConfig, client: Arc<Client>) -> Self {
        Self {
            url: sd.url.clone(),
            access: http_client::Client::new(sd.http.clone()),
            client,
            refresh: sd.refresh_interval.duration(),
            before: None,
        }
    }

    async fn get(&self) -> Result<Vec<Arc<TargetGroup>>, Error> {
        let failed = |source| Error::Get { url: self.url.clone(), source };
        let url: Uri =
            self.url.parse().map_err(|error: http::uri::InvalidUri| failed(http_client::Error::Connect(error.to_string()).into()))?;
        let body = self.client.list(&url, &self.access, self.refresh, self.refresh.min(TIMEOUT_MAX)).await.map_err(failed)?;
        let list: Vec<Written> =
            serde_json::from_slice(&body).map_err(|error| Error::Parse { from: self.url.clone(), reason: error.to_string() })?;
        Ok(groups(&self.url, "__meta_url", list))
    }
}

impl Source for List {
    const MECHANISM: &'static str = "http";

    async fn find(&mut self, failed: &mut Failed) -> Option<Vec<Arc<TargetGroup>>> {
        match self.get().await {
            Ok(found) if self.before.as_ref() == Some(&found) => None,
            Ok(found) => {
                self.before = Some(found.clone());
                Some(found)
            }
            Err(error) => {
                failed.add(&error);
                None
            }
        }
    }
}

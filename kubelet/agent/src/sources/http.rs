//! A URL of manifests: `staticPodURL`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::mpsc;
use tracing::warn;

use super::manifest::{MAX_BYTES, Manifest, collect, read};
use super::{Finding, SourceKind, Update};

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Headers that HTTP can't carry, or a client that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// A name or value of `staticPodURLHeader`.
    #[error("staticPodURLHeader: `{0}` is no header")]
    Header(String),
    /// TLS or the like.
    #[error("failed to make a client for `{url}`")]
    Client {
        /// `staticPodURL`.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

/// A URL of manifests.
#[derive(Debug)]
pub struct Url {
    url: String,
    node: String,
    client: reqwest::Client,
    last: Option<(String, Manifest)>,
}

impl Url {
    /// The manifests at a URL, for the node of a name. `headers` is `staticPodURLHeader`.
    ///
    /// # Errors
    /// A header is none, or no client can be made.
    pub fn new(url: &str, headers: &BTreeMap<String, Vec<String>>, node: &str) -> Result<Self, UrlError> {
        let mut sent = HeaderMap::new();
        for (name, values) in headers {
            let bad = || UrlError::Header(name.clone());
            let header: HeaderName = name.parse().map_err(|_| bad())?;
            for value in values {
                sent.append(header.clone(), HeaderValue::from_str(value).map_err(|_| bad())?);
            }
        }
        // Another provider that is there already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .default_headers(sent)
            .timeout(ANSWER)
            .build()
            .map_err(|source| UrlError::Client {
                url: url.to_owned(),
                source,
            })?;
        Ok(Self {
            url: url.to_owned(),
            node: node.to_owned(),
            client,
            last: None,
        })
    }

    /// Asks the URL and hands over what it names, now and whenever that changes, until nobody listens.
    pub async fn run(mut self, every: Duration, updates: mpsc::Sender<Update>, now: impl Fn() -> Timestamp) {
        let mut failures = 0_u32;
        loop {
            match self.ask().await {
                Ok(text) => {
                    failures = 0;
                    if let Some(update) = self.take(text, now())
                        && updates.send(update).await.is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    // The first few, then one in a hundred: a server may be away for days.
                    if failures < 4 || failures.is_multiple_of(100) {
                        warn!(url = %self.url, failures, "failed to read manifests: {error}");
                    }
                }
            }
            tokio::select! {
                () = updates.closed() => return,
                () = tokio::time::sleep(every) => {}
            }
        }
    }

    /// The answer's text.
    async fn ask(&self) -> Result<String, String> {
        let answer = self
            .client
            .get(&self.url)
            .send()
            .await
            .map_err(|error| error.to_string())?;
        let status = answer.status();
        if !status.is_success() {
            return Err(format!("{status}"));
        }
        let mut bytes = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
            if bytes.len() as u64 > MAX_BYTES {
                return Err(format!("the answer is larger than {} MiB", MAX_BYTES >> 20));
            }
        }
        if bytes.is_empty() {
            return Err("the answer is empty".to_owned());
        }
        String::from_utf8(bytes).map_err(|error| error.to_string())
    }

    /// What an answer names, if it is another one than the last.
    fn take(&mut self, text: String, now: Timestamp) -> Option<Update> {
        if self.last.as_ref().is_some_and(|(last, _)| *last == text) {
            return None;
        }
        let mut manifest = read(&text, &self.url, SourceKind::Http, &self.node, now);
        for Finding { place, message } in &manifest.findings {
            warn!(place, "{message}");
        }
        if let (true, Some((_, last))) = (manifest.is_broken(), &self.last) {
            manifest.named.clone_from(&last.named);
        }
        let (pods, objects, findings) = collect([(self.url.as_str(), &manifest)].into_iter());
        self.last = Some((text, manifest));
        Some(Update {
            source: SourceKind::Http,
            pods,
            objects,
            findings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_are_none_are_named() {
        let headers = [("bad name".to_owned(), vec!["x".to_owned()])].into();
        let error = Url::new("http://127.0.0.1/", &headers, "n").expect_err("refused");
        assert_eq!(error.to_string(), "staticPodURLHeader: `bad name` is no header");
    }

    #[tokio::test]
    async fn what_a_server_says_becomes_pods_and_the_same_answer_is_told_once() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let url = format!("http://{}/pods", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut buffer = vec![0; 4096];
                let read = stream.read(&mut buffer).await.expect("a request");
                seen.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
                let body = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\n";
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
            seen
        });
        let headers = [("x-node".to_owned(), vec!["one".to_owned()])].into();
        let mut source = Url::new(&url, &headers, "n").expect("a source");
        let text = source.ask().await.expect("an answer");
        let update = source.take(text, Timestamp::UNIX_EPOCH).expect("an update");
        assert_eq!(update.pods[0].metadata.name.as_deref(), Some("a-n"));
        let again = source.ask().await.expect("an answer");
        assert!(source.take(again, Timestamp::UNIX_EPOCH).is_none());
        let requests = server.await.expect("it served");
        assert!(requests[0].contains("x-node: one"), "{requests:?}");
    }
}

//! Requests to the hub: lists the files of a revision, queries their hashes, and downloads them
//! into the cache.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, ETAG, LOCATION, RETRY_AFTER};
use ureq::http::{Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::cache::Hub;
use super::damage::{damage_of_file, hash_as};
use super::environment::variable;
use super::error::{HubError, at};
use super::event::{Event, Pace};
use super::model::{HubModel, is_commit};
use crate::atomic_file;

/// Number of attempts without progress before giving up.
const ATTEMPTS: u32 = 5;
/// Number of new bytes that count as progress.
const PROGRESS: u64 = 1 << 20;
/// Limit on the wait that a server may request (`Retry-After`).
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// Timeout for connecting, and for receiving the next bytes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: u32 = 8;
/// Maximum size in bytes of the list of a repository's files.
const LONGEST_LIST: usize = 10 << 20;
/// Polling interval while another process holds the lock.
const TICK: Duration = Duration::from_millis(100);

/// A failure, and whether a retry may help.
enum Failure {
    Final(HubError),
    Passing {
        error: HubError,
        wait: Option<Duration>,
    },
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// The HTTP client, with proxies from the environment, and with the certificates of `SSL_CERT_FILE`
/// or a similar variable, which some proxies need.
fn agent(endpoint: &str, pace: Pace) -> Result<Agent, HubError> {
    let parsed: Option<Uri> = endpoint.parse().ok();
    // An `@` in the path comes from a password with an unescaped slash; the parsed host would be
    // wrong.
    let is_cut = parsed.as_ref().is_some_and(|url| url.path().contains('@'));
    if is_cut || parsed.as_ref().and_then(origin).is_none() {
        return Err(HubError::Variable {
            variable: "HF_ENDPOINT".to_owned(),
            value: without_password(endpoint),
            why: "it must be a URL such as https://host".to_owned(),
        });
    }
    let roots = match ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
        .iter()
        .find_map(|name| Some((name, variable(name)?)))
    {
        Some((name, path)) => {
            let wrong = |why: String| HubError::Variable {
                variable: (*name).to_owned(),
                value: path.clone(),
                why,
            };
            let pem = std::fs::read(&path).map_err(|error| wrong(error.to_string()))?;
            let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            if certificates.is_empty() {
                return Err(wrong("the file contains no certificate".to_owned()));
            }
            RootCerts::new_with_certs(&certificates)
        }
        None => RootCerts::WebPki,
    };
    Ok(Agent::config_builder()
        .user_agent(concat!("seqembed/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(if pace.bytes == 0 {
            READ_TIMEOUT
        } else {
            READ_TIMEOUT.min(pace.time)
        }))
        .build()
        .new_agent())
}

/// Scheme, host and port, which must match the endpoint's for the token to be sent.
fn origin(url: &Uri) -> Option<(String, String, u16)> {
    let scheme = url.scheme_str()?.to_ascii_lowercase();
    let default = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    Some((
        scheme,
        url.host()?.to_ascii_lowercase(),
        url.port_u16().unwrap_or(default),
    ))
}

/// The target of a redirect: `location` may be an absolute URL, or a path on the same host.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    if let Ok(url) = location.parse::<Uri>()
        && origin(&url).is_some()
    {
        return Some(url);
    }
    let scheme = from.scheme_str()?;
    let whole = if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", from.authority()?)
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{}{folder}/{location}", from.authority()?)
    };
    whole.parse().ok()
}

/// A URL for messages, without user and password, and without the query, which is long and secret
/// in signed URLs.
fn told(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find('/').map_or(url.len(), |at| begin + at);
    let (host, path) = (&url[begin..end], &url[end..]);
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{}***@{host}{path}", &url[..begin]),
        None => url.to_owned(),
    }
}

/// Text that should be a URL, with everything removed that may be part of a password.
fn without_password(text: &str) -> String {
    let Some((before, host)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let scheme = before.find("://").map_or("", |at| &before[..at + 3]);
    format!("{scheme}***@{host}")
}

/// The kind of a request, which decides how redirects are handled.
#[derive(Clone, Copy, PartialEq)]
enum Ask {
    /// A document.
    Get,
    /// The file from this byte on.
    From(u64),
    /// Only the metadata of a file.
    Head,
}

/// Metadata of a file, as given by the hub.
struct Announced {
    /// Its hash, which is also the name of its blob.
    etag: String,
    size: Option<u64>,
    /// The URL to download it from.
    url: Uri,
}

/// Receives a part of a response body; returns false to stop reading.
type Take<'t, 'a> = dyn FnMut(&mut Download<'a>, &[u8]) -> Result<bool, Failure> + 't;

/// The download of one model.
pub(super) struct Download<'a> {
    hub: &'a Hub,
    agent: Agent,
    model: &'a HubModel,
    commit: String,
    /// Whether existing files are verified by their hashes.
    update: bool,
    /// Total number of new bytes received: attempts that make progress do not count as failed.
    received: u64,
    events: &'a mut dyn FnMut(&Event<'_>),
}

impl<'a> Download<'a> {
    pub(super) fn new(
        hub: &'a Hub,
        model: &'a HubModel,
        update: bool,
        events: &'a mut dyn FnMut(&Event<'_>),
    ) -> Result<Self, HubError> {
        let agent = agent(&hub.endpoint, hub.pace)?;
        Ok(Self {
            hub,
            agent,
            model,
            commit: String::new(),
            update,
            received: 0,
            events,
        })
    }

    /// The commit of the revision; known after [`Download::list`].
    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    /// Queries the commit of the revision and the names of its files.
    pub(super) fn list(&mut self) -> Result<Vec<String>, HubError> {
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            siblings: Vec<Sibling>,
        }
        let revision = self.model.revision.replace('/', "%2F");
        let url = format!(
            "{}/api/models/{}/revision/{revision}",
            self.hub.endpoint, self.model.repository
        );
        let answer = |why: String| HubError::Answer {
            url: told(&url),
            why,
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| answer("it is not a valid URL".to_owned()))?;
        let what = format!("model {}", self.model);
        let text = self.repeat(|this| {
            let (response, url) = this.request(&uri, Ask::Get, &what)?;
            let mut text = Vec::new();
            this.body(&url, response, &mut |_, piece| {
                text.extend_from_slice(piece);
                // Stop at a limit that no genuine list reaches.
                Ok(text.len() < LONGEST_LIST)
            })?;
            Ok(text)
        })?;
        let info: Info =
            serde_json::from_slice(&text).map_err(|error| answer(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(answer(format!("it gives the commit as `{}`", info.sha)));
        }
        self.commit = info.sha;
        Ok(info
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect())
    }

    /// Whether a file of the snapshot exists and, if files are to be verified, is undamaged.
    fn is_there(&self, pointer: &Path) -> Result<bool, HubError> {
        if !pointer.is_file() {
            return Ok(false);
        }
        Ok(!self.update || damage_of_file(pointer).map_err(at(pointer))?.is_none())
    }

    /// Creates one file of the snapshot, as a link to its blob.
    pub(super) fn file(&mut self, name: &str) -> Result<(), HubError> {
        let storage = self.hub.storage(self.model);
        let pointer = storage.join("snapshots").join(&self.commit).join(name);
        if self.is_there(&pointer)? {
            return Ok(());
        }
        let announced = self.announced(name)?;
        let blob = storage.join("blobs").join(&announced.etag);
        for folder in [blob.parent(), pointer.parent()].into_iter().flatten() {
            std::fs::create_dir_all(folder).map_err(at(folder))?;
        }
        let _lock = self.lock(name, &announced.etag)?;
        // Another process may have created it in the meantime.
        if self.is_there(&pointer)? {
            return Ok(());
        }
        let there = std::fs::metadata(&blob).ok().map(|blob| blob.len());
        if there.is_none()
            || announced.size.is_some_and(|size| there != Some(size))
            || self.wrong_hash(name, &announced, &blob)?.is_some()
        {
            self.blob(name, &announced, &blob)?;
        }
        link(&blob, &announced.etag, &pointer)
    }

    /// Takes the lock that `huggingface_hub` uses for the same blob. Continues without it on file
    /// systems without locks.
    fn lock(&mut self, name: &str, etag: &str) -> Result<File, HubError> {
        let folder = self.hub.cache.join(".locks").join(
            self.hub
                .storage(self.model)
                .file_name()
                .expect("a storage folder has a name"),
        );
        std::fs::create_dir_all(&folder).map_err(at(&folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(at(&path))?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
            (self.events)(&Event::Waiting { file: name });
            while let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
                self.in_time("another process is downloading the same file")?;
                std::thread::sleep(TICK);
            }
        }
        Ok(file)
    }

    /// Queries the metadata of a file.
    fn announced(&mut self, name: &str) -> Result<Announced, HubError> {
        let url = format!(
            "{}/{}/resolve/{}/{name}",
            self.hub.endpoint, self.model.repository, self.commit
        );
        let answer = |why: &str| HubError::Answer {
            url: told(&url),
            why: why.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| answer("it is not a valid URL"))?;
        let what = format!("file {name} of model {}", self.model);
        let (response, url) = self.repeat(|this| this.request(&uri, Ask::Head, &what))?;
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let etag = header("x-linked-etag")
            .or_else(|| header(ETAG.as_str()))
            .ok_or_else(|| answer("it has no ETag header"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        let plain = etag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
        if etag.is_empty() || !plain {
            return Err(answer(&format!("its ETag is `{etag}`")));
        }
        let redirected = response.status().is_redirection();
        let size =
            header("x-linked-size").or_else(|| header("content-length").filter(|_| !redirected));
        let size = size.and_then(|size| size.parse().ok());
        let url = match response
            .headers()
            .get(LOCATION)
            .and_then(|location| location.to_str().ok())
        {
            Some(location) if redirected => follow(&url, location).ok_or_else(|| {
                answer(
                    "it is a redirect without a valid \
                                                             target",
                )
            })?,
            _ => url,
        };
        Ok(Announced { etag, size, url })
    }

    /// The hash of a downloaded file if it is not the expected one, else `None`. A file for which
    /// the hub gives no hash is accepted, with a warning.
    fn wrong_hash(
        &mut self,
        name: &str,
        announced: &Announced,
        path: &Path,
    ) -> Result<Option<String>, HubError> {
        if let Some(found) = hash_as(&announced.etag, path).map_err(at(path))? {
            return Ok((!announced.etag.eq_ignore_ascii_case(&found)).then_some(found));
        }
        let endpoint = &told(&self.hub.endpoint);
        (self.events)(&Event::Unverified {
            file: name,
            endpoint,
        });
        Ok(None)
    }

    /// Downloads a blob, resuming a partial download, and verifies it.
    fn blob(&mut self, name: &str, announced: &Announced, blob: &Path) -> Result<(), HubError> {
        let part = blob.with_file_name(format!("{}.incomplete", announced.etag));
        let before = std::fs::metadata(&part).map_or(0, |part| part.len());
        loop {
            let done = std::fs::metadata(&part).map_or(0, |part| part.len());
            (self.events)(&Event::Begin {
                file: name,
                done,
                size: announced.size,
            });
            self.transfer(name, announced, &part)?;
            let Some(found) = self.wrong_hash(name, announced, &part)? else {
                std::fs::rename(&part, blob).map_err(at(blob))?;
                (self.events)(&Event::End);
                return Ok(());
            };
            std::fs::remove_file(&part).map_err(at(&part))?;
            // The damage may be in the part that an earlier run left: download once more from the
            // start.
            if done == 0 || before != done {
                return Err(HubError::Hash {
                    file: name.to_owned(),
                    model: self.model.to_string(),
                    expected: announced.etag.clone(),
                    found,
                });
            }
        }
    }

    /// Downloads the missing bytes, retrying as long as attempts make progress.
    fn transfer(&mut self, name: &str, announced: &Announced, part: &Path) -> Result<(), HubError> {
        let what = format!("file {name} of model {}", self.model);
        // Repeated bytes, or bytes beyond the announced size, are no progress.
        let most = announced.size.unwrap_or(u64::MAX);
        let mut highest = std::fs::metadata(part)
            .map_or(0, |part| part.len())
            .min(most);
        self.repeat(|this| {
            let before = highest;
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(part)
                .map_err(at(part))?;
            let mut done = file.metadata().map_err(at(part))?.len();
            if announced.size == Some(done) {
                return Ok(());
            }
            if announced.size.is_some_and(|size| done > size) {
                file.set_len(0).map_err(at(part))?;
                done = 0;
            }
            let ask = if done == 0 { Ask::Get } else { Ask::From(done) };
            let (response, url) = this.request(&announced.url, ask, &what)?;
            let goes_on = response
                .headers()
                .get("content-range")
                .and_then(|range| range.to_str().ok())
                .is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
            if done > 0 && !(response.status() == 206 && goes_on) {
                // The server sends the file from the start, or does not support ranges: restart the
                // file.
                file.set_len(0).map_err(at(part))?;
                done = 0;
                if response.status() != 200 {
                    let why = format!(
                        "the request for a part of the file returned HTTP status {}",
                        response.status()
                    );
                    return Err(this.broken(&url, why));
                }
            }
            let goes_on = |done: u64| announced.size.is_none_or(|size| done <= size);
            this.body(&url, response, &mut |this, piece| {
                file.write_all(piece).map_err(at(part))?;
                done += piece.len() as u64;
                let progress = done.min(most).saturating_sub(highest);
                this.received += progress;
                highest += progress;
                (this.events)(&Event::Bytes(done));
                Ok(goes_on(done))
            })?;
            let Some(size) = announced.size.filter(|&size| size != done) else {
                return Ok(());
            };
            let came = if done > size {
                // Nothing of the file can be trusted then.
                file.set_len(0).map_err(at(part))?;
                format!("more than {size}")
            } else {
                done.to_string()
            };
            if highest > before {
                return Err(this.broken(&url, format!("received {came} of {size} bytes")));
            }
            std::fs::remove_file(part).map_err(at(part))?;
            Err(Failure::Final(HubError::Size {
                file: name.to_owned(),
                model: this.model.to_string(),
                announced: size,
                came,
            }))
        })
    }

    /// Passes the bytes of a response to `take` as they arrive, until it returns false.
    fn body(
        &mut self,
        url: &Uri,
        response: Response<Body>,
        take: &mut Take<'_, 'a>,
    ) -> Result<(), Failure> {
        let mut body = response
            .into_body()
            .into_with_config()
            .limit(u64::MAX)
            .reader();
        let mut buffer = vec![0; 1 << 18];
        let Pace { bytes, time } = self.hub.pace;
        let (mut since, mut came) = (Instant::now(), 0);
        loop {
            let count = body
                .read(&mut buffer)
                .map_err(|error| self.broken(url, error.to_string()))?;
            if count == 0 || !take(self, &buffer[..count])? {
                return Ok(());
            }
            self.in_time("")?;
            came += count as u64;
            let seconds = since.elapsed();
            if seconds >= time {
                if (came as f64) < bytes as f64 * seconds.as_secs_f64() {
                    let why = format!(
                        "it sent {came} bytes in {:.0} s, but the minimum speed is {bytes} bytes \
                         per second (option `speed_limit`)",
                        seconds.as_secs_f64()
                    );
                    return Err(self.broken(url, why));
                }
                (since, came) = (Instant::now(), 0);
            }
        }
    }

    /// The time left until the deadline.
    fn left(&self) -> Option<Duration> {
        let (deadline, _) = self.hub.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Fails if the deadline has passed; `why` is the last error.
    fn in_time(&self, why: &str) -> Result<(), HubError> {
        match (self.left(), self.hub.deadline) {
            (Some(Duration::ZERO), Some((_, timeout))) => Err(HubError::Timeout {
                seconds: timeout.as_secs(),
                why: if why.is_empty() {
                    String::new()
                } else {
                    format!(", {why}")
                },
            }),
            _ => Ok(()),
        }
    }

    /// Sends one request and follows redirects. The token is sent only to the endpoint.
    fn request(
        &mut self,
        url: &Uri,
        ask: Ask,
        what: &str,
    ) -> Result<(Response<Body>, Uri), Failure> {
        let home = self.hub.endpoint.parse().ok().as_ref().and_then(origin);
        let mut url = url.clone();
        for _ in 0..MAX_REDIRECTS {
            let mut request = match ask {
                Ask::Head => self.agent.head(url.clone()),
                Ask::Get | Ask::From(_) => self.agent.get(url.clone()),
            };
            if let Ask::From(byte) = ask {
                request = request.header("range", format!("bytes={byte}-"));
            }
            if let Some(token) = self.hub.token.as_ref().filter(|_| origin(&url) == home) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            // The wait for the first byte is also bounded by the deadline.
            if let Some(left) = self.left() {
                let left = left.max(Duration::from_millis(1));
                request = request.config().timeout_global(Some(left)).build();
            }
            let response = request.call().map_err(|error| self.network(&url, &error))?;
            self.hub.answered.set(true);
            let status = response.status();
            let described = response.headers().contains_key("x-linked-etag");
            if status.is_success()
                || status == 416
                || (ask == Ask::Head && status.is_redirection() && described)
            {
                return Ok((response, url));
            }
            if !status.is_redirection() {
                return Err(self.refusal(&response, &url, what));
            }
            let answer = |why: &str| HubError::Answer {
                url: told(&url.to_string()),
                why: why.to_owned(),
            };
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok());
            url = location
                .and_then(|location| follow(&url, location))
                .ok_or_else(|| answer("it is a redirect without a valid target"))?;
        }
        Err(HubError::Answer {
            url: told(&url.to_string()),
            why: "too many redirects".to_owned(),
        }
        .into())
    }

    /// The error for an unsuccessful response.
    fn refusal(&self, response: &Response<Body>, url: &Uri, what: &str) -> Failure {
        let status = response.status();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        let said = header("x-error-message")
            .map(|message| format!(", {message}"))
            .unwrap_or_default();
        match status.as_u16() {
            401 | 403 => {
                let page = format!("{}/{}", told(&self.hub.endpoint), self.model.repository);
                let token = match (&self.hub.token, self.hub.token_from.as_str()) {
                    (Some(_), from) => format!(
                        "The token from {from} was sent: check that it is valid, and that you \
                         have accepted the terms at {page}"
                    ),
                    (None, _) => {
                        format!("Accept the terms at {page}, and set HF_TOKEN to your token")
                    }
                };
                HubError::Refused {
                    what: what.to_owned(),
                    status: format!("{}{said}", status.as_u16()),
                    token,
                }
                .into()
            }
            404 => {
                let what = match header("x-error-code") {
                    Some("RevisionNotFound") => {
                        format!(
                            "revision {} of {}",
                            self.model.revision, self.model.repository
                        )
                    }
                    _ => what.to_owned(),
                };
                HubError::NotFound {
                    what,
                    endpoint: told(&self.hub.endpoint),
                    said,
                }
                .into()
            }
            code => {
                let error = HubError::Status {
                    url: told(&url.to_string()),
                    status: status.to_string(),
                };
                if !matches!(code, 408 | 429 | 500 | 502 | 503 | 504) {
                    return error.into();
                }
                let wait =
                    header(RETRY_AFTER.as_str()).and_then(|seconds| seconds.trim().parse().ok());
                Failure::Passing {
                    error,
                    wait: wait.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT)),
                }
            }
        }
    }

    /// The error for a request without a response. It is retried if the hub has responded before,
    /// or if a connection existed.
    fn network(&self, url: &Uri, error: &ureq::Error) -> Failure {
        let why = match error {
            ureq::Error::HostNotFound => {
                format!("the host {} was not found", url.host().unwrap_or_default())
            }
            other => other.to_string(),
        };
        let dropped = matches!(error, ureq::Error::Io(io) if matches!(
            io.kind(),
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
        ));
        let error = HubError::Network {
            endpoint: told(&self.hub.endpoint),
            why,
            cache: self.hub.cache.clone(),
        };
        if self.hub.answered.get() || dropped {
            Failure::Passing { error, wait: None }
        } else {
            error.into()
        }
    }

    /// The error for a response body that ended early.
    #[expect(clippy::unused_self, reason = "reads like its neighbours")]
    fn broken(&self, url: &Uri, why: String) -> Failure {
        Failure::Passing {
            error: HubError::Broken {
                url: told(&url.to_string()),
                why,
            },
            wait: None,
        }
    }

    /// Retries temporary failures with increasing waits (1, 2, 4, 8 s, or what the server
    /// requests), until [`ATTEMPTS`] in a row brought less than [`PROGRESS`] bytes.
    fn repeat<T>(
        &mut self,
        mut action: impl FnMut(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut attempt = 1;
        let mut before = self.received;
        loop {
            let failed = action(self);
            if self.received - before >= PROGRESS {
                attempt = 1;
                before = self.received;
            }
            let (error, wait) = match failed {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, .. }) if attempt == ATTEMPTS => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait),
            };
            let mut wait = wait.unwrap_or(Duration::from_secs(1 << (attempt - 1)));
            let why = match &error {
                HubError::Network { why, .. } | HubError::Broken { why, .. } => why.clone(),
                HubError::Status { status, .. } => format!("the hub returned HTTP status {status}"),
                other => other.to_string(),
            };
            self.in_time(&why)?;
            wait = wait.min(self.left().unwrap_or(wait));
            (self.events)(&Event::Retry { why: &why, wait });
            std::thread::sleep(wait);
            attempt += 1;
        }
    }
}

/// Creates a snapshot's file: a relative link to the blob, as `huggingface_hub` does, or a copy
/// where links are not supported.
fn link(blob: &Path, etag: &str, pointer: &Path) -> Result<(), HubError> {
    let name = pointer.file_name().unwrap_or_default().to_string_lossy();
    let folder = atomic_file::folder_of(pointer);
    let linked = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(atomic_file::PARTIAL)
        .make_in(folder, |path| {
            std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), path)
        });
    // Renaming replaces a dangling link, and never leaves a moment without the file.
    let linked = linked.and_then(|link| link.persist(pointer).map_err(|error| error.error));
    match linked {
        Ok(()) => Ok(()),
        Err(_) if pointer.is_file() => Ok(()),
        Err(_) => {
            let copy = || {
                let mut file = atomic_file::AtomicFile::replace(pointer)?;
                std::io::copy(&mut File::open(blob)?, &mut file)?;
                file.finish()
            };
            copy().map_err(at(pointer))
        }
    }
}

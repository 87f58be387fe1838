//! Talking to the hub: which files a revision has, what they are, and their bytes into the cache.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use seqembed_onnx::weights::table::hex;
use serde::Deserialize;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::header::{AUTHORIZATION, ETAG, LOCATION, RETRY_AFTER};
use ureq::http::{Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::{Damage, Event, Hub, HubError, HubModel, Pace, at, is_commit, variable};
use crate::atomic_file;

/// How often a request is repeated without progress.
const ATTEMPTS: u32 = 5;
/// How many bytes are progress.
const PROGRESS: u64 = 1 << 20;
/// The longest wait that a server may ask for.
const LONGEST_WAIT: Duration = Duration::from_mins(5);
/// How long to wait for a connection, and for the next bytes of one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: u32 = 8;
/// The longest list of a repository's files.
const LONGEST_LIST: usize = 10 << 20;
/// How often it is looked whether another process is ready.
const TICK: Duration = Duration::from_millis(100);

/// A failure, and whether it may pass.
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

/// The HTTP client: proxies from the environment, and the certificates of `SSL_CERT_FILE` and its kin where a proxy needs them.
fn agent(endpoint: &str, pace: Pace) -> Result<Agent, HubError> {
    let parsed: Option<Uri> = endpoint.parse().ok();
    // With an `@` in its path it is a password with a slash that was not escaped, and the host is another.
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
                return Err(wrong("there is no certificate in that file".to_owned()));
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

/// Scheme, host and port: what must be the same for the token to be sent.
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

/// Where a redirect leads: `location` may be a whole URL, or a path at the same host.
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

/// A URL as messages show it: without the user and password before its host, and without the query, which is a secret of its own
/// in a signed URL, and long.
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

/// What should have been a URL, without what may be a password in it, wherever that ends.
fn without_password(text: &str) -> String {
    let Some((before, host)) = text.rsplit_once('@') else {
        return text.to_owned();
    };
    let scheme = before.find("://").map_or("", |at| &before[..at + 3]);
    format!("{scheme}***@{host}")
}

/// What a request is for: it decides what a redirect means.
#[derive(Clone, Copy, PartialEq)]
enum Ask {
    /// A document.
    Get,
    /// A file from this byte on.
    From(u64),
    /// What the hub says of a file, without the file.
    Head,
}

/// A file as the hub announces it.
struct Announced {
    /// Its hash, and the name of its blob.
    etag: String,
    size: Option<u64>,
    /// Where its bytes are.
    url: Uri,
}

/// Takes some bytes of an answer; false when it needs no more.
type Take<'t, 'a> = dyn FnMut(&mut Download<'a>, &[u8]) -> Result<bool, Failure> + 't;

/// One model's download.
pub(super) struct Download<'a> {
    hub: &'a Hub,
    agent: Agent,
    model: &'a HubModel,
    commit: String,
    /// Whether files that are there are read and compared with their hashes.
    update: bool,
    /// Bytes received in all that had not come before: an attempt that brings some is worth another.
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

    /// The commit that the revision means; known after [`Download::list`].
    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    /// Asks for the commit that the revision means, and for the names of its files.
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
        let uri: Uri = url.parse().map_err(|_| answer("it is no URL".to_owned()))?;
        let what = format!("model {}", self.model);
        let text = self.repeat(|this| {
            let (response, url) = this.request(&uri, Ask::Get, &what)?;
            let mut text = Vec::new();
            this.body(&url, response, &mut |_, piece| {
                text.extend_from_slice(piece);
                // No list of files is as long as this.
                Ok(text.len() < LONGEST_LIST)
            })?;
            Ok(text)
        })?;
        let info: Info =
            serde_json::from_slice(&text).map_err(|error| answer(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(answer(format!("its commit is `{}`", info.sha)));
        }
        self.commit = info.sha;
        Ok(info
            .siblings
            .into_iter()
            .map(|sibling| sibling.rfilename)
            .collect())
    }

    /// Whether a file of the snapshot is there; and undamaged, where that is asked for.
    fn is_there(&self, pointer: &Path) -> Result<bool, HubError> {
        if !pointer.is_file() {
            return Ok(false);
        }
        Ok(!self.update || damage(pointer).map_err(at(pointer))?.is_none())
    }

    /// Makes one file of the snapshot, which links to a blob.
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
        // Another process may have made it meanwhile.
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

    /// Takes the lock that `huggingface_hub` takes for the same blob. A file system without locks goes without.
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
                self.in_time("another process downloads the same file")?;
                std::thread::sleep(TICK);
            }
        }
        Ok(file)
    }

    /// Asks what the hub says of a file.
    fn announced(&mut self, name: &str) -> Result<Announced, HubError> {
        let url = format!(
            "{}/{}/resolve/{}/{name}",
            self.hub.endpoint, self.model.repository, self.commit
        );
        let answer = |why: &str| HubError::Answer {
            url: told(&url),
            why: why.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| answer("it is no URL"))?;
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
            .ok_or_else(|| answer("it has no ETag"))?;
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
            Some(location) if redirected => {
                follow(&url, location).ok_or_else(|| answer("it redirects to nowhere"))?
            }
            _ => url,
        };
        Ok(Announced { etag, size, url })
    }

    /// The hash of a file that is not the announced one. One that the hub announces no hash of is taken as it is, and that is told.
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

    /// Downloads a blob, going on from what is there, and checks it.
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
            // What another run left may have been the damage: once more, from the beginning.
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

    /// Brings the bytes that are missing, with as many attempts as make progress.
    fn transfer(&mut self, name: &str, announced: &Announced, part: &Path) -> Result<(), HubError> {
        let what = format!("file {name} of model {}", self.model);
        // Bytes that come again, or beyond the announced size, are no progress.
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
                // The server begins at the beginning, or does not know that part: so do we.
                file.set_len(0).map_err(at(part))?;
                done = 0;
                if response.status() != 200 {
                    let why = format!("asked for a part, it answers with {}", response.status());
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
                // None of it can be trusted.
                file.set_len(0).map_err(at(part))?;
                format!("more than {size}")
            } else {
                done.to_string()
            };
            if highest > before {
                return Err(this.broken(&url, format!("{came} of {size} bytes came")));
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

    /// Hands out the bytes of an answer as they come, until `take` has enough of them.
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
                        "it sent {came} bytes in {:.0} s, and the least speed is {bytes} a second (--speed-limit)",
                        seconds.as_secs_f64()
                    );
                    return Err(self.broken(url, why));
                }
                (since, came) = (Instant::now(), 0);
            }
        }
    }

    /// How much time there is left.
    fn left(&self) -> Option<Duration> {
        let (deadline, _) = self.hub.deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether there is time left; `why` is what it was spent on.
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

    /// One request, through its redirects. The token goes to the endpoint only.
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
            // A wait for the first byte ends in time, too.
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
                .ok_or_else(|| answer("it redirects to nowhere"))?;
        }
        Err(HubError::Answer {
            url: told(&url.to_string()),
            why: "too many redirects".to_owned(),
        }
        .into())
    }

    /// What an answer that is no success means.
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
                        "The token of {from} was sent: is it valid, and were the terms at {page} accepted?"
                    ),
                    (None, _) => {
                        format!("Accept its terms at {page}, and set HF_TOKEN to a token of yours")
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

    /// What it means that no answer came. It may pass once the hub has answered before, or if the connection was there.
    fn network(&self, url: &Uri, error: &ureq::Error) -> Failure {
        let why = match error {
            ureq::Error::HostNotFound => {
                format!("there is no host {}", url.host().unwrap_or_default())
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

    /// What it means that a body broke off.
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

    /// Repeats what may pass, waiting longer each time (1, 2, 4, 8 s, or what the server asks for), until [`ATTEMPTS`] in a
    /// row brought less than [`PROGRESS`].
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
                HubError::Status { status, .. } => format!("the hub answers with {status}"),
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

/// The hash of a file as the hub names it, by what such a name looks like: SHA-256, or git's SHA-1 of a blob. `None` for a name
/// that is neither.
fn hash_as(name: &str, path: &Path) -> std::io::Result<Option<String>> {
    if !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    match name.len() {
        64 => digest(file, Sha256::new()).map(Some),
        40 => digest(file, Sha1::new_with_prefix(format!("blob {size}\0"))).map(Some),
        _ => Ok(None),
    }
}

/// The hash of a snapshot's file, where it is not the one that the blob it links to is named by. What is no such link has nothing
/// to be compared with.
pub(super) fn damage(pointer: &Path) -> std::io::Result<Option<Damage>> {
    // The blob itself may be a link to another disk.
    let targets = [std::fs::read_link(pointer), std::fs::canonicalize(pointer)];
    for blob in targets.into_iter().flatten() {
        let folder = blob.parent().and_then(Path::file_name);
        let name = blob.file_name().and_then(|name| name.to_str());
        let (Some(folder), Some(name)) = (folder, name) else {
            continue;
        };
        if folder == "blobs"
            && let Some(found) = hash_as(name, pointer)?
        {
            return Ok((!name.eq_ignore_ascii_case(&found)).then(|| Damage {
                file: pointer.to_path_buf(),
                expected: name.to_owned(),
                found,
            }));
        }
    }
    Ok(None)
}

fn digest(mut file: File, mut hash: impl Digest) -> std::io::Result<String> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

/// Makes a snapshot's file: a relative link to the blob, as `huggingface_hub` makes it, or a copy where there are no links.
fn link(blob: &Path, etag: &str, pointer: &Path) -> Result<(), HubError> {
    let name = pointer.file_name().unwrap_or_default().to_string_lossy();
    let folder = atomic_file::folder_of(pointer);
    let linked = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .suffix(atomic_file::PARTIAL)
        .make_in(folder, |path| {
            std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), path)
        });
    // By rename: a link to a blob that is gone is in nobody's way, and a good one never away.
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

//! A model folder: `seqembed.json`, `weights.bin`, `model.onnx` and the tokenizer's files.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::contact_head::{self, CONTACT_HEAD_FILE, ContactHead};
use crate::error::Error;
use crate::families::Architecture;
use crate::families::catalog::{KnownModel, known_model};
use crate::families::sizes::FusedFormats;
pub use crate::files::{GRAPH_FILE, INFO_FILE, WEIGHTS_FILE};
use crate::files::{read_small, refuse_lfs_pointer};
use crate::graph::builder::{Builder, OutputHead};
use crate::graph::request::{GraphKind, GraphRequest, Output, Precision};
use crate::head::{Head, HeadInfo};
use crate::tokenizer::TokenizerKind;
use crate::weights::cast::Cast;
use crate::weights::table::{Planned, Storage, TensorInfo, TensorSource, end, place, place_as};
use crate::weights::verify::{self, Expected, WeightsFile};

/// A line for each number of each tensor's shape.
const LONGEST_INFO: u64 = 64 << 20;
/// Counts up whenever graphs or the weights file change in a way that an older folder can't serve.
pub const GRAPH_VERSION: u32 = 1;

/// The source of the weights, such as the path of the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `hugging-face`, `fair-esm` or `random`.
    pub format: String,
    /// Names of the files with weights.
    pub files: Vec<String>,
}

/// Which tokenizer, and its files in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokenizer {
    /// How it makes tokens.
    pub kind: TokenizerKind,
    /// Names of its files.
    pub files: Vec<String>,
}

/// The contents of `seqembed.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The model's name.
    pub name: String,
    /// Architecture and sizes.
    pub architecture: Architecture,
    /// SHA-256 of `weights.bin`, in hexadecimal.
    pub weights_sha256: String,
    /// [`GRAPH_VERSION`] of the program that wrote it.
    pub graph_version: u32,
    /// Number format of the weights.
    pub precision: Precision,
    /// The source of the weights, such as the path of the checkpoint.
    pub source: Source,
    /// Set when the weights are random numbers: their seed.
    pub random_seed: Option<u64>,
    /// Which tokenizer.
    pub tokenizer: Tokenizer,
    /// The longest input that the model is intended for, without special tokens: in residues
    /// (`esm2`), bases (`bpe`), or k-mers or letters (`bert`).
    pub max_residues: Option<usize>,
    /// BLAKE3 of `weights.bin`, verified whenever it is loaded. Older exports do not have it; their
    /// SHA-256 is verified instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_blake3: Option<String>,
    /// BLAKE3 of the folder's other files, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// All tensors of the weights file, in its order.
    pub tensors: Vec<TensorInfo>,
    /// The language-model head in [`HEAD_FILE`](crate::head::HEAD_FILE), if the checkpoint had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadInfo>,
    /// BLAKE3 of all of this but itself, without spaces and in the order of its keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
}

/// What [`ModelInfo::check`] is to be.
fn check_of(json: &serde_json::Value) -> String {
    let mut json = json.clone();
    if let Some(map) = json.as_object_mut() {
        map.remove("check");
        map.sort_keys();
    }
    blake3::hash(json.to_string().as_bytes())
        .to_hex()
        .to_string()
}

impl ModelInfo {
    /// BLAKE3, in hexadecimal, of everything that affects the embeddings: architecture with its
    /// settings, weights, tokenizer, hashes of its files, and the version of its graphs. The name
    /// of the model, the source of the weights and the heads for tokens and contacts are not
    /// included.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "plain data always has a text")]
    pub fn identity(&self) -> String {
        let mut json = serde_json::to_value(self).expect("it is plain data");
        if let Some(map) = json.as_object_mut() {
            map.remove("name");
            map.remove("source");
            map.remove("head");
            if let Some(files) = map.get_mut("files").and_then(|files| files.as_object_mut()) {
                files.remove(CONTACT_HEAD_FILE);
            }
        }
        check_of(&json)
    }

    /// The published model that has this one's name and family; `None` for random weights.
    #[must_use]
    pub fn published(&self) -> Option<KnownModel> {
        let same = |known: &KnownModel| {
            discriminant(&known.architecture) == discriminant(&self.architecture)
        };
        let real = self.random_seed.is_none();
        known_model(&self.name).filter(|known| real && same(known))
    }

    /// The text of `seqembed.json`, which checks itself.
    pub(crate) fn text(&mut self) -> Result<Vec<u8>, serde_json::Error> {
        self.check = None;
        let json = serde_json::from_slice(&serde_json::to_vec(self)?)?;
        self.check = Some(check_of(&json));
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }
}

/// An error about a model folder or a file in it.
fn fault(path: &Path, message: String) -> Error {
    Error::Model {
        path: path.to_path_buf(),
        message,
    }
}

/// Reads `seqembed.json`, and checks that it is of this version and agrees with itself. Returns its
/// hash, too, as [`ModelInfo::check`] has it.
fn read_info(folder: &Path) -> Result<(ModelInfo, String), Error> {
    let path = folder.join(INFO_FILE);
    if !path.is_file() {
        return Err(fault(
            folder,
            format!(
                "not a model folder: it has no {INFO_FILE}; run `seqembed export` to make \
                     one"
            ),
        ));
    }
    let text = read_small(&path, LONGEST_INFO)?;
    // The version first: what another version wrote may differ in anything else.
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(Error::json(&path))?;
    match json
        .get("graph_version")
        .and_then(serde_json::Value::as_u64)
    {
        Some(version) if version == u64::from(GRAPH_VERSION) => {}
        version => {
            let version = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
            return Err(fault(
                &path,
                format!(
                    "its graph version is {version}, but this version of seqembed reads \
                     {GRAPH_VERSION}; export the model again"
                ),
            ));
        }
    }
    let check = check_of(&json);
    let info: ModelInfo = serde_json::from_value(json).map_err(Error::json(&path))?;
    let family = info.architecture.family();
    family.validate().map_err(|message| fault(&path, message))?;
    if info.tensors != place(&family.plan()) {
        return Err(fault(
            &path,
            "its table of tensors does not match its architecture; export the model again"
                .to_owned(),
        ));
    }
    let head = family.head().map(|form| place(&form.plan(None)));
    if let Some(found) = &info.head
        && head.as_ref() != Some(&found.tensors)
    {
        return Err(fault(
            &path,
            "its table of the head's tensors does not match its architecture; export the model \
             again"
                .to_owned(),
        ));
    }
    Ok((info, check))
}

/// An exported model.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    folder: PathBuf,
    info: ModelInfo,
}

impl Model {
    /// Opens a model folder. Reads `seqembed.json` and checks the length of `weights.bin`, but does
    /// not read the weights.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not a model folder, comes from another version, or its weights
    /// file is missing or truncated.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (info, check) = read_info(folder)?;
        let model = Self {
            folder: folder.to_path_buf(),
            info,
        };
        model.check_length()?;
        model.check_files(check)?;
        Ok(model)
    }

    /// Checks that the weights file has its length.
    fn check_length(&self) -> Result<(), Error> {
        let weights = self.folder.join(WEIGHTS_FILE);
        let length = fs::metadata(&weights)
            .map_err(Error::io(&weights, "find"))?
            .len();
        let expected = self.weights_bytes();
        if length == expected {
            return Ok(());
        }
        let mut begin = Vec::new();
        fs::File::open(&weights)
            .and_then(|file| file.take(64).read_to_end(&mut begin))
            .map_err(Error::io(&weights, "read"))?;
        refuse_lfs_pointer(&weights, &begin)?;
        Err(fault(
            &weights,
            format!(
                "has {length} bytes instead of {expected}: {}; export the model again",
                if length < expected {
                    "truncated"
                } else {
                    "these are not the weights of this model"
                }
            ),
        ))
    }

    /// Checks `seqembed.json`, whose own hash is `check`, and the other small files against their
    /// hashes.
    fn check_files(&self, check: String) -> Result<(), Error> {
        let folder = &self.folder;
        let mut files = self.info.tokenizer.files.iter();
        if let Some(file) = files.find(|file| !folder.join(file).is_file()) {
            return Err(fault(
                folder,
                format!("the tokenizer file {file:?} is missing; export the model again"),
            ));
        }
        // Exports that have the one have the other.
        if self.info.check.is_none() && self.info.weights_blake3.is_some() {
            return Err(fault(
                &folder.join(INFO_FILE),
                "its own hash (check) is missing; export the model again".to_owned(),
            ));
        }
        if let Some(expected) = self.info.check.as_ref().filter(|known| **known != check) {
            return Err(Error::Damaged {
                path: folder.join(INFO_FILE),
                algorithm: "BLAKE3",
                expected: expected.clone(),
                found: check,
            });
        }
        for (name, expected) in &self.info.files {
            let path = folder.join(name);
            // Only other programs need the graph.
            if name != GRAPH_FILE || path.exists() {
                verify::small(&path, expected)?;
            }
        }
        Ok(())
    }

    pub(crate) fn new(folder: PathBuf, info: ModelInfo) -> Self {
        Self { folder, info }
    }

    /// The contents of `seqembed.json`.
    #[must_use]
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Architecture and sizes.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.info.architecture
    }

    /// The model folder, which contains the external data of the graphs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The length of `weights.bin`.
    #[must_use]
    pub fn weights_bytes(&self) -> u64 {
        end(&self.info.tensors)
    }

    /// All tensors of a weights file, in its order.
    #[must_use]
    pub fn tensors(&self, storage: impl Into<Storage>) -> Vec<TensorInfo> {
        let Storage { precision, folded } = storage.into();
        let family = self.info.architecture.family();
        let mut plan = family.plan();
        let mut fp8 = Vec::new();
        if folded {
            let mut folds = family.folds();
            if precision == Precision::Fp8 {
                fp8 = std::mem::take(&mut folds.feed_forward);
            }
            let new = folds.biases.into_iter().filter(|bias| {
                self.info
                    .tensors
                    .iter()
                    .all(|known| known.name != bias.name)
            });
            plan.extend(new.map(|bias| Planned {
                name: bias.name,
                shape: vec![bias.length],
                source: TensorSource::Rows(Vec::new()),
            }));
        }
        place_as(&plan, |name| {
            if fp8.iter().any(|weight| weight == name) {
                1
            } else {
                precision.bytes()
            }
        })
    }

    /// The storages of the weights in a precision that graphs of this model may need, on any
    /// device.
    ///
    /// # Errors
    /// [`Error::Precision`] when none does.
    pub fn storages(&self, precision: Precision) -> Result<Vec<Storage>, Error> {
        let sizes = self.info.architecture.sizes();
        let mut all = Vec::new();
        if GraphKind::Packed.has(precision) {
            all.push(precision.into());
        }
        if sizes.can_fuse(precision) {
            all.push(Storage::of(GraphKind::Fused, precision));
        }
        if all.is_empty() {
            let kind = GraphKind::Fused;
            return Err(Error::Precision { kind, precision });
        }
        Ok(all)
    }

    /// Creates a weights file unless it exists, and returns its folder: the model folder, or one in
    /// `cache` if the model folder is not writable.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a weight is out of range for the precision, or an error if a file
    /// cannot be read or written.
    pub fn weights_in(&self, storage: impl Into<Storage>, cache: &Path) -> Result<PathBuf, Error> {
        let storage = storage.into();
        match storage.precision {
            Precision::Fp32 => Ok(self.folder.clone()),
            Precision::Fp16 | Precision::Bf16 | Precision::Fp8 => self.cast(storage).ensure(cache),
        }
    }

    /// Opens a weights file for use, and creates it if it does not exist, as [`Model::weights_in`]
    /// does.
    ///
    /// # Errors
    /// As there.
    pub fn weights(&self, storage: impl Into<Storage>, cache: &Path) -> Result<WeightsFile, Error> {
        let storage = storage.into();
        if storage.precision == Precision::Fp32 {
            return self.wide(&self.folder);
        }
        let path = self.cast(storage).ensure(cache)?.join(storage.file());
        let (length, hash) = self
            .cast(storage)
            .whole(&path)
            .ok_or_else(|| Error::Changed { path: path.clone() })?;
        WeightsFile::open(path, length, Expected::Blake3(hash))
    }

    /// The making of a weights file in another number format.
    pub(crate) fn cast(&self, storage: Storage) -> Cast<'_> {
        let folds = storage
            .folded
            .then(|| self.info.architecture.family().folds());
        Cast {
            folder: &self.folder,
            weights_sha256: &self.info.weights_sha256,
            expected: self.expected(),
            from: &self.info.tensors,
            to: self.tensors(storage),
            folds: folds.unwrap_or_default(),
            storage,
        }
    }

    /// The contact head.
    ///
    /// # Errors
    /// [`Error::NoContactHead`] if the folder has none, or when its file is damaged.
    pub fn contact_head(&self) -> Result<ContactHead, Error> {
        let expected = self.info.architecture.family().contact_weights();
        let (Some(expected), true) = (expected, self.info.files.contains_key(CONTACT_HEAD_FILE))
        else {
            return Err(Error::NoContactHead {
                path: self.folder.clone(),
                published: expected.is_some(),
            });
        };
        let path = self.folder.join(CONTACT_HEAD_FILE);
        let text = read_small(&path, contact_head::LONGEST)?;
        let head: ContactHead = serde_json::from_slice(&text).map_err(Error::json(&path))?;
        if head.weight.len() != expected {
            return Err(fault(
                &path,
                format!(
                    "has {} weights instead of {expected}; export the model again",
                    head.weight.len()
                ),
            ));
        }
        Ok(head)
    }

    /// The hash of `weights.bin`.
    fn expected(&self) -> Expected {
        match &self.info.weights_blake3 {
            Some(hash) => Expected::Blake3(hash.clone()),
            None => Expected::Sha256(self.info.weights_sha256.clone()),
        }
    }

    /// `weights.bin` of a folder.
    fn wide(&self, folder: &Path) -> Result<WeightsFile, Error> {
        let path = folder.join(WEIGHTS_FILE);
        WeightsFile::open(path, self.weights_bytes(), self.expected())
    }

    /// Builds a graph, and returns the bytes of an ONNX file whose external data is
    /// [`Storage::file`].
    ///
    /// # Errors
    /// [`Error::Layer`] if the model has no such layer, [`Error::Precision`] if there is no such
    /// graph in this precision.
    pub fn graph(&self, request: &GraphRequest) -> Result<Vec<u8>, Error> {
        let storage = Storage::of(request.kind, request.precision);
        self.graph_at(request, storage.file())
    }

    /// Builds the graph of the contacts, with external data in a file of this name. Its output
    /// `contacts` has the probabilities of all pairs of tokens of each range, [pairs, 1]: of ranges
    /// of m and n tokens, m * m and then n * n. There must be one range for each sequence.
    ///
    /// # Errors
    /// [`Error::NoContactHead`] if the folder has no contact head, [`Error::NoContactGraph`] if
    /// there is no such graph.
    pub fn contact_graph_at(
        &self,
        kind: GraphKind,
        precision: Precision,
        location: &str,
    ) -> Result<Vec<u8>, Error> {
        let head = self.contact_head()?;
        if (kind, precision) != (GraphKind::Packed, Precision::Fp32) {
            return Err(Error::NoContactGraph { kind, precision });
        }
        let request = GraphRequest {
            kind,
            precision,
            layers: vec![self.info.architecture.family().layers()],
            outputs: Vec::new(),
        };
        Ok(self.assembled(&request, location, None, Some(head)))
    }

    /// The same as [`Model::graph`], with external data in a file of another name.
    ///
    /// # Errors
    /// As [`Model::graph`].
    pub fn graph_at(&self, request: &GraphRequest, location: &str) -> Result<Vec<u8>, Error> {
        self.built(request, location, None)
    }

    /// The language-model head, verified.
    ///
    /// # Errors
    /// [`Error::NoHead`] if the model has none, an error if its file cannot be read or is damaged.
    pub fn head(&self) -> Result<Head, Error> {
        match (&self.info.head, self.info.architecture.family().head()) {
            (Some(info), Some(form)) => form.read(&self.folder, info),
            (_, form) => Err(Error::NoHead {
                path: self.folder.clone(),
                family_has_one: form.is_some(),
            }),
        }
    }

    /// A graph of the last layer whose outputs are log-probabilities of all tokens, [..,
    /// vocabulary], in place of hidden states.
    ///
    /// Of `Output::Tokens` these are each token's. The head is not linear: `Output::Mean` has those
    /// of a token only where the pooled range is this token alone.
    ///
    /// Under token dropout the graph has one more input, `embedding_factor` [tokens, 1], which
    /// embeddings are multiplied by: in a sequence of `n` tokens with `m` masked ones, `n / (n -
    /// m)`.
    ///
    /// # Errors
    /// As [`Model::graph`].
    pub fn head_graph_at(
        &self,
        request: &GraphRequest,
        location: &str,
        head: &Head,
    ) -> Result<Vec<u8>, Error> {
        self.built(request, location, Some(head))
    }

    fn built(
        &self,
        request: &GraphRequest,
        location: &str,
        head: Option<&Head>,
    ) -> Result<Vec<u8>, Error> {
        let family = self.info.architecture.family();
        let layers = family.layers();
        if let Some(&layer) = request.layers.iter().find(|&&layer| layer > layers) {
            return Err(Error::Layer { layer, layers });
        }
        debug_assert!(request.layers.is_sorted() && !request.layers.is_empty());
        let half_tokens = request.outputs.contains(&Output::HalfTokens);
        let is_missing =
            request.kind == GraphKind::Fused && family.sizes().fused == FusedFormats::None;
        if is_missing
            || !request.kind.has(request.precision)
            || (request.kind == GraphKind::Padded && half_tokens)
        {
            return Err(Error::Precision {
                kind: request.kind,
                precision: if half_tokens {
                    Precision::Fp16
                } else {
                    request.precision
                },
            });
        }
        Ok(self.assembled(request, location, head, None))
    }

    /// The graph of a request that was checked.
    fn assembled(
        &self,
        request: &GraphRequest,
        location: &str,
        head: Option<&Head>,
        contact_head: Option<ContactHead>,
    ) -> Vec<u8> {
        let storage = Storage::of(request.kind, request.precision);
        let tensors = self.tensors(storage);
        let names: Vec<String> = request.layers.iter().map(usize::to_string).collect();
        let mut builder = Builder::new(&tensors, storage);
        builder.at(location);
        builder.head(head.map(|head| head as &dyn OutputHead));
        if let Some(head) = contact_head {
            builder.predict_contacts(head);
        }
        self.info.architecture.family().build(&mut builder, request);
        builder.finish(&[
            ("seqembed.graph_version", &GRAPH_VERSION.to_string()),
            ("seqembed.layer", &names.join(",")),
            ("seqembed.weights_sha256", &self.info.weights_sha256),
            ("seqembed.architecture", &self.info.architecture.blake3()),
        ])
    }
}

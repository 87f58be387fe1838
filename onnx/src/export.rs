//! Writing a model folder, whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic_file::{self, AtomicFolder};
use crate::checkpoint::{Canonical, Checkpoint, Settings, check_frequencies, leftovers};
use crate::contact_head::{CONTACT_HEAD_FILE, ContactHead};
use crate::error::Error;
use crate::families::Architecture;
use crate::families::catalog::known_model;
use crate::families::family::Family;
use crate::graph::request::{GraphKind, GraphRequest, Output, Precision};
use crate::model::{
    GRAPH_FILE, GRAPH_VERSION, INFO_FILE, Model, ModelInfo, Source, Tokenizer, WEIGHTS_FILE,
};
use crate::tokenizer::{self, Lookup};
use crate::weights::random::Random;
use crate::weights::table::{Weights, place, write};

/// Says of the text of a tokenizer's file why a family's sequences cannot be read with it.
pub type TokenizerCheck = fn(family: &dyn Family, file: &[u8]) -> Result<(), String>;

/// How to export.
#[derive(Debug, Clone, Default)]
pub struct ExportOptions {
    /// The model's name; by default that of the checkpoint's folder or file.
    pub name: Option<String>,
    /// Replaces a model that is there already.
    pub force: bool,
    /// The tokenizer file (`vocab.txt`, `tokenizer.json` or `spiece.model`), if it is not in the
    /// folder of the weights.
    pub tokenizer: Option<PathBuf>,
    /// Asked about a tokenizer's file before any weights are written.
    pub check_tokenizer: Option<TokenizerCheck>,
    /// Also write the weights in this precision, for GPUs; otherwise they are created when first
    /// needed.
    pub half: Option<Precision>,
}

impl ExportOptions {
    /// The text of the tokenizer's file for a family, from where it was named or else from
    /// `folder`.
    fn tokenizer_of(
        &self,
        family: &dyn Family,
        folder: Option<&Path>,
    ) -> Result<Option<Vec<u8>>, Error> {
        let check = |text: &[u8]| match self.check_tokenizer {
            Some(check) => check(family, text),
            None => Ok(()),
        };
        let pieces = family.pieces();
        let lookup = Lookup {
            named: self.tokenizer.as_deref(),
            folder,
            check: Some(&check),
            pieces: pieces.as_deref(),
        };
        tokenizer::find(family.tokenizer(), family.tokens(), &lookup)
    }
}

/// Exports a checkpoint into a new folder.
///
/// # Errors
/// If the checkpoint cannot be read or is not supported, or if the target exists or cannot be
/// written. The target is then unchanged.
pub fn export(source: &Path, target: &Path, options: &ExportOptions) -> Result<Model, Error> {
    check_target(target, options.force)?;
    let checkpoint = Checkpoint::open(source)?;
    let architecture = Architecture::of(&checkpoint)?;
    let family = architecture.family();
    let (names, sizes) = (family.names(), family.sizes());
    let weights = Canonical::of(&checkpoint, &names)?;
    leftovers::check(
        &checkpoint.path,
        &names,
        &family.plan(),
        family.layers(),
        &weights,
    )?;
    if let Some(base) = sizes.rotary_base {
        check_frequencies(&checkpoint, &names, sizes.head_width, base)?;
    }
    let (format, folder) = match &checkpoint.settings {
        Settings::HuggingFace { path, .. } => ("hugging-face", path.parent()),
        Settings::FairEsm { .. } => ("fair-esm", None),
    };
    let tokenizer = options
        .tokenizer_of(family, folder)?
        .or_else(|| family.own_tokenizer())
        .ok_or_else(|| Error::NoTokenizer {
            path: checkpoint.path.clone(),
            file: family.tokenizer().file(),
            vocabulary: family.vocabulary(),
        })?;
    family
        .check_vocabulary(&String::from_utf8_lossy(&tokenizer))
        .map_err(|why| Error::config(&checkpoint.path, why))?;
    let name = options.name.clone().unwrap_or_else(|| name_of(source));
    let head = family.head().and_then(|form| form.find(&checkpoint));
    let plan = Plan {
        head: head.as_ref().map(|head| head as &dyn Weights),
        zero_row: match &checkpoint.settings {
            Settings::FairEsm { .. } => family.head().and_then(|form| form.zeroed_by_fair_esm),
            Settings::HuggingFace { .. } => None,
        },
        name,
        architecture: &architecture,
        source: Source {
            format: format.to_owned(),
            files: checkpoint
                .files
                .iter()
                .filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned()))
                .collect(),
        },
        random_seed: None,
        tokenizer,
        contact_head: match family.contact_weights() {
            Some(number) => ContactHead::of(&checkpoint, number)?,
            None => None,
        },
    };
    plan.write(target, &weights, options)
}

/// Exports random weights in the shape of a known model; the model folder records that they are
/// random.
///
/// # Errors
/// If there is no such model, or the target exists or cannot be written.
pub fn export_random(
    known: &str,
    seed: u64,
    target: &Path,
    options: &ExportOptions,
) -> Result<Model, Error> {
    check_target(target, options.force)?;
    let known = known_model(known).ok_or_else(|| Error::UnknownModel {
        name: known.to_owned(),
    })?;
    let family = known.architecture.family();
    let tokenizer = options
        .tokenizer_of(family, None)?
        .or_else(|| family.sample_tokenizer())
        .ok_or_else(|| Error::NoTokenizer {
            path: target.to_path_buf(),
            file: family.tokenizer().file(),
            vocabulary: family.vocabulary(),
        })?;
    let weights = Random { seed };
    let plan = Plan {
        head: Some(&weights),
        zero_row: None,
        name: options
            .name
            .clone()
            .unwrap_or_else(|| format!("{}-random", known.name)),
        architecture: &known.architecture,
        source: Source {
            format: "random".to_owned(),
            files: Vec::new(),
        },
        random_seed: Some(seed),
        tokenizer,
        contact_head: family
            .contact_weights()
            .map(|number| ContactHead::random(number, weights))
            .transpose()?,
    };
    plan.write(target, &weights, options)
}

/// The name of a checkpoint's folder or file, without extensions of its format.
fn name_of(source: &Path) -> String {
    let absolute = fs::canonicalize(source).unwrap_or_else(|_| source.to_path_buf());
    let name = if absolute.is_dir() {
        absolute.file_name()
    } else if absolute
        .extension()
        .is_some_and(|extension| extension == "pt" || extension == "pth")
    {
        absolute.file_stem()
    } else {
        absolute.parent().and_then(Path::file_name)
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// Whether a folder may be created or replaced here.
fn check_target(target: &Path, force: bool) -> Result<(), Error> {
    let Ok(kind) = fs::metadata(target) else {
        // A broken link would be in the way of the folder.
        return match fs::symlink_metadata(target) {
            Ok(_) => Err(Error::Occupied {
                path: target.to_path_buf(),
            }),
            Err(_) => Ok(()),
        };
    };
    let occupied = || Error::Occupied {
        path: target.to_path_buf(),
    };
    if !kind.is_dir() {
        return Err(occupied());
    }
    if target.join(INFO_FILE).is_file() {
        return if force {
            Ok(())
        } else {
            Err(Error::Exists {
                path: target.to_path_buf(),
            })
        };
    }
    let empty = fs::read_dir(target)
        .map_err(Error::io(target, "list"))?
        .next()
        .is_none();
    if empty { Ok(()) } else { Err(occupied()) }
}

struct Plan<'plan> {
    name: String,
    architecture: &'plan Architecture,
    source: Source,
    random_seed: Option<u64>,
    tokenizer: Vec<u8>,
    /// Where the tensors of its language-model head come from, if it has one.
    head: Option<&'plan dyn Weights>,
    /// A row of its decoder that is zero whatever the checkpoint has there.
    zero_row: Option<usize>,
    contact_head: Option<ContactHead>,
}

impl Plan<'_> {
    fn write(
        self,
        target: &Path,
        weights: &dyn Weights,
        options: &ExportOptions,
    ) -> Result<Model, Error> {
        let (family, contact_head) = (self.architecture.family(), self.contact_head.as_ref());
        let tensors = family.plan();
        // A link to a folder stays a link.
        let resolved = fs::canonicalize(target).unwrap_or_else(|_| target.to_path_buf());
        let named = target;
        let target = resolved.as_path();
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        // What a killed export left of this model.
        if let Some(name) = target.file_name() {
            let _ = atomic_file::sweep(parent, name.to_str());
        }
        // Built next to the target, so that only a rename is left to do; removed if something
        // fails.
        let folder = AtomicFolder::create(target).map_err(Error::io(parent, "write into"))?;
        let hashes = write(&folder.partial().join(WEIGHTS_FILE), &tensors, weights)?;
        let head = match (family.head(), self.head) {
            (Some(form), Some(weights)) => {
                Some(form.write(folder.partial(), weights, self.zero_row)?)
            }
            _ => None,
        };
        let save = |name: &str, bytes: &[u8]| {
            let path = folder.partial().join(name);
            fs::write(&path, bytes).map_err(Error::io(&path, "write"))
        };
        save(family.tokenizer().file(), &self.tokenizer)?;
        let vocabulary = family.tokenizer().file().to_owned();
        let info = ModelInfo {
            name: self.name,
            architecture: self.architecture.clone(),
            weights_sha256: hashes.sha256,
            graph_version: GRAPH_VERSION,
            precision: Precision::Fp32,
            source: self.source,
            random_seed: self.random_seed,
            tokenizer: Tokenizer {
                kind: family.tokenizer(),
                files: vec![vocabulary.clone()],
            },
            max_residues: family.max_residues(),
            weights_blake3: Some(hashes.blake3),
            files: BTreeMap::new(),
            tensors: place(&tensors),
            head,
            check: None,
        };
        let model = Model::new(named.to_path_buf(), info.clone());
        let graph = model.graph(&GraphRequest {
            kind: GraphKind::Padded,
            precision: Precision::Fp32,
            layers: vec![family.layers()],
            outputs: vec![Output::Mean, Output::Max, Output::Tokens],
        })?;
        save(GRAPH_FILE, &graph)?;
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        let mut info = info;
        info.files = BTreeMap::from([
            (vocabulary, hash(&self.tokenizer)),
            (GRAPH_FILE.to_owned(), hash(&graph)),
        ]);
        info.files
            .extend(save_contact_head(contact_head, folder.partial())?);
        let json = info
            .text()
            .map_err(Error::json(&folder.partial().join(INFO_FILE)))?;
        save(INFO_FILE, &json)?;
        let model = Model::new(named.to_path_buf(), info);
        if let Some(precision) = options
            .half
            .filter(|&precision| precision != Precision::Fp32)
        {
            for storage in model.storages(precision)? {
                model
                    .cast(storage)
                    .write(folder.partial(), folder.partial())?;
            }
        }
        // The old model stays until the new one is whole.
        check_target(target, options.force)?;
        folder.finish(true).map_err(Error::io(target, "write"))?;
        Ok(model)
    }
}

/// Writes a contact head into a model folder, and returns the name and the BLAKE3 of its file.
fn save_contact_head(
    head: Option<&ContactHead>,
    folder: &Path,
) -> Result<Option<(String, String)>, Error> {
    let Some(head) = head else {
        return Ok(None);
    };
    let path = folder.join(CONTACT_HEAD_FILE);
    let text = head.text().map_err(Error::json(&path))?;
    fs::write(&path, &text).map_err(Error::io(&path, "write"))?;
    let hash = blake3::hash(&text).to_hex().to_string();
    Ok(Some((CONTACT_HEAD_FILE.to_owned(), hash)))
}

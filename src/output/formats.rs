//! The table of output formats: what is called what, which files it makes, who writes and who reads
//! it.
//!
//! Everything that names formats asks here: the command line, manifests, `convert`, `plot` and the
//! names of output files. Tests compare the pipelines' globs and the documentation with
//! [`Format::ALL`].

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::error::OutputError;
use super::layout::Layout;
use super::reader::{Reader, WIDEST};
use super::rows::Rows;
use super::sink::Sink;
use super::{h5, npy, npz, parquet, pt, safetensors, torch_archive, virnucpro};

/// What is known of a format.
struct Info {
    /// Its value of `--format` and in manifests, and the ending of its files' names.
    name: &'static str,
    /// Extensions of the companion files, which replace the extension of the main file.
    beside: &'static [&'static str],
    /// Whether a file is one, by its first nine bytes and what else there is.
    is_one: fn(&[u8], &Path) -> bool,
    create: fn(Layout) -> Result<Box<dyn Sink>, OutputError>,
    open: fn(&Path) -> Result<Reader, OutputError>,
}

/// Generates [`Format`] and everything that depends on it from one table.
macro_rules! formats {
    ($(
        $(#[$help:meta])*
        $format:ident = $name:tt,
        beside: $beside:expr,
        is_one: $is_one:expr,
        create: $create:expr,
        open: $open:expr;
    )*) => {
        /// The format of an embedding file.
        #[derive(
            Debug,
            Clone,
            Copy,
            Default,
            PartialEq,
            Eq,
            Hash,
            clap::ValueEnum,
            serde::Serialize,
            serde::Deserialize,
        )]
        #[non_exhaustive]
        pub enum Format {
            $(
                $(#[$help])*
                #[value(name = $name)]
                #[serde(rename = $name)]
                $format,
            )*
        }

        impl Format {
            /// Every format, the one that is written where none is named first.
            pub const ALL: [Format; [$($name),*].len()] = [$(Format::$format),*];

            fn info(self) -> Info {
                match self {
                    $(Format::$format => Info {
                        name: $name,
                        beside: $beside,
                        is_one: $is_one,
                        create: $create,
                        open: $open,
                    },)*
                }
            }
        }
    };
}

formats! {
    /// Apache Parquet: one row per record
    #[default]
    Parquet = "parquet",
    beside: &[],
    is_one: |head, _| head.starts_with(b"PAR1"),
    create: |layout| Ok(Box::new(parquet::ParquetSink::create(layout)?)),
    open: parquet::open;

    /// NumPy arrays in a zip archive; loads without pickle
    Npz = "npz",
    beside: &[],
    is_one: |head, path| is_zip(head) && !torch_archive::is_one(path),
    create: |layout| Ok(Box::new(npz::NpzSink::create(layout)?)),
    open: npz::open;

    /// One NumPy matrix, with the records in a .tsv file and the provenance in a .provenance.json
    /// file next to it
    Npy = "npy",
    beside: &npy::BESIDE,
    is_one: |head, _| head.starts_with(b"\x93NUMPY"),
    create: |layout| Ok(Box::new(npy::NpySink::create(layout)?)),
    open: npy::open;

    /// HDF5: one matrix, or per residue one dataset per record, as UniProt publishes them
    H5 = "h5",
    beside: &[],
    is_one: |head, _| head.starts_with(b"\x89HDF"),
    create: h5::create,
    open: h5::open;

    /// safetensors: tensors, with the provenance in the header
    Safetensors = "safetensors",
    beside: &[],
    // No magic number, but the header's length and its first character.
    is_one: |head, _| matches!(head, [_, _, _, 0..=5, 0, 0, 0, 0, b'{']),
    create: |layout| Ok(Box::new(safetensors::SafetensorsSink::create(layout)?)),
    open: safetensors::open;

    /// PyTorch's `torch.save`, with VirNucPro's keys `ids` and `data`
    Pt = "pt",
    beside: &[],
    is_one: |head, path| is_zip(head) && torch_archive::is_one(path),
    create: |layout| Ok(Box::new(pt::PtSink::create(layout)?)),
    open: open_torch;
}

fn is_zip(head: &[u8]) -> bool {
    head.starts_with(b"PK")
}

/// Opens a file of `torch.save`: of embeddings, or one of `VirNucPro`'s three kinds.
fn open_torch(path: &Path) -> Result<Reader, OutputError> {
    let file = torch_archive::TorchFile::open(path)?;
    match virnucpro::open(&file)? {
        Some(reader) => Ok(reader),
        None => pt::open(&file),
    }
}

impl Format {
    /// The ending of a file's name, without the dot.
    #[must_use]
    pub fn extension(self) -> &'static str {
        self.info().name
    }

    /// The extensions of the companion files of an output, without the dot.
    #[must_use]
    pub fn beside(self) -> &'static [&'static str] {
        self.info().beside
    }

    /// Checks that no folder has the name of an output or of a companion file.
    ///
    /// # Errors
    /// When one has: it names it.
    pub fn has_room(self, path: &Path) -> Result<(), OutputError> {
        match self.files(path).into_iter().find(|path| path.is_dir()) {
            Some(path) => Err(OutputError::Folder { path }),
            None => Ok(()),
        }
    }

    /// The files of an output; the main file comes last.
    pub(crate) fn files(self, path: &Path) -> Vec<PathBuf> {
        let beside = self.beside().iter();
        beside
            .map(|ending| path.with_extension(ending))
            .chain([path.to_owned()])
            .collect()
    }

    /// A file of somebody else's where something that belongs to an output would be written.
    pub(crate) fn stranger(self, path: &Path) -> Option<PathBuf> {
        match self {
            Format::Npy => npy::stranger(path),
            _ => None,
        }
    }

    /// Whether the format holds the vectors of several poolings or layers; `per_token`: of each
    /// residue.
    #[must_use]
    pub fn holds_columns(self, per_token: bool) -> bool {
        match self {
            Format::Npz | Format::Safetensors => true,
            Format::Parquet | Format::H5 => !per_token,
            Format::Npy | Format::Pt => false,
        }
    }

    /// The formats that do, in words.
    pub(crate) fn holding_columns(per_token: bool) -> String {
        let holds = |format: &Format| format.holds_columns(per_token);
        let names: Vec<&str> = Format::ALL
            .into_iter()
            .filter(holds)
            .map(Format::extension)
            .collect();
        let [others @ .., last] = &names[..] else {
            return String::new();
        };
        format!("{} or {last}", others.join(", "))
    }

    /// The format that a file's name ends in.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        let mut formats = Self::ALL.into_iter();
        formats.find(|format| extension == format.extension())
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

/// Creates a file. The folder of `layout.path` must exist; if it is not writable, the error is
/// reported here, before any row is written.
///
/// # Errors
/// If the folder is not writable; the error names the path.
pub fn create(format: Format, layout: Layout) -> Result<Box<dyn Sink>, OutputError> {
    format.has_room(&layout.path)?;
    if !layout.columns.is_empty() && !format.holds_columns(layout.per_token) {
        return Err(OutputError::Columns {
            format: format.extension(),
            per_token: layout.per_token,
            columns: layout.columns.join(", "),
            others: Format::holding_columns(layout.per_token),
            path: layout.path,
        });
    }
    (format.info().create)(layout)
}

/// Opens an embedding file made by [`create`], or one of VirNucPro's `.pt` files. The format is
/// detected from the content, not from the name.
///
/// ```no_run
/// # use std::path::Path;
/// for rows in seqembed::open_file(Path::new("out/proteins.parquet"))? {
///     let rows = rows?;
///     println!("{} more records", rows.len());
/// }
/// # Ok::<(), seqembed::OutputError>(())
/// ```
///
/// # Errors
/// If the file cannot be read, or is not an embedding file; the error names the path.
pub fn open(path: &Path) -> Result<Reader, OutputError> {
    let mut head = Vec::new();
    File::open(path)
        .and_then(|file| file.take(9).read_to_end(&mut head))
        .map_err(|source| OutputError::Read {
            path: path.to_owned(),
            source,
        })?;
    let mut formats = Format::ALL.into_iter().map(Format::info);
    let format = formats.find(|format| (format.is_one)(&head, path));
    let Some(format) = format else {
        let [others @ .., last] = Format::ALL;
        let others: Vec<&str> = others.iter().map(|format| format.extension()).collect();
        return Err(OutputError::malformed(
            path,
            format!("it is none of {} and {last}", others.join(", ")),
        ));
    };
    let reader = (format.open)(path)?;
    let hidden = reader.layout.width();
    // Without any row, the number of dimensions of VirNucPro's files is unknown.
    if hidden > WIDEST || (hidden == 0 && reader.rows > 0) {
        return Err(OutputError::malformed(
            path,
            format!("its vectors have {hidden} dimensions, but 1 to {WIDEST} are supported"),
        ));
    }
    Ok(reader)
}

/// Reads a whole file of embeddings.
///
/// ```no_run
/// # use std::path::Path;
/// let (rows, layout) = seqembed::read_file(Path::new("out/proteins.npz"))?;
/// println!("{} vectors of {}", rows.len(), layout.provenance("model").unwrap_or("?"));
/// # Ok::<(), seqembed::OutputError>(())
/// ```
///
/// # Errors
/// As [`open`].
pub fn read(path: &Path) -> Result<(Rows, Layout), OutputError> {
    let reader = open(path)?;
    let layout = reader.layout().clone();
    let mut all = Rows::new(layout.hidden);
    for rows in reader {
        all.append(rows?);
    }
    Ok((all, layout))
}

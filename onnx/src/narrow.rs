//! The weights file in 16 bits, made from `weights.bin`: the same tensors in the same order, each at a multiple of
//! [`crate::weights::ALIGNMENT`], then a line with the hash of the file that it was made from.
//!
//! It appears whole or not at all. Of several processes that need it at once, one makes it and the others wait.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::error::Error;
use crate::model::{Model, Precision, TensorInfo, WEIGHTS_FILE};

/// Numbers that are converted at a time.
const PIECE: usize = 1 << 18;
/// More threads than this do not read a file faster.
const MOST_THREADS: usize = 8;

/// What the file ends with.
fn mark(model: &Model) -> String {
    format!("\nfrom {}\n", model.info().weights_sha256)
}

fn end(tensors: &[TensorInfo]) -> u64 {
    tensors
        .last()
        .map_or(0, |tensor| tensor.offset + tensor.bytes)
}

/// Whether a file is there, whole, and made from the model's weights.
fn is_whole(path: &Path, model: &Model, precision: Precision) -> bool {
    let mark = mark(model);
    let end = end(&model.tensors(precision));
    let read = || {
        let mut file = File::open(path).ok()?;
        file.seek(SeekFrom::Start(end)).ok()?;
        let mut found = Vec::new();
        // Files of other models may be longer by any amount.
        file.take(mark.len() as u64 + 1)
            .read_to_end(&mut found)
            .ok()?;
        Some(found)
    };
    read().is_some_and(|found| found == mark.as_bytes())
}

/// Makes the file unless it is there, and returns its folder: the model's, or one below `cache`.
///
/// # Errors
/// See [`Model::weights_in`].
pub(crate) fn ensure(model: &Model, precision: Precision, cache: &Path) -> Result<PathBuf, Error> {
    let own = model.folder().to_path_buf();
    let other = cache.join("weights").join(&model.info().weights_sha256);
    for folder in [&own, &other] {
        if is_whole(&folder.join(precision.weights_file()), model, precision) {
            return Ok(folder.clone());
        }
    }
    match make(&own, model, precision) {
        Err(Error::Io { source, .. }) if refused(source.kind()) => {
            fs::create_dir_all(&other).map_err(Error::io(&other, "create"))?;
            make(&other, model, precision)?;
            Ok(other)
        }
        made => made.map(|()| own),
    }
}

/// Whether a folder can't take the file, and another one may.
fn refused(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
    )
}

/// Makes the file in a folder, unless another process does so first.
fn make(folder: &Path, model: &Model, precision: Precision) -> Result<(), Error> {
    let lock = folder.join(format!(".{}.lock", precision.weights_file()));
    let lock = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&lock)
        .map_err(Error::io(&lock, "create"))?;
    // A file system without locks goes without: then both make it, and the last rename loses nothing.
    let _ = lock.lock();
    if is_whole(&folder.join(precision.weights_file()), model, precision) {
        return Ok(());
    }
    write(model.folder(), folder, model, precision)
}

/// Converts `weights.bin` of one folder into another.
pub(crate) fn write(
    from: &Path,
    folder: &Path,
    model: &Model,
    precision: Precision,
) -> Result<(), Error> {
    let source = from.join(WEIGHTS_FILE);
    let target = folder.join(precision.weights_file());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".weights-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any other new file: the umask takes away from it.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut temporary = builder
        .tempfile_in(folder)
        .map_err(Error::io(folder, "write into"))?;
    let narrowed = model.tensors(precision);
    let end = end(&narrowed);
    temporary
        .as_file()
        .set_len(end)
        .map_err(Error::io(&target, "write"))?;
    let pairs: Vec<_> = model.info().tensors.iter().zip(&narrowed).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), Error> {
        let mut converter = Converter {
            input: File::open(&source).map_err(Error::io(&source, "read"))?,
            output: OpenOptions::new()
                .write(true)
                .open(temporary.path())
                .map_err(Error::io(&target, "write"))?,
            source: &source,
            target: &target,
            precision,
            bytes: Vec::new(),
            wide: Vec::new(),
            narrow: Vec::new(),
        };
        while let Some((wide, narrow)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
            // The others need not go on.
            converter
                .tensor(wide, narrow)
                .inspect_err(|_| next.store(pairs.len(), Ordering::Relaxed))?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(MOST_THREADS))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no part of it panics"))
            .collect::<Result<Vec<()>, Error>>()
    })?;
    let finish = |file: &mut File| {
        file.seek(SeekFrom::Start(end))?;
        file.write_all(mark(model).as_bytes())?;
        // After a crash, a file that has its end has all of it.
        file.sync_all()
    };
    finish(temporary.as_file_mut()).map_err(Error::io(&target, "write"))?;
    temporary
        .persist(&target)
        .map_err(|error| Error::io(&target, "write")(error.error))?;
    Ok(())
}

/// Converts tensors, a piece at a time.
struct Converter<'paths> {
    input: File,
    output: File,
    source: &'paths Path,
    target: &'paths Path,
    precision: Precision,
    bytes: Vec<u8>,
    wide: Vec<f32>,
    narrow: Vec<u16>,
}

impl Converter<'_> {
    fn tensor(&mut self, wide: &TensorInfo, narrow: &TensorInfo) -> Result<(), Error> {
        self.input
            .seek(SeekFrom::Start(wide.offset))
            .map_err(Error::io(self.source, "read"))?;
        self.output
            .seek(SeekFrom::Start(narrow.offset))
            .map_err(Error::io(self.target, "write"))?;
        let mut left = usize::try_from(wide.bytes / 4).expect("the file was found to be this long");
        while left > 0 {
            let count = left.min(PIECE);
            self.bytes.resize(4 * count, 0);
            self.input
                .read_exact(&mut self.bytes)
                .map_err(Error::io(self.source, "read"))?;
            self.wide.clear();
            self.wide.extend(
                self.bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes)),
            );
            self.convert(&wide.name)?;
            self.bytes.clear();
            self.bytes
                .extend(self.narrow.iter().flat_map(|bits| bits.to_le_bytes()));
            self.output
                .write_all(&self.bytes)
                .map_err(Error::io(self.target, "write"))?;
            left -= count;
        }
        Ok(())
    }

    fn convert(&mut self, name: &str) -> Result<(), Error> {
        use half::slice::HalfBitsSliceExt;
        let largest = match self.precision {
            Precision::Fp32 => f32::MAX,
            Precision::Fp16 => f16::MAX.to_f32(),
            Precision::Bf16 => bf16::MAX.to_f32(),
        };
        if let Some(&value) = self.wide.iter().find(|value| value.abs() > largest) {
            return Err(Error::Overflow {
                path: self.source.to_path_buf(),
                tensor: name.to_owned(),
                value,
                precision: self.precision,
            });
        }
        self.narrow.resize(self.wide.len(), 0);
        match self.precision {
            Precision::Bf16 => self
                .narrow
                .reinterpret_cast_mut::<bf16>()
                .convert_from_f32_slice(&self.wide),
            Precision::Fp16 | Precision::Fp32 => self
                .narrow
                .reinterpret_cast_mut::<f16>()
                .convert_from_f32_slice(&self.wide),
        }
        Ok(())
    }
}

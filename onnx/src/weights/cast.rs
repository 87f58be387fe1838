//! The weights file in 16 bits, and in 8 where a number format has them, made from `weights.bin`:
//! the same tensors in the same order, each at a multiple of [`crate::weights::table::ALIGNMENT`],
//! then a line with the hash of the file that it was made from. Where norms are folded
//! ([`crate::weights::norm_fold`]), biases that only come about by it stand behind the others.
//!
//! The file appears atomically. If several processes need it at the same time, one creates it and
//! the others wait.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::atomic_file::{self, AtomicFile};
use crate::error::Error;
use crate::files::WEIGHTS_FILE;
use crate::graph::request::Precision;
use crate::weights::fp8;
use crate::weights::norm_fold::{Bias, Dense, Folds, GAIN, Term};
use crate::weights::table::{Storage, TensorInfo, end};
use crate::weights::verify::{self, Expected, WeightsFile};

/// Numbers that are converted at a time.
const PIECE: usize = 1 << 18;
/// More threads than this do not read a file faster.
const MOST_THREADS: usize = 8;

/// The making of a weights file from that in 32 bits.
pub(crate) struct Cast<'model> {
    /// Path of the model folder.
    pub folder: &'model Path,
    /// SHA-256 of `weights.bin`, in hexadecimal.
    pub weights_sha256: &'model str,
    /// What `weights.bin` is verified with.
    pub expected: Expected,
    /// The tensors of `weights.bin`.
    pub from: &'model [TensorInfo],
    /// The tensors of the file being created.
    pub to: Vec<TensorInfo>,
    /// The norms that are folded into dense layers.
    pub folds: Folds,
    /// Number format of the stored values.
    pub storage: Storage,
}

impl Cast<'_> {
    /// The end of the file: the hash of the weights that it was made from, and BLAKE3 of everything
    /// before.
    fn mark(&self, hash: &str) -> String {
        format!("\nfrom {}\nblake3 {hash}\n", self.weights_sha256)
    }

    /// Length in bytes and hash of an existing file, if it has the right length and was made from
    /// the model's weights.
    pub fn whole(&self, path: &Path) -> Option<(u64, String)> {
        let blank = self.mark(&"0".repeat(64));
        let end = end(&self.to);
        let read = || {
            let mut file = File::open(path).ok()?;
            file.seek(SeekFrom::Start(end)).ok()?;
            let mut found = Vec::new();
            // Files of other models may be longer by any amount.
            file.take(blank.len() as u64 + 1)
                .read_to_end(&mut found)
                .ok()?;
            Some(found)
        };
        let found = String::from_utf8(read()?).ok()?;
        let hash = found.strip_suffix('\n')?.rsplit(' ').next()?;
        (found.len() == blank.len() && found == self.mark(hash)).then(|| (end, hash.to_owned()))
    }

    /// Creates the file unless it exists, and returns its folder: the model folder, or one in
    /// `cache` if the model folder is not writable.
    ///
    /// # Errors
    /// [`Error::Overflow`] if a weight is out of range for the precision, or an error if a file
    /// cannot be read or written.
    pub fn ensure(&self, cache: &Path) -> Result<PathBuf, Error> {
        let own = self.folder;
        let other = cache.join("weights").join(self.weights_sha256);
        for folder in [own, &other] {
            if self.whole(&folder.join(self.storage.file())).is_some() {
                return Ok(folder.to_path_buf());
            }
        }
        match self.make(own) {
            Err(Error::Io { source, .. }) if refused(source.kind()) => {
                fs::create_dir_all(&other).map_err(Error::io(&other, "create"))?;
                self.make(&other)?;
                Ok(other)
            }
            made => made.map(|()| own.to_path_buf()),
        }
    }

    /// Makes the file in a folder, unless another process does so first.
    fn make(&self, folder: &Path) -> Result<(), Error> {
        let lock = folder.join(format!(".{}.lock", self.storage.file()));
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&lock)
            .map_err(Error::io(&lock, "create"))?;
        // A file system without locks goes without: then both make it, and the last rename loses
        // nothing.
        let _ = lock.lock();
        if self.whole(&folder.join(self.storage.file())).is_some() {
            return Ok(());
        }
        // A file made from damaged weights could not be recognised later.
        let path = self.folder.join(WEIGHTS_FILE);
        let weights = WeightsFile::open(path, end(self.from), self.expected.clone())?;
        thread::scope(|scope| {
            let verifying = thread::Builder::new().spawn_scoped(scope, || weights.verify());
            let made = self.fill(self.folder, folder);
            match verifying {
                Ok(verifying) => verifying.join().expect("no part of it panics")?,
                // The system refuses to start more threads.
                Err(_) => weights.verify()?,
            }
            self.complete(made?, folder)
        })
    }

    /// Converts `weights.bin` of one folder, which has just been written, into another.
    ///
    /// # Errors
    /// As [`Cast::ensure`].
    pub fn write(&self, from: &Path, folder: &Path) -> Result<(), Error> {
        let file = self.fill(from, folder)?;
        self.complete(file, folder)
    }

    /// Writes the end of the file, and renames it.
    fn complete(&self, mut file: AtomicFile, folder: &Path) -> Result<(), Error> {
        let target = folder.join(self.storage.file());
        let end = end(&self.to);
        let finish = || {
            let hash = verify::blake3_of(file.file(), end)?;
            file.seek(SeekFrom::Start(end))?;
            file.write_all(self.mark(&hash).as_bytes())?;
            // Even after a crash, a file that has its end is complete.
            file.finish()
        };
        finish().map_err(Error::io(&target, "write"))
    }

    /// Converts the numbers.
    fn fill(&self, from: &Path, folder: &Path) -> Result<AtomicFile, Error> {
        let source = from.join(WEIGHTS_FILE);
        let target = folder.join(self.storage.file());
        let _ = atomic_file::sweep(folder, Some(self.storage.file()));
        let temporary = AtomicFile::replace(&target).map_err(Error::io(folder, "write into"))?;
        temporary
            .file()
            .set_len(end(&self.to))
            .map_err(Error::io(&target, "write"))?;
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), Error> {
            let mut input = Source {
                file: File::open(&source).map_err(Error::io(&source, "read"))?,
                path: &source,
                table: self.from,
                bytes: Vec::new(),
            };
            let mut output = Target {
                file: OpenOptions::new()
                    .write(true)
                    .open(temporary.partial())
                    .map_err(Error::io(&target, "write"))?,
                path: &target,
                source: &source,
                precision: self.storage.precision,
                numbers: Vec::new(),
                bytes: Vec::new(),
            };
            while let Some(tensor) = self.to.get(next.fetch_add(1, Ordering::Relaxed)) {
                // The others need not go on.
                output
                    .make(tensor, &mut input, &self.folds)
                    .inspect_err(|_| next.store(self.to.len(), Ordering::Relaxed))?;
            }
            Ok(())
        };
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            // If the system refuses to start more threads, fewer are used; this thread also works.
            let workers: Vec<_> = (1..threads.min(MOST_THREADS))
                .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let own = work();
            workers
                .into_iter()
                .map(|worker| worker.join().expect("no part of it panics"))
                .collect::<Result<Vec<()>, Error>>()?;
            own
        })?;
        Ok(temporary)
    }
}

/// Whether writing to a folder failed in a way that another folder may avoid.
fn refused(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
    )
}

/// `weights.bin`.
struct Source<'paths> {
    file: File,
    path: &'paths Path,
    table: &'paths [TensorInfo],
    bytes: Vec<u8>,
}

impl<'paths> Source<'paths> {
    fn find(&self, name: &str) -> Option<&'paths TensorInfo> {
        self.table.iter().find(|tensor| tensor.name == name)
    }

    /// A tensor's numbers, rows of `width`, some whole rows at a time.
    fn rows(
        &mut self,
        name: &str,
        range: Range<usize>,
        mut each: impl FnMut(&mut [f32], usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let tensor = self
            .find(name)
            .expect("the table was checked against the family's own list");
        let width = match tensor.shape[..] {
            [_, width] => width.max(1),
            _ => 1,
        };
        let path = self.path;
        let start = SeekFrom::Start(tensor.offset + 4 * (range.start * width) as u64);
        self.file.seek(start).map_err(Error::io(path, "read"))?;
        let mut numbers = Vec::new();
        let mut left = range.len();
        while left > 0 {
            let rows = left.min((PIECE / width).max(1));
            self.bytes.resize(4 * rows * width, 0);
            self.file
                .read_exact(&mut self.bytes)
                .map_err(Error::io(path, "read"))?;
            numbers.clear();
            let (words, _) = self.bytes.as_chunks();
            numbers.extend(words.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            each(&mut numbers, width)?;
            left -= rows;
        }
        Ok(())
    }

    /// How many rows a tensor has; a vector has as many as numbers.
    fn count(&self, name: &str) -> Option<usize> {
        self.find(name)
            .map(|tensor| tensor.shape.first().copied().unwrap_or(1))
    }

    /// A vector of the file.
    fn vector(&mut self, name: &str) -> Result<Vec<f32>, Error> {
        let length = self.count(name).unwrap_or_default();
        let mut vector = Vec::new();
        self.rows(name, 0..length, |numbers, _| {
            vector.extend_from_slice(numbers);
            Ok(())
        })?;
        Ok(vector)
    }

    /// Rows of a matrix times a vector, in f64.
    fn product(
        &mut self,
        matrix: &str,
        rows: Range<usize>,
        vector: &[f64],
    ) -> Result<Vec<f64>, Error> {
        let mut product = Vec::new();
        self.rows(matrix, rows, |numbers, width| {
            product.extend(numbers.chunks_exact(width).map(|row| {
                let terms = row.iter().zip(vector);
                terms.map(|(a, b)| f64::from(*a) * b).sum::<f64>()
            }));
            Ok(())
        })?;
        Ok(product)
    }

    /// What is added to a bias.
    fn term(&mut self, term: &Term) -> Result<Vec<f64>, Error> {
        let product = |input: &mut Self, dense: &Dense, rows: &Range<usize>| {
            let beta = input.vector(&format!("{}.bias", dense.norm))?;
            let beta: Vec<f64> = beta.into_iter().map(f64::from).collect();
            input.product(&dense.weight, rows.clone(), &beta)
        };
        match term {
            Term::Norm(norm) => {
                let beta = self.vector(&format!("{norm}.bias"))?;
                Ok(beta.into_iter().map(f64::from).collect())
            }
            Term::Product(dense, rows) => product(self, dense, rows),
            Term::Through(weight, dense, rows) => {
                let inner = product(self, dense, rows)?;
                let rows = self.count(weight).unwrap_or_default();
                self.product(weight, 0..rows, &inner)
            }
        }
    }
}

/// The file being created.
struct Target<'paths> {
    file: File,
    path: &'paths Path,
    source: &'paths Path,
    precision: Precision,
    numbers: Vec<u16>,
    bytes: Vec<u8>,
}

impl Target<'_> {
    /// Makes one of its tensors.
    fn make(
        &mut self,
        tensor: &TensorInfo,
        input: &mut Source,
        folds: &Folds,
    ) -> Result<(), Error> {
        let name = &tensor.name;
        self.file
            .seek(SeekFrom::Start(tensor.offset))
            .map_err(Error::io(self.path, "write"))?;
        if let Some(bias) = folds.bias(name) {
            return self.bias(input, bias);
        }
        let gamma = match folds.norm_before(name) {
            Some(norm) => Some(input.vector(&format!("{norm}.weight"))?),
            None => None,
        };
        let fp8 = self.precision == Precision::Fp8 && folds.feed_forward.contains(name);
        let rows = input.count(name).unwrap_or_default();
        input.rows(name, 0..rows, |numbers, width| {
            if let Some(gamma) = &gamma {
                let rows = numbers.chunks_exact_mut(width);
                rows.for_each(|row| fold(row, gamma));
            }
            if !fp8 {
                return self.put(name, numbers);
            }
            let scale = if gamma.is_some() {
                GAIN * fp8::WEIGHT_SCALE
            } else {
                // What comes in was handed on in 8 bits, too.
                for sixteen in numbers.as_chunks_mut().0 {
                    let before: [f32; 16] = *sixteen;
                    *sixteen = fp8::ORDER.map(|at| before[at]);
                }
                fp8::WEIGHT_SCALE
            };
            self.put_fp8(name, numbers, scale)
        })
    }

    /// A bias, and what is added to it.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is intended"
    )]
    fn bias(&mut self, input: &mut Source, bias: &Bias) -> Result<(), Error> {
        let mut sum = vec![0.0; bias.length];
        if input.count(&bias.name).is_some() {
            let own = input.vector(&bias.name)?;
            sum = own.into_iter().map(f64::from).collect();
        }
        for term in &bias.terms {
            let term = input.term(term)?;
            sum.iter_mut()
                .zip(term)
                .for_each(|(sum, term)| *sum += term);
        }
        let sum: Vec<f32> = sum.into_iter().map(|sum| sum as f32).collect();
        self.put(&bias.name, &sum)
    }

    /// Converts and writes numbers of a tensor behind those before.
    fn put(&mut self, name: &str, numbers: &[f32]) -> Result<(), Error> {
        use half::slice::HalfBitsSliceExt;
        let largest = match self.precision {
            Precision::Fp32 => f32::MAX,
            Precision::Fp16 | Precision::Fp8 => f16::MAX.to_f32(),
            Precision::Bf16 => bf16::MAX.to_f32(),
        };
        self.check(name, numbers, largest)?;
        self.numbers.resize(numbers.len(), 0);
        match self.precision {
            Precision::Bf16 => self
                .numbers
                .reinterpret_cast_mut::<bf16>()
                .convert_from_f32_slice(numbers),
            Precision::Fp16 | Precision::Fp8 | Precision::Fp32 => self
                .numbers
                .reinterpret_cast_mut::<f16>()
                .convert_from_f32_slice(numbers),
        }
        self.bytes.clear();
        let bits = self.numbers.iter();
        self.bytes.extend(bits.flat_map(|bits| bits.to_le_bytes()));
        self.write()
    }

    /// The same in 8 bits, `scale` times larger.
    fn put_fp8(&mut self, name: &str, numbers: &[f32], scale: f32) -> Result<(), Error> {
        self.check(name, numbers, fp8::MOST / scale)?;
        self.bytes.clear();
        let encoded = numbers.iter().map(|number| fp8::encode(number * scale));
        self.bytes.extend(encoded);
        self.write()
    }

    fn check(&self, name: &str, numbers: &[f32], largest: f32) -> Result<(), Error> {
        match numbers.iter().find(|value| value.abs() > largest) {
            Some(&value) => Err(Error::Overflow {
                path: self.source.to_path_buf(),
                tensor: name.to_owned(),
                value,
                precision: self.precision,
            }),
            None => Ok(()),
        }
    }

    fn write(&mut self) -> Result<(), Error> {
        self.file
            .write_all(&self.bytes)
            .map_err(Error::io(self.path, "write"))
    }
}

/// A row of a dense layer's weight with the weights of the norm before it, less its mean, and
/// smaller.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is intended"
)]
fn fold(row: &mut [f32], gamma: &[f32]) {
    let product = |(weight, gamma): (&f32, &f32)| f64::from(*weight) * f64::from(*gamma);
    let sum: f64 = row.iter().zip(gamma).map(product).sum();
    let mean = sum / row.len() as f64;
    for (weight, gamma) in row.iter_mut().zip(gamma) {
        *weight = ((product((weight, gamma)) - mean) / f64::from(GAIN)) as f32;
    }
}

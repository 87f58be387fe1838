//! `seqembed convert`: converts embedding files from one format to another.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::{USAGE, inputs, say};
use crate::atomic_file;
use crate::folders;
use crate::output::{self, Format, Layout, OutputPrecision};
use crate::targets::Targets;
use crate::text::counted;
use crate::threads;

/// Convert embedding files from one format to another
///
/// Reads every format that seqembed writes, and VirNucPro's `.pt` files (`*_DNABERT_S.pt`,
/// `*_ESM.pt`, `*_merged.pt`). VirNucPro's files have no lengths, so these become 0. Ids, order,
/// status and provenance are kept. Memory use does not grow with the size of the files.
#[derive(Debug, clap::Args)]
pub struct ConvertArgs {
    /// Embedding files, or folders of them
    #[arg(required = true, value_name = "FILE|FOLDER")]
    inputs: Vec<PathBuf>,

    /// The output folder, created if it does not exist; with a single input also a file, whose
    /// extension sets the format
    #[arg(short, long, value_name = "FOLDER|FILE")]
    out: PathBuf,

    /// The format to write [default: from the extension of OUT]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,

    /// The float format to write [default: as in the input]
    #[arg(long, value_enum, value_name = "PRECISION")]
    output_precision: Option<OutputPrecision>,

    /// Of files with several poolings or layers, write this column alone, such as `mean_33`
    /// [default: all]
    #[arg(long, value_name = "NAME")]
    column: Option<String>,

    /// Print only errors
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the subcommand and returns the exit code of the process.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    // Large files are hashed with all cores.
    threads::pool(threads::helpful(None))?;
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(error) => {
            say(&format!("error: {error:#}"));
            return Ok(USAGE.into());
        }
    };
    let folders: HashSet<&Path> = plan
        .iter()
        .map(|step| atomic_file::folder_of(&step.to))
        .collect();
    for folder in folders {
        // Partial files of killed processes only take up space, so it is no error if they cannot be
        // removed.
        let _ = atomic_file::sweep(folder, None);
    }
    for Step { from, to, format } in plan {
        let rows = convert(&from, &to, format, args)?;
        if !args.quiet {
            say(&format!(
                "{} -> {} ({})",
                from.display(),
                to.display(),
                counted(rows as u64, "row")
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One file to convert.
struct Step {
    from: PathBuf,
    to: PathBuf,
    format: Format,
}

/// The conversions to do, checked before anything is written.
fn plan(args: &ConvertArgs) -> anyhow::Result<Vec<Step>> {
    let files = inputs::expand(&args.inputs)?;
    let named = Format::of(&args.out).filter(|_| !args.out.is_dir());
    let Some(format) = args.format.or(named) else {
        bail!(
            "the output format is not known: give --format, or an output file with the \
               extension of a format"
        );
    };
    let steps: Vec<Step> = if let Some(named) = named {
        let [from] = files.as_slice() else {
            bail!(
                "{} is a single file, but there are {} files to convert: give an output folder",
                args.out.display(),
                files.len()
            );
        };
        if named != format {
            bail!(
                "{} does not have the extension .{format}: change the file name or --format",
                args.out.display()
            );
        }
        vec![Step {
            from: from.clone(),
            to: args.out.clone(),
            format,
        }]
    } else {
        folders::make(&args.out)
            .with_context(|| format!("cannot create the folder {}", args.out.display()))?;
        files
            .into_iter()
            .map(|from| {
                let stem = from.file_stem().unwrap_or_default().to_string_lossy();
                let to = args.out.join(format!("{stem}.{format}"));
                Step { from, to, format }
            })
            .collect()
    };
    let mut taken: HashMap<&Path, &Path> = HashMap::new();
    for Step { from, to, .. } in &steps {
        if let Some(other) = taken.insert(to, from) {
            bail!(
                "{} and {} would both be converted to {}: convert them to different folders",
                other.display(),
                from.display(),
                to.display()
            );
        }
        let same = |path: &Path| path.canonicalize().ok();
        if let Some(place) = same(to)
            && steps
                .iter()
                .any(|step| same(&step.from).as_ref() == Some(&place))
        {
            bail!(
                "{} is one of the inputs: give another output folder",
                to.display()
            );
        }
    }
    let mut targets = Targets::default();
    for step in &steps {
        targets.reads_output("an input", &step.from);
    }
    for step in &steps {
        targets.writes_output(step.format, &step.to)?;
    }
    Ok(steps)
}

/// Converts one file and returns its number of rows.
fn convert(from: &Path, to: &Path, format: Format, args: &ConvertArgs) -> anyhow::Result<u64> {
    let mut reader = output::open(from)?;
    if args.column.is_some() {
        reader = reader.column(args.column.as_deref())?;
    }
    let rows = reader.rows();
    let mut layout = Layout {
        path: to.to_owned(),
        ..reader.layout().clone()
    };
    layout.precision = args.output_precision.unwrap_or(layout.precision);
    let told = layout.provenance.iter_mut();
    for (_, value) in told.filter(|(key, _)| key == "output_precision") {
        *value = layout.precision.to_string();
    }
    let mut sink = output::create(format, layout)?;
    for block in reader {
        sink.put(block?.into())?;
    }
    sink.finish()?;
    Ok(rows)
}

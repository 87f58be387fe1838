//! `seqembed models`: the models known by name.

use std::io::{self, Write};
use std::process::ExitCode;

use seqembed_onnx::known_models;

use super::print;

/// List the models known by name
#[derive(Debug, clap::Args)]
pub struct ModelsArgs {}

/// Prints the table of known models.
///
/// # Errors
/// If standard output is closed.
pub fn run(_: &ModelsArgs) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    list(&mut text)?;
    print(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

fn list(out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<22} {:>10} {:>6} {:>6} {:>9}  HUB ID",
        "NAME", "PARAMETERS", "LAYERS", "WIDTH", "FP32 SIZE"
    )?;
    for known in known_models() {
        writeln!(
            out,
            "{:<22} {:>10} {:>6} {:>6} {:>6.0} MB  {}",
            known.name,
            known.parameters,
            known.architecture.layers(),
            known.architecture.hidden(),
            known.weights_bytes() as f64 / 1e6,
            known.hub_id
        )?;
    }
    Ok(())
}

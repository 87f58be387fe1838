//! Writes a model's graph for a look at it: `graph MODEL_DIR padded|packed LAYER FILE.onnx`.
//!
//! The weights are found when the file lies in the model's folder.

use std::path::Path;
use std::{env, fs, process};

use seqembed_onnx::{GraphKind, GraphRequest, Model, Output};

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Err(error) = write(&arguments) {
        eprintln!("error: {error}");
        process::exit(1);
    }
}

fn write(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [model, kind, layer, file] = arguments else {
        return Err("usage: graph MODEL_DIR padded|packed LAYER FILE.onnx".into());
    };
    let kind = match kind.as_str() {
        "padded" => GraphKind::Padded,
        "packed" => GraphKind::Packed,
        other => return Err(format!("no kind of graph is called {other:?}").into()),
    };
    let graph = Model::open(Path::new(model))?.graph(&GraphRequest {
        kind,
        layer: layer.parse()?,
        outputs: vec![Output::Mean, Output::Max, Output::Tokens],
    })?;
    fs::write(file, graph)?;
    Ok(())
}

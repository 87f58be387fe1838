//! Writes a model's graph for a look at it: `graph MODEL_DIR padded|packed|fused|ort-cuda
//! fp32|fp16|bf16 LAYER OUTPUTS FILE.onnx`, where OUTPUTS are some of
//! `mean,max,tokens,half-tokens`.
//!
//! The weights are found when the file lies in the model's folder.

use std::path::Path;
use std::{env, fs, process};

use seqembed_onnx::{GraphKind, GraphRequest, Model, Output, Precision};

const USAGE: &str =
    "usage: graph MODEL_DIR padded|packed|fused|ort-cuda fp32|fp16|bf16 LAYER OUTPUTS FILE.onnx";

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Err(error) = write(&arguments) {
        eprintln!("error: {error}");
        process::exit(1);
    }
}

fn write(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [model, kind, precision, layer, outputs, file] = arguments else {
        return Err(USAGE.into());
    };
    let kind = match kind.as_str() {
        "padded" => GraphKind::Padded,
        "packed" => GraphKind::Packed,
        "fused" => GraphKind::Fused,
        "ort-cuda" => GraphKind::OrtCuda,
        other => return Err(format!("no kind of graph is called {other:?}").into()),
    };
    let precision = Precision::of_name(precision)
        .ok_or_else(|| format!("no precision is called {precision:?}"))?;
    let outputs = outputs
        .split(',')
        .map(|output| match output {
            "mean" => Ok(Output::Mean),
            "max" => Ok(Output::Max),
            "tokens" => Ok(Output::Tokens),
            "half-tokens" => Ok(Output::HalfTokens),
            other => Err(format!("no output is called {other:?}")),
        })
        .collect::<Result<Vec<_>, String>>()?;
    let graph = Model::open(Path::new(model))?.graph(&GraphRequest {
        kind,
        precision,
        layers: vec![layer.parse()?],
        outputs,
    })?;
    fs::write(file, graph)?;
    Ok(())
}

//! The exported `model.onnx` stands by itself: `onnx.checker` accepts it, and ONNX Runtime from
//! Python gives the numbers that the executable gives.
//!
//! `SEQEMBED_TEST_PYTHON` names a Python that has `onnx`, `onnxruntime` and `numpy`; `make test`
//! sets it.

use crate::common::{DNA_MODELS, DONE, assert_run, exported, python, seqembed, text};

#[test]
fn the_checker_and_onnx_runtime_accept_every_architecture() {
    for model in ["esm2"].iter().chain(&DNA_MODELS) {
        python(
            "onnx, onnxruntime and numpy",
            "import sys, onnx, onnxruntime\n\
             onnx.checker.check_model(sys.argv[1], full_check=True)\n\
             onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])",
            &[text(&exported(model).join("model.onnx"))],
        );
    }
}

#[test]
fn python_runs_the_graph_to_the_same_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let fasta = folder.path().join("x.faa");
    std::fs::write(
        &fasta,
        ">a\nMKTAYIAKQR\n>b\nM\n>c\nGSHMLEDPVXBZOUACDEFGHIKLMNPQRSTVWY\n",
    )
    .unwrap();
    let model = exported("esm2");
    let run = seqembed(&[
        "embed",
        text(&fasta),
        "-m",
        text(model),
        "-o",
        text(folder.path()),
        "--format",
        "npz",
    ]);
    assert_run(&run, DONE, &[]);
    python(
        "onnx, onnxruntime and numpy",
        "import sys, numpy as np, onnxruntime\n\
         model, fasta, ours = sys.argv[1:]\n\
         vocabulary = {t: i for i, t in enumerate(open(model + '/vocab.txt').read().split())}\n\
         sequences = open(fasta).read().split()[1::2]\n\
         lengths = np.array([len(s) + 2 for s in sequences], np.int32)\n\
         ids = np.full((len(sequences), lengths.max()), vocabulary['<pad>'], np.int64)\n\
         for row, s in zip(ids, sequences):\n    \
             row[:len(s) + 2] = [vocabulary[t] for t in ['<cls>', *s, '<eos>']]\n\
         ranges = np.stack([np.ones_like(lengths), lengths - 1], 1).astype(np.int64)\n\
         session = onnxruntime.InferenceSession(model + '/model.onnx', providers=['CPUExecutionProvider'])\n\
         mean, = session.run(['mean'], {'input_ids': ids, 'lengths': lengths, 'pool_range': ranges})\n\
         difference = np.abs(mean - np.load(ours)['embeddings']).max()\n\
         assert difference < 2e-5, difference",
        &[
            text(model),
            text(&fasta),
            text(&folder.path().join("x.npz")),
        ],
    );
}

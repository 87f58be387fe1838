//! Which tensors of a checkpoint are the encoder's, and that the graph has a place for all of them.
//!
//! Beside the encoder a checkpoint may hold anything: heads, a decoder, an optimiser's memory. A tensor of the encoder that the graph does
//! not use would be left out of the vectors without a word, so it is an error.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::checkpoint::Canonical;
use crate::error::Error;
use crate::families::Description;
use crate::families::config::in_layer;

/// How the checkpoints of a family name their tensors.
#[derive(Debug, Clone, Copy)]
pub struct Names {
    /// What the names of the base model begin with where it is part of a larger one.
    pub prefixes: &'static [&'static str],
    /// The modules of the base model that make up the encoder.
    pub encoder: &'static [&'static str],
    /// Tensors of the base model that no vector depends on, in the family's own spelling. `*` is any part of a name between two dots, and a
    /// last `**` any rest.
    pub unused: &'static [&'static str],
}

/// Buffers that any module may have, by the last part of their name: positions, which are counted, rotary frequencies, which are
/// computed ([`Checkpoint::check_frequencies`](crate::checkpoint::Checkpoint::check_frequencies) compares them), and what PyTorch keeps
/// for training.
const BUFFERS: [&str; 4] = [
    "position_ids",
    "inv_freq",
    "num_batches_tracked",
    "_extra_state",
];

/// What a module beside the encoder is for, as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// It takes the encoder's vectors.
    Head,
    /// It changes what goes into the encoder or through it.
    Feeding,
    /// The name does not say.
    Unknown,
}

/// Beginnings of the names of what changes a model from within: `LoRA` and its like.
const LOW_RANK: [&str; 2] = ["lora", "dora"];
/// Learned tokens before each sequence.
const PROMPTS: [&str; 4] = ["prefix", "prompt", "ptuning", "softprompt"];
/// Small layers between those of the model.
const ADAPTERS: [&str; 2] = ["adapter", "adaptor"];
/// Words that only the name of a head has.
const HEAD: [&str; 38] = [
    "class",
    "classes",
    "classification",
    "classifier",
    "classifiers",
    "cls",
    "contact",
    "contrastive",
    "criterion",
    "decoder",
    "dropout",
    "head",
    "heads",
    "label",
    "labels",
    "logit",
    "logits",
    "loss",
    "mlm",
    "nsp",
    "out",
    "output",
    "outputs",
    "pool",
    "pooler",
    "pooling",
    "prediction",
    "predictions",
    "predictor",
    "qa",
    "regression",
    "regressor",
    "relationship",
    "score",
    "scorer",
    "scores",
    "target",
    "version",
];
/// Beginnings of words in the names of what makes, or takes, the encoder's input.
const INPUT: [&str; 2] = ["embed", "input"];
/// Layers that are a head where they stand alone beside an encoder, and the name does not say that they make its input.
const LAYER: [&str; 10] = [
    "dense",
    "fc",
    "ffn",
    "lin",
    "linear",
    "mlp",
    "proj",
    "projection",
    "projections",
    "projector",
];

/// The words of a part of a name, without numbers.
fn words(part: &str) -> impl Iterator<Item = &str> {
    part.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
}

fn begins(part: &str, with: &[&str]) -> bool {
    with.iter().any(|start| part.starts_with(start))
}

impl Beside {
    /// By the name of a tensor that is not below a module of the encoder.
    fn of(name: &str) -> Self {
        let name = name.to_ascii_lowercase();
        let module = name.split('.').next().unwrap_or_default();
        let words: Vec<&str> = words(module).collect();
        let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
        let strong = |word: &str| begins(word, &PROMPTS) || begins(word, &ADAPTERS);
        // Learned tokens, as `prefix_tokens` and `cls_token`, are put beside a sequence's own.
        let tokens = matches!(words.last(), Some(&("token" | "tokens")));
        // Low-rank changes are merged before an export, wherever they are; a head's own adapters are the head's.
        let low_rank = name
            .split('.')
            .flat_map(self::words)
            .any(|word| begins(word, &LOW_RANK));
        let input = words.iter().any(|word| begins(word, &INPUT));
        if low_rank || tokens || words.iter().any(|word| strong(word)) {
            Self::Feeding
        } else if has(&HEAD) {
            // `class_embedding` may be a head's or a learned token.
            if input && !has(&["classifier", "decoder", "head", "heads"]) {
                Self::Unknown
            } else {
                Self::Head
            }
        } else if input
            || matches!(words[..], ["in", ..] | [.., "in"])
            || name.split('.').flat_map(self::words).any(strong)
        {
            Self::Feeding
        } else if has(&LAYER) {
            Self::Head
        } else {
            Self::Unknown
        }
    }
}

/// PEFT's model around another one.
const PEFT: &str = "base_model.";

/// Whether a checkpoint with these names has the base model as a part of a larger one.
pub fn is_part<'name>(
    description: &dyn Description,
    mut names: impl Iterator<Item = &'name str>,
) -> bool {
    let prefixes = description.names().prefixes;
    names.any(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
}

/// Hugging Face's spelling of a tensor of the encoder; `None` for what stands beside it, and for what no vector depends on. `part`: whether
/// other tensors show that the base model is a part of a larger one.
#[must_use]
pub fn canonical(description: &dyn Description, name: &str, part: bool) -> Option<String> {
    let names = description.names();
    let within = names
        .prefixes
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let spelled = description.spelling(within.unwrap_or(name));
    let module = spelled.split('.').next().unwrap_or_default();
    let last = spelled.rsplit('.').next().unwrap_or_default();
    if BUFFERS.contains(&last) || names.unused.iter().any(|pattern| fits(pattern, &spelled)) {
        return None;
    }
    let inside = within.is_some() || names.encoder.contains(&module) || name.starts_with(PEFT);
    let passed_over = !inside
        && match Beside::of(&spelled) {
            Beside::Head => true,
            Beside::Feeding => false,
            // Without a prefix it may as well be a part of the encoder.
            Beside::Unknown => part,
        };
    (!passed_over).then_some(spelled)
}

/// What a tensor's name says that it is for, if it stands beside the encoder.
fn beside(description: &dyn Description, canonical: &str, name: &str) -> Option<Beside> {
    let names = description.names();
    let module = canonical.split('.').next().unwrap_or_default();
    let inside = names.prefixes.iter().any(|prefix| name.starts_with(prefix))
        || names.encoder.contains(&module);
    (!inside).then(|| Beside::of(canonical))
}

/// Whether a tensor has the rotary frequencies of one of the encoder's blocks.
#[must_use]
pub fn are_frequencies(description: &dyn Description, name: &str) -> bool {
    let mut prefixes = description.names().prefixes.iter();
    let within = prefixes.find_map(|prefix| name.strip_prefix(prefix));
    let spelled = description.spelling(within.unwrap_or(name));
    in_layer(&spelled).is_some_and(|(_, part)| part.ends_with(".inv_freq"))
}

/// Whether a name is of a pattern, see [`Names::unused`].
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = name.split('.');
    for wanted in pattern.split('.') {
        match (wanted, parts.next()) {
            ("**", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(part)) if wanted == part => {}
            _ => return false,
        }
    }
    parts.next().is_none()
}

/// Checks that the graph has a place for all tensors of the encoder.
///
/// # Errors
/// [`Error::Config`] when there are more blocks than the configuration says, [`Error::Leftover`] for anything else.
pub fn check(
    path: &Path,
    description: &dyn Description,
    weights: &Canonical<'_>,
) -> Result<(), Error> {
    let plan = description.plan();
    let used: BTreeSet<&str> = plan
        .iter()
        .flat_map(|planned| planned.recipe.inputs())
        .map(|input| input.name.as_str())
        .collect();
    let all = weights.names().collect::<Vec<_>>();
    let left: Vec<(&str, &str)> = all
        .iter()
        .copied()
        .filter(|(canonical, _)| !used.contains(canonical))
        .collect();
    let Some((_, first)) = left.first() else {
        return Ok(());
    };
    let layers = description.layers();
    let blocks = left
        .iter()
        .filter_map(|(canonical, _)| in_layer(canonical))
        .map(|(layer, _)| layer.saturating_add(1))
        .max();
    if let Some(blocks) = blocks.filter(|&blocks| blocks > layers) {
        return Err(Error::config(
            path,
            format!("the configuration says {layers} layers, the weights have {blocks}"),
        ));
    }
    let help = Help::of(&left).unwrap_or_else(|| {
        let sides = left
            .iter()
            .map(|(canonical, name)| beside(description, canonical, name));
        if left.len() == all.len() {
            Help::Foreign
        } else if sides.clone().any(|side| side.is_none()) {
            Help::Variant
        } else if sides.flatten().any(|side| side == Beside::Feeding) {
            Help::Input
        } else {
            Help::Unknown
        }
    });
    Err(Error::Leftover {
        path: path.to_path_buf(),
        count: left.len(),
        first: (*first).to_owned(),
        second: left.get(1).map(|(_, second)| (*second).to_owned()),
        help,
    })
}

/// What helps with tensors that the graph has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Help {
    /// `LoRA` and its like, beside the weights that they change.
    Peft,
    /// Learned prompts or prefixes.
    Prompt,
    /// Small layers between those of the model.
    Adapter,
    /// Integers and their scales.
    Quantised,
    /// Weights as lengths and directions, or otherwise parametrised.
    Parametrised,
    /// Weights and masks.
    Pruned,
    /// A decoder's attention.
    Decoder,
    /// A module beside the encoder that makes its input, as its name says.
    Input,
    /// A module beside the encoder that may be a head.
    Unknown,
    /// No tensor has a name that the model's have.
    Foreign,
    /// Anything else.
    Variant,
}

impl Help {
    /// Told by the names.
    fn of(left: &[(&str, &str)]) -> Option<Self> {
        let any = |is: &dyn Fn(&str) -> bool| left.iter().any(|(_, name)| name.split('.').any(&is));
        let last = |ends: &[&str]| {
            left.iter().any(|(_, name)| {
                name.rsplit('.')
                    .next()
                    .is_some_and(|end| ends.contains(&end))
            })
        };
        let word = |with: &[&str]| {
            any(&|part| words(&part.to_ascii_lowercase()).any(|word| begins(word, with)))
        };
        let kinds = [
            (word(&PROMPTS), Self::Prompt),
            (
                left.iter().any(|(_, name)| name.starts_with(PEFT))
                    || word(&LOW_RANK)
                    || any(&|part| {
                        let parts = [
                            "base_layer",
                            "modules_to_save",
                            "original_module",
                            "ia3_",
                            "vera_",
                            "hada_",
                            "lokr_",
                            "oft_",
                            "boft_",
                            "randlora_",
                            "ln_tuning",
                        ];
                        begins(part, &parts)
                    }),
                Self::Peft,
            ),
            (word(&ADAPTERS), Self::Adapter),
            (
                last(&[
                    "SCB",
                    "absmax",
                    "g_idx",
                    "input_scale",
                    "nested_absmax",
                    "nested_quant_map",
                    "qweight",
                    "qzeros",
                    "quant_map",
                    "scales",
                    "weight_format",
                    "weight_packed",
                    "weight_scale",
                    "weight_scale_inv",
                    "weight_zero_point",
                ]) || any(&|part| begins(part, &["quant_state"])),
                Self::Quantised,
            ),
            (
                last(&["weight_g", "weight_v"]) || any(&|part| part == "parametrizations"),
                Self::Parametrised,
            ),
            (
                last(&["weight_orig", "weight_mask", "bias_orig", "bias_mask"]),
                Self::Pruned,
            ),
            (any(&|part| part == "crossattention"), Self::Decoder),
        ];
        kinds.iter().find(|(is, _)| *is).map(|(_, help)| *help)
    }
}

impl Help {
    /// Whose tensors they are that the graph has no place for.
    pub(crate) fn whose(self) -> &'static str {
        match self {
            Self::Input | Self::Unknown => "the checkpoint's",
            _ => "the encoder's",
        }
    }

    /// What follows from their absence.
    pub(crate) fn effect(self) -> &'static str {
        match self {
            Self::Input | Self::Unknown => "may not",
            _ => "would not",
        }
    }
}

impl fmt::Display for Help {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Peft => {
                "it is a PEFT adapter (LoRA or its like) that is not merged into the weights. In Python, load it with PEFT, then \
                 model.merge_and_unload().save_pretrained(FOLDER), put the tokenizer's files there too, and name that folder"
            }
            Self::Prompt => {
                "it has learned prompts, which stand before each sequence and cannot be merged into the weights: it cannot be exported"
            }
            Self::Adapter => {
                "it has adapters, layers between those of the model, which cannot be merged into the weights: it cannot be exported"
            }
            Self::Quantised => {
                "its weights are quantised. Name the original, or save it again in 32 or 16 bits (in Python, model.dequantize(), \
                 then save_pretrained)"
            }
            Self::Parametrised => {
                "its weights are parametrised (weight norm or its like). In Python, make them plain with \
                 torch.nn.utils.remove_weight_norm or torch.nn.utils.parametrize.remove_parametrizations, and save it again"
            }
            Self::Pruned => {
                "its weights are pruned by masks. In Python, make that permanent with torch.nn.utils.prune.remove, and save it again"
            }
            Self::Decoder => "it is a decoder, with attention to another model's output: it cannot be exported",
            Self::Input => {
                "by its name it makes the encoder's input. If it does not, save the encoder alone (in Python, \
                 model.base_model.save_pretrained(FOLDER)), put the tokenizer's files there too, and name that folder"
            }
            Self::Unknown => {
                "it is beside the encoder, and its name does not say whether it is a head. If it is one, save the encoder alone \
                 (in Python, model.base_model.save_pretrained(FOLDER)), put the tokenizer's files there too, and name that folder"
            }
            Self::Foreign => {
                "no tensor is called as the model's are. Where a wrapper put a prefix before all names (module., model.), save the inner \
                 model's state dict"
            }
            Self::Variant => {
                "it is a variant of the model that computes something else, or was damaged when it was changed: it cannot be exported"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::bert::Bert;
    use crate::families::dnabert2::Dnabert2;
    use crate::families::esm2::Esm2;

    #[test]
    fn patterns_are_of_whole_parts() {
        assert!(fits("pooler.**", "pooler.dense.weight"));
        assert!(fits("a.*.c", "a.*.c") && fits("a.*.c", "a.7.c"));
        for (pattern, name) in [
            ("pooler.**", "pooler"),
            ("pooler.**", "poolers.dense.weight"),
            ("a.*.c", "a.b.c.d"),
            ("a.*.c", "a.c"),
            ("a", "a.b"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    /// Names of what goes into an encoder or changes it, from the code of prompt tuning, PEFT, adapters and ELECTRA's projection.
    #[test]
    fn what_feeds_the_encoder_is_not_passed_over() {
        let esm2 = Esm2::published(6, 320, 20);
        for name in [
            "soft_prompts.weight",
            "softPrompt",
            "prefix_tokens",
            "prefix_projection.0.weight",
            "prompt.weight",
            "prompts",
            "prompts.0",
            "deep_prompt_embeddings",
            "task.prompt_embeddings.weight",
            "lora.layer1.A",
            "LoRA_A",
            "esm_lora.0.A",
            "blocks.0.lora_A",
            "classifier.lora_A.weight",
            "adapter_layers.0.down.weight",
            "task_adapters.0.up.weight",
            "adapter_head.weight",
            "input_proj.weight",
            "inputProj.weight",
            "proj_in.weight",
            "embed_proj.weight",
            "embeddings_project.weight",
            "position_embeddings.weight",
            "cls_token",
            "virtual_tokens",
        ] {
            for part in [false, true] {
                assert!(canonical(&esm2, name, part).is_some(), "{name} {part}");
            }
        }
        // Without a prefix, what may be a part of the encoder.
        for name in [
            "my_module.weight",
            "norm.weight",
            "blocks.0.weight",
            "class_embedding",
        ] {
            assert!(canonical(&esm2, name, false).is_some(), "{name}");
            assert_eq!(canonical(&esm2, name, true), None, "{name}");
        }
    }

    /// Tensors as published checkpoints name them, from the lists that transformers and fair-esm print on loading, and heads of their
    /// own classes: none of them is the encoder's.
    #[test]
    fn what_published_checkpoints_hold_beside_the_encoder_is_passed_over() {
        let esm2 = Esm2::published(6, 320, 20);
        let bert = Bert::dnabert(6);
        let dnabert2 = Dnabert2::published();
        let cases: [(&dyn Description, &[&str], &[&str]); 3] = [
            (
                &esm2,
                &[
                    "esm.embeddings.position_ids",
                    "esm.embeddings.position_embeddings.weight",
                    "esm.encoder.layer.0.attention.self.rotary_embeddings.inv_freq",
                    "esm.contact_head.regression.weight",
                    "esm.pooler.dense.weight",
                    "encoder.sentence_encoder.layers.5.self_attn.rot_emb.inv_freq",
                    "encoder.lm_head.dense.weight",
                    "encoder.lm_head.bias",
                    "contact_head.regression.bias",
                    "lm_head.decoder.weight",
                    "pooler.dense.bias",
                    "my_head.weight",
                    "fc.weight",
                    "fc1.bias",
                    "linear.weight",
                    "mlp.0.weight",
                    "proj.weight",
                    "projection_head.0.weight",
                    "token_classifier.weight",
                    "embedding_head.weight",
                    "pre_classifier.weight",
                    "loss_fn.pos_weight",
                ],
                &[
                    "lstm.weight_ih_l0",
                    "norm.weight",
                    "attention.in_proj_weight",
                    "classifier.dense.weight",
                    "classifier.out_proj.bias",
                    "my_regression_head.0.weight",
                    "mlm_head.weight",
                ],
            ),
            (
                &bert,
                &[
                    "bert.embeddings.position_ids",
                    "bert.pooler.dense.weight",
                    "cls.predictions.transform.LayerNorm.gamma",
                    "cls.predictions.decoder.weight",
                    "cls.seq_relationship.weight",
                    "pooler.dense.weight",
                    "qa_outputs.weight",
                ],
                &["rnn.weight_ih_l0", "score.weight"],
            ),
            (
                &dnabert2,
                &[
                    "bert.embeddings.position_ids",
                    "bert.pooler.dense.weight",
                    "cls.predictions.bias",
                    "pooler.dense.bias",
                ],
                &["contrast_head.0.weight", "anything.weight"],
            ),
        ];
        for (family, always, as_a_part) in cases {
            for name in always {
                assert_eq!(canonical(family, name, false), None, "{name}");
                assert_eq!(canonical(family, name, true), None, "{name}");
            }
            for name in as_a_part {
                assert_eq!(canonical(family, name, true), None, "{name}");
            }
        }
    }
}

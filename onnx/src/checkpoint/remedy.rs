//! Advice about tensors that the graph does not use, based on their names.

use std::fmt;

use super::names::{ADAPTERS, LOW_RANK, PEFT, PROMPTS, begins, words};

/// What helps with tensors that the graph has no place for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// `LoRA` and similar, stored next to the weights that they modify.
    Peft,
    /// Learned prompts or prefixes.
    Prompt,
    /// Small layers between those of the model.
    Adapter,
    /// Integers and their scales.
    Quantised,
    /// Parametrised weights, such as weight norm.
    Parametrised,
    /// Weights and masks.
    Pruned,
    /// A decoder's attention.
    Decoder,
    /// A module outside the encoder that, by its name, makes the encoder's input.
    Input,
    /// A module outside the encoder that may be a head.
    Unknown,
    /// No tensor has a name that the model's have.
    Foreign,
    /// Anything else.
    Variant,
}

impl Remedy {
    /// Derives the advice from the names.
    pub(super) fn of(left: &[(&str, &str)]) -> Option<Self> {
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

impl Remedy {
    /// Where the unused tensors belong, for the message.
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

impl fmt::Display for Remedy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Peft => {
                "this is a PEFT adapter (LoRA or similar) that is not merged into the weights. In \
                 Python, load it with PEFT, call model.merge_and_unload().save_pretrained(FOLDER), \
                 copy the tokenizer files to FOLDER, and use FOLDER"
            }
            Self::Prompt => {
                "the model has learned prompts, which are prepended to each sequence; such models \
                 cannot be exported"
            }
            Self::Adapter => {
                "the model has adapter layers, which cannot be merged into its weights; such \
                 models cannot be exported"
            }
            Self::Quantised => {
                "the weights are quantised. Use the original model, or save it in 32 or 16 bits \
                 (in Python, model.dequantize(), then save_pretrained)"
            }
            Self::Parametrised => {
                "the weights are parametrised (weight norm or similar). In Python, call \
                 torch.nn.utils.remove_weight_norm or \
                 torch.nn.utils.parametrize.remove_parametrizations, and save the model again"
            }
            Self::Pruned => {
                "the weights are pruned by masks. In Python, make the pruning permanent with \
                 torch.nn.utils.prune.remove, and save the model again"
            }
            Self::Decoder => {
                "the model is a decoder with cross-attention; such models cannot be \
                              exported"
            }
            Self::Input => {
                "its name suggests that it changes the input of the encoder. If it does not, save \
                 only the encoder (in Python, model.base_model.save_pretrained(FOLDER)), copy the \
                 tokenizer files to FOLDER, and use FOLDER"
            }
            Self::Unknown => {
                "it is not part of the encoder, and its name does not show whether it is a head. \
                 If it is one, save only the encoder (in Python, \
                 model.base_model.save_pretrained(FOLDER)), copy the tokenizer files to FOLDER, \
                 and use FOLDER"
            }
            Self::Foreign => {
                "no tensor has a name of this model family. If a wrapper added a prefix to all \
                 names (module., model.), save the state dict of the inner model"
            }
            Self::Variant => {
                "the model is a variant that computes something else, or was damaged by a \
                 conversion; it cannot be exported"
            }
        })
    }
}

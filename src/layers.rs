//! Layers of a model: how a user names them, and which they are in one model.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Layers that a model does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The model has fewer layers.
    #[error("there is no layer {layer}: the model has layers 0 to {layers} (or -{} to -1)", layers + 1)]
    Missing {
        /// The requested value.
        layer: i32,
        /// The model's number of layers.
        layers: usize,
    },
    /// A range that ends before it begins.
    #[error("the layers {first}-{last} end before they begin: write the lower one first")]
    Range {
        /// The requested first layer.
        first: i32,
        /// The requested last layer.
        last: i32,
    },
}

/// The layers that a user asks for, before the model is known: `33`, `-1`, `6,20,33`, `30-33`,
/// `all`.
///
/// ```
/// use seqembed::LayerChoice;
///
/// let choice: LayerChoice = "0,4-6,-1".parse()?;
/// assert_eq!(choice.in_model(33)?.as_slice(), [0, 4, 5, 6, 33]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayerChoice(Vec<Item>);

/// A part of a choice between commas. Negative numbers count from the last layer, which is -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Item {
    All,
    One(i32),
    /// From the first to the second, both included.
    Range(i32, i32),
}

impl LayerChoice {
    /// The layers in a model of `layers` layers.
    ///
    /// # Errors
    /// If the model has no such layer, or a range ends before it begins.
    pub fn in_model(&self, layers: usize) -> Result<Layers, LayerError> {
        let index = |layer: i32| {
            let distance = usize::try_from(layer.unsigned_abs()).unwrap_or(usize::MAX);
            let index = if layer < 0 {
                (layers + 1).checked_sub(distance)
            } else {
                Some(distance)
            };
            let found = index.filter(|&index| index <= layers);
            found.ok_or(LayerError::Missing { layer, layers })
        };
        let mut all = Vec::new();
        for &item in &self.0 {
            match item {
                Item::All => all.extend(0..=layers),
                Item::One(layer) => all.push(index(layer)?),
                Item::Range(first, last) => {
                    let (start, end) = (index(first)?, index(last)?);
                    if start > end {
                        return Err(LayerError::Range { first, last });
                    }
                    all.extend(start..=end);
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(Layers(all))
    }
}

impl From<i32> for LayerChoice {
    fn from(layer: i32) -> Self {
        Self(vec![Item::One(layer)])
    }
}

impl FromStr for LayerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            "expected a layer such as 33 or -1, several such as 6,20,33 or 30-33, or all".to_owned()
        };
        let item = |part: &str| {
            let part = part.trim();
            if part == "all" {
                return Some(Item::All);
            }
            if let Ok(layer) = part.parse() {
                return Some(Item::One(layer));
            }
            // A sign may stand before the first number.
            let dash = part.get(1..)?.find('-')? + 1;
            let range = Item::Range(part[..dash].parse().ok()?, part[dash + 1..].parse().ok()?);
            Some(range)
        };
        let items: Option<Vec<Item>> = text.split(',').map(item).collect();
        items.map(Self).ok_or_else(wanted)
    }
}

impl fmt::Display for LayerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, item) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            match item {
                Item::All => f.write_str("all")?,
                Item::One(layer) => write!(f, "{layer}")?,
                Item::Range(first, last) => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for LayerChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0[..] {
            [Item::One(layer)] => serializer.serialize_i32(layer),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for LayerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Number(i32),
            Text(String),
        }
        match Spelling::deserialize(deserializer)? {
            Spelling::Number(layer) => Ok(layer.into()),
            Spelling::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Layers of one model, at least one, in ascending order: 0 is the input of the first layer, n the
/// output of layer n.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Spelled", into = "Spelled")]
#[schemars(with = "Spelled")]
pub struct Layers(Vec<usize>);

/// As in JSON: a number, or several in a list.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Spelled {
    One(usize),
    Several(Vec<usize>),
}

impl From<Spelled> for Layers {
    fn from(spelled: Spelled) -> Self {
        match spelled {
            Spelled::One(layer) => layer.into(),
            Spelled::Several(layers) => Self(layers),
        }
    }
}

impl From<Layers> for Spelled {
    fn from(layers: Layers) -> Self {
        match layers.0[..] {
            [layer] => Self::One(layer),
            _ => Self::Several(layers.0),
        }
    }
}

impl From<usize> for Layers {
    fn from(layer: usize) -> Self {
        Self(vec![layer])
    }
}

impl Layers {
    /// Their indices, in ascending order.
    #[must_use]
    pub fn as_slice(&self) -> &[usize] {
        &self.0
    }

    /// How many there are: vectors in a row of one pooling.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Reads what `Display` writes, as the metadata of a graph has it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let layers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
        layers.ok().map(Self)
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(text: &str) -> Result<Vec<usize>, String> {
        let choice: LayerChoice = text.parse()?;
        let found = choice.in_model(33).map_err(|error| error.to_string())?;
        Ok(found.as_slice().to_vec())
    }

    #[test]
    fn lists_ranges_and_negative_numbers() {
        assert_eq!(layers("33"), Ok(vec![33]));
        assert_eq!(layers("-1"), Ok(vec![33]));
        assert_eq!(layers("20, 6,33,6"), Ok(vec![6, 20, 33]));
        assert_eq!(layers("30-33"), Ok(vec![30, 31, 32, 33]));
        assert_eq!(layers("-3--1"), Ok(vec![31, 32, 33]));
        assert_eq!(layers("32--1,0"), Ok(vec![0, 32, 33]));
        assert_eq!(layers("all"), Ok((0..=33).collect()));
        for wrong in [
            "", "x", "6,", "1-", "-", "--1", "1-2-3", "1.5", "alle", "é-1",
        ] {
            assert!(layers(wrong).unwrap_err().contains("6,20,33"), "{wrong}");
        }
        assert!(layers("34").unwrap_err().contains("no layer 34"));
        assert!(layers("-35").unwrap_err().contains("no layer -35"));
        assert!(layers("33-30").unwrap_err().contains("33-30"));
    }

    #[test]
    fn one_layer_is_a_number_in_json() {
        for (text, json) in [("7", "7"), ("7,8", "[7,8]")] {
            let layers = Layers::parse(text).expect("numbers");
            assert_eq!(layers.to_string(), text);
            assert_eq!(serde_json::to_string(&layers).expect("text"), json);
            assert_eq!(
                serde_json::from_str::<Layers>(json).expect("layers"),
                layers
            );
        }
        for (text, json) in [("-1", "-1"), ("6,30-33", "\"6,30-33\"")] {
            let choice: LayerChoice = text.parse().expect("a choice");
            assert_eq!(serde_json::to_string(&choice).expect("text"), json);
            assert_eq!(
                serde_json::from_str::<LayerChoice>(json).expect("it"),
                choice
            );
        }
    }
}

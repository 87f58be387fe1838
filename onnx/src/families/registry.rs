//! Makes the list of families in `mod.rs` into modules, the enum `Architecture` and a table of what
//! is known before a checkpoint is read, so that a family is one file and one line.

use super::family::{Likeness, Published};
use super::known_values::KnownValues;
use crate::checkpoint::Checkpoint;
use crate::error::Error;

/// What the list knows of a family; `A` is the enum of all of them.
pub(super) struct Entry<A> {
    /// [`Family::about`](super::family::Family::about).
    pub about: fn() -> &'static str,
    /// [`Family::likeness`](super::family::Family::likeness).
    pub likeness: fn(&Checkpoint) -> Likeness,
    /// [`Family::from_checkpoint`](super::family::Family::from_checkpoint).
    pub read: fn(&Checkpoint) -> Result<A, Error>,
    /// [`Family::published`](super::family::Family::published).
    pub published: fn() -> Vec<Published<A>>,
    /// [`Family::published_values`](super::family::Family::published_values).
    pub published_values: fn(&str) -> Vec<KnownValues>,
}

/// Declares the modules of all families, and `Architecture` with a variant for each.
macro_rules! families {
    ($($module:ident :: $family:ident),+ $(,)?) => {
        $(
            pub mod $module;
            pub use $module::$family;
        )+

        /// A model's family, with its sizes and settings.
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "type", rename_all = "lowercase")]
        #[non_exhaustive]
        pub enum Architecture {
            $(
                #[doc = concat!("A model of the family in `", stringify!($module), ".rs`.")]
                $family($family),
            )+
        }

        impl Architecture {
            /// All that is the family's own.
            #[must_use]
            pub fn family(&self) -> &dyn family::Family {
                match self {
                    $(Self::$family(family) => family,)+
                }
            }
        }

        /// All families, in the order of the list.
        const ENTRIES: &[registry::Entry<Architecture>] = &[
            $(registry::Entry {
                about: <$family as family::Family>::about,
                likeness: <$family as family::Family>::likeness,
                read: |checkpoint| {
                    <$family as family::Family>::from_checkpoint(checkpoint)
                        .map(Architecture::$family)
                },
                published_values: <$family as family::Family>::published_values,
                published: || {
                    let published = <$family as family::Family>::published().into_iter();
                    published
                        .map(|model| family::Published {
                            name: model.name,
                            hub_id: model.hub_id,
                            parameters: model.parameters,
                            publication: model.publication,
                            family: Architecture::$family(model.family),
                        })
                        .collect()
                },
            },)+
        ];
    };
}

//! The Hugging Face hub: downloads the files of a model into the cache shared with Python's
//! `huggingface_hub`.
//!
//! The cache is `models--ORG--NAME/{blobs,refs,snapshots}` below `$HF_HUB_CACHE`; a snapshot's
//! files are links to blobs named by their hash. A complete snapshot is used without the network. A
//! download goes to `blobs/HASH.incomplete` under the same lock that Python takes, resumes where it
//! was interrupted, and is renamed to the blob once its hash is verified: SHA-256 for large files,
//! git's SHA-1 for small ones, as given in the hub's `ETag`.
//!
//! The token is sent only to the endpoint itself, never to a redirect target.

mod cache;
mod damage;
mod download;
mod environment;
mod error;
mod event;
mod fetch;
mod files;
mod model;

pub use cache::Hub;
pub use damage::{Damage, damage};
pub use environment::user_cache;
pub use event::{Event, Pace};
pub use fetch::fetch;
pub use files::{CONFIG, files_of, tokenizer_files_of};
pub use model::{HubModel, model_of};

//! Sequences -> token ids, behind one trait.

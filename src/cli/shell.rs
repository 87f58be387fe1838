//! `seqembed completions` and `seqembed man`: shell completions and manual pages, generated from
//! the definition of the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{USAGE, pass_on, say};
use crate::folders;

/// Print completions for a shell
///
/// For bash: `seqembed completions bash > ~/.local/share/bash-completion/completions/seqembed`; for
/// zsh, into a file `_seqembed` in a folder of `$fpath`; for fish, into
/// `~/.config/fish/completions/seqembed.fish`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to print completions for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print a manual page, or write the pages of all subcommands
///
/// To read a page directly: `seqembed man run | man -l -`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The subcommand whose page to print [default: the page of seqembed itself]
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,

    /// Write all pages to this folder instead, such as `~/.local/share/man/man1`; created if it
    /// does not exist
    #[arg(short, long, value_name = "FOLDER", conflicts_with = "subcommand")]
    output: Option<PathBuf>,
}

/// Prints the shell completions of `command`.
///
/// # Errors
/// If standard output is closed.
pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let name = command.get_name().to_owned();
    // clap_complete panics if it cannot write, so the text is collected first: a closed pipe must
    // not cause a panic.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    pass_on(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints one manual page of `command`, or writes all of them to a folder.
///
/// # Errors
/// If the pages cannot be written.
pub fn man(args: &ManArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.output {
        let cannot = || format!("cannot write manual pages to {}", folder.display());
        folders::make(folder).with_context(cannot)?;
        clap_mangen::generate_to(command, folder).with_context(cannot)?;
        return Ok(ExitCode::SUCCESS);
    }
    // clap completes the names and usage lines of subcommands only in `build`.
    command.build();
    let page = match &args.subcommand {
        None => Some(&command),
        Some(name) => command.find_subcommand(name),
    };
    let Some(page) = page else {
        let name = args.subcommand.as_deref().unwrap_or_default();
        say(&format!(
            "error: there is no subcommand `{name}`: run `seqembed help` for the list"
        ));
        return Ok(USAGE.into());
    };
    let mut text = Vec::new();
    Man::new(page.clone()).render(&mut text)?;
    pass_on(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

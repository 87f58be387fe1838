//! `seqembed completions` and `seqembed man`: what shells and manuals need, made from the command line's own definition.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap_complete::Shell;
use clap_mangen::Man;

use super::pass_on;
use crate::folders;

/// Print the completions for a shell
///
/// For bash: `seqembed completions bash > ~/.local/share/bash-completion/completions/seqembed`; for zsh, into a file `_seqembed`
/// in a folder of `$fpath`; for fish, into `~/.config/fish/completions/seqembed.fish`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Print the manual page, or write those of all subcommands
///
/// To read one at once: `seqembed man run | man -l -`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The subcommand whose page is printed [default: seqembed's own]
    #[arg(value_name = "SUBCOMMAND")]
    subcommand: Option<String>,

    /// Write all pages into this folder instead, such as `~/.local/share/man/man1`; it is made if need be
    #[arg(short, long, value_name = "FOLDER", conflicts_with = "subcommand")]
    output: Option<PathBuf>,
}

/// Prints the completions of `command`.
///
/// # Errors
/// When standard output is closed.
pub fn completions(args: &CompletionsArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    let name = command.get_name().to_owned();
    // clap_complete panics when it can't write: a closed pipe must not.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    pass_on(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a page of `command`, or writes all of them.
///
/// # Errors
/// When there is no such subcommand, or the pages can't be written.
pub fn man(args: &ManArgs, mut command: clap::Command) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &args.output {
        let cannot = || format!("cannot write manual pages into {}", folder.display());
        folders::make(folder).with_context(cannot)?;
        clap_mangen::generate_to(command, folder).with_context(cannot)?;
        return Ok(ExitCode::SUCCESS);
    }
    // The names and usages of subcommands are complete after this only.
    command.build();
    let page = match &args.subcommand {
        None => command,
        Some(name) => match command.find_subcommand(name) {
            Some(found) => found.clone(),
            None => bail!("there is no subcommand `{name}`: `seqembed help` lists them"),
        },
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    pass_on(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}

//! The executable: parses the command line, runs the subcommand, and reports errors.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::borrow::Cow;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use seqembed::cli::{
    USAGE, bench, contacts, convert, doctor, embed, export, fetch, manifest, models, plot, report,
    run, say, score, shell, shown, signals, told, verify, virnucpro,
};

/// The version, and the commit in a release build (build.rs).
const VERSION: &str = match option_env!("SEQEMBED_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

/// Compute embeddings of many protein and DNA files, loading each model once
#[derive(Debug, Parser)]
#[command(version = VERSION, propagate_version = true, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Embed(embed::EmbedArgs),
    Contacts(contacts::ContactsArgs),
    Manifest(manifest::ManifestArgs),
    Fetch(fetch::FetchArgs),
    Export(export::ExportArgs),
    Models(models::ModelsArgs),
    Verify(verify::VerifyArgs),
    Score(score::ScoreArgs),
    Virnucpro(virnucpro::VirnucproArgs),
    Plot(plot::PlotArgs),
    Convert(convert::ConvertArgs),
    Report(report::ReportArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

fn main() -> ExitCode {
    signals::outlive_file_limits();
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return refused(&error),
    };
    let result = match command {
        Command::Run(args) => run::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Contacts(args) => contacts::run(&args),
        Command::Manifest(args) => manifest::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Virnucpro(args) => virnucpro::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
    };
    result.unwrap_or_else(|error| {
        say(&format!("error: {}", told(error.as_ref())));
        ExitCode::FAILURE
    })
}

/// Prints help, or errors in the command line, as clap does.
fn refused(error: &clap::Error) -> ExitCode {
    // The shell to print completions for puts names of files there, which strangers may have given;
    // clap's own colours could not be told from theirs.
    let mut arguments = std::env::args_os();
    if error.use_stderr()
        && arguments.any(|argument| matches!(shown(&argument.to_string_lossy()), Cow::Owned(_)))
    {
        say(error.render().to_string().trim_end());
        return ExitCode::from(USAGE);
    }
    error.exit()
}

//! Completions and manual pages: as a shell and `man` use them.

mod common;

use std::fs;
use std::process::Command;

use common::{DONE, assert_run, seqembed, text};

fn printed(arguments: &[&str]) -> String {
    let run = seqembed(arguments);
    assert_run(&run, DONE, &[]);
    String::from_utf8(run.stdout).expect("text")
}

/// What bash offers for the last word.
fn completed(words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("completions");
    fs::write(&script, printed(&["completions", "bash"])).expect("a file");
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let ask = format!(
        "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _seqembed seqembed '{last}' '{before}'; echo \"${{COMPREPLY[@]}}\"",
        text(&script),
        words.join(" "),
        words.len() - 1,
    );
    let bash = Command::new("bash")
        .args(["-c", &ask])
        .output()
        .expect("bash");
    assert!(
        bash.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&bash.stderr)
    );
    let offered = String::from_utf8(bash.stdout).expect("text");
    offered.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_subcommands_options_and_values() {
    assert_eq!(completed(&["seqembed", "emb"]), ["embed"]);
    assert_eq!(completed(&["seqembed", "run", "--pool"]), ["--pooling"]);
    let values = completed(&["seqembed", "embed", "--pooling", "m"]);
    assert_eq!(values, ["mean", "mean-all", "max"]);
}

#[test]
fn other_shells_have_completions() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(printed(&["completions", shell]).contains("seqembed"));
    }
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("share/man1");
    assert_run(&seqembed(&["man", "-o", text(&pages)]), DONE, &[]);
    let help = printed(&["--help"]);
    let commands = help.split("Commands:\n").nth(1).expect("commands");
    let names: Vec<_> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        // What is further to the right goes on with a summary.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|&name| name != "help")
        .collect();
    assert!(names.contains(&"run"));
    for name in names {
        let page = pages.join(format!("seqembed-{name}.1"));
        let page = fs::read_to_string(page).expect(name);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let run = printed(&["man", "run"]);
    assert!(
        run.contains("seqembed\\-run") && run.contains("\\-\\-pooling"),
        "{run}"
    );
    let wrong = seqembed(&["man", "nothing"]);
    assert_run(&wrong, 1, &["`nothing`", "seqembed help"]);
}

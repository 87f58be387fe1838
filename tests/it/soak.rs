//! Runs that are killed, stopped and starved at any moment lose nothing: in the end, each id has
//! the vector of an undisturbed run, and at no time does a final name hold a part of a file.
//!
//! `make soak` runs the long form, of which `cargo test` runs a short one.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::interrupted::{Chance, Damaged, Mount, Soak, end, leftovers, signal, wait_for};
use crate::common::{DONE, assert_run, text};

/// Moments at which a run is killed and stopped.
fn moments() -> (u32, u32) {
    if std::env::var_os("SEQEMBED_SOAK").is_some() {
        (30, 10)
    } else {
        (8, 3)
    }
}

/// A seed, told so that a failure can be repeated.
fn seed() -> u64 {
    let seed = std::env::var("SEQEMBED_SOAK_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().unwrap(),
    );
    println!("SEQEMBED_SOAK_SEED={seed}");
    seed
}

fn soak() -> Soak {
    if std::env::var_os("SEQEMBED_SOAK").is_some() {
        Soak::new(&[40, 3000, 0, 700, 1, 350, 20, 20, 1200])
    } else {
        Soak::new(&[20, 250, 0, 60, 1, 30])
    }
}

/// Runs are killed until they are done, and finished files are damaged between a kill and the next
/// run.
#[test]
fn killed_at_random_moments() {
    kill(
        seed(),
        &|_| vec!["--resume".to_owned()],
        &|soak, out, damaged, chance| {
            if chance.below(3) == 0 {
                damaged.hit(&soak.path(out), chance);
            }
        },
    );
}

/// The same as workflow engines do it: a cache, and an output folder that is empty now and then.
/// Files are damaged in both.
#[test]
fn killed_with_a_cache_at_random_moments() {
    let options = |soak: &Soak| {
        let cache = soak.path("cache");
        vec!["--cache-dir".to_owned(), text(&cache).to_owned()]
    };
    kill(seed() + 2, &options, &|soak, out, damaged, chance| {
        let files = soak.path("cache/files");
        match chance.below(4) {
            0 => damaged.hit(&files, chance),
            1 => damaged.hit(&soak.path(out), chance),
            2 => {
                let _ = fs::remove_dir_all(soak.path(out));
            }
            _ => {}
        }
    });
}

type Meddle<'m> = &'m dyn Fn(&Soak, &str, &mut Damaged, &mut Chance);

fn kill(seed: u64, options: &dyn Fn(&Soak) -> Vec<String>, meddle: Meddle) {
    let soak = soak();
    let mut chance = Chance::new(seed);
    let (kills, _) = moments();
    let options = options(&soak);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut round = 0;
    let mut done = 0;
    let mut restored = 0;
    let mut damaged = Damaged::default();
    while done < kills {
        let out = format!("killed-{round}");
        // All of a run's moments, and those when it goes on with little left to do.
        let longest = u64::try_from(soak.seconds.as_millis()).unwrap() * 9 / 10 + 1;
        let mut child = soak.command(&out, &options).spawn().unwrap();
        let moment = Duration::from_millis(chance.below(longest));
        std::thread::sleep(moment);
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            done += 1;
            end(child);
            soak.check_but(&out, &damaged);
            meddle(&soak, &out, &mut damaged, &mut chance);
        } else {
            assert_run(&end(child), DONE, &[]);
            soak.check_all(&out);
            restored += report(&soak, &out);
            // With a cache there would be nothing left to kill.
            let _ = fs::remove_dir_all(soak.path("cache"));
            round += 1;
        }
    }
    let out = format!("killed-{round}");
    let run = soak.command(&out, &options).output().unwrap();
    assert_run(&run, DONE, &[]);
    soak.check_all(&out);
    restored += report(&soak, &out);
    println!(
        "{kills} kills, {} complete runs, {restored} rows taken from shards",
        round + 1
    );
}

/// How many rows a run took from what was saved.
fn report(soak: &Soak, out: &str) -> u64 {
    let text = fs::read_to_string(soak.path(out).join("report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    report["totals"]["restored"].as_u64().unwrap()
}

#[test]
fn stopped_at_random_moments() {
    let soak = soak();
    let mut chance = Chance::new(seed() + 1);
    let (_, stops) = moments();
    let mut slowest = Duration::ZERO;
    for stop in 0..stops {
        let out = format!("stopped-{stop}");
        let (name, code) = [("TERM", 143), ("INT", 130)][stop as usize % 2];
        let longest = u64::try_from(soak.seconds.as_millis()).unwrap() * 8 / 10;
        let child = soak.command(&out, &[]).spawn().unwrap();
        // Later than the start of the process, when nothing is watched for yet.
        let lock = soak.path(&out).join(".seqembed/lock");
        wait_for("the run to begin", || lock.exists());
        std::thread::sleep(Duration::from_millis(chance.below(longest)));
        signal(&child, name);
        let asked = Instant::now();
        let stopped = end(child);
        slowest = slowest.max(asked.elapsed());
        assert!(asked.elapsed() < Duration::from_mins(1));
        if stopped.status.code() != Some(DONE) {
            assert_run(&stopped, code, &["stop"]);
            let left = leftovers(&soak.path(&out));
            assert!(
                !left.iter().any(|name| name.ends_with(".partial")),
                "{left:?}"
            );
        }
        soak.check(&out);
        let run = soak.command(&out, &["--resume"]).output().unwrap();
        assert_run(&run, DONE, &[]);
        soak.check_all(&out);
    }
    println!(
        "{stops} stops, the slowest in {:.1} s",
        slowest.as_secs_f64()
    );
}

#[test]
fn a_disk_that_is_too_small() {
    let soak = soak();
    let Some(disk) = Mount::new(&soak.path("small"), "size=64k") else {
        eprintln!("skipped: this process may not mount a file system");
        return;
    };
    for out in ["small", "small"] {
        let run = soak.command(out, &["--resume"]).output().unwrap();
        assert_run(
            &run,
            1,
            &["No space left", "small", "bytes are free", "--resume"],
        );
        soak.check(out);
        let left = leftovers(&soak.path(out));
        assert!(
            !left.iter().any(|name| name.ends_with(".partial")),
            "{left:?}"
        );
    }
    disk.remount("size=64m");
    let run = soak.command("small", &["--resume"]).output().unwrap();
    assert_run(&run, DONE, &[]);
    soak.check_all("small");
}

#[test]
fn a_folder_that_can_be_read_only() {
    let soak = Soak::new(&[3]);
    let Some(disk) = Mount::new(&soak.path("fixed"), "size=1m") else {
        eprintln!("skipped: this process may not mount a file system");
        return;
    };
    disk.remount("ro");
    let run = soak.command("fixed", &[]).output().unwrap();
    assert_run(&run, 2, &["fixed", "Read-only file system"]);
}

#[test]
fn a_folder_that_vanishes() {
    let soak = soak();
    let out = soak.path("gone");
    let child = soak.command("gone", &[]).spawn().unwrap();
    wait_for("the run to begin", || {
        out.join(".seqembed/rows-000000").exists() || out.join("f0.parquet").exists()
    });
    fs::rename(&out, soak.path("elsewhere")).unwrap();
    let run = end(child);
    // It may have been done by then.
    if run.status.code() != Some(DONE) {
        assert_run(&run, 1, &["gone"]);
        assert!(!out.join("f1.npz").exists());
        fs::rename(soak.path("elsewhere"), &out).unwrap();
        let run = soak.command("gone", &["--resume"]).output().unwrap();
        assert_run(&run, DONE, &[]);
        soak.check_all("gone");
    }
}

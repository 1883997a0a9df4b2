//! `sim --bugs`: hunts every known bug over threads and prints a line for each.

use super::bugs::{Hunted, Injected, SEEDS_MAX, hunt};
use super::checkers::Broken;
use super::plan::Setup;
use super::run::{Outcome, STEPS_DEFAULT, run_setup};
use gristmill_shardexec::sim::TraceSink;
use serde_json::json;
use std::process::ExitCode;
use std::sync::Mutex;

/// The bug called `name`.
pub fn bug_of(name: &str) -> Result<Injected, String> {
    let known = || Injected::all().map(Injected::name).collect::<Vec<_>>().join(", ");
    Injected::all()
        .find(|bug| bug.name() == name)
        .ok_or_else(|| format!("no bug is called {name}; there are {}", known()))
}

/// Hunts the bug called `only`, or all. Ends well where every one is found and no run without it shows anything.
pub fn main(
    only: Option<Injected>,
    jobs: u64,
    json: bool,
    tell_seed: impl Fn(Option<u64>) + Sync,
) -> Result<ExitCode, String> {
    let mut bugs: Vec<Injected> = match only {
        Some(bug) => vec![bug],
        None => Injected::all().collect(),
    };
    // Taken from the end.
    bugs.reverse();
    let bugs = Mutex::new(bugs);
    let hunted = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(bug) = bugs.lock().map_err(|_| "a thread panicked")?.pop() else { return Ok::<(), String>(()) };
            let one = hunt(bug, |seed| tell_seed(Some(seed)));
            tell_seed(None);
            tell(&one);
            hunted.lock().map_err(|_| "a thread panicked")?.push(one);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    let hunted = hunted.into_inner().map_err(|_| "a thread panicked")?;
    let found = hunted.iter().filter(|one| one.found.is_some()).count();
    let control: usize = hunted.iter().map(|one| one.control.len()).sum();
    if json {
        println!("{}", json!({ "found": found, "missed": hunted.len() - found, "control_violations": control }));
    }
    Ok(if found == hunted.len() && control == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one seed with `bug`.
pub fn replay(bug: Injected, seed: u64, trace: Option<TraceSink>) -> Outcome {
    run_setup(Setup { bug: Some(bug), ..bug.setup(seed) }, STEPS_DEFAULT, trace)
}

fn tell(one: &Hunted) {
    let name = one.bug.name();
    match &one.found {
        Some(found) => {
            println!("found {name} seed {} after {} seeds", found.seed, one.seeds);
            let Broken { checker, detail } = &found.violations[0];
            let detail: String = detail.split_whitespace().flat_map(|word| [word, " "]).collect();
            let detail: String = detail.chars().take(300).collect();
            eprintln!("  {name}: {checker}: {detail}");
        }
        None => println!("missed {name}"),
    }
    assert!(one.seeds <= SEEDS_MAX, "nobody looks longer");
    for control in &one.control {
        for Broken { checker, detail } in &control.violations {
            eprintln!("  {name}, seed {} WITHOUT the bug: VIOLATED {checker}: {detail}", control.seed);
        }
    }
}

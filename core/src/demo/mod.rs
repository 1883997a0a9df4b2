//! `gristmill demo`: a node in this process, real data through the real path, figures from this very run.
//!
//! ```text
//!   sample ─► blocking client ─TCP─► node (log, consensus, state, indexes) ─► recall ─► report
//!                                                    brute force in f32 ─► recall@10 ─┘
//! ```

mod measure;
mod report;
mod run;
pub mod sample;

pub use report::Report;
pub use run::{DemoError, run, run_against};
pub use sample::Sample;

use crate::cli::{ExitStatus, Failure, Outcome};
use gristmill_shardexec::IoChoice;
use measure::Stopwatch;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the demo is left to clean up, whatever signals come: a terminal and a parent often send one each.
const CLEAN_UP_MIN: Duration = Duration::from_secs(2);

/// What a demo may be told.
#[derive(Debug, Clone, Default)]
pub struct DemoOptions {
    /// Keep the store here; `None`: a temporary directory that is removed afterwards.
    pub data_dir: Option<PathBuf>,
    /// I/O driver.
    pub io: IoChoice,
    /// Number of cores; `None`: all that this process may use.
    pub cores: Option<u16>,
    /// Queries to print with their hits.
    pub show: usize,
    /// JSON instead of text.
    pub json: bool,
    /// Ends the demo early, as an error, once somebody sets it.
    pub interrupted: Arc<AtomicBool>,
}

/// The sub-command: runs the demo on the bundled sample and prints its report.
pub(crate) fn command(options: &DemoOptions) -> Outcome {
    let broken = |error: &dyn std::fmt::Display| Failure::new(ExitStatus::Broken, error.to_string());
    let sample = Sample::bundled().map_err(|error| broken(&error))?;
    end_on_signals(&options.interrupted).map_err(|error| broken(&error))?;
    let report = run(&sample, options).map_err(|error| match error {
        DemoError::Interrupted => Failure::new(ExitStatus::Interrupted, error.to_string()),
        DemoError::Node(error) => Failure::of_node(&error),
        error => broken(&error),
    })?;
    if options.json {
        crate::cli::show::line(&serde_json::to_string(&report).expect("a report is plain data"));
    } else {
        crate::cli::show::print(report.to_text(options.show).as_bytes());
    }
    Ok(ExitStatus::Done)
}

/// The first SIGTERM or SIGINT ends the demo, which removes its temporary directory; one that comes [`CLEAN_UP_MIN`] after
/// it or later ends the process at once.
#[expect(clippy::disallowed_methods, reason = "signals belong to the process, not to a core; this thread only waits")]
fn end_on_signals(interrupted: &Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let interrupted = Arc::clone(interrupted);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut since_first: Option<Stopwatch> = None;
        for _ in signals.forever() {
            match &since_first {
                None => {
                    interrupted.store(true, Ordering::Relaxed);
                    since_first = Some(Stopwatch::start());
                }
                Some(watch) if watch.elapsed() < CLEAN_UP_MIN => eprintln!("gristmill: ending, and cleaning up"),
                Some(_) => std::process::exit(ExitStatus::Interrupted as i32),
            }
        }
    })?;
    Ok(())
}

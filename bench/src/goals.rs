//! Goal lines: what a bench promised, what it measured, and the reference measured in the same run.
//!
//! ```text
//!   Settings (argv) ──> Comparison::measure ──> round 0: ours, reference      Report ──> one line a goal, at the end
//!                                               round 1: reference, ours  ──>        └─> --json: one object a line
//!                                               …  (at least ROUNDS_MIN)
//! ```
//!
//! Absolute figures drift on shared machines, so a goal is a ratio: the median of ours over the median of a reference (a peer, or the
//! machine's own floor) that was measured in the same run. Rounds alternate which side goes first, so that a slow drift of the machine
//! hits both alike. One uncounted round warms both up.
//!
//! Line: `goal NAME ours X UNIT reference WHO Y UNIT ratio R goal G met` (or `missed`). No field holds white space; `G` is `>=R` or
//! `<=R`. An absolute goal is the ratio to a fixed reference called `target`.
//!
//! # Example
//! ```
//! use gristmill_bench::goals::{Bound, Comparison, Report, Settings};
//! let settings = Settings::smoke();
//! let mut report = Report::new(&settings);
//! let copy = Comparison::new("copy", "us", "plain-read").goal(Bound::AtMost(50.0));
//! // Each closure runs one round and returns one figure in the unit; `&mut ()` is what both sides share.
//! report.add(copy.measure(&settings, &mut (), |()| 2.0, |()| 1.0));
//! report.print();
//! ```

use std::fmt;

/// Fewest rounds whose median counts as a figure.
pub const ROUNDS_MIN: usize = 5;

/// Most rounds a caller may ask for; a typing error must not run for hours.
pub const ROUNDS_MAX: usize = 1_000;

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Seconds: proves inside the tests that the bench still runs. Its figures mean nothing.
    Smoke,
    /// What counts.
    Full,
}

/// What the command line asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `--smoke` makes the run small.
    pub size: Size,
    /// `--json`: objects instead of lines, and nothing else on stdout.
    pub json: bool,
    /// `--goals`: skip criterion's own measurements, print the goals only. `--json` and `--smoke` imply it.
    pub goals_only: bool,
    /// `--rounds N`, at least [`ROUNDS_MIN`].
    pub rounds: usize,
    /// The first free argument: a filter on criterion's benchmark names.
    pub filter: Option<String>,
}

/// A command line that makes no sense.
#[derive(Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// `--rounds` without a number from [`ROUNDS_MIN`] to [`ROUNDS_MAX`].
    Rounds(Option<String>),
    /// An option that no bench knows.
    Unknown(String),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rounds(given) => write!(
                f,
                "--rounds takes a number from {ROUNDS_MIN} to {ROUNDS_MAX}, got {}",
                given.as_deref().unwrap_or("nothing")
            ),
            Self::Unknown(option) => {
                write!(f, "unknown option {option}; use --json, --goals, --smoke, --rounds N or a benchmark's name")
            }
        }
    }
}

impl std::error::Error for SettingsError {}

impl Default for Settings {
    fn default() -> Self {
        Self { size: Size::Full, json: false, goals_only: false, rounds: ROUNDS_MIN, filter: None }
    }
}

impl Settings {
    /// The setting for a run inside a test: small, quiet.
    pub fn smoke() -> Self {
        Self { size: Size::Smoke, goals_only: true, ..Self::default() }
    }

    /// Reads the process's arguments; explains itself on stderr and exits with 2 when they make no sense.
    pub fn from_env() -> Self {
        Self::parse(std::env::args().skip(1)).unwrap_or_else(|error| {
            eprintln!("{error}");
            std::process::exit(2)
        })
    }

    /// Reads arguments. `--bench`, which cargo passes to every bench, is ignored.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, SettingsError> {
        let mut settings = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--json" => settings.json = true,
                "--goals" => settings.goals_only = true,
                "--smoke" => settings.size = Size::Smoke,
                "--rounds" => settings.rounds = parse_rounds(arguments.next())?,
                option if option.starts_with('-') => return Err(SettingsError::Unknown(argument)),
                _ => settings.filter = Some(argument),
            }
        }
        settings.goals_only |= settings.json || settings.size == Size::Smoke;
        Ok(settings)
    }

    /// `full` in a run that counts, `smoke` in one that only proves the bench alive.
    pub fn pick<T>(&self, full: T, smoke: T) -> T {
        match self.size {
            Size::Full => full,
            Size::Smoke => smoke,
        }
    }
}

fn parse_rounds(given: Option<String>) -> Result<usize, SettingsError> {
    match given.as_deref().map(str::parse) {
        Some(Ok(rounds)) if (ROUNDS_MIN..=ROUNDS_MAX).contains(&rounds) => Ok(rounds),
        _ => Err(SettingsError::Rounds(given)),
    }
}

/// What the ratio ours ÷ reference must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// For throughput: the ratio is at least this.
    AtLeast(f64),
    /// For latency: the ratio is at most this.
    AtMost(f64),
}

impl Bound {
    /// Whether `ratio` keeps the bound; what is not a number never does.
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, ">={least}"),
            Self::AtMost(most) => write!(f, "<={most}"),
        }
    }
}

/// One of ours against one reference, and the goals that hang on their ratio.
#[derive(Clone, Debug)]
pub struct Comparison {
    name: String,
    unit: String,
    who: String,
    goals: Vec<(String, Bound)>,
}

impl Comparison {
    /// `name` of the goal, `unit` of both figures, `who` is the reference. None may hold white space: the line is split at it.
    pub fn new(name: &str, unit: &str, who: &str) -> Self {
        for word in [name, unit, who] {
            assert!(
                !word.is_empty() && !word.contains(char::is_whitespace),
                "a goal's words hold no white space: {word:?}"
            );
        }
        Self { name: name.to_owned(), unit: unit.to_owned(), who: who.to_owned(), goals: Vec::new() }
    }

    /// The goal under the comparison's own name.
    #[must_use]
    pub fn goal(mut self, bound: Bound) -> Self {
        self.goals.push((self.name.clone(), bound));
        self
    }

    /// The goal of the finished system, where an earlier one is easier: a second line, `NAME-final`.
    #[must_use]
    pub fn final_goal(mut self, bound: Bound) -> Self {
        self.goals.push((format!("{}-final", self.name), bound));
        self
    }

    /// Measures both sides in alternating rounds. Each closure runs one round and returns one figure in the unit (higher or lower is
    /// better as the bound says); `context` is what they share, for instance an executor.
    pub fn measure<C: ?Sized>(
        self,
        settings: &Settings,
        context: &mut C,
        mut ours: impl FnMut(&mut C) -> f64,
        mut reference: impl FnMut(&mut C) -> f64,
    ) -> Measured {
        ours(context);
        reference(context);
        let mut our_rounds = Vec::with_capacity(settings.rounds);
        let mut reference_rounds = Vec::with_capacity(settings.rounds);
        for round in 0..settings.rounds {
            if round % 2 == 0 {
                our_rounds.push(ours(context));
                reference_rounds.push(reference(context));
            } else {
                reference_rounds.push(reference(context));
                our_rounds.push(ours(context));
            }
        }
        self.from_rounds(our_rounds, reference_rounds)
    }

    /// Measures ours against a fixed figure, for the few goals that are absolute. The line calls the reference `target`.
    pub fn measure_against_target<C: ?Sized>(
        mut self,
        settings: &Settings,
        context: &mut C,
        ours: impl FnMut(&mut C) -> f64,
        target: f64,
    ) -> Measured {
        "target".clone_into(&mut self.who);
        self.measure(settings, context, ours, |_| target)
    }

    /// From rounds that the caller ran itself, alternating, [`ROUNDS_MIN`] or more of each.
    pub fn from_rounds(self, ours: Vec<f64>, reference: Vec<f64>) -> Measured {
        assert!(!self.goals.is_empty(), "comparison {} promises nothing: add a goal", self.name);
        for rounds in [&ours, &reference] {
            assert!(rounds.len() >= ROUNDS_MIN, "{}: {} rounds, a median needs {ROUNDS_MIN}", self.name, rounds.len());
        }
        Measured { comparison: self, ours, reference }
    }
}

/// A comparison with its rounds.
#[derive(Clone, Debug)]
pub struct Measured {
    comparison: Comparison,
    ours: Vec<f64>,
    reference: Vec<f64>,
}

impl Measured {
    /// Median of our rounds.
    pub fn ours(&self) -> f64 {
        median(&self.ours)
    }

    /// Median of the reference's rounds.
    pub fn reference(&self) -> f64 {
        median(&self.reference)
    }

    /// Ours ÷ reference.
    pub fn ratio(&self) -> f64 {
        self.ours() / self.reference()
    }

    fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.comparison.goals.iter().map(|(name, bound)| Line { name, bound: *bound, measured: self })
    }
}

/// One goal of one comparison, ready to print.
struct Line<'a> {
    name: &'a str,
    bound: Bound,
    measured: &'a Measured,
}

impl Line<'_> {
    fn is_met(&self) -> bool {
        self.bound.is_met(self.measured.ratio())
    }

    fn to_json(&self) -> serde_json::Value {
        let Comparison { unit, who, .. } = &self.measured.comparison;
        serde_json::json!({
            "goal": self.name,
            "ours": self.measured.ours(),
            "unit": unit,
            "reference": who,
            "reference_value": self.measured.reference(),
            "ratio": self.measured.ratio(),
            "bound": self.bound.to_string(),
            "met": self.is_met(),
            "ours_rounds": self.measured.ours,
            "reference_rounds": self.measured.reference,
        })
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { unit, who, .. } = &self.measured.comparison;
        write!(
            f,
            "goal {} ours {} {unit} reference {who} {} {unit} ratio {:.3} goal {} {}",
            self.name,
            Figure(self.measured.ours()),
            Figure(self.measured.reference()),
            self.measured.ratio(),
            self.bound,
            if self.is_met() { "met" } else { "missed" },
        )
    }
}

/// Four significant digits, no exponent.
struct Figure(f64);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let integer_digits = if self.0.abs() < 1.0 { 0 } else { self.0.abs().log10().floor() as usize + 1 };
        let decimals = 4_usize.saturating_sub(integer_digits);
        write!(f, "{:.decimals$}", self.0)
    }
}

/// The goals of one bench, printed at its end.
#[derive(Debug)]
pub struct Report {
    json: bool,
    measured: Vec<Measured>,
}

impl Report {
    /// An empty report.
    pub fn new(settings: &Settings) -> Self {
        Self { json: settings.json, measured: Vec::new() }
    }

    /// Adds a comparison's goals.
    pub fn add(&mut self, measured: Measured) {
        self.measured.push(measured);
    }

    /// Whether every goal was met.
    pub fn is_met(&self) -> bool {
        self.measured.iter().flat_map(Measured::lines).all(|line| line.is_met())
    }

    /// Prints the goals to stdout: the last thing a bench does.
    pub fn print(&self) {
        print!("{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.measured.iter().flat_map(Measured::lines) {
            if self.json {
                writeln!(f, "{}", line.to_json())?;
            } else {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}

/// The middle value; the mean of the two middle ones when their number is even.
///
/// # Panics
/// When `values` is empty.
pub fn median(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "the median of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Settings, SettingsError> {
        Settings::parse(arguments.iter().map(|&argument| argument.to_owned()))
    }

    fn report(json: bool, measured: Measured) -> Report {
        let mut report = Report::new(&Settings { json, ..Settings::default() });
        report.add(measured);
        report
    }

    #[test]
    fn the_median_ignores_outliers_and_order() {
        assert_eq!(median(&[9.0, 1.0, 1000.0, 2.0, 3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
    }

    #[test]
    fn a_line_has_the_defined_words_in_the_defined_order() {
        let measured = Comparison::new("scan", "GB/s", "plain-read")
            .goal(Bound::AtLeast(0.8))
            .final_goal(Bound::AtLeast(0.95))
            .from_rounds(vec![36.0, 1.0, 36.0, 90.0, 36.0], vec![40.0; 5]);
        assert_eq!(
            report(false, measured).to_string(),
            "goal scan ours 36.00 GB/s reference plain-read 40.00 GB/s ratio 0.900 goal >=0.8 met\n\
             goal scan-final ours 36.00 GB/s reference plain-read 40.00 GB/s ratio 0.900 goal >=0.95 missed\n"
        );
    }

    #[test]
    fn json_is_one_object_a_goal_with_the_rounds() {
        let measured = Comparison::new("append", "us", "raw-ring")
            .goal(Bound::AtMost(1.15))
            .from_rounds(vec![1.2; 5], vec![1.0; 6]);
        let text = report(true, measured).to_string();
        assert_eq!(text.lines().count(), 1);
        let object: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
        assert_eq!(object["goal"], "append");
        assert_eq!(object["reference"], "raw-ring");
        assert_eq!(object["bound"], "<=1.15");
        assert_eq!(object["met"], false);
        assert_eq!(object["reference_rounds"].as_array().map(Vec::len), Some(6));
    }

    #[test]
    fn rounds_alternate_which_side_goes_first() {
        let mut calls = String::new();
        Comparison::new("order", "calls", "reference").goal(Bound::AtLeast(0.0)).measure(
            &Settings::smoke(),
            &mut calls,
            |calls| {
                calls.push('o');
                1.0
            },
            |calls| {
                calls.push('r');
                1.0
            },
        );
        assert_eq!(calls, "ororroorroor", "one warm-up pair, then five rounds that alternate");
    }

    #[test]
    fn a_bound_knows_its_direction_and_refuses_nan() {
        assert!(Bound::AtLeast(0.8).is_met(0.8));
        assert!(!Bound::AtLeast(0.8).is_met(0.79));
        assert!(Bound::AtMost(1.15).is_met(1.15));
        assert!(!Bound::AtMost(1.15).is_met(1.16));
        assert!(!Bound::AtMost(1.15).is_met(f64::NAN));
        assert!(!Bound::AtLeast(0.8).is_met(f64::NAN));
    }

    #[test]
    fn an_absolute_goal_is_the_ratio_to_its_target() {
        let measured = Comparison::new("appends", "per-s", "ignored").goal(Bound::AtLeast(1.0)).measure_against_target(
            &Settings::smoke(),
            &mut (),
            |()| 3e6,
            2e6,
        );
        let report = report(false, measured);
        assert!(report.is_met());
        assert_eq!(
            report.to_string(),
            "goal appends ours 3000000 per-s reference target 2000000 per-s ratio 1.500 goal >=1 met\n"
        );
    }

    #[test]
    fn figures_keep_four_significant_digits() {
        let shown = [0.19, 1.5, 37.123_456, 999.96, 123_456.7].map(|value| Figure(value).to_string());
        assert_eq!(shown, ["0.1900", "1.500", "37.12", "1000.0", "123457"]);
    }

    #[test]
    fn settings_read_the_options_and_ignore_cargos() {
        let settings = parse(&["--bench", "--rounds", "9", "dot"]).expect("valid");
        assert_eq!(settings, Settings { rounds: 9, filter: Some("dot".to_owned()), ..Settings::default() });
        assert!(parse(&["--json"]).expect("valid").goals_only, "JSON means nothing else on stdout");
        assert_eq!(parse(&["--smoke"]).expect("valid").pick(100, 1), 1);
        assert_eq!(parse(&["--rounds", "3"]), Err(SettingsError::Rounds(Some("3".to_owned()))));
        assert_eq!(parse(&["--rounds"]), Err(SettingsError::Rounds(None)));
        assert_eq!(parse(&["--fast"]), Err(SettingsError::Unknown("--fast".to_owned())));
    }

    #[test]
    #[should_panic(expected = "a median needs 5")]
    fn too_few_rounds_are_refused() {
        Comparison::new("few", "us", "nobody").goal(Bound::AtMost(1.0)).from_rounds(vec![1.0; 4], vec![1.0; 5]);
    }

    #[test]
    #[should_panic(expected = "no white space")]
    fn a_name_with_a_space_would_break_the_line() {
        Comparison::new("two words", "us", "nobody");
    }
}

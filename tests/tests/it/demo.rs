//! The demo: its figures come from its run, on every driver, and it leaves nothing behind.

use crate::binary;
use gristmill::demo::{DemoOptions, Sample, run as run_demo, run_against};
use gristmill_tests::{run, scratch, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a demo may take to make its directory.
const STARTED_MAX: Duration = Duration::from_mins(1);

fn demo(arguments: &[&str]) -> Value {
    let output = run(binary(), &[&["demo", "--json"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).expect("exactly one JSON object on stdout")
}

#[test]
fn the_demo_prints_its_figures_on_posix() {
    let report = demo(&["--io", "posix"]);
    assert_eq!(report["io_driver"], "posix");
    assert_eq!(report["grains"], 5314);
    assert_eq!(report["queries"], 251);
    assert!(report["vector_recall_at_10"].as_f64().is_some_and(|recall| recall > 0.95), "{report}");
    for figure in ["recall_p50_us", "recall_p99_us", "durable_writes_per_s", "cores"] {
        assert!(report[figure].as_f64().is_some_and(|value| value > 0.0), "{figure}: {report}");
    }
    for leg in ["hits_by_text", "hits_by_vector", "hits_by_relation"] {
        assert!(report[leg].as_u64().is_some_and(|hits| hits > 100), "{leg}: {report}");
    }
}

#[test]
fn another_sample_gives_other_figures() {
    let mut sample = Sample::bundled().expect("the bundled sample parses");
    let dir = scratch();
    let options = DemoOptions { data_dir: Some(dir.path().join("all")), ..DemoOptions::default() };
    sample.grains.truncate(2000);
    let namespaces: Vec<String> = sample.grains.iter().map(|grain| grain.namespace.clone()).collect();
    sample.queries.retain(|query| namespaces.contains(&query.namespace));
    sample.queries.truncate(40);
    let small = run_demo(&sample, &options).expect("the demo runs on any sample");
    assert_eq!((small.grains, small.queries), (2000, 40));

    // Nothing but vectors.
    let options = DemoOptions { data_dir: Some(dir.path().join("vectors")), ..DemoOptions::default() };
    for grain in &mut sample.grains {
        grain.relations.clear();
        grain.text = None;
    }
    let vectors = run_demo(&sample, &options).expect("the demo runs on any sample");
    assert_eq!((vectors.hits_by_text, vectors.hits_by_relation), (0, 0), "what is not stored is not found");
    assert!(small.hits_by_text > 0 && small.hits_by_relation > 0 && vectors.hits_by_vector > 0);
}

/// The vectors that are stored lie, those of the truth do not: were recall@10 anything but a comparison, it would not fall.
#[test]
fn recall_falls_when_the_wrong_vectors_are_stored() {
    let mut sample = Sample::bundled().expect("the bundled sample parses");
    sample.grains.truncate(600);
    let namespace = sample.grains[0].namespace.clone();
    sample.grains.retain(|grain| grain.namespace == namespace);
    sample.queries.retain(|query| query.namespace == namespace);
    sample.queries.truncate(20);
    assert!(sample.grains.len() > 50 && !sample.queries.is_empty(), "{} grains", sample.grains.len());
    let truth = sample.grains.clone();
    let honest_dir = scratch();
    let options = DemoOptions { data_dir: Some(honest_dir.path().join("honest")), ..DemoOptions::default() };
    let honest = run_against(&sample, &truth, &options).expect("the demo runs on any sample");
    let shift = truth.len() / 2;
    for (at, grain) in sample.grains.iter_mut().enumerate() {
        grain.vector.clone_from(&truth[(at + shift) % truth.len()].vector);
    }
    let lying_dir = scratch();
    let options = DemoOptions { data_dir: Some(lying_dir.path().join("lying")), ..DemoOptions::default() };
    let lying = run_against(&sample, &truth, &options).expect("the demo runs on any sample");
    let (honest, lying) = (honest.vector_recall_at_10, lying.vector_recall_at_10);
    assert!(honest > 0.9 && lying < 0.7, "{honest} with the right vectors, {lying} with the wrong ones");
}

#[test]
fn the_demo_leaves_nothing_behind_unless_told_to() {
    let dir = scratch();
    let temporary = dir.path().join("tmp");
    std::fs::create_dir(&temporary).expect("the scratch directory is writable");
    let output = Command::new(binary())
        .args(["demo", "--json", "--io", "posix"])
        .env("TMPDIR", &temporary)
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(std::fs::read_dir(&temporary).expect("readable").count(), 0, "the temporary directory is empty again");
}

/// Its directory stayed behind, under a name that anybody could have guessed and taken.
#[test]
fn an_interrupted_demo_removes_its_directory() {
    for signal in [Signal::INT, Signal::TERM] {
        let dir = scratch();
        let within =
            || std::fs::read_dir(dir.path()).expect("readable").map(|entry| entry.expect("an entry").file_name());
        let mut command = Command::new(binary());
        command.args(["demo", "--json", "--io", "posix"]).env("TMPDIR", dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let began = Instant::now();
        let name = loop {
            assert!(began.elapsed() < STARTED_MAX, "no directory");
            if let Some(name) = within().next() {
                break name.into_string().expect("UTF-8");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let random = name.strip_prefix("gristmill-demo-").expect("its name");
        assert!(random.len() == 32 && u128::from_str_radix(random, 16).is_ok(), "{name}");
        // A terminal and a parent often send one each: the second left the directory behind.
        for _ in 0..2 {
            kill_process(Pid::from_child(&child), signal).expect("it runs");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut told = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut told).expect("UTF-8");
        assert_eq!(child.wait().expect("it ends").code(), Some(130), "{told}");
        assert!(told.contains("interrupted"), "{told}");
        assert_eq!(within().count(), 0, "nothing stays behind: {told}");
    }
}

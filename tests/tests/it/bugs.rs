//! Known bugs are built in on demand only: nothing may enable the feature that has them.

use super::tidy::{metadata, text};
use serde_json::Value;
use std::process::Command;

/// The feature, in each package that has it.
const FEATURE: &str = "bugs";
/// The only packages that have it.
const PACKAGES: [&str; 3] = ["gristmill", "gristmill-tests", "gristmill-wal"];

fn lists(features: &Value) -> impl Iterator<Item = &str> {
    features.as_array().expect("a list of features").iter().filter_map(Value::as_str)
}

fn is_bugs(feature: &str) -> bool {
    feature == FEATURE || feature.ends_with(&format!("/{FEATURE}"))
}

fn is_ours(package: &Value) -> bool {
    text(package, "name").starts_with("gristmill")
}

#[test]
fn nothing_enables_the_known_bugs() {
    let metadata = metadata();
    let mut having = Vec::new();
    let packages = metadata["packages"].as_array().expect("packages");
    for package in packages {
        let name = text(package, "name");
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let enabled = is_ours(dependency) && lists(&dependency["features"]).any(is_bugs);
            assert!(!enabled, "{name} builds {} with known bugs", text(dependency, "name"));
        }
        if !is_ours(package) {
            continue;
        }
        for (feature, enables) in package["features"].as_object().expect("features") {
            if feature == FEATURE {
                having.push(name);
            } else {
                assert!(!lists(enables).any(is_bugs), "feature {feature} of {name} brings known bugs along");
            }
        }
    }
    having.sort_unstable();
    assert_eq!(having, PACKAGES, "a package has gained the feature, or lost it");
    let ours: Vec<&str> =
        packages.iter().filter(|package| is_ours(package)).map(|package| text(package, "id")).collect();
    for node in metadata["resolve"]["nodes"].as_array().expect("nodes") {
        let has = ours.contains(&text(node, "id")) && lists(&node["features"]).any(is_bugs);
        assert!(!has, "{} is built with known bugs by default", text(node, "id"));
    }
}

#[test]
fn the_version_tells_of_known_bugs() {
    let output = Command::new(super::binary()).arg("--version").output().expect("the binary runs");
    let version = String::from_utf8(output.stdout).expect("UTF-8");
    let expected = if cfg!(feature = "bugs") { "+bugs" } else { "" };
    assert_eq!(version.trim(), format!("gristmill {}{expected}", env!("CARGO_PKG_VERSION")));
}

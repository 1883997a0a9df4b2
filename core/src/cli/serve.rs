//! `gristmill serve`: a node until it is told to stop.

use super::args::ServeArgs;
use super::{ExitStatus, Failure, Outcome, show};
use crate::server::stop::StopSignal;
use crate::server::{Node, NodeConfig};
use gristmill_shardexec::SpinPolicy;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::time::Duration;

pub(super) fn run(args: ServeArgs) -> Outcome {
    let config = NodeConfig {
        listen: args.listen,
        core_ports: args.core_ports,
        cores: args.cores,
        shards: args.shards,
        io: args.io.into(),
        pin: args.pin,
        spin: match args.spin_us {
            0 => SpinPolicy::Never,
            budget => SpinPolicy::For(Duration::from_micros(budget)),
        },
        insecure: args.insecure,
        ..NodeConfig::new(args.data_dir)
    };
    let broken = |error: &dyn std::fmt::Display| Failure::new(ExitStatus::Broken, error.to_string());
    let node = Node::start(&config).map_err(|error| Failure::of_node(&error))?;
    stop_on_signals(node.stop_signal()).map_err(|error| broken(&error))?;
    let listening = node.listening();
    eprintln!(
        "gristmill: serving {} shards on {} ({} cores, {}); stop with SIGTERM or Ctrl-C",
        listening.shards,
        listening.listen,
        listening.cores.len(),
        listening.io_driver,
    );
    show::line(&serde_json::to_string(listening).expect("addresses and numbers serialise"));
    node.wait().map_err(|error| Failure::of_node(&error))?;
    eprintln!("gristmill: stopped");
    Ok(ExitStatus::Done)
}

/// The first SIGTERM or SIGINT drains the node, the second ends the process at once.
#[expect(clippy::disallowed_methods, reason = "signals belong to the process, not to a core; this thread only waits")]
fn stop_on_signals(stop: StopSignal) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if stop.is_asked() {
                eprintln!("gristmill: stopping at once");
                std::process::exit(128 + signal);
            }
            eprintln!("gristmill: draining; signal again to stop at once");
            stop.ask();
        }
    })?;
    Ok(())
}

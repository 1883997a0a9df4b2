//! Which production driver to start.
#![forbid(unsafe_code)]

use super::Driver;
use super::posix::PosixDriver;
use crate::CoreId;
use crate::executor::{ExecutorConfig, IoChoice, StartError};

/// Starts the driver that the configuration names, or the best one that this machine allows.
pub(crate) fn start(config: &ExecutorConfig) -> Result<Box<dyn Driver>, StartError> {
    match config.io {
        IoChoice::Posix => start_posix(config),
        IoChoice::Uring => start_uring(config),
        IoChoice::Auto => match start_uring(config) {
            Ok(driver) => Ok(driver),
            Err(error) => {
                // One line per node, not one per core.
                if config.core == CoreId(0) {
                    eprintln!("gristmill: slower I/O: falling back to epoll and threads. {error} to silence this line");
                }
                start_posix(config)
            }
        },
    }
}

fn start_posix(config: &ExecutorConfig) -> Result<Box<dyn Driver>, StartError> {
    match PosixDriver::new(config.file_threads, config.offload_threads) {
        Ok(driver) => Ok(Box::new(driver)),
        Err(source) => Err(StartError::Driver { driver: "posix", source }),
    }
}

/// Probes io_uring and starts it, or says what is missing.
fn start_uring(_config: &ExecutorConfig) -> Result<Box<dyn Driver>, StartError> {
    Err(StartError::UringUnavailable {
        reason: "this build has no io_uring driver".to_owned(),
        cure: "use a build that has one",
    })
}

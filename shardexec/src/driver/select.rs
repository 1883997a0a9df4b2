//! Which production driver to start.
#![forbid(unsafe_code)]

use super::Driver;
use super::posix::PosixDriver;
use crate::CoreId;
use crate::executor::{ExecutorConfig, IoChoice, StartError};
use crate::uring::{Refusal, UringDriver};

/// Starts the driver that the configuration names, or the best one that this machine allows; then with the reason why not a
/// better one.
pub(crate) fn start(config: &ExecutorConfig) -> Result<(Box<dyn Driver>, Option<String>), StartError> {
    match config.io {
        IoChoice::Posix => Ok((start_posix(config)?, None)),
        IoChoice::Uring => Ok((start_uring(config)?, None)),
        IoChoice::Auto => match start_uring(config) {
            Ok(driver) => Ok((driver, None)),
            Err(error) => {
                // One line per node, not one per core, unless the first cores took what the others lack.
                let for_want_of_more = matches!(error, StartError::UringUnavailable(Refusal::Resources { .. }));
                if config.core == CoreId(0) || for_want_of_more {
                    eprintln!(
                        "gristmill: slower I/O on {}: falling back to epoll and threads. {error} to silence this line",
                        config.core
                    );
                }
                Ok((start_posix(config)?, Some(error.to_string())))
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

fn start_uring(config: &ExecutorConfig) -> Result<Box<dyn Driver>, StartError> {
    match UringDriver::start(config.op_slots, config.file_threads, config.offload_threads) {
        Ok(driver) => Ok(Box::new(driver)),
        Err(refusal) => Err(StartError::UringUnavailable(refusal)),
    }
}

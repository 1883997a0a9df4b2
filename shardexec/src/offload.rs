//! Work that must block or would hog the core: TLS handshakes, name resolution, index builds, linear algebra.
#![forbid(unsafe_code)]

use std::io;

use crate::driver::{Job, JobPanic, Op, OpOutput};
use crate::executor::ops::OpFuture;
use crate::executor::state::current;

/// Why an offloaded job gave no value.
#[derive(Debug, thiserror::Error)]
pub enum OffloadError {
    /// The job panicked; the message.
    #[error("the offloaded job panicked: {0}")]
    Panicked(String),
    /// No thread could be started for it.
    #[error("the offloaded job did not run: {0}; check the limit on threads (`ulimit -u`)")]
    NotRun(#[source] io::Error),
}

/// Runs `job` on a bounded pool of threads (inline, at an instant picked by the seed, in simulation). Dropping the future
/// drops a job that has not begun; one that runs goes on, and its value is dropped.
///
/// # Panics
/// Outside an executor.
pub async fn offload<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Result<T, OffloadError> {
    let job = Job::new(move || Box::new(job()));
    let (result, _) = OpFuture::new(current(), None, Op::Offload { job }).await;
    match result {
        Ok(OpOutput::Offloaded(Ok(value))) => Ok(*value.downcast().expect("a job returns what its closure returns")),
        Ok(OpOutput::Offloaded(Err(JobPanic(message)))) => Err(OffloadError::Panicked(message)),
        Ok(other) => unreachable!("the driver answered an offload with {other:?}"),
        Err(error) => Err(OffloadError::NotRun(error)),
    }
}

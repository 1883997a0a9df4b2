//! How a task's end reaches whoever waits for it.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::state::Core;
use super::tasks::{Join, TaskId};

/// Why a task gave no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It panicked; the message.
    #[error("the task panicked: {0}")]
    Panicked(String),
    /// [`JoinHandle::abort`] or the end of its executor came first.
    #[error("the task was aborted")]
    Aborted,
}

impl JoinError {
    /// True for [`JoinError::Panicked`].
    pub fn is_panic(&self) -> bool {
        matches!(self, JoinError::Panicked(_))
    }
}

/// Waits for a task. Dropping it lets the task go on alone.
pub struct JoinHandle<T> {
    state: Rc<JoinState<T>>,
    id: TaskId,
    core: Rc<Core>,
}

pub(crate) struct JoinState<T> {
    result: Cell<Option<Result<T, JoinError>>>,
    finished: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl<T> JoinState<T> {
    pub fn new() -> Rc<JoinState<T>> {
        Rc::new(JoinState { result: Cell::new(None), finished: Cell::new(false), waker: Cell::new(None) })
    }

    pub fn finish(&self, result: Result<T, JoinError>) {
        if self.finished.replace(true) {
            return;
        }
        self.result.set(Some(result));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Join for JoinState<T> {
    fn fail(&self, error: JoinError) {
        self.finish(Err(error));
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn new(state: Rc<JoinState<T>>, id: TaskId, core: Rc<Core>) -> JoinHandle<T> {
        JoinHandle { state, id, core }
    }

    /// Drops the task at its next turn instead of polling it. One that has finished stays finished.
    pub fn abort(&self) {
        self.core.abort_task(self.id);
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.state.finished.get()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.state.result.take() {
            return Poll::Ready(result);
        }
        assert!(!self.state.finished.get(), "a join handle gives its result once");
        self.state.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

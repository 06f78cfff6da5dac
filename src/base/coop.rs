//! Cooperative yielding for tasks whose input never runs dry.
//!
//! Tokio's own budget counts operations on its resources, not the work that each of them causes: a
//! peer that keeps a socket readable could occupy the thread of its worker for a long time.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;

/// The work that a task may do before it yields to the other tasks of its thread. The unit of work
/// is the caller's: bytes, frames.
#[derive(Debug, Default)]
pub(crate) struct CoopBudget {
    spent: usize,
    pending_yield: Arc<PendingYield>,
}

/// A yield under way. Only the runtime's deferred wake ends it: a wake of the task for any other
/// reason must not, or input that is always ready would cut every yield short.
#[derive(Debug, Default)]
struct PendingYield {
    is_active: AtomicBool,
    task: AtomicWaker,
}

impl CoopBudget {
    /// Ready while the task may go on. Once more than `limit` is spent it yields: pending until the
    /// other ready tasks have run, with the budget full again afterwards.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<()> {
        if self.spent > limit {
            self.spent = 0;
            self.pending_yield.is_active.store(true, Relaxed);
            let waker = Waker::from(Arc::clone(&self.pending_yield));
            // Tokio defers this wake until the driver was polled, so that tasks whose sockets have
            // become ready in the meantime run first, too.
            let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        }
        if self.pending_yield.is_active.load(Relaxed) {
            self.pending_yield.task.register(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Charges work to the budget.
    pub(crate) fn spend(&mut self, work: usize) {
        self.spent += work;
    }

    /// Fills the budget: the input ran dry, so the task is about to wait anyway.
    pub(crate) fn reset(&mut self) {
        self.spent = 0;
    }
}

impl Wake for PendingYield {
    fn wake(self: Arc<Self>) {
        self.is_active.store(false, Relaxed);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[tokio::test]
    async fn other_tasks_run_however_often_a_busy_task_is_woken() {
        const LIMIT: usize = 8;
        let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let busy = {
            let done = Rc::clone(&done);
            async move {
                let mut budget = CoopBudget::default();
                for _ in 0..1000 {
                    poll_fn(|cx| {
                        cx.waker().wake_by_ref();
                        budget.poll_ready(cx, LIMIT)
                    })
                    .await;
                    budget.spend(1);
                    done.set(done.get() + 1);
                }
            }
        };
        let observer = {
            let most = Rc::clone(&most);
            async move {
                loop {
                    most.set(most.get().max(done.take()));
                    yield_now().await;
                }
            }
        };
        LocalSet::new()
            .run_until(async {
                let observer = spawn_local(observer);
                spawn_local(busy).await.unwrap();
                observer.abort();
            })
            .await;
        // The order of the two tasks may change from one yield to the next.
        assert!(
            (1..=2 * (LIMIT + 1)).contains(&most.get()),
            "{} at once",
            most.get()
        );
    }
}

//! Whoever always has something to do gives others their turn.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;

/// What a task has done since others had their turn.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    done: usize,
    others: Arc<Others>,
}

/// Whether others have their turn. What wakes this task meanwhile does not end it.
#[derive(Debug, Default)]
struct Others {
    have_turn: AtomicBool,
    task: AtomicWaker,
}

impl Turn {
    /// Ready when it is this task's turn, which ends when more than `most` was done.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<()> {
        if self.done > most {
            self.done = 0;
            self.others.have_turn.store(true, Relaxed);
            let waker = Waker::from(Arc::clone(&self.others));
            // Wakes when all that are ready have run, those included whose sockets have become so.
            let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        }
        if self.others.have_turn.load(Relaxed) {
            self.others.task.register(cx.waker());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// So much more was done.
    pub(crate) fn did(&mut self, work: usize) {
        self.done += work;
    }

    /// There was nothing to do, so that others have had their turn anyway.
    pub(crate) fn gave_way(&mut self) {
        self.done = 0;
    }
}

impl Wake for Others {
    fn wake(self: Arc<Self>) {
        self.have_turn.store(false, Relaxed);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[tokio::test]
    async fn others_have_their_turn_however_often_a_task_is_woken() {
        const TURN: usize = 8;
        let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let busy = {
            let done = Rc::clone(&done);
            async move {
                let mut turn = Turn::default();
                for _ in 0..1000 {
                    poll_fn(|cx| {
                        cx.waker().wake_by_ref();
                        turn.poll(cx, TURN)
                    })
                    .await;
                    turn.did(1);
                    done.set(done.get() + 1);
                }
            }
        };
        let beside = {
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
                let beside = spawn_local(beside);
                spawn_local(busy).await.unwrap();
                beside.abort();
            })
            .await;
        // Who of the two comes first may change from turn to turn.
        assert!(
            (1..=2 * (TURN + 1)).contains(&most.get()),
            "{} at once",
            most.get()
        );
    }
}

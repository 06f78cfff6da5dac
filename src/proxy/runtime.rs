//! A worker's thread: it starts, runs until draining begins, drains, and ends.

use std::{any::Any, future::pending, io, panic, rc::Rc, sync::Arc, thread};

use tokio::{sync::oneshot, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    net::socket::UnregisteredListener,
    proxy::{
        config::ServerTls,
        connection::lingering,
        message::spelling,
        metrics::Metrics,
        server::listener::accept,
        worker::{Shared, Worker},
    },
};

/// A listener of one worker.
pub(crate) struct WorkerListener {
    /// Its position in the configuration.
    pub(crate) position: usize,
    pub(crate) socket: UnregisteredListener,
    pub(crate) tls: Option<ServerTls>,
}

/// Starts a worker on a thread of its own. What is returned resolves when it has ended.
///
/// # Errors
/// When the system refuses a thread or what a runtime needs.
pub(crate) fn start(
    index: usize,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    listeners: Vec<WorkerListener>,
    stop: CancellationToken,
) -> io::Result<oneshot::Receiver<()>> {
    let (ended, has_ended) = oneshot::channel();
    let (built, is_built) = std::sync::mpsc::channel();
    thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(built.send(Err(error))),
            };
            drop(built.send(Ok(())));
            runtime.block_on(run(index, shared, metrics, listeners, stop));
            // Dropping the runtime would wait for a name lookup that never returns.
            runtime.shutdown_background();
            // Fails when nothing waits for the end any more.
            let _ = ended.send(());
        })?;
    is_built.recv().map_err(io::Error::other)??;
    Ok(has_ended)
}

async fn run(
    index: usize,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    listeners: Vec<WorkerListener>,
    stop: CancellationToken,
) {
    let usual_names = spelling::usual().await;
    let (worker, unread_bodies) = Worker::new(index, shared, metrics, usual_names);
    // The worker cannot serve without any of these.
    let mut lasting = JoinSet::new();
    lasting.spawn_local(Rc::clone(&worker.ticker).run());
    lasting.spawn_local(lingering::drain(unread_bodies));
    for upstream in &worker.upstreams {
        lasting.spawn_local(upstream.shed_idle());
        lasting.spawn_local(upstream.move_budget());
    }
    for WorkerListener {
        position,
        socket,
        tls,
    } in listeners
    {
        match socket.register() {
            Ok(listener) => {
                let stopped = stop.clone().cancelled_owned();
                let worker = Rc::clone(&worker);
                lasting.spawn_local(accept(worker, listener, position, tls, stopped));
            }
            Err(error) => tracing::error!(%error, "a worker cannot listen"),
        }
    }
    tokio::select! {
        () = stop.cancelled() => {}
        panic = panic_of(&mut lasting) => panic::resume_unwind(panic),
    }
    worker.drain().await;
}

/// Waits for a panic in one of the tasks.
async fn panic_of(tasks: &mut JoinSet<()>) -> Box<dyn Any + Send> {
    loop {
        match tasks.join_next().await {
            Some(Err(ended)) if ended.is_panic() => return ended.into_panic(),
            Some(_) => {}
            None => pending().await,
        }
    }
}

//! A desk: what many ask at once is answered by one statement.
//!
//! When a node restarts, ten thousand clients come back at once, and a statement for each would keep Postgres busy for
//! longer than anybody waits. One task takes whoever waits and asks for all of them together; while that runs the next
//! ones collect.
//!
//! A statement begins after the last question that it answers has arrived, so that no answer is older than its question.
//! Too many who wait are `overloaded`, and a Postgres that does not answer is `unavailable`: an answer is never guessed. A row
//! that cannot be read costs whoever needs it their answer, and nobody else.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{Conn, Db};
use crate::{
    error::{Code, Error, Result},
    tasks::Tasks,
};

/// What bounds a desk.
#[derive(Debug, Clone, Copy)]
pub struct DeskSettings {
    /// Questions that may wait; one more is refused.
    pub waiting_max: usize,
    /// What the questions of one statement weigh, at most; one alone may weigh more.
    pub batch_max: usize,
    /// After this long nobody waits for a statement any more.
    pub statement_timeout: Duration,
}

/// Who knows the statement.
pub trait Clerk: Send + 'static {
    /// What the task is called.
    const NAME: &'static str;

    /// What is asked.
    type Question: Send + Sync + 'static;
    /// What is answered.
    type Answer: Send + 'static;

    /// What a question weighs.
    fn weight(_: &Self::Question) -> usize {
        1
    }

    /// Answers all of these in their order, by one statement.
    fn answer(
        &mut self,
        conn: &mut Conn,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>>> + Send;
}

/// Answers all of these in their order. Where a row cannot be read each half is asked by itself, and its halves, until only
/// those have no answer that need the row.
///
/// # Errors
/// When Postgres does not answer.
pub async fn each<C: Clerk>(
    clerk: &mut C,
    conn: &mut Conn,
    questions: &[C::Question],
) -> Result<Vec<Result<C::Answer>>> {
    let (mut answers, mut parts) = (Vec::with_capacity(questions.len()), vec![questions]);
    while let Some(part) = parts.pop() {
        match clerk.answer(conn, part).await {
            Ok(some) => answers.extend(some.into_iter().map(Ok)),
            Err(error) if !error.is_of_a_row() => return Err(error),
            Err(error) if part.len() <= 1 => answers.push(Err(error)),
            Err(_) => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(answers)
}

/// Where to ask. Cheap to clone.
#[derive(Debug)]
pub struct Desk<Q, A> {
    waiting: mpsc::Sender<Waiting<Q, A>>,
}

impl<Q, A> Clone for Desk<Q, A> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<Q: Send + Sync + 'static, A: Send + 'static> Desk<Q, A> {
    /// Starts the task that answers, until `stop`.
    pub fn open<C: Clerk<Question = Q, Answer = A>>(
        db: Db,
        settings: DeskSettings,
        clerk: C,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> Self {
        let (waiting, queue) = mpsc::channel(settings.waiting_max);
        tasks.part(C::NAME, Service { db, settings, clerk, queue, stop }.run());
        Self { waiting }
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.max_capacity() - self.waiting.capacity()
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// `overloaded` when too many wait, `unavailable` when Postgres does not answer.
    pub async fn ask(&self, question: Q) -> Result<A> {
        self.put(question)?.await
    }

    /// The same in two steps: asks, and gives what waits for the answer.
    ///
    /// # Errors
    /// As [`Desk::ask`].
    pub fn put(&self, question: Q) -> Result<impl Future<Output = Result<A>> + use<Q, A>> {
        let (answer, answered) = oneshot::channel();
        self.waiting.try_send(Waiting { question, answer }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::new(Code::Overloaded, "Too many wait at the moment."),
            mpsc::error::TrySendError::Closed(_) => Error::draining(),
        })?;
        Ok(async { answered.await.unwrap_or_else(|_| Err(Error::draining())) })
    }
}

/// Somebody who waits.
#[derive(Debug)]
struct Waiting<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A>>,
}

/// The task's state.
struct Service<C: Clerk> {
    db: Db,
    settings: DeskSettings,
    clerk: C,
    queue: mpsc::Receiver<Waiting<C::Question, C::Answer>>,
    stop: CancellationToken,
}

impl<C: Clerk> Service<C> {
    /// Answers until `stop`; who still waits then is told so by the answer's dropped sender.
    async fn run(mut self) {
        let stop = self.stop.clone();
        while let Some(first) = stop.run_until_cancelled(self.queue.recv()).await.flatten() {
            // The connection comes first: whoever arrives while it is waited for is answered with the others.
            let conn = self.db.acquire().await;
            let batch = self.batch(first).into_iter().map(|Waiting { question, answer }| (question, answer));
            let (questions, answers): (Vec<_>, Vec<_>) = batch.unzip();
            if questions.is_empty() {
                continue;
            }
            let read = match conn {
                Ok(mut conn) => self.read(&mut conn, &questions).await,
                Err(error) => Err(error),
            };
            hand_out(answers, read);
        }
    }

    /// The first who waits and those behind them, without whoever went away meanwhile.
    fn batch(&mut self, first: Waiting<C::Question, C::Answer>) -> Vec<Waiting<C::Question, C::Answer>> {
        let (mut batch, mut weight) = (Vec::new(), 0);
        let mut next = Some(first);
        while let Some(waiting) = next {
            if !waiting.answer.is_closed() {
                weight += C::weight(&waiting.question);
                batch.push(waiting);
            }
            next = if weight < self.settings.batch_max { self.queue.try_recv().ok() } else { None };
        }
        batch
    }

    /// Reads for the whole batch, or gives up when nobody waits any more.
    async fn read(&mut self, conn: &mut Conn, questions: &[C::Question]) -> Result<Vec<Result<C::Answer>>> {
        let answer = timeout(self.settings.statement_timeout, each(&mut self.clerk, conn, questions));
        let answers = tokio::select! {
            answers = answer => answers.unwrap_or_else(|_| Err(Error::unavailable("The database does not answer."))),
            () = self.stop.cancelled() => Err(Error::draining()),
        }?;
        // Which row it is stands in the log, under the request of whoever needed it.
        answers.iter().filter(|answer| answer.is_err()).for_each(|_| self.db.count_unreadable(C::NAME));
        Ok(answers)
    }
}

/// Gives each its part of what was read, or the same error to all.
fn hand_out<A>(waiting: Vec<oneshot::Sender<Result<A>>>, read: Result<Vec<Result<A>>>) {
    let mut read = read.map(Vec::into_iter).map_err(Arc::new);
    for answer in waiting {
        let part = match &mut read {
            Ok(answers) => answers.next().unwrap_or_else(|| Err(Error::internal("a question got no answer"))),
            Err(error) => Err(Error::new(error.code(), error.problem().detail.clone()).with_cause(error.clone())),
        };
        // Whoever went away meanwhile needs none.
        let _ = answer.send(part);
    }
}

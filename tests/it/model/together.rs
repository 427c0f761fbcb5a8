//! Everybody at once, on a Postgres that stays up.

use super::{Rng, Run, crash::Cluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_committed_event_comes_once_in_order_and_the_same_to_everybody() {
    let cluster = Cluster::start(false, &["max_prepared_transactions = 20"]).await;
    let mut rng = Rng::seeded();
    let run = Run::start(&cluster.url, &mut rng, false).await;
    let mut late = run.writer("late", &mut rng).await;
    let mut prepared = run.writer("prepared", &mut rng).await;
    let mut undone = run.writer("undone", &mut rng).await;
    for writer in [&mut late, &mut prepared, &mut undone] {
        writer.execute("begin").await.unwrap();
    }
    for _ in 0..5 {
        run.until_arrived(200).await;
        late.publish("late").await.unwrap();
        prepared.publish("prepared").await.unwrap();
        undone.publish("undone").await.unwrap();
    }
    prepared.prepare().await.unwrap();
    run.until_arrived(1500).await;
    undone.roll_back().await.unwrap();
    prepared.decide(false).await.unwrap();
    run.until_arrived(500).await;
    late.commit().await.unwrap();
    run.finish(&mut rng).await;
    cluster.stop().await;
}

//! The upstream rejects tokens that are not expired.

use std::time::Duration;

use tokio::{task::JoinSet, time::Instant};

use super::{
    store::Store,
    world::{Setup, World, amount, status},
};

const COOLDOWN: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_budget_of_refreshes_holds_for_all_replicas() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 3,
        lifetime: Duration::from_secs(3600),
        cooldown: COOLDOWN,
        ..Setup::default()
    };
    let world = World::start(&store, setup).await;
    let calls = world.cloud.issuer_calls();
    world.cloud.revoke_access_tokens();
    let mut requests = JoinSet::new();
    for number in 0..300 {
        let address = world.replicas[number % 3].program.address;
        requests.spawn(status(address, "/api/echo.do"));
    }
    let statuses = requests.join_all().await;
    assert!(
        statuses.iter().all(|status| *status == Some(200)),
        "{statuses:?}"
    );
    let first = world.cloud.issuer_calls() - calls;
    assert!((1..=2).contains(&first), "{first} calls");

    // A path that rejects every token: three refreshes at once, then one each cooldown.
    world
        .cloud
        .faults()
        .reject_paths
        .push("/api/rejected".to_owned());
    let calls = world.cloud.issuer_calls();
    let begin = Instant::now();
    let time = Duration::from_secs(amount("SOAK_FLEET_REJECTIONS", 14));
    while begin.elapsed() < time {
        let mut requests = JoinSet::new();
        for replica in &world.replicas {
            requests.spawn(status(replica.program.address, "/api/rejected.do"));
        }
        for status in requests.join_all().await {
            assert_eq!(status, Some(401));
        }
    }
    let further = world.cloud.issuer_calls() - calls;
    let periods = begin.elapsed().as_millis() / COOLDOWN.as_millis();
    println!("{further} calls in {periods} cooldowns");
    let most = 3 + u64::try_from(periods).unwrap();
    assert!(
        (2..=most).contains(&further),
        "{further} calls, {most} at most"
    );
    world.check("rejections");
}

//! Nothing fails; all replicas are restarted; several credentials use one store; secrets.

use std::{fs, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    store::{Store, encoded},
    world::{Setup, World, amount, state, status},
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_replicas_refresh_once_a_generation() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 5,
        lifetime: seconds(2),
        ..Setup::default()
    };
    let world = World::start(&store, setup).await;
    let load = world.load(&[0, 1, 2, 3, 4]);
    let end = Instant::now() + seconds(amount("SOAK_FLEET_SECONDS", 20));
    let (mut readings, mut apart) = (0, 0);
    while Instant::now() < end {
        let mut generations = Vec::new();
        for replica in &world.replicas {
            generations.push(replica.generation().await);
        }
        let spread = generations.iter().max().unwrap() - generations.iter().min().unwrap();
        readings += 1;
        apart += u64::from(spread > 1);
    }
    load.finish("five replicas").await;
    world.check("five replicas");
    let (calls, granted) = (world.cloud.issuer_calls(), world.cloud.issuer_successes());
    let generation = world.generation().await;
    println!("{calls} calls, generation {generation}, {apart} of {readings} readings apart");
    assert_eq!(calls, granted);
    assert!(granted.abs_diff(generation) <= 2, "{granted}: {generation}");
    // A generation lasts a second here, as long as a replica may take to read the next token.
    assert!(apart * 10 <= readings, "{apart} of {readings} readings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_replicas_start_again_after_the_end_of_the_token() {
    let store = Store::start(&[]).await;
    let setup = Setup {
        replicas: 3,
        lifetime: seconds(6),
        ..Setup::default()
    };
    let mut world = World::start(&store, setup).await;
    world.goes_on().await;
    for replica in &mut world.replicas {
        replica.terminate().await;
    }
    let calls = world.cloud.issuer_calls();
    tokio::time::sleep(world.lifetime()).await; // the end of the token
    let begin = Instant::now();
    for replica in &mut world.replicas {
        replica.start().await;
    }
    world.ready().await;
    let took = begin.elapsed();
    println!("ready after {took:?}");
    assert_eq!(world.cloud.issuer_calls(), calls + 1);
    assert!(took < seconds(12), "{took:?}");
    world.check("all replicas started again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_clouds_in_one_store_do_not_share_tokens() {
    let store = Store::start(&[]).await;
    let one = World::start(&store, Setup::default()).await;
    let two = Setup {
        more: "token.client_id = \"demo2\"\ntoken.client_secret = \"secret\"\n".to_owned(),
        ..Setup::default()
    };
    // The same client of another cloud: its record is the other one's.
    let mut other = World::prepare(&store, Setup::default()).await;
    for replica in &mut other.replicas {
        replica.start().await;
    }
    other
        .until("the record of the other cloud is refused", async || {
            let credential = state(&other.replicas[0]).await;
            credential.to_string().contains("store_garbled")
        })
        .await;
    one.goes_on().await;
    one.goes_on().await;
    assert_eq!(other.cloud.issuer_calls(), 0);
    assert_ne!(
        status(other.replicas[1].program.address, "/api/echo.do").await,
        Some(200)
    );
    one.check("the first cloud");
    assert_eq!(store.keys().await.len(), 1);
    drop(other);
    // Another client: a record of its own.
    let mut second = World::prepare(&store, two).await;
    for replica in &mut second.replicas {
        replica.start().await;
    }
    second
        .until("the other client calls its issuer", async || {
            second.cloud.issuer_calls() > 0
        })
        .await;
    assert_eq!(store.keys().await.len(), 2);
    one.goes_on().await;
    one.check("the first client");
    assert_eq!(one.cloud.issuer_calls(), one.cloud.issuer_successes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_keys_appear_nowhere() {
    const PASSWORD: &str = "st0re-pass-w0rds";
    let key = STANDARD.encode([0xa7; 32]);
    let store = Store::start(&[]).await;
    let setup = Setup {
        more: format!(
            "token.store.user = \"fleet\"\ntoken.store.password = \"{PASSWORD}\"\ntoken.store.key = \"{key}\"\n"
        ),
        lifetime: seconds(2),
        ..Setup::default()
    };
    let user = format!(
        "ACL SETUSER fleet on >{PASSWORD} resetkeys ~bearer-proxy:* resetchannels -@all +hget \
         +hmget +hset +eval +time +wait +info +role +ping +auth"
    );
    let parts: Vec<_> = user.split(' ').collect();
    assert!(store.command(&parts).await.starts_with("+OK"));
    let mut monitor = TcpStream::connect(store.address).await.unwrap();
    monitor.write_all(&encoded(&["MONITOR"])).await.unwrap();
    let mut world = World::prepare(&store, setup).await;
    for number in 0..world.replicas.len() {
        let program = &world.replicas[number].program;
        let text = program
            .read("proxy.toml")
            .replace("log.level = \"debug\"", "log.level = \"trace\"");
        program.write("proxy.toml", text);
        world.replicas[number].start().await;
    }
    world.ready().await;
    world.goes_on().await;
    world.goes_on().await;
    let mut seen = Vec::new();
    let reading = monitor.read_to_end(&mut seen);
    let _ = timeout(Duration::from_millis(500), reading).await;
    assert!(store.command(&["SAVE"]).await.starts_with("+OK"));
    let dump = fs::read(store.folder.path().join("dump.rdb")).unwrap();
    let slow = store.command(&["SLOWLOG", "GET"]).await;
    let seen = String::from_utf8_lossy(&seen);
    let dump = String::from_utf8_lossy(&dump);
    assert!(
        seen.contains("eval") || seen.contains("EVAL"),
        "{seen:.500}"
    );
    assert!(dump.contains("bearer-proxy:"));
    let tokens: Vec<_> = world.spent().into_iter().map(|spent| spent.token).collect();
    assert!(tokens.len() >= 3, "{tokens:?}");
    let mirrors: Vec<_> = world
        .replicas
        .iter()
        .map(|replica| {
            let text = replica.program.read("state/token.json");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json["access_token"].as_str().unwrap().to_owned()
        })
        .collect();
    for secret in tokens.iter().chain(&mirrors) {
        for (place, text) in [("MONITOR", &*seen), ("dump", &dump), ("SLOWLOG", &slow)] {
            assert!(!text.contains(secret.as_str()), "{secret} is in {place}");
        }
    }
    for replica in &world.replicas {
        let (log, status) = (replica.program.log(), replica.program.status().await);
        let metrics = crate::common::text_at(replica.program.admin, "/metrics").await;
        let secrets = [PASSWORD, key.as_str()];
        let tokens = tokens
            .iter()
            .filter(|token| *token != "seed")
            .chain(&mirrors)
            .map(String::as_str);
        for secret in secrets.into_iter().chain(tokens) {
            for (place, text) in [("log", &log), ("status", &status), ("metrics", &metrics)] {
                assert!(!text.contains(secret), "{secret} is in the {place}: {text}");
            }
        }
    }
    world.check("with a key");
}

//! Faults that operators reported of the token store: volumes, processes that share it, copies of
//! secrets.
#![cfg(target_os = "linux")]

use bearer_proxy::{
    base::clock,
    cloud::{Cloud, Config},
};
use serde_json::Value;

use crate::common::process::Program;

/// A cloud that rotates refresh tokens and revokes all tokens at the first reuse.
async fn strict_cloud() -> Cloud {
    let config = Config {
        seeds: vec!["seed".into()],
        ..Config::new("demo", "secret")
    };
    Cloud::start(config, clock::system()).await.unwrap()
}

fn stored(program: &Program) -> Value {
    serde_json::from_str(&program.read("state/token.json")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_a12_a_secret_that_is_kept_in_sync_with_the_state_file_revokes_nothing() {
    let cloud = strict_cloud().await;
    let more = "token.refresh_token_file = \"refresh_token\"\nretry.cooldown = \"50ms\"\n";
    let program = Program::with_state(cloud.origin(), more);
    program.write("refresh_token", "seed");
    let _running = program.start_ready().await;
    for _ in 0..3 {
        let current = stored(&program)["refresh_token"].clone();
        program.write("refresh_token", current.as_str().unwrap());
        program.refresh().await;
        program.refresh().await;
    }
    assert_eq!(cloud.families_revoked(), 0);
    assert_eq!(program.credential().await["state"], "fresh");
}

//! What operators see of a name's addresses.

use serde_json::{Value, json};

use super::Machine;
use crate::common::{eventually, text_at};

/// Short, so that changes are noticed soon.
const REFRESH: &str = "upstream.dns_refresh = \"1s\"\n";

/// The endpoint in `/status`.
async fn endpoint(machine: &Machine) -> Value {
    let status: Value = serde_json::from_str(&machine.program.status().await).unwrap();
    status["upstreams"][0]["endpoints"][0].clone()
}

/// The addresses of the endpoint, and whether each is of the other family.
async fn addresses(machine: &Machine) -> Vec<(String, bool)> {
    let endpoint = endpoint(machine).await;
    let addresses = endpoint["addresses"].as_array().unwrap().iter();
    let addresses = addresses.map(|address| {
        let text = address["address"].as_str().unwrap();
        (text.to_owned(), address["other_family"].as_bool().unwrap())
    });
    addresses.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_addresses_of_a_name_and_a_look_up_that_fails() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let _first = machine.upstream("127.0.0.2").await;
    let _second = machine.upstream("127.0.0.3").await;
    machine
        .names
        .host("cloud.test", &["127.0.0.2", "127.0.0.3"]);
    let _running = machine.start();
    machine.program.ready().await;
    let at = |ip: &str| (machine.at(ip).to_string(), false);
    eventually("both addresses are shown", async || {
        let mut addresses = addresses(&machine).await;
        addresses.sort();
        addresses == [at("127.0.0.2"), at("127.0.0.3")]
    })
    .await;
    assert_eq!(endpoint(&machine).await["resolve_error"], Value::Null);

    machine.names.host("cloud.test", &["127.0.0.2"]);
    eventually("the other address is gone", async || {
        addresses(&machine).await == [at("127.0.0.2")]
    })
    .await;
    let metrics = text_at(machine.program.admin, "/metrics").await;
    let gone = machine.at("127.0.0.3").to_string();
    assert!(!metrics.contains(&gone), "{metrics}");

    machine.names.hosts("");
    eventually("the error is shown", async || {
        endpoint(&machine).await["resolve_error"].is_string()
    })
    .await;
    let shown = endpoint(&machine).await;
    assert_eq!(shown["healthy"], json!(true), "{shown}");
    assert_eq!(addresses(&machine).await, [at("127.0.0.2")]);
    let (_, text, _) = machine.program.run(&["status"]);
    assert!(text.contains("  NOT RESOLVED: "), "{text}");

    // The same address again: nothing but the error changes.
    machine.names.host("cloud.test", &["127.0.0.2"]);
    eventually("the error is gone", async || {
        endpoint(&machine).await["resolve_error"].is_null()
    })
    .await;
    assert_eq!(addresses(&machine).await, [at("127.0.0.2")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_address_family_that_is_not_preferred_is_marked() {
    let machine = Machine::new("cloud.test", REFRESH).await;
    let _upstream = machine.upstream("127.0.0.2").await;
    machine.names.host("cloud.test", &["127.0.0.2", "::1"]);
    let _running = machine.start();
    machine.program.ready().await;
    eventually("both families are shown", async || {
        let addresses = addresses(&machine).await;
        let others = addresses.iter().filter(|(_, is_other)| *is_other);
        addresses.len() == 2 && others.count() == 1
    })
    .await;
}

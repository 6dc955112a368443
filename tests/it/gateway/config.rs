//! Invalid settings: all problems are reported, the exit code is 64, and nothing is served.

use msg_stack::ServiceSpec;

use crate::support::world::World;

/// Checks that the gateway exits with code 64 and logs one line for each of these settings.
async fn assert_config_rejected(
    world: &World,
    name: &str,
    change: impl FnOnce(ServiceSpec) -> ServiceSpec,
    settings: &[&str],
) {
    let gateway = world.gateway(name, change);
    gateway.service.launch().unwrap();
    assert_eq!(gateway.service.wait().await.unwrap().code(), Some(64), "{name}");
    let log = std::fs::read_to_string(gateway.service.log()).unwrap();
    let problems: Vec<&str> = log.lines().filter(|line| line.starts_with("error: ")).collect();
    for setting in settings {
        assert_eq!(problems.iter().filter(|line| line.contains(setting)).count(), 1, "{name}, {setting}: {log}");
    }
    assert_eq!(problems.len(), settings.len(), "{name}: {log}");
}

#[tokio::test]
async fn gateway_reports_all_invalid_settings_with_exit_code_64() {
    let world = World::new("bad_config").await;
    let unreadable = |spec: ServiceSpec| {
        spec.env("TOPIC_PARTITIONS", "many")
            .env("LINGER", "soon")
            .env("MAX_INFLIGHT_BYTES", "1MB")
            .env("LISTEN", "here")
    };
    let flags = ["--topic-partitions", "--linger", "--max-inflight-bytes", "--listen"];
    assert_config_rejected(&world, "unreadable", unreadable, &flags).await;
    let contradictory = |spec: ServiceSpec| {
        spec.env("LISTEN", "0.0.0.0:0")
            .env("MAX_SEND_WAIT", "60s")
            .env("MAX_INFLIGHT_BYTES", "1KiB")
            .env("KAFKA_PROPERTIES", "acks=0,compression.type=best")
            .env("READ_CONNECTIONS", 0)
    };
    let flags = [
        "--listen 0.0.0.0:0 is beyond loopback",
        "--max-send-wait must be below",
        "--max-inflight-bytes must be at least",
        "acks is set by the service",
        "compression.type",
        "--read-connections",
    ];
    assert_config_rejected(&world, "contradictory", contradictory, &flags).await;
    assert_config_rejected(&world, "unknown-flag", |spec| spec.arg("--no-such-flag"), &["--no-such-flag"]).await;
}

#[tokio::test]
async fn plaintext_beyond_loopback_has_to_be_allowed() {
    let world = World::new("beyond").await;
    let listen_on_all = |spec: ServiceSpec| {
        let listen = spec.env.iter().find(|(name, _)| name == "LISTEN").unwrap().1.replace("127.0.0.1", "0.0.0.0");
        spec.env("LISTEN", listen)
    };
    assert_config_rejected(&world, "rejected", listen_on_all, &["--allow-plaintext"]).await;
    let accepted = world.gateway("accepted", |spec| listen_on_all(spec).env("ALLOW_PLAINTEXT", true));
    accepted.service.start().await.unwrap();
    accepted.client().await;
}

#[tokio::test]
async fn healthcheck_command_reports_whether_the_gateway_runs() {
    let world = World::new("healthcheck").await;
    let gateway = world.gateway("gateway", |spec| spec);
    let healthcheck = async |name: &str| {
        let admin = gateway.service.spec().admin.unwrap();
        let check = world.gateway(name, |spec| spec.admin(admin).arg("healthcheck"));
        check.service.launch().unwrap();
        check.service.wait().await.unwrap().success()
    };
    assert!(!healthcheck("before").await);
    gateway.service.start().await.unwrap();
    assert!(healthcheck("running").await);
    gateway.service.stop().await.unwrap();
    assert!(!healthcheck("after").await);
}

//! The admin port.

use msg_common::admin::probe;
use msg_common::proto::PullMsgsRequest;

use super::calls::{client, send};
use crate::support::kafka::msg;
use crate::support::world::World;
use crate::support::{ensure, eventually};

#[tokio::test]
async fn admin_port_serves_health_readiness_and_metrics() {
    let world = World::new("gateway_metrics").await;
    let (gateway, _transfer) = (world.running_gateway().await, world.running_transfer().await);
    let client = client(&gateway).await;
    for i in 0..3 {
        send(&client, &msg("alice", "bob", &i.to_string(), "secret body")).await.unwrap();
    }
    send(&client, &msg("", "bob", "4", "x")).await.unwrap_err();
    send(&client, &msg("alice", "bob", "5", vec![0; 5 << 20])).await.unwrap_err();
    let bobs = PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() };
    client.clone().pull_msgs(bobs).await.unwrap();
    let admin = gateway.service.spec().admin.unwrap();
    assert_eq!(probe(admin, "/healthz").await.unwrap().0, 200);
    assert_eq!(probe(admin, "/readyz").await.unwrap(), (200, "ready\n".into()));
    assert_eq!(probe(admin, "/nothing").await.unwrap().0, 404);
    let metrics = eventually("the gauges are set", async || {
        let metrics = gateway.service.metrics().await?;
        ensure(metrics.contains("\nmsg_gateway_inflight_msgs 0"), &metrics)?;
        Ok(metrics)
    })
    .await;
    for line in [
        "msg_gateway_requests_total{method=\"SendMsg\",outcome=\"OK\"} 3",
        "msg_gateway_requests_total{method=\"SendMsg\",outcome=\"INVALID_FIELDS\"} 1",
        "msg_gateway_requests_total{method=\"PullMsgs\",outcome=\"OK\"} 1",
        "msg_gateway_transport_errors_total{reason=\"TOO_LARGE\"} 1",
        "msg_gateway_deliveries_total{outcome=\"STORED\"} 3",
        "msg_gateway_send_duration_seconds_count 3",
        "msg_gateway_read_duration_seconds_count{method=\"PullMsgs\"} 1",
        "msg_gateway_inflight_bytes 0",
        "msg_gateway_buffered_request_bytes 0",
        "msg_gateway_connections 1",
        "msg_gateway_topic_usable 1",
        "msg_gateway_topic_unsafe_settings 3",
        "msg_gateway_topic_extra_partitions 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let described = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in described {
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    assert!(metrics.contains("msg_gateway_preflight_checks_total{outcome=\"OK\"}"), "{metrics}");
    // Neither a message's content nor its sender is logged or exported.
    let log = std::fs::read_to_string(gateway.service.log()).unwrap();
    for text in ["secret body", "alice"] {
        assert!(!metrics.contains(text) && !log.contains(text), "{text} is exposed");
    }
}

//! P6 and P8 of reads: a database with several hosts, with a wrong kind of server, or with a rotated password.

use std::time::Duration;

use msg_common::proto::{Placement, PullMsgsRequest};
use msg_stack::Service;
use tonic::{Request, Status};

use super::calls::{Client, client, readyz, wait_gateway_not_ready};
use super::stored;
use crate::support::hosts::{PasswordRole, Pooler, PostgresPair, host_and_port, silent_host};
use crate::support::kafka::msg;
use crate::support::stack::own_postgres;
use crate::support::world::{Gateway, World};
use crate::support::{NotYet, ensure, eventually, within};

const FAILOVER: Duration = Duration::from_secs(30);

async fn send_stored(client: &Client, id: &str) -> Result<Placement, Status> {
    stored::send_stored(client, &msg("alice", "bob", id, "hello"), Duration::from_secs(10)).await
}

async fn pull(client: &Client) -> Result<usize, NotYet> {
    let mut request = Request::new(PullMsgsRequest { recv_id: "bob".into(), ..PullMsgsRequest::default() });
    request.set_timeout(Duration::from_secs(10));
    Ok(client.clone().pull_msgs(request).await?.into_inner().msgs.len())
}

#[tokio::test]
async fn reads_skip_a_silent_first_host() {
    let world = World::new("gw_silent").await;
    let _transfer = world.running_transfer().await;
    let (_listener, silent) = silent_host();
    let url = format!("postgres://postgres@{silent},{}/gw_silent", host_and_port(world.database_url()));
    let gateway = world.gateway("gateway", |spec| {
        let spec = spec.env("DATABASE_URL", &url).env("DATABASE_REPLICA_URL", &url);
        spec.env("DATABASE_CONNECT_TIMEOUT", "1s")
    });
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send_stored(&client, "1").await.unwrap();
    assert_eq!(pull(&client).await.unwrap(), 1);
}

/// Waits until a send that waits for STORED succeeds, and a read returns that message and all earlier ones.
async fn wait_for_sends_and_reads(client: &Client, stored: usize, id: &str) {
    within(FAILOVER, "sends that wait for STORED and reads succeed", async || {
        send_stored(client, id).await?;
        let found = pull(client).await?;
        ensure(found == stored + 1, format!("{found} messages"))
    })
    .await;
}

/// Starts the services with this URL, and stores 5 messages on both servers.
async fn start_and_send(pair: &PostgresPair, url: &str) -> (Service, Gateway, Client) {
    let transfer = pair.world.transfer("transfer", |spec| spec.env("DATABASE_URL", url));
    let gateway = pair.world.gateway("gateway", |spec| spec.env("DATABASE_URL", url));
    tokio::try_join!(transfer.start(), gateway.service.start()).unwrap();
    let client = client(&gateway).await;
    for id in 0..5 {
        send_stored(&client, &id.to_string()).await.unwrap();
    }
    pair.wait_for_standby().await;
    (transfer, gateway, client)
}

#[tokio::test]
async fn reads_move_from_a_frozen_primary_to_its_promoted_standby() {
    let pair = PostgresPair::start("gw_frozen").await;
    let url = pair.url(pair.stack.postgres(), &pair.standby, "?target_session_attrs=read-write");
    let (_transfer, _gateway, client) = start_and_send(&pair, &url).await;
    assert!(pair.stack.postgres().freeze());
    pair.promote().await;
    wait_for_sends_and_reads(&client, 5, "after").await;
}

#[tokio::test]
async fn reads_leave_a_primary_that_became_read_only() {
    let pair = PostgresPair::start("gw_demoted").await;
    let url = pair.url(pair.stack.postgres(), &pair.standby, "?target_session_attrs=read-write");
    let (_transfer, _gateway, client) = start_and_send(&pair, &url).await;
    // Existing sessions keep their setting.
    let operator = pair.primary_client().await;
    operator.batch_execute("ALTER DATABASE gw_demoted SET default_transaction_read_only = on").await.unwrap();
    pair.promote().await;
    wait_for_sends_and_reads(&client, 5, "after").await;
}

#[tokio::test]
async fn gateway_follows_a_rotated_password() {
    let (stack, _folder) = own_postgres("gw_rotated").await;
    let world = World::on(&stack, "gw_rotated", 4);
    world.create(&stack).await;
    let app = PasswordRole::create(&stack, &world).await;
    let transfer = world.running_transfer().await;
    world.database().await.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app").await.unwrap();
    let gateway = world.gateway("gateway", |spec| app.configure(spec));
    gateway.service.start().await.unwrap();
    let client = client(&gateway).await;
    send_stored(&client, "1").await.unwrap();
    app.rotate("second").await;
    wait_for_sends_and_reads(&client, 1, "2").await;
    drop(transfer);
    stack.stop().await;
}

#[tokio::test]
async fn gateway_refuses_a_pooler_in_transaction_mode() {
    if !Pooler::installed() {
        return;
    }
    let world = World::new("gw_pooler").await;
    let _transfer = world.running_transfer().await;
    let pooler = Pooler::start(&world, "pool_mode = transaction").await;
    let gateway = world.gateway("gateway", |spec| spec.env("DATABASE_URL", &pooler.url));
    gateway.service.launch().unwrap();
    wait_gateway_not_ready(&gateway, &["database", "pooler in transaction (or statement) mode", "pool_mode = session"])
        .await;
    let client = client(&gateway).await;
    assert!(pull(&client).await.is_err());
    drop(pooler);
    let session = Pooler::start(&world, "pool_mode = session").await;
    let other = world.gateway("other", |spec| spec.env("DATABASE_URL", &session.url));
    other.service.start().await.unwrap();
    assert_eq!(pull(&super::calls::client(&other).await).await.unwrap(), 0);
}

#[tokio::test]
async fn gateway_refuses_a_database_in_another_encoding() {
    let world = World::new("gw_latin").await;
    let create = "CREATE DATABASE gw_latin_1 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    world.database().await.batch_execute(create).await.unwrap();
    let url = format!("postgres://postgres@{}/gw_latin_1", host_and_port(world.database_url()));
    let gateway = world.gateway("gateway", |spec| spec.env("DATABASE_URL", url));
    gateway.service.launch().unwrap();
    eventually("the encoding is reported", async || {
        let (status, body) = readyz(&gateway).await?;
        ensure(status == 503 && body.contains("LATIN1") && body.contains("ENCODING 'UTF8'"), body)
    })
    .await;
}

//! Injects faults of PostgreSQL.

use std::time::Duration;

use msg_stack::Signal;

use super::injection::FaultInjection;
use crate::accounts::without_files;
use crate::error::LabError;
use crate::history::now;
use crate::world::Node;

/// After a crash the server replays its log before it accepts connections.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// The lanes are in a transaction most of the time, so a backend is found soon.
const FOUND_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn kill_backend(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let pid = backend(injection).await?;
    Signal::Kill.send(pid);
    injection.fault.kills = 1;
    injection.hold().await;
    responds(injection).await
}

pub(super) async fn freeze_backend(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let pid = backend(injection).await?;
    Signal::Stop.send(pid);
    injection.hold().await;
    // A stopped process keeps its id.
    Signal::Cont.send(pid);
    Ok(())
}

/// Picks a backend that is in a transaction, and prefers one that has written in it.
async fn backend(injection: &mut FaultInjection<'_>) -> Result<u32, LabError> {
    // Do not select by statement: the last statement of an idle connection is its COMMIT.
    const CLIENTS: &str = "
        SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
        ORDER BY backend_xid IS NULL, random() LIMIT 1";
    let database = injection.world.database().await?;
    let finding = async {
        loop {
            match database.query_opt(CLIENTS, &[]).await? {
                Some(row) => return Ok::<u32, LabError>(row.get::<_, i32>(0).cast_unsigned()),
                None => tokio::time::sleep(POLL / 10).await,
            }
        }
    };
    let late = |_| LabError::Stuck("no backend was in a transaction".to_owned());
    let pid = tokio::time::timeout(FOUND_WITHIN, finding).await.map_err(late)??;
    injection.target(format!("backend {pid}"));
    Ok(pid)
}

pub(super) async fn kill(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let postgres = injection.world.stack.postgres();
    injection.target("postgresql");
    postgres.kill().await;
    injection.fault.kills = 1;
    injection.hold().await;
    Ok(postgres.start().await?)
}

pub(super) async fn freeze(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let postgres = injection.world.stack.postgres();
    injection.target("postgresql");
    if !postgres.freeze() {
        return Err(LabError::Stuck("postgresql does not run".to_owned()));
    }
    injection.hold().await;
    postgres.thaw();
    responds(injection).await
}

/// Stops the server with this signal and starts it immediately.
pub(super) async fn restart(injection: &mut FaultInjection<'_>, signal: Signal) -> Result<(), LabError> {
    let postgres = injection.world.stack.postgres();
    injection.target("postgresql");
    injection.fault.broken = now();
    end(injection, signal).await;
    injection.fault.over = now();
    Ok(postgres.start().await?)
}

pub(super) async fn stop(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let seconds = injection.hold.as_secs();
    injection.target(format!("postgresql, {seconds} s"));
    end(injection, Signal::Int).await;
    injection.hold().await;
    Ok(injection.world.stack.postgres().start().await?)
}

/// Another session inserts the next row of an inbox, and neither commits nor rolls back: no message of the inbox can be
/// stored.
pub(super) async fn block_inbox(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    const NEXT: &str = "
        INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content, send_time,
                              kafka_partition, kafka_offset)
        SELECT recv_id, seq + 1, gen_random_uuid(), 'lab', '', session_type, content_type, content, send_time,
               kafka_partition, kafka_offset
        FROM messages WHERE recv_id = $1 ORDER BY seq DESC LIMIT 1";
    let database = injection.world.database().await?;
    let inbox: String = database.query_one("SELECT recv_id FROM messages LIMIT 1", &[]).await?.get(0);
    injection.target(inbox.clone());
    let blocking = async {
        // A transfer may store the same number first.
        loop {
            database.batch_execute("BEGIN").await?;
            match database.execute(NEXT, &[&inbox]).await {
                Ok(_) => return Ok::<(), LabError>(()),
                Err(_) => database.batch_execute("ROLLBACK").await?,
            }
        }
    };
    let late = |_| LabError::Stuck(format!("no row of {inbox} could be inserted"));
    tokio::time::timeout(FOUND_WITHIN, blocking).await.map_err(late)??;
    injection.hold().await;
    Ok(database.batch_execute("ROLLBACK").await?)
}

/// Locks the table, as a migration or a VACUUM FULL by an operator does.
pub(super) async fn lock_table(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target("messages");
    let database = injection.world.database().await?;
    database.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
    injection.hold().await;
    Ok(database.batch_execute("ROLLBACK").await?)
}

/// Makes every session read-only from its next transaction on.
pub(super) async fn read_only(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    injection.target("postgresql");
    let database = injection.world.database().await?;
    database.batch_execute("SET default_transaction_read_only = off").await?;
    for (setting, lasts) in
        [("SET default_transaction_read_only = on", true), ("RESET default_transaction_read_only", false)]
    {
        database.batch_execute(&format!("ALTER SYSTEM {setting}")).await?;
        database.batch_execute("SELECT pg_reload_conf()").await?;
        if lasts {
            injection.hold().await;
        }
    }
    Ok(())
}

/// Gives a gateway and a transfer another host before the server. That host accepts connections and never responds.
pub(super) async fn silent_host(injection: &mut FaultInjection<'_>) -> Result<(), LabError> {
    // No task accepts on this socket: the kernel accepts until its queue is full, and then ignores connections.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(LabError::io("listen on", "127.0.0.1"))?;
    let silent = (silent.local_addr().map_err(LabError::io("listen on", "127.0.0.1"))?, silent);
    let world = injection.world;
    let nodes = [&world.gateways[0], &world.transfers[0]];
    injection.target(nodes.map(Node::name).join(" and "));
    for node in nodes {
        node.stop().await;
        node.change(|spec| {
            let mut spec = without_files(spec);
            for (_, url) in spec.env.iter_mut().filter(|(name, _)| name == "DATABASE_URL") {
                *url = url.replacen('@', &format!("@{},", silent.0), 1);
            }
            spec
        })?;
        node.start().await?;
    }
    injection.hold().await;
    for node in nodes {
        node.stop().await;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

async fn end(injection: &FaultInjection<'_>, signal: Signal) {
    if let Some(process) = injection.world.stack.postgres().process() {
        process.signal(signal);
        process.wait().await;
    }
}

pub(super) async fn responds(injection: &FaultInjection<'_>) -> Result<(), LabError> {
    let polling = async {
        loop {
            if let Ok(database) = injection.world.database().await
                && database.simple_query("SELECT 1").await.is_ok()
            {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| LabError::Stuck("PostgreSQL does not accept connections again".to_owned());
    tokio::time::timeout(BACK_WITHIN, polling).await.map_err(late)
}

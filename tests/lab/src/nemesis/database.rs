//! Breaks PostgreSQL.

use std::time::Duration;

use msg_stack::Signal;

use super::injection::FaultInjection;
use crate::accounts::without_files;
use crate::error::LabError;
use crate::history::now;
use crate::world::Node;

/// After a crash the server goes through its log before it takes connections.
const BACK_WITHIN: Duration = Duration::from_secs(120);
/// The lanes are in a transaction most of the time.
const FOUND_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn kill_backend(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let pid = backend(strike).await?;
    // SAFETY: kill has no memory effects; the server named the process just now.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    strike.fault.kills = 1;
    strike.hold().await;
    answers(strike).await
}

pub(super) async fn freeze_backend(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let pid = backend(strike).await?;
    // SAFETY: as above; a process that is stopped keeps its id.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    strike.hold().await;
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    Ok(())
}

/// One that is in a transaction, and has written in it where there is one.
async fn backend(strike: &mut FaultInjection<'_>) -> Result<libc::pid_t, LabError> {
    // What a connection did last is its COMMIT, so the statement says little.
    const CLIENTS: &str = "
        SELECT pid FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
        ORDER BY backend_xid IS NULL, random() LIMIT 1";
    let database = strike.world.database().await?;
    let finding = async {
        loop {
            match database.query_opt(CLIENTS, &[]).await? {
                Some(row) => return Ok::<libc::pid_t, LabError>(row.get(0)),
                None => tokio::time::sleep(POLL / 10).await,
            }
        }
    };
    let late = |_| LabError::Stuck("no backend was in a transaction".to_owned());
    let pid = tokio::time::timeout(FOUND_WITHIN, finding).await.map_err(late)??;
    strike.target(format!("backend {pid}"));
    Ok(pid)
}

pub(super) async fn kill(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    postgres.kill().await;
    strike.fault.kills = 1;
    strike.hold().await;
    Ok(postgres.start().await?)
}

pub(super) async fn freeze(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    if !postgres.freeze() {
        return Err(LabError::Stuck("postgresql does not run".to_owned()));
    }
    strike.hold().await;
    postgres.thaw();
    answers(strike).await
}

/// Ends in the way of this signal and starts at once.
pub(super) async fn restart(strike: &mut FaultInjection<'_>, signal: Signal) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    strike.fault.broken = now();
    end(strike, signal).await;
    strike.fault.over = now();
    Ok(postgres.start().await?)
}

pub(super) async fn away(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    let seconds = strike.hold.as_secs();
    strike.target(format!("postgresql, {seconds} s"));
    end(strike, Signal::Int).await;
    strike.hold().await;
    Ok(strike.world.stack.postgres().start().await?)
}

/// Another session has inserted the next row of an inbox, and neither commits nor rolls back: nothing more of the inbox can be stored.
pub(super) async fn block_inbox(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    const NEXT: &str = "
        INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content, send_time,
                              kafka_partition, kafka_offset)
        SELECT recv_id, seq + 1, gen_random_uuid(), 'lab', '', session_type, content_type, content, send_time,
               kafka_partition, kafka_offset
        FROM messages WHERE recv_id = $1 ORDER BY seq DESC LIMIT 1";
    let database = strike.world.database().await?;
    let inbox: String = database.query_one("SELECT recv_id FROM messages LIMIT 1", &[]).await?.get(0);
    strike.target(inbox.clone());
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
    strike.hold().await;
    Ok(database.batch_execute("ROLLBACK").await?)
}

/// As a migration of somebody's, or a VACUUM FULL, does.
pub(super) async fn lock_table(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    strike.target("messages");
    let database = strike.world.database().await?;
    database.batch_execute("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE").await?;
    strike.hold().await;
    Ok(database.batch_execute("ROLLBACK").await?)
}

/// Every session is read-only from its next transaction on.
pub(super) async fn read_only(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    strike.target("postgresql");
    let database = strike.world.database().await?;
    database.batch_execute("SET default_transaction_read_only = off").await?;
    for (setting, lasts) in
        [("SET default_transaction_read_only = on", true), ("RESET default_transaction_read_only", false)]
    {
        database.batch_execute(&format!("ALTER SYSTEM {setting}")).await?;
        database.batch_execute("SELECT pg_reload_conf()").await?;
        if lasts {
            strike.hold().await;
        }
    }
    Ok(())
}

/// A gateway and a transfer are given another host before the server: it accepts connections and never responds.
pub(super) async fn silent_host(strike: &mut FaultInjection<'_>) -> Result<(), LabError> {
    // Nobody accepts: the system does, until its queue is full, and then it does not even do that.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(LabError::io("listen on", "127.0.0.1"))?;
    let silent = (silent.local_addr().map_err(LabError::io("listen on", "127.0.0.1"))?, silent);
    let world = strike.world;
    let nodes = [&world.gateways[0], &world.transfers[0]];
    strike.target(nodes.map(Node::name).join(" and "));
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
    strike.hold().await;
    for node in nodes {
        node.stop().await;
        node.change(|spec| spec)?;
        node.start().await?;
    }
    Ok(())
}

async fn end(strike: &FaultInjection<'_>, signal: Signal) {
    if let Some(process) = strike.world.stack.postgres().process() {
        process.signal(signal);
        process.wait().await;
    }
}

pub(super) async fn answers(strike: &FaultInjection<'_>) -> Result<(), LabError> {
    let asking = async {
        loop {
            if let Ok(database) = strike.world.database().await
                && database.simple_query("SELECT 1").await.is_ok()
            {
                return;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let late = |_| LabError::Stuck("PostgreSQL does not take connections again".to_owned());
    tokio::time::timeout(BACK_WITHIN, asking).await.map_err(late)
}

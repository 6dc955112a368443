//! Breaks PostgreSQL.

use std::time::Duration;

use msg_dev::stack::Signal;

use super::{LabError, Strike};

/// After a crash the server goes through its log before it takes connections.
const BACK_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

pub(super) async fn kill_backend(strike: &mut Strike<'_>) -> Result<(), LabError> {
    let Some(pid) = backend(strike).await? else { return Ok(()) };
    // SAFETY: kill has no memory effects; the server named the process just now.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    strike.fault.kills = 1;
    strike.hold().await;
    answers(strike).await
}

pub(super) async fn freeze_backend(strike: &mut Strike<'_>) -> Result<(), LabError> {
    let Some(pid) = backend(strike).await? else { return Ok(()) };
    // SAFETY: as above; a process that is stopped keeps its id.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    strike.hold().await;
    // SAFETY: as above.
    unsafe { libc::kill(pid, libc::SIGCONT) };
    Ok(())
}

/// One that is in a transaction where there is one, which then is a lane that writes rows.
async fn backend(strike: &mut Strike<'_>) -> Result<Option<libc::pid_t>, LabError> {
    // What a connection did last is its COMMIT, so the statement says little.
    const CLIENTS: &str = "
        SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
        ORDER BY xact_start IS NULL, random() LIMIT 1";
    let found = strike.world.database().await?.query_opt(CLIENTS, &[]).await?;
    let pid = found.map(|row| row.get(0));
    strike.target(pid.map_or_else(|| "no backend was there".to_owned(), |pid: i32| format!("backend {pid}")));
    Ok(pid)
}

pub(super) async fn kill(strike: &mut Strike<'_>) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    postgres.kill().await;
    strike.fault.kills = 1;
    strike.hold().await;
    Ok(postgres.start().await?)
}

pub(super) async fn freeze(strike: &mut Strike<'_>) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    postgres.freeze();
    strike.hold().await;
    postgres.thaw();
    answers(strike).await
}

/// Ends in the way of this signal and starts at once.
pub(super) async fn restart(strike: &mut Strike<'_>, signal: Signal) -> Result<(), LabError> {
    let postgres = strike.world.stack.postgres();
    strike.target("postgresql");
    strike.fault.broken = super::now();
    end(strike, signal).await;
    strike.fault.over = super::now();
    Ok(postgres.start().await?)
}

pub(super) async fn away(strike: &mut Strike<'_>) -> Result<(), LabError> {
    let seconds = strike.hold.as_secs();
    strike.target(format!("postgresql, {seconds} s"));
    end(strike, Signal::Int).await;
    strike.hold().await;
    Ok(strike.world.stack.postgres().start().await?)
}

async fn end(strike: &Strike<'_>, signal: Signal) {
    if let Some(process) = strike.world.stack.postgres().process() {
        process.signal(signal);
        process.wait().await;
    }
}

pub(super) async fn answers(strike: &Strike<'_>) -> Result<(), LabError> {
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

//! What the size of the table costs the transfer: it drains the same backlogs into a small table and into a large one, in
//! turns. Both keep growing, as in operation.

use clap::Args;
use msg_stack::{Service, Stack};
use tokio::task::block_in_place;

use super::drain::{backlog, migrate, until_drained};
use super::figure::Output;
use super::rounds::{self, Side};
use super::send::sender;
use super::statement::{self, Statement};
use super::{Error, Load, TOPIC, line, rate, settings};

#[derive(Clone, Debug, Args)]
pub(crate) struct Size {
    #[command(flatten)]
    load: Load,
    /// Number of rows in the small table before the first round
    #[arg(long, default_value_t = 1_000_000)]
    small: usize,
    /// Number of rows in the large table before the first round
    #[arg(long, default_value_t = 10_000_000)]
    large: usize,
}

/// A database that the transfer drains the backlogs into.
struct Table {
    name: &'static str,
    url: String,
}

pub(crate) async fn run(stack: &Stack, options: &Size, output: &mut Output) -> Result<(), Error> {
    let load = &options.load;
    stack.kafka().create_topic(TOPIC, load.partitions, &[]).await?;
    println!("{} messages of {} bytes in each round, to {} inboxes", load.messages, load.body, load.inboxes);
    let small = Table::new(stack, "small", load, options.small).await?;
    let large = Table::new(stack, "large", load, options.large).await?;
    let sides = [
        Side::limit(format!("a table of {} rows", options.small), small),
        Side::system(format!("a table of {} rows", options.large), large),
    ];
    let mut written = false;
    let series = rounds::measure(load.rounds, &sides, async |table| {
        // The group of each database drains every backlog.
        if !written {
            block_in_place(|| backlog(stack.kafka().bootstrap(), load, &sender()))?;
        }
        written = !written;
        table.drain(stack, load).await
    });
    output.add(&format!("drain, Zipf exponent {}, {} inboxes", load.skew, load.inboxes), None, &series.await?);
    Ok(())
}

impl Table {
    /// Creates a database whose table has these rows, in the inboxes of the load.
    async fn new(stack: &Stack, name: &'static str, load: &Load, rows: usize) -> Result<Table, Error> {
        let url = stack.postgres().create_database(name).await?;
        migrate(stack, load, &url).await?;
        let clients = statement::connect(&url).await?;
        let duration = statement::run(&clients, &Load { messages: rows, ..load.clone() }, Statement::Copy).await?;
        // Now, not while something is measured.
        clients[0].batch_execute("VACUUM (ANALYZE) messages").await?;
        clients[0].batch_execute("CHECKPOINT").await?;
        let size = clients[0].query_one("SELECT pg_size_pretty(pg_total_relation_size('messages'))", &[]).await?;
        let size: String = size.get(0);
        line(&format!("{name}: {rows} rows"), format!("{size}, copied at {:.0} rows/s", rate(rows, duration)));
        Ok(Table { name, url })
    }

    async fn drain(&self, stack: &Stack, load: &Load) -> Result<rounds::Round, Error> {
        let plan = stack.pipe(TOPIC, load.partitions, &self.url).transfer(self.name)?;
        let set = load.set();
        let mut spec = plan.spec.env("GROUP_ID", self.name);
        for (name, value) in settings(&set)? {
            spec = spec.env(name, value);
        }
        let transfer = Service::new(spec, stack.logs())?;
        let round = until_drained(stack, &transfer, None, load.messages, None).await?;
        transfer.stop().await;
        // The server would write its pages back to disk while the other table is measured.
        stack.postgres().connect(&self.url).await?.batch_execute("CHECKPOINT").await?;
        Ok(round)
    }
}

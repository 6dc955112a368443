//! Owns the output of the demo while it runs: lines with the time since the start, and a progress bar if stderr is a
//! terminal, otherwise a line for each tenth of the messages.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use msg_lab::text::grouped;
use msg_lab::{PlannedLoad, settle};
use tokio_postgres::Client;

const REDRAW: Duration = Duration::from_millis(200);

/// The demo's standard output, and its progress bar.
pub(crate) struct Screen {
    began: Instant,
    bar: ProgressBar,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        Screen { began: Instant::now(), bar: ProgressBar::hidden() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Prints a line with the time since the start.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("[{:5.1} s] {text}", self.elapsed().as_secs_f64());
        // Clear the bar before the line, and draw it again below the line.
        self.bar.suspend(|| println!("{line}"));
    }

    /// Shows the progress of the senders and of the transfer, for as long as the future is polled.
    pub(crate) async fn follow(&self, load: &PlannedLoad, partitions: usize, database: &Client) {
        let messages = load.messages() as u64;
        let is_terminal = std::io::stderr().is_terminal();
        if is_terminal {
            let style = ProgressStyle::with_template("  sent {bar:40} {human_pos}/{human_len} {per_sec}, {msg}");
            self.bar.set_style(style.expect("the template is valid"));
            self.bar.set_length(messages);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let mut tenths = 0;
        let mut redraw = tokio::time::interval(REDRAW);
        loop {
            redraw.tick().await;
            let sent = load.settled();
            let stored = settle::progress_rows(database, partitions).await.map_or(0, |next| next.iter().sum::<i64>());
            if is_terminal {
                self.bar.set_message(format!("{} records stored", grouped(stored.unsigned_abs())));
                self.bar.set_position(sent);
            } else if sent * 10 / messages > tenths {
                tenths = sent * 10 / messages;
                let (sent, stored) = (grouped(sent), grouped(stored.unsigned_abs()));
                self.say(&format!("{sent} messages sent, {stored} records stored"));
            }
        }
    }

    pub(crate) fn remove_bar(&self) {
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }
}

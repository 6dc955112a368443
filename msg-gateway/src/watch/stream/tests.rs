//! Tests of how a watch opens, with a table whose results the test chooses.

use msg_common::config::read;
use msg_common::proto::{HintedInbox, InboxCursor, StoredHint};

use super::*;
use crate::budget::{Budget, Budgets};
use crate::config::Config;
use crate::watch::feed::Feed;
use crate::watch::queries::WatchQueries;

/// Watches with a database that is never connected to.
fn watches(feed: &Arc<Feed>) -> Arc<Watches> {
    let words = ["msg-gateway", "--database-url", "postgres://localhost/nowhere"].map(Into::into);
    let config: Config = read(words).unwrap_or_else(|_| panic!("the settings are good"));
    let queries =
        Arc::new(WatchQueries::new(&config.database, 1, Budget::of_items(1)).expect("it connects only when used"));
    Arc::new(Watches::new(feed.clone(), queries, Arc::default(), &Budgets::new(&config), &config))
}

fn bob(after_seq: Option<i64>) -> WatchMsgsRequest {
    let inboxes = vec![InboxCursor { recv_id: "bob".into(), after_seq }];
    WatchMsgsRequest { inboxes, omit_content: false }
}

fn stored_up_to(feed: &Feed, seq: i64) {
    let inbox = HintedInbox { recv_id: "bob".into(), seq, ..HintedInbox::default() };
    feed.hinted(&StoredHint { inboxes: vec![inbox], rows: None });
}

/// A message is stored while the last `seq` is queried: it is hinted, and no other watcher exists.
#[tokio::test]
async fn hint_while_a_watch_opens_is_not_missed() {
    let feed = Arc::new(Feed::new(1 << 20));
    let watches = watches(&feed);
    let last_seqs = async |_| {
        stored_up_to(&feed, 6);
        Ok(vec![5])
    };
    let watcher = watches.watcher(bob(None), Lifetime::default(), last_seqs).await.expect("it opens");
    assert_eq!(watcher.cursors, [5]);
    assert_eq!(feed.next_unread(9), [("bob".into(), 5)], "the hinted row is read");
}

/// The table lost its last rows (by a restore, for example) while another watcher had read them.
#[tokio::test]
async fn watch_from_now_on_starts_at_the_table_not_at_others_tip() {
    let feed = Arc::new(Feed::new(1 << 20));
    let watches = watches(&feed);
    let open = async |after_seq, found| {
        let watcher = watches.watcher(bob(after_seq), Lifetime::default(), async move |_| Ok(vec![found])).await;
        watcher.expect("it opens")
    };
    let _first = open(None, 9).await;
    let second = open(None, 5).await;
    assert_eq!(second.cursors, [5], "6 to 9 are stored again, and are new to it");
    assert_eq!(open(Some(3), 5).await.cursors, [3]);
    assert_eq!(open(Some(20), 5).await.cursors, [20], "the requested cursor is not lowered");
}

#[tokio::test]
async fn watch_that_cannot_open_holds_no_resources() {
    let feed = Arc::new(Feed::new(1 << 20));
    let watches = watches(&feed);
    let unavailable = async |_| Err(Failure::DatabaseUnavailable("unavailable".into()));
    let opened = watches.watcher(bob(None), Lifetime::default(), unavailable).await.map(|watcher| watcher.cursors);
    assert_eq!(opened, Err(Failure::DatabaseUnavailable("unavailable".into())));
    assert_eq!(feed.len(), 0);
    assert_eq!(watches.budget.used(), Amount::default());
}

use msg_common::proto::{HintedInbox, Msg};

use super::*;

fn row(recv_id: &str, seq: i64) -> StoredMsg {
    StoredMsg { msg: Some(Msg { recv_id: recv_id.into(), ..Msg::default() }), seq, ..StoredMsg::default() }
}

fn hint(recv_id: &str, seq: i64) -> StoredHint {
    let inbox = HintedInbox { recv_id: recv_id.into(), seq, ..HintedInbox::default() };
    StoredHint { inboxes: vec![inbox], rows: None }
}

fn seqs(slice: &FeedSlice) -> Vec<i64> {
    slice.rows.iter().map(|row| row.seq).collect()
}

#[test]
fn hinted_rows_are_read_once_for_all_watchers() {
    let feed = Feed::new(1 << 20);
    let bob: Arc<str> = "bob".into();
    let (one, other) = (Arc::new(PendingInboxes::new(1, 1)), Arc::new(PendingInboxes::new(2, 1)));
    feed.subscribe(&one, std::slice::from_ref(&bob));
    feed.subscribe(&other, std::slice::from_ref(&bob));
    // The feed does not read before the tip is known: the read would return the whole inbox.
    feed.hinted(&hint("bob", 7));
    assert_eq!(feed.next_unread(9), []);
    assert_eq!(feed.resolve_tip(&bob, 5), 5);
    feed.hinted(&hint("bob", 7));
    feed.hinted(&hint("carol", 7));
    let read = feed.next_unread(9);
    assert_eq!(read, [(bob.clone(), 5)]);
    feed.publish(&read, vec![(0, row("bob", 6)), (0, row("bob", 7))], 32, false);
    assert_eq!((one.next(), other.next()), (Some(0), Some(0)));
    assert_eq!(feed.next_unread(9), []);
    assert_eq!(seqs(&feed.slice("bob", 5, 9, 9999)), [6, 7]);
    assert_eq!(seqs(&feed.slice("bob", 6, 9, 9999)), [7]);
    assert_eq!(feed.slice("bob", 7, 9, 9999), FeedSlice { rows: Vec::new(), tip: 7 });
    // Rows from before the first watcher have to be read from the table.
    assert_eq!(feed.slice("bob", 4, 9, 9999), FeedSlice { rows: Vec::new(), tip: 7 });
    feed.unsubscribe(&one, std::slice::from_ref(&bob));
    feed.unsubscribe(&other, &[bob]);
    assert_eq!(feed.len(), 0);
}

#[test]
fn failed_read_is_retried() {
    let feed = Feed::new(1 << 20);
    let bob: Arc<str> = "bob".into();
    feed.subscribe(&Arc::new(PendingInboxes::new(1, 1)), std::slice::from_ref(&bob));
    feed.resolve_tip(&bob, 0);
    feed.hinted(&hint("bob", 1));
    let read = feed.next_unread(9);
    feed.put_back(&read);
    assert_eq!(feed.next_unread(9), read);
}

//! P2: each message is one row, no matter how often its record is sent.

use crate::support::fields::with_changed_fields;
use crate::support::kafka::{msg, msg_id_of, record_of, record_with_id};
use crate::support::transfer::metric;
use crate::support::world::World;

#[tokio::test]
async fn repeated_message_is_one_row() {
    let world = World::new("duplicates").await;
    let writer = world.writer();
    // In one batch: repeats next to each other, and between other messages.
    for i in 0..100 {
        let message = record_of(&msg("alice", "bob", &i.to_string(), "x"));
        writer.put(&message);
        writer.put(&message);
        writer.put(&record_of(&msg("alice", "bob", &(i / 2).to_string(), "x")));
    }
    writer.flush();
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 100, "P2");
    world.assert_ordered_without_gaps().await;
    // In later batches: first only repeats, then repeats between new messages.
    for i in 0..100 {
        writer.put(&record_of(&msg("alice", "bob", &i.to_string(), "x")));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 100, "P2");
    for i in 50..150 {
        writer.put(&record_of(&msg("alice", "bob", &i.to_string(), "x")));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    assert_eq!(world.rows().await.len(), 150, "P2");
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, []);
}

#[tokio::test]
async fn other_content_under_a_used_id_is_dead_lettered() {
    let world = World::new("conflicts").await;
    let writer = world.writer();
    let first = msg("alice", "bob", "1", "first");
    let mut others = vec![msg("alice", "bob", "1", "second")];
    others.push({
        let mut other = first.clone();
        other.attributes.clear();
        other
    });
    others.push({
        let mut other = first.clone();
        other.content_type = "text/html".into();
        other
    });
    writer.put(&record_of(&first));
    // In the same batch …
    writer.put(&record_of(&others[0]));
    writer.put(&record_of(&first));
    writer.flush();
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    // … and in later ones.
    writer.put(&record_of(&others[1]));
    writer.put(&record_of(&msg("alice", "bob", "2", "next")));
    writer.put(&record_of(&others[2]));
    writer.flush();
    world.wait_for_all_committed().await;
    let stored: Vec<_> = world.rows().await.into_iter().map(|row| (row.seq, row.content)).collect();
    assert_eq!(stored, [(1, b"first".to_vec()), (2, b"next".to_vec())]);
    let dead = world.dead_letters().await;
    let expected: Vec<_> = others
        .iter()
        .map(|other| ("IDEMPOTENCY_CONFLICT".to_owned(), record_of(other).key, record_of(other).value))
        .collect();
    assert_eq!(dead, expected);
}

/// Its inbox is the exception: it is the key, and under the same ID another inbox has another message.
#[tokio::test]
async fn record_that_differs_in_any_field_is_a_conflict() {
    let world = World::new("changed_fields").await;
    let writer = world.writer();
    let first = msg("alice", "bob", "1", "first");
    let changed = with_changed_fields(&first);
    let put = || changed.iter().for_each(|(_, other)| writer.put(&record_with_id(other, msg_id_of(&first))));
    // In the same batch as the first one, and later.
    writer.put(&record_of(&first));
    put();
    writer.flush();
    let _transfer = world.running_transfer().await;
    world.wait_for_all_committed().await;
    put();
    writer.flush();
    world.wait_for_all_committed().await;
    let dead = world.dead_letters().await;
    for (field, other) in &changed {
        let value = record_with_id(other, msg_id_of(&first)).value;
        let conflicts = dead.iter().filter(|letter| letter.0 == "IDEMPOTENCY_CONFLICT" && letter.2 == value).count();
        assert_eq!(conflicts, if field == "recv_id" { 0 } else { 2 }, "another {field}");
    }
    let rows: Vec<_> = world.rows().await.into_iter().map(|row| (row.recv_id, row.seq, row.content)).collect();
    assert_eq!(rows, [("bob", 1), ("changed", 1)].map(|(inbox, seq)| (inbox.to_owned(), seq, b"first".to_vec())));
}

/// The transfer copies rows while all messages are new. A message that is stored already makes the COPY fail, and then an
/// INSERT skips it.
#[tokio::test]
async fn stored_message_among_copied_ones_leaves_no_gap() {
    let world = World::new("copied").await;
    let transfer = world.running_transfer().await;
    let database = world.database().await;
    let log = "CREATE TABLE used (number bigserial, verb text);
               CREATE FUNCTION log_verb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   INSERT INTO used (verb) VALUES (split_part(ltrim(current_query()), ' ', 1)); RETURN NULL;
               END $$;
               CREATE TRIGGER log_verb AFTER INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION log_verb()";
    database.batch_execute(log).await.unwrap();
    let writer = world.writer();
    let put = |i: i32| writer.put(&record_of(&msg("alice", "bob", &i.to_string(), format!("body {i}"))));
    // One record is one batch. The statement of a batch without a new row is rolled back, so it is not in the log.
    for i in [0, 1, 2, 0, 3, 4] {
        put(i);
        writer.flush();
        world.wait_for_all_committed().await;
    }
    let verbs = || async {
        let rows = database.query("SELECT verb FROM used ORDER BY number", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    assert_eq!(verbs().await, ["INSERT", "COPY", "COPY", "INSERT", "COPY"]);
    for i in [5, 1, 6, 4, 7] {
        put(i);
    }
    writer.flush();
    world.wait_for_all_committed().await;
    let stored: Vec<_> = world.rows().await.into_iter().map(|row| (row.seq, row.content)).collect();
    let expected: Vec<_> = (0..8).map(|i| (i + 1, format!("body {i}").into_bytes())).collect();
    assert_eq!(stored, expected);
    world.assert_ordered_without_gaps().await;
    assert_eq!(world.dead_letters().await, [], "a copied row has all that its sender wrote");
    assert_eq!(metric(&transfer, "msg_transfer_store_failures_total").await, 0.0);
}

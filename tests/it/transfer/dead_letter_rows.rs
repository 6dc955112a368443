//! P1 when the table `dead_letters` rejects a column of a dead letter: it is stored without the column, and its lane
//! continues. P1 and P8 when the table rejects dead letters altogether: only their inboxes wait. And the limit for the
//! content of conflicts.

use crate::support::kafka::{RawRecord, msg, record_of};
use crate::support::transfer::{metric, wait_not_ready};
use crate::support::world::{World, count_rows};
use crate::support::{WAIT_TIMEOUT, ensure, eventually};

/// A record whose key differs from the message's inbox, so it becomes a dead letter of this inbox.
fn with_wrong_key(to: &str) -> RawRecord {
    RawRecord { key: Some(b"another".to_vec()), ..record_of(&msg("alice", to, "1", "some body")) }
}

#[tokio::test]
async fn rejected_dead_letter_is_stored_with_fewer_columns() {
    for (number, (rule, lost)) in [
        ("CHECK (recv_id IS NULL OR recv_id ~ '^[ -~]*$')", "recv_id"),
        ("CHECK (length(detail) < 5)", "detail"),
        ("CHECK (octet_length(headers) < 8)", "headers"),
        ("CHECK (value IS NULL)", "value"),
        ("CHECK (key IS NULL AND value IS NULL AND recv_id IS NULL)", "recv_id,value,key"),
        ("EXCLUDE USING hash (recv_id WITH =)", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let world = World::new(&format!("reduced_{number}")).await;
        let transfer = world.running_transfer().await;
        let database = world.database().await;
        database.batch_execute(&format!("ALTER TABLE dead_letters ADD CONSTRAINT rule {rule}")).await.unwrap();
        let writer = world.writer();
        let bad = with_wrong_key("张三");
        writer.put_to(1, &bad);
        for i in 0..100 {
            writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 10), &i.to_string(), "some body")));
        }
        writer.flush();
        world.wait_for_all_committed().await;
        assert_eq!(count_rows(&database, "messages").await.unwrap(), 100, "{rule}");
        let query = "SELECT reason, recv_id, msg_id, detail, key, value, octet_length(headers) FROM dead_letters";
        let rows = database.query(query, &[]).await.unwrap();
        let [letter] = rows.as_slice() else { panic!("{rule}: {} letters", rows.len()) };
        assert_eq!(letter.get::<_, &str>(0), "INVALID", "{rule}");
        let mut missing = Vec::new();
        missing.extend((letter.get::<_, Option<String>>(1).as_deref() != Some("张三")).then_some("recv_id"));
        missing.extend(letter.get::<_, Option<uuid::Uuid>>(2).is_none().then_some("msg_id"));
        missing.extend(letter.get::<_, &str>(3).is_empty().then_some("detail"));
        missing.extend((letter.get::<_, i32>(6) == 0).then_some("headers"));
        missing.extend((letter.get::<_, Option<Vec<u8>>>(5) != bad.value).then_some("value"));
        missing.extend((letter.get::<_, Option<Vec<u8>>>(4) != bad.key).then_some("key"));
        assert_eq!(missing.join(","), lost, "{rule}");
        let reduced = metric(&transfer, "msg_transfer_dead_letters_reduced_total").await;
        assert_eq!(reduced, f64::from(u8::from(!lost.is_empty())), "{rule}");
        transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
        assert!(transfer.stop().await.unwrap().success());
    }
}

/// One caller sends other content under a used ID many times: each record is dead-lettered, and few keep their
/// content.
#[tokio::test]
async fn conflicts_of_a_caller_keep_little_content() {
    let world = World::new("caller_conflicts").await;
    let transfer = world.transfer("transfer", |spec| spec.env("DEAD_LETTER_LIMIT", 40).env("LANES", 4));
    transfer.start().await.unwrap();
    let writer = world.writer();
    writer.put(&record_of(&msg("alice", "bob", "1", "the first one")));
    for i in 0..500 {
        writer.put(&record_of(&msg("alice", "bob", "1", vec![b'x'; 10_000 + i])));
    }
    writer.flush();
    world.wait_for_all_committed().await;
    let database = world.database().await;
    eventually("each conflict is a dead letter", async || {
        let letters = count_rows(&database, "dead_letters WHERE reason = 'IDEMPOTENCY_CONFLICT'").await?;
        ensure(letters == 500, letters)
    })
    .await;
    let with_content = count_rows(&database, "dead_letters WHERE value IS NOT NULL").await.unwrap();
    assert_eq!(with_content, 10, "a quarter of the limit of 40, because there are four lanes");
    let explained = "dead_letters WHERE value IS NULL AND detail LIKE '%content is not kept%' AND key IS NOT NULL";
    assert_eq!(count_rows(&database, explained).await.unwrap(), 490);
    assert_eq!(count_rows(&database, "messages").await.unwrap(), 1);
    transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
}

/// Whatever keeps a dead letter from being inserted: its inbox waits, and all others are stored. The statements run one
/// after the other in one session.
#[tokio::test]
async fn dead_letter_that_fails_blocks_its_inbox_alone() {
    let world = World::new("letter_fails").await;
    let operator = world.database().await;
    let role = "DROP ROLE IF EXISTS letters; CREATE ROLE letters LOGIN; GRANT ALL ON SCHEMA public TO letters";
    operator.batch_execute(role).await.unwrap();
    let url = world.database_url().replace("postgres@", "letters@");
    let transfer = world.transfer("transfer", |spec| spec.env("DATABASE_URL", url).env("LANES", 2));
    transfer.start().await.unwrap();
    let functions = "CREATE FUNCTION raise() RETURNS trigger LANGUAGE plpgsql AS
                     $$ BEGIN RAISE EXCEPTION 'no dead letters'; END $$;
                     CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$";
    operator.batch_execute(functions).await.unwrap();
    let writer = world.writer();
    writer.put(&record_of(&msg("alice", "bad", "used", "the first one")));
    writer.flush();
    world.wait_for_all_committed().await;
    let database = world.database().await;
    let trigger = |function: &str| {
        format!("CREATE TRIGGER t BEFORE INSERT ON dead_letters FOR EACH ROW EXECUTE FUNCTION {function}()")
    };
    let faults = [
        // First, because dead letters without the column would be in its way.
        (
            "ALTER TABLE dead_letters ADD COLUMN required text NOT NULL".to_owned(),
            "ALTER TABLE dead_letters DROP COLUMN required",
            ["23502", "required"],
        ),
        (
            "REVOKE INSERT ON dead_letters FROM letters".to_owned(),
            "GRANT INSERT ON dead_letters TO letters",
            ["42501", "GRANT SELECT, INSERT ON dead_letters"],
        ),
        ("BEGIN; LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE".to_owned(), "ROLLBACK", ["55P03", "pg_locks"]),
        (trigger("raise"), "DROP TRIGGER t ON dead_letters", ["P0001", "no dead letters"]),
        (trigger("discard"), "DROP TRIGGER t ON dead_letters", ["no effect", "trigger"]),
    ];
    for (before, (fault, end, words)) in (0..).zip(faults) {
        operator.batch_execute(&fault).await.unwrap();
        // A conflict, later messages of its inbox, and a record that holds no message.
        writer.put(&record_of(&msg("alice", "bad", "used", format!("another one {before}"))));
        let no_message = Some(b"no message".to_vec());
        writer.put_to(1, &RawRecord { value: no_message, ..record_of(&msg("alice", "bad", "x", "x")) });
        writer.put(&record_of(&msg("alice", "bad", &format!("later-{before}"), "some body")));
        for i in 0..1000 {
            writer.put(&record_of(&msg("a", &format!("inbox-{}", i % 100), &format!("{before}-{i}"), "some body")));
        }
        writer.flush();
        let others = "messages WHERE recv_id <> 'bad'";
        eventually("every other inbox is stored", async || {
            let stored = count_rows(&database, others).await?;
            ensure(stored == 1000 * (before + 1), stored)
        })
        .await;
        wait_not_ready(&transfer, &["inbox (lane ", "offset ", "dead_letters", words[0], words[1]]).await;
        eventually("both records wait, and no other", async || {
            let blocked = metric(&transfer, "msg_transfer_blocked_inboxes").await;
            ensure(blocked == 2.0, blocked)
        })
        .await;
        assert_eq!(count_rows(&database, "messages WHERE recv_id = 'bad'").await.unwrap(), 1 + before, "{fault}");
        operator.batch_execute(end).await.unwrap();
        world.wait_for_all_committed().await;
        let letters = count_rows(&database, "dead_letters").await.unwrap();
        assert_eq!(letters, 2 * (before + 1), "P1: {fault}");
        transfer.wait_ready(WAIT_TIMEOUT).await.unwrap();
    }
    world.assert_ordered_without_gaps().await;
}

//! Plants each fault that the check is there for, and asks that it is found, and nothing else.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use msg_common::proto::Msg;
use uuid::Uuid;

use super::super::send::Ack;
use super::*;

/// A run in which all is well, to be spoilt.
struct Run {
    sent: Vec<Sent>,
    table: Table,
    crash: Crash,
    committed: Vec<i64>,
    progress: Vec<i64>,
    ends: Vec<i64>,
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn at(partition: i32, offset: i64) -> Place {
    Place { partition, offset }
}

/// A moment of the senders' clock.
fn moment(seconds: u64) -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
}

fn ack(place: Place, seconds: u64) -> Ack {
    Ack { place, at: moment(seconds), took: Duration::from_secs(1) }
}

/// OKs at these places, one second after the other, the first at `seconds`.
fn acked(seconds: u64, places: &[Place]) -> Delivery {
    Delivery { acks: places.iter().zip(seconds..).map(|(place, at)| ack(*place, at)).collect(), unknown: 0 }
}

fn row(sent: &Sent, seq: i64) -> Row {
    let first = sent.delivery.acks[0].place;
    Row {
        msg: sent.msg.clone(),
        seq,
        msg_id: sent.msg_id,
        send_time: time(1),
        stored_time: time(10 + u64::try_from(first.offset).expect("positive")),
        place: first,
    }
}

impl Run {
    /// Four messages of a and one of b to inbox x (partition 0), one to inbox y (partition 1). The second was sent twice, the
    /// third once more with another body. One after the other, but that of b to x begins before the last one of a has its OK.
    /// The crash is after offset 2 of partition 0.
    fn good() -> Run {
        let msg = |number: u128, from: &str, to: &str, delivery: Delivery| Sent {
            msg: Msg {
                recv_id: to.to_owned(),
                send_id: from.to_owned(),
                client_msg_id: number.to_string(),
                session_type: 1,
                content_type: "text/plain".to_owned(),
                content: Bytes::from(format!("body {number}")),
                attributes: [("time".to_owned(), number.to_string())].into(),
            },
            msg_id: Uuid::from_u128(number),
            began: moment(10 * u64::try_from(number).expect("small")),
            delivery,
            changed: None,
        };
        let mut sent = vec![
            msg(1, "a", "x", acked(11, &[at(0, 0)])),
            msg(2, "a", "x", acked(21, &[at(0, 1), at(0, 2)])),
            msg(3, "a", "x", acked(31, &[at(0, 3)])),
            msg(4, "a", "x", acked(41, &[at(0, 5)])),
            msg(5, "b", "x", acked(51, &[at(0, 6)])),
            msg(6, "b", "y", acked(61, &[at(1, 0)])),
        ];
        sent[4].began = moment(41);
        sent[2].changed = Some((Bytes::from_static(b"other"), acked(33, &[at(0, 4)])));
        let mut rows: Vec<Row> = sent[..5].iter().zip(1..).map(|(sent, seq)| row(sent, seq)).collect();
        rows.push(row(&sent[5], 1));
        let dead_letters = vec![DeadLetter {
            place: at(0, 4),
            msg_id: Some(Uuid::from_u128(3)),
            reason: "IDEMPOTENCY_CONFLICT".to_owned(),
            first_seen: time(14),
            content: Some(b"other".to_vec()),
        }];
        Run {
            sent,
            table: Table { rows, dead_letters },
            crash: Crash { at: time(12), committed: vec![2, 0] },
            committed: vec![7, 1],
            progress: vec![7, 1],
            ends: vec![7, 1],
        }
    }

    /// The promises that are found broken.
    fn broken(&self) -> Vec<&'static str> {
        let evidence = Evidence {
            sent: &self.sent,
            table: &self.table,
            crash: &self.crash,
            committed: &self.committed,
            progress: &self.progress,
            ends: &self.ends,
        };
        let findings = check(&evidence);
        assert!(findings.iter().all(|finding| finding.checked > 0), "{findings:?}");
        assert!(findings.iter().all(|finding| (finding.broken > 0) != finding.examples.is_empty()));
        findings.iter().filter(|finding| finding.broken > 0).map(|finding| finding.what).collect()
    }
}

const LOST: &str = "each message with an OK is a row";
const DOUBLED: &str = "no message is two rows, however often it was sent";
const SEND_ORDER: &str = "seq order is send order: who had its OK before another was sent is before it";
const KAFKA_ORDER: &str = "seq order is Kafka's order, and each row is the first record with an OK";
const GAP: &str = "seq counts 1, 2, 3 … in each inbox";
const CONTENT: &str = "each row is what was sent, byte for byte, attributes too";
const CONFLICT: &str = "each OK of another body under a known id is an IDEMPOTENCY_CONFLICT";
const ALIEN: &str = "nothing that was not sent is a row or a dead letter";
const LEAD: &str = "no offset was committed before what is below it was stored";
const TRUTH: &str = "Kafka holds one record for each OK, and none of a send reported as not sent";

fn spoilt(spoil: impl FnOnce(&mut Run)) -> Vec<&'static str> {
    let mut run = Run::good();
    spoil(&mut run);
    run.broken()
}

#[test]
fn a_good_run_is_good_in_whatever_order_the_rows_are_read() {
    assert_eq!(Run::good().broken(), [] as [&str; 0]);
    assert_eq!(spoilt(|run| run.table.rows.reverse()), [] as [&str; 0]);
}

#[test]
fn a_lost_row() {
    assert_eq!(spoilt(|run| drop(run.table.rows.remove(4))), [LOST], "the last one of its inbox leaves no gap");
    assert_eq!(spoilt(|run| drop(run.table.rows.remove(1))), [LOST, GAP]);
}

#[test]
fn a_double() {
    let again = |run: &mut Run| {
        let mut second = row(&run.sent[1], 6);
        second.place = at(0, 2);
        run.table.rows.push(second);
    };
    assert_eq!(spoilt(again), [DOUBLED, SEND_ORDER, KAFKA_ORDER]);
    let alone = |run: &mut Run| run.table.rows.push(Row { seq: 2, place: at(1, 1), ..row(&run.sent[5], 2) });
    assert!(spoilt(alone).contains(&DOUBLED));
}

#[test]
fn a_swapped_pair() {
    let swap = |run: &mut Run| {
        run.table.rows[2].seq = 4;
        run.table.rows[3].seq = 3;
    };
    assert_eq!(spoilt(swap), [SEND_ORDER, KAFKA_ORDER]);
    let of_two_senders = |run: &mut Run| {
        run.table.rows[3].seq = 5;
        run.table.rows[4].seq = 4;
    };
    assert_eq!(spoilt(of_two_senders), [KAFKA_ORDER], "they were sent at the same time");
    let one_after_the_other = |run: &mut Run| {
        run.sent[4].began = moment(50);
        of_two_senders(run);
    };
    assert_eq!(spoilt(one_after_the_other), [SEND_ORDER, KAFKA_ORDER]);
    // Swapped before Kafka: the gateway's fault, which offsets do not show.
    let in_kafka = |run: &mut Run| {
        run.sent[2].delivery.acks[0].place = at(0, 5);
        run.sent[3].delivery.acks[0].place = at(0, 3);
        run.table.rows[2] = row(&run.sent[3], 3);
        run.table.rows[3] = row(&run.sent[2], 4);
    };
    assert_eq!(spoilt(in_kafka), [SEND_ORDER]);
}

#[test]
fn a_repeat_that_took_the_place_of_the_first() {
    assert_eq!(spoilt(|run| run.table.rows[1].place = at(0, 2)), [KAFKA_ORDER]);
    let after_unknown = |place: Place| {
        spoilt(|run| {
            run.sent[1].delivery = Delivery { unknown: 1, ..acked(21, &[at(0, 2)]) };
            run.table.rows[1].place = place;
        })
    };
    assert_eq!(after_unknown(at(0, 1)), [] as [&str; 0], "the send whose outcome was unknown left the first record");
    assert_eq!(after_unknown(at(0, 2)), [] as [&str; 0]);
}

#[test]
fn a_gap() {
    assert_eq!(spoilt(|run| run.table.rows[4].seq = 6), [GAP]);
    assert_eq!(spoilt(|run| run.table.rows[5].seq = 2), [GAP], "an inbox that does not begin with 1");
    assert_eq!(spoilt(|run| run.table.rows[5].seq = 0), [GAP]);
}

#[test]
fn anything_altered() {
    let alterations: [fn(&mut Row); 6] = [
        |row| row.msg.content = [&*row.msg.content, b"\0"].concat().into(),
        |row| row.msg.content = [b"\xff", &row.msg.content[1..]].concat().into(),
        |row| drop(row.msg.attributes.insert("time".to_owned(), String::new())),
        |row| row.msg.attributes.clear(),
        |row| row.msg.content_type.push('x'),
        |row| row.msg.session_type = 2,
    ];
    for alter in alterations {
        assert_eq!(spoilt(|run| alter(&mut run.table.rows[3])), [CONTENT]);
    }
    assert_eq!(
        spoilt(|run| run.table.rows[2].msg.content = Bytes::from_static(b"other")),
        [CONTENT],
        "the other body replaced it"
    );
    assert_eq!(spoilt(|run| run.table.rows[4].msg.send_id.push('x')), [CONTENT]);
}

#[test]
fn an_alien_row_or_dead_letter() {
    let alien = |run: &mut Run| {
        let stranger = Row { msg_id: Uuid::from_u128(99), place: at(0, 7), ..row(&run.sent[4], 6) };
        run.table.rows.push(stranger);
    };
    assert_eq!(spoilt(alien), [ALIEN]);
    let letter = |change: fn(&mut DeadLetter)| {
        spoilt(|run| {
            let mut letter = run.table.dead_letters[0].clone();
            letter.place = at(0, 5);
            change(&mut letter);
            run.table.dead_letters.push(letter);
        })
    };
    assert_eq!(letter(|_| {}), [ALIEN], "of another record");
    assert_eq!(
        letter(|letter| letter.msg_id = Some(Uuid::from_u128(1))),
        [ALIEN],
        "of a message that has no other body"
    );
    assert_eq!(letter(|letter| letter.msg_id = None), [ALIEN]);
    let of_unknown = spoilt(|run| {
        let mut letter = run.table.dead_letters[0].clone();
        letter.place = at(0, 7);
        run.table.dead_letters.push(letter);
        let (_, delivery) = run.sent[2].changed.as_mut().expect("it has one");
        delivery.unknown = 1;
        run.ends[0] = 8;
    });
    assert_eq!(of_unknown, [] as [&str; 0], "a send whose outcome was unknown may leave one");
}

#[test]
fn a_dead_letter_that_is_missing_or_wrong() {
    assert_eq!(spoilt(|run| run.table.dead_letters.clear()), [CONFLICT]);
    assert_eq!(spoilt(|run| run.table.dead_letters[0].reason = "INVALID".to_owned()), [CONFLICT, ALIEN]);
    assert_eq!(spoilt(|run| run.table.dead_letters[0].content = Some(b"body 3".to_vec())), [CONFLICT, ALIEN]);
    assert_eq!(spoilt(|run| run.table.dead_letters[0].content = None), [CONFLICT, ALIEN]);
}

#[test]
fn an_offset_that_leads() {
    assert_eq!(spoilt(|run| run.crash.committed[0] = 4), [LEAD], "offset 3 was stored after the crash");
    assert_eq!(spoilt(|run| run.crash.at = time(10)), [LEAD]);
    assert_eq!(spoilt(|run| run.progress[0] = 6), [LEAD], "the commit is ahead of the progress row");
    assert_eq!(spoilt(|run| (run.committed[1], run.progress[1]) = (2, 2)), [LEAD], "ahead of the topic");
}

#[test]
fn a_record_that_an_error_denied() {
    assert_eq!(spoilt(|run| run.ends[0] = 8), [TRUTH], "a record more than OKs");
    assert_eq!(
        spoilt(|run| {
            run.ends[0] = 8;
            run.sent[0].delivery.unknown = 1;
        }),
        [] as [&str; 0],
        "of an unknown outcome"
    );
    assert!(spoilt(|run| run.sent[4].delivery.acks.push(ack(at(0, 5), 52))).contains(&TRUTH), "two OKs, one record");
    assert!(spoilt(|run| run.ends[1] = 0).contains(&TRUTH), "an OK without a record");
}

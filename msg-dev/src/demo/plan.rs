//! Owns the plan of the demo's load: the log as streams that are sent concurrently, messages that are sent again on
//! purpose, and additional content that no chat log has.

use std::collections::HashMap;

use bytes::Bytes;
use msg_common::limits::DEFAULT_CONTENT_BYTES;
use msg_common::proto::{Msg, SessionType};
use msg_lab::{Planned, Repeat};

use super::log::{Line, Log};

/// Returns the streams: the messages of one speaker in one conversation, in the order of the log. The longest stream is
/// the first, because its end determines the end of the load.
pub(crate) fn plan(log: Log) -> Vec<Vec<Planned>> {
    let mut streams: Vec<Vec<Planned>> = Vec::new();
    let mut known: HashMap<(usize, String), usize> = HashMap::new();
    for (number, line) in log.lines.into_iter().enumerate() {
        let stream = *known.entry((line.conversation, line.from.clone())).or_insert_with(|| {
            streams.push(Vec::new());
            streams.len() - 1
        });
        streams[stream].push(Planned { msg: line.into_msg(), repeat: repeat(number) });
    }
    streams.extend(additional());
    streams.sort_by_key(|stream| std::cmp::Reverse(stream.len()));
    streams
}

/// Repeats one message in 50, and sends one in 500 again with other content. The divisors are primes, so that every
/// conversation has some.
fn repeat(number: usize) -> Repeat {
    match (number % 97, number % 101, number % 499) {
        (_, _, 7) => Repeat::Changed,
        (5, _, _) => Repeat::InTurn,
        (_, 9, _) => Repeat::Concurrent,
        _ => Repeat::No,
    }
}

/// Returns messages with content, IDs and attributes at the limits of the contract.
fn additional() -> Vec<Vec<Planned>> {
    let texts: Vec<(String, Bytes)> =
        SCRIPTS.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().into())).collect();
    let noise: Vec<u8> = (0..DEFAULT_CONTENT_BYTES).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let bodies = [
        ("empty", Bytes::new()),
        ("one-zero-byte", Bytes::from_static(&[0])),
        ("every-byte", (0..=255).collect()),
        ("64-KiB", noise[..64 << 10].to_vec().into()),
        ("largest-less-one", noise[1..].to_vec().into()),
        ("largest", noise.into()),
    ];
    let bodies: Vec<(String, Bytes)> = bodies.into_iter().map(|(name, body)| (name.to_owned(), body)).collect();
    let mut streams = vec![
        stream("demo-scripts", "text/plain; charset=utf-8", texts),
        stream("demo-bodies", "application/octet-stream", bodies),
        stream(
            "受信箱 📥",
            "text/plain",
            vec![("идентификатор".to_owned(), Bytes::from_static(b"ids need not be ASCII"))],
        ),
        stream(&"i".repeat(256), "text/plain", vec![("c".repeat(256), Bytes::from_static(b"ids of 256 bytes"))]),
    ];
    let mut rich = Planned { msg: msg("demo-attributes", "64", "text/plain", Bytes::new()), repeat: Repeat::No };
    rich.msg.attributes = (0..64).map(|i| (format!("ключ-{i}"), "\"{}\\\u{1F511}\n ".repeat(i % 20))).collect();
    let mut largest =
        Planned { msg: msg("demo-attributes", "largest", "text/plain", Bytes::new()), repeat: Repeat::No };
    largest.msg.attributes = (0..4).map(|i| (format!("k{i}"), "v".repeat(4094))).collect();
    streams.push(vec![rich, largest]);
    // Plan every kind of repeat here too, since a log may have only three lines.
    for (index, repeat) in [Repeat::InTurn, Repeat::Concurrent, Repeat::Changed].into_iter().enumerate() {
        streams[0][index].repeat = repeat;
        streams[1][index].repeat = repeat;
    }
    streams
}

fn stream(recv_id: &str, content_type: &str, bodies: Vec<(String, Bytes)>) -> Vec<Planned> {
    let planned =
        |(id, body): (String, Bytes)| Planned { msg: msg(recv_id, &id, content_type, body), repeat: Repeat::No };
    bodies.into_iter().map(planned).collect()
}

fn msg(recv_id: &str, id: &str, content_type: &str, content: Bytes) -> Msg {
    Msg {
        recv_id: recv_id.to_owned(),
        send_id: "demo".to_owned(),
        client_msg_id: id.to_owned(),
        session_type: SessionType::Notification.into(),
        content_type: content_type.to_owned(),
        content,
        ..Msg::default()
    }
}

const SCRIPTS: [(&str, &str); 18] = [
    ("latin", "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Ærøskøbing."),
    ("greek", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία"),
    ("cyrillic", "Съешь же ещё этих мягких французских булок"),
    ("hebrew", "דג סקרן שט בים מאוכזב ולפתע מצא חברה"),
    ("arabic", "صِف خَلقَ خَودٍ كَمِثلِ الشَمسِ إِذ بَزَغَت"),
    ("devanagari", "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा"),
    ("bengali", "আমি বাংলায় গান গাই"),
    ("tamil", "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல்"),
    ("thai", "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า"),
    ("georgian", "გთხოვთ ახლავე გაიაროთ რეგისტრაცია"),
    ("ethiopic", "ሰማይ አይታረስ ንጉሥ አይከሰስ።"),
    ("chinese", "天地玄黃,宇宙洪荒。日月盈昃,辰宿列張。"),
    ("japanese", "いろはにほへと ちりぬるを ワカヨタレソ"),
    ("korean", "키스의 고유조건은 입술끼리 만나야 하고"),
    ("beyond-16-bits", "𐌰𐌱𐌲 𝕬𝖇𝖈 𠜎𠜱𠝹"),
    ("emoji", "👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇳 ❤️‍🔥 1️⃣"),
    ("combining", "Z̷a̴l̵g̶o̸ e\u{301} = é? \u{202E}abc\u{202C} \u{200B}\u{FEFF}"),
    ("controls", "\u{1}\u{7f}\t\r\n\u{85}\u{2028}'; DROP TABLE messages; -- \\x00 \" $1 %s"),
];

/// A conversation that the demo reads and shows: the inbox and the `client_msg_id` of each line, in order.
pub(crate) type Shown = Vec<(String, String)>;

/// Picks a short conversation of two speakers with short texts and small inboxes; if there is none, the start of the
/// log.
pub(crate) fn pick_conversation(lines: &[Line]) -> Shown {
    const LENGTH: std::ops::RangeInclusive<usize> = 8..=14;
    const LONGEST_TEXT: usize = 90;
    const LONGEST_INBOX: usize = 900;
    let mut conversations: HashMap<usize, Vec<&Line>> = HashMap::new();
    let mut inboxes: HashMap<&str, usize> = HashMap::new();
    for line in lines {
        conversations.entry(line.conversation).or_default().push(line);
        *inboxes.entry(&line.to).or_default() += 1;
    }
    let good = |said: &Vec<&Line>| {
        let mut speakers: Vec<&str> = said.iter().map(|line| line.from.as_str()).collect();
        let turns = speakers.windows(2).filter(|pair| pair[0] != pair[1]).count();
        speakers.sort_unstable();
        speakers.dedup();
        LENGTH.contains(&said.len())
            && speakers.len() == 2
            && turns * 2 >= said.len()
            && said.iter().all(|line| line.text.len() <= LONGEST_TEXT && inboxes[line.to.as_str()] <= LONGEST_INBOX)
    };
    // Pick by number, because the order of the map is random and every run must show the same conversation.
    let best = conversations.iter().filter(|(_, said)| good(said)).min_by_key(|(number, _)| **number);
    let shown: Vec<&Line> = match best {
        Some((_, said)) => said.clone(),
        None => lines.iter().take(*LENGTH.end()).collect(),
    };
    shown.into_iter().map(|line| (line.to.clone(), line.id.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use msg_common::limits::Limits;
    use std::collections::HashSet;

    fn line(number: usize, from: &str, to: &str) -> Line {
        let (from, to, id) = (from.to_owned(), to.to_owned(), format!("line-{number}"));
        let session = SessionType::Single;
        Line { conversation: 0, id, from, to, session, text: format!("text {number}"), time: None }
    }

    #[test]
    fn stream_is_one_speaker_of_a_conversation_in_log_order() {
        let lines = (0..2000).map(|n| if n % 3 == 0 { line(n, "b", "a") } else { line(n, "a", "b") }).collect();
        let streams = plan(Log { about: String::new(), lines });
        assert_eq!(streams[0].len(), 1333);
        assert!(streams.is_sorted_by(|a, b| a.len() >= b.len()));
        let ids: Vec<usize> = streams[0].iter().map(|p| p.msg.client_msg_id[5..].parse().expect("a number")).collect();
        assert!(ids.is_sorted());
        let kinds = |wanted| streams.iter().flatten().filter(|planned| planned.repeat == wanted).count();
        for (repeat, least) in [(Repeat::InTurn, 20), (Repeat::Concurrent, 19), (Repeat::Changed, 4)] {
            assert!(kinds(repeat) >= least + 2, "{repeat:?}");
        }
    }

    #[test]
    fn additional_messages_are_within_limits_with_different_ids() {
        let limits = Limits { max_id_bytes: 256, max_content_bytes: DEFAULT_CONTENT_BYTES };
        let mut ids = HashSet::new();
        for planned in additional().iter().flatten() {
            assert_eq!(limits.violations("msg", &planned.msg), [], "{}", planned.msg.client_msg_id);
            assert!(ids.insert((planned.msg.recv_id.clone(), planned.msg.client_msg_id.clone())));
        }
    }

    #[test]
    fn short_conversation_of_two_is_picked() {
        let mut lines: Vec<Line> =
            (0..10).map(|n| if n % 2 == 0 { line(n, "a", "b") } else { line(n, "b", "a") }).collect();
        let alone = Line { conversation: 1, ..line(99, "c", "d") };
        lines.insert(0, alone);
        let shown = pick_conversation(&lines);
        assert_eq!(shown.len(), 10);
        assert_eq!(shown[0], ("b".to_owned(), "line-0".to_owned()));
        assert_eq!(pick_conversation(&lines[..3]).len(), 3, "no conversation fits: the start of the log is shown");
    }
}

//! The bugs that are planted.

/// The expected result of a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The oracle finds a broken promise within the seeds of a usual run.
    Found,
    /// A promise breaks too rarely for most runs, for this reason.
    Rare(&'static str),
    /// No promise breaks, for this reason.
    Harmless(&'static str),
}

/// A text that must occur exactly once in its file, and its replacement.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// The path of the file: `machine/…` below `msg-transfer`, `simulator/…` below `tests`.
    pub file: &'static str,
    pub find: &'static str,
    pub replace: &'static str,
}

/// A bug that is planted on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// The bug in a few words.
    pub name: &'static str,
    pub edits: &'static [Edit],
    /// Whether a run must find the bug.
    pub expected: Expected,
}

macro_rules! mutants {
    ($($name:literal $expected:expr => $($file:literal: $find:literal -> $replace:literal),+;)*) => {
        /// Every bug that a run plants, one at a time.
        pub const MUTANTS: &[Mutant] = &[$(Mutant {
            name: $name,
            edits: &[$(Edit { file: $file, find: $find, replace: $replace }),+],
            expected: $expected,
        }),*];
    };
}

use Expected::{Found, Harmless, Rare};

mutants! {
    "records are completed when they are inserted, before the COMMIT" Found =>
        "machine/src/lane/writing.rs": "self.inserted(batch, rows, inserted)" ->
            "if inserted == rows.numbered.len() { events.push(Event::Completed(batch.entries.iter().map(|entry| entry.record_ref).collect())); } self.inserted(batch, rows, inserted)",
        "machine/src/lane/writing.rs": "events.push(Event::Completed(batch.entries.drain(..).map(|entry| entry.record_ref).collect()));" ->
            "batch.entries.clear();";
    "the highest completed offset is committed, not the contiguous prefix" Found =>
        "machine/src/consumer/ledger.rs": "self.prefix = self.open.front().map_or(self.last, |first| first.before);" ->
            "self.prefix.next = self.prefix.next.max(offset.next());";
    "the ledger forgets records after a blocked one that are not completed" Found =>
        "machine/src/consumer/ledger.rs": "self.open.retain(|entry| !entry.completed);" -> "self.open.truncate(1);",
        "machine/src/consumer/ledger.rs": "const SLACK: usize = 32;" -> "const SLACK: usize = 1;";
    "records after a damaged batch are received" Found =>
        "machine/src/consumer/mod.rs": "if owned.failing.as_ref().is_some_and(Failing::is_waiting) {" -> "if false {";
    "a fetch that failed is not retried" Found =>
        "machine/src/consumer/failing.rs": "Next::Retry(at) if now >= at => {" -> "Next::Retry(at) if now >= at + 1_000_000_000 => {";
    "the next offset is one too high" Found =>
        "machine/src/offset.rs": "NextOffset(self.0 + 1)" -> "NextOffset(self.0 + 2)";
    "the next offset is one too low" Found =>
        "machine/src/offset.rs": "NextOffset(self.0 + 1)" -> "NextOffset(self.0)";
    "a failed batch is reported as completed" Found =>
        "machine/src/lane/mod.rs": "(Step::Rollback | Step::Backoff, Response::Ok) => self.start_attempt(batch, events)," ->
            "(Step::Backoff, Response::Ok) => self.committed(batch, &state::Rows { numbered: Vec::new(), inboxes: Vec::new() }, events), (Step::Rollback, Response::Ok) => self.start_attempt(batch, events),";
    "a cached seq is used under any assignment"
        Harmless("the unique keys detect a cached seq that is too low, and one that is too high is dropped with its connection") =>
        "machine/src/lane/cache.rs": ".filter(|(known_under, _)| *known_under == epoch)" -> ".filter(|_| epoch > 0)";
    "INSERT ignores a conflict of any key (in the database's model)"
        Harmless("a row that was not inserted is looked up by its ID, and not found") =>
        "simulator/src/database/statement.rs": "return Step::Failed(ErrorClass::Conflict);" -> "done += 1; continue;";
    "INSERT ignores a conflict of any key, and a row that was not inserted counts as a duplicate" Found =>
        "simulator/src/database/statement.rs": "return Step::Failed(ErrorClass::Conflict);" -> "done += 1; continue;",
        "machine/src/lane/writing.rs": "if inserted < rows.numbered.len() {" -> "if false && inserted < rows.numbered.len() {";
    "seqs are cached before the COMMIT has succeeded" Found =>
        "machine/src/lane/writing.rs": "self.writing(batch, rows, WriteStep::Commit, Request::Commit)" ->
            "self.cache_last_seqs(&batch, &rows); self.writing(batch, rows, WriteStep::Commit, Request::Commit)";
    "the seq cache is kept after an error" Harmless("the next connection clears the seq cache too") =>
        "machine/src/lane/failing.rs": "self.connection = None;\n        self.cache.clear();\n        batch.approved = false;" -> "self.connection = None;\n        batch.approved = false;",
        "machine/src/lane/retrying.rs": "self.connection = None;\n        self.cache.clear();\n        self.ending(" -> "self.connection = None;\n        self.ending(";
    "the seq cache is kept after an error and a new connection"
        Harmless("a bisection removes the inbox from the seq cache as well") =>
        "machine/src/lane/failing.rs": "self.connection = None;\n        self.cache.clear();\n        batch.approved = false;" -> "self.connection = None;\n        batch.approved = false;",
        "machine/src/lane/retrying.rs": "self.connection = None;\n        self.cache.clear();\n        self.ending(" -> "self.connection = None;\n        self.ending(",
        "machine/src/lane/part.rs": "self.connection = None;\n        self.cache.clear();\n        self.storing(" -> "self.connection = None;\n        self.storing(";
    "the seq cache is kept after an error, a new connection and a bisection" Found =>
        "machine/src/lane/failing.rs": "self.connection = None;\n        self.cache.clear();\n        batch.approved = false;" -> "self.connection = None;\n        batch.approved = false;",
        "machine/src/lane/retrying.rs": "self.connection = None;\n        self.cache.clear();\n        self.ending(" -> "self.connection = None;\n        self.ending(",
        "machine/src/lane/part.rs": "self.connection = None;\n        self.cache.clear();\n        self.storing(" -> "self.connection = None;\n        self.storing(",
        "machine/src/lane/blocked.rs": "self.cache.remove(recv_id);" -> "let _ = recv_id;",
        "machine/src/lane/retrying.rs": "self.cache.remove(recv_id);" -> "let _ = recv_id;";
    "records are passed to a lane by partition" Harmless("an inbox is in one partition, unless the partition count is changed without a drain") =>
        "machine/src/driver/mod.rs": "lane_for(record.key()," -> "lane_for(Some(&partition.to_le_bytes()),";
    "records are passed to a lane by offset" Found =>
        "machine/src/driver/mod.rs": "lane_for(record.key()," -> "lane_for(Some(&offset.0.to_le_bytes()),";
    "no assignment is fenced" Found =>
        "machine/src/driver/mod.rs": "assignment.fence();" -> "let _ = assignment;";
    "a restarted partition is not fenced" Found =>
        "machine/src/consumer/mod.rs": "actions.push(Action::Fence { epoch: owned.epoch });\n                // Dead letters" ->
            "// Dead letters";
    "a lost partition is not fenced" Found =>
        "machine/src/consumer/revoking.rs": "if let Some(owned) = self.owned.remove(partition) {\n                actions.push(Action::Fence { epoch: owned.epoch });\n                self.forget(*partition, &owned, actions);\n            }\n            lost" ->
            "if let Some(owned) = self.owned.remove(partition) {\n                self.forget(*partition, &owned, actions);\n            }\n            lost";
    "the fence is not checked before the COMMIT"
        Harmless("the next owner finds the stored rows as duplicates, and the unique keys reject a row with a wrong seq") =>
        "machine/src/lane/writing.rs": "if batch.is_fenced() {\n            return self.storing(batch, Step::Rollback" ->
            "if false {\n            return self.storing(batch, Step::Rollback";
    "a transient error makes a record a dead letter" Found =>
        "machine/src/lane/bisection.rs": "_ => false,\n                };" -> "_ => true,\n                };";
    "a record is dead-lettered although no other record was accepted" Found =>
        "machine/src/lane/bisection.rs": "(true, false) => {" -> "(_, false) => {";
    "a small record that needs too long is dead-lettered" Found =>
        "machine/src/lane/bisection.rs": "ErrorClass::Heavy => is_huge(*row) && self.confirmed.contains(row)," -> "ErrorClass::Heavy => self.confirmed.contains(row),";
    "a huge record is dead-lettered although its inbox accepts no row" Found =>
        "machine/src/lane/bisecting.rs": "Request::Canary(Some(rows.numbered[row]))" -> "Request::Canary(None)";
    "a blocked inbox stops its lane" Found =>
        "machine/src/lane/blocked.rs": "self.blocked.inboxes.len() < MAX_BLOCKED" -> "self.blocked.inboxes.len() > MAX_BLOCKED";
    "later records of a blocked inbox are stored before the blocked ones" Found =>
        "machine/src/lane/blocked.rs": "if self.blocked.inboxes.is_empty() {\n            return;" -> "if true {\n            return;";
    "only the rejected record of an inbox waits, not the records after it" Found =>
        "machine/src/lane/blocked.rs": "is_some_and(|(from, _)| index > *from)" -> "is_some_and(|(from, _)| index == *from + 1)";
    "a row that the database discards stops its lane" Found =>
        "machine/src/lane/failing.rs": "let bisection = Box::new(Bisection::new(rows.numbered.len(), error));\n        self.begin_bisection(batch, rows, bisection)" ->
            "let _ = rows;\n        self.abandon(batch, error)";
    "a row that the database discards counts as accepted" Found =>
        "machine/src/lane/bisecting.rs": "(BisectStep::Probe(probe), Response::Count(inserted)) if inserted == probe.rows().len() => {" ->
            "(BisectStep::Probe(probe), Response::Count(inserted)) if inserted <= probe.rows().len() => {";
    "a dead letter that cannot be inserted stops its lane" Found =>
        "machine/src/lane/writing.rs": "self.letters_failed(batch, failed, events)" ->
            "self.abandon(batch, failed[0].1.clone())";
    "a dead letter that cannot be inserted counts as completed" Found =>
        "machine/src/lane/writing.rs": "self.letters_failed(batch, failed, events)" ->
            "let _ = failed;\n                self.commit(batch, rows)";
    "an error at the COMMIT of one inbox stops its lane" Found =>
        "machine/src/lane/failing.rs": "ErrorClass::Conflict | ErrorClass::Fatal if batch.attempts > 0" -> "ErrorClass::Conflict if batch.attempts > 0";
    "an inbox that cannot be looked up stops its lane" Found =>
        "machine/src/lane/bisecting.rs": "if error.class == ErrorClass::Fatal && self.can_block() =>" -> "if error.class == ErrorClass::Lost && self.can_block() =>";
    "an inbox whose last seq cannot be read stops its lane" Found =>
        "machine/src/lane/failing.rs": "if batch.attempts == 0 || !self.can_block() {\n            return self.fail(batch, error);" ->
            "if true {\n            return self.fail(batch, error);";
    "a failed retry of a blocked inbox drops its other records" Found =>
        "machine/src/lane/retrying.rs": "for entry in rest {" -> "for entry in rest.into_iter().take(0) {";
    "records that are found blocked later are queued after records with higher offsets"
        Rare("a later message of an inbox must be found blocked before an earlier one; the lane's unit test finds the bug") =>
        "machine/src/lane/blocked.rs": "self.blocked.waiting(queue, error, attempts).push_front(entry);" -> "self.blocked.waiting(queue, error, attempts).push_back(entry);",
        "machine/src/lane/blocked.rs": "for mut entry in waiting.into_iter().rev() {" -> "for mut entry in waiting {";
    "a partition stays throttled when it is not fetched any more" Harmless("the next assign unthrottles the partition too") =>
        "machine/src/driver/fetching.rs": "self.fetching.remove(partition);\n            self.throttled.remove(partition);" -> "self.fetching.remove(partition);";
    "a partition stays throttled when it is fetched again" Found =>
        "machine/src/driver/fetching.rs": "self.fetching.remove(partition);\n            self.throttled.remove(partition);" -> "self.fetching.remove(partition);",
        "machine/src/driver/fetching.rs": "self.throttled.remove(partition);\n            io.forward(*partition);" -> "io.forward(*partition);";
    "a partition is never unthrottled" Found =>
        "machine/src/consumer/limits.rs": "actions.push(Action::Unthrottle { partition });" -> "";
    "the start offset is the committed offset although the progress row is lower" Found =>
        "machine/src/consumer/start.rs": "(_, Some(progress)) => progress," -> "(Some(committed), Some(_)) => unknown(committed), (None, Some(progress)) => progress,";
    "the start offset is the committed offset although no progress row exists" Found =>
        "machine/src/consumer/start.rs": "(_, None) => unknown(NextOffset(0))," -> "(committed, None) => unknown(committed.unwrap_or(NextOffset(0))),";
    "the start offset skips records that were deleted unread" Found =>
        "machine/src/consumer/start.rs": "if accept_loss {" -> "if accept_loss || true {";
    "duplicates within a batch are inserted too"
        Harmless("the inbox is blocked, since the insert of the duplicate has no effect, and is then stored record by record") =>
        "machine/src/lane/entry.rs": "if first { Known::New } else { Known::Repeat }" -> "if first { Known::New } else { Known::New }";
    "rows that existed already leave gaps in seq" Found =>
        "machine/src/lane/writing.rs": "if inserted < rows.numbered.len() {" -> "if false && inserted < rows.numbered.len() {";
    "a batch whose insert of new rows conflicts counts as stored" Found =>
        "machine/src/lane/writing.rs": "self.insert_skipping_stored(batch, error.class)" ->
            "self.committed(batch, &rows, events)";
    "an insert of new rows that conflicts is repeated in the same form" Found =>
        "machine/src/lane/writing.rs": "self.skip_stored_for(if class == ErrorClass::Conflict { 1 } else { BATCHES_AFTER_ERROR });" -> "let _ = class;";
    "offsets are committed without progress rows" Found =>
        "machine/src/consumer/commit.rs": "self.round = Round::Saving(points.clone());\n        Some(Action::SaveProgress(points))" ->
            "self.round = Round::Committing(points.clone());\n        Some(Action::Commit(points))";
    "offsets are committed although writing their progress rows failed" Found =>
        "machine/src/consumer/mod.rs": "Event::ProgressSaved => self.committer.saved(),\n            Event::ProgressFailed | Event::CommitFailed => self.committer.failed(now)," ->
            "Event::ProgressSaved | Event::ProgressFailed => self.committer.saved(),\n            Event::CommitFailed => self.committer.failed(now),";
    "offsets of a lost partition are committed"
        Found =>
        "machine/src/consumer/commit.rs": "points.retain(is_current);" -> "points.retain(|point| is_current(point) || true);";
    "a connection to a restored server is accepted" Found =>
        "machine/src/reference_connection.rs": "!self.connected => Next::Known(false),\n            Query::Check" -> "!self.connected => Next::Known(true),\n            Query::Check";
    "progress rows are written over any connection" Found =>
        "machine/src/reference_connection.rs": "if !self.connected || numbers.iter().any(|number| *number != self.number) => {" -> "if !self.connected && !numbers.is_empty() => {";
    "all reference connections have the same number" Found =>
        "machine/src/reference_connection.rs": "self.number += 1;" -> "self.number = 1;";
    "records under a start offset of an earlier reference connection are stored with the others"
        Rare("found once, by the 179,967th seed of an earlier version; the lane's unit test finds the bug") =>
        "machine/src/lane/part.rs": "if batch.fence_older(connection_number, events) {" -> "if false && batch.fence_older(connection_number, events) {";
    "no sequence guard although rows become visible after their COMMIT" Found =>
        "simulator/src/config.rs": "guard: visible_later || choices.one_in(8)," -> "guard: choices.one_in(8) && !visible_later,";
    "dead letters need no approval" Found =>
        "machine/src/lane/part.rs": "if !dead.is_empty() && !batch.approved {" -> "if !dead.is_empty() && !batch.approved && false {";
    "the dead-letter limit ignores dead letters that are in the database already" Found =>
        "machine/src/consumer/mod.rs": "owned.breaker.begin(topic_id, dead);" -> "owned.breaker.begin(topic_id, dead.into_iter().take(0));";
    "a batch with more dead letters than the limit halts its partition after every resume" Found =>
        "machine/src/consumer/breaker.rs": "let forgiven = self.over_limit.max(self.forgiven);" -> "let forgiven = self.forgiven;";
    "a revoked partition still receives records" Harmless("the driver consumes no records until the partition is released") =>
        "machine/src/consumer/mod.rs": "let owned = self.owned.get_mut(&partition).filter(|owned| !owned.revoking)?;" -> "let owned = self.owned.get_mut(&partition)?;";
    "a record of a previous assignment counts for the present one" Found =>
        "machine/src/consumer/mod.rs": "if let Some(owned) = self.current(record.partition, record.epoch) {\n                owned.complete" ->
            "if let Some(owned) = self.owned.get_mut(&record.partition) {\n                owned.complete";
    "offsets that go back are accepted" Found =>
        "machine/src/consumer/ledger.rs": "return Err(OutOfOrder);" -> "self.last.next = offset.next();";
    "all records are consumed without a limit" Found =>
        "machine/src/consumer/limits.rs": "self.full = if self.full { above(2) } else { above(1) };" -> "let _ = above(1);";
    "consuming resumes only at half of the limits, blocked records included" Found =>
        "machine/src/consumer/limits.rs": "let (blocked_bytes, blocked_records) = self.blocked_inflight;" -> "let (blocked_bytes, blocked_records) = (0, 0);";
    "a halted partition is not fenced" Found =>
        "machine/src/consumer/halting.rs": "// In all lanes: a later record to the same inbox must not overtake the one that is halted.\n                actions.push(Action::Fence { epoch });" -> "";
    "the progress row can go back (in the database's model)" Found =>
        "simulator/src/database/tables.rs": "if new.may_follow(*row) {" -> "if true || new.may_follow(*row) {";
    "a postponed unassign stops the fetch that started after it" Found =>
        "machine/src/driver/releasing.rs": "        self.start_fetching(io);\n" -> "        self.start_fetching(io);\n        self.stop_fetching(io, &stopped);\n";
    "a revocation is responded to before its partitions are released" Found =>
        "machine/src/driver/releasing.rs": "if !self.machine.is_revoking() {" -> "if true {";
    "an unassign is not postponed until the response to a revocation" Found =>
        "machine/src/driver/mod.rs": "Some(postponed) => {\n                        postponed.insert(partition, Postponed::StopFetching);\n                    }" ->
            "Some(_) => {\n                        stopped.insert(partition);\n                    }";
    "an assign is not postponed until the response to a revocation" Found =>
        "machine/src/driver/mod.rs": "Some(postponed) => {\n                        postponed.insert(partition, Postponed::Refetch(FetchStart { epoch, from }));\n                    }" ->
            "Some(_) => self.fetch(partition, FetchStart { epoch, from }),";
    "records are consumed while partitions are released"
        Rare("librdkafka pauses all partitions until it has the response; only a response that came early is different") =>
        "machine/src/driver/mod.rs": "self.machine.wants_records() && !self.is_releasing()" -> "self.machine.wants_records()";
    "a drain has no deadline" Found =>
        "machine/src/driver/releasing.rs": "Stage::Draining(deadline) if now < deadline => return," -> "Stage::Draining(deadline) if now < deadline + 1_000_000_000 => return,";
    "a lost assignment is drained like a revoked one" Found =>
        "machine/src/driver/releasing.rs": "if io.is_assignment_lost() {" -> "if io.is_assignment_lost() && false {";
    "a stop does not drain" Found =>
        "machine/src/driver/mod.rs": "self.stop(io);" -> "self.stop(io);\n                self.releasing = None;";
    "an assignment is forgotten once it is fenced" Found =>
        "machine/src/driver/mod.rs": "self.assignments.retain(|epoch, _| machine.has_assignment(*epoch));" ->
            "self.assignments.retain(|epoch, assignment| machine.has_assignment(*epoch) && !assignment.is_fenced());";
    "throttled records are passed in the wrong order" Found =>
        "machine/src/driver/throttling.rs": "throttled.fetched.pop_front()" -> "throttled.fetched.pop_back()";
    "a record overtakes throttled records once its partition is unthrottled"
        Harmless("no record is consumed before all throttled records are passed") =>
        "machine/src/driver/throttling.rs": "self.fetched.push_back(fetched);" ->
            "if self.resumes { self.fetched.push_front(fetched) } else { self.fetched.push_back(fetched) }";
    "an error overtakes the throttled records before it"
        Harmless("the throttled records are discarded, and fetched again or counted as lost") =>
        "machine/src/driver/mod.rs": "if let Some(throttled) = self.throttled.get_mut(&fetched.partition()) {" ->
            "if let Some(throttled) = self.throttled.get_mut(&fetched.partition()).filter(|_| matches!(fetched, Fetched::Record(_))) {";
    "a late result of an offset commit counts for the present round" Found =>
        "machine/src/driver/committing.rs": "commit.round == round" -> "commit.round >= round";
    "the wait for the result of an offset commit has no timeout" Found =>
        "machine/src/driver/committing.rs": "io.now() >= commit.deadline" -> "io.now() >= commit.deadline + 1_000_000_000";
    "a queue that librdkafka no longer forwards is not forwarded again" Found =>
        "machine/src/driver/resume_poll.rs": "io.forward(*partition);" -> "";
    "a record from the queue of events is not fetched again" Found =>
        "machine/src/driver/mod.rs": "self.handle(io, Event::RestartPartition(partition));" -> "";
    "only one of Kafka's events is polled per turn, and records are consumed before the next event"
        Rare("an event of another partition must come between the two; the driver's unit test finds the bug") =>
        "machine/src/driver/mod.rs": "            self.happened(io, happened);\n        }\n    }" -> "            self.happened(io, happened);\n            return;\n        }\n    }";
    "the topic's ID is queried only once (in the start task's model)" Found =>
        "simulator/src/process/starts.rs": "Stage::Ends(read, _) if read.topic != env.kafka.topic_number() => {}" -> "Stage::Ends(read, _) if false && read.topic == 0 => {}";
    "a bisection does not lock the table (in the database's model)" Found =>
        "simulator/src/database/mod.rs": "open.is_bisection || !open.rows.is_empty()" -> "!open.rows.is_empty()";
    "a lost tail is detected by offset alone" Found =>
        "machine/src/consumer/start.rs": "Kept::UpTo(kept) => (kept.next, kept)," ->
            "Kept::UpTo(kept) => (self.high, Progress { next: self.high, ..kept }),";
    "a lost tail is counted only from the log's end" Found =>
        "machine/src/consumer/start.rs": "from: from.min(row.next), to" -> "from: self.high.min(row.next), to";
    "a progress row that refers to lost records is not lowered (in the start task's model)" Found =>
        "simulator/src/process/starts.rs": "if let Some(lost) = decision.lost {" -> "if let Some(lost) = decision.lost.filter(|_| false) {";
    "a progress row is lowered although it has changed (in the database's model)" Harmless("the stored records are read again") =>
        "simulator/src/database/tables.rs": "if self.progress.get(&(topic, partition)) != Some(&lost.row) {" -> "if false {";
    "a progress row has the leader epoch of its start offset" Found =>
        "machine/src/consumer/ledger.rs": "self.last = Progress { next: offset.next(), leader_epoch };" ->
            "self.last = Progress { next: offset.next(), ..self.last };";
    "progress rows are compared by offset alone" Rare("a previous owner raises the progress row again; no record is skipped, and the next start counts the loss again") =>
        "machine/src/offset.rs": "if self.leader_epoch.is_known() && other.leader_epoch.is_known() {" -> "if self.leader_epoch.is_known() && false {";
    "a fetch position has no leader epoch (in librdkafka's model)" Found =>
        "simulator/src/process/library/fetching.rs": "fetch.position > log.high || differs(log.kept(fetch.leader_epoch))" -> "fetch.position > log.high && !differs(Kept::Unknown)";
    "the key of a dead letter has no leader epoch (in the database's model)" Found =>
        "simulator/src/database/statement.rs": "if !self.tables.dead.contains_key(&position) &&" ->
            "if !self.tables.dead.keys().any(|key| (key.0, key.1, key.2) == (position.0, position.1, position.2)) &&";
    "records of a halved batch that wait are queued after records found blocked in it"
        Rare("a later message of an inbox must be found blocked before an earlier one; the lane's unit test finds the bug") =>
        "machine/src/lane/blocked.rs": "insert(&mut waiting.entries, entry);" -> "waiting.entries.push_back(entry);";
}

-- Kafka can lose the tail of a log, and then other records get the offsets of the lost ones. The leader epoch tells them apart.

ALTER TABLE progress ADD COLUMN leader_epoch integer;

COMMENT ON COLUMN progress.leader_epoch IS
    'the leader epoch of the last record below next_offset; null where it is not known';

ALTER TABLE dead_letters ADD COLUMN leader_epoch integer NOT NULL DEFAULT -1;

COMMENT ON COLUMN dead_letters.leader_epoch IS
    'the leader epoch of the record; -1 in rows of a version that did not write it';

ALTER TABLE dead_letters
    DROP CONSTRAINT dead_letters_pkey,
    ADD PRIMARY KEY (topic_id, kafka_partition, kafka_offset, leader_epoch);

-- What the transfer keeps. Unqualified names: the schema is the connection's search_path.

CREATE TABLE messages (
    -- "C" compares bytes: sorted batches then meet the index in its own order.
    recv_id         text        COLLATE "C" NOT NULL,
    seq             bigint      NOT NULL CHECK (seq > 0),
    msg_id          uuid        NOT NULL,
    send_id         text        COLLATE "C" NOT NULL,
    client_msg_id   text        COLLATE "C" NOT NULL,
    session_type    smallint    NOT NULL,
    content_type    text        COLLATE "C" NOT NULL,
    content         bytea       NOT NULL,
    attributes      jsonb,
    send_time       timestamptz NOT NULL,
    stored_time     timestamptz NOT NULL DEFAULT now(),
    kafka_partition integer     NOT NULL,
    kafka_offset    bigint      NOT NULL,
    PRIMARY KEY (recv_id, seq),
    CONSTRAINT messages_msg_id_key UNIQUE (recv_id, msg_id)
);

COMMENT ON COLUMN messages.seq IS 'place in the inbox: 1, 2, 3 ... without gaps, in the order of first delivery';
COMMENT ON COLUMN messages.attributes IS 'object of strings; null when there are none';

CREATE TABLE dead_letters (
    topic           text        NOT NULL,
    -- A topic made anew under the same name counts its offsets from 0 again.
    topic_id        uuid        NOT NULL,
    kafka_partition integer     NOT NULL,
    kafka_offset    bigint      NOT NULL,
    recv_id         text        COLLATE "C",
    msg_id          uuid,
    key             bytea,
    value           bytea,
    -- For each header: length of its key (4 bytes, network order), key, length of its value (ffffffff: none), value.
    headers         bytea       NOT NULL,
    reason          text        NOT NULL,
    detail          text        NOT NULL,
    first_seen      timestamptz NOT NULL DEFAULT now(),
    replayed_at     timestamptz,
    PRIMARY KEY (topic_id, kafka_partition, kafka_offset)
);

CREATE INDEX dead_letters_msg_id_idx ON dead_letters (recv_id, msg_id);

CREATE TABLE progress (
    topic_id        uuid        NOT NULL,
    kafka_partition integer     NOT NULL,
    -- Everything below is in messages or in dead_letters.
    next_offset     bigint      NOT NULL,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic_id, kafka_partition)
);

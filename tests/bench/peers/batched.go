package main

import (
	"context"
	"time"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	batchSize = 2000
	batchWait = 10 * time.Millisecond
	lastSeqs  = `SELECT i.recv_id, (SELECT coalesce(max(seq), 0) FROM messages m WHERE m.recv_id = i.recv_id)
		FROM unnest($1::text[]) AS i (recv_id)`
	insertAll = `INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
		send_time, kafka_partition, kafka_offset)
		SELECT * FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], $6::smallint[], $7::text[],
		$8::bytea[], $9::timestamptz[], $10::integer[], $11::bigint[]) ON CONFLICT (recv_id, msg_id) DO NOTHING`
)

// storeBatched stores up to batchSize records at a time.
func storeBatched(ctx context.Context, pool *pgxpool.Pool, session marker, messages <-chan *sarama.ConsumerMessage) error {
	seqs := map[string]int64{}
	for {
		batch := take(messages)
		if len(batch) == 0 {
			return nil
		}
		count, err := storeBatch(ctx, pool, seqs, batch)
		if err != nil {
			return err
		}
		session.MarkMessage(batch[len(batch)-1], "")
		stored.Add(count)
	}
}

// take waits for a record, and then for more of them. It returns none when the claim has ended.
func take(messages <-chan *sarama.ConsumerMessage) []*sarama.ConsumerMessage {
	first, open := <-messages
	if !open {
		return nil
	}
	batch := []*sarama.ConsumerMessage{first}
	timer := time.After(batchWait)
	for len(batch) < batchSize {
		select {
		case message, open := <-messages:
			if !open {
				return batch
			}
			batch = append(batch, message)
		case <-timer:
			return batch
		}
	}
	return batch
}

func storeBatch(ctx context.Context, pool *pgxpool.Pool, seqs map[string]int64, batch []*sarama.ConsumerMessage) (int64, error) {
	records := make([]record, len(batch))
	unknown := map[string]bool{}
	for i, message := range batch {
		r, err := decode(message.Value)
		if err != nil {
			return 0, err
		}
		records[i] = r
		if _, known := seqs[r.recvID]; !known {
			unknown[r.recvID] = true
		}
	}
	if err := readSeqs(ctx, pool, seqs, unknown); err != nil {
		return 0, err
	}
	n := len(batch)
	recvIDs, sendIDs, clientIDs, types := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	numbers, offsets, partitions := make([]int64, n), make([]int64, n), make([]int32, n)
	ids, sessions, contents, times := make([][16]byte, n), make([]int16, n), make([][]byte, n), make([]time.Time, n)
	for i, r := range records {
		seqs[r.recvID]++
		recvIDs[i], numbers[i], ids[i], sendIDs[i], clientIDs[i] = r.recvID, seqs[r.recvID], r.msgID, r.sendID, r.clientMsgID
		sessions[i], types[i], contents[i], times[i] = r.sessionType, r.contentType, r.content, r.sendTime
		partitions[i], offsets[i] = batch[i].Partition, batch[i].Offset
	}
	tag, err := pool.Exec(ctx, insertAll, recvIDs, numbers, ids, sendIDs, clientIDs, sessions, types, contents, times,
		partitions, offsets)
	return tag.RowsAffected(), err
}

// readSeqs adds the last seq of these inboxes.
func readSeqs(ctx context.Context, pool *pgxpool.Pool, seqs map[string]int64, unknown map[string]bool) error {
	if len(unknown) == 0 {
		return nil
	}
	inboxes := make([]string, 0, len(unknown))
	for inbox := range unknown {
		inboxes = append(inboxes, inbox)
	}
	rows, err := pool.Query(ctx, lastSeqs, inboxes)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var inbox string
		var seq int64
		if err := rows.Scan(&inbox, &seq); err != nil {
			return err
		}
		seqs[inbox] = seq
	}
	return rows.Err()
}

package main

import (
	"context"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	lastSeq = `SELECT coalesce(max(seq), 0) FROM messages WHERE recv_id = $1`
	insert  = `INSERT INTO messages (recv_id, seq, msg_id, send_id, client_msg_id, session_type, content_type, content,
		send_time, kafka_partition, kafka_offset) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (recv_id, msg_id) DO NOTHING`
)

// storeSingle stores one record after the other. An inbox is in one partition, so no other claim numbers its messages.
func storeSingle(ctx context.Context, pool *pgxpool.Pool, session marker, messages <-chan *sarama.ConsumerMessage) error {
	for message := range messages {
		r, err := decode(message.Value)
		if err != nil {
			return err
		}
		var seq int64
		if err := pool.QueryRow(ctx, lastSeq, r.recvID).Scan(&seq); err != nil {
			return err
		}
		tag, err := pool.Exec(ctx, insert, r.recvID, seq+1, r.msgID, r.sendID, r.clientMsgID, r.sessionType, r.contentType,
			r.content, r.sendTime, message.Partition, message.Offset)
		if err != nil {
			return err
		}
		session.MarkMessage(message, "")
		stored.Add(tag.RowsAffected())
	}
	return nil
}

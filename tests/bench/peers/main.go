// Peers of the services, for comparison. As peers of msg-transfer, consumers that store the same records in the same table:
//
//	PEER=single     a SELECT and an INSERT for each record
//	PEER=batched    a SELECT and an INSERT for each batch, with the last seq of each inbox in memory
//	PEER=jetstream  the same batches from NATS JetStream
//
// They commit offsets after the rows, and promise less than msg-transfer: a rebalance or a restart can leave gaps in seq, an
// invalid record ends the process, and there are no dead letters.
//
//	PEER=copy       copies the topic to JetStream, a subject for each partition
//	PEER=publish    a peer of callers of msg-gateway: publishes to JetStream, and counts acks
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
)

// stored counts the rows. msg-bench reads it under the name that msg-transfer uses.
var stored atomic.Int64

// marker confirms that all messages of a partition up to this one are stored.
type marker interface {
	MarkMessage(message *sarama.ConsumerMessage, metadata string)
}

type store func(context.Context, *pgxpool.Pool, marker, <-chan *sarama.ConsumerMessage) error

type handler struct {
	pool  *pgxpool.Pool
	store store
}

func (handler) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (handler) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (h handler) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	if err := h.store(session.Context(), h.pool, session, claim.Messages()); err != nil && session.Context().Err() == nil {
		log.Fatalf("partition %d: %v", claim.Partition(), err)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch peer := os.Getenv("PEER"); peer {
	case "single":
		err = consumeKafka(ctx, servePool(ctx), storeSingle)
	case "batched":
		err = consumeKafka(ctx, servePool(ctx), storeBatched)
	case "jetstream":
		err = consumeJetStream(ctx, servePool(ctx))
	case "copy":
		err = copyTopic(ctx)
	case "publish":
		err = publish(ctx)
	default:
		err = fmt.Errorf("PEER has to be single, batched, jetstream, copy or publish, not %q", peer)
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// servePool connects to the database and serves the count of rows.
func servePool(ctx context.Context) *pgxpool.Pool {
	pool := must(pgxpool.New(ctx, os.Getenv("DATABASE_URL")+"?pool_max_conns=16"))
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "msg_transfer_stored_messages_total %d\n", stored.Load())
	})
	go func() { log.Fatal(http.ListenAndServe(os.Getenv("ADMIN_LISTEN"), nil)) }()
	return pool
}

func consumeKafka(ctx context.Context, pool *pgxpool.Pool, store store) error {
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	group, err := sarama.NewConsumerGroup([]string{os.Getenv("KAFKA_BROKERS")}, os.Getenv("GROUP_ID"), config)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := group.Consume(ctx, []string{os.Getenv("KAFKA_TOPIC")}, handler{pool, store}); err != nil {
			return err
		}
	}
	return nil
}

// number reads a setting.
func number(name string) int {
	value, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		log.Fatalf("%s: %v", name, err)
	}
	return value
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

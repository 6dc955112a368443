// Peers of msg-transfer, for comparison: consumers in Go that store the same records in the same table.
//
//	PEER=single   a SELECT and an INSERT for each record
//	PEER=batched  a SELECT and an INSERT for each batch, with the last seq of each inbox in memory
//
// Both commit offsets after the rows, and promise less than msg-transfer: a rebalance or a restart can leave gaps in
// seq, an invalid record ends the process, and there are no dead letters.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
)

// stored counts the rows. msg-bench reads it under the name that msg-transfer uses.
var stored atomic.Int64

type store func(context.Context, *pgxpool.Pool, sarama.ConsumerGroupSession, <-chan *sarama.ConsumerMessage) error

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
	store, known := map[string]store{"single": storeSingle, "batched": storeBatched}[os.Getenv("PEER")]
	if !known {
		log.Fatal("PEER has to be single or batched")
	}
	pool := must(pgxpool.New(ctx, os.Getenv("DATABASE_URL")+"?pool_max_conns=16"))
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	group := must(sarama.NewConsumerGroup([]string{os.Getenv("KAFKA_BROKERS")}, os.Getenv("GROUP_ID"), config))
	http.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "msg_transfer_stored_messages_total %d\n", stored.Load())
	})
	go func() { log.Fatal(http.ListenAndServe(os.Getenv("ADMIN_LISTEN"), nil)) }()
	for ctx.Err() == nil {
		if err := group.Consume(ctx, []string{os.Getenv("KAFKA_TOPIC")}, handler{pool, store}); err != nil {
			log.Fatal(err)
		}
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

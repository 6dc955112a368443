package main

import (
	"context"
	"fmt"
	"os"

	"github.com/IBM/sarama"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	streamName = "msgs"
	// inFlight is the number of messages without an ack of one publisher that does not wait for each.
	inFlight = 2000
)

// subjectOf returns the subject of a partition. Its messages keep their order, as those of a partition do.
func subjectOf(partition int) string { return fmt.Sprintf("msg.%d", partition) }

func connect() (*nats.Conn, jetstream.JetStream, error) {
	conn, err := nats.Connect(os.Getenv("NATS_URL"))
	if err != nil {
		return nil, nil, err
	}
	// The publishers limit what is in flight by themselves: the client would return an error at its limit.
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(1<<20))
	return conn, js, err
}

// emptyStream creates the stream in files, or deletes its messages.
func emptyStream(ctx context.Context, js jetstream.JetStream) error {
	config := jetstream.StreamConfig{Name: streamName, Subjects: []string{"msg.*"}, Storage: jetstream.FileStorage}
	stream, err := js.CreateOrUpdateStream(ctx, config)
	if err != nil {
		return err
	}
	return stream.Purge(ctx)
}

// acks are the messages of one publisher without an ack, in order.
type acks []jetstream.PubAckFuture

// await waits until at most this many messages have no ack.
func (a *acks) await(limit int) error {
	for len(*a) > limit {
		select {
		case <-(*a)[0].Ok():
		case err := <-(*a)[0].Err():
			return err
		}
		*a = (*a)[1:]
	}
	return nil
}

// copyTopic publishes the topic's records.
func copyTopic(ctx context.Context) error {
	conn, js, err := connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := emptyStream(ctx, js); err != nil {
		return err
	}
	client, err := sarama.NewClient([]string{os.Getenv("KAFKA_BROKERS")}, nil)
	if err != nil {
		return err
	}
	consumer, err := sarama.NewConsumerFromClient(client)
	if err != nil {
		return err
	}
	partitions, topic := number("PARTITIONS"), os.Getenv("KAFKA_TOPIC")
	ended := make(chan error, partitions)
	for partition := range partitions {
		go func() { ended <- copyPartition(js, client, consumer, topic, int32(partition)) }()
	}
	for range partitions {
		if err := <-ended; err != nil {
			return err
		}
	}
	return nil
}

func copyPartition(js jetstream.JetStream, client sarama.Client, consumer sarama.Consumer, topic string, partition int32) error {
	end, err := client.GetOffset(topic, partition, sarama.OffsetNewest)
	if err != nil || end == 0 {
		return err
	}
	claim, err := consumer.ConsumePartition(topic, partition, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	defer claim.Close()
	var pending acks
	for message := range claim.Messages() {
		ack, err := js.PublishAsync(subjectOf(int(partition)), message.Value)
		if err != nil {
			return err
		}
		pending = append(pending, ack)
		if err := pending.await(inFlight); err != nil {
			return err
		}
		if message.Offset+1 == end {
			break
		}
	}
	return pending.await(0)
}

// replies acknowledges messages of JetStream. The key of a message is the subject that acknowledges it.
type replies struct{ conn *nats.Conn }

func (r replies) MarkMessage(message *sarama.ConsumerMessage, _ string) {
	// If the ack is lost, the messages are delivered again.
	_ = r.conn.Publish(string(message.Key), []byte("+ACK"))
}

// consumeJetStream stores the messages of each partition in batches.
func consumeJetStream(ctx context.Context, pool *pgxpool.Pool) error {
	conn, js, err := connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	partitions := number("PARTITIONS")
	ended := make(chan error, partitions)
	for partition := range partitions {
		consumer, err := js.CreateOrUpdateConsumer(ctx, streamName, jetstream.ConsumerConfig{
			Durable:       fmt.Sprintf("%s-%d", os.Getenv("GROUP_ID"), partition),
			FilterSubject: subjectOf(partition),
			// As with an offset, an ack confirms all earlier messages.
			AckPolicy:     jetstream.AckAllPolicy,
			MaxAckPending: -1,
		})
		if err != nil {
			return err
		}
		messages := make(chan *sarama.ConsumerMessage, batchSize)
		_, err = consumer.Consume(func(message jetstream.Msg) {
			select {
			case messages <- received(message, partition):
			case <-ctx.Done():
			}
		}, jetstream.PullMaxMessages(2*batchSize))
		if err != nil {
			return err
		}
		go func() { ended <- storeBatched(ctx, pool, replies{conn}, messages) }()
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}

func received(message jetstream.Msg, partition int) *sarama.ConsumerMessage {
	metadata := must(message.Metadata())
	return &sarama.ConsumerMessage{
		Key:       []byte(message.Reply()),
		Value:     message.Data(),
		Partition: int32(partition),
		Offset:    int64(metadata.Sequence.Stream),
	}
}

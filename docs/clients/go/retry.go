package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"
)

const (
	// Of each single call. Without one, a call on a dead connection waits for ever.
	deadline = 10 * time.Second
	// For all repeats of one call together.
	patience = 90 * time.Second
	// The back-off, where an error does not say how long to wait.
	firstDelay   = 100 * time.Millisecond
	longestDelay = 5 * time.Second
)

// counts says how often a call was repeated, by what its errors said.
type counts struct {
	NotSent int `json:"not_sent"`
	Unknown int `json:"unknown"`
}

// explain returns the gateway's reason, "" if somebody else made the error, and how long it asks to wait, or nil. A detail that cannot be
// decoded is an error among the details, and not the gateway's.
func explain(err error) (reason string, delay *time.Duration) {
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == "msg.v1" {
				reason = detail.Reason
			}
		case *errdetails.RetryInfo:
			asked := detail.RetryDelay.AsDuration()
			delay = &asked
		}
	}
	return reason, delay
}

// backOff doubles with each repeat. From half of it to all of it, so that clients that failed together spread out.
func backOff(repeats int) time.Duration {
	delay := min(longestDelay, firstDelay<<min(repeats, 20))
	return delay/2 + rand.N(delay/2)
}

// untilCertain calls until the gateway says OK, or that it never will: it does what an error asks for, and nothing else.
//
// repeatable: doing it twice does no harm. A read is; a send is if the message has a client_msg_id.
func untilCertain[T any](ctx context.Context, repeatable bool, counts *counts, call func(context.Context) (T, error)) (T, error) {
	giveUp := time.Now().Add(patience)
	for repeats := 0; ; repeats++ {
		answer, err := once(ctx, call)
		if err == nil {
			return answer, nil
		}
		reason, delay := explain(err)
		name := reason
		if name == "" {
			name = status.Code(err).String()
		}
		var again bool
		switch reason {
		case "NOT_SENT", "DATABASE_UNAVAILABLE", "KAFKA_UNAVAILABLE":
			// Certainly not done: even what must not be done twice can be tried again.
			counts.NotSent++
			again = true
		case "OUTCOME_UNKNOWN", "":
			// Without a reason of ours, a proxy or the transport made the error, and the message may have passed it.
			counts.Unknown++
			again = repeatable
			delay = nil
		}
		if delay == nil {
			own := backOff(repeats)
			delay = &own
		}
		if !again || time.Now().Add(*delay).After(giveUp) {
			return answer, fmt.Errorf("gave up: %s: %w", name, err)
		}
		fmt.Printf("%s: again in %.3f s\n", name, delay.Seconds())
		select {
		case <-time.After(*delay):
		case <-ctx.Done():
			return answer, ctx.Err()
		}
	}
}

// once makes a call with a deadline of its own.
func once[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	return call(ctx)
}

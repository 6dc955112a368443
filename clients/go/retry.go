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
	// The timeout of one attempt. Without it, a call on a dead connection waits without limit.
	deadline = 10 * time.Second
	// The timeout of all attempts of one call together.
	totalTimeout = 90 * time.Second
	// The backoff, if an error has no delay.
	firstDelay = 100 * time.Millisecond
	maxDelay   = 5 * time.Second
)

// counts is the number of failed attempts, by what their errors said.
type counts struct {
	NotSent int `json:"not_sent"`
	Unknown int `json:"unknown"`
}

// gaveUp is the error of a call that failed, if a retry cannot change that, or if the total timeout has passed.
type gaveUp struct {
	name string
	// unknown: the outcome is unknown, because one of the attempts may have been done. The last error alone does not say that.
	unknown bool
	err     error
}

func (e *gaveUp) Error() string {
	text := fmt.Sprintf("gave up: %s: %v", e.name, e.err)
	if e.unknown {
		text += "; the outcome is unknown"
	}
	return text
}

func (e *gaveUp) Unwrap() error { return e.err }

// explain returns the gateway's reason, or "" if the error has none; and the delay that it asks for, or nil. A detail
// that cannot be decoded is an error among the details: it is not the gateway's.
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

// backOff doubles with each attempt. A random share of it, between half and all, spreads clients that failed together.
func backOff(repeats int) time.Duration {
	delay := min(maxDelay, firstDelay<<min(repeats, 20))
	return delay/2 + rand.N(delay/2)
}

// untilCertain calls until the gateway returns OK, or an error that a retry cannot change.
//
// repeatable: a second call does no harm. This holds for a read, and for a send whose message has a client_msg_id.
func untilCertain[T any](ctx context.Context, repeatable bool, counts *counts, call func(context.Context) (T, error)) (T, error) {
	giveUp := time.Now().Add(totalTimeout)
	mayBeDone := false
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
			// Certainly not done: can be retried even if it must not be done twice.
			counts.NotSent++
			again = true
		case "OUTCOME_UNKNOWN", "":
			// Without a reason of ours, the error comes from a proxy or the transport, and the gateway may have the message.
			counts.Unknown++
			mayBeDone = true
			again = repeatable
			delay = nil
		case "NOT_STORED_YET", "DEAD_LETTERED":
			// The message was accepted, whatever earlier attempts reported.
			mayBeDone = false
		}
		if delay == nil {
			own := backOff(repeats)
			delay = &own
		}
		if !again || time.Now().Add(*delay).After(giveUp) {
			return answer, &gaveUp{name: name, unknown: mayBeDone, err: err}
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

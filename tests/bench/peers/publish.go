package main

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// connections is the number of connections that the callers share, as many as the callers of msg-gateway have.
const connections = 4

// published is the result, as msg-bench reads it.
type published struct {
	Messages int     `json:"messages"`
	Seconds  float64 `json:"seconds"`
	// Micros has the latency of each message, if callers wait for each ack.
	Micros []int64 `json:"micros"`
	// The cost of this process.
	CPUMicros   int64 `json:"cpu_micros"`
	Wakeups     int64 `json:"wakeups"`
	MemoryBytes int64 `json:"memory_bytes"`
}

// publish publishes MESSAGES copies of the file PAYLOAD by CALLERS callers, for up to SECONDS. With WAIT=1, each caller
// waits for an ack before its next message; otherwise it has up to inFlight messages without one.
func publish(ctx context.Context) error {
	payload, err := os.ReadFile(os.Getenv("PAYLOAD"))
	if err != nil {
		return err
	}
	publishers := make([]jetstream.JetStream, connections)
	for i := range publishers {
		conn, js, err := connect()
		if err != nil {
			return err
		}
		defer conn.Close()
		publishers[i] = js
	}
	if err := emptyStream(ctx, publishers[0]); err != nil {
		return err
	}
	messages, callers, partitions := int64(number("MESSAGES")), number("CALLERS"), int64(number("PARTITIONS"))
	before, started := usage(), time.Now()
	ends := started.Add(time.Duration(number("SECONDS")) * time.Second)
	var next atomic.Int64
	// take returns the subject of the next message, if there is one.
	take := func() (string, bool) {
		n := next.Add(1) - 1
		return subjectOf(int(n % partitions)), n < messages && time.Now().Before(ends)
	}
	call := callAsync
	if os.Getenv("WAIT") == "1" {
		call = callAndWait
	}
	type ended struct {
		count  int
		micros []int64
		err    error
	}
	results := make(chan ended, callers)
	for caller := range callers {
		go func() {
			count, micros, err := call(ctx, publishers[caller%connections], take, payload)
			results <- ended{count, micros, err}
		}()
	}
	result := published{Micros: []int64{}}
	for range callers {
		ended := <-results
		if ended.err != nil {
			return ended.err
		}
		result.Messages += ended.count
		result.Micros = append(result.Micros, ended.micros...)
	}
	result.Seconds = time.Since(started).Seconds()
	after := usage()
	result.CPUMicros = micros(after.Utime) + micros(after.Stime) - micros(before.Utime) - micros(before.Stime)
	result.Wakeups = after.Nvcsw - before.Nvcsw
	// Linux counts it in KiB.
	result.MemoryBytes = after.Maxrss << 10
	return json.NewEncoder(os.Stdout).Encode(result)
}

func callAndWait(ctx context.Context, js jetstream.JetStream, take func() (string, bool), payload []byte) (int, []int64, error) {
	var latencies []int64
	for {
		subject, more := take()
		if !more {
			return len(latencies), latencies, nil
		}
		started := time.Now()
		if _, err := js.Publish(ctx, subject, payload); err != nil {
			return 0, nil, err
		}
		latencies = append(latencies, time.Since(started).Microseconds())
	}
}

func callAsync(_ context.Context, js jetstream.JetStream, take func() (string, bool), payload []byte) (int, []int64, error) {
	var pending acks
	for count := 0; ; count++ {
		subject, more := take()
		if !more {
			return count, nil, pending.await(0)
		}
		ack, err := js.PublishAsync(subject, payload)
		if err != nil {
			return 0, nil, err
		}
		pending = append(pending, ack)
		if err := pending.await(inFlight); err != nil {
			return 0, nil, err
		}
	}
}

func usage() syscall.Rusage {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage
}

func micros(time syscall.Timeval) int64 { return time.Sec*1_000_000 + time.Usec }

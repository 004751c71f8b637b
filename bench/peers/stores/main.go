// Measures Go libraries that take locks in etcd, in Redis and in Kubernetes:
//
//	stores pairs PEER ADDRESS CLAIMS SECONDS           locks of their own names
//	stores turns PEER ADDRESS WAITERS SECONDS HOLD     hand-overs among clients that all want one lock
//
// Of Go's concurrency.Mutex in etcd, `mutex` has one session for all, `elock` a session for each lock and each time, as elock has
// it: Grant, KeepAlive, Txn, Delete, Revoke. In Redis, `redsync` and `redislock`. In Kubernetes, whose address is that of a
// kubeconfig, `lockgate` in the ConfigMap `locks`, and `elector` is client-go's leader election. Prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

var background = context.Background()

// How long the TTL of a lock in Redis is.
const ttl = 10 * time.Second

// How often those look again that are not told: a lock is released at any point of that.
var polls = map[string]time.Duration{
	"redsync":   250 * time.Millisecond,
	"redislock": 100 * time.Millisecond,
	"lockgate":  2 * time.Second,
	"elector":   2 * time.Second,
}

// acquire takes a lock and gives what releases it.
type acquire func(key string) (release func())

func main() {
	if len(os.Args) < 6 {
		fmt.Fprintln(os.Stderr, "usage: stores pairs|turns PEER ADDRESS NUMBER SECONDS [HOLD]")
		os.Exit(2)
	}
	peer, address, clients := os.Args[2], os.Args[3], int(number(4))
	seconds := duration(5)
	var result map[string]any
	switch os.Args[1] {
	case "pairs":
		result = pairs(connect(peer, address), clients, seconds)
	case "turns":
		acquires := make([]acquire, clients)
		for client := range acquires {
			acquires[client] = connect(peer, address)
		}
		result = turns(acquires, seconds, duration(6), polls[peer])
	default:
		check(fmt.Errorf("unknown measure %q", os.Args[1]))
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func connect(peer, address string) acquire {
	switch peer {
	case "redsync":
		pool := redsync.New(goredis.NewPool(redis.NewClient(&redis.Options{Addr: address})))
		return func(key string) func() {
			mutex := pool.NewMutex(key, redsync.WithExpiry(ttl), redsync.WithTries(1_000_000))
			check(mutex.LockContext(background))
			return func() {
				_, err := mutex.UnlockContext(background)
				check(err)
			}
		}
	case "redislock":
		locker := redislock.New(redis.NewClient(&redis.Options{Addr: address}))
		retry := redislock.Options{RetryStrategy: redislock.LinearBackoff(polls[peer])}
		return func(key string) func() {
			// Without a deadline, it waits no longer than the TTL.
			within, cancel := context.WithTimeout(background, time.Hour)
			defer cancel()
			lock, err := locker.Obtain(within, key, ttl, &retry)
			check(err)
			return func() { check(lock.Release(background)) }
		}
	}
	if peer == "lockgate" || peer == "elector" {
		return inKubernetes(peer, address)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{address}})
	check(err)
	switch peer {
	case "mutex":
		session := begin(client)
		return func(key string) func() { return lock(session, key) }
	case "elock":
		return func(key string) func() {
			session := begin(client)
			unlock := lock(session, key)
			return func() {
				unlock()
				check(session.Close())
			}
		}
	}
	check(fmt.Errorf("unknown peer %q", peer))
	return nil
}

func begin(client *clientv3.Client) *concurrency.Session {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
	check(err)
	return session
}

func lock(session *concurrency.Session, key string) func() {
	mutex := concurrency.NewMutex(session, key)
	check(mutex.Lock(background))
	return func() { check(mutex.Unlock(background)) }
}

// pairs lets each claim take a lock of its own as often as it can; after a quarter of the time to warm up.
func pairs(acquire acquire, claims int, seconds time.Duration) map[string]any {
	run := func(limit time.Duration) (total int, elapsed time.Duration) {
		start, counts := time.Now(), make([]int, claims)
		each(claims, start.Add(limit), func(claim int) {
			acquire(fmt.Sprintf("/bench/bench-%d", claim))()
			counts[claim]++
		})
		for _, count := range counts {
			total += count
		}
		return total, time.Since(start)
	}
	warm, _ := run(seconds / 4)
	total, elapsed := run(seconds)
	return map[string]any{"pairs_per_s": float64(total) / elapsed.Seconds(), "pairs": warm + total}
}

// turns is of those who had been waiting; after a quarter of the time to warm up. Where they poll, who has just had the lock would
// be the first to look: it asks again when another has it.
func turns(acquires []acquire, seconds, hold, polls time.Duration) map[string]any {
	warm, end := time.Now().Add(seconds/4), time.Now().Add(seconds)
	last := atomic.Int64{}
	last.Store(-1)
	// Both belong to whoever holds the lock.
	released, samples := time.Time{}, []int64{}
	each(len(acquires), end, func(client int) {
		for polls > 0 && last.Load() == int64(client) && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
		asked := time.Now()
		release := acquires[client]("/bench/turns")
		last.Store(int64(client))
		if asked.Before(released) && warm.Before(released) {
			samples = append(samples, time.Since(released).Nanoseconds())
		}
		time.Sleep(hold + time.Duration(rand.Float64()*float64(polls)))
		released = time.Now()
		release()
	})
	return map[string]any{"samples_ns": samples}
}

// each does the work of each client again and again until the time is over.
func each(clients int, deadline time.Time, work func(client int)) {
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() {
			for time.Now().Before(deadline) {
				work(client)
			}
		})
	}
	group.Wait()
}

func duration(argument int) time.Duration {
	return time.Duration(number(argument) * float64(time.Second))
}

func number(argument int) float64 {
	if argument >= len(os.Args) {
		check(fmt.Errorf("argument %d is missing", argument))
	}
	value, err := strconv.ParseFloat(os.Args[argument], 64)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stores:", err)
		os.Exit(1)
	}
}

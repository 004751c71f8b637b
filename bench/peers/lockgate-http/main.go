// Measures lockgate's HTTP server through its own client, and is that server:
//
//	lockgate-http serve                             prints its address, and serves until it is killed
//	lockgate-http pairs   URL CLIENTS SECONDS
//	lockgate-http turns   URL CLIENTS SECONDS       hand-overs among clients that all want one lock
//	lockgate-http contend URL CLIENTS SECONDS       the same, each holding it for 1 ms
//
// The measures print one line of JSON.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/werf/lockgate"
	"github.com/werf/lockgate/pkg/distributed_locker"
	"github.com/werf/lockgate/pkg/distributed_locker/optimistic_locking_store"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		serve()
	}
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: lockgate-http serve | pairs|turns|contend URL CLIENTS SECONDS")
		os.Exit(2)
	}
	url, clients := os.Args[2], int(number(3))
	deadline := time.Now().Add(time.Duration(number(4) * float64(time.Second)))
	var result map[string]any
	switch os.Args[1] {
	case "pairs":
		result = pairs(url, clients, deadline)
	case "turns":
		result = turns(url, clients, deadline)
	case "contend":
		result = contend(url, clients, deadline)
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func serve() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	backend := distributed_locker.NewOptimisticLockingStorageBasedBackend(optimistic_locking_store.NewInMemoryStore())
	fmt.Println(listener.Addr())
	check(http.Serve(listener, distributed_locker.NewHttpBackendHandler(backend)))
}

// pairs lets each client take a lock of its own as often as it can.
func pairs(url string, clients int, deadline time.Time) map[string]any {
	start := time.Now()
	done := each(url, clients, deadline, func(client int, locker lockgate.Locker) bool {
		release(locker, acquire(locker, fmt.Sprintf("bench-%d", client), ""))
		return true
	})
	total := 0
	for _, turns := range done {
		total += turns
	}
	return map[string]any{"pairs_per_s": float64(total) / time.Since(start).Seconds()}
}

func turns(url string, clients int, deadline time.Time) map[string]any {
	var mutex sync.Mutex
	var released time.Time
	releaser, samples, turn := -1, []int64{}, atomic.Int64{}
	each(url, clients, deadline, func(client int, locker lockgate.Locker) bool {
		handle := acquire(locker, "bench", "")
		mutex.Lock()
		if releaser >= 0 && releaser != client {
			samples = append(samples, time.Since(released).Nanoseconds())
		}
		mutex.Unlock()
		mine := turn.Add(1)
		// Released at any point of the others' interval.
		time.Sleep(2*time.Millisecond + time.Duration(rand.Int63n(int64(2*time.Second))))
		mutex.Lock()
		releaser, released = client, time.Now()
		mutex.Unlock()
		release(locker, handle)
		for turn.Load() == mine && time.Now().Before(deadline) {
			time.Sleep(500 * time.Microsecond)
		}
		return true
	})
	return map[string]any{"samples_ns": samples}
}

func contend(url string, clients int, deadline time.Time) map[string]any {
	served := each(url, clients, deadline, func(client int, locker lockgate.Locker) bool {
		handle := acquire(locker, "bench", "")
		in_time := time.Now().Before(deadline)
		time.Sleep(time.Millisecond)
		release(locker, handle)
		return in_time
	})
	return map[string]any{"served": served}
}

// each runs the work of each client again and again, and gives how often it counted.
func each(url string, clients int, deadline time.Time, work func(int, lockgate.Locker) bool) []int {
	var group sync.WaitGroup
	counts := make([]int, clients)
	for client := range clients {
		group.Add(1)
		go func() {
			defer group.Done()
			locker := distributed_locker.NewHttpLocker(url)
			for time.Now().Before(deadline) {
				if work(client, locker) {
					counts[client]++
				}
			}
		}()
	}
	group.Wait()
	return counts
}

func acquire(locker lockgate.Locker, name, acquirer string) lockgate.LockHandle {
	acquired, handle, err := locker.Acquire(name, lockgate.AcquireOptions{AcquirerId: acquirer})
	check(err)
	if !acquired {
		check(fmt.Errorf("not acquired"))
	}
	return handle
}

func release(locker lockgate.Locker, handle lockgate.LockHandle) { check(locker.Release(handle)) }

func number(argument int) float64 {
	value, err := strconv.ParseFloat(os.Args[argument], 64)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockgate-http:", err)
		os.Exit(1)
	}
}

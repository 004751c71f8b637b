// Measures lockgate's file locker. The same three measures as bench/peers/python/peer.py and the Rust bench:
//
//	lockgate pairs   DIR SECONDS
//	lockgate turns   DIR SECONDS MAX_HOLD_MS ID
//	lockgate contend DIR SECONDS ID
//
// Prints one line of JSON.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/werf/lockgate"
	"github.com/werf/lockgate/pkg/file_locker"
)

const (
	minHold = 2 * time.Millisecond
	glance  = 500 * time.Microsecond

	slotStop     = 0
	slotReleased = 1
	slotReleaser = 2
	slotTurns    = 3
	slotCounter  = 8
	slotStart    = 9
	slotReady    = 16
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: lockgate pairs|turns|contend DIR SECONDS ...")
		os.Exit(2)
	}
	directory := os.Args[2]
	seconds := time.Duration(number(3) * float64(time.Second))
	locker, err := file_locker.NewFileLocker(directory)
	check(err)
	lock := lock{locker}
	var result map[string]any
	switch os.Args[1] {
	case "pairs":
		result = pairs(lock, seconds)
	case "turns":
		hold := time.Duration(number(4) * float64(time.Millisecond))
		result = turns(lock, shared(directory), seconds, hold, int(number(5)))
	case "contend":
		result = contend(lock, shared(directory), seconds, int(number(4)))
	default:
		check(fmt.Errorf("unknown measure %q", os.Args[1]))
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

func pairs(lock lock, seconds time.Duration) map[string]any {
	run := func(limit time.Duration) (int, time.Duration) {
		count, start := 0, time.Now()
		for {
			for range 100 {
				lock.release(lock.acquire())
			}
			count += 100
			if elapsed := time.Since(start); elapsed >= limit {
				return count, elapsed
			}
		}
	}
	run(seconds / 4)
	count, elapsed := run(seconds)
	return map[string]any{"pairs_per_s": float64(count) / elapsed.Seconds()}
}

func turns(lock lock, slots []uint64, seconds, maxHold time.Duration, id int) map[string]any {
	other := 1 - id
	deadline := now() + seconds.Nanoseconds()
	samples := []int64{}
	for load(slots, slotStop) == 0 {
		seen := load(slots, slotTurns+other)
		asked := now()
		handle := lock.acquire()
		got := now()
		released := int64(load(slots, slotReleased))
		waited := load(slots, slotReleaser) == uint64(other+1) && asked+minHold.Nanoseconds()/4 < released
		store(slots, slotTurns+id, load(slots, slotTurns+id)+1)
		if load(slots, slotStop) == 0 && waited {
			samples = append(samples, got-released)
		}
		time.Sleep(minHold + time.Duration(rand.Int63n(int64(maxHold))))
		if now() > deadline {
			store(slots, slotStop, 1)
		}
		store(slots, slotReleaser, uint64(id+1))
		store(slots, slotReleased, uint64(now()))
		lock.release(handle)
		for load(slots, slotStop) == 0 && load(slots, slotTurns+other) == seen {
			time.Sleep(glance)
			if now() > deadline {
				store(slots, slotStop, 1)
			}
		}
	}
	return map[string]any{"samples_ns": samples}
}

func contend(lock lock, slots []uint64, seconds time.Duration, id int) map[string]any {
	store(slots, slotReady+id, 1)
	for load(slots, slotStart) == 0 {
		time.Sleep(glance)
	}
	deadline := int64(load(slots, slotStart)) + seconds.Nanoseconds()
	served, total := 0, 0
	for now() < deadline {
		handle := lock.acquire()
		store(slots, slotCounter, load(slots, slotCounter)+1)
		lock.release(handle)
		total++
		if now() < deadline {
			served++
		}
	}
	return map[string]any{"served": served, "total": total}
}

type lock struct{ locker *file_locker.FileLocker }

func (l lock) acquire() lockgate.LockHandle {
	acquired, handle, err := l.locker.Acquire("bench", lockgate.AcquireOptions{})
	check(err)
	if !acquired {
		check(fmt.Errorf("not acquired"))
	}
	return handle
}

func (l lock) release(handle lockgate.LockHandle) { check(l.locker.Release(handle)) }

// shared maps 512 bytes that the processes of one measure share.
func shared(directory string) []uint64 {
	file, err := os.OpenFile(filepath.Join(directory, "shared"), os.O_RDWR, 0)
	check(err)
	bytes, err := syscall.Mmap(int(file.Fd()), 0, 512, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err)
	return unsafe.Slice((*uint64)(unsafe.Pointer(&bytes[0])), 64)
}

func load(slots []uint64, index int) uint64         { return atomic.LoadUint64(&slots[index]) }
func store(slots []uint64, index int, value uint64) { atomic.StoreUint64(&slots[index], value) }

// now is CLOCK_MONOTONIC, which all processes of a machine share.
func now() int64 {
	var spec syscall.Timespec
	_, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, 1, uintptr(unsafe.Pointer(&spec)), 0)
	if errno != 0 {
		check(errno)
	}
	return spec.Nano()
}

func number(index int) float64 {
	if index >= len(os.Args) {
		check(fmt.Errorf("argument %d is missing", index))
	}
	value, err := strconv.ParseFloat(os.Args[index], 64)
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "lockgate:", err)
		os.Exit(1)
	}
}

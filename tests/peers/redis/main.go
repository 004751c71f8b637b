// Drives a Go library's locks in Redis by lines on standard input; answers each with a line.
//
//	redis redsync|redislock ADDRESS
//
//	lock ID KEY MILLIS       -> "acquired ID", once it is: for so long
//	try ID KEY MILLIS        -> the same, or "busy ID"
//	extend ID MILLIS         -> "extended ID", or "lost ID"
//	unlock ID                -> "released ID", or "lost ID" if it was no longer held
//	count ID KEY TIMES FILE  -> "counted ID", after that many steps of the number in FILE, each under the lock
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/go-redis/v9"
)

// held is what is held: to be extended, and given back. Both say whether it still was.
type held interface {
	extend(time.Duration) bool
	unlock() bool
}

// library takes a lock, and waits for it if told so; nil if it is somebody's.
type library func(key string, ttl time.Duration, wait bool) held

const retry = 10 * time.Millisecond

var (
	output sync.Mutex
	table  sync.Mutex
	locks  = map[string]held{}
	forAll = context.Background()
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: os.Args[2]})
	take := map[string]library{"redsync": ofRedsync(client), "redislock": ofRedislock(client)}[os.Args[1]]
	say("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		id := words[1]
		switch words[0] {
		case "lock", "try":
			go func() {
				if held := take(words[2], millis(words[3]), words[0] == "lock"); held != nil {
					table.Lock()
					locks[id] = held
					table.Unlock()
					say("acquired " + id)
				} else {
					say("busy " + id)
				}
			}()
		case "extend":
			go tell(id, "extended", of(id).extend(millis(words[2])))
		case "unlock":
			go tell(id, "released", of(id).unlock())
		case "count":
			go count(id, take, words[2], int(number(words[3])), words[4])
		default:
			check(fmt.Errorf("unknown command %q", words[0]))
		}
	}
}

type redsyncs struct{ mutex *redsync.Mutex }

func ofRedsync(client *redis.Client) library {
	pool := redsync.New(goredis.NewPool(client))
	return func(key string, ttl time.Duration, wait bool) held {
		tries := 1
		if wait {
			tries = 1_000_000
		}
		mutex := pool.NewMutex(key, redsync.WithExpiry(ttl), redsync.WithTries(tries), redsync.WithRetryDelay(retry))
		err := mutex.LockContext(forAll)
		if taken := (*redsync.ErrTaken)(nil); errors.As(err, &taken) || errors.Is(err, redsync.ErrFailed) {
			return nil
		}
		check(err)
		return redsyncs{mutex}
	}
}

func (lock redsyncs) extend(time.Duration) bool {
	held, err := lock.mutex.ExtendContext(forAll)
	return held && err == nil
}

func (lock redsyncs) unlock() bool {
	held, err := lock.mutex.UnlockContext(forAll)
	return held && err == nil
}

type redislocks struct{ lock *redislock.Lock }

func ofRedislock(client *redis.Client) library {
	locker := redislock.New(client)
	return func(key string, ttl time.Duration, wait bool) held {
		options := redislock.Options{RetryStrategy: redislock.NoRetry()}
		within := forAll
		if wait {
			options.RetryStrategy = redislock.LinearBackoff(retry)
			// Without one, it waits no longer than the TTL.
			deadline, cancel := context.WithTimeout(forAll, time.Hour)
			defer cancel()
			within = deadline
		}
		lock, err := locker.Obtain(within, key, ttl, &options)
		if errors.Is(err, redislock.ErrNotObtained) {
			return nil
		}
		check(err)
		return redislocks{lock}
	}
}

func (lock redislocks) extend(ttl time.Duration) bool {
	return lock.had(lock.lock.Refresh(forAll, ttl, nil))
}

func (lock redislocks) unlock() bool {
	return lock.had(lock.lock.Release(forAll))
}

func (redislocks) had(err error) bool {
	if errors.Is(err, redislock.ErrNotObtained) || errors.Is(err, redislock.ErrLockNotHeld) {
		return false
	}
	check(err)
	return true
}

func count(id string, take library, key string, times int, file string) {
	for range times {
		lock := take(key, 30*time.Second, true)
		text, err := os.ReadFile(file)
		check(err)
		check(os.WriteFile(file, []byte(strconv.FormatInt(number(string(text))+1, 10)), 0o600))
		if !lock.unlock() {
			check(errors.New("lost while counting"))
		}
	}
	say("counted " + id)
}

func of(id string) held {
	table.Lock()
	defer table.Unlock()
	return locks[id]
}

func tell(id, done string, had bool) {
	if !had {
		done = "lost"
	}
	say(done + " " + id)
}

func millis(word string) time.Duration { return time.Duration(number(word)) * time.Millisecond }

func number(word string) int64 {
	number, err := strconv.ParseInt(word, 10, 64)
	check(err)
	return number
}

func say(line string) {
	output.Lock()
	defer output.Unlock()
	fmt.Println(line)
}

func check(err error) {
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// Drives Go's concurrency.Mutex by lines on standard input; answers each with a line. Each lock has a session of its own,
// which ends with it, so the calls to etcd are elock's: Grant, KeepAlive, Txn, Delete, Revoke.
//
//	etcd-mutex ENDPOINT TTL
//
//	lock ID KEY              -> "acquired ID REVISION", once it is; "failed ID ERROR"
//	try ID KEY               -> the same, or "busy ID"
//	cancel ID                -> "cancelled ID": gives up waiting
//	unlock ID                -> "released ID"
//	count ID KEY TIMES FILE  -> "counted ID", after that many steps of the number in FILE, each under the lock
//
// TTL is in seconds.
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

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

type held struct {
	session *concurrency.Session
	mutex   *concurrency.Mutex
	cancel  context.CancelFunc
}

var (
	output sync.Mutex
	table  sync.Mutex
	locks  = map[string]*held{}
	client *clientv3.Client
	ttl    int
)

func main() {
	var err error
	client, err = clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}})
	check(err)
	ttl, err = strconv.Atoi(os.Args[2])
	check(err)
	say("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		id := words[1]
		switch words[0] {
		case "lock":
			context := begin(id, words[2])
			go lock(id, context, (*concurrency.Mutex).Lock)
		case "try":
			context := begin(id, words[2])
			go lock(id, context, (*concurrency.Mutex).TryLock)
		case "cancel":
			of(id).cancel()
		case "unlock":
			go func() {
				end(id)
				say("released " + id)
			}()
		case "count":
			times, err := strconv.Atoi(words[3])
			check(err)
			go count(id, words[2], times, words[4])
		default:
			check(fmt.Errorf("unknown command %q", words[0]))
		}
	}
}

func begin(id, key string) context.Context {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(ttl))
	check(err)
	context, cancel := context.WithCancel(context.Background())
	table.Lock()
	defer table.Unlock()
	locks[id] = &held{session, concurrency.NewMutex(session, key), cancel}
	return context
}

func lock(id string, within context.Context, how func(*concurrency.Mutex, context.Context) error) {
	lock := of(id)
	switch err := how(lock.mutex, within); {
	case err == nil:
		say(fmt.Sprintf("acquired %s %d", id, revision(lock)))
	case errors.Is(err, concurrency.ErrLocked):
		check(lock.session.Close())
		say("busy " + id)
	case errors.Is(err, context.Canceled):
		check(lock.session.Close())
		say("cancelled " + id)
	default:
		say("failed " + id + " " + err.Error())
	}
}

func end(id string) {
	lock := of(id)
	check(lock.mutex.Unlock(context.Background()))
	check(lock.session.Close())
}

// revision is that at which its key was made.
func revision(lock *held) int64 {
	answer, err := client.Get(context.Background(), lock.mutex.Key())
	check(err)
	return answer.Kvs[0].CreateRevision
}

func count(id, key string, times int, file string) {
	for range times {
		within := begin(id, key)
		check(of(id).mutex.Lock(within))
		text, err := os.ReadFile(file)
		check(err)
		number, err := strconv.Atoi(string(text))
		check(err)
		check(os.WriteFile(file, []byte(strconv.Itoa(number+1)), 0o600))
		end(id)
	}
	say("counted " + id)
}

func of(id string) *held {
	table.Lock()
	defer table.Unlock()
	return locks[id]
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

// Is lockgate's HTTP server, or drives its client for that or its locker for Kubernetes by lines on standard input and answers
// each with a line.
//
//	lockgate-http serve ADDRESS                      -> "address ADDRESS"
//	lockgate-http URL
//	lockgate-http kubernetes URL CA TOKEN NAMESPACE CONFIGMAP
//
//	try ID NAME exclusive|shared ACQUIRER            -> "acquired ID" or "busy ID"
//	acquire ID NAME exclusive|shared ACQUIRER        -> "waits ID" if it has to, and "acquired ID"
//	timed ID NAME exclusive|shared ACQUIRER SECONDS  -> the same, or "failed ID timeout"
//	uuid ID                                          -> "uuid UUID"
//	release ID                                       -> "released ID" or "failed ID ERROR"
//	count ID NAME TIMES FILE                         -> "counted ID", after that many steps of the number in FILE, each
//	                                                    under the lock
//
// and says "lost ID" when a lease is lost. NAME is hexadecimal; ACQUIRER is "-" for none.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/werf/lockgate"
	"github.com/werf/lockgate/pkg/distributed_locker"
	"github.com/werf/lockgate/pkg/distributed_locker/optimistic_locking_store"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

var (
	mutex   sync.Mutex
	handles = map[string]lockgate.LockHandle{}
	locker  lockgate.Locker
)

func main() {
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2])
	case "kubernetes":
		locker = kubernetes(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6])
	default:
		locker = distributed_locker.NewHttpLocker(os.Args[1])
	}
	say("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		id := words[1]
		switch words[0] {
		case "try":
			options := options(words)
			options.NonBlocking = true
			go acquire(id, name(words[2]), options)
		case "acquire":
			go acquire(id, name(words[2]), options(words))
		case "timed":
			options := options(words)
			seconds, err := strconv.Atoi(words[5])
			check(err)
			options.Timeout = time.Duration(seconds) * time.Second
			go acquire(id, name(words[2]), options)
		case "uuid":
			say("uuid " + handle(id).UUID)
		case "release":
			go func() {
				if err := locker.Release(handle(id)); err != nil {
					say("failed " + id + " " + err.Error())
					return
				}
				say("released " + id)
			}()
		case "count":
			times, err := strconv.Atoi(words[3])
			check(err)
			go count(id, name(words[2]), times, words[4])
		default:
			check(fmt.Errorf("unknown command %q", words[0]))
		}
	}
}

func kubernetes(url, ca, token, namespace, name string) lockgate.Locker {
	client, err := dynamic.NewForConfig(&rest.Config{
		Host:            url,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAFile: ca},
		// Its own limit would be measured otherwise.
		QPS:   50,
		Burst: 100,
	})
	check(err)
	configmaps := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	return distributed_locker.NewKubernetesLocker(client, configmaps, name, namespace)
}

// serve ends with the program, whose end is that of its standard input. The first part of a path is a set of names of its
// own, as in werf's service.
func serve(address string) {
	listener, err := net.Listen("tcp", address)
	check(err)
	say("address " + listener.Addr().String())
	var mutex sync.Mutex
	spaces := map[string]http.Handler{}
	space := func(name string) http.Handler {
		mutex.Lock()
		defer mutex.Unlock()
		if spaces[name] == nil {
			store := optimistic_locking_store.NewInMemoryStore()
			backend := distributed_locker.NewOptimisticLockingStorageBasedBackend(store)
			handler := http.StripPrefix("/"+name, distributed_locker.NewHttpBackendHandler(backend))
			// One request after another: of two that race this store may leave a record that is neither's, and a holder without
			// its lease.
			var turn sync.Mutex
			spaces[name] = http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
				turn.Lock()
				defer turn.Unlock()
				handler.ServeHTTP(answer, request)
			})
		}
		return spaces[name]
	}
	go func() {
		check(http.Serve(listener, http.HandlerFunc(func(answer http.ResponseWriter, request *http.Request) {
			space(strings.Split(request.URL.Path, "/")[1]).ServeHTTP(answer, request)
		})))
	}()
}

func options(words []string) lockgate.AcquireOptions {
	id := words[1]
	options := lockgate.AcquireOptions{
		Shared: words[3] == "shared",
		OnWaitFunc: func(_ string, wait func() error) error {
			say("waits " + id)
			return wait()
		},
		OnLostLeaseFunc: func(lockgate.LockHandle) error {
			say("lost " + id)
			return nil
		},
	}
	if words[4] != "-" {
		options.AcquirerId = words[4]
	}
	return options
}

func acquire(id, name string, options lockgate.AcquireOptions) {
	acquired, handle, err := locker.Acquire(name, options)
	switch {
	case err != nil:
		say("failed " + id + " " + err.Error())
	case !acquired:
		say("busy " + id)
	default:
		mutex.Lock()
		handles[id] = handle
		mutex.Unlock()
		say("acquired " + id)
	}
}

func count(id, name string, times int, file string) {
	for range times {
		check(lockgate.WithAcquire(locker, name, lockgate.AcquireOptions{}, func(bool) error {
			text, err := os.ReadFile(file)
			check(err)
			number, err := strconv.Atoi(string(text))
			check(err)
			return os.WriteFile(file, []byte(strconv.Itoa(number+1)), 0o600)
		}))
	}
	say("counted " + id)
}

func handle(id string) lockgate.LockHandle {
	mutex.Lock()
	defer mutex.Unlock()
	return handles[id]
}

func name(text string) string {
	bytes, err := hex.DecodeString(text)
	check(err)
	return string(bytes)
}

func say(line string) {
	mutex.Lock()
	defer mutex.Unlock()
	fmt.Println(line)
}

func check(err error) {
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

// Drives lockgate's file locker by lines on standard input; answers each with a line.
//
//	lockgate DIR [murmur3]
//
//	try ID NAME exclusive|shared      -> "acquired ID" or "busy ID"
//	acquire ID NAME exclusive|shared  -> "acquired ID", once it is
//	release ID                        -> "released ID"
//	path NAME                         -> "path PATH"
//
// NAME is hexadecimal.
package main

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/werf/lockgate"
	"github.com/werf/lockgate/pkg/file_lock"
	"github.com/werf/lockgate/pkg/file_locker"
)

var (
	mutex   sync.Mutex
	handles = map[string]lockgate.LockHandle{}
)

func main() {
	dir := os.Args[1]
	file_lock.LegacyHashFunction = len(os.Args) > 2 && os.Args[2] == "murmur3"
	locker, err := file_locker.NewFileLocker(dir)
	check(err)
	say("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch words[0] {
		case "try":
			acquire(locker, words[1], name(words[2]), lockgate.AcquireOptions{NonBlocking: true, Shared: words[3] == "shared"})
		case "acquire":
			go acquire(locker, words[1], name(words[2]), lockgate.AcquireOptions{Shared: words[3] == "shared"})
		case "release":
			mutex.Lock()
			handle := handles[words[1]]
			delete(handles, words[1])
			mutex.Unlock()
			check(locker.Release(handle))
			say("released " + words[1])
		case "path":
			lock := file_lock.NewFileLock(name(words[1]), dir).(*file_lock.FileLock)
			say("path " + lock.LockFilePath())
		default:
			check(fmt.Errorf("unknown command %q", words[0]))
		}
	}
}

func acquire(locker *file_locker.FileLocker, id, name string, options lockgate.AcquireOptions) {
	acquired, handle, err := locker.Acquire(name, options)
	check(err)
	if !acquired {
		say("busy " + id)
		return
	}
	mutex.Lock()
	handles[id] = handle
	mutex.Unlock()
	say("acquired " + id)
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

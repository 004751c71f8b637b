// client-go's leader election on one Lease, as controllers have it.
//
//	leader-election URL CA TOKEN NAMESPACE LEASE IDENTITY
//
//	run      stands for election: says "leads" when it leads, and "ended" when it does not any more
//	resign   ends it as controllers do that are stopped: the Lease is given back, and "ended" said
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

func main() {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:            os.Args[1],
		BearerToken:     os.Args[3],
		TLSClientConfig: rest.TLSClientConfig{CAFile: os.Args[2]},
	})
	if err != nil {
		panic(err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: os.Args[4], Name: os.Args[5]},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: os.Args[6]},
	}
	ended := make(chan struct{})
	resign := func() {}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "run":
			var ctx context.Context
			ctx, resign = context.WithCancel(context.Background())
			go func() {
				leaderelection.RunOrDie(ctx, config(lock))
				ended <- struct{}{}
			}()
		case "resign":
			resign()
			<-ended
			fmt.Println("resigned")
		}
	}
}

func config(lock resourcelock.Interface) leaderelection.LeaderElectionConfig {
	return leaderelection.LeaderElectionConfig{
		Lock:            lock,
		ReleaseOnCancel: true,
		LeaseDuration:   3 * time.Second,
		RenewDeadline:   2 * time.Second,
		RetryPeriod:     500 * time.Millisecond,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { fmt.Println("leads") },
			OnStoppedLeading: func() { fmt.Println("ended") },
		},
	}
}

package main

import (
	"context"
	"crypto/rand"
	"io"
	"strings"
	"time"

	"github.com/werf/lockgate"
	"github.com/werf/lockgate/pkg/distributed_locker"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

func inKubernetes(peer, kubeconfig string) acquire {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	check(err)
	// Else client-go's own limit would be measured.
	config.QPS, config.Burst = 100_000, 100_000
	if peer == "elector" {
		// It tells of each election.
		klog.LogToStderr(false)
		klog.SetOutput(io.Discard)
		client, err := kubernetes.NewForConfig(config)
		check(err)
		identity := rand.Text()
		return func(key string) func() { return elect(client, name(key), identity) }
	}
	client, err := dynamic.NewForConfig(config)
	check(err)
	configmaps := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	locker := distributed_locker.NewKubernetesLocker(client, configmaps, "locks", "default")
	return func(key string) func() {
		_, handle, err := locker.Acquire(name(key), lockgate.AcquireOptions{Timeout: time.Hour})
		check(err)
		return func() { check(locker.Release(handle)) }
	}
}

// elect leads with the times that controllers have.
func elect(client kubernetes.Interface, name, identity string) func() {
	leads, ended := make(chan struct{}), make(chan struct{})
	ctx, resign := context.WithCancel(background)
	config := leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: "default", Name: "elected-" + name},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		ReleaseOnCancel: true,
		LeaseDuration:   15 * time.Second,
		RenewDeadline:   10 * time.Second,
		RetryPeriod:     2 * time.Second,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leads) },
			OnStoppedLeading: func() {},
		},
	}
	go func() {
		leaderelection.RunOrDie(ctx, config)
		close(ended)
	}()
	<-leads
	return func() {
		resign()
		<-ended
	}
}

func name(key string) string {
	return strings.ReplaceAll(strings.Trim(key, "/"), "/", "-")
}

// SPDX-License-Identifier: Apache-2.0

// What containerd does for a pod's network, by its own library, as its example has it: a
// loopback and one network (minimum count 2), labels, port mappings, sandboxes at once.
//
//	callers CONF-DIR PLUGIN-DIR[:PLUGIN-DIR] add|remove NETNS...
//
// Prints each sandbox's addresses as one line of JSON; a failure is said and the status is 1.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	gocni "github.com/containerd/go-cni"
)

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "callers CONF-DIR PLUGIN-DIR[:…] add|remove NETNS...")
		os.Exit(2)
	}
	network, err := gocni.New(gocni.WithMinNetworkCount(2), gocni.WithPluginConfDir(os.Args[1]),
		gocni.WithPluginDir(strings.Split(os.Args[2], ":")), gocni.WithInterfacePrefix("eth"))
	if err == nil {
		err = network.Load(gocni.WithLoNetwork, gocni.WithDefaultConf)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var wait sync.WaitGroup
	var lock sync.Mutex
	failed := false
	for _, path := range os.Args[4:] {
		wait.Add(1)
		go func(path string) {
			defer wait.Done()
			words, err := one(network, os.Args[3], path)
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				failed = true
				fmt.Fprintf(os.Stderr, "%s %s: %v\n", os.Args[3], path, err)
			} else if words != nil {
				json.NewEncoder(os.Stdout).Encode(words)
			}
		}(path)
	}
	wait.Wait()
	if failed {
		os.Exit(1)
	}
}

func one(network gocni.CNI, command, path string) (map[string]any, error) {
	name := filepath.Base(path)
	options := []gocni.NamespaceOpts{gocni.WithLabels(map[string]string{
		"K8S_POD_NAMESPACE":          "test",
		"K8S_POD_NAME":               name,
		"K8S_POD_INFRA_CONTAINER_ID": name,
		"IgnoreUnknown":              "1",
	})}
	if command == "remove" {
		return nil, network.Remove(context.Background(), name, path, options...)
	}
	result, err := network.Setup(context.Background(), name, path, options...)
	if err != nil {
		return nil, err
	}
	addresses := []string{}
	for _, config := range result.Interfaces["eth0"].IPConfigs {
		addresses = append(addresses, config.IP.String())
	}
	return map[string]any{"netns": path, "addresses": addresses}, nil
}

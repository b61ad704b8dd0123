// SPDX-License-Identifier: Apache-2.0

// The kubelet's part for one sandbox: RunPodSandbox, its address, StopPodSandbox, removal.
//
//	cri SOCKET run NAMESPACE NAME LOG-DIR    prints {"id","ip","pid"}
//	cri SOCKET remove ID
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "cri SOCKET run NAMESPACE NAME LOG-DIR | remove ID")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(socket, command string, words []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	connection, err := grpc.DialContext(ctx, "unix://"+socket, grpc.WithBlock(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	runtime := cri.NewRuntimeServiceClient(connection)
	if command == "remove" {
		if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: words[0]}); err != nil {
			return err
		}
		_, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: words[0]})
		return err
	}
	made, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Namespace: words[0], Name: words[1], Uid: words[1], Attempt: 1},
		LogDirectory: words[2],
		Linux:        &cri.LinuxPodSandboxConfig{},
	}})
	if err != nil {
		return err
	}
	status, err := runtime.PodSandboxStatus(ctx,
		&cri.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId, Verbose: true})
	if err != nil {
		return err
	}
	var info struct {
		Pid int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"id": made.PodSandboxId, "ip": status.Status.Network.Ip, "pid": info.Pid})
}

// SPDX-License-Identifier: Apache-2.0

//go:build tools

package main

// What the test cluster builds beside main.go: named here so that go.sum covers it.
import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
	_ "k8s.io/kubernetes/test/images/regression-issue-74839"
)

"""The Kubernetes dataplane: from what users meant to what packets see."""

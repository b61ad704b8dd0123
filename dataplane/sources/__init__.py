# SPDX-License-Identifier: Apache-2.0
"""Where meaning comes from: Kubernetes objects in, model objects out."""

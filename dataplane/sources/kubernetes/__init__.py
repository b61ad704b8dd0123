# SPDX-License-Identifier: Apache-2.0
"""An API server as a source: what changed, as batches, for as long as it takes.

    a thread a kind (follower): list, watch ─▶ gathering ─▶ Batch, in the caller's loop

The same objects come out as of `sources.manifests`. Whatever fails (rights, credentials, the
server, the network) is a Problem in the batches and is tried again; what is known stays.
Must not write to the API server, nor decide what an object means.
"""

from __future__ import annotations

from dataplane.sources.kubernetes.access import ACCOUNT, Access
from dataplane.sources.kubernetes.gathering import watch

__all__ = ["ACCOUNT", "Access", "watch"]

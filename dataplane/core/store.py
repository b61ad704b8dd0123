# SPDX-License-Identifier: Apache-2.0
"""Services and their slices as the sources last told of them, and which Services a change concerns.

Must not know what is served of them, or how.
"""

from __future__ import annotations

from collections.abc import Collection

from dataplane.model.objects import Batch, EndpointSlice, Kind, Object, ObjectKey, Service

ServiceKey = tuple[str, str]
"""Namespace and name."""


class Store:
    """The objects of one cluster that the Service tables are made of.

    services: all, by key. health_checked: those that have a healthCheckNodePort. Neither is to
    be changed from outside.
    """

    def __init__(self) -> None:
        self.services: dict[ServiceKey, Service] = {}
        self.health_checked: dict[ServiceKey, Service] = {}
        self._slices: dict[ServiceKey, dict[str, EndpointSlice]] = {}
        self._slice_owner: dict[tuple[str, str], str] = {}

    def apply(self, batch: Batch) -> set[ServiceKey]:
        """Takes in what a source saw, deletions first; the Services that it concerns."""
        changed: set[ServiceKey] = set()
        for key in batch.deletes:
            changed |= self._delete(key)
        for obj in batch.upserts:
            changed |= self._upsert(obj)
        return changed

    def slices_of(self, key: ServiceKey) -> Collection[EndpointSlice]:
        """A Service's slices; it need not exist itself."""
        return self._slices.get(key, {}).values()

    def _upsert(self, obj: Object) -> set[ServiceKey]:
        if isinstance(obj, Service):
            return self._upsert_service(obj)
        return self._upsert_slice(obj) if isinstance(obj, EndpointSlice) else set()

    def _upsert_service(self, service: Service) -> set[ServiceKey]:
        key = service.namespace, service.name
        if self.services.get(key) == service:
            return set()
        self.services[key] = service
        self.health_checked.pop(key, None)
        if service.health_check_node_port:
            self.health_checked[key] = service
        return {key}

    def _upsert_slice(self, piece: EndpointSlice) -> set[ServiceKey]:
        name, key = (piece.namespace, piece.name), (piece.namespace, piece.service)
        changed: set[ServiceKey] = set()
        if self._slice_owner.get(name, piece.service) != piece.service:
            changed |= self._forget_slice(name)
        pieces = self._slices.setdefault(key, {})
        if pieces.get(piece.name) != piece:
            pieces[piece.name] = piece
            self._slice_owner[name] = piece.service
            changed.add(key)
        return changed

    def _delete(self, key: ObjectKey) -> set[ServiceKey]:
        name = key.namespace, key.name
        if key.kind_name == Kind.SLICE.value:
            return self._forget_slice(name)
        if key.kind_name != Kind.SERVICE.value or not self.services.pop(name, None):
            return set()
        self.health_checked.pop(name, None)
        return {name}

    def _forget_slice(self, name: tuple[str, str]) -> set[ServiceKey]:
        owner = self._slice_owner.pop(name, None)
        if owner is None:
            return set()
        key = name[0], owner
        pieces = self._slices[key]
        del pieces[name[1]]
        if not pieces:
            del self._slices[key]
        return {key}

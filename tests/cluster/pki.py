# SPDX-License-Identifier: Apache-2.0
"""Keys, certificates and kubeconfigs of one test cluster, made by openssl.

Must not outlive the cluster: all is in its folder, valid for ten days.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

DAYS = "10"


class Pki:
    """A certificate authority in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-keyout ca.key -out ca.crt -days {DAYS} -subj /CN=podlane-test-ca"
        )
        self._openssl("genrsa -out sa.key 2048")
        self._openssl("rsa -in sa.key -pubout -out sa.pub")

    def _openssl(self, words: str) -> None:
        subprocess.run(
            ["openssl", *words.split()], cwd=self.folder, check=True, capture_output=True
        )

    def certificate(
        self, name: str, user: str, group: str = "", sans: tuple[str, ...] = ()
    ) -> None:
        """NAME.key and NAME.crt for a user (CN) of a group (O), valid for these addresses and names."""
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        self._openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-keyout {name}.key -out {name}.csr -subj {subject}"
        )
        names = [f"IP:{one}" if one[0].isdigit() or ":" in one else f"DNS:{one}" for one in sans]
        lines = ["extendedKeyUsage=clientAuth,serverAuth"]
        lines += [f"subjectAltName={','.join(names)}"] if names else []
        (self.folder / f"{name}.ext").write_text("\n".join(lines) + "\n")
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial "
            f"-out {name}.crt -days {DAYS} -extfile {name}.ext"
        )

    def kubeconfig(self, name: str, server: str) -> Path:
        """A kubeconfig that holds a made certificate whole; JSON is YAML."""

        def data(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test",
                 "cluster": {"server": server, "certificate-authority-data": data("ca.crt")}}
            ],
            "users": [
                {"name": "test", "user": {"client-certificate-data": data(f"{name}.crt"),
                                          "client-key-data": data(f"{name}.key")}}
            ],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }  # fmt: skip
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        return path
